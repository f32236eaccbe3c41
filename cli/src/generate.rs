//! `afterimage completions` and `afterimage man`: what is generated from the command lines of the three programs, for
//! packages and for `systemd/install`.

use std::fs;
use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::{Args, CompletionsArgs, ManArgs};
use crate::exit::CommandError;

/// The section of the manual for commands, and that for daemons.
const COMMANDS: &str = "1";
const DAEMONS: &str = "8";
/// The shells that completions are written for when all are.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// The three programs, each with the section of its manual page.
fn programs() -> [(clap::Command, &'static str); 3] {
    [
        (Args::command(), COMMANDS),
        (afterimage_agent::Arguments::command(), DAEMONS),
        (afterimage_receiver::Arguments::command(), DAEMONS),
    ]
}

/// Writes the completions of the command to stdout, or those of all programs for all shells into a directory.
pub fn completions(args: &CompletionsArgs) -> Result<(), CommandError> {
    if let Some(shell) = args.shell {
        let mut command = Args::command();
        let name = command.get_name().to_owned();
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, name, &mut text);
        return print(&text);
    }
    let Some(dir) = &args.dir else { return Ok(()) };
    make(dir)?;
    for (mut command, _) in programs() {
        let name = command.get_name().to_owned();
        for shell in SHELLS {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, &name, &mut text);
            let file = match shell {
                Shell::Zsh => format!("_{name}"),
                Shell::Fish => format!("{name}.fish"),
                _ => format!("{name}.bash"),
            };
            write(&dir.join(file), &text)?;
        }
    }
    Ok(())
}

/// Writes the manual page of the command to stdout, or those of all programs and of each command into a directory.
pub fn man(args: &ManArgs) -> Result<(), CommandError> {
    let Some(dir) = &args.dir else {
        return print(&page(Args::command(), COMMANDS)?);
    };
    make(dir)?;
    for (mut command, section) in programs() {
        command.build();
        pages(&command, section, dir)?;
    }
    Ok(())
}

/// The page of a command and, with names such as `afterimage-config-check`, those of the commands in it.
fn pages(command: &clap::Command, section: &str, dir: &Path) -> Result<(), CommandError> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    write(&dir.join(format!("{name}.{section}")), &page(command.clone(), section)?)?;
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        pages(inner, section, dir)?;
    }
    Ok(())
}

fn page(command: clap::Command, section: &str) -> Result<Vec<u8>, CommandError> {
    let source = format!("Afterimage {}", env!("CARGO_PKG_VERSION"));
    let after_help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_commands = command.has_subcommands();
    let man = Man::new(command).section(section).manual("Afterimage").source(source);
    let mut text = Vec::new();
    let render = |text: &mut Vec<u8>| {
        man.render_title(text)?;
        man.render_name_section(text)?;
        man.render_synopsis_section(text)?;
        man.render_description_section(text)?;
        man.render_options_section(text)?;
        if has_commands {
            man.render_subcommands_section(text)?;
        }
        text.write_all(notes(&after_help).as_bytes())
    };
    render(&mut text).map_err(|error| CommandError::failed(format!("cannot make a manual page: {error}")))?;
    Ok(text)
}

/// What stands below the help, as sections of a manual page: a line such as `Examples:` begins one, indented lines are kept as
/// they are, and others are running text.
fn notes(after_help: &str) -> String {
    let mut text = String::new();
    let mut is_kept = false;
    for line in after_help.lines() {
        if line.starts_with("  ") != is_kept && !line.is_empty() {
            is_kept = !is_kept;
            text += if is_kept { ".PP\n.nf\n" } else { ".fi\n" };
        }
        match line.strip_suffix(':').filter(|title| !title.contains([' ', '(']) || *title == "Exit status") {
            Some(title) if !is_kept => text += &format!(".SH \"{}\"\n", title.to_uppercase()),
            _ if line.is_empty() => text += if is_kept { "\n" } else { ".PP\n" },
            _ => text += &format!("{}\n", escape(line)),
        }
    }
    if is_kept { text + ".fi\n" } else { text }
}

/// A line of which nothing is taken for a request or an escape of roff.
fn escape(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

fn print(text: &[u8]) -> Result<(), CommandError> {
    crate::text::emit(&String::from_utf8_lossy(text))
}

fn make(dir: &Path) -> Result<(), CommandError> {
    fs::create_dir_all(dir).map_err(|error| {
        CommandError::failed(format!("cannot make the directory {}: {error}", dir.display()))
    })
}

fn write(path: &Path, text: &[u8]) -> Result<(), CommandError> {
    fs::File::create(path)
        .and_then(|mut file| file.write_all(text))
        .map_err(|error| CommandError::failed(format!("cannot write {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_its_options_and_examples() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { dir: Some(dir.path().to_owned()) }).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        for (command, options) in [
            ("afterimage.1", vec!["status", "promote", "NO_COLOR", ".SH \"EXIT STATUS\""]),
            ("afterimage-promote.1", vec!["dry\\-run", "rollback", "serve the newest image that is whole"]),
            ("afterimage-config-reload.1", vec!["agent", ".SH \"EXAMPLES\""]),
            ("afterimage-salvage-export.1", vec!["blocks"]),
            ("afterimage-agent.8", vec!["alone", "SIGHUP", ".SH \"EXIT STATUS\""]),
            ("afterimage-receiver.8", vec!["log\\-level", "SIGHUP"]),
        ] {
            let text = read(command);
            assert!(text.starts_with(".ie") || text.starts_with(".TH"), "{command}: {}", &text[..40]);
            for option in options {
                assert!(text.contains(option), "{command} does not name {option}:\n{text}");
            }
        }
        assert!(!dir.path().join("afterimage-daemon.1").exists(), "it is hidden");
        assert!(!dir.path().join("afterimage-help.1").exists());
    }

    #[test]
    fn examples_are_kept_line_by_line() {
        let text = "Examples:\n  a --b     c\n  .d\n\nWhat it does\nis this.\n\nExit status:\n  0  done\n";
        assert_eq!(
            notes(text),
            ".SH \"EXAMPLES\"\n.PP\n.nf\n  a \\-\\-b     c\n  .d\n\n.fi\nWhat it does\nis this.\n.PP\n\
             .SH \"EXIT STATUS\"\n.PP\n.nf\n  0  done\n.fi\n"
        );
        assert_eq!(escape("'x\\"), "\\&'x\\e");
        assert_eq!(notes(""), "");
    }

    #[test]
    fn completions_of_every_program_are_for_every_shell() {
        let dir = tempfile::tempdir().unwrap();
        completions(&CompletionsArgs { shell: None, dir: Some(dir.path().to_owned()) }).unwrap();
        for name in ["afterimage", "afterimage-agent", "afterimage-receiver"] {
            for file in [format!("{name}.bash"), format!("_{name}"), format!("{name}.fish")] {
                let text = fs::read_to_string(dir.path().join(&file)).unwrap();
                let known = if name == "afterimage" { "switchover" } else { "log-level" };
                assert!(text.contains(known), "{file}");
            }
        }
    }
}
