//! Rests between catch-ups for which the journal has no room.
//!
//! A catch-up counts as a whole, so all of it has to be in the journal at once. One that does not fit is dropped, and what was
//! sent of it was sent in vain. The first makes history give way, and the next may fit. If that does not either, only a larger
//! journal helps, or fewer changed blocks that compress better, and the line is left alone for longer and longer. A restart,
//! which a larger journal takes, ends a rest.

use super::*;

/// The shortest rest and the longest, in microseconds.
const SHORTEST_US: u64 = 1_000_000;
const LONGEST_US: u64 = 15 * 60 * 1_000_000;

/// Catch-ups in a row that found no room.
#[derive(Debug, Default)]
pub(super) struct Rest {
    in_a_row: u32,
    /// When the one under way was begun.
    began: Time,
    until: Time,
}

impl Rest {
    /// A catch-up begins.
    pub fn catch_up_begins(&mut self, now: Time) {
        self.began = now;
    }

    /// It found no room.
    pub fn no_room(&mut self, now: Time) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let Some(doublings) = self.in_a_row.checked_sub(2) else { return };
        let took_us = now.since_us(self.began).max(SHORTEST_US);
        self.until = now.plus_us(took_us.saturating_mul(1 << doublings.min(16)).min(LONGEST_US));
    }

    /// One is whole.
    pub fn committed(&mut self) {
        *self = Self::default();
    }

    fn holds(&self, now: Time) -> bool {
        now < self.until
    }
}

impl Target {
    /// Whether no session is begun for a while, since catch-ups do not fit into the journal.
    pub fn rests_for_room(&self, now: Time) -> bool {
        self.rest.holds(now)
    }

    /// Why no session is begun now, if so. The words stay the same for as long as it rests.
    pub(super) fn lacks_room(&self) -> Option<String> {
        let (group, count) = (&self.config.group, self.rest.in_a_row);
        let mib = self.config.journal_bytes >> 20;
        self.rests_for_room(self.now).then(|| {
            format!(
                "group {group}: the journal is full: {count} catch-ups in a row did not fit into its {mib} MiB; raise \
                 journal.max_size and restart the receiver, or wait: it is tried again, ever more rarely"
            )
        })
    }
}
