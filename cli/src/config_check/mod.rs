//! `afterimage config check`: the file, and whether what it names is there, on this host and on the other one. Changes nothing.
//!
//! | module | noun |
//! |---|---|
//! | `local` | this host: directories, space, devices, sockets, hooks |
//! | `peer` | the keys, the way to the peer, and what the daemons say of it |

mod local;
mod peer;

use std::path::Path;

use afterimage_contract::config::{Config, Lines, Problem};

use crate::args::CheckArgs;
use crate::exit::CommandError;
use crate::text::{emit, printable_lines};

/// What was found, beside what is wrong in the file itself.
struct Findings {
    lines: Lines,
    /// It cannot work.
    errors: Vec<Problem>,
    /// It is worth a look.
    warnings: Vec<Problem>,
}

impl Findings {
    fn new(lines: Lines) -> Self {
        Self { lines, errors: Vec::new(), warnings: Vec::new() }
    }

    fn error(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(self.lines.problem(key, message));
    }

    fn warning(&mut self, key: &str, message: impl Into<String>) {
        self.warnings.push(self.lines.problem(key, message));
    }
}

/// Checks the file at `path` and what it names; everything that cannot work is in the error.
pub async fn run(path: &Path, args: &CheckArgs) -> Result<(), CommandError> {
    let (config, lines) = Config::load_with_lines(path)?;
    let mut findings = Findings::new(lines);
    if !args.file_only {
        local::check(&config, &mut findings);
        peer::check(&config, &mut findings).await;
    }
    let Findings { mut errors, mut warnings, .. } = findings;
    warnings.extend(config.warnings.iter().cloned());
    warnings.sort_by_key(|problem| problem.line);
    errors.sort_by_key(|problem| problem.line);
    if errors.is_empty() {
        return emit(&render(&Config { warnings, ..config }, path));
    }
    let shown: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    emit(&shown_lines(&shown))?;
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Err(CommandError::failed(format!(
        "the file is valid, and cannot work here as it is:\n{}",
        errors.join("\n")
    )))
}

fn shown_lines(text: &str) -> String {
    if text.is_empty() { String::new() } else { printable_lines(text) + "\n" }
}

/// What is said of a configuration that is valid.
fn render(config: &Config, path: &Path) -> String {
    let warnings: String = config.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    let volumes: usize = config.groups.values().map(|group| group.volumes.len()).sum();
    let text = format!(
        "{warnings}{}: valid; node {}, peer {}, {}, {}\n",
        path.display(),
        config.node.name,
        config.peer.name,
        count(config.groups.len(), "group"),
        count(volumes, "volume"),
    );
    printable_lines(&text) + "\n"
}

fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    const GOOD: &str = "[node]\nname = \"alpha\"\n[peer]\nname = \"beta\"\naddress = \"beta:7789\"\n\
        [group.orders]\nprimary = \"alpha\"\n[[group.orders.volume]]\nname = \"v\"\ndevice = \"/v\"\n";

    #[test]
    fn a_valid_file_is_summed_up_after_its_warnings() {
        let config = Config::parse(GOOD, "a.toml").unwrap();
        assert_eq!(
            render(&config, Path::new("a.toml")),
            "warning: a.toml:8: group.orders.volume[0]: the volume has no export, so nothing can use it; \
             add export = { nbd = … }\n\
             a.toml: valid; node alpha, peer beta, 1 group, 1 volume\n"
        );
    }

    #[tokio::test]
    async fn a_wrong_file_fails_with_everything_that_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, GOOD.replace("primary", "primry").replace("device", "devise")).unwrap();
        let error = run(&path, &CheckArgs { file_only: false }).await.unwrap_err();
        assert_eq!(error.exit, Exit::Failed);
        let text = error.message.replace(&format!("{}/", dir.path().display()), "");
        assert_eq!(
            text,
            "the configuration is not valid:\n\
             a.toml:6: group.orders: `primary` is missing; add primary = \"alpha\", the same on both hosts\n\
             a.toml:7: group.orders.primry: unknown key; did you mean `primary`?\n\
             a.toml:8: group.orders.volume[0]: `device` is missing; add device = \"/dev/vg0/pgdata\"\n\
             a.toml:10: group.orders.volume[0].devise: unknown key; did you mean `device`?"
        );
    }

    #[tokio::test]
    async fn the_file_alone_is_valid_where_nothing_of_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, GOOD).unwrap();
        run(&path, &CheckArgs { file_only: true }).await.unwrap();
        let error = run(&path, &CheckArgs { file_only: false }).await.unwrap_err();
        assert_eq!(error.exit, Exit::Failed);
        assert!(
            error.message.contains("a.toml:10: group.orders.volume[0].device: /v is not there"),
            "{error:?}"
        );
    }
}
