//! Chunks: frames of a stream coded together, so that what was sent before need not be sent again.
//!
//! A stream carries frames as they are and chunks, in any order (docs/formats.md, "chunk"). The coded bytes of all chunks
//! of a stream are one stream of LZ4 or Zstandard, flushed after each frame: a frame refers to whatever lies in the window in
//! front of it, such as the last version of the same page. A chunk that says that it restarts depends on none before it; the
//! first one of a stream has to, and one that is coded in another way than the one before. What is opened are plain frames:
//! nothing that is stored depends on anything that is not.
//!
//! The window is memory at both ends. Nothing of it outlives the stream, so nothing of it is trusted after a reconnect.
//! Every frame carries its own checksums, which are verified after opening; a chunk adds none.

mod lz4;
mod zst;

use bytes::Bytes;

use crate::frame::{Frame, HEADER_BYTES, MAX_ENCODED_BYTES};

/// Bytes in a chunk's header: as many of a frame's header tell the two apart.
pub const CHUNK_HEADER_BYTES: usize = 16;
/// Most bytes of frames in a chunk: the longest frame, and a batch of others.
pub const MAX_CHUNK_BYTES: u32 = 2 << 20;
/// Smallest window, as a power of two: the window of a stream whose frames have nothing to do with each other.
pub const MIN_WINDOW_LOG: u32 = 20;
/// Largest window, as a power of two: the bound of what a stream may make its receiver remember.
pub const MAX_WINDOW_LOG: u32 = 27;

const MAGIC: u32 = u32::from_le_bytes(*b"AIC1");
const FLAG_RESTART: u8 = 1;
const FLAG_LZ4: u8 = 2;
/// The longest coded form of [`MAX_CHUNK_BYTES`]: each frame may end a block, and none is shorter than its header.
const MAX_CODED_BYTES: u32 = MAX_CHUNK_BYTES + MAX_CHUNK_BYTES / 16;
const OTHER_LENGTH: ChunkError = ChunkError::Coding("its frames have another length than it says");
const _: () = assert!(MAX_CHUNK_BYTES as usize >= HEADER_BYTES + MAX_ENCODED_BYTES as usize);

/// Why bytes are not a chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Fewer bytes than a header.
    #[error("the chunk is cut short")]
    Short,
    /// A field has a value that no chunk may have.
    #[error("the chunk's {field} is {value}, which no chunk may have")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// It depends on chunks that this stream did not carry, or that were coded in another way.
    #[error("the chunk continues what was never begun")]
    NotBegun,
    /// The coded bytes are not what a coder makes.
    #[error("the chunk cannot be decoded: {0}")]
    Coding(&'static str),
}

/// How the bytes of a chunk are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// As a Zstandard stream.
    Zstd,
    /// As an LZ4 frame of blocks that refer to those before them.
    Lz4,
}

/// A chunk's header whose lengths are within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// What follows depends on no chunk before this.
    pub restarts: bool,
    /// How it is coded.
    pub coding: Coding,
    /// Length of the frames, in bytes; at most [`MAX_CHUNK_BYTES`].
    pub raw_bytes: u32,
    /// Length of the coded bytes behind the header.
    pub coded_bytes: u32,
}

impl ChunkHeader {
    /// Reads the first [`CHUNK_HEADER_BYTES`] of `bytes`; `None` if no chunk begins there but, perhaps, a frame.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, ChunkError> {
        let bytes: &[u8; CHUNK_HEADER_BYTES] =
            bytes.get(..CHUNK_HEADER_BYTES).and_then(|b| b.try_into().ok()).ok_or(ChunkError::Short)?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u32_at(0) != MAGIC {
            return Ok(None);
        }
        let field = |field, value| Err(ChunkError::Field { field, value });
        let (flags, reserved) = (bytes[4], &bytes[5..8]);
        if flags & !(FLAG_RESTART | FLAG_LZ4) != 0 {
            return field("flags", flags.into());
        }
        if reserved != [0; 3] {
            return field("reserved field", reserved[0].into());
        }
        let (raw_bytes, coded_bytes) = (u32_at(8), u32_at(12));
        if (raw_bytes as usize) < HEADER_BYTES || raw_bytes > MAX_CHUNK_BYTES {
            return field("raw length", raw_bytes.into());
        }
        if coded_bytes == 0 || coded_bytes > MAX_CODED_BYTES {
            return field("coded length", coded_bytes.into());
        }
        let coding = if flags & FLAG_LZ4 != 0 { Coding::Lz4 } else { Coding::Zstd };
        Ok(Some(Self { restarts: flags & FLAG_RESTART != 0, coding, raw_bytes, coded_bytes }))
    }

    /// The header to send in front of the coded bytes.
    pub fn to_bytes(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = if self.restarts { FLAG_RESTART } else { 0 };
        bytes[4] |= if self.coding == Coding::Lz4 { FLAG_LZ4 } else { 0 };
        bytes[8..12].copy_from_slice(&self.raw_bytes.to_le_bytes());
        bytes[12..].copy_from_slice(&self.coded_bytes.to_le_bytes());
        bytes
    }
}

/// How much is done to make chunks small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// What LZ4 does, with its window of 64 KiB.
    Lz4,
    /// What Zstandard does.
    Zstd {
        /// Its level.
        level: i32,
        /// The window, as a power of two; kept within [`MIN_WINDOW_LOG`] and [`MAX_WINDOW_LOG`].
        window_log: u32,
        /// Whether what was sent long ago is looked for too: costs time, and pays with a large window.
        long_distance: bool,
    },
}

/// What codes the bytes of a stream. Each appends to the chunk what came of the bytes so far, and may keep some back.
enum Encoder {
    Lz4(lz4::Encoder),
    Zstd(zst::Encoder),
}

/// Codes the frames of one stream.
pub struct Coder {
    encoder: Encoder,
    /// The next chunk depends on none before it.
    restarts: bool,
    /// The chunk being made: room for its header, and the coded frames.
    chunk: Vec<u8>,
    raw_bytes: usize,
}

impl std::fmt::Debug for Coder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coder").field("raw_bytes", &self.raw_bytes).finish_non_exhaustive()
    }
}

impl Coder {
    /// A coder that remembers nothing. Fails if there is no memory for it.
    pub fn new(strength: Strength) -> Result<Self, ChunkError> {
        let encoder = match strength {
            Strength::Lz4 => Encoder::Lz4(lz4::Encoder::default()),
            Strength::Zstd { level, window_log, long_distance } => {
                Encoder::Zstd(zst::Encoder::new(level, window_log, long_distance)?)
            }
        };
        Ok(Self { encoder, restarts: true, chunk: Vec::new(), raw_bytes: 0 })
    }

    /// Whether no frame was put into the chunk being made.
    pub fn is_empty(&self) -> bool {
        self.raw_bytes == 0
    }

    /// Whether a frame of `bytes` fits into the chunk being made.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.raw_bytes + bytes <= MAX_CHUNK_BYTES as usize
    }

    /// Adds a frame that there is room for; how many bytes it came to. After an error the coder has to be given up: the chunk
    /// being made is lost.
    pub fn push(&mut self, frame: &Frame) -> Result<usize, ChunkError> {
        if self.chunk.is_empty() {
            self.chunk.resize(CHUNK_HEADER_BYTES, 0);
        }
        let (header, payload) = (frame.header(), frame.payload());
        let before = self.chunk.len();
        match &mut self.encoder {
            Encoder::Lz4(encoder) => encoder.push(&[&header, &payload], &mut self.chunk)?,
            Encoder::Zstd(encoder) => encoder.push(&[&header, &payload], &mut self.chunk)?,
        }
        self.raw_bytes += HEADER_BYTES + payload.len();
        Ok(self.chunk.len() - before)
    }

    /// The chunk, to be sent before the next one; `None` if no frame was put into it.
    pub fn finish(&mut self) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        let header = ChunkHeader {
            restarts: std::mem::take(&mut self.restarts),
            coding: match self.encoder {
                Encoder::Lz4(_) => Coding::Lz4,
                Encoder::Zstd(_) => Coding::Zstd,
            },
            raw_bytes: std::mem::take(&mut self.raw_bytes) as u32,
            coded_bytes: (chunk.len() - CHUNK_HEADER_BYTES) as u32,
        };
        chunk[..CHUNK_HEADER_BYTES].copy_from_slice(&header.to_bytes());
        Some(chunk.into())
    }
}

/// What decodes the bytes of a stream.
enum Decoder {
    Lz4(lz4::Decoder),
    Zstd(zst::Decoder),
}

/// Opens the chunks of one stream, in order.
#[derive(Default)]
pub struct Opener {
    /// `None` before the first chunk, and after one that could not be opened.
    decoder: Option<Decoder>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").field("begun", &self.decoder.is_some()).finish_non_exhaustive()
    }
}

impl Opener {
    /// The frames of a chunk, one behind the other; `window_log` is the largest window that this stream may have. Takes
    /// memory for what the header says, which is bounded, and for the window. After an error no chunk that continues this one
    /// is opened any more.
    pub fn open(
        &mut self,
        header: &ChunkHeader,
        coded: &Bytes,
        window_log: u32,
    ) -> Result<Bytes, ChunkError> {
        if coded.len() != header.coded_bytes as usize {
            return Err(ChunkError::Short);
        }
        let known = self.decoder.take();
        let mut decoder = match (header.coding, known) {
            (Coding::Lz4, Some(Decoder::Lz4(known))) if !header.restarts => Decoder::Lz4(known),
            (Coding::Zstd, Some(Decoder::Zstd(known))) if !header.restarts => Decoder::Zstd(known),
            _ if !header.restarts => return Err(ChunkError::NotBegun),
            (Coding::Lz4, _) => Decoder::Lz4(lz4::Decoder::begin(coded)?),
            (Coding::Zstd, Some(Decoder::Zstd(known))) => Decoder::Zstd(known.begin_again(window_log)?),
            (Coding::Zstd, _) => Decoder::Zstd(zst::Decoder::begin(window_log)?),
        };
        let frames = match &mut decoder {
            Decoder::Lz4(decoder) => decoder.open(header.raw_bytes as usize, coded)?,
            Decoder::Zstd(decoder) => decoder.open(header.raw_bytes as usize, coded)?,
        };
        self.decoder = Some(decoder);
        Ok(frames)
    }
}

/// Takes the frames out of an opened chunk, from the first on.
#[derive(Debug)]
pub struct Frames {
    left: Bytes,
}

impl Frames {
    /// Of an opened chunk.
    pub fn of(raw: Bytes) -> Self {
        Self { left: raw }
    }
}

impl Iterator for Frames {
    type Item = Result<Frame, crate::frame::FrameError>;

    /// The next frame. After an error there is none.
    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let found = Frame::decode(&self.left);
        match &found {
            Ok((_, bytes)) => bytes::Buf::advance(&mut self.left, *bytes),
            Err(_) => self.left.clear(),
        }
        Some(found.map(|(frame, _)| frame))
    }
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
