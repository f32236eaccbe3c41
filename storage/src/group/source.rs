//! What a source has on its disk: bitmaps, the hot-extent log, and the reads of its catch-up.

use afterimage_events::{Event, event};
use std::io;

use afterimage_protocol::bitmap::Bitmap;
use afterimage_protocol::codec::{content_checksum, decode};
use afterimage_protocol::frame::{Content, HASH_BYTES};
use afterimage_protocol::source::{ReadOutcome, Verification};
use afterimage_protocol::state::GroupState;
use afterimage_protocol::*;
use bytes::Bytes;

use super::growth::{BitmapSyncs, Growing};
use super::{GroupError, GroupStore, VolumeFile, settle};
use crate::bitmap::{BitmapError, BitmapFile, adopt_grown, forget_prepared, open_bitmap};
use crate::hot_log::{HotLog, HotLogError};
use crate::io::{Dir, Open};
use crate::sealed;

/// Bytes that are looked at together.
const ZERO_PIECE_BYTES: usize = 256;
const HOT_LOG: &str = "hot-extents";
const VERIFICATION_NAME: &str = "verification";
/// A report with the most ranges fits twice.
const VERIFICATION: sealed::Kind = sealed::Kind { magic: *b"AIVR", version: 1, max_payload: 1 << 20 };

/// What was found when a source's files were opened: what [`afterimage_protocol::source::Found`] wants.
pub struct SourceFiles {
    /// The bitmap of each volume.
    pub bitmaps: Vec<Bitmap>,
    /// The hot extents; `None` when the log or a bitmap was missing or damaged.
    pub hot: Option<Vec<Extent>>,
    /// `false`: the volumes could not be synced. What was written to them before may be lost.
    pub settled: bool,
}

/// The files of a source.
pub struct SourceStore {
    pub(super) group: GroupStore,
    hot_log: HotLog,
    pub(super) bitmaps: BitmapSyncs,
    pub(super) growing: Vec<Growing>,
}

impl SourceStore {
    /// Opens, or makes, the files of a source. A damaged file is moved to `NAME.damaged` after it is noted durably that
    /// every block counts as dirty; `state` is changed with it.
    ///
    /// Where the hot-extent log does not say what of the `volumes` may not be durable yet, they are on stable storage, and
    /// read as they are there, on return (see [`settle`]), or it is noted durably that every block counts as dirty.
    pub fn open(
        mut group: GroupStore,
        state: &mut GroupState,
        boot_id: [u8; 16],
        hot_capacity: usize,
        volumes: &[VolumeFile],
    ) -> Result<(Self, SourceFiles), GroupError> {
        // What a promoted host has of an earlier time as a primary says nothing about this one.
        let other = state.bitmaps_of != state.generation();
        let used = state.generation() != Generation::NONE && state.incarnation != Incarnation(0) && !other;
        let same_boot = state.boot_id == boot_id;
        let mut whole = true;
        let dir = group.dir.clone();
        let (mut bitmaps, mut syncs) = (Vec::new(), Vec::new());
        for (index, volume) in state.volumes.clone().iter().enumerate() {
            let name = bitmap_name(index);
            let blocks = blocks_in(volume.size_bytes);
            if other {
                forget(&*dir, &name)?;
                forget_prepared(&*dir, &name)?;
            } else {
                adopt_grown(&*dir, &name, volume.size_bytes)?;
            }
            let file = match open_bitmap(&*dir, &name, blocks, same_boot) {
                Ok(file) => file,
                Err(error @ (BitmapError::Io { .. } | BitmapError::Version { .. })) => {
                    return Err(error.into());
                }
                Err(error) => {
                    event!(Event::TrackingLost, %error, "a bitmap is damaged: every block counts as dirty");
                    distrust(&mut group, state)?;
                    quarantine(&*dir, &name)?;
                    open_bitmap(&*dir, &name, blocks, same_boot)?
                }
            };
            let BitmapFile { bitmap, sync, created } = file;
            whole &= !created;
            bitmaps.push(bitmap);
            syncs.push(sync);
        }
        if other {
            forget(&*dir, HOT_LOG)?;
        }
        let (hot_log, hot) = match HotLog::open(&*dir, HOT_LOG, hot_capacity) {
            Ok(found) => found,
            Err(error @ HotLogError::Damaged { .. }) => {
                event!(Event::TrackingLost, %error, "the hot-extent log is damaged: every block counts as dirty");
                distrust(&mut group, state)?;
                whole = false;
                (HotLog::replace(&*dir, HOT_LOG, hot_capacity)?, Vec::new())
            }
            Err(error) => return Err(error.into()),
        };
        whole &= !hot_log.created();
        if used && !whole {
            distrust(&mut group, state)?;
        }
        // Also every bit of a volume: a process may have failed to flush it, and not have come to note that.
        let all_dirty = bitmaps.iter().any(|b| b.blocks() > 0 && b.dirty_blocks() == b.blocks());
        let mut settled = true;
        if !used || state.compare_all || all_dirty {
            settled = report(settle(volumes), "the volumes");
            if used && !settled {
                distrust(&mut group, state)?;
            }
        }
        let hot = (whole || !used).then_some(hot);
        let store = Self { group, hot_log, bitmaps: BitmapSyncs::new(syncs), growing: Vec::new() };
        Ok((store, SourceFiles { bitmaps, hot, settled }))
    }

    /// Writes the state; whether it is durable.
    pub fn persist_state(&mut self, state: &GroupState) -> bool {
        report(self.group.write(state), "the state")
    }

    /// Writes the state; durable in both slots on return.
    pub fn write_state(&mut self, state: &GroupState) -> Result<(), GroupError> {
        self.group.write(state)
    }

    /// Writes the set of hot extents; whether it is durable.
    pub fn persist_hot(&mut self, extents: &[Extent]) -> bool {
        report(self.hot_log.write(extents), "the hot-extent log")
    }

    /// Stores the report of a verification in place of the last one; whether it is durable.
    pub fn note_verification(&mut self, verification: &Verification) -> bool {
        let sealed = VERIFICATION.seal(0, &verification.encode());
        let stored = sealed::create(&*self.group.dir, VERIFICATION_NAME, sealed.len() as u64, &[(0, sealed)]);
        report(stored, "the report of a verification")
    }

    /// The last report of a verification; `None` if there is none that can be read.
    pub fn verification(&self) -> Option<Verification> {
        let dir = &*self.group.dir;
        if !dir.exists(VERIFICATION_NAME).ok()? {
            return None;
        }
        let file = dir.open(VERIFICATION_NAME, Open::Existing).ok()?;
        let report = match sealed::read(&VERIFICATION, &*file, 0) {
            sealed::Found::Valid { payload, .. } => Verification::decode(&payload),
            _ => None,
        };
        if report.is_none() {
            tracing::warn!("the report of the last verification cannot be read");
        }
        report
    }

    /// A handle that makes words of the bitmaps durable; may be used from any thread.
    pub fn bitmap_syncs(&self) -> BitmapSyncs {
        self.bitmaps.clone()
    }

    /// Makes words of the bitmaps durable; whether they are.
    pub fn sync_bitmap(&self, words: &[(VolumeIndex, std::ops::Range<usize>)]) -> bool {
        words.iter().all(|(volume, range)| report(self.bitmaps.sync(*volume, range.clone()), "a bitmap"))
    }
}

pub(super) fn report<T, E: std::fmt::Display>(result: Result<T, E>, what: &str) -> bool {
    if let Err(error) = &result {
        event!(Event::StateFailed, %error, "{what} of a group cannot be made durable");
    }
    result.is_ok()
}

pub(super) fn bitmap_name(index: usize) -> String {
    format!("bitmap-{index}")
}

/// Notes durably that the bits cannot be believed.
fn distrust(group: &mut GroupStore, state: &mut GroupState) -> Result<(), GroupError> {
    if !state.compare_all {
        state.compare_all = true;
        group.write(state)?;
    }
    Ok(())
}

fn forget(dir: &dyn Dir, name: &str) -> Result<(), GroupError> {
    let gone = |source| GroupError::Quarantine { name: name.to_owned(), source };
    if dir.exists(name).map_err(gone)? {
        dir.remove(name).and_then(|()| dir.sync()).map_err(gone)?;
    }
    Ok(())
}

fn quarantine(dir: &dyn Dir, name: &str) -> Result<(), GroupError> {
    let moved = dir.rename(name, &format!("{name}.damaged")).and_then(|()| dir.sync());
    moved.map_err(|source| GroupError::Quarantine { name: name.to_owned(), source })
}

/// Writes `content`, which is verified first, to `range`. Not durable before a sync.
pub fn write_content(volume: &VolumeFile, range: ByteRange, content: &Content) -> io::Result<()> {
    match content {
        Content::Zeroes { punch } => volume.zero(range.offset, range.length, *punch),
        Content::Data(payload) if payload.codec == frame::Codec::Raw => {
            volume.write_at(&payload.encoded, range.offset)
        }
        Content::Data(payload) => {
            let raw = decode(payload).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            volume.write_at(&raw, range.offset)
        }
    }
}

/// The content of a write with these bytes, as it is taken in.
pub fn content_of(bytes: Bytes) -> Content {
    let checksum = content_checksum(&bytes);
    let raw_bytes = bytes.len() as u32;
    Content::Data(frame::Payload { codec: frame::Codec::Raw, raw_bytes, checksum, encoded: bytes })
}

/// Reads the start of `blocks` for the catch-up: as many zeroes as there are, or up to [`MAX_PAYLOAD_BYTES`] of data (or,
/// with `hash`, their hashes). Holes are found without being read.
pub fn read_run(volume: &VolumeFile, size_bytes: u64, blocks: BlockRange, hash: bool) -> ReadOutcome {
    match try_read_run(volume, size_bytes, blocks, hash) {
        Ok(outcome) => outcome,
        Err(error) => {
            event!(
                Event::IoFailed,
                %error,
                volume = blocks.volume.0,
                block = blocks.first,
                count = blocks.count,
                "cannot read for the catch-up"
            );
            ReadOutcome::Failed
        }
    }
}

fn try_read_run(
    volume: &VolumeFile,
    size_bytes: u64,
    blocks: BlockRange,
    hash: bool,
) -> io::Result<ReadOutcome> {
    let range = blocks.bytes(size_bytes);
    let data = volume.next_data(range.offset)?.map_or(range.end(), |(start, _)| start.max(range.offset));
    let hole_blocks = (data.min(range.end()) - range.offset) / BLOCK_BYTES;
    if data >= range.end() || hole_blocks > 0 {
        let all = data >= range.end();
        return Ok(ReadOutcome::Zeroes { blocks: if all { blocks.count } else { hole_blocks } });
    }
    let mut bytes = volume.read_vec(range.length.min(MAX_PAYLOAD_BYTES) as usize, range.offset)?;
    let mut chunks = bytes.chunks(BLOCK_BYTES as usize);
    let zeroes = chunks.clone().take_while(|block| is_zero(block)).count();
    if zeroes > 0 {
        return Ok(ReadOutcome::Zeroes { blocks: zeroes as u64 });
    }
    let until_zero = chunks.position(is_zero).map_or(bytes.len(), |n| n * BLOCK_BYTES as usize);
    bytes.truncate(until_zero);
    if hash {
        let hashes = hashes_of(&bytes);
        return Ok(ReadOutcome::Hashes { hashes: hashes.into(), blocks: blocks_in(bytes.len() as u64) });
    }
    let checksum = content_checksum(&bytes);
    Ok(ReadOutcome::Data(bytes.into(), checksum))
}

/// Whether all of `bytes` are 0.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Piece by piece: what is not zero mostly says so at once, and a whole piece takes a few vector instructions.
    bytes.chunks(ZERO_PIECE_BYTES).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The truncated BLAKE3 hash of each block of `bytes`.
pub(crate) fn hashes_of(bytes: &[u8]) -> Vec<u8> {
    let mut hashes = Vec::with_capacity(bytes.len() / BLOCK_BYTES as usize * HASH_BYTES);
    for block in bytes.chunks(BLOCK_BYTES as usize) {
        hashes.extend_from_slice(&blake3::hash(block).as_bytes()[..HASH_BYTES]);
    }
    hashes
}
