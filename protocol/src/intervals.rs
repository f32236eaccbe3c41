//! The last record that wrote each byte, or each block, of those that were written lately.

use std::collections::BTreeMap;

use crate::ids::{BlockRange, ByteRange, Sequence, VolumeIndex};

/// A stretch of a volume, in whatever unit the map that it is for counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    volume: VolumeIndex,
    start: u64,
    end: u64,
}

impl From<ByteRange> for Span {
    fn from(range: ByteRange) -> Self {
        Self { volume: range.volume, start: range.offset, end: range.end() }
    }
}

impl From<BlockRange> for Span {
    fn from(range: BlockRange) -> Self {
        Self { volume: range.volume, start: range.first, end: range.end() }
    }
}

/// Disjoint ranges of one unit, each with the sequence that last wrote it.
#[derive(Clone, Debug, Default)]
pub struct Intervals {
    map: BTreeMap<(VolumeIndex, u64), (u64, Sequence)>,
}

impl Intervals {
    /// Notes that `sequence` wrote `range`; sequences come in rising order.
    pub fn insert(&mut self, range: impl Into<Span>, sequence: Sequence) {
        let span = range.into();
        while let Some((start, end, before)) = self.next(span) {
            self.cut((start, end, before), span);
        }
        if span.start < span.end {
            self.map.insert((span.volume, span.start), (span.end, sequence));
        }
    }

    /// The parts of `range` that no record after `read_at` wrote, in order.
    pub fn remaining(&self, range: ByteRange, read_at: Sequence) -> Vec<ByteRange> {
        let mut parts = Vec::new();
        let mut at = range.offset;
        for (start, end, sequence) in self.within(range) {
            if sequence <= read_at {
                continue;
            }
            if start > at {
                parts.push(ByteRange::new(range.volume, at, start - at));
            }
            at = at.max(end);
        }
        if at < range.end() {
            parts.push(ByteRange::new(range.volume, at, range.end() - at));
        }
        parts
    }

    /// What of `range` is held, in order: first, end (either may lie outside of it), and the sequence that wrote it.
    pub fn within(&self, range: impl Into<Span>) -> impl Iterator<Item = (u64, u64, Sequence)> + '_ {
        let Span { volume, start, end } = range.into();
        let before = self.map.range((volume, 0)..(volume, start)).next_back();
        let before = before.filter(move |(_, (until, _))| *until > start && start < end);
        let inside = (start < end).then(|| self.map.range((volume, start)..(volume, end)));
        before.into_iter().chain(inside.into_iter().flatten()).map(|((_, s), (e, q))| (*s, *e, *q))
    }

    /// Forgets that `sequence` and older ones wrote in `range`; gives the parts of it that nothing newer has written, in
    /// order, as first and end.
    pub fn settle(&mut self, range: impl Into<Span>, sequence: Sequence, mut part: impl FnMut(u64, u64)) {
        let span = range.into();
        let mut left = span;
        let mut at = span.start;
        while let Some(found) = self.next(left) {
            let (start, end, by) = found;
            if by <= sequence {
                self.cut(found, span);
                continue;
            }
            if start > at {
                part(at, start);
            }
            at = end;
            left.start = end.min(span.end);
        }
        if at < span.end {
            part(at, span.end);
        }
    }

    /// Forgets what `floor` and older sequences wrote.
    pub fn prune(&mut self, floor: Sequence) {
        self.map.retain(|_, (_, q)| *q > floor);
    }

    /// All that is held, in order: volume, first, end and sequence.
    pub fn iter(&self) -> impl Iterator<Item = (VolumeIndex, u64, u64, Sequence)> + '_ {
        self.map.iter().map(|((volume, start), (end, sequence))| (*volume, *start, *end, *sequence))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.map.clear();
    }

    /// Count of ranges held.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The first range held that overlaps `span`.
    fn next(&self, span: Span) -> Option<(u64, u64, Sequence)> {
        let Span { volume, start, end } = span;
        if start >= end {
            return None;
        }
        let before = self.map.range((volume, 0)..=(volume, start)).next_back();
        let before = before.filter(|(_, (until, _))| *until > start);
        let found = before.or_else(|| self.map.range((volume, start)..(volume, end)).next());
        found.map(|((_, s), (e, q))| (*s, *e, *q))
    }

    /// Takes `span` out of a range that is held and overlaps it.
    fn cut(&mut self, (start, end, sequence): (u64, u64, Sequence), span: Span) {
        if start < span.start {
            self.map.insert((span.volume, start), (span.start, sequence));
        } else {
            self.map.remove(&(span.volume, start));
        }
        if end > span.end {
            self.map.insert((span.volume, span.end), (end, sequence));
        }
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

    #[test]
    fn what_newer_records_wrote_is_kept_and_the_rest_given() {
        let mut i = Intervals::default();
        i.insert(range(0, 100), Sequence(3));
        i.insert(range(40, 10), Sequence(5));
        i.insert(range(90, 20), Sequence(4));
        let mut parts = Vec::new();
        i.settle(range(20, 90), Sequence(4), |first, end| parts.push((first, end)));
        assert_eq!(parts, [(20, 40), (50, 110)]);
        let held: Vec<_> = i.iter().map(|(_, first, end, q)| (first, end, q.0)).collect();
        assert_eq!(held, [(0, 20, 3), (40, 50, 5)]);
        parts.clear();
        i.settle(range(45, 2), Sequence(4), |first, end| parts.push((first, end)));
        assert_eq!(parts, []);
        i.settle(range(45, 2), Sequence(9), |first, end| parts.push((first, end)));
        assert_eq!(parts, [(45, 47)]);
        assert_eq!(
            i.within(range(0, 100)).map(|(s, e, _)| (s, e)).collect::<Vec<_>>(),
            [(0, 20), (40, 45), (47, 50)]
        );
        i.settle(range(200, 5), Sequence(9), |first, end| parts.push((first, end)));
        assert_eq!(parts, [(45, 47), (200, 205)]);
    }
}
