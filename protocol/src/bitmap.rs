//! The change bitmap: which blocks the target may lack, with a summary that makes the dirty ones cheap to find.
//!
//! Level 0 has one bit for each block. Each higher level has one bit for each 64-bit word of the level below, up to
//! a level of one word, so that the next dirty block of a 16 TiB volume is found by looking at a dozen words. All
//! levels lie in one slice of words, level 0 first, which the shell maps from a file (see docs/formats.md, "Bitmap").
//!
//! A process may be killed between any two instructions, and what it stored stays in the mapped file. So at every
//! instant a set bit has all the bits above it set: setting goes from the top down, clearing from the leaf up. A
//! summary bit without a leaf below it does no harm. After a loss of power pages of different ages come back, and
//! the summary has to be rebuilt ([`Bitmap::new`] without trust); only level 0 need ever be made durable.
//!
//! When bits may be set and cleared is not decided here.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ids::{BlockRange, VolumeIndex};

const WORD_BITS: u64 = 64;
/// log2 of [`WORD_BITS`].
const WORD_SHIFT: u32 = 6;

/// Words that a bitmap lives in.
pub trait Words: Send + Sync {
    /// The words; the same slice at every call.
    fn words(&self) -> &[AtomicU64];
}

impl Words for Box<[AtomicU64]> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

/// `count` zero words in memory, for tests and for a bitmap that need not survive.
pub fn mem_words(count: usize) -> Box<dyn Words> {
    Box::new((0..count).map(|_| AtomicU64::new(0)).collect::<Box<[AtomicU64]>>())
}

/// A set of blocks. One owner changes it; the words may be read (and synced to disk) by others meanwhile.
pub struct Bitmap {
    words: Box<dyn Words>,
    /// Where each level lies in the words; level 0 first, the last has one word.
    levels: Vec<Range<usize>>,
    blocks: u64,
    ones: u64,
}

impl Bitmap {
    /// Count of words that a bitmap of `blocks` blocks needs, all levels together.
    pub fn words_needed(blocks: u64) -> usize {
        levels(blocks).last().map_or(0, |top| top.end)
    }

    /// A bitmap over what `words` hold.
    ///
    /// With `trust_summary` the words were last changed by this code and every store since then is still there: only
    /// the dirty words are visited, to count them. Without it (after a loss of power) the levels above level 0 are
    /// made anew, which reads all of it.
    ///
    /// # Panics
    /// If there are fewer words than [`Bitmap::words_needed`] says.
    pub fn new(words: Box<dyn Words>, blocks: u64, trust_summary: bool) -> Self {
        let mut bitmap = Self { words, levels: levels(blocks), blocks, ones: 0 };
        let needed = Self::words_needed(blocks);
        let have = bitmap.words.words().len();
        assert!(have >= needed, "a bitmap of {blocks} blocks needs {needed} words, not {have}");
        bitmap.ones =
            if trust_summary { bitmap.recount(bitmap.levels.len() - 1, 0) } else { bitmap.rebuild_summary() };
        bitmap
    }

    /// Count of blocks that the bitmap covers.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Count of blocks that are set.
    pub fn dirty_blocks(&self) -> u64 {
        self.ones
    }

    /// Sets `count` blocks from `first` on; what lies past the end is left out. Returns how many were clear.
    pub fn set(&mut self, first: u64, count: u64) -> u64 {
        let Some((first, last)) = self.clamp(first, count) else { return 0 };
        // The usual case of a write to a block that is dirty already.
        if first / WORD_BITS == last / WORD_BITS {
            let mask = mask(first % WORD_BITS, last % WORD_BITS);
            if self.load(0, first / WORD_BITS) & mask == mask {
                return 0;
            }
        }
        for level in (1..self.levels.len()).rev() {
            let shift = WORD_SHIFT * level as u32;
            self.set_bits(level, first >> shift, last >> shift);
        }
        let newly = self.set_bits(0, first, last);
        self.ones += newly;
        newly
    }

    /// Clears `count` blocks from `first` on; what lies past the end is left out. Returns how many were set. Visits
    /// only words that are not zero.
    pub fn clear(&mut self, first: u64, count: u64) -> u64 {
        let Some((first, last)) = self.clamp(first, count) else { return 0 };
        let (first_word, last_word) = (first / WORD_BITS, last / WORD_BITS);
        let mut cleared = 0;
        let mut from = first_word;
        while let Some(word) = self.next_dirty_word(from).filter(|word| *word <= last_word) {
            let low = if word == first_word { first % WORD_BITS } else { 0 };
            let high = if word == last_word { last % WORD_BITS } else { WORD_BITS - 1 };
            cleared += self.clear_in_word(word, mask(low, high));
            from = word + 1;
        }
        self.ones -= cleared;
        cleared
    }

    /// Whether `block` is set; a block past the end is not.
    pub fn test(&self, block: u64) -> bool {
        block < self.blocks && self.load(0, block / WORD_BITS) >> (block % WORD_BITS) & 1 == 1
    }

    /// Whether any of `count` blocks from `first` on is set.
    pub fn any(&self, first: u64, count: u64) -> bool {
        self.next_set(first).is_some_and(|block| block - first < count)
    }

    /// The first set block at or after `from`, and how many blocks from there on are set without a gap, at most
    /// `max` (at least 1). Finding it costs a few words for each level, however far away it is.
    pub fn next_run(&self, from: u64, max: u64) -> Option<(u64, u64)> {
        let first = self.next_set(from)?;
        let max = max.max(1).min(self.blocks - first);
        let mut count = 0;
        while count < max {
            let at = first + count;
            let in_word = WORD_BITS - at % WORD_BITS;
            let ones = u64::from((self.load(0, at / WORD_BITS) >> (at % WORD_BITS)).trailing_ones());
            count += ones;
            if ones < in_word {
                break;
            }
        }
        Some((first, count.min(max)))
    }

    /// The words of level 0 that hold `count` blocks from `first` on, as indices into the slice of words: what has to
    /// be made durable so that these bits survive a loss of power.
    pub fn level0_words(&self, first: u64, count: u64) -> Range<usize> {
        let Some((first, last)) = self.clamp(first, count) else { return 0..0 };
        index(first / WORD_BITS)..index(last / WORD_BITS) + 1
    }

    /// The range as first and last block, cut at the end of the bitmap; `None` when nothing is left.
    fn clamp(&self, first: u64, count: u64) -> Option<(u64, u64)> {
        let end = first.saturating_add(count).min(self.blocks);
        (first < end).then(|| (first, end - 1))
    }

    fn next_set(&self, from: u64) -> Option<u64> {
        if from >= self.blocks {
            return None;
        }
        let word = from / WORD_BITS;
        let rest = self.load(0, word) & (u64::MAX << (from % WORD_BITS));
        if rest != 0 {
            return Some(word * WORD_BITS + lowest(rest));
        }
        let word = self.next_dirty_word(word + 1)?;
        Some(word * WORD_BITS + lowest(self.load(0, word)))
    }

    /// The first word of level 0 at or after `from` that is not zero: up until a summary word has something at or
    /// after the place, then down along its lowest bits. A summary bit with nothing below it is stepped over.
    fn next_dirty_word(&self, from: u64) -> Option<u64> {
        if from < self.words_in(0) && self.load(0, from) != 0 {
            return Some(from);
        }
        let (mut level, mut bit) = (1, from);
        while level < self.levels.len() {
            if bit >= self.words_in(level - 1) {
                return None;
            }
            let word = bit / WORD_BITS;
            let rest = self.load(level, word) & (u64::MAX << (bit % WORD_BITS));
            if rest == 0 {
                (level, bit) = (level + 1, word + 1);
                continue;
            }
            let child = word * WORD_BITS + lowest(rest);
            if level > 1 {
                (level, bit) = (level - 1, child * WORD_BITS);
            } else if child < self.words_in(0) && self.load(0, child) != 0 {
                return Some(child);
            } else {
                bit = child + 1;
            }
        }
        None
    }

    /// Sets bits `first..=last` of a level; returns how many were clear.
    fn set_bits(&self, level: usize, first: u64, last: u64) -> u64 {
        let (first_word, last_word) = (first / WORD_BITS, last / WORD_BITS);
        let mut newly = 0;
        for word in first_word..=last_word {
            let low = if word == first_word { first % WORD_BITS } else { 0 };
            let high = if word == last_word { last % WORD_BITS } else { WORD_BITS - 1 };
            let mask = mask(low, high);
            let old = self.load(level, word);
            if old & mask != mask {
                self.store(level, word, old | mask);
                newly += u64::from((mask & !old).count_ones());
            }
        }
        newly
    }

    /// Clears the bits of `mask` in a word of level 0, then upwards what became empty; returns how many were set.
    fn clear_in_word(&self, word: u64, mask: u64) -> u64 {
        let old = self.load(0, word);
        let mut rest = old & !mask;
        if rest != old {
            self.store(0, word, rest);
        }
        let mut bit = word;
        for level in 1..self.levels.len() {
            if rest != 0 {
                break;
            }
            rest = self.load(level, bit / WORD_BITS) & !(1 << (bit % WORD_BITS));
            self.store(level, bit / WORD_BITS, rest);
            bit /= WORD_BITS;
        }
        u64::from((old & mask).count_ones())
    }

    /// Counts the set blocks below a word by following the summary, and clears summary bits with nothing below.
    fn recount(&self, level: usize, word: u64) -> u64 {
        if level == 0 {
            return self.leaf_ones(word);
        }
        let (value, mut kept, mut ones) = (self.load(level, word), 0, 0);
        let mut rest = value;
        while rest != 0 {
            let bit = lowest(rest);
            rest &= rest - 1;
            let child = word * WORD_BITS + bit;
            let below = if child < self.words_in(level - 1) { self.recount(level - 1, child) } else { 0 };
            if below != 0 {
                kept |= 1 << bit;
                ones += below;
            }
        }
        if kept != value {
            self.store(level, word, kept);
        }
        ones
    }

    /// Makes every level above 0 anew; returns the count of set blocks.
    fn rebuild_summary(&self) -> u64 {
        let ones = (0..self.words_in(0)).map(|word| self.leaf_ones(word)).sum();
        for level in 1..self.levels.len() {
            for word in 0..self.words_in(level) {
                let first = word * WORD_BITS;
                let end = (first + WORD_BITS).min(self.words_in(level - 1));
                let value = (first..end)
                    .filter(|child| self.load(level - 1, *child) != 0)
                    .fold(0, |value, child| value | 1 << (child - first));
                if value != self.load(level, word) {
                    self.store(level, word, value);
                }
            }
        }
        ones
    }

    /// Count of set blocks in a word of level 0; bits past the last block, which only damage can set, are cleared.
    fn leaf_ones(&self, word: u64) -> u64 {
        let value = self.load(0, word);
        let valid = match self.blocks.saturating_sub(word * WORD_BITS) {
            0 => 0,
            bits => mask(0, bits.min(WORD_BITS) - 1),
        };
        if value & !valid != 0 {
            self.store(0, word, value & valid);
        }
        u64::from((value & valid).count_ones())
    }

    fn words_in(&self, level: usize) -> u64 {
        self.levels[level].len() as u64
    }

    fn load(&self, level: usize, word: u64) -> u64 {
        self.words.words()[self.levels[level].start + index(word)].load(Ordering::Relaxed)
    }

    /// Release: the stores reach the mapped file in the order of the program, which is all that a kill can observe.
    fn store(&self, level: usize, word: u64, value: u64) {
        self.words.words()[self.levels[level].start + index(word)].store(value, Ordering::Release);
    }
}

/// Where each level lies: level 0 first, up to a level of one word.
fn levels(blocks: u64) -> Vec<Range<usize>> {
    let mut levels = Vec::new();
    let (mut start, mut count) = (0, blocks.div_ceil(WORD_BITS).max(1));
    loop {
        levels.push(start..start + index(count));
        if count == 1 {
            return levels;
        }
        start += index(count);
        count = count.div_ceil(WORD_BITS);
    }
}

/// Bits `low..=high` of a word.
fn mask(low: u64, high: u64) -> u64 {
    (u64::MAX << low) & (u64::MAX >> (WORD_BITS - 1 - high))
}

/// The lowest set bit of a word that is not zero.
fn lowest(word: u64) -> u64 {
    u64::from(word.trailing_zeros())
}

/// A count of words as an index; the program needs 64-bit addresses anyway to map a large bitmap.
fn index(words: u64) -> usize {
    const { assert!(usize::BITS == 64, "bitmaps are mapped whole: a 64-bit system is needed") };
    words as usize
}

/// Sets `range` in the bitmaps of a group's volumes, as far as it lies within them.
pub fn set_blocks(bitmaps: &mut [Bitmap], range: BlockRange) {
    if let Some(bitmap) = bitmaps.get_mut(range.volume.0 as usize) {
        bitmap.set(range.first, range.count);
    }
}

/// Sets every block in the bitmaps of a group's volumes.
pub fn set_all(bitmaps: &mut [Bitmap]) {
    for bitmap in bitmaps {
        bitmap.set(0, bitmap.blocks());
    }
}

/// What is set in the bitmaps of a group's volumes, in order.
pub fn runs(bitmaps: &[Bitmap]) -> impl Iterator<Item = BlockRange> + '_ {
    bitmaps.iter().enumerate().flat_map(|(index, bitmap)| {
        let mut from = 0;
        std::iter::from_fn(move || {
            let (first, count) = bitmap.next_run(from, u64::MAX)?;
            from = first + count;
            Some(BlockRange { volume: VolumeIndex(index as u32), first, count })
        })
    })
}

#[cfg(test)]
#[path = "bitmap_tests.rs"]
mod tests;
