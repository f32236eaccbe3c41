//! What lies ahead of a search that goes through a bitmap in order.
//!
//! A search for one dirty word loads a word of each level, and each of them says where the next one is. In a large map none of
//! them is near the processor, so it waits for one after the other. Here the words of a level that lead to the next
//! [`WORDS`] dirty ones are loaded side by side.
//!
//! What was found is where to look, not what is there: a word may have been cleared since. One that was clear and is set must
//! not be missed, so its owner [forgets](Ahead::forget) what was found around it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{WORD_BITS, WORD_SHIFT, index, lowest};

/// Words that are looked for at once: enough that the processor always waits for several, few enough that a caller who goes
/// no further has not waited for much.
const WORDS: usize = 32;

/// Words of level 0, in order: all that were not zero in a stretch of the bitmap when it was looked at.
#[derive(Default)]
pub struct Ahead {
    words: [u64; WORDS],
    /// Those of `words` that are still ahead.
    left: Range<usize>,
    /// The first word of the stretch that is still ahead; the last is the last in `words`.
    from: u64,
}

impl Ahead {
    /// Looks for the first words at or after `from` that are not zero. Finds fewer than there is room for where summary bits
    /// have nothing below them, and perhaps none.
    ///
    /// `levels` say where each level lies in `words`, as the bitmap has them.
    // Apart from the loops that go on from what is known, which seldom come here.
    #[inline(never)]
    pub fn look(&mut self, words: &[AtomicU64], levels: &[Range<usize>], from: u64) {
        let load = |level: usize, word: u64| words[levels[level].start + index(word)].load(Ordering::Relaxed);
        // Of each level in turn, from the top: the first words that have something at or after `from` below them.
        let (mut leading, mut count) = ([0; WORDS], 1);
        for level in (1..levels.len()).rev() {
            let mut below = Found { words: [0; WORDS], count: 0, end: levels[level - 1].len() as u64 };
            let first = from >> (WORD_SHIFT * (level as u32 - 1));
            for word in &leading[..count] {
                let mut value = load(level, *word);
                if *word == first / WORD_BITS {
                    value &= u64::MAX << (first % WORD_BITS);
                }
                if !below.take(*word * WORD_BITS, value) {
                    break;
                }
            }
            (leading, count) = (below.words, below.count);
        }
        (self.from, self.left) = (from, 0..0);
        for word in leading[..count].iter().filter(|word| load(0, **word) != 0) {
            self.words[self.left.end] = *word;
            self.left.end += 1;
        }
    }

    /// The first word at or after `from` that was not zero; the same if asked again. `None` if that is not known.
    #[inline(always)]
    pub fn next(&mut self, from: u64) -> Option<u64> {
        if from < self.from {
            return None;
        }
        while !self.left.is_empty() {
            let word = self.words[self.left.start];
            if word >= from {
                return Some(word);
            }
            self.from = word + 1;
            self.left.start += 1;
        }
        None
    }

    /// Any of the words `first..=last` may be other than zero now, whatever it was.
    #[inline(always)]
    pub fn forget(&mut self, first: u64, last: u64) {
        let known = self.left.end.checked_sub(1).is_some_and(|end| first <= self.words[end]);
        if known && last >= self.from {
            self.left = 0..0;
        }
    }
}

/// Words of a level that has `end` of them, in order.
struct Found {
    words: [u64; WORDS],
    count: usize,
    end: u64,
}

impl Found {
    /// Takes the words whose bits are set in `summary`, the first bit of which is that of `base`; `false` if there is no room
    /// for all of them. Only damage sets a bit past the end.
    #[inline(always)]
    fn take(&mut self, base: u64, mut summary: u64) -> bool {
        while summary != 0 {
            let word = base + lowest(summary);
            let Some(free) = self.words.get_mut(self.count).filter(|_| word < self.end) else { return false };
            *free = word;
            self.count += 1;
            summary &= summary - 1;
        }
        true
    }
}
