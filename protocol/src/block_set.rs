//! A sparse set of blocks over the volumes of a group: what an epoch must read again, what it may not clear.
//!
//! Costs memory by the runs and the places that hold a member, not by the size of the volumes or the length of a run: whole
//! chunks are kept as runs, what is left of them as bits.

use std::collections::BTreeMap;

use crate::ids::{BlockRange, VolumeIndex};

const CHUNK_BLOCKS: u64 = 512;
const WORDS: usize = 8;
type Chunk = [u64; WORDS];
type Place = (VolumeIndex, u64);

/// A set of blocks.
#[derive(Clone, Debug, Default)]
pub struct BlockSet {
    /// Runs of chunks all of whose blocks are members: first chunk to the one after the last. They do not touch.
    whole: BTreeMap<Place, u64>,
    /// The other chunks that have a member.
    chunks: BTreeMap<Place, Box<Chunk>>,
}

impl BlockSet {
    /// Whether no block is in the set.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.whole.is_empty()
    }

    /// Removes every block.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Memory held, in bytes, within a factor of two.
    pub fn memory_bytes(&self) -> u64 {
        self.chunks.len() as u64 * (CHUNK_BLOCKS / 8 + 48) + self.whole.len() as u64 * 48
    }

    /// Count of blocks.
    pub fn len(&self) -> u64 {
        let whole: u64 = self.whole.iter().map(|((_, first), end)| (end - first) * CHUNK_BLOCKS).sum();
        let parts = self.chunks.values().flat_map(|chunk| chunk.iter());
        whole + parts.map(|word| u64::from(word.count_ones())).sum::<u64>()
    }

    /// Whether `block` of `volume` is in the set.
    pub fn contains(&self, volume: VolumeIndex, block: u64) -> bool {
        let chunk = block / CHUNK_BLOCKS;
        let part = self.chunks.get(&(volume, chunk));
        part.map_or_else(|| self.whole_at(volume, chunk).is_some(), |part| bit(part, block % CHUNK_BLOCKS))
    }

    /// Whether every block of `range` is in the set.
    pub fn contains_all(&self, range: BlockRange) -> bool {
        let found = self.next_run(range.volume, range.first, range.end(), u64::MAX);
        range.count == 0 || found == Some(range)
    }

    /// Whether any block of `range` is in the set.
    pub fn intersects(&self, range: BlockRange) -> bool {
        self.next_run(range.volume, range.first, range.end(), 1).is_some()
    }

    /// Adds the blocks of `range`.
    pub fn insert(&mut self, range: BlockRange) {
        let volume = range.volume;
        for (chunk, end, mask) in pieces(range) {
            let Some(mask) = mask else {
                self.drop_parts(volume, chunk, end);
                self.add_whole(volume, chunk, end);
                continue;
            };
            if self.whole_at(volume, chunk).is_some() {
                continue;
            }
            let part = self.chunks.entry((volume, chunk)).or_default();
            part.iter_mut().zip(mask).for_each(|(word, mask)| *word |= mask);
            if part.iter().all(|word| *word == u64::MAX) {
                self.chunks.remove(&(volume, chunk));
                self.add_whole(volume, chunk, chunk + 1);
            }
        }
    }

    /// Removes the blocks of `range`.
    pub fn remove(&mut self, range: BlockRange) {
        if self.is_empty() {
            return;
        }
        let volume = range.volume;
        for (chunk, end, mask) in pieces(range) {
            let Some(mask) = mask else {
                self.drop_parts(volume, chunk, end);
                self.drop_whole(volume, chunk, end);
                continue;
            };
            if self.whole_at(volume, chunk).is_some() {
                self.drop_whole(volume, chunk, chunk + 1);
                self.chunks.insert((volume, chunk), Box::new([u64::MAX; WORDS]));
            }
            let Some(part) = self.chunks.get_mut(&(volume, chunk)) else { continue };
            part.iter_mut().zip(mask).for_each(|(word, mask)| *word &= !mask);
            if part.iter().all(|word| *word == 0) {
                self.chunks.remove(&(volume, chunk));
            }
        }
    }

    /// Adds every block of `other`.
    pub fn union(&mut self, other: &BlockSet) {
        for (&(volume, chunk), end) in &other.whole {
            self.drop_parts(volume, chunk, *end);
            self.add_whole(volume, chunk, *end);
        }
        for (&(volume, chunk), theirs) in &other.chunks {
            if self.whole_at(volume, chunk).is_some() {
                continue;
            }
            let ours = self.chunks.entry((volume, chunk)).or_default();
            ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| *ours |= theirs);
            if ours.iter().all(|word| *word == u64::MAX) {
                self.chunks.remove(&(volume, chunk));
                self.add_whole(volume, chunk, chunk + 1);
            }
        }
    }

    /// The first run of at most `max` blocks in the whole set.
    pub fn first_run(&self, max: u64) -> Option<BlockRange> {
        let whole = self.whole.keys().next();
        let part = self.chunks.keys().next();
        let (volume, chunk) = whole.into_iter().chain(part).min()?;
        self.next_run(*volume, chunk * CHUNK_BLOCKS, u64::MAX, max)
    }

    /// All runs, in order.
    pub fn runs(&self) -> Vec<BlockRange> {
        let mut runs = Vec::new();
        let mut next = self.first_run(u64::MAX);
        while let Some(run) = next {
            runs.push(run);
            next = self.next_run(run.volume, run.end(), u64::MAX, u64::MAX).or_else(|| {
                let after = (VolumeIndex(run.volume.0.checked_add(1)?), 0);
                let whole = self.whole.range(after..).next().map(|(place, _)| *place);
                let part = self.chunks.range(after..).next().map(|(place, _)| *place);
                let (volume, chunk) = whole.into_iter().chain(part).min()?;
                self.next_run(volume, chunk * CHUNK_BLOCKS, u64::MAX, u64::MAX)
            });
        }
        runs
    }

    /// The first run of at most `max` blocks of `volume` in `from..end`.
    pub fn next_run(&self, volume: VolumeIndex, from: u64, end: u64, max: u64) -> Option<BlockRange> {
        let first = self.next_member(volume, from).filter(|first| *first < end)?;
        let last = end.min(first.saturating_add(max.max(1)));
        let mut at = first;
        while at < last {
            let chunk = at / CHUNK_BLOCKS;
            if let Some(whole_end) = self.whole_at(volume, chunk) {
                at = whole_end * CHUNK_BLOCKS;
                continue;
            }
            let Some(part) = self.chunks.get(&(volume, chunk)) else { break };
            let within = at % CHUNK_BLOCKS;
            let ones = u64::from((part[(within / 64) as usize] >> (within % 64)).trailing_ones());
            at += ones;
            if ones < 64 - within % 64 {
                break;
            }
        }
        Some(BlockRange { volume, first, count: at.min(last) - first })
    }

    /// The first member of `volume` at or after `from`.
    fn next_member(&self, volume: VolumeIndex, from: u64) -> Option<u64> {
        let chunk = from / CHUNK_BLOCKS;
        if self.whole_at(volume, chunk).is_some() {
            return Some(from);
        }
        let last = (volume, u64::MAX);
        let whole =
            self.whole.range((volume, chunk)..=last).next().map(|((_, first), _)| first * CHUNK_BLOCKS);
        let part = self.chunks.range((volume, chunk)..=last).find_map(|((_, chunk), part)| {
            let base = chunk * CHUNK_BLOCKS;
            Some(base + next_bit(part, from.saturating_sub(base))?)
        });
        whole.into_iter().chain(part).min()
    }

    /// The end of the run of whole chunks that `chunk` is in.
    fn whole_at(&self, volume: VolumeIndex, chunk: u64) -> Option<u64> {
        let (_, end) = self.whole.range((volume, 0)..=(volume, chunk)).next_back()?;
        (*end > chunk).then_some(*end)
    }

    fn add_whole(&mut self, volume: VolumeIndex, first: u64, end: u64) {
        let (mut first, mut end) = (first, end);
        while let Some((&place, &until)) = self.whole.range((volume, 0)..=(volume, end)).next_back() {
            if until < first {
                break;
            }
            (first, end) = (first.min(place.1), end.max(until));
            self.whole.remove(&place);
        }
        self.whole.insert((volume, first), end);
    }

    fn drop_whole(&mut self, volume: VolumeIndex, first: u64, end: u64) {
        let before = |end: u64| (volume, 0)..(volume, end);
        while let Some((&place, &until)) = self.whole.range(before(end)).next_back() {
            if until <= first {
                break;
            }
            self.whole.remove(&place);
            if until > end {
                self.whole.insert((volume, end), until);
            }
            if place.1 < first {
                self.whole.insert(place, first);
                break;
            }
        }
    }

    fn drop_parts(&mut self, volume: VolumeIndex, first: u64, end: u64) {
        while let Some((&place, _)) = self.chunks.range((volume, first)..(volume, end)).next() {
            self.chunks.remove(&place);
        }
    }
}

/// `range` by chunks: first chunk and end of a run of whole ones, or one chunk and the bits of it.
fn pieces(range: BlockRange) -> impl Iterator<Item = (u64, u64, Option<Chunk>)> {
    let (mut at, end) = (range.first, range.end());
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let chunk = at / CHUNK_BLOCKS;
        let (first, whole_end) = (at % CHUNK_BLOCKS, end / CHUNK_BLOCKS);
        if first == 0 && whole_end > chunk {
            at = whole_end * CHUNK_BLOCKS;
            return Some((chunk, whole_end, None));
        }
        let last = end.min((chunk + 1) * CHUNK_BLOCKS) - chunk * CHUNK_BLOCKS;
        at = chunk * CHUNK_BLOCKS + last;
        Some((chunk, chunk + 1, Some(mask(first, last))))
    })
}

/// Bits `first..end` of a chunk.
fn mask(first: u64, end: u64) -> Chunk {
    std::array::from_fn(|word| {
        let base = word as u64 * 64;
        let (low, high) = (first.clamp(base, base + 64) - base, end.clamp(base, base + 64) - base);
        if low >= high { 0 } else { (u64::MAX << low) & (u64::MAX >> (64 - high)) }
    })
}

fn bit(chunk: &Chunk, at: u64) -> bool {
    chunk[(at / 64) as usize] >> (at % 64) & 1 == 1
}

/// The first bit at or after `from` that is set.
fn next_bit(chunk: &Chunk, from: u64) -> Option<u64> {
    let first = (from / 64) as usize;
    let words = chunk.iter().enumerate().skip(first);
    let mut words =
        words.map(|(n, word)| (n, if n == first { word & (u64::MAX << (from % 64)) } else { *word }));
    words.find(|(_, word)| *word != 0).map(|(n, word)| n as u64 * 64 + u64::from(word.trailing_zeros()))
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

    #[test]
    fn it_agrees_with_a_plain_set() {
        use std::collections::BTreeSet;
        let mut seed = 88_172_645_463_325_252_u64;
        let mut below = |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        let mut set = BlockSet::default();
        let (mut other, mut theirs) = (BlockSet::default(), BTreeSet::new());
        let mut model: BTreeSet<(u32, u64)> = BTreeSet::new();
        for round in 0..600 {
            let (volume, first) = (below(2) as u32, below(4000));
            let count = if below(2) == 0 { below(2000) } else { below(9) };
            let blocks = (first..first + count).map(|block| (volume, block));
            match below(5) {
                0 | 1 => {
                    set.insert(range(volume, first, count));
                    model.extend(blocks);
                }
                2 => {
                    other.insert(range(volume, first, count));
                    theirs.extend(blocks);
                }
                3 if round % 50 == 0 => {
                    set.union(&other);
                    model.append(&mut theirs);
                    other.clear();
                }
                _ => {
                    set.remove(range(volume, first, count));
                    blocks.for_each(|block| {
                        model.remove(&block);
                    });
                }
            }
            assert_eq!(set.len(), model.len() as u64);
            assert_eq!(set.is_empty(), model.is_empty());
            let at = (below(2) as u32, below(6000));
            assert_eq!(set.contains(VolumeIndex(at.0), at.1), model.contains(&at));
            let (end, max) = (at.1 + below(1000), 1 + below(900));
            let member = model.range(at..(at.0, end)).next();
            let run = member.map(|(volume, first)| {
                let run = (*first..end).take_while(|b| model.contains(&(*volume, *b))).take(max as usize);
                range(*volume, *first, run.count() as u64)
            });
            assert_eq!(set.next_run(VolumeIndex(at.0), at.1, end, max), run);
            let some = range(at.0, at.1, end - at.1);
            assert_eq!(set.intersects(some), some.iter().any(|b| model.contains(&(at.0, b))));
            assert_eq!(set.contains_all(some), some.iter().all(|b| model.contains(&(at.0, b))));
            let runs = set.runs();
            assert!(runs.windows(2).all(|w| (w[0].volume, w[0].end()) < (w[1].volume, w[1].first)));
            let members = runs.iter().flat_map(|r| r.iter().map(|block| (r.volume.0, block)));
            assert!(members.eq(model.iter().copied()));
            assert_eq!(set.first_run(u64::MAX), runs.first().copied());
        }
    }

    #[test]
    fn a_long_run_takes_as_much_memory_as_a_short_one() {
        let mut s = BlockSet::default();
        s.insert(range(0, 100, 1 << 34));
        assert!(s.memory_bytes() < 400, "{}", s.memory_bytes());
        assert_eq!(s.len(), 1 << 34);
        s.remove(range(0, 1 << 20, 1));
        assert_eq!(s.first_run(u64::MAX), Some(range(0, 100, (1 << 20) - 100)));
        for first in (0..1 << 34).step_by(1 << 24) {
            s.remove(range(0, first, 1 << 24));
        }
        assert_eq!(s.runs(), [range(0, 1 << 34, 100)]);
    }
}
