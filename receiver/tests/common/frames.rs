//! Frames as a source makes them.

use afterimage_protocol::codec::{self, content_checksum};
use afterimage_protocol::frame::{Block, Codec, Content, Frame, Record, frame_digest};
use afterimage_protocol::*;
use bytes::Bytes;

pub const GENERATION: Generation = Generation(0xabcd);
pub const BLOCK: u64 = BLOCK_BYTES;

/// Bytes that tell where they are from and do not compress.
pub fn noise(seed: u64, length: u64) -> Bytes {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..length.div_ceil(8)).flat_map(|_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    });
    words.take(length as usize).collect::<Vec<u8>>().into()
}

pub fn content(bytes: &Bytes) -> Content {
    Content::Data(codec::encode(Codec::Lz4, bytes, content_checksum(bytes)))
}

pub fn position(sequence: u64) -> Position {
    Position::new(GENERATION, Sequence(sequence))
}

/// A record that writes `noise(sequence)`.
pub fn record(sequence: u64, offset: u64, length: u64) -> Frame {
    Frame::Record(Record {
        position: position(sequence),
        range: ByteRange::new(VolumeIndex(0), offset, length),
        time: Time(1_000_000 + sequence),
        content: content(&noise(sequence, length)),
        floor: Sequence(0),
    })
}

/// A catch-up: its frames and what they add up to.
pub struct Epoch {
    pub id: EpochId,
    frames: u64,
    digest: u64,
}

impl Epoch {
    pub fn new(id: u64) -> Self {
        Self { id: EpochId(id), frames: 0, digest: 0 }
    }

    pub fn begin(&self) -> Frame {
        Frame::EpochBegin { epoch: self.id, generation: GENERATION, incarnation: Incarnation(1) }
    }

    /// A block frame with these bytes, read at `read_at`.
    pub fn block(&mut self, offset: u64, bytes: &Bytes, read_at: u64) -> Frame {
        let frame = FrameId(self.frames);
        self.frames += 1;
        self.digest = self.digest.wrapping_add(frame_digest(frame, Sequence(read_at)));
        Frame::Block(Block {
            epoch: self.id,
            frame,
            range: ByteRange::new(VolumeIndex(0), offset, bytes.len() as u64),
            read_at: Sequence(read_at),
            after: Sequence(0),
            content: content(bytes),
        })
    }

    pub fn commit(&self, sequence: u64) -> Frame {
        Frame::EpochCommit {
            epoch: self.id,
            position: position(sequence),
            time: Time(1_000_000 + sequence),
            frames: self.frames,
            digest: self.digest,
        }
    }
}
