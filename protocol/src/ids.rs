//! Ids, positions, units and geometry: the nouns that every other module speaks in.
//!
//! Owns the newtypes and the conversions between bytes, blocks and extents. Leaves what they mean over time
//! (which sequence may follow which, when a bit clears) to the state machines.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in a block, the unit of the bitmap.
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes in an extent, the unit of the hot-extent log.
pub const EXTENT_BYTES: u64 = 4 << 20;
/// Blocks in an extent.
pub const BLOCKS_PER_EXTENT: u64 = EXTENT_BYTES / BLOCK_BYTES;
/// Longest payload of one record or block frame, raw, in bytes. Larger writes are split, one sequence each. One
/// MiB keeps a frame well below every window and buffer bound, and amortizes the header.
pub const MAX_PAYLOAD_BYTES: u64 = 1 << 20;
/// Longest range that one zero record or frame may cover, in bytes.
pub const MAX_ZERO_BYTES: u64 = 64 << 20;
/// Most volumes in a group: a handshake lists them all in one message.
pub const MAX_VOLUMES: usize = 64;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// A write's place in the write order of its group. Never repeats, also not after a crash; 0 is "before all".
    Sequence
}
id! {
    /// An epoch, unique within a group over the life of a source.
    EpochId
}
id! {
    /// One block or compare frame within an epoch; counts up from 0 and is never used twice in an epoch.
    FrameId
}

id! {
    /// One check of a verification; unique among those of a run of the source.
    CheckId
}
id! {
    /// One run of the source process, counted durably.
    Incarnation
}
id! {
    /// One session between a source and a target: a random number agreed on in the handshake and noted durably
    /// by both. 0 is "never had one".
    SessionId
}
id! {
    /// A place in a journal: the count of bytes appended before it since the journal was made. Never goes back
    /// except by truncation.
    Lsn
}

impl Sequence {
    /// The sequence after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The id of an uninterrupted history of a group; random, compared by ancestry and never by number. 0 is "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl Generation {
    /// No history yet.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A place in a group's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The history.
    pub generation: Generation,
    /// The last write that is part of the image.
    pub sequence: Sequence,
}

impl Position {
    /// The position of `sequence` in `generation`.
    pub fn new(generation: Generation, sequence: Sequence) -> Self {
        Self { generation, sequence }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.generation, self.sequence)
    }
}

/// A volume's place in its group's configuration, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeIndex(pub u32);

impl fmt::Display for VolumeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A point in time: microseconds since the Unix epoch (or since any fixed origin, in the simulator).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(pub u64);

impl Time {
    /// This time and `us` microseconds.
    pub fn plus_us(self, us: u64) -> Self {
        Self(self.0.saturating_add(us))
    }

    /// Microseconds from `earlier` to this time; 0 when the clock went back.
    pub fn since_us(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A range of bytes of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// The volume.
    pub volume: VolumeIndex,
    /// First byte.
    pub offset: u64,
    /// Count of bytes; never 0 in a valid range.
    pub length: u64,
}

impl ByteRange {
    /// A range of `length` bytes from `offset`.
    pub fn new(volume: VolumeIndex, offset: u64, length: u64) -> Self {
        Self { volume, offset, length }
    }

    /// First byte after the range; saturates, so that a hostile range stays out of every volume.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// The blocks that the range touches, partly or whole.
    pub fn blocks(&self) -> BlockRange {
        let first = self.offset / BLOCK_BYTES;
        let end = self.end().div_ceil(BLOCK_BYTES);
        BlockRange { volume: self.volume, first, count: end.saturating_sub(first) }
    }
}

/// A range of blocks of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockRange {
    /// The volume.
    pub volume: VolumeIndex,
    /// Index of the first block.
    pub first: u64,
    /// Count of blocks.
    pub count: u64,
}

impl BlockRange {
    /// Index of the first block after the range.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// The indices of the blocks.
    pub fn iter(&self) -> std::ops::Range<u64> {
        self.first..self.end()
    }

    /// The extents that the range touches.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + use<> {
        let volume = self.volume;
        let first = self.first / BLOCKS_PER_EXTENT;
        let end = self.end().div_ceil(BLOCKS_PER_EXTENT);
        (first..end).map(move |index| Extent { volume, index })
    }

    /// The bytes of the range in a volume of `size_bytes` (the last block of a volume may be short).
    pub fn bytes(&self, size_bytes: u64) -> ByteRange {
        let offset = self.first.saturating_mul(BLOCK_BYTES).min(size_bytes);
        let end = self.end().saturating_mul(BLOCK_BYTES).min(size_bytes);
        ByteRange { volume: self.volume, offset, length: end - offset }
    }

    /// Whether both ranges share a block.
    pub fn overlaps(&self, other: &BlockRange) -> bool {
        self.volume == other.volume && self.first < other.end() && other.first < self.end()
    }
}

/// One extent of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// The volume.
    pub volume: VolumeIndex,
    /// Index of the extent in its volume.
    pub index: u64,
}

impl Extent {
    /// The blocks of the extent; its last may lie past the end of a short volume.
    pub fn blocks(&self) -> BlockRange {
        BlockRange { volume: self.volume, first: self.index * BLOCKS_PER_EXTENT, count: BLOCKS_PER_EXTENT }
    }
}

/// Count of blocks in a volume of `size_bytes`; a last short block counts.
pub fn blocks_in(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_touches_its_partial_blocks() {
        let r = ByteRange::new(VolumeIndex(0), 4095, 2).blocks();
        assert_eq!((r.first, r.count), (0, 2));
        let e: Vec<_> = ByteRange::new(VolumeIndex(1), EXTENT_BYTES - 1, 2).blocks().extents().collect();
        assert_eq!(e.iter().map(|e| e.index).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn the_last_block_may_be_short() {
        let r = BlockRange { volume: VolumeIndex(0), first: 1, count: 1 };
        assert_eq!(r.bytes(4096 + 512).length, 512);
        assert_eq!(blocks_in(4097), 2);
    }
}
