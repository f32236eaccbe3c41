//! One LZ4 frame (LZ4 Frame Format 1.6.4) of linked blocks of at most 64 KiB, without checksums; a block ends with each frame
//! of the stream, and the LZ4 frame is never ended.

use std::io::{Read, Write};

use bytes::{Buf, Bytes};
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::ChunkError;

/// What every stream begins with: the magic, the flags (version 1, blocks linked, no checksum, no length), the largest block
/// (64 KiB), and the checksum of these two. No other is taken, so that a peer cannot ask for other memory.
const BEGIN: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x40, 0x40, 0xc0];

const NOT_LZ4: ChunkError = ChunkError::Coding("it is not what LZ4 makes");

/// Codes a stream.
pub(super) struct Encoder {
    encoder: FrameEncoder<Vec<u8>>,
}

impl Default for Encoder {
    /// Begins a stream.
    fn default() -> Self {
        let info = FrameInfo::new().block_mode(BlockMode::Linked).block_size(BlockSize::Max64KB);
        Self { encoder: FrameEncoder::with_frame_info(info, Vec::new()) }
    }
}

impl Encoder {
    /// Appends to `out` all that `parts` come to.
    pub fn push(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), ChunkError> {
        std::mem::swap(self.encoder.get_mut(), out);
        let done = parts
            .iter()
            .try_for_each(|part| self.encoder.write_all(part))
            .and_then(|()| self.encoder.flush());
        std::mem::swap(self.encoder.get_mut(), out);
        done.map_err(|_| ChunkError::Coding("LZ4 cannot code it"))
    }
}

/// Decodes a stream.
pub(super) struct Decoder {
    decoder: FrameDecoder<bytes::buf::Reader<Bytes>>,
}

impl Decoder {
    /// Begins the stream that `coded` is the beginning of.
    pub fn begin(coded: &[u8]) -> Result<Self, ChunkError> {
        if !coded.starts_with(&BEGIN) {
            return Err(ChunkError::Coding("it does not begin as a stream of LZ4 has to"));
        }
        Ok(Self { decoder: FrameDecoder::new(Bytes::new().reader()) })
    }

    /// Exactly `length` bytes out of all of `coded`.
    pub fn open(&mut self, length: usize, coded: &Bytes) -> Result<Bytes, ChunkError> {
        *self.decoder.get_mut() = coded.clone().reader();
        let mut raw = Vec::with_capacity(length);
        let read = (&mut self.decoder).take(length as u64).read_to_end(&mut raw);
        read.map_err(|_| NOT_LZ4)?;
        if raw.len() != length || self.decoder.get_ref().get_ref().has_remaining() {
            return Err(super::OTHER_LENGTH);
        }
        *self.decoder.get_mut() = Bytes::new().reader();
        // What the last block has more than it was to have would be the beginning of the next chunk.
        if self.decoder.read(&mut [0]).map_err(|_| NOT_LZ4)? != 0 {
            return Err(super::OTHER_LENGTH);
        }
        Ok(raw.into())
    }
}
