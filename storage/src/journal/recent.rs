//! The last entries that were appended, in memory: what brings them to the base soon after need not read them back from the
//! disk, copy and verify them.
//!
//! Holds what was verified when it was taken in, up to a bound; never more than the journal itself holds.

use std::collections::VecDeque;

use afterimage_protocol::Lsn;
use afterimage_protocol::frame::Frame;

/// What an entry takes beside its frame's bytes, about.
const ENTRY_OVERHEAD_BYTES: u64 = 256;

/// An entry: its lsn, that of the next, and its frame.
pub(super) type RecentEntry = (Lsn, Lsn, Frame);

/// The last entries, side by side.
#[derive(Default)]
pub(super) struct Recent {
    entries: VecDeque<RecentEntry>,
    bytes: u64,
    limit: u64,
}

impl Recent {
    /// Holds at most about `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Takes an entry that begins where the last one ends; the oldest ones make room.
    pub fn push(&mut self, start: Lsn, end: Lsn, frame: &Frame) {
        debug_assert!(self.entries.back().is_none_or(|last| last.1 == start));
        if self.limit == 0 {
            return;
        }
        self.bytes += cost(frame);
        self.entries.push_back((start, end, frame.clone()));
        while self.bytes > self.limit {
            self.drop_first();
        }
    }

    /// Forgets what begins at or after `at`.
    pub fn cut(&mut self, at: Lsn) {
        while self.entries.back().is_some_and(|(start, ..)| *start >= at) {
            if let Some((.., frame)) = self.entries.pop_back() {
                self.bytes -= cost(&frame);
            }
        }
    }

    /// Forgets what ends at or before `before`.
    pub fn forget(&mut self, before: Lsn) {
        while self.entries.front().is_some_and(|(_, end, _)| *end <= before) {
            self.drop_first();
        }
    }

    /// The entries that begin at or after `from` and before `to`.
    pub fn between(&self, from: Lsn, to: Lsn) -> VecDeque<RecentEntry> {
        let first = self.entries.partition_point(|(start, ..)| *start < from);
        let last = self.entries.partition_point(|(start, ..)| *start < to);
        self.entries.range(first..last.max(first)).cloned().collect()
    }

    fn drop_first(&mut self) {
        if let Some((.., frame)) = self.entries.pop_front() {
            self.bytes -= cost(&frame);
        }
    }
}

fn cost(frame: &Frame) -> u64 {
    frame.encoded_len() as u64 + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use afterimage_protocol::Sequence;

    use super::*;

    fn mark(n: u64) -> Frame {
        Frame::Mark { sequence: Sequence(n), sync: false }
    }

    fn filled(limit: u64, count: u64) -> Recent {
        let mut recent = Recent::new(limit);
        (0..count).for_each(|n| recent.push(Lsn(n * 8), Lsn(n * 8 + 8), &mark(n)));
        recent
    }

    fn starts(recent: &Recent, from: u64, to: u64) -> Vec<u64> {
        recent.between(Lsn(from), Lsn(to)).iter().map(|(start, ..)| start.0).collect()
    }

    #[test]
    fn the_oldest_make_room_and_none_is_held_without_a_limit() {
        let recent = filled(3 * cost(&mark(0)), 5);
        assert_eq!(starts(&recent, 0, 99), [16, 24, 32]);
        assert!(filled(0, 5).entries.is_empty());
    }

    #[test]
    fn what_is_asked_for_begins_in_between() {
        let recent = filled(1 << 20, 5);
        assert_eq!(starts(&recent, 8, 24), [8, 16]);
        assert_eq!(starts(&recent, 9, 25), [16, 24]);
        assert_eq!(starts(&recent, 24, 8), [0; 0]);
    }

    #[test]
    fn what_is_cut_or_forgotten_is_gone_and_gives_room() {
        let mut recent = filled(1 << 20, 5);
        recent.cut(Lsn(24));
        recent.forget(Lsn(8));
        assert_eq!(starts(&recent, 0, 99), [8, 16]);
        recent.push(Lsn(24), Lsn(40), &mark(9));
        assert_eq!(starts(&recent, 0, 99), [8, 16, 24]);
        recent.forget(Lsn(40));
        assert_eq!(recent.bytes, 0);
    }
}
