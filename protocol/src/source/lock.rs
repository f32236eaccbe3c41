//! The range lock: writes that overlap in flight wait for each other, and a catch-up read waits for writes.
//!
//! Held ranges never overlap, so one ordered map of them is enough.

use std::collections::BTreeMap;

use crate::ids::{BlockRange, VolumeIndex};

#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    held: BTreeMap<(VolumeIndex, u64), u64>,
}

impl RangeLocks {
    /// The first held block at or after the start of `range` and inside it.
    pub fn first_conflict(&self, range: BlockRange) -> Option<u64> {
        self.first_held(range).map(|held| held.first)
    }

    /// The first stretch of `range` that is held as one.
    pub fn first_held(&self, range: BlockRange) -> Option<BlockRange> {
        let start = (range.volume, range.first);
        let before = self.held.range((range.volume, 0)..start).next_back();
        let before = before.filter(|(_, end)| **end > range.first);
        let held = before.or_else(|| self.held.range(start..(range.volume, range.end())).next());
        held.map(|((volume, first), end)| {
            let first = (*first).max(range.first);
            BlockRange { volume: *volume, first, count: (*end).min(range.end()) - first }
        })
    }

    /// Whether any block of `range` is held.
    pub fn conflicts(&self, range: BlockRange) -> bool {
        self.first_conflict(range).is_some()
    }

    /// Holds `range`, which must be free.
    pub fn hold(&mut self, range: BlockRange) {
        debug_assert!(!self.conflicts(range));
        self.held.insert((range.volume, range.first), range.end());
    }

    /// Lets go of `range`, which must be held as a whole.
    pub fn release(&mut self, range: BlockRange) {
        let end = self.held.remove(&(range.volume, range.first));
        debug_assert_eq!(end, Some(range.end()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> BlockRange {
        BlockRange { volume: VolumeIndex(0), first, count }
    }

    #[test]
    fn conflicts_from_either_side() {
        let mut l = RangeLocks::default();
        l.hold(range(10, 5));
        assert_eq!(l.first_conflict(range(0, 11)), Some(10));
        assert_eq!(l.first_conflict(range(14, 1)), Some(14));
        assert!(!l.conflicts(range(15, 5)));
        assert!(!l.conflicts(range(0, 10)));
        l.release(range(10, 5));
        assert!(!l.conflicts(range(0, 100)));
    }
}
