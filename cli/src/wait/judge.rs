//! Whether what is waited for is so, is on its way, or cannot come. Pure: time is an argument.

use std::time::Duration;

use afterimage_contract::status::{GroupStatus, HeldBackBy, Protection, Role};

use crate::args::Goal;
use crate::progress::{Left, Work};
use crate::status::{Note, notes};

/// A state that only a person ends is one when it has lasted for so long: daemons that start, or change roles, may pass
/// through it.
const SETTLED: Duration = Duration::from_secs(3);
/// Daemons that are started again are silent for less than this.
const SILENT: Duration = Duration::from_secs(15);

/// What a look has shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is so.
    Reached,
    /// It may come by itself: how far it is, and what keeps it from being so.
    Wait(Work, Note),
    /// It does not come by itself.
    Never(Note),
}

/// Looks at one group again and again.
pub(super) struct Judge<'a> {
    group: &'a str,
    goal: Goal,
    /// Since when the group has been in a state that only a person ends, or was not reported.
    stuck_since: Option<Duration>,
    silent_since: Option<Duration>,
    applying: Option<Applying>,
}

/// What a standby had when it was looked at first, and how much of it was seen to get into its volumes.
#[derive(Debug, Clone, Copy)]
struct Applying {
    to_sequence: u64,
    left: Left,
}

impl<'a> Judge<'a> {
    /// Of a group that is to come to `goal`.
    pub fn new(group: &'a str, goal: Goal) -> Self {
        Self { group, goal, stuck_since: None, silent_since: None, applying: None }
    }

    /// Looks at what the status shows of the group now; where that is nothing, `silence` says why.
    pub fn look(&mut self, now: Duration, status: Option<&GroupStatus>, silence: Option<&str>) -> Verdict {
        let Some(status) = status else { return self.silent(now, silence) };
        self.silent_since = None;
        if self.is_reached(status) {
            return Verdict::Reached;
        }
        let obstacle = self.obstacle(status);
        if !needs_somebody(status) {
            self.stuck_since = None;
        } else if now.saturating_sub(*self.stuck_since.get_or_insert(now)) >= SETTLED {
            return Verdict::Never(obstacle);
        }
        Verdict::Wait(self.work(status), obstacle)
    }

    fn silent(&mut self, now: Duration, silence: Option<&str>) -> Verdict {
        let why = silence.unwrap_or("no daemon reports the group");
        let obstacle = Note::unnoticed(why, "start both daemons, then wait again");
        if now.saturating_sub(*self.silent_since.get_or_insert(now)) >= SILENT {
            return Verdict::Never(obstacle);
        }
        let name = format!("waiting for the daemons that serve {}", self.group);
        Verdict::Wait(Work::named(name), obstacle)
    }

    fn is_reached(&mut self, status: &GroupStatus) -> bool {
        match (self.goal, status.role) {
            (Goal::Protected, Role::Primary | Role::Standby) => status.protection.is_healthy(),
            // A promotion has applied everything before it makes a primary.
            (Goal::Applied, Role::Primary) => true,
            (Goal::Applied, Role::Standby) => {
                let Some(received) = status.received_sequence else { return false };
                let journal = status.journal.as_ref();
                let left_bytes = journal.and_then(|journal| journal.unapplied_bytes).unwrap_or(0);
                let new = Applying { to_sequence: received, left: Left::default() };
                let applying = self.applying.get_or_insert(new);
                applying.left.note(left_bytes);
                journal.and_then(|journal| journal.applied_sequence) >= Some(applying.to_sequence)
            }
            _ => false,
        }
    }

    /// What the status says of it, which is what an operator sees there too.
    fn obstacle(&self, status: &GroupStatus) -> Note {
        match notes(status).into_iter().next() {
            Some(note) if self.goal == Goal::Protected || status.received_sequence.is_none() => note,
            _ => {
                let action = format!("see whether its disks keep up: afterimage status {}", self.group);
                Note::unnoticed("what the standby has received is not in its volumes yet", action)
            }
        }
    }

    fn work(&self, status: &GroupStatus) -> Work {
        let group = self.group;
        if let (Goal::Applied, Some(applying)) = (self.goal, self.applying) {
            return Work {
                rate_bytes_per_s: status.journal.as_ref().and_then(|j| j.apply_rate_bytes_per_s),
                ..applying.left.of(format!("applying of {group}"))
            };
        }
        let what = match status.protection {
            Protection::FirstSync => "first sync",
            Protection::CatchingUp => "catch-up",
            _ if status.catchup.is_some_and(|catchup| catchup.first) => "first sync",
            _ if status.catchup.is_some() => "catch-up",
            _ => {
                let note = notes(status).into_iter().next().map(|note| note.text);
                return Work { note, ..Work::named(format!("waiting for {group}")) };
            }
        };
        let catchup = status.catchup;
        let held_back = status.background.and_then(|background| background.held_back_by);
        let note = match held_back {
            Some(HeldBackBy::Clients) => Some("held back for clients".to_owned()),
            Some(HeldBackBy::MaxRate) => Some("held back by max_rate".to_owned()),
            _ if catchup.is_none() && status.role == Role::Standby => {
                Some(format!("{} knows how much it is", status.peer.name))
            }
            _ => None,
        };
        Work {
            name: format!("{what} of {group}"),
            id: status.since_us.unwrap_or(0),
            done_bytes: catchup.map(|catchup| catchup.done_bytes),
            total_bytes: catchup.map(|catchup| catchup.total_bytes),
            rate_bytes_per_s: catchup.and_then(|catchup| catchup.rate_bytes_per_s),
            note,
        }
    }
}

/// Whether it stays like this until somebody acts.
fn needs_somebody(status: &GroupStatus) -> bool {
    match status.protection {
        Protection::Fenced | Protection::WrongVolume | Protection::Failed | Protection::Refused => true,
        _ => status.warnings.iter().any(|warning| warning.id == "stream_paused"),
    }
}

/// What is so at the end, after the group's name.
pub(super) fn reached(goal: Goal, status: Option<&GroupStatus>) -> &'static str {
    match (goal, status.map(|status| (status.role, status.protection))) {
        (Goal::Protected, Some((Role::Standby, _))) => "streams to this host",
        (Goal::Protected, Some((_, Protection::InSync))) => "is in sync",
        (Goal::Protected, _) => "streams to its standby",
        (Goal::Applied, Some((Role::Primary, _))) => {
            "is served here, and has all of its journal in its volumes"
        }
        (Goal::Applied, _) => "has all that it had received in its volumes",
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
