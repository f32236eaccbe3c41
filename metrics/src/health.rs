//! The answers to load balancers: yes or no, and why.

use afterimage_contract::status::{GroupStatus, Protection, Role, Status};

use crate::families::name;

/// What is asked of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Does every group do what it was configured to do?
    Healthy,
    /// Are the volumes served here?
    Primary,
    /// Is there a copy here that could be promoted?
    Standby,
}

/// An answer: whether it is yes, and why, in lines for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub yes: bool,
    pub text: String,
}

/// The answer for one group, or for all: yes if it is yes for each, and no if there is none. `status` is that of the host.
/// `None` if the group is not configured.
pub(crate) fn ask(
    status: &Status,
    question: Question,
    configured: &[String],
    group: Option<&str>,
) -> Option<Answer> {
    let asked: Vec<&str> = match group {
        Some(group) if configured.iter().any(|name| name == group) => vec![group],
        Some(_) => return None,
        None => configured.iter().map(String::as_str).collect(),
    };
    let mut answer = Answer { yes: !asked.is_empty(), text: String::new() };
    if asked.is_empty() {
        answer.text += "no group is configured\n";
    }
    for name in asked {
        let found = status.groups.iter().find(|group| group.name == name);
        let (yes, why) = match found {
            Some(group) => about(group, question),
            None => (false, "no daemon that answers has it".to_owned()),
        };
        answer.yes &= yes;
        answer.text += &format!("{name}: {}, {why}\n", if yes { "yes" } else { "no" });
    }
    // A daemon that is silent may have something to say: the answer is about what is known.
    if question == Question::Healthy {
        for warning in &status.warnings {
            answer.yes = false;
            answer.text += &format!("host: no, {}\n", warning.text);
        }
    }
    Some(answer)
}

fn about(group: &GroupStatus, question: Question) -> (bool, String) {
    let protection = name(group.protection).unwrap_or("a state of a newer release");
    let waits = group.warnings.iter().any(|warning| warning.id == "waiting_for_peer");
    let stopped = matches!(group.protection, Protection::Failed | Protection::WrongVolume);
    match (question, group.role) {
        (Question::Healthy, _) if waits => (false, "it waits for the peer to be asked".to_owned()),
        (Question::Healthy, _) => (group.protection.is_healthy(), protection.to_owned()),
        (Question::Primary, Role::Primary) if waits => {
            (false, "primary, not served before the peer was asked".to_owned())
        }
        (Question::Primary, Role::Primary) => {
            let served = group.volumes.iter().any(|volume| !volume.exports.is_empty());
            (served && !stopped, format!("primary, {}", if served { protection } else { "not served" }))
        }
        (Question::Standby, Role::Standby) => {
            // Without a checkpoint there is nothing to promote.
            let usable = group.durable_sequence.is_some() && !stopped;
            (usable, format!("standby, {protection}"))
        }
        (_, Role::Primary) => (false, format!("primary, {protection}")),
        (_, Role::Standby) => (false, format!("standby, {protection}")),
        (_, Role::Fenced) => (false, "fenced".to_owned()),
        (_, Role::Unrecognized) => (false, "a role of a newer release".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use afterimage_contract::config::Mode;
    use afterimage_contract::status::{PeerStatus, VolumeStatus, Warning};

    use super::*;

    fn group(name: &str, role: Role, protection: Protection) -> GroupStatus {
        let mut group = GroupStatus::new(name, role, Mode::Sync, protection, PeerStatus::default());
        group.durable_sequence = Some(7);
        group.volumes.push(VolumeStatus {
            name: "disk".into(),
            device: "/dev/x".into(),
            size_bytes: None,
            dirty_bytes: None,
            unreadable_blocks: None,
            exports: if role == Role::Primary { vec!["/run/x".into()] } else { Vec::new() },
            error: None,
        });
        group
    }

    fn status(groups: Vec<GroupStatus>) -> Status {
        Status { groups, ..Status::new("alpha", 0) }
    }

    fn answers(group: GroupStatus) -> [bool; 3] {
        let (name, status) = (group.name.clone(), status(vec![group]));
        [Question::Healthy, Question::Primary, Question::Standby]
            .map(|question| ask(&status, question, std::slice::from_ref(&name), Some(&name)).unwrap().yes)
    }

    #[test]
    fn each_state_has_its_answers() {
        use Protection::*;
        for (role, protection, expected) in [
            (Role::Primary, InSync, [true, true, false]),
            (Role::Primary, AsyncStreaming, [true, true, false]),
            (Role::Primary, CatchingUp, [false, true, false]),
            (Role::Primary, Degraded, [false, true, false]),
            (Role::Primary, Disconnected, [false, true, false]),
            (Role::Primary, Failed, [false, false, false]),
            (Role::Primary, WrongVolume, [false, false, false]),
            (Role::Standby, AsyncStreaming, [true, false, true]),
            (Role::Standby, Disconnected, [false, false, true]),
            (Role::Standby, WrongVolume, [false, false, false]),
            (Role::Fenced, Fenced, [false, false, false]),
        ] {
            assert_eq!(answers(group("orders", role, protection)), expected, "{role:?} {protection:?}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_not_offered() {
        let mut first = group("orders", Role::Standby, Protection::FirstSync);
        first.durable_sequence = None;
        assert_eq!(answers(first), [false; 3]);
        let mut unserved = group("orders", Role::Primary, Protection::InSync);
        unserved.volumes[0].exports.clear();
        assert!(!answers(unserved)[1]);
        let mut waiting = group("orders", Role::Primary, Protection::InSync);
        waiting.warnings.push(Warning::new("waiting_for_peer", "it waits", "bring it back"));
        assert_eq!(answers(waiting), [false; 3]);
    }

    #[test]
    fn all_groups_have_to_agree_and_the_silent_are_named() {
        let names = ["a".to_owned(), "b".to_owned()];
        let both = status(vec![
            group("a", Role::Primary, Protection::InSync),
            group("b", Role::Standby, Protection::AsyncStreaming),
        ]);
        let all = |status: &Status, question| ask(status, question, &names, None).unwrap();
        assert!(all(&both, Question::Healthy).yes);
        let primary = all(&both, Question::Primary);
        assert_eq!(
            primary,
            Answer { yes: false, text: "a: yes, primary, in_sync\nb: no, standby, async_streaming\n".into() }
        );
        assert!(ask(&both, Question::Primary, &names, Some("a")).unwrap().yes);
        assert_eq!(ask(&both, Question::Primary, &names, Some("c")), None);
        let mut silent = status(vec![group("a", Role::Primary, Protection::InSync)]);
        silent.warnings.push(Warning::new("receiver_silent", "the receiver is not running", "start it"));
        let answer = all(&silent, Question::Healthy);
        assert!(!answer.yes && answer.text.contains("b: no") && answer.text.contains("not running"));
        assert!(!ask(&status(vec![]), Question::Healthy, &[], None).unwrap().yes);
    }
}
