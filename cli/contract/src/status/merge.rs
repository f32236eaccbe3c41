//! Makes one document of a host out of what its two daemons report.

use std::collections::BTreeMap;

use super::{GroupStatus, Role, Status, VolumeStatus, Warning};

/// What one daemon had to say.
#[derive(Debug, Clone, PartialEq)]
pub enum DaemonReport {
    /// Its part of the status.
    Answered(Status),
    /// It could not be asked: why, and what to do about it.
    Silent {
        /// What is the case.
        text: String,
        /// What to do.
        action: String,
    },
}

/// The status of `node` at a time in microseconds since 1970.
///
/// A group that one daemon reports is taken as it is. Where both report one, the agent's comes first if the
/// agent calls itself primary or fenced, else the receiver's: standby is the receiver's work, and so is a
/// promotion that the agent has not taken up. The other adds only what the first cannot know: the journal,
/// volumes, its warnings. Numbers are never mixed, since each daemon's are only right together. If they
/// disagree on the role, the group says so. A group of `configured` that neither reports becomes a warning,
/// never a silent gap.
pub fn merge(
    node: &str,
    time_us: u64,
    configured: &[&str],
    agent: DaemonReport,
    receiver: DaemonReport,
) -> Status {
    let mut merged = Status::new(node, time_us);
    let mut agent_groups = BTreeMap::new();
    let mut receiver_groups = BTreeMap::new();
    match agent {
        DaemonReport::Answered(report) => {
            merged.agent = report.agent;
            merged.warnings.extend(report.warnings);
            agent_groups = by_name(report.groups);
        }
        DaemonReport::Silent { text, action } => {
            merged.warnings.push(Warning::new("agent_silent", text, action));
        }
    }
    match receiver {
        DaemonReport::Answered(report) => {
            merged.receiver = report.receiver;
            merged.warnings.extend(report.warnings);
            receiver_groups = by_name(report.groups);
        }
        DaemonReport::Silent { text, action } => {
            merged.warnings.push(Warning::new("receiver_silent", text, action));
        }
    }
    let mut groups = BTreeMap::new();
    for (name, from_agent) in agent_groups {
        let group = match receiver_groups.remove(&name) {
            Some(from_receiver) => merge_group(from_agent, from_receiver),
            None => from_agent,
        };
        groups.insert(name, group);
    }
    groups.append(&mut receiver_groups);
    for name in configured.iter().filter(|name| !groups.contains_key(**name)) {
        merged.warnings.push(Warning::new(
            "group_not_reported",
            format!("group {name} is configured, and no daemon that answered serves it"),
            "start the daemon that is missing, or restart both if the configuration was changed",
        ));
    }
    merged.groups = groups.into_values().collect();
    merged
}

fn by_name(groups: Vec<GroupStatus>) -> BTreeMap<String, GroupStatus> {
    groups.into_iter().map(|group| (group.name.clone(), group)).collect()
}

fn merge_group(agent: GroupStatus, receiver: GroupStatus) -> GroupStatus {
    let disagree = (agent.role != receiver.role).then(|| {
        Warning::new(
            "roles_disagree",
            format!("the agent says {}, the receiver says {}", word(agent.role), word(receiver.role)),
            "wait a moment; if it stays, restart the daemon that is behind",
        )
    });
    let receiver_leads = !matches!(agent.role, Role::Primary | Role::Fenced);
    let (mut lead, other) = if receiver_leads { (receiver, agent) } else { (agent, receiver) };
    lead.journal = lead.journal.or(other.journal);
    lead.verification = lead.verification.or(other.verification);
    lead.generation = lead.generation.or(other.generation);
    lead.parent = lead.parent.or(other.parent);
    lead.peer.fingerprint = lead.peer.fingerprint.or(other.peer.fingerprint);
    for volume in other.volumes {
        match lead.volumes.iter_mut().find(|v| v.name == volume.name) {
            Some(known) => merge_volume(known, volume),
            None => lead.volumes.push(volume),
        }
    }
    for warning in disagree.into_iter().chain(other.warnings) {
        if !lead.warnings.contains(&warning) {
            lead.warnings.push(warning);
        }
    }
    lead
}

fn merge_volume(known: &mut VolumeStatus, other: VolumeStatus) {
    known.size_bytes = known.size_bytes.or(other.size_bytes);
    known.error = known.error.take().or(other.error);
    for export in other.exports {
        if !known.exports.contains(&export) {
            known.exports.push(export);
        }
    }
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Standby => "standby",
        Role::Fenced => "fenced",
        Role::Unrecognized => "a role of a newer release",
    }
}
