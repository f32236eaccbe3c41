//! Reading entries in order.

use std::collections::VecDeque;
use std::sync::Arc;

use afterimage_memory::copied;
use afterimage_protocol::Lsn;
use afterimage_protocol::frame::{self, Frame, FrameError};

use super::bytes::Window;
use super::entry::{ENTRY_HEADER_BYTES, EntryHeader, bond};
use super::error::JournalError;
use super::recent::RecentEntry;
use super::segment::{SEGMENT_HEADER_BYTES, Segment};

/// Entries of a journal in order: `(start, end, frame)` each, with every checksum verified but that of an encoded content. Sees
/// the journal as it was when the reader was made; holds one read-ahead buffer, and what of the last entries is in memory. Ends
/// after the first error.
pub struct Reader {
    /// Entries that need not be read from the disk, in order.
    recent: VecDeque<RecentEntry>,
    segments: VecDeque<Segment>,
    window: Option<Window>,
    next: Lsn,
    to: Lsn,
    failed: Option<JournalError>,
}

impl Reader {
    /// The entries of `segments` that begin at `from` or later and before `to`.
    pub(super) fn new(segments: &[Segment], from: Lsn, to: Lsn) -> Self {
        let end = segments.last().map_or(Lsn(0), |s| s.end);
        let to = to.min(end);
        let segments: VecDeque<_> =
            segments.iter().filter(|s| s.end > from && s.base() < to).cloned().collect();
        let failed = match segments.front() {
            Some(first) if first.base() > from => {
                Some(JournalError::NoEntry { lsn: from, start: first.base(), end })
            }
            _ => None,
        };
        Self { recent: VecDeque::new(), segments, window: None, next: from, to, failed }
    }

    /// A reader of nothing but an error.
    pub(super) fn failed(error: JournalError) -> Self {
        let (segments, next, to) = (VecDeque::new(), Lsn(0), Lsn(0));
        Self { recent: VecDeque::new(), segments, window: None, next, to, failed: Some(error) }
    }

    /// Takes these entries from memory once it has come to the first of them.
    pub(super) fn with_recent(self, recent: VecDeque<RecentEntry>) -> Self {
        Self { recent, ..self }
    }

    /// The lsn of the entry that comes next.
    pub fn position(&self) -> Lsn {
        self.next
    }

    fn read(&mut self) -> Result<Option<(Lsn, Lsn, Frame)>, JournalError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.next >= self.to {
            return Ok(None);
        }
        if let Some(entry) = self.recent.pop_front_if(|(start, ..)| *start == self.next) {
            self.next = entry.1;
            return Ok(Some(entry));
        }
        while self.segments.front().is_some_and(|s| s.end <= self.next) {
            self.segments.pop_front();
            self.window = None;
        }
        let Some(segment) = self.segments.front() else {
            return Ok(None);
        };
        let window = self.window.get_or_insert_with(|| {
            Window::new(Arc::clone(&segment.file), segment.offset(segment.end.min(self.to)))
        });
        let start = self.next;
        let file = || segment.name.file();
        let damaged = |source| JournalError::Damaged { file: file(), lsn: start, source };
        let (header, frame) = match read_entry(window, segment, start) {
            Ok(EntryRead::Whole(header, frame)) => (header, frame),
            Ok(EntryRead::BadFrame(source)) => return Err(damaged(Some(source))),
            Ok(EntryRead::None) => return Err(damaged(None)),
            Err(source) => return Err(JournalError::io("read", &file())(source)),
        };
        self.next = header.end();
        Ok(Some((start, self.next, frame)))
    }
}

impl Iterator for Reader {
    type Item = Result<(Lsn, Lsn, Frame), JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.read().transpose();
        if let Some(Err(_)) = item {
            self.to = Lsn(0);
        }
        item
    }
}

/// What is at a place in a segment.
pub(super) enum EntryRead {
    /// An entry.
    Whole(EntryHeader, Frame),
    /// An entry's header, but its frame is not what was written.
    BadFrame(FrameError),
    /// Nothing that can be made out.
    None,
}

/// Reads what `segment` has at `lsn` through `window`, whose limit is where its entries end.
pub(super) fn read_entry(window: &mut Window, segment: &Segment, lsn: Lsn) -> std::io::Result<EntryRead> {
    let Some(header) = read_header(window, segment, lsn)? else {
        return Ok(EntryRead::None);
    };
    let at = segment.offset(lsn) + ENTRY_HEADER_BYTES;
    let Some(bytes) = window.get(at, u64::from(header.frame_bytes))? else {
        return Ok(EntryRead::BadFrame(FrameError::Short));
    };
    let Some((frame_header, payload)) = bytes.split_first_chunk() else {
        return Ok(EntryRead::BadFrame(FrameError::Short));
    };
    let mut frame_header = *frame_header;
    if segment.binds {
        frame::bind(&mut frame_header, bond(segment.name.id, segment.salt, lsn));
    }
    // A copy, because a slice of the read-ahead buffer would keep all of that in memory; it goes to the volume as it is.
    let frame = frame::Header::parse(&frame_header).and_then(|h| h.open(copied(payload)));
    Ok(match frame {
        Ok(frame) => EntryRead::Whole(header, frame),
        Err(e) => EntryRead::BadFrame(e),
    })
}

/// The header of the entry that `segment` has at `lsn`.
pub(super) fn read_header(
    window: &mut Window,
    segment: &Segment,
    lsn: Lsn,
) -> std::io::Result<Option<EntryHeader>> {
    debug_assert!(segment.offset(lsn) >= SEGMENT_HEADER_BYTES);
    let bytes = window.get(segment.offset(lsn), ENTRY_HEADER_BYTES)?;
    Ok(bytes.and_then(|b| EntryHeader::decode(b, segment.name.id, segment.salt, lsn)))
}
