//! One file: what programs see, what is on stable storage, and every version of a page in between.
//!
//! Owns the rules of a page cache: what a sync makes durable, what a failed one leaves, and what a power cut may
//! choose from. Leaves names to `names`, and who may ask to `disk`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::image::{Image, PAGE_BYTES, Page, SECTOR_BYTES, ZEROES, pages_of, pieces};
use crate::sim::Rng;

/// Most unsynced versions kept of one page, and of the length: beyond a dozen, another one in the middle only costs
/// memory.
const MAX_VERSIONS: usize = 12;
const WORDS_PER_PAGE: usize = (PAGE_BYTES / 8) as usize;
const SECTOR: usize = SECTOR_BYTES as usize;

/// How one power cut treats the unsynced pages of one file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// All are lost.
    All,
    /// None is lost.
    None,
    /// Each has its own fate.
    Mixed,
}

impl Loss {
    pub(super) fn choose(rng: &mut Rng) -> Self {
        match rng.below(6) {
            0 => Self::All,
            1 => Self::None,
            _ => Self::Mixed,
        }
    }
}

/// A file or a device.
#[derive(Debug)]
pub(super) struct Inode {
    /// A device: its length is fixed, and its space is not the file system's.
    pub(super) device: bool,
    /// The process that mapped it last.
    pub(super) mapped_by: u32,
    /// Held by every handle too, so that an unlinked file is dropped when nobody has it open.
    pub(super) token: Arc<()>,
    newest: Image,
    durable: Image,
    /// Unsynced versions of each page, oldest first; the last one is `newest`'s.
    dirty: BTreeMap<u64, Vec<Option<Page>>>,
    /// Unsynced lengths, oldest first; the last one is `newest`'s.
    lengths: Vec<u64>,
    /// Pages whose newest version a failed sync dropped: clean, readable and not durable.
    lost: BTreeSet<u64>,
    words: Option<Arc<[AtomicU64]>>,
}

impl Inode {
    /// An empty file.
    pub(super) fn file() -> Self {
        Self {
            device: false,
            mapped_by: 0,
            token: Arc::new(()),
            newest: Image::default(),
            durable: Image::default(),
            dirty: BTreeMap::new(),
            lengths: Vec::new(),
            lost: BTreeSet::new(),
            words: None,
        }
    }

    /// A device of `len` bytes that read as 0.
    pub(super) fn device(len: u64) -> Self {
        let mut inode = Self { device: true, ..Self::file() };
        inode.resize_device(len);
        inode
    }

    /// Makes a device `len` bytes long, durably.
    pub(super) fn resize_device(&mut self, len: u64) {
        for image in [&mut self.newest, &mut self.durable] {
            image.trim(len);
            image.backed.insert(pages_of(0, len));
        }
        self.dirty.split_off(&len.div_ceil(PAGE_BYTES));
    }

    pub(super) fn len(&self) -> u64 {
        self.newest.len
    }

    /// Pages of file system space that it takes.
    pub(super) fn space(&self) -> u64 {
        if self.device { 0 } else { self.newest.backed.count() }
    }

    /// Pages of space that having all of `len` bytes from `offset` on disk would take on top.
    pub(super) fn space_missing(&self, offset: u64, len: u64) -> u64 {
        self.newest.backed.missing(pages_of(offset, len))
    }

    pub(super) fn read(&mut self, buf: &mut [u8], offset: u64) {
        self.pull();
        self.newest.read(buf, offset);
    }

    pub(super) fn next_data(&mut self, offset: u64) -> Option<(u64, u64)> {
        self.pull();
        self.newest.next_data(offset)
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        self.pull();
        for (page, within, part) in pieces(offset, bytes.len()) {
            let version = self.newest.write_page(page, within, &bytes[part]).clone();
            self.remember(page, Some(version));
        }
        let end = offset + bytes.len() as u64;
        if end > self.newest.len {
            self.newest.len = end;
            self.remember_length();
        }
        self.push(pages_of(offset, bytes.len() as u64));
    }

    /// Backs bytes `0..len` with space and makes the file at least that long.
    pub(super) fn allocate(&mut self, len: u64) {
        self.newest.backed.insert(pages_of(0, len));
        if len > self.newest.len {
            self.newest.len = len;
            self.remember_length();
        }
    }

    /// Cuts or extends with a hole.
    pub(super) fn set_len(&mut self, len: u64) {
        if len == self.newest.len {
            return;
        }
        self.pull();
        self.words = None;
        let tail = len / PAGE_BYTES;
        let gone: Vec<u64> = self.newest.pages.range(tail..).map(|(&page, _)| page).collect();
        self.newest.trim(len);
        for page in gone {
            let left = self.newest.page(page).cloned();
            self.remember(page, left);
        }
        self.remember_length();
    }

    /// Makes a range read as 0; bytes past the end stay out of it.
    pub(super) fn zero(&mut self, offset: u64, len: u64, punch: bool) {
        let end = offset.saturating_add(len).min(self.newest.len);
        if offset >= end {
            return;
        }
        self.pull();
        let touched = pages_of(offset, end - offset);
        // Also those that read as 0 only because a failed sync dropped what was to be written.
        let with_data =
            self.newest.pages.range(touched.clone()).chain(self.durable.pages.range(touched.clone()));
        let pages: BTreeSet<u64> = with_data.map(|(&page, _)| page).collect();
        for page in pages {
            let start = (page * PAGE_BYTES).max(offset) - page * PAGE_BYTES;
            let stop = ((page + 1) * PAGE_BYTES).min(end) - page * PAGE_BYTES;
            let whole = start == 0 && (stop == PAGE_BYTES || (page * PAGE_BYTES + stop) == self.newest.len);
            let version = if whole {
                self.newest.put(page, None);
                None
            } else {
                let within = start as usize..stop as usize;
                let zeroes = &ZEROES[within.clone()];
                Some(self.newest.write_page(page, within, zeroes).clone())
            };
            self.remember(page, version);
        }
        if punch && !self.device {
            let last = if end == self.newest.len { touched.end } else { end / PAGE_BYTES };
            self.newest.backed.remove(offset.div_ceil(PAGE_BYTES)..last);
        } else {
            self.newest.backed.insert(touched.clone());
        }
        self.push(touched);
    }

    /// Makes everything durable; says what it wrote.
    pub(super) fn sync(&mut self) -> u64 {
        self.sync_pages(0..u64::MAX)
    }

    /// Makes the pages in `range` and the length durable; says what it wrote.
    pub(super) fn sync_pages(&mut self, range: Range<u64>) -> u64 {
        let stored = self.pull();
        if range.start == 0 && range.end == u64::MAX {
            for page in std::mem::take(&mut self.dirty).into_keys() {
                self.durable.put(page, self.newest.page(page).cloned());
            }
        } else {
            let pages: Vec<u64> = self.dirty.range(range).map(|(&page, _)| page).collect();
            for page in pages {
                self.write_back(page);
            }
        }
        self.sync_length();
        stored
    }

    /// A sync that did not end well: each page and the length got durable or not. With `forgotten` they all count as
    /// clean from now on, so that no later sync writes what was missed.
    pub(super) fn sync_partly(&mut self, rng: &mut Rng, forgotten: bool) {
        self.pull();
        let pages: Vec<u64> = self.dirty.keys().copied().collect();
        for page in pages {
            if rng.coin() {
                self.write_back(page);
            } else if forgotten {
                self.dirty.remove(&page);
                self.lost.insert(page);
            }
        }
        if rng.coin() {
            self.sync_length();
        } else if forgotten {
            self.lengths.clear();
        }
    }

    /// What the death of the process that has it open does: pages that a failed sync dropped may leave the cache.
    pub(super) fn evict(&mut self, rng: &mut Rng) {
        if self.lost.is_empty() {
            return;
        }
        self.pull();
        for page in std::mem::take(&mut self.lost) {
            if !self.dirty.contains_key(&page) && rng.coin() {
                let durable = self.durable.page(page).cloned();
                self.newest.put(page, durable);
                self.push(page..page + 1);
            } else {
                self.lost.insert(page);
            }
        }
    }

    /// Pages that a failed sync dropped read as they are on stable storage from now on.
    pub(super) fn forget_lost(&mut self) {
        self.pull();
        for page in std::mem::take(&mut self.lost) {
            if !self.dirty.contains_key(&page) {
                let durable = self.durable.page(page).cloned();
                self.newest.put(page, durable);
                self.push(page..page + 1);
            }
        }
    }

    /// What a power cut leaves. Nothing is dirty afterwards, and nothing is mapped.
    pub(super) fn cut(&mut self, loss: Loss, rng: &mut Rng) {
        self.pull();
        self.words = None;
        self.lost.clear();
        let len = self.surviving_length(loss, rng);
        if rng.coin() {
            self.durable.backed = self.newest.backed.clone();
        }
        for (page, versions) in std::mem::take(&mut self.dirty) {
            let old = self.durable.page(page).cloned();
            let kept = surviving_page(old, versions, loss, rng);
            self.durable.put(page, kept);
        }
        let Image { pages, backed, .. } = &mut self.durable;
        for &page in pages.keys() {
            backed.insert(page..page + 1);
        }
        self.durable.trim(len);
        self.newest = self.durable.clone();
    }

    /// The file as words in memory; the same memory for all that map it.
    pub(super) fn map(&mut self, process: u32) -> Arc<[AtomicU64]> {
        self.mapped_by = process;
        if let Some(words) = &self.words {
            return Arc::clone(words);
        }
        let count = (self.newest.len / 8) as usize;
        let words: Arc<[AtomicU64]> = (0..count).map(|_| AtomicU64::new(0)).collect();
        self.words = Some(Arc::clone(&words));
        self.push(0..u64::MAX);
        words
    }

    /// Takes the mapping away from whoever has it: what they store from now on goes nowhere.
    pub(super) fn detach(&mut self) {
        self.pull();
        self.words = None;
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.words.is_some()
    }

    /// Takes over what was stored in the mapping since the last call, as one more version of each page; returns a
    /// digest of it, 0 when there was nothing.
    pub(super) fn pull(&mut self) -> u64 {
        let Some(words) = self.words.clone() else { return 0 };
        let mut digest = 0u64;
        for (page, words) in (0u64..).zip(words.chunks(WORDS_PER_PAGE)) {
            let old: &[u8] = self.newest.page(page).map_or(&ZEROES, |page| &page[..]);
            let same = words
                .iter()
                .zip(old.chunks_exact(8))
                .all(|(word, old)| word.load(Ordering::Relaxed).to_le_bytes() == *old);
            if same {
                continue;
            }
            let mut bytes = ZEROES;
            for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
                slot.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
            }
            digest = digest.rotate_left(5) ^ xxh3_64(&bytes) ^ page;
            let version: Page = Arc::new(bytes);
            self.newest.put(page, Some(Arc::clone(&version)));
            self.remember(page, Some(version));
        }
        digest
    }

    /// Changes one bit of what is on the disk and of what is cached of it.
    pub(super) fn flip(&mut self, byte: u64, bit: u8) {
        self.pull();
        let (page, at) = (byte / PAGE_BYTES, (byte % PAGE_BYTES) as usize);
        for image in [&mut self.newest, &mut self.durable] {
            if byte < image.len {
                let old = image.page(page).map_or(0, |page| page[at]);
                image.write_page(page, at..at + 1, &[old ^ (1 << (bit % 8))]);
            }
        }
        if let Some(versions) = self.dirty.get_mut(&page) {
            versions.push(self.newest.page(page).cloned());
        }
        self.push(page..page + 1);
    }

    /// Ends the file at `len`, durably.
    pub(super) fn cut_to(&mut self, len: u64) {
        self.detach();
        let len = len.min(self.newest.len);
        self.set_len(len);
        self.durable.trim(len.min(self.durable.len));
        self.sync();
    }

    /// The same file with the same unsynced changes, sharing nothing that can change.
    pub(super) fn copy(&mut self) -> Self {
        self.pull();
        self.duplicate()
    }

    /// [`Inode::copy`] of a file that is not mapped.
    pub(super) fn duplicate(&self) -> Self {
        Self {
            device: self.device,
            mapped_by: 0,
            token: Arc::new(()),
            newest: self.newest.clone(),
            durable: self.durable.clone(),
            dirty: self.dirty.clone(),
            lengths: self.lengths.clone(),
            lost: self.lost.clone(),
            words: None,
        }
    }

    /// Count of pages with unsynced versions.
    pub(super) fn dirty_pages(&mut self) -> usize {
        self.pull();
        self.dirty.len()
    }

    fn write_back(&mut self, page: u64) {
        self.dirty.remove(&page);
        self.durable.put(page, self.newest.page(page).cloned());
    }

    fn sync_length(&mut self) {
        self.lengths.clear();
        self.durable.backed = self.newest.backed.clone();
        if self.durable.len != self.newest.len {
            self.durable.trim(self.newest.len);
            self.durable.backed = self.newest.backed.clone();
        }
    }

    fn remember(&mut self, page: u64, version: Option<Page>) {
        self.lost.remove(&page);
        let versions = self.dirty.entry(page).or_default();
        if versions.len() == MAX_VERSIONS {
            versions.remove(MAX_VERSIONS / 2);
        }
        versions.push(version);
    }

    fn remember_length(&mut self) {
        if self.lengths.len() == MAX_VERSIONS {
            self.lengths.remove(MAX_VERSIONS / 2);
        }
        self.lengths.push(self.newest.len);
    }

    /// Stores what the pages in `range` hold into the mapping.
    fn push(&self, range: Range<u64>) {
        let Some(words) = &self.words else { return };
        for (page, words) in (0u64..).zip(words.chunks(WORDS_PER_PAGE)) {
            if !range.contains(&page) {
                continue;
            }
            let bytes: &[u8] = self.newest.page(page).map_or(&ZEROES, |page| &page[..]);
            for (word, bytes) in words.iter().zip(bytes.chunks_exact(8)) {
                let mut le = [0; 8];
                le.copy_from_slice(bytes);
                word.store(u64::from_le_bytes(le), Ordering::Relaxed);
            }
        }
    }

    /// The length after a power cut: the durable one, a later one, or, as a file is written back page by page, one
    /// in between.
    fn surviving_length(&mut self, loss: Loss, rng: &mut Rng) -> u64 {
        let newest = self.newest.len;
        let lengths = std::mem::take(&mut self.lengths);
        if lengths.is_empty() {
            return self.durable.len;
        }
        let lowest = lengths.iter().copied().min().unwrap_or(newest).min(self.durable.len);
        let highest = lengths.iter().copied().max().unwrap_or(newest).max(self.durable.len);
        match loss {
            Loss::All => self.durable.len,
            Loss::None => newest,
            Loss::Mixed => match rng.below(4) {
                0 => self.durable.len,
                1 => newest,
                2 => *rng.pick(&lengths),
                _ => rng.between(lowest, highest),
            },
        }
    }
}

/// The version of a page that is on the disk after a power cut.
fn surviving_page(
    durable: Option<Page>,
    mut versions: Vec<Option<Page>>,
    loss: Loss,
    rng: &mut Rng,
) -> Option<Page> {
    let newest = versions.last().cloned().flatten();
    let fate = match loss {
        Loss::All => return durable,
        Loss::None => return newest,
        Loss::Mixed => rng.below(8),
    };
    match fate {
        0..=2 => durable,
        3 | 4 => newest,
        5 | 6 => versions.swap_remove(rng.index(versions.len())),
        _ => {
            versions.push(durable);
            let mut torn = ZEROES;
            for start in (0..torn.len()).step_by(SECTOR) {
                if let Some(version) = &versions[rng.index(versions.len())] {
                    torn[start..start + SECTOR].copy_from_slice(&version[start..start + SECTOR]);
                }
            }
            Some(Arc::new(torn))
        }
    }
}
