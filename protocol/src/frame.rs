//! Record frames: what travels on the ordered and block streams and what the journal stores.
//!
//! The layout is explicit and little-endian (docs/formats.md, "frame"): a fixed header of [`HEADER_BYTES`], then the
//! payload. The content checksum covers the raw payload and is taken where the write is admitted, so that a payload that was
//! damaged anywhere between there and the base is noticed. The header's checksum covers the header and a payload that is
//! encoded; of one that travels as it is, the header's content checksum says all there is to say, so that its bytes are read
//! once where they are taken in and nowhere on the way. Nothing here trusts a byte: every length is capped before anything is
//! allocated for it.

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::ids::*;

/// Bytes in a frame's header.
pub const HEADER_BYTES: usize = 112;
/// Longest encoded payload in bytes: a raw payload is never stored larger than it was.
pub const MAX_ENCODED_BYTES: u32 = MAX_PAYLOAD_BYTES as u32;
/// Bytes of one block hash in a compare frame.
pub const HASH_BYTES: usize = 16;

const MAGIC: u32 = u32::from_le_bytes(*b"AIF1");
/// The checksum covers the payload.
const VERSION: u8 = 1;
/// The payload is raw data, and the checksum leaves it to the content checksum.
const VERSION_RAW: u8 = 2;

/// How a payload is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// LZ4 block format.
    Lz4,
    /// One Zstandard frame.
    Zstd,
}

/// The bytes of a write or of blocks, as they travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// How `encoded` is encoded.
    pub codec: Codec,
    /// Length when decoded, in bytes.
    pub raw_bytes: u32,
    /// XXH3-64 of the decoded bytes.
    pub checksum: u64,
    /// The encoded bytes.
    pub encoded: Bytes,
}

/// What a range is filled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Data(Payload),
    /// Guaranteed zeroes; with `punch` the space may be given back.
    Zeroes {
        /// Whether the range may become a hole.
        punch: bool,
    },
}

/// One write of the group's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the order.
    pub position: Position,
    /// Where it writes.
    pub range: ByteRange,
    /// When it was admitted at the source.
    pub time: Time,
    /// What it writes.
    pub content: Content,
    /// Inside an epoch: no block frame still to come was read before this sequence. What the target remembers of
    /// older records to order them against late blocks may be forgotten.
    pub floor: Sequence,
}

/// Blocks of an epoch, read under the range lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The epoch.
    pub epoch: EpochId,
    /// Its number in the epoch.
    pub frame: FrameId,
    /// The blocks, as bytes; block-aligned but for the end of a volume. In a journal, the part of them that did not give way
    /// to a newer record.
    pub range: ByteRange,
    /// The last admitted sequence when the blocks were read.
    pub read_at: Sequence,
    /// The last sequence on the ordered stream that must be taken before this frame.
    pub after: Sequence,
    /// The bytes.
    pub content: Content,
}

/// Hashes of blocks of an epoch: the target answers which differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The epoch.
    pub epoch: EpochId,
    /// Its number in the epoch.
    pub frame: FrameId,
    /// The blocks, as bytes.
    pub range: ByteRange,
    /// As for [`Block`].
    pub read_at: Sequence,
    /// As for [`Block`].
    pub after: Sequence,
    /// [`HASH_BYTES`] for each block of the range, in order (BLAKE3, truncated).
    pub hashes: Bytes,
}

/// Hashes of blocks as they are at a position, for the target to compare with its image there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its number.
    pub id: CheckId,
    /// The last record before it on the ordered stream: the blocks were read under the range lock when this was the newest.
    pub position: Position,
    /// The blocks, as bytes: at most [`MAX_PAYLOAD_BYTES`] with hashes.
    pub range: ByteRange,
    /// [`HASH_BYTES`] for each block of the range, in order (BLAKE3, truncated); empty if all of them are zero.
    pub hashes: Bytes,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A write in order.
    Record(Record),
    /// The ordered stream has passed `sequence` without a record for it (inside an epoch); with `sync` the target is
    /// asked to make durable what it has.
    Mark {
        /// The sequence that was passed.
        sequence: Sequence,
        /// Whether a durable acknowledgement is wanted now.
        sync: bool,
    },
    /// An epoch begins.
    EpochBegin {
        /// Its id.
        epoch: EpochId,
        /// The history it belongs to.
        generation: Generation,
        /// The run of the source that opened it.
        incarnation: Incarnation,
    },
    /// Blocks of an epoch.
    Block(Block),
    /// Hashes of blocks of an epoch. Never stored in a journal.
    Compare(Compare),
    /// The epoch is whole: the image is the primary's at `position`.
    EpochCommit {
        /// Its id.
        epoch: EpochId,
        /// The position of the image.
        position: Position,
        /// When it was reached at the source.
        time: Time,
        /// Count of block and compare frames of the epoch.
        frames: u64,
        /// [`frame_digest`] of each of them, added up with wrap-around.
        digest: u64,
    },
    /// The epoch will not be committed; what was staged for it counts for nothing.
    EpochAbort {
        /// Its id.
        epoch: EpochId,
    },
    /// The image here is the primary's at `position`, by other means than a record or an epoch (a first sync that
    /// went to the base, a switchover, a rollback).
    Point {
        /// The position of the image.
        position: Position,
        /// When it was reached at the source.
        time: Time,
    },
    /// The source admits nothing after `position` and asks the target to take over there. Never stored in a journal.
    TakeOver {
        /// The position of the image.
        position: Position,
    },
    /// Hashes to be compared at their place in the order. Never stored in a journal.
    Check(Check),
}

/// Ties a header to where it is kept, or loosens it again: with another `bond` its checksum is wrong.
pub fn bind(header: &mut [u8; HEADER_BYTES], bond: u64) {
    for (byte, bond) in header[AT_CHECKSUM..].iter_mut().zip(bond.to_le_bytes()) {
        *byte ^= bond;
    }
}

/// What one frame adds to its epoch's digest.
pub fn frame_digest(frame: FrameId, read_at: Sequence) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&frame.0.to_le_bytes());
    bytes[8..].copy_from_slice(&read_at.0.to_le_bytes());
    xxh3_64(&bytes)
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the header says.
    #[error("the frame is cut short")]
    Short,
    /// Not a frame at all.
    #[error("no frame begins here (magic {0:#010x})")]
    Magic(u32),
    /// Made by a version that this one does not know.
    #[error("frame version {0} is not known; this program speaks versions {VERSION} and {VERSION_RAW}")]
    Version(u8),
    /// A field has a value that no frame may have.
    #[error("the frame's {field} is {value}, which no frame may have")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The bytes changed since they were written.
    #[error("the frame's checksum does not match")]
    Checksum,
    /// The payload decodes to other bytes than were taken in.
    #[error("the frame's content does not match its checksum")]
    Content,
}

/// A header whose lengths are within bounds; what it says is believed only after [`Header::open`].
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; HEADER_BYTES],
}

// Field offsets. See docs/formats.md.
const AT_VERSION: usize = 4;
const AT_KIND: usize = 5;
const AT_CODEC: usize = 6;
const AT_FLAGS: usize = 7;
const AT_ENCODED: usize = 8;
const AT_RAW: usize = 12;
const AT_VOLUME: usize = 16;
const AT_GENERATION: usize = 24;
const AT_SEQUENCE: usize = 32;
const AT_OFFSET: usize = 40;
const AT_LENGTH: usize = 48;
const AT_TIME: usize = 56;
const AT_EPOCH: usize = 64;
const AT_AUX: usize = 72;
const AT_AUX2: usize = 80;
const AT_CONTENT: usize = 88;
const AT_RESERVED: usize = 96;
const AT_CHECKSUM: usize = 104;

const KIND_RECORD: u8 = 1;
const KIND_MARK: u8 = 2;
const KIND_EPOCH_BEGIN: u8 = 3;
const KIND_BLOCK: u8 = 4;
const KIND_COMPARE: u8 = 5;
const KIND_EPOCH_COMMIT: u8 = 6;
const KIND_EPOCH_ABORT: u8 = 7;
const KIND_POINT: u8 = 8;
const KIND_TAKE_OVER: u8 = 9;
const KIND_CHECK: u8 = 10;

const CODEC_RAW: u8 = 0;

const FLAG_ZEROES: u8 = 1;
const FLAG_PUNCH: u8 = 2;
const FLAG_SYNC: u8 = 4;

impl Header {
    /// Checks magic, version and lengths of the first [`HEADER_BYTES`] of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let bytes: [u8; HEADER_BYTES] =
            bytes.get(..HEADER_BYTES).and_then(|b| b.try_into().ok()).ok_or(FrameError::Short)?;
        let header = Self { bytes };
        let magic = header.u32(0);
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if !matches!(bytes[AT_VERSION], VERSION | VERSION_RAW) {
            return Err(FrameError::Version(bytes[AT_VERSION]));
        }
        let (encoded, raw) = (header.u32(AT_ENCODED), header.u32(AT_RAW));
        if encoded > MAX_ENCODED_BYTES {
            return Err(FrameError::Field { field: "payload length", value: encoded.into() });
        }
        if u64::from(raw) > MAX_PAYLOAD_BYTES {
            return Err(FrameError::Field { field: "raw length", value: raw.into() });
        }
        Ok(header)
    }

    /// Length of the payload that follows the header, in bytes; at most [`MAX_ENCODED_BYTES`].
    pub fn payload_bytes(&self) -> usize {
        self.u32(AT_ENCODED) as usize
    }

    /// Verifies the checksums and reads the frame. Of a payload that is encoded, the content checksum is verified by
    /// [`crate::codec::decode`]; one that is raw is verified here ([`crate::codec::decode_opened`]).
    pub fn open(&self, payload: Bytes) -> Result<Frame, FrameError> {
        let content = self.is_raw().then(|| xxh3_64(&payload));
        self.open_summed(payload, content)
    }

    /// Whether the payload is raw data, of which [`Header::open_summed`] wants the content checksum.
    pub fn is_raw(&self) -> bool {
        let carries = matches!(self.bytes[AT_KIND], KIND_RECORD | KIND_BLOCK);
        carries && self.bytes[AT_CODEC] == CODEC_RAW && self.bytes[AT_FLAGS] & FLAG_ZEROES == 0
    }

    /// The same as [`Header::open`], for one who has summed up a raw payload while it came in: `content` is the
    /// [`crate::codec::content_checksum`] of all of it.
    pub fn open_summed(&self, payload: Bytes, content: Option<u64>) -> Result<Frame, FrameError> {
        if checksum(&self.bytes, &payload) != self.u64(AT_CHECKSUM) {
            return Err(FrameError::Checksum);
        }
        let frame = self.read(payload)?;
        match frame.data() {
            Some(Payload { codec: Codec::Raw, checksum, .. }) if content == Some(*checksum) => Ok(frame),
            Some(Payload { codec: Codec::Raw, .. }) => Err(FrameError::Content),
            _ if self.bytes[AT_VERSION] == VERSION_RAW => {
                Err(FrameError::Field { field: "version", value: VERSION_RAW.into() })
            }
            _ => Ok(frame),
        }
    }

    /// Reads the frame and verifies no checksum: for a header and a payload that this process has made.
    pub fn read(&self, payload: Bytes) -> Result<Frame, FrameError> {
        if payload.len() != self.payload_bytes() {
            return Err(FrameError::Short);
        }
        let field = |field, value: u64| FrameError::Field { field, value };
        if self.u64(AT_RESERVED) != 0 || self.u32(AT_VOLUME + 4) != 0 {
            return Err(field("reserved field", 1));
        }
        let kind = self.bytes[AT_KIND];
        let flags = self.bytes[AT_FLAGS];
        let generation = Generation(self.u64(AT_GENERATION));
        let sequence = Sequence(self.u64(AT_SEQUENCE));
        let position = Position { generation, sequence };
        let time = Time(self.u64(AT_TIME));
        let epoch = EpochId(self.u64(AT_EPOCH));
        let (aux, aux2) = (self.u64(AT_AUX), self.u64(AT_AUX2));
        let range =
            ByteRange::new(VolumeIndex(self.u32(AT_VOLUME)), self.u64(AT_OFFSET), self.u64(AT_LENGTH));
        let has_range = matches!(kind, KIND_RECORD | KIND_BLOCK | KIND_COMPARE | KIND_CHECK);
        if has_range {
            if range.volume.0 as usize >= MAX_VOLUMES {
                return Err(field("volume", range.volume.0.into()));
            }
            if range.length == 0 || range.length > MAX_ZERO_BYTES {
                return Err(field("range length", range.length));
            }
            if range.offset.checked_add(range.length).is_none_or(|end| end > i64::MAX as u64) {
                return Err(field("range offset", range.offset));
            }
            // Not for blocks: in a journal, what is left of them beside a newer record may begin anywhere.
            if matches!(kind, KIND_COMPARE | KIND_CHECK) && !range.offset.is_multiple_of(BLOCK_BYTES) {
                return Err(field("range offset", range.offset));
            }
        } else if !payload.is_empty() {
            return Err(field("payload length", payload.len() as u64));
        }
        Ok(match kind {
            KIND_RECORD => Frame::Record(Record {
                position,
                range,
                time,
                content: self.content(&range, payload)?,
                floor: Sequence(aux),
            }),
            KIND_MARK => Frame::Mark { sequence, sync: flags & FLAG_SYNC != 0 },
            KIND_EPOCH_BEGIN => Frame::EpochBegin { epoch, generation, incarnation: Incarnation(aux) },
            KIND_BLOCK => Frame::Block(Block {
                epoch,
                frame: FrameId(aux),
                range,
                read_at: sequence,
                after: Sequence(aux2),
                content: self.content(&range, payload)?,
            }),
            KIND_COMPARE => {
                if payload.len() as u64 != range.blocks().count * HASH_BYTES as u64 {
                    return Err(field("payload length", payload.len() as u64));
                }
                Frame::Compare(Compare {
                    epoch,
                    frame: FrameId(aux),
                    range,
                    read_at: sequence,
                    after: Sequence(aux2),
                    hashes: payload,
                })
            }
            KIND_EPOCH_COMMIT => Frame::EpochCommit { epoch, position, time, frames: aux, digest: aux2 },
            KIND_EPOCH_ABORT => Frame::EpochAbort { epoch },
            KIND_POINT => Frame::Point { position, time },
            KIND_TAKE_OVER => Frame::TakeOver { position },
            KIND_CHECK => {
                let zeroes = flags & FLAG_ZEROES != 0;
                let hashes = if zeroes { 0 } else { range.blocks().count * HASH_BYTES as u64 };
                if payload.len() as u64 != hashes {
                    return Err(field("payload length", payload.len() as u64));
                }
                if !zeroes && range.length > MAX_PAYLOAD_BYTES {
                    return Err(field("range length", range.length));
                }
                Frame::Check(Check { id: CheckId(aux), position, range, hashes: payload })
            }
            other => return Err(field("kind", other.into())),
        })
    }

    fn content(&self, range: &ByteRange, payload: Bytes) -> Result<Content, FrameError> {
        let flags = self.bytes[AT_FLAGS];
        if flags & FLAG_ZEROES != 0 {
            if !payload.is_empty() {
                return Err(FrameError::Field { field: "payload length", value: payload.len() as u64 });
            }
            return Ok(Content::Zeroes { punch: flags & FLAG_PUNCH != 0 });
        }
        let raw_bytes = self.u32(AT_RAW);
        if u64::from(raw_bytes) != range.length {
            return Err(FrameError::Field { field: "raw length", value: raw_bytes.into() });
        }
        let codec = match self.bytes[AT_CODEC] {
            CODEC_RAW => Codec::Raw,
            1 => Codec::Lz4,
            2 => Codec::Zstd,
            other => return Err(FrameError::Field { field: "codec", value: other.into() }),
        };
        Ok(Content::Data(Payload { codec, raw_bytes, checksum: self.u64(AT_CONTENT), encoded: payload }))
    }

    fn u32(&self, at: usize) -> u32 {
        let mut b = [0; 4];
        b.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_le_bytes(b)
    }

    fn u64(&self, at: usize) -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(b)
    }
}

impl Frame {
    /// Reads one frame from the start of `bytes`; returns it and the count of bytes it took.
    pub fn decode(bytes: &Bytes) -> Result<(Frame, usize), FrameError> {
        let header = Header::parse(bytes)?;
        let end = HEADER_BYTES + header.payload_bytes();
        if bytes.len() < end {
            return Err(FrameError::Short);
        }
        Ok((header.open(bytes.slice(HEADER_BYTES..end))?, end))
    }

    /// The header to send or store before [`Frame::payload`].
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0u8; HEADER_BYTES];
        put32(&mut b, 0, MAGIC);
        b[AT_VERSION] = VERSION;
        match self {
            Frame::Record(r) => {
                b[AT_KIND] = KIND_RECORD;
                put_position(&mut b, &r.position);
                put_range(&mut b, &r.range);
                put64(&mut b, AT_TIME, r.time.0);
                put64(&mut b, AT_AUX, r.floor.0);
                put_content(&mut b, &r.content);
            }
            Frame::Mark { sequence, sync } => {
                b[AT_KIND] = KIND_MARK;
                b[AT_FLAGS] = if *sync { FLAG_SYNC } else { 0 };
                put64(&mut b, AT_SEQUENCE, sequence.0);
            }
            Frame::EpochBegin { epoch, generation, incarnation } => {
                b[AT_KIND] = KIND_EPOCH_BEGIN;
                put64(&mut b, AT_EPOCH, epoch.0);
                put64(&mut b, AT_GENERATION, generation.0);
                put64(&mut b, AT_AUX, incarnation.0);
            }
            Frame::Block(k) => {
                b[AT_KIND] = KIND_BLOCK;
                put64(&mut b, AT_EPOCH, k.epoch.0);
                put64(&mut b, AT_AUX, k.frame.0);
                put64(&mut b, AT_AUX2, k.after.0);
                put64(&mut b, AT_SEQUENCE, k.read_at.0);
                put_range(&mut b, &k.range);
                put_content(&mut b, &k.content);
            }
            Frame::Compare(c) => {
                b[AT_KIND] = KIND_COMPARE;
                put64(&mut b, AT_EPOCH, c.epoch.0);
                put64(&mut b, AT_AUX, c.frame.0);
                put64(&mut b, AT_AUX2, c.after.0);
                put64(&mut b, AT_SEQUENCE, c.read_at.0);
                put_range(&mut b, &c.range);
            }
            Frame::EpochCommit { epoch, position, time, frames, digest } => {
                b[AT_KIND] = KIND_EPOCH_COMMIT;
                put64(&mut b, AT_EPOCH, epoch.0);
                put_position(&mut b, position);
                put64(&mut b, AT_TIME, time.0);
                put64(&mut b, AT_AUX, *frames);
                put64(&mut b, AT_AUX2, *digest);
            }
            Frame::EpochAbort { epoch } => {
                b[AT_KIND] = KIND_EPOCH_ABORT;
                put64(&mut b, AT_EPOCH, epoch.0);
            }
            Frame::TakeOver { position } => {
                b[AT_KIND] = KIND_TAKE_OVER;
                put_position(&mut b, position);
            }
            Frame::Point { position, time } => {
                b[AT_KIND] = KIND_POINT;
                put_position(&mut b, position);
                put64(&mut b, AT_TIME, time.0);
            }
            Frame::Check(c) => {
                b[AT_KIND] = KIND_CHECK;
                b[AT_FLAGS] = if c.hashes.is_empty() { FLAG_ZEROES } else { 0 };
                put_position(&mut b, &c.position);
                put64(&mut b, AT_AUX, c.id.0);
                put_range(&mut b, &c.range);
            }
        }
        if self.data().is_some_and(|payload| payload.codec == Codec::Raw) {
            b[AT_VERSION] = VERSION_RAW;
        }
        let payload = self.payload();
        put32(&mut b, AT_ENCODED, payload.len() as u32);
        let sum = checksum(&b, &payload);
        put64(&mut b, AT_CHECKSUM, sum);
        b
    }

    /// The encoded payload; empty for frames without one. Cheap: the bytes are shared.
    pub fn payload(&self) -> Bytes {
        match self {
            Frame::Compare(c) => c.hashes.clone(),
            Frame::Check(c) => c.hashes.clone(),
            _ => self.data().map_or_else(Bytes::new, |payload| payload.encoded.clone()),
        }
    }

    fn data(&self) -> Option<&Payload> {
        match self {
            Frame::Record(Record { content: Content::Data(payload), .. })
            | Frame::Block(Block { content: Content::Data(payload), .. }) => Some(payload),
            _ => None,
        }
    }

    /// Length on the wire and in the journal, in bytes.
    pub fn encoded_len(&self) -> usize {
        HEADER_BYTES + self.payload().len()
    }

    /// The range that the frame writes, if it writes one.
    pub fn written_range(&self) -> Option<ByteRange> {
        match self {
            Frame::Record(r) => Some(r.range),
            Frame::Block(b) => Some(b.range),
            _ => None,
        }
    }

    /// Header and payload in one buffer: for tests and rare frames; the hot paths write the two parts.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_len());
        out.extend_from_slice(&self.header());
        out.extend_from_slice(&self.payload());
        out.into()
    }
}

fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u64 {
    let mut h = Xxh3::new();
    h.update(&header[..AT_CHECKSUM]);
    if header[AT_VERSION] != VERSION_RAW {
        h.update(payload);
    }
    h.digest()
}

fn put32(b: &mut [u8; HEADER_BYTES], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

fn put64(b: &mut [u8; HEADER_BYTES], at: usize, v: u64) {
    b[at..at + 8].copy_from_slice(&v.to_le_bytes());
}

fn put_position(b: &mut [u8; HEADER_BYTES], p: &Position) {
    put64(b, AT_GENERATION, p.generation.0);
    put64(b, AT_SEQUENCE, p.sequence.0);
}

fn put_range(b: &mut [u8; HEADER_BYTES], r: &ByteRange) {
    put32(b, AT_VOLUME, r.volume.0);
    put64(b, AT_OFFSET, r.offset);
    put64(b, AT_LENGTH, r.length);
}

fn put_content(b: &mut [u8; HEADER_BYTES], c: &Content) {
    match c {
        Content::Data(p) => {
            b[AT_CODEC] = match p.codec {
                Codec::Raw => CODEC_RAW,
                Codec::Lz4 => 1,
                Codec::Zstd => 2,
            };
            put32(b, AT_RAW, p.raw_bytes);
            put64(b, AT_CONTENT, p.checksum);
        }
        Content::Zeroes { punch } => b[AT_FLAGS] = FLAG_ZEROES | if *punch { FLAG_PUNCH } else { 0 },
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
