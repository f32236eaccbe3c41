//! What a state means for the operator, and what to do about it.

use afterimage_contract::admin::format_time;
use afterimage_contract::status::{GroupStatus, HeldBackBy, Protection, Role, Warning};
use afterimage_contract::units::ByteSize;
use afterimage_events::Event;

use crate::text::{lag, printable, span};

/// A note under a group's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) text: String,
    /// What to do, if the one who noticed knows.
    pub(crate) action: Option<String>,
    /// It ends by itself.
    pub(crate) passing: bool,
    /// What `docs/events.md` calls it, and the log.
    pub(crate) event: Option<Event>,
}

impl Note {
    fn new(event: Event, text: impl Into<String>, action: impl Into<String>) -> Self {
        Self { text: text.into(), action: Some(action.into()), passing: false, event: Some(event) }
    }

    fn passing(event: Event, text: impl Into<String>) -> Self {
        let action = "nothing; it ends by itself, and faster the less is written meanwhile".to_owned();
        Self { text: text.into(), action: Some(action), passing: true, event: Some(event) }
    }

    /// What no daemon has noticed.
    pub(crate) fn unnoticed(text: impl Into<String>, action: impl Into<String>) -> Self {
        Self { text: text.into(), action: Some(action.into()), passing: false, event: None }
    }

    /// What is the case, with the id of its event, on one line.
    pub(crate) fn head(&self) -> String {
        let event = self.event.map(|event| format!(" [{}]", event.id())).unwrap_or_default();
        printable(&self.text) + &event
    }

    /// What to do, on one line.
    pub(crate) fn advice(&self) -> Option<String> {
        self.action.as_ref().map(|action| format!("do: {}", printable(action)))
    }

    /// What a daemon warns of.
    pub(crate) fn warning(warning: &Warning) -> Self {
        Self {
            text: warning.text.clone(),
            action: warning.action.clone(),
            passing: false,
            event: event_of(&warning.id),
        }
    }
}

/// The notes of a group: its state unless that is healthy, its volumes, then what the daemons warn of.
pub(crate) fn notes(group: &GroupStatus) -> Vec<Note> {
    let mut notes: Vec<_> = state(group).filter(|_| !says_more(group)).into_iter().collect();
    for volume in &group.volumes {
        if let Some(error) = &volume.error {
            let (event, action) = match group.protection {
                Protection::WrongVolume => (Event::WrongVolume, mend(&volume.device)),
                Protection::Failed => (Event::GroupFailed, mend(&volume.device)),
                _ => (Event::IoFailed, format!("check {}; the kernel's log may say more", volume.device)),
            };
            notes.push(Note::new(event, format!("volume {}: {error}", volume.name), action));
        }
        if let Some(blocks) = volume.unreadable_blocks.filter(|n| *n > 0) {
            notes.push(Note::new(
                Event::UnreadableBlocks,
                format!("volume {}: {blocks} blocks cannot be read, and the standby lacks them", volume.name),
                format!("replace the disk behind {}, or restore these blocks by writing them", volume.device),
            ));
        }
    }
    let said = |warning: &&Warning| {
        matches!(
            (group.protection, warning.id.as_str()),
            (Protection::Fenced, "reinstate_required") | (Protection::JournalFull, "journal_full")
        )
    };
    notes.extend(group.warnings.iter().filter(|warning| !said(warning)).map(Note::warning));
    notes
}

/// Whether nobody needs to look at a group.
pub(crate) fn is_healthy(group: &GroupStatus) -> bool {
    group.protection.is_healthy() && notes(group).is_empty()
}

/// Whether clients were answered on both hosts after the histories had parted.
pub(crate) fn is_split(group: &GroupStatus) -> bool {
    warns(group, "split_brain")
}

fn warns(group: &GroupStatus, id: &str) -> bool {
    group.warnings.iter().any(|warning| warning.id == id)
}

/// Whether a volume or a warning says what the state is about.
fn says_more(group: &GroupStatus) -> bool {
    let of_volume = group.volumes.iter().any(|volume| volume.error.is_some());
    is_split(group)
        || warns(group, "peer_replaced")
        || match group.protection {
            Protection::WrongVolume => of_volume || warns(group, "wrong_volume"),
            Protection::Failed => {
                of_volume
                    || ["group_failed", "standby_failed", "state_failed"].iter().any(|id| warns(group, id))
            }
            _ => false,
        }
}

fn mend(device: &str) -> String {
    format!(
        "put the right volume back at {device}, or mend its `device` in the configuration; it is tried again every few \
         seconds"
    )
}

/// The event behind a warning of a daemon's.
fn event_of(warning: &str) -> Option<Event> {
    match warning {
        "copies_differ" => Some(Event::VerifyFound),
        "reinstate_required" => Some(Event::Fenced),
        "rpo_exceeded" => Some(Event::RpoBreached),
        "standby_failed" => Some(Event::GroupFailed),
        "agent_silent" | "receiver_silent" | "group_not_reported" => Some(Event::Stopped),
        "peer_replaced" => Some(Event::PeerRefuses),
        // They agree once the slower one has noticed a change of the role.
        "roles_disagree" => Some(Event::Promoted),
        other => Event::by_id(&other.replace('_', "-")),
    }
}

fn state(group: &GroupStatus) -> Option<Note> {
    let peer = &group.peer.name;
    let daemon = if group.role == Role::Standby { "afterimage-receiver" } else { "afterimage-agent" };
    Some(match group.protection {
        Protection::InSync | Protection::AsyncStreaming => return None,
        Protection::CatchingUp | Protection::Disconnected if has_no_room(group) => Note::new(
            Event::JournalFull,
            format!(
                "the journal of {peer} has no room for the catch-up, which begins again and again, ever more rarely"
            ),
            format!(
                "raise journal.max_size on {peer} and restart the receiver; `afterimage status` there shows how full it is"
            ),
        ),
        Protection::CatchingUp => Note::passing(Event::CatchUpBegun, format!("catch-up {}", progress(group))),
        Protection::FirstSync => Note::passing(
            Event::FirstSyncBegun,
            format!("first sync {}; the standby cannot be promoted before it ends", progress(group)),
        ),
        Protection::Degraded => Note::new(
            Event::Degraded,
            format!(
                "protection lost {}: writes are acknowledged that {peer} does not have; at risk: {}",
                since(group),
                lag(group.lag)
            ),
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
            format!("no session with {peer}, one side refuses the other{}", reason(group)),
            match &group.peer.last_error {
                Some(reason) if reason.contains(" key ") => format!(
                    "if a key was replaced on purpose: `afterimage pair --new` on one host, and what it says on the other; \
                     if not, find out who answers in the place of {peer}"
                ),
                _ => "do what the reason says".to_owned(),
            },
        ),
        Protection::Fenced => Note::new(
            Event::Fenced,
            format!("this host was replaced by a promotion on {peer}, and serves nothing"),
            format!(
                "use the volumes on {peer}; to make this host its standby: afterimage reinstate {}",
                group.name
            ),
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
        Protection::Unrecognized => Note::unnoticed(
            "the daemon reports a state that this command does not know",
            "use the command and the daemons of one release; status --json has the details",
        ),
    })
}

/// Whether the last session of a primary ended since the standby's journal is full.
fn has_no_room(group: &GroupStatus) -> bool {
    let reason = group.peer.last_error.as_deref().unwrap_or_default();
    group.role == Role::Primary && reason.contains("the journal is full")
}

/// Since when the state is as it is, to the second.
fn since(group: &GroupStatus) -> String {
    let Some(since_us) = group.since_us else { return "at an unknown time".to_owned() };
    let time = format_time(since_us);
    format!("since {}Z", time.split_once('.').map_or(time.trim_end_matches('Z'), |(seconds, _)| seconds))
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
