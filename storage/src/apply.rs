//! Redo: bringing what the journal holds into the base volumes.
//!
//! Entries are taken in order into a window of bounded size in which only the last version of every byte is kept; a
//! full window is written in ascending order, neighbours joined. Applying a stretch of the journal again gives the
//! same bytes, so a crash in the middle is made good by starting over from the same lsn.
//!
//! Owns the coalescing. Leaves to the caller which entries may be applied and are part of the image (RULES.md 16),
//! the order among records and blocks of one epoch (RULES.md 10: an entry that lost must be skipped), and the syncs.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Content, Frame, FrameError, Record};
use afterimage_protocol::{ByteRange, Lsn, VolumeIndex};
use bytes::Bytes;

use crate::io::File;
use crate::journal::{JournalError, Reader};
use crate::scatter::{Failed, Scatter, Token};

/// A window of this many raw bytes is enough for the hot blocks of a busy volume to be written once, and small
/// beside the memory of any host.
pub const DEFAULT_BUDGET_BYTES: u64 = 32 << 20;

/// What a piece takes beside its bytes, about, so that many tiny writes are bounded too.
const PIECE_OVERHEAD_BYTES: u64 = 128;
/// Bytes and buffers of one write at most; what Linux takes at once.
const MAX_WRITE_BYTES: u64 = 8 << 20;
const MAX_VECTORS: usize = 1024;

/// What an apply did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplyStats {
    /// The lsn after the last entry that was taken.
    pub end: Lsn,
    /// Records and blocks that were taken.
    pub taken: u64,
    /// Records and blocks that the caller skipped.
    pub skipped: u64,
    /// Raw bytes of the data that was taken.
    pub taken_bytes: u64,
    /// Bytes of data that were written.
    pub written_bytes: u64,
    /// Bytes that were zeroed.
    pub zeroed_bytes: u64,
    /// Calls to write or zero.
    pub operations: u64,
}

/// Why an apply stopped. What was written until then is a part of the redo, to be done again.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The journal cannot be read.
    #[error("cannot read the journal")]
    Journal(#[from] JournalError),
    /// An entry's content is not what was taken in at the source. Nothing of its window was written.
    #[error("the content of journal entry {lsn} (volume {volume}, offset {offset}) is damaged")]
    Content {
        /// The entry.
        lsn: Lsn,
        /// The volume it writes.
        volume: VolumeIndex,
        /// The first byte it writes.
        offset: u64,
        /// What is wrong.
        source: FrameError,
    },
    /// An entry writes where no volume is. Nothing of its window was written.
    #[error(
        "journal entry {lsn} writes {length} bytes at offset {offset} of volume {volume}, which has {size}"
    )]
    Outside {
        /// The entry.
        lsn: Lsn,
        /// The volume it writes.
        volume: VolumeIndex,
        /// The first byte it writes.
        offset: u64,
        /// Count of bytes.
        length: u64,
        /// Size of the volume; 0 if there is none with this index.
        size: u64,
    },
    /// A volume cannot be written.
    #[error("cannot {op} volume {volume} at offset {offset} (journal entry {lsn})")]
    Volume {
        /// The operation, as a verb.
        op: &'static str,
        /// The first of the entries that were being written.
        lsn: Lsn,
        /// The volume.
        volume: VolumeIndex,
        /// Where the write began.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

impl ApplyError {
    /// Whether the journal itself is damaged: it has to be opened again, which tells what was lost.
    pub fn is_damage(&self) -> bool {
        matches!(self, ApplyError::Journal(JournalError::Damaged { .. }) | ApplyError::Content { .. })
    }
}

/// Applies the records and blocks that `entries` yields to `volumes`, but for those whose lsn `skip` names. Holds at
/// most about twice `budget_bytes` of data. Every checksum of a window is verified before its first byte is written.
/// Nothing is durable before a [`File::sync`] of each volume by the caller.
pub fn apply(
    entries: Reader,
    skip: &dyn Fn(Lsn) -> bool,
    volumes: &[Arc<dyn File>],
    scatter: &mut Scatter,
    budget_bytes: u64,
) -> Result<ApplyStats, ApplyError> {
    let mut out = Out { volumes, scatter, stats: ApplyStats::default() };
    let applied = apply_to(entries, skip, &mut out, budget_bytes);
    // In any case: nothing may be on its way when it is done again.
    let finished = out.finish();
    applied.and(finished).map(|()| out.stats)
}

/// Where windows are written.
struct Out<'a> {
    volumes: &'a [Arc<dyn File>],
    scatter: &'a mut Scatter,
    stats: ApplyStats,
}

impl Out<'_> {
    fn finish(&mut self) -> Result<(), ApplyError> {
        self.scatter.finish(self.volumes).map_err(ApplyError::from)
    }
}

impl From<Failed> for ApplyError {
    fn from(failed: Failed) -> Self {
        let Failed { token: Token { lsn, volume }, offset, source } = failed;
        ApplyError::Volume { op: "write", lsn, volume, offset, source }
    }
}

fn apply_to(
    entries: Reader,
    skip: &dyn Fn(Lsn) -> bool,
    out: &mut Out<'_>,
    budget_bytes: u64,
) -> Result<(), ApplyError> {
    out.stats.end = entries.position();
    let mut windows = open_windows(out.volumes)?;
    for entry in entries {
        let (lsn, end, frame) = entry?;
        if let Some((range, content)) = written(&frame) {
            if skip(lsn) {
                out.stats.skipped += 1;
            } else {
                let piece = verified(lsn, &range, content, &windows)?;
                out.stats.taken += 1;
                out.stats.taken_bytes += piece.memory_bytes();
                let held: u64 = windows.iter().map(|w| w.held_bytes).sum();
                if held > 0 && held + piece.memory_bytes() + PIECE_OVERHEAD_BYTES > budget_bytes {
                    write_out(&mut windows, out)?;
                }
                windows[range.volume.0 as usize].put(range.offset, piece);
            }
        }
        out.stats.end = end;
    }
    write_out(&mut windows, out)
}

fn written(frame: &Frame) -> Option<(ByteRange, &Content)> {
    match frame {
        Frame::Record(Record { range, content, .. }) | Frame::Block(Block { range, content, .. }) => {
            Some((*range, content))
        }
        _ => None,
    }
}

fn open_windows(volumes: &[Arc<dyn File>]) -> Result<Vec<Window>, ApplyError> {
    let window = |(index, volume): (usize, &Arc<dyn File>)| {
        let size = volume.len().map_err(|source| ApplyError::Volume {
            op: "measure",
            lsn: Lsn(0),
            volume: VolumeIndex(index as u32),
            offset: 0,
            source,
        })?;
        Ok(Window { size, held_bytes: 0, pieces: BTreeMap::new() })
    };
    volumes.iter().enumerate().map(window).collect()
}

/// The piece that an entry writes, if it may be written.
fn verified(lsn: Lsn, range: &ByteRange, content: &Content, windows: &[Window]) -> Result<Piece, ApplyError> {
    let ByteRange { volume, offset, length } = *range;
    let size = windows.get(volume.0 as usize).map_or(0, |w| w.size);
    if length == 0 || range.end() > size {
        return Err(ApplyError::Outside { lsn, volume, offset, length, size });
    }
    let damaged = |source| ApplyError::Content { lsn, volume, offset, source };
    let fill = match content {
        Content::Zeroes { punch } => Fill::Zeroes { punch: *punch },
        Content::Data(payload) => {
            let raw = codec::decode_opened(payload).map_err(damaged)?;
            if raw.len() as u64 != length {
                return Err(damaged(FrameError::Content));
            }
            Fill::Data { held: raw.len() as u64, bytes: raw }
        }
    };
    Ok(Piece { lsn, length, fill })
}

/// The last version of what was written to one volume.
struct Window {
    size: u64,
    held_bytes: u64,
    /// By offset; no two overlap.
    pieces: BTreeMap<u64, Piece>,
}

#[derive(Clone)]
struct Piece {
    lsn: Lsn,
    length: u64,
    fill: Fill,
}

#[derive(Clone)]
enum Fill {
    /// `bytes`, a part of an allocation of `held` bytes.
    Data {
        bytes: Bytes,
        held: u64,
    },
    Zeroes {
        punch: bool,
    },
}

impl Piece {
    fn memory_bytes(&self) -> u64 {
        match &self.fill {
            Fill::Data { bytes, .. } => bytes.len() as u64,
            Fill::Zeroes { .. } => 0,
        }
    }

    /// The part of this piece from `from` to `to`, counted from its start. A small rest is copied, so that it does
    /// not keep a large allocation in memory.
    fn part(&self, from: u64, to: u64) -> Self {
        let fill = match &self.fill {
            Fill::Zeroes { punch } => Fill::Zeroes { punch: *punch },
            Fill::Data { bytes, held } => {
                let part = bytes.slice(from as usize..to as usize);
                if (to - from) * 2 < *held {
                    Fill::Data { bytes: Bytes::copy_from_slice(&part), held: to - from }
                } else {
                    Fill::Data { bytes: part, held: *held }
                }
            }
        };
        Self { lsn: self.lsn, length: to - from, fill }
    }
}

impl Window {
    /// Puts `piece` at `offset`, over all that is there.
    fn put(&mut self, offset: u64, piece: Piece) {
        let end = offset + piece.length;
        while let Some((&at, old)) = self.pieces.range(..end).next_back() {
            let until = at + old.length;
            if until <= offset {
                break;
            }
            let front = (at < offset).then(|| old.part(0, offset - at));
            let back = (until > end).then(|| old.part(end - at, old.length));
            self.remove(at);
            if let Some(back) = back {
                self.insert(end, back);
            }
            if let Some(front) = front {
                self.insert(at, front);
            }
        }
        self.insert(offset, piece);
    }

    fn insert(&mut self, offset: u64, piece: Piece) {
        self.held_bytes += piece.memory_bytes() + PIECE_OVERHEAD_BYTES;
        self.pieces.insert(offset, piece);
    }

    fn remove(&mut self, offset: u64) {
        if let Some(piece) = self.pieces.remove(&offset) {
            self.held_bytes -= piece.memory_bytes() + PIECE_OVERHEAD_BYTES;
        }
    }
}

/// Writes all windows and empties them. On return nothing is under way, since the next ones may be of the same blocks.
fn write_out(windows: &mut [Window], out: &mut Out<'_>) -> Result<(), ApplyError> {
    debug_assert!(out.scatter.is_idle());
    for (index, window) in windows.iter_mut().enumerate() {
        window.held_bytes = 0;
        let mut run = Run { volume: VolumeIndex(index as u32), ..Run::default() };
        for (offset, piece) in std::mem::take(&mut window.pieces) {
            if !run.takes(offset, &piece) {
                run.write(out)?;
                run = Run { volume: run.volume, offset, ..Run::default() };
            }
            run.length += piece.length;
            run.pieces.push(piece);
        }
        run.write(out)?;
    }
    out.finish()
}

/// Pieces side by side that are written as one.
#[derive(Default)]
struct Run {
    volume: VolumeIndex,
    offset: u64,
    length: u64,
    pieces: Vec<Piece>,
}

impl Run {
    fn takes(&self, offset: u64, piece: &Piece) -> bool {
        let same = match (self.pieces.last().map(|p| &p.fill), &piece.fill) {
            (None, _) => false,
            (Some(Fill::Data { .. }), Fill::Data { .. }) => {
                self.pieces.len() < MAX_VECTORS && self.length + piece.length <= MAX_WRITE_BYTES
            }
            (Some(Fill::Zeroes { punch: a }), Fill::Zeroes { punch: b }) => a == b,
            _ => false,
        };
        same && offset == self.offset + self.length
    }

    fn write(&self, out: &mut Out<'_>) -> Result<(), ApplyError> {
        let volume = self.volume;
        let (Some(first), Some(file)) = (self.pieces.first(), out.volumes.get(volume.0 as usize)) else {
            return Ok(());
        };
        let failed =
            |op| move |source| ApplyError::Volume { op, lsn: first.lsn, volume, offset: self.offset, source };
        out.stats.operations += 1;
        if let Fill::Zeroes { punch } = first.fill {
            out.stats.zeroed_bytes += self.length;
            out.finish()?;
            debug_assert!(out.scatter.is_idle());
            return file.zero(self.offset, self.length, punch).map_err(failed("zero"));
        }
        let data = |piece| match piece {
            &Piece { fill: Fill::Data { ref bytes, .. }, .. } => Some(bytes),
            _ => None,
        };
        let parts: Vec<&Bytes> = self.pieces.iter().filter_map(data).collect();
        out.stats.written_bytes += self.length;
        if out.scatter.take(out.volumes, Token { lsn: first.lsn, volume }, self.offset, &parts)? {
            return Ok(());
        }
        // What goes through the page cache and what goes past it are not under way together.
        out.finish()?;
        debug_assert!(out.scatter.is_idle());
        let slices: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        file.write_vectored_at(&slices, self.offset).map_err(failed("write"))
    }
}
