//! What is configured, and what is the case now.

use afterimage_contract::admin::format_time;
use afterimage_contract::config::{Ack, Group, Mode, OnFailure, OnLinkLoss};
use afterimage_contract::status::{Daemon, Status};
use afterimage_contract::units::format_duration;

use super::Subject;
use super::names::Names;
use super::page::{Page, tick, tick_path};
use crate::status;
use crate::text::{Paint, printable};

/// Whose runbook this is, and how it is to be kept.
pub(super) fn head(page: &mut Page, subject: &Subject, names: &Names) {
    let peer = &subject.config.peer.name;
    page.text(&format!(
        "Made on **{}** at {} by {}, from {}. Paths, devices and sockets are those of {}; print it on {peer} too, \
         after every change of the configuration, and keep both where they can be read when the hosts cannot.",
        names.node,
        format_time(subject.status.time_us),
        tick(names.group("runbook", &[])),
        tick_path(subject.path),
        names.node,
    ));
    page.text(
        "Every command is run as root, or as the user that the daemons run as. Exit status: 0 done; 1 failed, and \
         nothing changed unless the message says so; 2 wrong use; 3 refused, because it would be unsafe.",
    );
}

/// The configuration of the group.
pub(super) fn configured(page: &mut Page, subject: &Subject) {
    let (config, group) = (subject.config, subject.group);
    page.section("What is configured");
    let mut rows = vec![
        (
            "this host",
            format!("{}; its receiver listens on UDP {}", config.node.name, tick(config.node.listen)),
        ),
        ("the other host", format!("{}, reached at UDP {}", config.peer.name, tick(&config.peer.address))),
        ("first primary", format!("{}; a promotion or switchover does not change the file", group.primary)),
        ("mode", mode(group)),
        ("objectives", objectives(group)),
        ("history", history(group)),
        ("journal, on a standby", {
            format!("{}, at most {}", tick_path(&group.journal_path()), group.journal.max_size)
        }),
        ("state", tick_path(&config.node.state_dir)),
        ("administration sockets", {
            format!("{}, {}", tick_path(&config.agent_socket()), tick_path(&config.receiver_socket()))
        }),
    ];
    if let Some(rate) = group.max_rate {
        rows.push(("a catch-up sends at most", rate.to_string()));
    }
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    page.table(&["", ""], &rows);
    let volume = |volume: &afterimage_contract::config::Volume| {
        let export = &volume.export;
        let mut exports: Vec<String> = Vec::new();
        exports.extend(export.nbd.as_deref().map(tick_path));
        exports.extend(export.tcp.map(tick));
        let exports = if exports.is_empty() { "nowhere".to_owned() } else { exports.join(", ") };
        vec![tick(&volume.name), tick_path(&volume.device), exports]
    };
    let volumes: Vec<_> = group.volumes.iter().map(volume).collect();
    page.table(&["volume", "device here", "served here over NBD, while this host is the primary"], &volumes);
}

fn mode(group: &Group) -> String {
    if group.mode == Mode::Async {
        return "`async`: a write is answered when the primary's disk has it".to_owned();
    }
    let ack = match group.ack {
        Ack::Received => "the standby's receiver has it",
        Ack::Durable => "it is on the standby's stable storage",
    };
    let loss = match group.on_link_loss {
        OnLinkLoss::Degrade => "the primary goes on without it, and `status` says DEGRADED",
        OnLinkLoss::Block => "writes wait",
    };
    let timeout = format_duration(group.sync_timeout);
    format!("`sync`: a write is answered when {ack} too; without the standby for {timeout}, {loss}")
}

fn objectives(group: &Group) -> String {
    let show = |name: &str, value: Option<_>| value.map(|d| format!("{name} {}", format_duration(d)));
    let stated: Vec<_> = [show("RPO", group.objectives.rpo), show("RTO", group.objectives.rto)]
        .into_iter()
        .flatten()
        .collect();
    if stated.is_empty() { "none stated".to_owned() } else { stated.join(", ") }
}

fn history(group: &Group) -> String {
    if group.history.is_zero() { "none kept".to_owned() } else { format_duration(group.history) }
}

/// What the daemons of this host say.
pub(super) fn now(page: &mut Page, subject: &Subject, names: &Names) {
    let status = subject.status;
    page.section(&format!("The state now, as {} sees it", names.node));
    let lines = [
        daemon("the agent", status.agent.as_ref(), "agent_silent", status),
        daemon("the receiver", status.receiver.as_ref(), "receiver_silent", status),
        standing(names),
    ];
    page.items(lines.iter().map(String::as_str));
    if subject.group_status().is_some() {
        let mut only = status.clone();
        only.groups.retain(|group| group.name == names.group);
        only.warnings.clear();
        let text = status::render(&only, true, Paint::PLAIN);
        page.code(&text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>());
    }
}

fn standing(names: &Names) -> String {
    let Names { node, primary, standby, .. } = names;
    if names.fenced {
        format!(
            "{primary} is the primary; {node} was replaced by it and is **fenced**: bring it home, as below"
        )
    } else if names.known {
        format!("{primary} is the primary, {standby} is not")
    } else {
        format!(
            "who is the primary is **not known here**; below, {primary} stands for the primary, as in the \
             configuration: look before you act"
        )
    }
}

fn daemon(name: &str, daemon: Option<&Daemon>, silent: &str, status: &Status) -> String {
    if let Some(daemon) = daemon {
        return format!("{name} runs, release {}", printable(&daemon.release));
    }
    let why = status.warnings.iter().find(|warning| warning.id == silent);
    let why = why.map(|w| format!(": {}; {}", w.text, w.action.as_deref().unwrap_or_default()));
    printable(&format!("{name} **cannot be asked**{}", why.unwrap_or_default()))
}

/// What will run by itself.
pub(super) fn hooks(page: &mut Page, subject: &Subject) {
    page.section("Hooks");
    let Some(hooks) = &subject.config.hooks else {
        page.text("None: the configuration has no `[hooks]` section.");
        return;
    };
    let rows = subject.hooks.iter().filter_map(|(event, found)| {
        let state = match found {
            Ok(None) => return None,
            Ok(Some(_)) => match (event.can_stop(), event.on_failure(hooks)) {
                (true, OnFailure::Abort) => "runs; a failure stops it".to_owned(),
                (true, OnFailure::Continue) => "runs; a failure is logged, and it goes on".to_owned(),
                (false, _) => "runs; a failure is logged".to_owned(),
            },
            Err(error) => format!("**fails**: {}", printable(&error.to_string())),
        };
        Some(vec![tick(event.name()), state])
    });
    let rows: Vec<_> = rows.collect();
    let dir = tick_path(&hooks.dir);
    if rows.is_empty() {
        page.text(&format!("None: there is no program for any event in {dir} on this host."));
        return;
    }
    let timeout = format_duration(hooks.timeout);
    page.text(&format!("In {dir} on this host; each is killed after {timeout}. No other event has one."));
    page.table(&["event", ""], &rows);
}
