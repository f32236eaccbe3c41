//! The last record that wrote each byte, within the window in which a late block frame may still come (rule 10).

use std::collections::BTreeMap;

use crate::ids::{ByteRange, Sequence, VolumeIndex};

/// Disjoint byte ranges, each with the sequence that last wrote it.
#[derive(Clone, Debug, Default)]
pub struct Intervals {
    map: BTreeMap<(VolumeIndex, u64), (u64, Sequence)>,
}

impl Intervals {
    /// Notes that `sequence` wrote `range`; sequences come in rising order.
    pub fn insert(&mut self, range: ByteRange, sequence: Sequence) {
        let (volume, start, end) = (range.volume, range.offset, range.end());
        for (s, e, q) in self.overlapping(range) {
            self.map.remove(&(volume, s));
            if s < start {
                self.map.insert((volume, s), (start, q));
            }
            if e > end {
                self.map.insert((volume, end), (e, q));
            }
        }
        self.map.insert((volume, start), (end, sequence));
    }

    /// The parts of `range` that no record after `read_at` wrote, in order.
    pub fn remaining(&self, range: ByteRange, read_at: Sequence) -> Vec<ByteRange> {
        let mut parts = Vec::new();
        let mut at = range.offset;
        for (s, e, q) in self.overlapping(range) {
            if q <= read_at {
                continue;
            }
            if s > at {
                parts.push(ByteRange::new(range.volume, at, s - at));
            }
            at = at.max(e);
        }
        if at < range.end() {
            parts.push(ByteRange::new(range.volume, at, range.end() - at));
        }
        parts
    }

    /// Forgets what `floor` and older sequences wrote.
    pub fn prune(&mut self, floor: Sequence) {
        self.map.retain(|_, (_, q)| *q > floor);
    }

    /// Count of ranges held.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    fn overlapping(&self, range: ByteRange) -> Vec<(u64, u64, Sequence)> {
        let (volume, start, end) = (range.volume, range.offset, range.end());
        let before =
            self.map.range((volume, 0)..(volume, start)).next_back().filter(|(_, (e, _))| *e > start);
        before
            .into_iter()
            .chain(self.map.range((volume, start)..(volume, end)))
            .map(|((_, s), (e, q))| (*s, *e, *q))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, length: u64) -> ByteRange {
        ByteRange::new(VolumeIndex(0), offset, length)
    }

    #[test]
    fn only_newer_records_are_cut_out() {
        let mut i = Intervals::default();
        i.insert(range(10, 10), Sequence(5));
        i.insert(range(15, 2), Sequence(7));
        assert_eq!(i.remaining(range(0, 30), Sequence(4)), [range(0, 10), range(20, 10)]);
        assert_eq!(i.remaining(range(0, 30), Sequence(5)), [range(0, 15), range(17, 13)]);
        assert_eq!(i.remaining(range(12, 3), Sequence(4)), []);
        i.prune(Sequence(5));
        assert_eq!(i.remaining(range(0, 30), Sequence(4)), [range(0, 15), range(17, 13)]);
    }
}
