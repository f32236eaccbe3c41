//! The receiver's part of the status document: the groups whose standby this host is.

use std::time::Duration;

use afterimage_contract::status::{
    ApplyLag, CatchUp, Daemon, GroupStatus, JournalPoint, JournalStatus, PeerStatus, Position, Protection,
    Role, Status, VolumeStatus, Warning,
};
use afterimage_protocol::Generation;

use crate::clock;
use crate::group::{Group, Numbers, Phase, Snapshot};
use crate::node::Node;

/// A peer that is refused tries again within a second or two.
const REFUSED_SHOWN: Duration = Duration::from_secs(15);

/// A full journal shows for this long at least, so that one that fills up again and again does not look as if it worked.
const FULL_SHOWN_US: u64 = 10_000_000;

/// The status as the receiver sees it now.
pub fn report(node: &Node) -> Status {
    let mut status = Status::new(&node.config.node.name, clock::now().0);
    let release = env!("CARGO_PKG_VERSION").to_owned();
    status.receiver = Some(Daemon { release, since_us: Some(node.started.0) });
    status.groups = node.groups().filter_map(|group| group_status(node, group)).collect();
    status
}

/// `None` for a group that is not the receiver's.
fn group_status(node: &Node, group: &Group) -> Option<GroupStatus> {
    let snapshot = group.snapshot();
    if snapshot.phase == Phase::Elsewhere {
        return None;
    }
    let config = group.config();
    let (n, link) = (&snapshot.numbers, snapshot.link.as_deref());
    let pinned = node.pins.all().ok();
    let pinned =
        pinned.as_ref().and_then(|pins| pins.iter().find(|p| p.name.as_str() == node.config.peer.name));
    let peer = PeerStatus {
        name: node.config.peer.name.clone(),
        connected: link.is_some(),
        address: Some(link.map_or_else(|| node.config.peer.address.to_string(), |l| l.address().to_string())),
        fingerprint: link.map(|l| l.fingerprint()).or(pinned.map(|p| p.fingerprint)).map(|f| f.to_string()),
        rtt_us: link.map(|l| l.rtt_us()),
        last_error: snapshot.last_error.clone(),
    };
    let position = |p: afterimage_protocol::Position| Position {
        generation: p.generation.to_string(),
        sequence: p.sequence.0,
    };
    let mut status = GroupStatus::new(&config.name, Role::Standby, config.mode, protection(&snapshot), peer);
    status.generation = (n.generation != Generation::NONE).then(|| n.generation.to_string());
    status.parent = n.parent.map(position);
    status.since_us = Some(snapshot.since.0);
    status.position = n.newest.map(position);
    status.received_sequence = n.newest.map(|p| p.sequence.0);
    status.durable_sequence = n.durable.map(|p| p.sequence.0);
    if snapshot.phase == Phase::Standby {
        let unapplied_us = snapshot.details.apply_lag_us(clock::now());
        status.apply_lag = n.newest.map(|_| ApplyLag { seconds: unapplied_us as f64 / 1e6 });
        status.received_bytes = Some(snapshot.details.received_bytes);
    }
    status.catchup = first_sync(&snapshot);
    status.journal = Some(JournalStatus {
        bytes: n.journal_bytes,
        limit_bytes: config.journal.max_size.bytes(),
        oldest: n.oldest.map(|p| JournalPoint { sequence: p.sequence.0, time_us: None }),
        newest: n
            .newest
            .map(|p| JournalPoint { sequence: p.sequence.0, time_us: n.newest_time.map(|t| t.0) }),
        applied_sequence: n.applied.map(|s| s.0),
        unapplied_bytes: Some(n.unapplied.1),
        apply_rate_bytes_per_s: Some(n.unapplied.1)
            .filter(|bytes| *bytes > 0)
            .and_then(|_| snapshot.rates.applied.per_s(clock::now().0)),
    });
    status.volumes = volumes(group, &snapshot);
    status.warnings = warnings(group, &snapshot);
    status.warnings.extend(refused_key(node, &snapshot, status.peer.fingerprint.as_deref()));
    Some(status)
}

/// How well the group is protected as far as the standby can tell: whether the primary waits for it, only the primary
/// knows.
fn protection(snapshot: &Snapshot) -> Protection {
    let n = &snapshot.numbers;
    match &snapshot.phase {
        Phase::Failed { wrong_volume: true, .. } => Protection::WrongVolume,
        Phase::Failed { .. } => Protection::Failed,
        _ if journal_full(n) => Protection::JournalFull,
        _ if snapshot.refused => Protection::Refused,
        _ if snapshot.link.is_none() => Protection::Disconnected,
        _ if n.newest.is_none() => Protection::FirstSync,
        _ if n.staging.is_some() => Protection::CatchingUp,
        _ => Protection::AsyncStreaming,
    }
}

/// Whether the journal has no room, or had none a moment ago: a session that needs more than there is begins again at once.
fn journal_full(n: &Numbers) -> bool {
    let now = clock::now();
    n.journal_full || n.journal_full_at.is_some_and(|at| now.since_us(at) <= FULL_SHOWN_US)
}

/// How far the first sync is. How large any other catch-up is, only the primary knows.
fn first_sync(snapshot: &Snapshot) -> Option<CatchUp> {
    let (staged, first) = snapshot.numbers.staging?;
    let total_bytes: u64 = snapshot.volume_bytes.iter().sum();
    let done_bytes = staged.min(total_bytes);
    let rate_bytes_per_s = snapshot.rates.first_sync.per_s(clock::now().0);
    let eta_s = rate_bytes_per_s.and_then(|rate| (total_bytes - done_bytes).checked_div(rate));
    first.then_some(CatchUp { done_bytes, total_bytes, rate_bytes_per_s, eta_s, first })
}

fn volumes(group: &Group, snapshot: &Snapshot) -> Vec<VolumeStatus> {
    let volume = |(index, volume): (usize, &afterimage_contract::config::Volume)| VolumeStatus {
        name: volume.name.clone(),
        device: volume.device.display().to_string(),
        size_bytes: snapshot.volume_bytes.get(index).copied(),
        dirty_bytes: None,
        unreadable_blocks: None,
        exports: Vec::new(),
        error: None,
    };
    group.config().volumes.iter().enumerate().map(volume).collect()
}

/// The key that was refused while the primary has no session: perhaps it is the primary's.
fn refused_key(node: &Node, snapshot: &Snapshot, pinned: Option<&str>) -> Option<Warning> {
    if snapshot.link.is_some() {
        return None;
    }
    let refused = node.refused_keys.within(REFUSED_SHOWN)?;
    let peer = &node.config.peer.name;
    let pinned =
        pinned.map_or_else(|| "no key of it is pinned".to_owned(), |key| format!("that of {peer} is {key}"));
    Some(Warning::new(
        "key_refused",
        format!(
            "a connection from {} shows the key {}, and {pinned}: {}",
            refused.address, refused.key, refused.reason
        ),
        format!(
            "compare it with what `afterimage identity` shows on {peer}; if it is the same: run `afterimage pair --new` here, \
             and what it says on {peer}"
        ),
    ))
}

fn warnings(group: &Group, snapshot: &Snapshot) -> Vec<Warning> {
    let name = group.name();
    let mut warnings = Vec::new();
    if let Phase::Failed { text, wrong_volume } = &snapshot.phase {
        let id = if *wrong_volume { "wrong_volume" } else { "standby_failed" };
        let action = "mend what it says; the receiver tries again by itself every few seconds";
        warnings.push(Warning::new(id, format!("the standby of group {name} takes nothing: {text}"), action));
    }
    if journal_full(&snapshot.numbers) {
        warnings.push(Warning::new(
            "journal_full",
            format!("the journal of group {name} had no room for what the primary sent"),
            "give it more room (journal.max_size), or shorten the history; the session resumes by itself",
        ));
    }
    warnings
}
