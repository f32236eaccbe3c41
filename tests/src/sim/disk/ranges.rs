//! A set of pages, kept as ranges: which parts of a file have disk space behind them.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, not adjacent ranges of page numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    ends: BTreeMap<u64, u64>,
    count: u64,
}

impl Ranges {
    /// Count of pages in the set.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// How many pages of `range` are not in the set.
    pub(super) fn missing(&self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.ends.range(..range.start).next_back();
        let inside = self.ends.range(range.clone());
        let held: u64 = before
            .into_iter()
            .chain(inside)
            .map(|(&start, &end)| end.min(range.end).saturating_sub(start.max(range.start)))
            .sum();
        range.end - range.start - held
    }

    /// Adds `range`.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        let missing = self.missing(range.clone());
        if missing == 0 {
            return;
        }
        self.count += missing;
        let (mut start, mut end) = (range.start, range.end);
        let touching: Vec<u64> = self
            .ends
            .range(..=range.end)
            .rev()
            .take_while(|&(_, &end)| end >= range.start)
            .map(|(&start, _)| start)
            .collect();
        for old in touching {
            let old_end = self.ends.remove(&old).unwrap_or(old);
            start = start.min(old);
            end = end.max(old_end);
        }
        self.ends.insert(start, end);
    }

    /// Takes `range` out.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.count -= range.end - range.start - self.missing(range.clone());
        let touching: Vec<(u64, u64)> = self
            .ends
            .range(..range.end)
            .rev()
            .take_while(|&(_, &end)| end > range.start)
            .map(|(&start, &end)| (start, end))
            .collect();
        for (start, end) in touching {
            self.ends.remove(&start);
            if start < range.start {
                self.ends.insert(start, range.start);
            }
            if end > range.end {
                self.ends.insert(range.end, end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sim::Rng;

    #[test]
    fn it_does_what_a_plain_set_does() {
        let mut rng = Rng::new(7);
        for _ in 0..200 {
            let (mut ranges, mut plain) = (Ranges::default(), BTreeSet::new());
            for _ in 0..40 {
                let start = rng.below(30);
                let range = start..start + rng.below(8);
                if rng.coin() {
                    ranges.insert(range.clone());
                    plain.extend(range);
                } else {
                    ranges.remove(range.clone());
                    plain.retain(|page| !range.contains(page));
                }
                assert_eq!(ranges.count(), plain.len() as u64);
                let asked = rng.below(30);
                let asked = asked..asked + rng.below(10);
                let missing = asked.clone().filter(|page| !plain.contains(page)).count();
                assert_eq!(ranges.missing(asked), missing as u64);
            }
        }
    }
}
