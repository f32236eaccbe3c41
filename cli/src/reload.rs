//! `afterimage config reload`.

use std::path::Path;

use afterimage_contract::admin::{AdminError, Reloaded, Request, call};
use afterimage_contract::config::{Config, Daemon};
use serde_json::json;

use crate::args::ReloadArgs;
use crate::exit::CommandError;
use crate::host;
use crate::text::{emit, printable_lines};

/// Version of the JSON that `config reload --json` prints.
pub const JSON_VERSION: u32 = 1;

/// Has the daemons of this host read their configuration again. Fails if one of them did not take it over, or is not
/// running although it was named, or none is.
pub async fn run(path: &Path, args: &ReloadArgs) -> Result<(), CommandError> {
    // One that is not valid is refused here as the daemons would, and says nothing of where they are.
    let config = host::configuration(path).map_err(|error| CommandError {
        message: format!("nothing is reloaded, and the daemons go on as they are: {}", error.message),
        ..error
    })?;
    let mut answers = Vec::new();
    for daemon in [Daemon::Agent, Daemon::Receiver] {
        if args.daemon.is_none_or(|only| Daemon::from(only) == daemon) {
            answers.push((daemon, ask(&config, daemon).await));
        }
    }
    let text = if args.json { render_json(&answers) } else { render(&answers) };
    emit(&text)?;
    judge(answers, args.daemon.is_some())
}

async fn ask(config: &Config, daemon: Daemon) -> Result<Reloaded, AdminError> {
    let socket = match daemon {
        Daemon::Agent => config.agent_socket(),
        Daemon::Receiver => config.receiver_socket(),
    };
    call(socket, &Request::Reload).await?.into_answer()
}

/// Of each daemon that took it over, what counts now, and what does not yet.
fn render(answers: &[(Daemon, Result<Reloaded, AdminError>)]) -> String {
    let mut text = String::new();
    for (daemon, answer) in answers {
        let Ok(Reloaded { applied, restart, warnings }) = answer else { continue };
        let program = daemon.program();
        for warning in warnings {
            text += &format!("warning: {warning}\n");
        }
        if applied.is_empty() && restart.is_empty() {
            text += &format!("{program}: nothing has changed\n");
        }
        if !applied.is_empty() {
            text += &format!("{program}: in force now: {}\n", applied.join(", "));
        }
        if !restart.is_empty() {
            let wait = if *daemon == Daemon::Agent { " (clients wait meanwhile)" } else { "" };
            text += &format!(
                "{program}: needs a restart: {}\n  systemctl restart {program}{wait}\n",
                restart.join(", ")
            );
        }
    }
    if text.is_empty() { text } else { printable_lines(&text) + "\n" }
}

fn render_json(answers: &[(Daemon, Result<Reloaded, AdminError>)]) -> String {
    let one = |(daemon, answer): &(Daemon, Result<Reloaded, AdminError>)| match answer {
        Ok(reloaded) => json!({
            "daemon": daemon.program(),
            "applied": reloaded.applied,
            "restart": reloaded.restart,
            "warnings": reloaded.warnings,
            "error": null,
        }),
        Err(error) => json!({
            "daemon": daemon.program(), "applied": [], "restart": [], "warnings": [], "error": error.to_string(),
        }),
    };
    let daemons: Vec<_> = answers.iter().map(one).collect();
    format!("{:#}\n", json!({ "version": JSON_VERSION, "daemons": daemons }))
}

fn judge(answers: Vec<(Daemon, Result<Reloaded, AdminError>)>, named: bool) -> Result<(), CommandError> {
    let all = answers.len();
    let errors: Vec<AdminError> = answers.into_iter().filter_map(|(_, answer)| answer.err()).collect();
    let missing = errors.iter().filter(|error| matches!(error, AdminError::NotRunning { .. })).count();
    // A daemon that is not running reads the configuration when it is started.
    let excused = !named && missing < all;
    let count = |error: &AdminError| !(excused && matches!(error, AdminError::NotRunning { .. }));
    let errors: Vec<String> = errors.iter().filter(|error| count(error)).map(ToString::to_string).collect();
    if errors.is_empty() { Ok(()) } else { Err(CommandError::failed(errors.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn reloaded(applied: &[&str], restart: &[&str]) -> Result<Reloaded, AdminError> {
        let own = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        Ok(Reloaded { applied: own(applied), restart: own(restart), warnings: vec![] })
    }

    fn not_running() -> Result<Reloaded, AdminError> {
        Err(AdminError::NotRunning { daemon: "afterimage-receiver", path: "/s/receiver.sock".into() })
    }

    #[test]
    fn what_counts_and_what_does_not_yet_is_said_of_each_daemon() {
        let answers = [
            (Daemon::Agent, reloaded(&["group.a.max_rate", "log.level"], &["group.a.mode"])),
            (Daemon::Receiver, reloaded(&[], &[])),
        ];
        assert_eq!(
            render(&answers),
            "afterimage-agent: in force now: group.a.max_rate, log.level\n\
             afterimage-agent: needs a restart: group.a.mode\n  \
             systemctl restart afterimage-agent (clients wait meanwhile)\n\
             afterimage-receiver: nothing has changed\n"
        );
        let json: serde_json::Value = serde_json::from_str(&render_json(&answers)).unwrap();
        assert_eq!(json["daemons"][0]["restart"][0], "group.a.mode");
    }

    #[test]
    fn a_daemon_that_is_not_running_is_a_failure_where_it_was_asked_for() {
        let both = |second| vec![(Daemon::Agent, reloaded(&[], &[])), (Daemon::Receiver, second)];
        assert_eq!(judge(both(reloaded(&[], &[])), false), Ok(()));
        assert_eq!(judge(both(not_running()), false), Ok(()));
        let neither = vec![(Daemon::Agent, not_running()), (Daemon::Receiver, not_running())];
        assert_eq!(judge(neither, false).unwrap_err().exit, Exit::Failed);
        let error = judge(vec![(Daemon::Receiver, not_running())], true).unwrap_err();
        assert!(error.message.contains("systemctl start afterimage-receiver"), "{error:?}");
    }
}
