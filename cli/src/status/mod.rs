//! `afterimage status`: asks both daemons of this host and prints one picture.
//!
//! | module | noun |
//! |---|---|
//! | `advice` | what a state means, and what to do about it |
//! | `render` | the picture as text |
//! | `watch` | the picture as a live view of a terminal |

mod advice;
mod render;
mod watch;

use std::path::Path;

use afterimage_contract::config::Config;
use afterimage_contract::status::Status;

use crate::args::StatusArgs;
use crate::exit::CommandError;
use crate::host;
use crate::text::{Paint, emit};

pub(crate) use advice::{Note, notes};
pub use render::render;

/// What is printed by `-x` when there is nothing to say.
const ALL_HEALTHY: &str = "all groups are healthy\n";

/// Prints the status once, or with `--watch` until interrupted. A watch outlives daemons that restart.
pub async fn run(config: &Path, args: &StatusArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    if let Some(group) = &args.group {
        host::ensure_group(&config, group)?;
    }
    let Some(interval) = args.watch else { return once(&config, args).await };
    if !args.json && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return watch::run(&config, args, interval).await;
    }
    loop {
        match (host::status(&config).await, args.json) {
            (Err(error), true) => {
                eprintln!("afterimage: {}", crate::text::printable_lines(&error.message));
            }
            (Ok(status), true) => emit(&line(&selected(status, args))?)?,
            (_, false) => {
                emit(&text(selected(host::document(&config).await, args), args, Paint::for_stdout()))?
            }
        }
        tokio::time::sleep(interval).await;
    }
}

async fn once(config: &Config, args: &StatusArgs) -> Result<(), CommandError> {
    if args.json {
        let status = selected(host::status(config).await?, args);
        let text = serde_json::to_string_pretty(&status).map_err(unwritable)?;
        return emit(&(text + "\n"));
    }
    let status = host::document(config).await;
    let nobody_answers = status.agent.is_none() && status.receiver.is_none();
    emit(&text(selected(status, args), args, Paint::for_stdout()))?;
    // What is wrong has been said.
    if nobody_answers { Err(CommandError::failed("")) } else { Ok(()) }
}

fn line(status: &Status) -> Result<String, CommandError> {
    serde_json::to_string(status).map(|text| text + "\n").map_err(unwritable)
}

fn unwritable(error: serde_json::Error) -> CommandError {
    CommandError::failed(format!("cannot write the status: {error}"))
}

/// What the arguments ask for.
fn selected(mut status: Status, args: &StatusArgs) -> Status {
    if status.agent.is_none() && status.receiver.is_none() {
        // That nobody reports a group needs no line of its own.
        status.warnings.retain(|warning| warning.id != "group_not_reported");
    }
    if let Some(name) = &args.group {
        status.groups.retain(|group| group.name == *name);
    }
    if args.unhealthy {
        status.groups.retain(|group| !advice::is_healthy(group));
    }
    status
}

fn text(status: Status, args: &StatusArgs, paint: Paint) -> String {
    if args.unhealthy && status.groups.is_empty() && status.warnings.is_empty() {
        return ALL_HEALTHY.to_owned();
    }
    render(&status, args.group.is_some(), paint)
}

#[cfg(test)]
mod tests {
    use afterimage_contract::config::Mode;
    use afterimage_contract::status::{Daemon, GroupStatus, PeerStatus, Protection, Role, Warning};

    use super::*;

    fn status(protections: &[Protection]) -> Status {
        let group = |(n, protection): (usize, &Protection)| {
            let peer = PeerStatus::default();
            GroupStatus::new(format!("g{n}"), Role::Primary, Mode::Sync, *protection, peer)
        };
        let mut status = Status::new("alpha", 0);
        status.agent = Some(Daemon { release: "0.1.0".into(), since_us: None });
        status.groups = protections.iter().enumerate().map(group).collect();
        status
    }

    const UNHEALTHY: StatusArgs = StatusArgs { group: None, json: false, unhealthy: true, watch: None };

    fn unhealthy(status: Status) -> String {
        text(selected(status, &UNHEALTHY), &UNHEALTHY, Paint::PLAIN)
    }

    #[test]
    fn only_what_is_not_healthy_is_shown_where_that_is_wanted() {
        assert_eq!(unhealthy(status(&[Protection::InSync, Protection::AsyncStreaming])), ALL_HEALTHY);
        let shown = unhealthy(status(&[Protection::InSync, Protection::Degraded]));
        assert!(shown.contains("\ng1 ") && !shown.contains("\ng0 "), "{shown}");
        let mut warned = status(&[Protection::InSync]);
        warned.groups[0].warnings.push(Warning::new("copies_differ", "text", "action"));
        assert!(unhealthy(warned).contains("\ng0 "), "a group with a warning is not healthy");
        let mut silent = status(&[Protection::InSync]);
        silent.warnings.push(Warning::new("receiver_silent", "it is not running", "start it"));
        assert_eq!(unhealthy(silent), "! it is not running [stopped]\n  do: start it\n");
    }

    #[test]
    fn groups_that_nobody_can_report_are_not_listed() {
        let mut nobody = Status::new("alpha", 0);
        nobody.warnings.push(Warning::new("agent_silent", "a", "do"));
        nobody.warnings.push(Warning::new("receiver_silent", "b", "do"));
        nobody.warnings.push(Warning::new("group_not_reported", "c", "do"));
        assert_eq!(selected(nobody, &UNHEALTHY).warnings.len(), 2);
    }
}
