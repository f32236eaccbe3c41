//! Sparse content in pages that are shared until they are changed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::ranges::Ranges;

/// Bytes in a page, the unit that a page cache writes back.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Bytes in a sector, the unit that a disk writes whole or not at all.
pub(super) const SECTOR_BYTES: u64 = 512;
const PAGE: usize = PAGE_BYTES as usize;

/// One page.
pub(super) type Page = Arc<[u8; PAGE]>;

/// What a hole reads as.
pub(super) const ZEROES: [u8; PAGE] = [0; PAGE];

/// The content of a file. Bytes past `len` in the last page are 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pub(super) pages: BTreeMap<u64, Page>,
    pub(super) len: u64,
    /// Pages with disk space behind them; holds every page in `pages`.
    pub(super) backed: Ranges,
}

impl Image {
    /// Fills `buf` from `offset`; what lies past the end reads as 0.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) {
        for (page, within, part) in pieces(offset, buf.len()) {
            match self.pages.get(&page) {
                Some(bytes) => buf[part].copy_from_slice(&bytes[within]),
                None => buf[part].fill(0),
            }
        }
    }

    /// Page `page`, `None` for a hole.
    pub(super) fn page(&self, page: u64) -> Option<&Page> {
        self.pages.get(&page)
    }

    /// Makes `page` hold `content`, `None` for a hole.
    pub(super) fn put(&mut self, page: u64, content: Option<Page>) {
        match content {
            Some(bytes) => {
                self.backed.insert(page..page + 1);
                self.pages.insert(page, bytes);
            }
            None => {
                self.pages.remove(&page);
            }
        }
    }

    /// Makes bytes `within` of `page` those of `bytes`.
    pub(super) fn write_page(&mut self, page: u64, within: Range<usize>, bytes: &[u8]) -> &Page {
        self.backed.insert(page..page + 1);
        let slot = self.pages.entry(page).or_insert_with(|| Arc::new(ZEROES));
        Arc::make_mut(slot)[within].copy_from_slice(bytes);
        slot
    }

    /// Ends the image at `len`: what lies behind is gone and no longer takes space.
    pub(super) fn trim(&mut self, len: u64) {
        self.len = len;
        let end = len.div_ceil(PAGE_BYTES);
        self.pages.split_off(&end);
        self.backed.remove(end..u64::MAX);
        let tail = (len % PAGE_BYTES) as usize;
        if tail != 0
            && let Some(last) = self.pages.get_mut(&(end - 1))
            && last[tail..].iter().any(|&byte| byte != 0)
        {
            Arc::make_mut(last)[tail..].fill(0);
        }
    }

    /// The first run of pages with content at or after `offset`, in bytes.
    pub(super) fn next_data(&self, offset: u64) -> Option<(u64, u64)> {
        if offset >= self.len {
            return None;
        }
        let mut pages = self.pages.range(offset / PAGE_BYTES..).map(|(&page, _)| page);
        let first = pages.next()?;
        let run = pages.zip(first + 1..).take_while(|(page, expected)| page == expected).count() as u64;
        let start = (first * PAGE_BYTES).max(offset);
        Some((start, ((first + 1 + run) * PAGE_BYTES).min(self.len)))
    }
}

/// Cuts `len` bytes from `offset` at page boundaries: page, range within the page, range within the buffer.
pub(super) fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % PAGE_BYTES) as usize;
        let count = (PAGE - start).min(len - done);
        let piece = (at / PAGE_BYTES, start..start + count, done..done + count);
        done += count;
        Some(piece)
    })
}

/// The pages that `len` bytes from `offset` touch.
pub(super) fn pages_of(offset: u64, len: u64) -> Range<u64> {
    if len == 0 {
        return 0..0;
    }
    offset / PAGE_BYTES..offset.saturating_add(len).div_ceil(PAGE_BYTES)
}
