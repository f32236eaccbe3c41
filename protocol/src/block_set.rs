//! A sparse set of blocks over the volumes of a group: what an epoch must read again, what it may not clear.
//!
//! Costs memory by the chunks that hold a member, not by the size of the volumes.

use std::collections::BTreeMap;

use crate::ids::{BlockRange, VolumeIndex};

const CHUNK_BLOCKS: u64 = 512;
type Chunk = [u64; 8];

/// A set of blocks.
#[derive(Clone, Debug, Default)]
pub struct BlockSet {
    chunks: BTreeMap<(VolumeIndex, u64), Box<Chunk>>,
}

impl BlockSet {
    /// Whether no block is in the set.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Removes every block.
    pub fn clear(&mut self) {
        self.chunks.clear();
    }

    /// Memory held, in bytes, within a factor of two.
    pub fn memory_bytes(&self) -> u64 {
        self.chunks.len() as u64 * (CHUNK_BLOCKS / 8 + 48)
    }

    /// Count of blocks.
    pub fn len(&self) -> u64 {
        self.chunks.values().flat_map(|c| c.iter()).map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether `block` of `volume` is in the set.
    pub fn contains(&self, volume: VolumeIndex, block: u64) -> bool {
        self.chunks
            .get(&(volume, block / CHUNK_BLOCKS))
            .is_some_and(|c| c[(block % CHUNK_BLOCKS / 64) as usize] & (1 << (block % 64)) != 0)
    }

    /// Whether every block of `range` is in the set.
    pub fn contains_all(&self, range: BlockRange) -> bool {
        range.iter().all(|b| self.contains(range.volume, b))
    }

    /// Whether any block of `range` is in the set.
    pub fn intersects(&self, range: BlockRange) -> bool {
        self.next_run(range.volume, range.first, range.end(), 1).is_some()
    }

    /// Adds the blocks of `range`.
    pub fn insert(&mut self, range: BlockRange) {
        for b in range.iter() {
            let chunk =
                self.chunks.entry((range.volume, b / CHUNK_BLOCKS)).or_insert_with(|| Box::new([0; 8]));
            chunk[(b % CHUNK_BLOCKS / 64) as usize] |= 1 << (b % 64);
        }
    }

    /// Removes the blocks of `range`.
    pub fn remove(&mut self, range: BlockRange) {
        let keys: Vec<_> = self
            .chunks
            .range((range.volume, range.first / CHUNK_BLOCKS)..=(range.volume, range.end() / CHUNK_BLOCKS))
            .map(|(k, _)| *k)
            .collect();
        for key in keys {
            let Some(chunk) = self.chunks.get_mut(&key) else { continue };
            let first = range.first.max(key.1 * CHUNK_BLOCKS);
            let end = range.end().min((key.1 + 1) * CHUNK_BLOCKS);
            for b in first..end {
                chunk[(b % CHUNK_BLOCKS / 64) as usize] &= !(1 << (b % 64));
            }
            if chunk.iter().all(|w| *w == 0) {
                self.chunks.remove(&key);
            }
        }
    }

    /// Adds every block of `other`.
    pub fn union(&mut self, other: &BlockSet) {
        for (key, theirs) in &other.chunks {
            let ours = self.chunks.entry(*key).or_insert_with(|| Box::new([0; 8]));
            for (o, t) in ours.iter_mut().zip(theirs.iter()) {
                *o |= t;
            }
        }
    }

    /// The first run of at most `max` blocks in the whole set.
    pub fn first_run(&self, max: u64) -> Option<BlockRange> {
        let ((volume, chunk), _) = self.chunks.first_key_value()?;
        self.next_run(*volume, chunk * CHUNK_BLOCKS, u64::MAX, max)
    }

    /// All runs, in order.
    pub fn runs(&self) -> Vec<BlockRange> {
        let mut runs: Vec<BlockRange> = Vec::new();
        for (&(volume, chunk), words) in &self.chunks {
            for bit in 0..CHUNK_BLOCKS {
                if words[(bit / 64) as usize] & (1 << (bit % 64)) == 0 {
                    continue;
                }
                let block = chunk * CHUNK_BLOCKS + bit;
                match runs.last_mut() {
                    Some(last) if last.volume == volume && last.end() == block => last.count += 1,
                    _ => runs.push(BlockRange { volume, first: block, count: 1 }),
                }
            }
        }
        runs
    }

    /// The first run of at most `max` blocks of `volume` in `from..end`.
    fn next_run(&self, volume: VolumeIndex, from: u64, end: u64, max: u64) -> Option<BlockRange> {
        for (&(_, chunk), words) in
            self.chunks.range((volume, from / CHUNK_BLOCKS)..=(volume, end / CHUNK_BLOCKS))
        {
            let base = chunk * CHUNK_BLOCKS;
            let first = (from.max(base)..(base + CHUNK_BLOCKS).min(end))
                .find(|b| words[(b % CHUNK_BLOCKS / 64) as usize] & (1 << (b % 64)) != 0);
            if let Some(first) = first {
                let mut count = 1;
                while count < max && first + count < end && self.contains(volume, first + count) {
                    count += 1;
                }
                return Some(BlockRange { volume, first, count });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(volume: u32, first: u64, count: u64) -> BlockRange {
        BlockRange { volume: VolumeIndex(volume), first, count }
    }

    #[test]
    fn runs_cross_chunks_and_not_volumes() {
        let mut s = BlockSet::default();
        s.insert(range(0, 510, 4));
        s.insert(range(1, 0, 1));
        assert_eq!(s.runs(), [range(0, 510, 4), range(1, 0, 1)]);
        assert_eq!(s.first_run(3), Some(range(0, 510, 3)));
        s.remove(range(0, 0, 512));
        assert_eq!(s.runs(), [range(0, 512, 2), range(1, 0, 1)]);
        assert_eq!(s.len(), 3);
        s.remove(range(0, 0, u64::MAX / 4));
        s.remove(range(1, 0, 1));
        assert!(s.is_empty());
    }

    #[test]
    fn intersects_only_inside_the_range() {
        let mut s = BlockSet::default();
        s.insert(range(0, 100, 1));
        assert!(s.intersects(range(0, 90, 11)));
        assert!(!s.intersects(range(0, 90, 10)));
        assert!(!s.intersects(range(0, 101, 5000)));
        assert!(!s.intersects(range(1, 100, 1)));
    }
}
