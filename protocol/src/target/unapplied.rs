//! The blocks that the journal holds and the base may lack.
//!
//! Never too few of them, and not many too many: they are kept in generations, each of a stretch of the journal, and a
//! generation is forgotten once its stretch is in the base. When there are too many generations neighbours are joined, so that
//! what is kept costs about as much as one set of blocks, however long the history is.

use std::collections::VecDeque;

use crate::block_set::BlockSet;
use crate::ids::*;

/// A generation covers at least this much of the journal, in bytes: a batch of the applier.
const LEAST_STRETCH_BYTES: u64 = 64 << 20;
/// More generations are joined in pairs.
const MAX_GENERATIONS: usize = 16;
/// More memory than this is held by one generation only.
const MAX_MEMORY_BYTES: u64 = 64 << 20;

#[derive(Debug)]
struct Generation {
    start: Lsn,
    end: Lsn,
    blocks: BlockSet,
}

#[derive(Debug)]
pub(super) struct Unapplied {
    generations: VecDeque<Generation>,
    stretch_bytes: u64,
}

impl Default for Unapplied {
    fn default() -> Self {
        Self { generations: VecDeque::new(), stretch_bytes: LEAST_STRETCH_BYTES }
    }
}

impl Unapplied {
    /// Whether the journal may hold something of `block`.
    pub fn contains(&self, volume: VolumeIndex, block: u64) -> bool {
        self.generations.iter().any(|g| g.blocks.contains(volume, block))
    }

    /// An entry that ends at `end` writes `range`.
    pub fn insert(&mut self, range: BlockRange, end: Lsn) {
        self.newest(end).insert(range);
    }

    /// Entries that end at or before `end` write `blocks`.
    pub fn union(&mut self, blocks: &BlockSet, end: Lsn) {
        self.newest(end).union(blocks);
    }

    /// All up to `to` is in the base.
    pub fn applied(&mut self, to: Lsn) {
        while self.generations.front().is_some_and(|g| g.end <= to) {
            self.generations.pop_front();
        }
        if self.generations.is_empty() {
            self.stretch_bytes = LEAST_STRETCH_BYTES;
        }
    }

    /// The base is of a position of its own, and the journal holds nothing.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn newest(&mut self, end: Lsn) -> &mut BlockSet {
        let full =
            self.generations.back().is_none_or(|g| end.0 > g.start.0.saturating_add(self.stretch_bytes));
        if full {
            self.make_room();
            self.generations.push_back(Generation { start: end, end, blocks: BlockSet::default() });
        }
        // There is one now.
        let last = self.generations.len() - 1;
        let generation = &mut self.generations[last];
        generation.end = generation.end.max(end);
        &mut generation.blocks
    }

    fn make_room(&mut self) {
        let memory: u64 = self.generations.iter().map(|g| g.blocks.memory_bytes()).sum();
        let together = match self.generations.len() {
            n if memory > MAX_MEMORY_BYTES => n,
            MAX_GENERATIONS => 2,
            _ => return,
        };
        if together == 2 {
            self.stretch_bytes = self.stretch_bytes.saturating_mul(2);
        }
        let mut joined: VecDeque<Generation> = VecDeque::new();
        for (n, generation) in std::mem::take(&mut self.generations).into_iter().enumerate() {
            match joined.back_mut().filter(|_| n % together != 0) {
                Some(before) => {
                    before.end = before.end.max(generation.end);
                    before.blocks.union(&generation.blocks);
                }
                None => joined.push_back(generation),
            }
        }
        self.generations = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first: u64) -> BlockRange {
        BlockRange { volume: VolumeIndex(0), first, count: 1 }
    }

    #[test]
    fn a_block_stays_until_its_last_entry_is_in_the_base() {
        let mut unapplied = Unapplied::default();
        for n in 0..100 {
            unapplied.insert(block(n % 50), Lsn((n + 1) * LEAST_STRETCH_BYTES));
            assert!(unapplied.generations.len() <= MAX_GENERATIONS);
        }
        for n in 0..100 {
            let after = (0..50).filter(|b| (n..100).any(|later| later % 50 == *b));
            after.for_each(|b| assert!(unapplied.contains(VolumeIndex(0), b), "{b} after {n}"));
            unapplied.applied(Lsn((n + 1) * LEAST_STRETCH_BYTES));
        }
        assert!((0..50).all(|b| !unapplied.contains(VolumeIndex(0), b)));
    }

    #[test]
    fn what_was_applied_is_forgotten_while_more_comes() {
        let mut unapplied = Unapplied::default();
        for n in 0..10 {
            unapplied.insert(block(n), Lsn((n + 1) * 2 * LEAST_STRETCH_BYTES));
        }
        unapplied.applied(Lsn(10 * LEAST_STRETCH_BYTES));
        assert!((0..5).all(|b| !unapplied.contains(VolumeIndex(0), b)));
        assert!((5..10).all(|b| unapplied.contains(VolumeIndex(0), b)));
    }
}
