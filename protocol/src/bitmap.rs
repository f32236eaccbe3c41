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
//! Where a volume is dirty to its end, as before its first sync, no bit says so but one number, the beginning of the *tail*:
//! every block from there on is dirty. It moves on as blocks are cleared in order; what is cleared further on is remembered
//! in memory only, and is dirty again after a restart. A block of the tail that is set has its bit all the same, so the
//! beginning of the tail may be older or newer than the bits that come back after a loss of power. It lies in a word of
//! its own before the others, and is synced with the first of them.
//!
//! When bits may be set and cleared is not decided here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ids::{BlockRange, VolumeIndex};

mod ahead;

use self::ahead::Ahead;

const WORD_BITS: u64 = 64;
/// log2 of [`WORD_BITS`].
const WORD_SHIFT: u32 = 6;
/// The beginning of the tail of a new bitmap.
pub const NO_TAIL: u64 = u64::MAX;
/// Pieces of the tail that may be clear behind blocks that are not: many times what a source has under way at once.
const MAX_PASSED: usize = 4096;

/// A range to the end of a volume that is at least this long, in blocks, becomes a tail rather than bits: a page of them.
const LONG_BLOCKS: u64 = 1 << 15;

/// Words that a bitmap lives in.
pub trait Words: Send + Sync {
    /// The words; the same slice at every call.
    fn words(&self) -> &[AtomicU64];
    /// The first block of the tail; as many as there are blocks, or more, if there is no tail.
    fn tail(&self) -> &AtomicU64;
}

struct MemWords {
    words: Box<[AtomicU64]>,
    tail: AtomicU64,
}

impl Words for MemWords {
    fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    fn tail(&self) -> &AtomicU64 {
        &self.tail
    }
}

/// `count` zero words in memory without a tail, for tests and for a bitmap that need not survive.
pub fn mem_words(count: usize) -> Box<dyn Words> {
    let words = (0..count).map(|_| AtomicU64::new(0)).collect();
    Box::new(MemWords { words, tail: AtomicU64::new(NO_TAIL) })
}

/// A set of blocks. One owner changes it; the words may be read (and synced to disk) by others meanwhile.
pub struct Bitmap {
    words: Box<dyn Words>,
    /// Where each level lies in the words; level 0 first, the last has one word.
    levels: Vec<Range<usize>>,
    blocks: u64,
    /// Dirty blocks: those of the tail, and those before it whose bits are set.
    ones: u64,
    /// First block of the tail; `blocks` if there is none.
    tail: u64,
    /// Blocks after the beginning of the tail that are no part of it, as disjoint runs that do not touch: first to end.
    passed: BTreeMap<u64, u64>,
    /// What [`Bitmap::next_run`] has found beyond what it was asked for.
    ahead: RefCell<Ahead>,
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
        if !trust_summary {
            let all = 0..words.words().len();
            return Self::rebuild(words, blocks, &[all]);
        }
        let mut bitmap = Self::over(words, blocks);
        let (ones, _) = bitmap.recount(bitmap.levels.len() - 1, 0);
        bitmap.ones = ones + (blocks - bitmap.tail);
        bitmap
    }

    /// As [`Bitmap::new`] without trust; but only words in `data` can be other than zero, and only those are read.
    ///
    /// # Panics
    /// If there are fewer words than [`Bitmap::words_needed`] says.
    pub fn rebuild(words: Box<dyn Words>, blocks: u64, data: &[Range<usize>]) -> Self {
        let mut bitmap = Self::over(words, blocks);
        bitmap.ones = bitmap.rebuild_summary(data) + (blocks - bitmap.tail);
        bitmap
    }

    fn over(words: Box<dyn Words>, blocks: u64) -> Self {
        let tail = words.tail().load(Ordering::Acquire).min(blocks);
        let (passed, ahead) = (BTreeMap::new(), RefCell::default());
        let bitmap = Self { words, levels: levels(blocks), blocks, ones: 0, tail, passed, ahead };
        let (have, needed) = (bitmap.words.words().len(), Self::words_needed(blocks));
        assert!(have >= needed, "a bitmap of {blocks} blocks needs {needed} words, not {have}");
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
        let newly = if last < self.tail {
            self.set_bits(0, first, last)
        } else {
            let mut newly = 0;
            for (start, end, in_tail) in self.pieces(first, last) {
                let set = self.set_bits(0, start, end - 1);
                newly += if in_tail { 0 } else { set };
            }
            newly
        };
        self.ahead.get_mut().forget(first / WORD_BITS, last / WORD_BITS);
        self.ones += newly;
        newly
    }

    /// Makes every block from `first` on dirty, at a cost that follows what is dirty already. Durable once the first word is
    /// synced.
    pub fn set_from(&mut self, first: u64) {
        let first = first.min(self.blocks);
        let clear: u64 = if first < self.blocks {
            let pieces = self.pieces(first, self.blocks - 1);
            let clear = |(start, end, in_tail): &(u64, u64, bool)| {
                if *in_tail { 0 } else { end - start - self.bits_in(*start, *end) }
            };
            pieces.iter().map(clear).sum()
        } else {
            0
        };
        self.ones += clear;
        let after = self.passed.split_off(&first);
        drop(after);
        if let Some((_, end)) = self.passed.range_mut(..first).next_back() {
            *end = (*end).min(first);
        }
        if first < self.tail {
            self.begin_tail(first);
        }
    }

    /// Clears `count` blocks from `first` on; what lies past the end is left out. Returns how many were set. Visits
    /// only words that are not zero.
    ///
    /// Blocks of the tail are left as they are when it is in too many pieces already.
    pub fn clear(&mut self, first: u64, count: u64) -> u64 {
        let Some((first, last)) = self.clamp(first, count) else { return 0 };
        if last < self.tail {
            let cleared = self.clear_bits(first, last);
            self.forget_ones(cleared);
            return cleared;
        }
        let mut cleared = 0;
        for (start, end, in_tail) in self.pieces(first, last) {
            if !in_tail {
                cleared += self.clear_bits(start, end - 1);
            } else if self.pass(start, end) {
                self.clear_bits(start, end - 1);
                cleared += end - start;
            }
        }
        self.forget_ones(cleared);
        cleared
    }

    /// Those of `count` blocks from `first` on that have their bits set leave the tail, and stay dirty: what holds the tail
    /// back no longer than it must. Their bits have to be safe from a loss of power, in whatever way.
    pub fn settle(&mut self, first: u64, count: u64) {
        let Some((first, last)) = self.clamp(first, count) else { return };
        let mut from = first.max(self.tail);
        while let Some(start) = self.next_bit(from).filter(|start| *start <= last) {
            let end = start + self.bit_run(start, last + 1 - start);
            for (start, end, in_tail) in self.pieces(start, end - 1) {
                if in_tail && !self.pass(start, end) {
                    return;
                }
            }
            from = end;
        }
    }

    /// First block of the tail, from which on every block is dirty that has not been cleared since; the count of blocks if
    /// there is none.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Whether `block` is set; a block past the end is not.
    pub fn test(&self, block: u64) -> bool {
        let bit = || self.load(0, block / WORD_BITS) >> (block % WORD_BITS) & 1 == 1;
        block < self.blocks && (self.is_in_tail(block) || bit())
    }

    /// Whether any of `count` blocks from `first` on is set.
    pub fn any(&self, first: u64, count: u64) -> bool {
        self.next_set(first, Self::next_dirty_word).is_some_and(|block| block - first < count)
    }

    /// The first set block at or after `from`, and how many blocks from there on are set without a gap, at most
    /// `max` (at least 1). Finding it costs a few words for each level, however far away it is, and finds some more
    /// for a caller that goes on from there.
    pub fn next_run(&self, from: u64, max: u64) -> Option<(u64, u64)> {
        let first = self.next_set(from, Self::next_dirty_word_in_order)?;
        let max = max.max(1).min(self.blocks - first);
        if first + max <= self.tail {
            return Some((first, self.bit_run(first, max)));
        }
        let mut count = 0;
        while count < max {
            let at = first + count;
            let more = match self.tail_run(at) {
                Some((start, end)) if start == at => end - start,
                _ => self.bit_run(at, max - count),
            };
            if more == 0 {
                break;
            }
            count += more;
        }
        Some((first, count.min(max)))
    }

    /// The words of level 0 that hold `count` blocks from `first` on, as indices into the slice of words: what has to
    /// be made durable so that these bits survive a loss of power. With the first word goes the beginning of the tail.
    pub fn level0_words(&self, first: u64, count: u64) -> Range<usize> {
        let Some((first, last)) = self.clamp(first, count) else { return 0..0 };
        index(first / WORD_BITS)..index(last / WORD_BITS) + 1
    }

    /// The range as first and last block, cut at the end of the bitmap; `None` when nothing is left.
    fn clamp(&self, first: u64, count: u64) -> Option<(u64, u64)> {
        let end = first.saturating_add(count).min(self.blocks);
        (first < end).then(|| (first, end - 1))
    }

    /// The first set block at or after `from`, with the search for a word that is given.
    #[inline(always)]
    fn next_set(&self, from: u64, next_word: impl FnOnce(&Self, u64) -> Option<(u64, u64)>) -> Option<u64> {
        let bit = self.next_bit_by(from, next_word);
        if self.tail == self.blocks {
            return bit;
        }
        let in_tail = self.tail_run(from).map(|(start, _)| start);
        bit.into_iter().chain(in_tail).min()
    }

    /// The first block at or after `from` whose bit is set.
    fn next_bit(&self, from: u64) -> Option<u64> {
        self.next_bit_by(from, Self::next_dirty_word)
    }

    #[inline(always)]
    fn next_bit_by(
        &self,
        from: u64,
        next_word: impl FnOnce(&Self, u64) -> Option<(u64, u64)>,
    ) -> Option<u64> {
        if from >= self.blocks {
            return None;
        }
        let word = from / WORD_BITS;
        let rest = self.load(0, word) & (u64::MAX << (from % WORD_BITS));
        if rest != 0 {
            return Some(word * WORD_BITS + lowest(rest));
        }
        let (word, value) = next_word(self, word + 1)?;
        Some(word * WORD_BITS + lowest(value))
    }

    /// How many bits are set from `first` on without a gap, at most `max`; not past the last block.
    fn bit_run(&self, first: u64, max: u64) -> u64 {
        let max = max.min(self.blocks - first);
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
        count.min(max)
    }

    /// Count of bits that are set in `from..end`.
    fn bits_in(&self, from: u64, end: u64) -> u64 {
        let mut ones = 0;
        let mut at = from;
        while let Some(bit) = self.next_bit(at).filter(|bit| *bit < end) {
            let word = bit / WORD_BITS;
            let word_end = ((word + 1) * WORD_BITS).min(end);
            let mask = mask(bit % WORD_BITS, (word_end - 1) % WORD_BITS);
            ones += u64::from((self.load(0, word) & mask).count_ones());
            at = word_end;
        }
        ones
    }

    fn is_in_tail(&self, block: u64) -> bool {
        block >= self.tail && self.tail_run(block).is_some_and(|(start, _)| start == block)
    }

    /// The first stretch of the tail at or after `from`, as first block and end.
    fn tail_run(&self, from: u64) -> Option<(u64, u64)> {
        let mut start = from.max(self.tail);
        if let Some((_, end)) = self.passed.range(..=start).next_back() {
            start = start.max(*end);
        }
        let end = self.passed.range(start..).next().map_or(self.blocks, |(first, _)| *first);
        (start < end).then_some((start, end))
    }

    /// `first..=last` in pieces that lie in the tail or outside: first block, end, and which.
    fn pieces(&self, first: u64, last: u64) -> Vec<(u64, u64, bool)> {
        let (mut pieces, mut at) = (Vec::new(), first);
        while at <= last {
            let (start, end) = self.tail_run(at).unwrap_or((last + 1, last + 1));
            let (start, end) = (start.min(last + 1), end.min(last + 1));
            if at < start {
                pieces.push((at, start, false));
            }
            if start < end {
                pieces.push((start, end, true));
            }
            at = end;
        }
        pieces
    }

    /// `start..end`, which lies in the tail, leaves it; `false` if that would make too many pieces.
    fn pass(&mut self, start: u64, end: u64) -> bool {
        let (mut first, mut last) = (start, end);
        let before = self.passed.range(..=start).next_back().map(|(f, e)| (*f, *e));
        if let Some((f, _)) = before.filter(|(_, e)| *e == start) {
            first = f;
        }
        if let Some(e) = self.passed.get(&end) {
            last = *e;
        }
        if first <= self.tail {
            self.passed.remove(&first);
            self.passed.remove(&end);
            self.begin_tail(last);
            return true;
        }
        let touches = first < start || last > end;
        if !touches && self.passed.len() >= MAX_PASSED {
            return false;
        }
        self.passed.remove(&end);
        self.passed.insert(first, last);
        true
    }

    /// So many blocks are dirty no more. A damaged summary may have hidden some of them when they were counted.
    fn forget_ones(&mut self, cleared: u64) {
        self.ones = self.ones.saturating_sub(cleared);
    }

    fn begin_tail(&mut self, first: u64) {
        self.tail = first;
        self.words.tail().store(first, Ordering::Release);
    }

    /// As [`Bitmap::next_dirty_word`], for a caller that goes on from there: several words are looked for at once, which in a
    /// large bitmap costs little more than one.
    #[inline(always)]
    fn next_dirty_word_in_order(&self, mut from: u64) -> Option<(u64, u64)> {
        let mut ahead = self.ahead.borrow_mut();
        for known in [true, false] {
            if !known {
                ahead.look(self.words.words(), &self.levels, from);
            }
            while let Some(word) = ahead.next(from) {
                let value = self.load(0, word);
                if value != 0 {
                    return Some((word, value));
                }
                from = word + 1;
            }
        }
        // Nothing is left, or summary bits with nothing below.
        self.next_dirty_word(from)
    }

    /// The first word of level 0 at or after `from` that is not zero, and its value: up until a summary word has something
    /// at or after the place, then down along the lowest bits. A summary bit with nothing below it is stepped over.
    fn next_dirty_word(&self, from: u64) -> Option<(u64, u64)> {
        // Looked up once: the search consists of this.
        let (words, levels) = (self.words.words(), &self.levels[..]);
        let load = |level: &Range<usize>, word: u64| words[level.start + index(word)].load(Ordering::Relaxed);
        if let [only] = levels {
            return (from == 0).then(|| (0, load(only, 0))).filter(|(_, value)| *value != 0);
        }
        let (mut level, mut bit) = (1, from);
        loop {
            let range = levels.get(level)?;
            let mut word = bit / WORD_BITS;
            if word >= range.len() as u64 {
                return None;
            }
            let mut value = load(range, word) & (u64::MAX << (bit % WORD_BITS));
            if value == 0 {
                (level, bit) = (level + 1, word + 1);
                continue;
            }
            loop {
                let child = word * WORD_BITS + lowest(value);
                let below = &levels[level - 1];
                value = if child < below.len() as u64 { load(below, child) } else { 0 };
                if value == 0 {
                    bit = child + 1;
                    break;
                }
                if level == 1 {
                    return Some((child, value));
                }
                (level, word) = (level - 1, child);
            }
        }
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

    /// Clears the bits `first..=last` of level 0; returns how many were set.
    fn clear_bits(&self, first: u64, last: u64) -> u64 {
        let (first_word, last_word) = (first / WORD_BITS, last / WORD_BITS);
        let mut cleared = 0;
        let mut from = first_word;
        while let Some((word, _)) = self.next_dirty_word(from).filter(|(word, _)| *word <= last_word) {
            let low = if word == first_word { first % WORD_BITS } else { 0 };
            let high = if word == last_word { last % WORD_BITS } else { WORD_BITS - 1 };
            cleared += self.clear_in_word(word, mask(low, high));
            from = word + 1;
        }
        cleared
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

    /// Counts the set bits below a word, but for those of the tail, by following the summary, and clears summary bits with
    /// nothing below. Also returns whether there is any bit.
    fn recount(&self, level: usize, word: u64) -> (u64, bool) {
        if level == 0 {
            return self.leaf_ones(word);
        }
        let (value, mut kept, mut ones) = (self.load(level, word), 0, 0);
        let mut rest = value;
        while rest != 0 {
            let bit = lowest(rest);
            rest &= rest - 1;
            let child = word * WORD_BITS + bit;
            if child >= self.words_in(level - 1) {
                continue;
            }
            let (below, any) = self.recount(level - 1, child);
            ones += below;
            kept |= u64::from(any) << bit;
        }
        if kept != value {
            self.store(level, word, kept);
        }
        (ones, kept != 0)
    }

    /// Makes every level above 0 anew; returns the count of set bits, but for those of the tail.
    fn rebuild_summary(&self, data: &[Range<usize>]) -> u64 {
        let leaves = self.levels[0].end;
        let top = self.levels.last().map_or(leaves, |top| top.end);
        let words = &self.words.words()[..top];
        for range in data {
            let summary = words.get(range.start.max(leaves)..range.end.min(top)).unwrap_or_default();
            for word in summary.iter().filter(|word| word.load(Ordering::Relaxed) != 0) {
                word.store(0, Ordering::Release);
            }
        }
        let mut ones = 0;
        for range in data {
            for word in range.start as u64..range.end.min(leaves) as u64 {
                let (here, any) = self.leaf_ones(word);
                ones += here;
                if any {
                    self.summarize(word);
                }
            }
        }
        ones
    }

    /// Sets the bits above a word of level 0.
    fn summarize(&self, word: u64) {
        let mut bit = word;
        for level in 1..self.levels.len() {
            if self.set_bits(level, bit, bit) == 0 {
                return;
            }
            bit /= WORD_BITS;
        }
    }

    /// Count of bits that are set in a word of level 0 before the tail, and whether any is; bits past the last block, which
    /// only damage can set, are cleared.
    fn leaf_ones(&self, word: u64) -> (u64, bool) {
        let value = self.load(0, word);
        let until = |end: u64| match end.saturating_sub(word * WORD_BITS) {
            0 => 0,
            bits => mask(0, bits.min(WORD_BITS) - 1),
        };
        let valid = value & until(self.blocks);
        if valid != value {
            self.store(0, word, valid);
        }
        (u64::from((valid & until(self.tail)).count_ones()), valid != 0)
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

/// What a bitmap holds, for who does not own it. Its owner may be clearing bits meanwhile, and set none: then no block that is
/// dirty to the end is missed.
pub struct BitmapView(Bitmap);

impl BitmapView {
    /// A view of what `words` hold.
    ///
    /// # Panics
    /// If there are fewer words than [`Bitmap::words_needed`] says.
    pub fn new(words: Box<dyn Words>, blocks: u64) -> Self {
        Self(Bitmap::over(words, blocks))
    }

    /// As [`Bitmap::next_run`], however long the run is.
    pub fn next_run(&self, from: u64) -> Option<(u64, u64)> {
        self.0.next_run(from, u64::MAX)
    }

    /// As [`Bitmap::tail`], but for what the owner has cleared in it since the words were made: that is dirty here.
    pub fn tail(&self) -> u64 {
        self.0.tail
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
    let Some(bitmap) = bitmaps.get_mut(range.volume.0 as usize) else { return };
    if range.count >= LONG_BLOCKS && range.end() >= bitmap.blocks {
        bitmap.set_from(range.first);
    } else {
        bitmap.set(range.first, range.count);
    }
}

/// Sets every block in the bitmaps of a group's volumes.
pub fn set_all(bitmaps: &mut [Bitmap]) {
    for bitmap in bitmaps {
        bitmap.set_from(0);
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
