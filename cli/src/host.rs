//! This host as the operator sees it: its configuration and its two daemons.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use afterimage_contract::admin::{AdminError, Request, call};
use afterimage_contract::config::Config;
use afterimage_contract::status::{DaemonReport, GroupStatus, Status, VERSION, Warning, merge};
use afterimage_contract::units::format_duration;

use crate::exit::CommandError;
use crate::text;

/// Loads the configuration, for commands that need a valid one.
pub fn configuration(path: &Path) -> Result<Config, CommandError> {
    Ok(Config::load(path)?)
}

/// Fails if the configuration has no such group.
pub fn ensure_group(config: &Config, group: &str) -> Result<(), CommandError> {
    if config.groups.contains_key(group) {
        return Ok(());
    }
    let known: Vec<_> = config.groups.keys().map(String::as_str).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(CommandError::wrong_use(format!("there is no group {group}; the configuration has: {known}")))
}

/// Microseconds since 1970; 0 on a clock before that.
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Asks both daemons and makes one document of their answers. Fails if neither answers.
pub async fn status(config: &Config) -> Result<Status, CommandError> {
    let (agent_socket, receiver_socket) = (config.agent_socket(), config.receiver_socket());
    let (agent, receiver) = tokio::join!(ask(&agent_socket), ask(&receiver_socket));
    if let (Err(agent), Err(receiver)) = (&agent, &receiver) {
        return Err(CommandError::failed(format!("neither daemon can be asked\n{agent}\n{receiver}")));
    }
    Ok(merged(config, report(agent), report(receiver)))
}

/// As [`status`], and where nobody answers the document says so.
pub async fn document(config: &Config) -> Status {
    let (agent_socket, receiver_socket) = (config.agent_socket(), config.receiver_socket());
    let (agent, receiver) = tokio::join!(ask(&agent_socket), ask(&receiver_socket));
    merged(config, report(agent), report(receiver))
}

fn merged(config: &Config, agent: DaemonReport, receiver: DaemonReport) -> Status {
    let configured: Vec<_> = config.groups.keys().map(String::as_str).collect();
    let mut status = merge(&config.node.name, now_us(), &configured, agent, receiver);
    for group in &mut status.groups {
        warn_of_objectives(config, group);
    }
    status
}

async fn ask(socket: &Path) -> Result<Status, AdminError> {
    call(socket, &Request::Status).await?.into_answer()
}

fn report(answer: Result<Status, AdminError>) -> DaemonReport {
    let (text, action) = match answer {
        Ok(status) if status.version == VERSION => return DaemonReport::Answered(status),
        Ok(status) => {
            let text =
                format!("a daemon reports status version {}; this command reads {VERSION}", status.version);
            (text, "use the command and the daemons of one release".to_owned())
        }
        // Errors end in what to do, after their last semicolon.
        Err(error) => match error.to_string().rsplit_once("; ") {
            Some((text, action)) => (text.to_owned(), action.to_owned()),
            None => (error.to_string(), "look at the daemon's log".to_owned()),
        },
    };
    DaemonReport::Silent { text, action }
}

/// Compares a group's lag with the objective that its configuration states.
fn warn_of_objectives(config: &Config, group: &mut GroupStatus) {
    let rpo = config.groups.get(&group.name).and_then(|configured| configured.objectives.rpo);
    if let (Some(rpo), Some(lag)) = (rpo, group.lag)
        && lag.seconds > rpo.as_secs_f64()
    {
        let text =
            format!("the lag ({}) is over the objective of {}", text::lag(Some(lag)), format_duration(rpo));
        let action = format!("check the link to {} and the load of its journal's disk", group.peer.name);
        group.warnings.push(Warning::new("rpo_exceeded", text, action));
    }
}
