//! The bitmap against a naive model, and the order and cost of what it does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;

/// xorshift64*: enough to spread test cases, and the same on every machine.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % n.max(1)
    }
}

/// Words that outlive their bitmap and count how often one of them is looked at.
#[derive(Clone)]
struct Shared {
    words: Arc<[AtomicU64]>,
    tail: Arc<AtomicU64>,
    touched: Arc<AtomicUsize>,
}

impl Shared {
    fn new(blocks: u64) -> Self {
        let words = (0..Bitmap::words_needed(blocks)).map(|_| AtomicU64::new(0)).collect();
        Self { words, tail: Arc::new(AtomicU64::new(NO_TAIL)), touched: Arc::default() }
    }

    fn open(&self, blocks: u64, trust_summary: bool) -> Bitmap {
        Bitmap::new(Box::new(self.clone()), blocks, trust_summary)
    }

    fn touched(&self) -> usize {
        self.touched.swap(0, Ordering::Relaxed)
    }
}

impl Words for Shared {
    fn words(&self) -> &[AtomicU64] {
        self.touched.fetch_add(1, Ordering::Relaxed);
        &self.words
    }

    fn tail(&self) -> &AtomicU64 {
        self.touched.fetch_add(1, Ordering::Relaxed);
        &self.tail
    }
}

/// Every set bit below the top has its bit in the level above.
fn assert_invariant(bitmap: &Bitmap) {
    for level in 0..bitmap.levels.len() - 1 {
        for word in 0..bitmap.words_in(level) {
            if bitmap.load(level, word) != 0 {
                let above = bitmap.load(level + 1, word / WORD_BITS) >> (word % WORD_BITS) & 1;
                assert_eq!(above, 1, "level {level} word {word} is not in its summary");
            }
        }
    }
}

fn model_run(model: &BTreeSet<u64>, from: u64, max: u64) -> Option<(u64, u64)> {
    let first = *model.range(from..).next()?;
    let count = (first..).take_while(|block| model.contains(block)).take(max as usize).count();
    Some((first, count as u64))
}

#[test]
fn words_for_known_sizes() {
    assert_eq!(Bitmap::words_needed(0), 1);
    assert_eq!(Bitmap::words_needed(64), 1);
    assert_eq!(Bitmap::words_needed(65), 2 + 1);
    assert_eq!(Bitmap::words_needed(64 * 64), 64 + 1);
    assert_eq!(Bitmap::words_needed(64 * 64 + 1), 65 + 2 + 1);
    // 16 TiB.
    assert_eq!(Bitmap::words_needed(1 << 32), (1 << 26) + (1 << 20) + (1 << 14) + (1 << 8) + 4 + 1);
}

#[test]
fn it_agrees_with_a_plain_set() {
    for blocks in [1, 63, 64, 65, 127, 4096, 4097, 10_000, 64 * 64 * 64 + 3] {
        let words = Shared::new(blocks);
        let mut bitmap = words.open(blocks, true);
        let mut model = BTreeSet::new();
        let mut rng = Rng(blocks + 1);
        for step in 0..3000 {
            let first = rng.below(blocks + 2);
            let longest = [1, 3, 70, 5000][rng.below(4) as usize];
            let count = rng.below(longest + 1);
            let range = first..(first + count).min(blocks).max(first);
            match rng.below(8) {
                0..3 => {
                    let newly = range.filter(|block| model.insert(*block)).count();
                    assert_eq!(bitmap.set(first, count), newly as u64);
                }
                3..6 => {
                    let cleared = range.filter(|block| model.remove(block)).count();
                    assert_eq!(bitmap.clear(first, count), cleared as u64);
                }
                6 => {
                    assert_eq!(bitmap.next_run(first, count.max(1)), model_run(&model, first, count.max(1)));
                    assert_eq!(bitmap.any(first, count), model.range(first..first + count).next().is_some());
                    assert_eq!(bitmap.test(first), model.contains(&first));
                }
                _ if step % 50 == 0 => {
                    bitmap.clear(0, blocks);
                    model.clear();
                }
                _ => {}
            }
            assert_eq!(bitmap.dirty_blocks(), model.len() as u64);
        }
        assert_invariant(&bitmap);
        for trust_summary in [true, false] {
            let again = words.open(blocks, trust_summary);
            assert_eq!(again.dirty_blocks(), model.len() as u64);
            let (mut at, mut seen) = (0, Vec::new());
            while let Some((first, count)) = again.next_run(at, 7) {
                assert!((1..=7).contains(&count));
                seen.extend(first..first + count);
                at = first + count;
            }
            assert_eq!(seen, model.iter().copied().collect::<Vec<_>>());
        }
    }
}

#[test]
fn ranges_past_the_end_are_cut() {
    let mut bitmap = Bitmap::new(mem_words(Bitmap::words_needed(100)), 100, true);
    assert_eq!(bitmap.set(90, 1024), 10);
    assert_eq!(bitmap.set(u64::MAX, u64::MAX), 0);
    assert_eq!(bitmap.set(0, u64::MAX), 90);
    assert_eq!(bitmap.next_run(0, u64::MAX), Some((0, 100)));
    assert!(!bitmap.test(100) && !bitmap.any(100, 5));
    assert_eq!(bitmap.clear(50, u64::MAX), 50);
    assert_eq!(bitmap.level0_words(90, 1024), 1..2);
    assert_eq!(bitmap.level0_words(100, 1), 0..0);
}

#[test]
fn an_empty_volume_has_an_empty_bitmap() {
    let mut bitmap = Bitmap::new(mem_words(1), 0, false);
    assert_eq!(bitmap.set(0, 10), 0);
    assert_eq!(bitmap.next_run(0, 1), None);
}

#[test]
fn few_dirty_blocks_cost_few_words_in_a_large_volume() {
    // 256 GiB: five levels, and still small in memory.
    let blocks = 1 << 26;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    let mut rng = Rng(7);
    let dirty: BTreeSet<u64> = (0..1000).map(|_| rng.below(blocks)).collect();
    for block in &dirty {
        bitmap.set(*block, 1);
    }
    words.touched();
    assert_eq!(bitmap.next_run(dirty.last().unwrap() + 1, 1), None);
    assert!(words.touched() <= 2 * bitmap.levels.len());
    for block in &dirty {
        let found = bitmap.next_run(block.saturating_sub(1), 16).unwrap().0;
        assert!(found <= *block);
        assert!(words.touched() <= 3 * bitmap.levels.len() + 2);
    }
    assert_eq!(words.open(blocks, true).dirty_blocks(), dirty.len() as u64);
    assert!(words.touched() <= dirty.len() * bitmap.levels.len() * 2);
    assert_eq!(bitmap.clear(0, blocks), dirty.len() as u64);
    assert!(words.touched() <= dirty.len() * bitmap.levels.len() * 6);
}

#[test]
fn a_summary_bit_with_nothing_below_is_stepped_over_and_dropped_at_open() {
    let blocks = 1 << 20;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    bitmap.set(1 << 19, 1);
    // As a kill leaves it: the summary was set, the leaf not yet.
    for level in 1..bitmap.levels.len() {
        let bit = 70_000 >> (WORD_SHIFT * level as u32);
        bitmap.set_bits(level, bit, bit);
    }
    assert_eq!(bitmap.next_run(0, 9), Some((1 << 19, 1)));
    assert_eq!(bitmap.next_run((1 << 19) + 1, 9), None);
    let again = words.open(blocks, true);
    assert_eq!(again.dirty_blocks(), 1);
    let bit = 70_000 >> 12;
    assert_eq!(again.load(2, bit / 64) >> (bit % 64) & 1, 0);
}

#[test]
fn what_lies_next_to_an_empty_summary_bit_is_found() {
    let blocks = 700_000;
    for level in 1..Bitmap::over(mem_words(Bitmap::words_needed(blocks)), blocks).levels.len() {
        let words = Shared::new(blocks);
        let mut bitmap = words.open(blocks, true);
        let first = |child: u64| child << (WORD_SHIFT * level as u32);
        for above in level..bitmap.levels.len() {
            let bit = first(1) >> (WORD_SHIFT * above as u32);
            bitmap.set_bits(above, bit, bit);
        }
        bitmap.set(first(2), 1);
        assert_eq!(bitmap.next_run(0, 9), Some((first(2), 1)), "level {level}");
        // Only damage sets one that is past the last block.
        let past = bitmap.words_in(0);
        assert!(!past.is_multiple_of(WORD_BITS), "there is such a bit");
        for above in 1..bitmap.levels.len() {
            let bit = past >> (WORD_SHIFT * (above as u32 - 1));
            bitmap.set_bits(above, bit, bit);
        }
        assert_eq!(bitmap.next_run(first(2) + 1, 9), None, "level {level}");
    }
}

#[test]
fn a_dirty_block_behind_many_empty_summary_bits_is_found() {
    let blocks = 1 << 20;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    for word in 1..=200 {
        for level in 1..bitmap.levels.len() {
            let bit = word >> (WORD_SHIFT * (level as u32 - 1));
            bitmap.set_bits(level, bit, bit);
        }
    }
    bitmap.set(64 * 201, 1);
    bitmap.set(64 * 300, 2);
    assert_eq!(bitmap.next_run(0, 9), Some((64 * 201, 1)));
    assert_eq!(bitmap.next_run(64 * 201 + 1, 9), Some((64 * 300, 2)));
    assert_eq!(bitmap.next_run(64 * 300 + 2, 9), None);
}

#[test]
fn a_search_in_order_sees_what_changes_ahead_of_it() {
    let blocks = 64 * 64 * 64 * 3;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    let mut model = BTreeSet::new();
    let mut rng = Rng(11);
    for _ in 0..4000 {
        let block = rng.below(blocks);
        bitmap.set(block, 1);
        model.insert(block);
    }
    let mut at = 0;
    for _ in 0..100_000 {
        let run = bitmap.next_run(at, 100);
        assert_eq!(run, model_run(&model, at, 100), "from {at}");
        at = match run {
            Some((first, count)) => [at, first, first + count][rng.below(3) as usize],
            None => 0,
        };
        // A few words ahead of the search, or many, or just before it.
        let reach = [64, 64 * 8, 64 * 400][rng.below(3) as usize];
        let (first, count) = ((at + rng.below(reach)).saturating_sub(70), 1 + rng.below(3));
        let range = first..(first + count).min(blocks).max(first);
        match rng.below(4) {
            0 => {
                bitmap.set(first, count);
                model.extend(range);
            }
            1 => {
                bitmap.clear(first, count);
                for block in range {
                    model.remove(&block);
                }
            }
            _ => {}
        }
        if rng.below(500) == 0 {
            at = rng.below(blocks);
        }
    }
}

#[test]
fn a_view_sees_what_its_owner_clears_ahead_of_it() {
    let blocks = 1 << 20;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    for word in 0..100 {
        bitmap.set(word * 640, 2);
    }
    let view = BitmapView::new(Box::new(words), blocks);
    assert_eq!(view.next_run(0), Some((0, 2)));
    bitmap.clear(2, 640 * 3);
    assert_eq!(view.next_run(2), Some((640 * 4, 2)), "among those that were found together");
    bitmap.clear(2, 640 * 90);
    assert_eq!(view.next_run(640 * 4 + 2), Some((640 * 91, 2)), "beyond all of them");
}

#[test]
fn a_summary_of_another_age_is_rebuilt() {
    let blocks = 300_000;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    bitmap.set(5, 3);
    bitmap.set(299_990, 10);
    let levels = bitmap.levels.clone();
    for (at, word) in words.words.iter().enumerate().skip(levels[1].start) {
        word.store((at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15), Ordering::Relaxed);
    }
    // A damaged bit past the last block is no block.
    words.words[levels[0].end - 1].fetch_or(1 << 63, Ordering::Relaxed);
    let bitmap = words.open(blocks, false);
    assert_eq!(bitmap.dirty_blocks(), 13);
    assert_eq!(bitmap.next_run(8, 100), Some((299_990, 10)));
    assert_eq!(bitmap.next_run(300_000, 100), None);
    assert_invariant(&bitmap);
}

/// Words in which every look is checked: the invariant has to hold between any two accesses, as a kill may come there.
struct Watched {
    shared: Shared,
    levels: Vec<Range<usize>>,
}

impl Words for Watched {
    fn words(&self) -> &[AtomicU64] {
        let value = |level: usize, word: usize| {
            self.shared.words[self.levels[level].start + word].load(Ordering::Relaxed)
        };
        for level in 0..self.levels.len() - 1 {
            for word in 0..self.levels[level].len() {
                // By leaf: a summary bit may be ahead of what is below it, never behind.
                let below = subtree_has_leaf(&value, level, word, &self.levels);
                assert!(!below || value(level + 1, word / 64) >> (word % 64) & 1 == 1);
            }
        }
        &self.shared.words
    }

    fn tail(&self) -> &AtomicU64 {
        &self.shared.tail
    }
}

fn subtree_has_leaf(
    value: &dyn Fn(usize, usize) -> u64,
    level: usize,
    word: usize,
    levels: &[Range<usize>],
) -> bool {
    if level == 0 {
        return value(0, word) != 0;
    }
    (word * 64..(word * 64 + 64).min(levels[level - 1].len()))
        .any(|child| subtree_has_leaf(value, level - 1, child, levels))
}

#[test]
fn a_kill_between_any_two_stores_leaves_no_leaf_without_its_summary() {
    let blocks = 64 * 64 + 200;
    let shared = Shared::new(blocks);
    let watched = Watched { shared: shared.clone(), levels: levels(blocks) };
    let mut bitmap = Bitmap::new(Box::new(watched), blocks, true);
    let mut rng = Rng(3);
    for _ in 0..150 {
        let (first, count) = (rng.below(blocks), rng.below(300));
        if rng.below(2) == 0 {
            bitmap.set(first, count);
        } else {
            bitmap.clear(first, count * 2);
        }
    }
    bitmap.clear(0, blocks);
    assert!(shared.words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
}

/// What a bitmap with a tail is to hold: the dirty blocks, and how far they have been settled one by one.
fn check(bitmap: &Bitmap, model: &BTreeSet<u64>, rng: &mut Rng, blocks: u64) {
    assert_eq!(bitmap.dirty_blocks(), model.len() as u64);
    assert_invariant(bitmap);
    for _ in 0..20 {
        let (from, max) = (rng.below(blocks + 2), 1 + rng.below(200));
        assert_eq!(bitmap.next_run(from, max), model_run(model, from, max), "from {from}, at most {max}");
        assert_eq!(bitmap.test(from), model.contains(&from));
        assert_eq!(bitmap.any(from, max), model.range(from..from + max).next().is_some());
    }
}

#[test]
fn a_tail_is_dirty_as_if_every_bit_were_set() {
    for seed in 1..60 {
        let mut rng = Rng(seed);
        let blocks = 1 + rng.below(5000);
        let words = Shared::new(blocks);
        let (mut bitmap, mut model) = (words.open(blocks, true), BTreeSet::new());
        for _ in 0..60 {
            let (first, count) = (rng.below(blocks), rng.below(300));
            let end = (first + count).min(blocks);
            match rng.below(8) {
                0 => {
                    bitmap.set_from(first);
                    model.extend(first..blocks);
                }
                1 | 2 => {
                    let newly = (first..end).filter(|block| model.insert(*block)).count();
                    assert_eq!(bitmap.set(first, count), newly as u64);
                }
                3 => bitmap.settle(first, count),
                4 => {
                    let first = bitmap.tail().min(first);
                    let cleared = (first..end).filter(|block| model.remove(block)).count();
                    assert_eq!(bitmap.clear(first, end - first), cleared as u64);
                }
                _ => {
                    let cleared = (first..end).filter(|block| model.remove(block)).count();
                    assert_eq!(bitmap.clear(first, count), cleared as u64);
                }
            }
            check(&bitmap, &model, &mut rng, blocks);
        }
        for trust_summary in [true, false] {
            let again = words.open(blocks, trust_summary);
            assert!(
                model.iter().all(|block| again.test(*block)),
                "a restart never finds a dirty block clear"
            );
            let found: BTreeSet<u64> = (0..blocks).filter(|block| again.test(*block)).collect();
            assert!(found.iter().all(|block| model.contains(block) || *block >= again.tail()));
            check(&again, &found, &mut rng, blocks);
        }
    }
}

#[test]
fn a_tail_that_is_cleared_in_order_leaves_nothing_behind() {
    let blocks = 100_000;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    bitmap.set_from(0);
    bitmap.set(70, 2);
    for first in (0..blocks).step_by(1000) {
        if first == 0 {
            // What was written meanwhile stays dirty, and does not hold the tail back.
            bitmap.clear(0, 70);
            bitmap.clear(72, 928);
            bitmap.settle(0, 1000);
        } else {
            bitmap.clear(first, 1000);
        }
        let again = words.open(blocks, true);
        assert_eq!(again.tail(), first + 1000);
        assert_eq!(again.dirty_blocks(), 2 + blocks - first - 1000);
    }
    assert_eq!(words.open(blocks, false).next_run(0, 9), Some((70, 2)));
}

#[test]
fn a_tail_in_too_many_pieces_stays_dirty_and_is_bounded() {
    let blocks = 4 * MAX_PASSED as u64;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    bitmap.set_from(0);
    let cleared: u64 = (1..blocks).step_by(2).map(|block| bitmap.clear(block, 1)).sum();
    assert_eq!(cleared, MAX_PASSED as u64);
    assert_eq!(bitmap.passed.len(), MAX_PASSED);
    assert_eq!(bitmap.dirty_blocks(), blocks - cleared);
    assert_eq!(bitmap.clear(0, blocks), blocks - cleared, "in order it clears all the same");
    assert!(bitmap.passed.is_empty());
    assert_eq!(bitmap.next_run(0, 1), None);
}

#[test]
fn a_volume_that_is_all_dirty_costs_nothing_for_its_size() {
    // 256 GiB.
    let blocks = 1 << 26;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    words.touched();
    bitmap.set_from(0);
    assert_eq!(bitmap.dirty_blocks(), blocks);
    for first in (0..blocks).step_by(1 << 14) {
        assert_eq!(bitmap.next_run(first, 1 << 14), Some((first, 1 << 14)));
        bitmap.clear(first, 1 << 14);
    }
    // A few looks for each of 4096 pieces.
    assert!(words.touched() <= 4096 * 40);
    words.open(blocks, true);
    assert!(words.touched() <= 4 * bitmap.levels.len());
}

#[test]
fn only_what_was_ever_written_is_read_to_make_the_summary_anew() {
    let blocks = 1 << 26;
    let words = Shared::new(blocks);
    let mut bitmap = words.open(blocks, true);
    let page = |word: usize| word / 512 * 512..(word / 512 + 1) * 512;
    let mut data = Vec::new();
    for block in [5, 1 << 20, (1 << 26) - 1] {
        bitmap.set(block, 1);
        let level1 = bitmap.levels[1].start + (block >> 12) as usize;
        data.extend([page((block >> 6) as usize), page(level1)]);
    }
    data.push(page(bitmap.levels[2].start).start..usize::MAX);
    words.touched();
    let again = Bitmap::rebuild(Box::new(words.clone()), blocks, &data);
    assert_eq!(again.dirty_blocks(), 3);
    assert_eq!(again.next_run(6, 9), Some((1 << 20, 1)));
    assert!(words.touched() <= 4 * 512);
    assert_invariant(&again);
}
