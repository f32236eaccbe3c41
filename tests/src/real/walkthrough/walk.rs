//! Going through a page.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Page;
use super::expected::Values;
use crate::real::Side;

/// How long a block may take.
const LIMIT: Duration = Duration::from_secs(180);
/// How long one may take that compiles.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// What became of commands that were typed.
#[derive(Debug)]
pub struct Typed {
    /// Whether none of them failed.
    pub success: bool,
    /// What they printed, and what they complained about, as a terminal shows it.
    pub printed: String,
}

/// Types every block of a page in order, each on its hosts, by `type_in`. Fails at the first one of which a command fails or which
/// prints something else than the page shows, and says which that is.
pub fn walk(page: &Page, mut type_in: impl FnMut(Side, &str, Duration) -> Result<Typed>) -> Result<()> {
    let mut values = Values::default();
    for step in &page.steps {
        for &side in step.sides {
            let place = format!("{}, line {}", side.name(), step.line);
            let commands = values.fill_in(&step.commands).with_context(|| place.clone())?;
            let limit = if commands.contains("cargo build") { BUILD_LIMIT } else { LIMIT };
            let typed = type_in(side, &commands, limit).with_context(|| format!("{place}:\n{commands}"))?;
            println!("# {place}\n{commands}{}", typed.printed);
            if !typed.success {
                bail!("{place}: a command failed:\n{commands}\nIt printed\n{}", typed.printed);
            }
            if let Some(output) = &step.output {
                let compared = values.compare(&output.text, &typed.printed);
                compared.with_context(|| format!("{place}: not the output of line {}", output.line))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types a page into a shell of this machine, with the host's name as `$HOST`; what was typed where, or why it failed.
    fn typed(page: &str) -> Result<Vec<(Side, String)>> {
        let mut all = Vec::new();
        walk(&Page::parse(page)?, |side, commands, _| {
            all.push((side, commands.to_owned()));
            let done =
                std::process::Command::new("sh").args(["-ec", commands]).env("HOST", side.name()).output()?;
            Ok(Typed { success: done.status.success(), printed: String::from_utf8(done.stdout)? })
        })?;
        Ok(all)
    }

    #[test]
    fn blocks_are_typed_in_order_with_the_values_that_were_shown() {
        let page = "**On both:**\n```sh\necho $HOST is on\n```\n```text\n... is on\n```\n\
            **On beta:**\n```sh\necho key k-1\n```\n```text\nkey <key>\n```\n**On alpha:**\n```sh\ntest <key> = k-1\n```\n";
        let all = typed(page).unwrap();
        let expected = [
            (Side::Alpha, "echo $HOST is on\n"),
            (Side::Beta, "echo $HOST is on\n"),
            (Side::Beta, "echo key k-1\n"),
            (Side::Alpha, "test k-1 = k-1\n"),
        ];
        assert_eq!(all, expected.map(|(side, commands)| (side, commands.to_owned())));
    }

    #[test]
    fn a_command_that_fails_ends_it_and_its_place_is_said() {
        let page =
            "**On alpha:**\n```sh\ntrue\n```\n**On beta:**\n```sh\necho before\nfalse\necho after\n```\n";
        let error = format!("{:#}", typed(page).unwrap_err());
        assert!(error.starts_with("beta, line 7: a command failed:\necho before\nfalse\n"), "{error}");
        assert!(error.ends_with("It printed\nbefore\n"), "{error}");
    }

    #[test]
    fn another_output_than_the_page_shows_ends_it_and_its_place_is_said() {
        let page = "**On alpha:**\n```sh\necho protected\n```\n\nIt says\n\n```text\nnot protected\n```\n";
        let error = format!("{:#}", typed(page).unwrap_err());
        assert!(error.starts_with("alpha, line 3: not the output of line 9: "), "{error}");
        assert!(error.contains("not protected\n") && error.ends_with("and this was\nprotected\n"), "{error}");
        assert!(typed(&page.replace("not protected", "protected")).is_ok());
    }

    #[test]
    fn both_hosts_have_to_print_what_is_shown() {
        let page = "**On both:**\n```sh\necho $HOST\n```\n```text\nalpha\n```\n";
        let error = format!("{:#}", typed(page).unwrap_err());
        assert!(error.starts_with("beta, line 3: not the output of line 6"), "{error}");
    }
}
