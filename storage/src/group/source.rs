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

/// Reads the start of `blocks` for the catch-up: a hole, which is found without being read, or up to [`MAX_PAYLOAD_BYTES`], in
/// pieces of data and of zeroes that follow each other. With `hash` it is one piece: the zeroes that it begins with, or the
/// hashes of all that was read.
pub fn read_run(volume: &VolumeFile, size_bytes: u64, blocks: BlockRange, hash: bool) -> Vec<ReadOutcome> {
    match try_read_run(volume, size_bytes, blocks, hash) {
        Ok(outcomes) => outcomes,
        Err(error) => {
            event!(
                Event::IoFailed,
                %error,
                volume = blocks.volume.0,
                block = blocks.first,
                count = blocks.count,
                "cannot read for the catch-up"
            );
            vec![ReadOutcome::Failed]
        }
    }
}

fn try_read_run(
    volume: &VolumeFile,
    size_bytes: u64,
    blocks: BlockRange,
    hash: bool,
) -> io::Result<Vec<ReadOutcome>> {
    let range = blocks.bytes(size_bytes);
    let data = volume.next_data(range.offset)?.map_or(range.end(), |(start, _)| start.max(range.offset));
    let hole_blocks = (data.min(range.end()) - range.offset) / BLOCK_BYTES;
    if data >= range.end() || hole_blocks > 0 {
        let all = data >= range.end();
        return Ok(vec![ReadOutcome::Zeroes { blocks: if all { blocks.count } else { hole_blocks } }]);
    }
    let bytes = volume.read_bytes(range.length.min(MAX_PAYLOAD_BYTES) as usize, range.offset)?;
    if !hash {
        return Ok(pieces(&bytes));
    }
    let zeroes = bytes.chunks(BLOCK_BYTES as usize).take_while(|block| is_zero(block)).count() as u64;
    Ok(vec![if zeroes > 0 {
        ReadOutcome::Zeroes { blocks: zeroes }
    } else {
        ReadOutcome::Hashes { hashes: hashes_of(&bytes).into(), blocks: blocks_in(bytes.len() as u64) }
    }])
}

/// What was read, in pieces of data and of zero blocks.
fn pieces(bytes: &Bytes) -> Vec<ReadOutcome> {
    let zero: Vec<bool> = bytes.chunks(BLOCK_BYTES as usize).map(is_zero).collect();
    // What is little does not keep the memory of all.
    let is_little = zero.iter().filter(|zero| **zero).count() > zero.len() / 2;
    let mut at = 0;
    let piece = |blocks: &[bool]| {
        let length = (blocks.len() * BLOCK_BYTES as usize).min(bytes.len() - at);
        let range = at..at + length;
        at = range.end;
        if blocks.first() == Some(&true) {
            return ReadOutcome::Zeroes { blocks: blocks.len() as u64 };
        }
        let data = if is_little { Bytes::copy_from_slice(&bytes[range]) } else { bytes.slice(range) };
        let checksum = content_checksum(&data);
        ReadOutcome::Data(data, checksum)
    };
    zero.chunk_by(|one, next| one == next).map(piece).collect()
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

#[cfg(test)]
mod tests {
    use std::fs::File as StdFile;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;
    use crate::disk::RealFile;

    const BLOCK: usize = BLOCK_BYTES as usize;
    const MIB: usize = 1 << 20;

    /// A volume of these bytes, once by way of the page cache and once past it, if the file system can do that.
    fn volumes(bytes: &[u8]) -> (tempfile::NamedTempFile, [VolumeFile; 2]) {
        let temp = tempfile::NamedTempFile::new().unwrap();
        temp.as_file().set_len(bytes.len() as u64).unwrap();
        for (block, at) in bytes.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            if !is_zero(block) {
                temp.as_file().write_all_at(block, at).unwrap();
            }
        }
        let open = || StdFile::options().read(true).write(true).open(temp.path()).unwrap();
        let cached = RealFile::new(open()).unwrap();
        let mut direct = RealFile::new(open()).unwrap();
        direct.open_direct();
        (temp, [Arc::new(cached), Arc::new(direct)])
    }

    fn read(volume: &VolumeFile, size: usize, first: u64, count: u64, hash: bool) -> Vec<ReadOutcome> {
        read_run(volume, size as u64, BlockRange { volume: VolumeIndex(0), first, count }, hash)
    }

    /// What was found, put together, and the lengths of its pieces in blocks, negative for zeroes.
    fn joined(found: &[ReadOutcome]) -> (Vec<u8>, Vec<i64>) {
        let (mut bytes, mut lengths) = (Vec::new(), Vec::new());
        for outcome in found {
            match outcome {
                ReadOutcome::Data(data, checksum) => {
                    assert_eq!(*checksum, content_checksum(data));
                    bytes.extend_from_slice(data);
                    lengths.push(blocks_in(data.len() as u64) as i64);
                }
                ReadOutcome::Zeroes { blocks } => {
                    bytes.resize(bytes.len() + *blocks as usize * BLOCK, 0);
                    lengths.push(-(*blocks as i64));
                }
                other => panic!("{other:?}"),
            }
        }
        (bytes, lengths)
    }

    /// 2 MiB and a part of a block: data but for some blocks, one of which is zero in a part only.
    fn mixed() -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..2 * MIB + 512).map(|at| (at % 251) as u8 | 1).collect();
        bytes[3 * BLOCK..5 * BLOCK].fill(0);
        bytes[9 * BLOCK..10 * BLOCK - 1].fill(0);
        bytes[255 * BLOCK..258 * BLOCK].fill(0);
        bytes[400 * BLOCK..401 * BLOCK].fill(0);
        bytes
    }

    #[test]
    fn data_and_zeroes_of_a_read_are_found_at_once() {
        let bytes = mixed();
        let (_temp, volumes) = volumes(&bytes);
        for volume in &volumes {
            // A run that began with many zeroes may be longer than what is read.
            for count in [256, 1000] {
                let (found, lengths) = joined(&read(volume, bytes.len(), 0, count, false));
                assert_eq!(lengths, [3, -2, 250, -1]);
                assert!(found == bytes[..MIB]);
            }
            let (found, lengths) = joined(&read(volume, bytes.len(), 257, 256, false));
            assert_eq!(lengths, [-1]);
            assert_eq!(found.len(), BLOCK);
            let (found, lengths) = joined(&read(volume, bytes.len(), 258, 255, false));
            assert_eq!(lengths, [142, -1, 112]);
            assert!(found == bytes[258 * BLOCK..]);
        }
    }

    #[test]
    fn little_data_does_not_keep_the_memory_of_a_whole_read() {
        let mut bytes = vec![0; MIB];
        bytes[..BLOCK].fill(1);
        bytes[200 * BLOCK..201 * BLOCK].fill(2);
        let (_temp, volumes) = volumes(&bytes);
        for volume in &volumes {
            let found = read(volume, MIB, 0, 256, false);
            assert_eq!(joined(&found), (bytes.clone(), vec![1, -199, 1, -55]));
            let places: Vec<usize> = found
                .iter()
                .filter_map(|outcome| match outcome {
                    ReadOutcome::Data(data, _) => Some(data.as_ptr() as usize),
                    _ => None,
                })
                .collect();
            assert_ne!(places[1].wrapping_sub(places[0]), 200 * BLOCK, "both lie in what was read");
        }
    }

    #[test]
    fn hashes_are_of_all_that_was_read_unless_it_begins_with_zeroes() {
        let bytes = mixed();
        let (_temp, volumes) = volumes(&bytes);
        for volume in &volumes {
            match &read(volume, bytes.len(), 0, 256, true)[..] {
                [ReadOutcome::Hashes { hashes, blocks: 256 }] => assert!(*hashes == hashes_of(&bytes[..MIB])),
                other => panic!("{other:?}"),
            }
            let found = read(volume, bytes.len(), 3, 256, true);
            assert!(matches!(found[..], [ReadOutcome::Zeroes { blocks: 2 }]), "{found:?}");
        }
    }

    #[test]
    fn a_hole_is_found_whole_and_what_cannot_be_read_is_said() {
        let mut bytes = vec![0; 8 * MIB];
        bytes[5 * MIB..].fill(1);
        let (_temp, volumes) = volumes(&bytes);
        for volume in &volumes {
            let found = read(volume, bytes.len(), 0, 2048, false);
            assert!(matches!(found[..], [ReadOutcome::Zeroes { blocks: 1280 }]), "{found:?}");
            // A volume that is shorter than it was taken for.
            let found = read(volume, 9 * MIB, 2047, 256, false);
            assert!(matches!(found[..], [ReadOutcome::Failed]), "{found:?}");
        }
    }
}
