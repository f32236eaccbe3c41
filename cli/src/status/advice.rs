//! What a state means for the operator, and what to do about it.

use afterimage_contract::status::{GroupStatus, HeldBackBy, Protection, Role, Warning};
use afterimage_contract::units::ByteSize;
use afterimage_events::Event;

use crate::text::{lag, span};

/// A note under a group's line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) text: String,
    /// What to do; `None` if it ends by itself.
    pub(crate) action: Option<String>,
    /// What `docs/events.md` calls it, and the log.
    pub(crate) event: Option<Event>,
}

impl Note {
    fn new(event: Event, text: impl Into<String>, action: impl Into<String>) -> Self {
        Self { text: text.into(), action: Some(action.into()), event: Some(event) }
    }

    fn passing(event: Event, text: impl Into<String>) -> Self {
        Self { text: text.into(), action: None, event: Some(event) }
    }

    /// What a daemon warns of.
    pub(super) fn warning(warning: &Warning) -> Self {
        Self { text: warning.text.clone(), action: warning.action.clone(), event: event_of(&warning.id) }
    }
}

/// The notes of a group: its state unless that is healthy, its volumes, then what the daemons warn of.
pub(crate) fn notes(group: &GroupStatus) -> Vec<Note> {
    let mut notes: Vec<_> = state(group).into_iter().collect();
    for volume in &group.volumes {
        if let Some(error) = &volume.error {
            let wrong = group.protection == Protection::WrongVolume;
            notes.push(Note::new(
                if wrong { Event::WrongVolume } else { Event::IoFailed },
                format!("volume {}: {error}", volume.name),
                format!("check {}; the kernel's log may say more", volume.device),
            ));
        }
        if let Some(blocks) = volume.unreadable_blocks.filter(|n| *n > 0) {
            notes.push(Note::new(
                Event::UnreadableBlocks,
                format!("volume {}: {blocks} blocks cannot be read, and the standby lacks them", volume.name),
                format!("replace the disk behind {}, or restore these blocks by writing them", volume.device),
            ));
        }
    }
    for warning in &group.warnings {
        notes.push(Note::warning(warning));
    }
    notes
}

/// The event behind a warning of a daemon's.
fn event_of(warning: &str) -> Option<Event> {
    match warning {
        "copies_differ" => Some(Event::VerifyFound),
        "reinstate_required" => Some(Event::Fenced),
        "rpo_exceeded" => Some(Event::RpoBreached),
        "standby_failed" => Some(Event::GroupFailed),
        "agent_silent" | "receiver_silent" => Some(Event::Stopped),
        other => Event::by_id(&other.replace('_', "-")),
    }
}

fn state(group: &GroupStatus) -> Option<Note> {
    let peer = &group.peer.name;
    let daemon = if group.role == Role::Standby { "afterimage-receiver" } else { "afterimage-agent" };
    Some(match group.protection {
        Protection::InSync | Protection::AsyncStreaming => return None,
        Protection::CatchingUp => Note::passing(Event::CatchUpBegun, format!("catch-up {}", progress(group))),
        Protection::FirstSync => Note::passing(
            Event::FirstSyncBegun,
            format!("first sync {}; the standby cannot be promoted before it ends", progress(group)),
        ),
        Protection::Degraded => Note::new(
            Event::Degraded,
            format!("writes are acknowledged that {peer} does not have; at risk: {}", lag(group.lag)),
            format!("run `afterimage status` on {peer}, and check the link to it"),
        ),
        Protection::Blocked => Note::new(
            Event::Blocked,
            format!("writes wait until {peer} has them, as on_link_loss = \"block\" asks"),
            format!(
                "bring {peer} or the link back; or set on_link_loss = \"degrade\" and restart afterimage-agent"
            ),
        ),
        Protection::Disconnected if group.role == Role::Standby => Note::new(
            Event::LinkDown,
            format!("{peer} does not connect{}", reason(group)),
            format!(
                "check afterimage-agent on {peer}; if {peer} is lost: afterimage promote {} --dry-run",
                group.name
            ),
        ),
        Protection::Disconnected => Note::new(
            Event::LinkDown,
            format!("no connection to {peer}{}{}", at(group), reason(group)),
            format!("check that {peer} is up, runs afterimage-receiver, and can be reached by UDP"),
        ),
        Protection::Refused => Note::new(
            if group.role == Role::Standby { Event::SessionRefused } else { Event::PeerRefuses },
            format!("there is no session with {peer}: one side refuses the other{}", reason(group)),
            "do what the reason says; if it is about keys, pair the hosts again".to_owned(),
        ),
        Protection::Fenced => Note::new(
            Event::Fenced,
            format!("this host was replaced by a promotion on {peer}, and serves nothing"),
            format!("use the volumes on {peer}; this host must be reinstated before it replicates again"),
        ),
        Protection::WrongVolume => Note::new(
            Event::WrongVolume,
            "a device holds another volume than the one that was replicated; nothing is served or overwritten",
            "compare each volume's `device` in the configuration with what is on the host",
        ),
        Protection::JournalFull => Note::new(
            Event::JournalFull,
            format!("the standby's journal is full{}", journal(group)),
            "raise journal.max_size or shorten history on the standby; check that its volume's disk keeps up",
        ),
        Protection::Failed => Note::new(
            Event::GroupFailed,
            "the group stopped on an error",
            format!("read the log: journalctl -u {daemon}; after the repair: systemctl restart {daemon}"),
        ),
        Protection::Unrecognized => Note {
            text: "the daemon reports a state that this command does not know".to_owned(),
            action: Some(
                "use the command and the daemons of one release; status --json has the details".to_owned(),
            ),
            event: None,
        },
    })
}

/// How far a transfer is, such as `42% of 1 GiB, 100 MiB/s, 6s to go`. It never says 100 % before the end.
fn progress(group: &GroupStatus) -> String {
    let Some(catchup) = group.catchup else { return "under way, progress unknown".to_owned() };
    let percent = match u128::from(catchup.total_bytes) {
        0 => 0,
        total => (u128::from(catchup.done_bytes) * 100 / total).min(99),
    };
    let mut text = format!("{percent}% of {}", ByteSize::from_bytes(catchup.total_bytes).approximate());
    if let Some(rate) = catchup.rate_bytes_per_s {
        text += &format!(", {}/s", ByteSize::from_bytes(rate).approximate());
    }
    text += &match catchup.eta_s {
        Some(eta) => format!(", {} to go", span(eta)),
        None => ", time to go unknown".to_owned(),
    };
    let held_back = group.background.is_some_and(|b| b.held_back_by == Some(HeldBackBy::Clients));
    if held_back { text + ", held back for clients" } else { text }
}

fn reason(group: &GroupStatus) -> String {
    group.peer.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default()
}

fn at(group: &GroupStatus) -> String {
    group.peer.address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default()
}

fn journal(group: &GroupStatus) -> String {
    let Some(journal) = &group.journal else { return String::new() };
    let size = |bytes| ByteSize::from_bytes(bytes).approximate();
    format!(": {} of {}", size(journal.bytes), size(journal.limit_bytes))
}
