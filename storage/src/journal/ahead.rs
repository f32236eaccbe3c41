//! Zeroes written in front of small appends, for those who wait for each of them to be durable.
//!
//! A segment is allocated when it is made, and yet the first write to a place in it changes what the file system notes of the
//! file, which a sync then has to write too: it takes longer than one of a place that was written before. So where
//! syncs are small and many, the next piece of the segment is written with zeroes at once, and one sync in hundreds pays for
//! all. What is written so is what is read there anyway.

use super::SegmentId;
use super::segment::Segment;

/// Bytes that are written ahead at a time: some hundred small entries.
const PIECE_BYTES: u64 = 1 << 20;
/// A sync of no more than this is small, in bytes: of a larger one the writes themselves are what takes long.
const SMALL_SYNC_BYTES: u64 = 64 << 10;
/// So many small syncs in a row make it worthwhile.
const SMALL_SYNCS: u32 = 4;

/// Written by one call, small enough to go through the page cache: the entries that follow are parts of these pages, and none
/// has to be read for them.
static ZEROES: [u8; 32 << 10] = [0; 32 << 10];

/// How far a segment is written.
#[derive(Default)]
pub(super) struct Ahead {
    small_syncs: u32,
    segment: Option<SegmentId>,
    /// Offset in the file up to which it is known to be written.
    written_to: u64,
}

impl Ahead {
    /// `bytes` are about to be written behind the end of `segment`.
    pub fn writes(&mut self, segment: &Segment, bytes: u64) {
        let at = segment.offset(segment.end);
        if self.segment != Some(segment.name.id) {
            (self.segment, self.written_to) = (Some(segment.name.id), at);
        }
        self.written_to = self.written_to.max(at.saturating_add(bytes));
    }

    /// A sync of the last `bytes` of `segment` begins: what comes until the next one gets room. Not when it comes, since it is
    /// waited for. Best effort: a disk that fails here will fail where it is noticed.
    pub fn syncs(&mut self, segment: &Segment, bytes: u64) {
        self.small_syncs = if bytes <= SMALL_SYNC_BYTES { self.small_syncs.saturating_add(1) } else { 0 };
        let at = segment.offset(segment.end);
        if self.small_syncs < SMALL_SYNCS || self.segment != Some(segment.name.id) {
            return;
        }
        let from = self.written_to.max(at);
        if from >= at.saturating_add(SMALL_SYNC_BYTES).min(segment.file_bytes) {
            return;
        }
        let to = from.saturating_add(PIECE_BYTES).min(segment.file_bytes);
        for start in (from..to).step_by(ZEROES.len()) {
            let count = (to - start).min(ZEROES.len() as u64) as usize;
            let _ = segment.file.write_at(&ZEROES[..count], start);
        }
        self.written_to = to;
    }
}
