//! `afterimage config check`.

use std::path::Path;

use afterimage_contract::config::Config;

use crate::exit::CommandError;
use crate::text::{emit, printable_lines};

/// Checks the file at `path`; everything wrong with it is in the error.
pub fn run(path: &Path) -> Result<(), CommandError> {
    emit(&render(&Config::load(path)?, path))
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

    #[test]
    fn a_wrong_file_fails_with_everything_that_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, GOOD.replace("primary", "primry").replace("device", "devise")).unwrap();
        let error = run(&path).unwrap_err();
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
}
