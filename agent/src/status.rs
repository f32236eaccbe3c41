//! The status document of the groups that this agent answers for.

use afterimage_contract::config::{self, Mode, OnLinkLoss};
use afterimage_contract::status::{
    ApplyLag, BackgroundStatus, CatchUp, CompressionEffort, CompressionStatus, GroupStatus, HeldBackBy, Lag,
    PeerStatus, Position, Protection, Role, VolumeStatus, Warning,
};
use afterimage_protocol::effort::Effort;
use afterimage_protocol::pace::HeldBy;
use afterimage_protocol::source;
use afterimage_protocol::{BLOCK_BYTES, Time};

use crate::group::Group;
use crate::link::LinkState;
use crate::open::OpenError;
use crate::serve::Exported;
use crate::supervisor::{Phase, Supervisor};
use crate::verify;
use crate::watcher::Watched;

/// The status of a group, or `None` when the group is not this agent's business.
pub(crate) fn group_status(supervisor: &Supervisor, peer: &config::Peer) -> Option<GroupStatus> {
    let config = &supervisor.current();
    let link = supervisor.link.state();
    let blank = |role, protection| {
        GroupStatus::new(&config.name, role, config.mode, protection, peer_status(peer, &link, false))
    };
    let mut status = match supervisor.phase() {
        Phase::Starting | Phase::Standby => return None,
        Phase::Fenced => {
            let mut status = blank(Role::Fenced, Protection::Fenced);
            status.volumes = volumes(config);
            status.warnings.extend(split_brain(&link, config, peer));
            status.warnings.push(Warning::new(
                "reinstate_required",
                format!("{} was promoted, and this host's copy of {} is out of date", peer.name, config.name),
                format!("run `afterimage reinstate {}`", config.name),
            ));
            return Some(status);
        }
        Phase::Failed(error) => {
            let protection = if error.wrong { Protection::WrongVolume } else { Protection::Failed };
            let mut status = blank(Role::Primary, protection);
            status.volumes = volumes(config);
            blame(&mut status, &error);
            return Some(status);
        }
        Phase::Served { group, exports, watched } => {
            let mut status = served(config, peer, &link, &group, exports.as_deref(), &watched);
            if exports.is_none() {
                status.warnings.push(Warning::new(
                    "waiting_for_peer",
                    format!(
                        "{} is not served: {} may have been promoted while this host was down, and has not been \
                         asked yet",
                        config.name, peer.name
                    ),
                    format!(
                        "bring {} or the link back; or, if it is certain that it was not promoted, run \
                         afterimage-agent with --alone",
                        peer.name
                    ),
                ));
            }
            status
        }
    };
    status.warnings.extend(split_brain(&link, config, peer));
    if link.reinstate {
        status.warnings.push(Warning::new(
            "peer_replaced",
            format!(
                "{} was replaced by the promotion here, and does not follow before it is reinstated: what is written now is \
                 on this host only",
                peer.name
            ),
            format!("on {}: afterimage reinstate {}", peer.name, config.name),
        ));
    }
    if supervisor.link.is_paused() {
        status.warnings.push(Warning::new(
            "stream_paused",
            format!("the stream of {} was paused by an operator", config.name),
            "resume it when what it was paused for is done",
        ));
    }
    Some(status)
}

fn split_brain(link: &LinkState, config: &config::Group, peer: &config::Peer) -> Option<Warning> {
    link.split_brain.then(|| {
        Warning::new(
            "split_brain",
            format!(
                "clients were answered on both hosts after the histories of {} parted: this host and {} each have writes \
                 that the other lacks, and nothing flows",
                config.name, peer.name
            ),
            format!("run `afterimage resolve {}` on both hosts, and name the side that stays", config.name),
        )
    })
}

/// How well the group is protected now.
pub(crate) fn protection(
    status: &source::Status,
    link: &LinkState,
    config: &config::Group,
    now: Time,
) -> Protection {
    // A group that blocks stays in sync without its standby: nothing is acknowledged that it lacks. But writes wait.
    let late = status.late_at.is_some_and(|at| at <= now);
    let apart = if link.refused { Protection::Refused } else { Protection::Disconnected };
    match (config.mode, status.connected) {
        _ if status.state_failed => Protection::Failed,
        (Mode::Sync, _) if status.in_sync && !late => Protection::InSync,
        (_, true) if status.first_sync => Protection::FirstSync,
        (_, false) if status.first_sync => apart,
        (Mode::Sync, _) if config.on_link_loss == OnLinkLoss::Block => Protection::Blocked,
        (Mode::Sync, false) if link.refused => Protection::Refused,
        (_, true) if !status.streaming => Protection::CatchingUp,
        (Mode::Sync, _) => Protection::Degraded,
        (Mode::Async, true) => Protection::AsyncStreaming,
        (Mode::Async, false) => apart,
    }
}

/// What is done to send fewer bytes, and what came of it.
fn compression(config: &config::Group, group: &Group) -> CompressionStatus {
    let sent = group.wire.sent();
    CompressionStatus {
        setting: config.compression,
        effort: match group.wire.effort() {
            Effort::Plain => CompressionEffort::None,
            Effort::Lz4 => CompressionEffort::Lz4,
            Effort::Fast => CompressionEffort::ZstdFast,
            Effort::Dense => CompressionEffort::Zstd,
            Effort::Densest => CompressionEffort::ZstdHigh,
        },
        window_bytes: 1 << group.wire.window_log(),
        raw_bytes: sent.raw_bytes,
        wire_bytes: sent.wire_bytes,
        packet_bytes: group.wire.packet_bytes(),
        coding_us: sent.coding_us,
        waiting_us: sent.waiting_us,
    }
}

fn served(
    config: &config::Group,
    peer: &config::Peer,
    link: &LinkState,
    group: &Group,
    exports: Option<&[Exported]>,
    watched: &Watched,
) -> GroupStatus {
    let (source, parent, written_bytes) = group.look(|source| {
        let written_bytes = source.counters().written_bytes.iter().sum();
        (source.status(), source.state().parent(), written_bytes)
    });
    let now = group.clock.now();
    let protection = protection(&source, link, config, now);
    let mut status = GroupStatus::new(
        &config.name,
        Role::Primary,
        config.mode,
        protection,
        peer_status(peer, link, source.connected),
    );
    status.since_us = Some(watched.since(now, protection).0);
    status.generation = Some(source.position.generation.to_string());
    status.parent = parent.map(position);
    status.position = Some(position(source.position));
    let seconds = source.oldest_unsafe.map_or(0.0, |oldest| now.since_us(oldest) as f64 / 1e6);
    status.lag = source.lag_known.then_some(Lag { seconds, bytes: source.queued_bytes });
    status.apply_lag = watched.apply_lag(now, &source).map(|seconds| ApplyLag { seconds });
    // 0 is "none yet".
    status.received_sequence = Some(source.received.0).filter(|s| *s > 0);
    status.durable_sequence = Some(source.durable.0).filter(|s| *s > 0);
    status.dirty_bytes = Some(source.dirty_blocks.iter().sum::<u64>() * BLOCK_BYTES);
    status.queued_bytes = Some(source.queued_bytes);
    status.queue_limit_bytes = Some(config.queue_size.bytes());
    status.written_bytes = Some(written_bytes);
    status.compression = Some(compression(config, group));
    status.catchup = source.catch_up.map(|(done_bytes, left_bytes)| {
        let rate_bytes_per_s = watched.rate(now);
        CatchUp {
            done_bytes,
            total_bytes: done_bytes + left_bytes,
            rate_bytes_per_s,
            eta_s: rate_bytes_per_s.and_then(|rate| left_bytes.checked_div(rate)),
            first: source.first_sync,
        }
    });
    status.background = Some(BackgroundStatus {
        setting: config.background,
        held_back_by: source.held_back.map(|(_, by)| match by {
            HeldBy::Clients => HeldBackBy::Clients,
            HeldBy::MaxRate => HeldBackBy::MaxRate,
        }),
        limit_bytes_per_s: source.held_back.map(|(rate, _)| rate),
    });
    status.volumes = volumes(config);
    for (index, (volume, local)) in status.volumes.iter_mut().zip(&group.volumes).enumerate() {
        volume.size_bytes = Some(local.size_bytes());
        volume.dirty_bytes = source.dirty_blocks.get(index).map(|blocks| blocks * BLOCK_BYTES);
        let exported = exports.and_then(|exports| exports.get(index)).cloned().unwrap_or_default();
        volume.exports = exported.at;
        volume.error = exported.error;
        if source.flush_failed.get(index).is_some_and(|failed| *failed) {
            volume.error = Some("a flush failed: writes that were acknowledged may be lost".to_owned());
        }
        if local.has_grown() {
            status.warnings.push(Warning::new(
                "volume_grown",
                format!(
                    "volume {} has grown; only its first {} bytes are served",
                    local.name,
                    local.size_bytes()
                ),
                format!("make it as large on the standby, then run: afterimage resize {}", config.name),
            ));
        }
    }
    if let Some(only) = status.volumes.first_mut().filter(|_| config.volumes.len() == 1) {
        only.unreadable_blocks = Some(source.unreadable_blocks);
    } else if source.unreadable_blocks > 0 {
        status.warnings.push(Warning::new(
            "unreadable_blocks",
            format!("{} blocks cannot be read, and the standby lacks them", source.unreadable_blocks),
            "replace the disk, or restore these blocks by writing them",
        ));
    }
    status.warnings.extend(source_warnings(&source, &config.name));
    status.verification = verify::shown(group, config);
    let found = status.verification.as_ref().and_then(|shown| verify::warning(shown, &config.name));
    status.warnings.extend(found);
    status
}

fn source_warnings(source: &source::Status, group: &str) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if source.state_failed {
        warnings.push(Warning::new(
            "state_failed",
            format!("the state of {group} cannot be written: the volumes are served and not replicated"),
            "repair the disk of state_dir, then restart afterimage-agent",
        ));
    }
    if source.tracking_lost {
        warnings.push(Warning::new(
            "tracking_lost",
            format!("the hot-extent log, a bitmap or a flush of {group} failed: every block counts as dirty"),
            "repair the disk of the volume or of state_dir, then restart afterimage-agent",
        ));
    }
    warnings
}

fn blame(status: &mut GroupStatus, error: &OpenError) {
    let text = format!("{:#}", error.error);
    match error.volume.and_then(|index| status.volumes.get_mut(index)) {
        Some(volume) => volume.error = Some(text),
        None => status.warnings.push(Warning::new(
            "group_failed",
            text,
            "mend the cause; it is tried again every few seconds",
        )),
    }
}

fn volumes(config: &config::Group) -> Vec<VolumeStatus> {
    let volume = |v: &config::Volume| VolumeStatus {
        name: v.name.clone(),
        device: v.device.display().to_string(),
        size_bytes: None,
        dirty_bytes: None,
        unreadable_blocks: None,
        exports: Vec::new(),
        error: None,
    };
    config.volumes.iter().map(volume).collect()
}

fn peer_status(peer: &config::Peer, link: &LinkState, connected: bool) -> PeerStatus {
    PeerStatus {
        name: peer.name.clone(),
        connected,
        address: link.address.clone().or_else(|| Some(peer.address.to_string())),
        fingerprint: link.fingerprint.clone(),
        rtt_us: link.rtt_us.filter(|_| connected),
        last_error: link.last_error.clone(),
    }
}

pub(crate) fn position(position: afterimage_protocol::Position) -> Position {
    Position { generation: position.generation.to_string(), sequence: position.sequence.0 }
}
