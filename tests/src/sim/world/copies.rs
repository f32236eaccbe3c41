//! Old copies of the standby's disk that come back.

use super::World;

/// Which old copies of the standby's disk may come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// Any.
    Any,
    /// Those that at least two sessions followed.
    OtherSessions,
    /// None.
    None,
}

impl World {
    /// The standby's host goes back to an old copy of its disk; or the copy is made.
    pub(super) fn old_copy(&mut self) {
        if self.faults.old_copy.is_none() {
            self.take_copy();
        } else if self.rng.coin() {
            self.restore_copy();
        }
    }

    pub(super) fn take_copy(&mut self) {
        // What a copy brings back of flipped bits would be of no known time.
        if !self.flips.is_empty() {
            return;
        }
        let session = self.session_count;
        self.faults.old_copy = Some((self.standby.disk.snapshot(), session));
    }

    pub(super) fn restore_copy(&mut self) {
        let copies = self.faults.copies;
        let Some((copy, session)) = &self.faults.old_copy else { return };
        let old = self.session_count >= session + 2;
        if copies == Copies::None || (copies == Copies::OtherSessions && !old) {
            return;
        }
        self.standby.disk.restore(copy, "*");
        self.kill_standby();
        self.faults.old_copy = None;
        self.say(|| "  the standby goes back to an old copy".into());
        self.excuse_standby();
    }
}
