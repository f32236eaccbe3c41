//! The header in front of each frame in a segment (docs/formats.md, "Journal").
//!
//! It ties the frame to its place: its checksum covers the segment's id and the lsn, and is seeded with the segment's salt, so
//! that no byte of another segment, or of another place in this one, is taken for an entry, nor what a client has written to
//! look like one. It repeats the range that the frame writes, so that what a damaged frame wrote is still known.

use afterimage_protocol::frame::{self, Frame};
use afterimage_protocol::{ByteRange, Lsn, MAX_VOLUMES, VolumeIndex};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::segment::SegmentId;
use crate::journal::bytes::{get_u32, get_u64, put_u32, put_u64};

/// Bytes in an entry's header.
pub(super) const ENTRY_HEADER_BYTES: u64 = 64;
/// Entries begin at multiples of this, counted from the segment's first entry.
pub(super) const ALIGNMENT: u64 = 8;
/// What a disk writes as a whole, in bytes. Behind what was appended in one long write, the next payload begins at a multiple of
/// this.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Marks an entry's first bytes.
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"AIJE");

const MAX_FRAME_BYTES: u64 = frame::HEADER_BYTES as u64 + frame::MAX_ENCODED_BYTES as u64;

const AT_FRAME_BYTES: usize = 4;
const AT_SEGMENT: usize = 8;
const AT_LSN: usize = 16;
const AT_DURABLE: usize = 24;
const AT_OFFSET: usize = 32;
const AT_LENGTH: usize = 40;
const AT_VOLUME: usize = 48;
const AT_PAD: usize = 52;
const AT_CHECKSUM: usize = 56;

/// What an entry says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryHeader {
    /// The segment that it was written to.
    pub segment: SegmentId,
    /// Its place.
    pub lsn: Lsn,
    /// What was known to be durable when it was written; at most `lsn`.
    pub durable: Lsn,
    /// Length of the frame that follows, header and payload.
    pub frame_bytes: u32,
    /// The range that the frame writes.
    pub range: Option<ByteRange>,
    /// Zeroes behind the entry that belong to it, in bytes: less than [`BLOCK_BYTES`].
    pub pad: u32,
}

impl EntryHeader {
    /// The header for `frame` at `lsn`.
    pub fn new(segment: SegmentId, lsn: Lsn, durable: Lsn, frame: &Frame) -> Self {
        let frame_bytes = frame.encoded_len() as u32;
        Self { segment, lsn, durable, frame_bytes, range: frame.written_range(), pad: 0 }
    }

    /// Bytes from the start of this entry to the start of the next.
    pub fn entry_bytes(&self) -> u64 {
        entry_bytes(u64::from(self.frame_bytes)) + u64::from(self.pad)
    }

    /// The lsn of the next entry.
    pub fn end(&self) -> Lsn {
        Lsn(self.lsn.0.saturating_add(self.entry_bytes()))
    }

    /// The bytes to store in a segment with this salt.
    pub fn encode(&self, salt: u64) -> [u8; ENTRY_HEADER_BYTES as usize] {
        let mut b = [0; ENTRY_HEADER_BYTES as usize];
        put_u32(&mut b, 0, MAGIC);
        put_u32(&mut b, AT_FRAME_BYTES, self.frame_bytes);
        put_u64(&mut b, AT_SEGMENT, self.segment.0);
        put_u64(&mut b, AT_LSN, self.lsn.0);
        put_u64(&mut b, AT_DURABLE, self.durable.0);
        if let Some(range) = self.range {
            put_u64(&mut b, AT_OFFSET, range.offset);
            put_u64(&mut b, AT_LENGTH, range.length);
            put_u32(&mut b, AT_VOLUME, range.volume.0);
        }
        put_u32(&mut b, AT_PAD, self.pad);
        let checksum = xxh3_64_with_seed(&b[..AT_CHECKSUM], salt);
        put_u64(&mut b, AT_CHECKSUM, checksum);
        b
    }

    /// The entry of `segment`, which has this salt, at `lsn`, if `bytes` begin with its header.
    pub fn decode(bytes: &[u8], segment: SegmentId, salt: u64, lsn: Lsn) -> Option<Self> {
        let b = bytes.get(..ENTRY_HEADER_BYTES as usize)?;
        if get_u32(b, 0)? != MAGIC
            || xxh3_64_with_seed(b.get(..AT_CHECKSUM)?, salt) != get_u64(b, AT_CHECKSUM)?
        {
            return None;
        }
        let length = get_u64(b, AT_LENGTH)?;
        let range = ByteRange::new(VolumeIndex(get_u32(b, AT_VOLUME)?), get_u64(b, AT_OFFSET)?, length);
        let header = Self {
            segment: SegmentId(get_u64(b, AT_SEGMENT)?),
            lsn: Lsn(get_u64(b, AT_LSN)?),
            durable: Lsn(get_u64(b, AT_DURABLE)?),
            frame_bytes: get_u32(b, AT_FRAME_BYTES)?,
            range: (length > 0).then_some(range),
            pad: get_u32(b, AT_PAD)?,
        };
        let frame_bytes = u64::from(header.frame_bytes);
        let plausible = header.segment == segment
            && header.lsn == lsn
            && header.durable <= lsn
            && (frame::HEADER_BYTES as u64..=MAX_FRAME_BYTES).contains(&frame_bytes)
            && (range.volume.0 as usize) < MAX_VOLUMES
            && u64::from(header.pad) < BLOCK_BYTES
            && u64::from(header.pad).is_multiple_of(ALIGNMENT);
        plausible.then_some(header)
    }
}

/// What the frame behind an entry's header is bound with ([`frame::bind`]): a file that was another segment before holds whole
/// frames, and after a crash one of them may lie behind a header that is new.
pub(super) fn bond(segment: SegmentId, salt: u64, lsn: Lsn) -> u64 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&segment.0.to_le_bytes());
    place[8..].copy_from_slice(&lsn.0.to_le_bytes());
    xxh3_64_with_seed(&place, salt)
}

/// Bytes that a frame of `frame_bytes` takes in a journal, with its header and padding.
pub(super) fn entry_bytes(frame_bytes: u64) -> u64 {
    (ENTRY_HEADER_BYTES + frame_bytes).next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> EntryHeader {
        EntryHeader {
            segment: SegmentId(3),
            lsn: Lsn(800),
            durable: Lsn(160),
            frame_bytes: 200,
            range: Some(ByteRange::new(VolumeIndex(2), 4096, 512)),
            pad: 1096,
        }
    }

    const SALT: u64 = 77;

    #[test]
    fn a_header_survives_the_disk() {
        let mark = EntryHeader { range: None, pad: 0, ..header() };
        for h in [header(), mark] {
            assert_eq!(EntryHeader::decode(&h.encode(SALT), h.segment, SALT, h.lsn), Some(h));
        }
    }

    #[test]
    fn a_header_is_good_only_in_its_own_place() {
        let bytes = header().encode(SALT);
        assert_eq!(EntryHeader::decode(&bytes, SegmentId(4), SALT, Lsn(800)), None);
        assert_eq!(EntryHeader::decode(&bytes, SegmentId(3), SALT, Lsn(808)), None);
        assert_eq!(EntryHeader::decode(&bytes, SegmentId(3), SALT + 1, Lsn(800)), None);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = header().encode(SALT);
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(EntryHeader::decode(&bad, SegmentId(3), SALT, Lsn(800)), None, "bit {bit}");
        }
        for len in 0..good.len() {
            assert_eq!(EntryHeader::decode(&good[..len], SegmentId(3), SALT, Lsn(800)), None);
        }
    }
}
