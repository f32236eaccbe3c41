//! Chunks: frames of a stream coded together, so that what was sent before need not be sent again.
//!
//! A stream carries frames as they are and chunks, in any order (docs/formats.md, "chunk"). The coded bytes of all chunks
//! of a stream are one Zstandard stream, flushed after each frame: a frame refers to whatever lies in the window in front of
//! it, such as the last version of the same page. A chunk that says that it restarts depends on none before it; the first
//! one of a stream has to. What is opened are plain frames: nothing that is stored depends on anything that is not.
//!
//! The window is memory at both ends. Nothing of it outlives the stream, so nothing of it is trusted after a reconnect.
//! Every frame carries its own checksums, which are verified after opening; a chunk adds none.

use bytes::Bytes;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

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
/// The longest coded form of [`MAX_CHUNK_BYTES`]: each frame may end a block, and none is shorter than its header.
const MAX_CODED_BYTES: u32 = MAX_CHUNK_BYTES + MAX_CHUNK_BYTES / 16;
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
    /// It depends on chunks that this stream did not carry.
    #[error("the chunk continues what was never begun")]
    NotBegun,
    /// The coded bytes are not what a coder makes.
    #[error("the chunk cannot be decoded: {0}")]
    Coding(&'static str),
}

/// A chunk's header whose lengths are within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// What follows depends on no chunk before this.
    pub restarts: bool,
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
        if flags & !FLAG_RESTART != 0 {
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
        Ok(Some(Self { restarts: flags & FLAG_RESTART != 0, raw_bytes, coded_bytes }))
    }

    /// The header to send in front of the coded bytes.
    pub fn to_bytes(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = if self.restarts { FLAG_RESTART } else { 0 };
        bytes[8..12].copy_from_slice(&self.raw_bytes.to_le_bytes());
        bytes[12..].copy_from_slice(&self.coded_bytes.to_le_bytes());
        bytes
    }
}

/// How much is done to make chunks small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strength {
    /// Zstandard's level.
    pub level: i32,
    /// The window, as a power of two; kept within [`MIN_WINDOW_LOG`] and [`MAX_WINDOW_LOG`].
    pub window_log: u32,
    /// Whether what was sent long ago is looked for too: costs time, and pays with a large window.
    pub long_distance: bool,
}

/// Codes the frames of one stream.
pub struct Coder {
    context: CCtx<'static>,
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
        let context = CCtx::try_create().ok_or(ChunkError::Coding("there is no memory for a coder"))?;
        let mut coder = Self { context, restarts: true, chunk: Vec::new(), raw_bytes: 0 };
        coder.restart(strength)?;
        Ok(coder)
    }

    /// Forgets everything, and goes on with another strength. No chunk may be open.
    pub fn restart(&mut self, strength: Strength) -> Result<(), ChunkError> {
        debug_assert!(self.is_empty());
        let window_log = strength.window_log.clamp(MIN_WINDOW_LOG, MAX_WINDOW_LOG);
        self.context.reset(ResetDirective::SessionAndParameters).map_err(coding)?;
        for parameter in [
            CParameter::CompressionLevel(strength.level),
            CParameter::WindowLog(window_log),
            CParameter::EnableLongDistanceMatching(strength.long_distance),
            // The stream has no end.
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
        ] {
            self.context.set_parameter(parameter).map_err(coding)?;
        }
        self.restarts = true;
        Ok(())
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
        self.chunk.reserve(zstd::zstd_safe::compress_bound(HEADER_BYTES + payload.len()));
        self.feed(&header)?;
        self.feed(&payload)?;
        loop {
            let at = self.chunk.len();
            let mut out = OutBuffer::around_pos(&mut self.chunk, at);
            let left = self.context.flush_stream(&mut out).map_err(coding)?;
            if left == 0 {
                break;
            }
            self.chunk.reserve(left);
        }
        self.raw_bytes += HEADER_BYTES + payload.len();
        Ok(self.chunk.len() - before)
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), ChunkError> {
        let mut input = InBuffer::around(bytes);
        while input.pos() < bytes.len() {
            let at = self.chunk.len();
            let mut out = OutBuffer::around_pos(&mut self.chunk, at);
            self.context.compress_stream(&mut out, &mut input).map_err(coding)?;
            if input.pos() < bytes.len() {
                self.chunk.reserve(bytes.len() - input.pos());
            }
        }
        Ok(())
    }

    /// The chunk, to be sent before the next one; `None` if no frame was put into it.
    pub fn finish(&mut self) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        let header = ChunkHeader {
            restarts: std::mem::take(&mut self.restarts),
            raw_bytes: std::mem::take(&mut self.raw_bytes) as u32,
            coded_bytes: (chunk.len() - CHUNK_HEADER_BYTES) as u32,
        };
        chunk[..CHUNK_HEADER_BYTES].copy_from_slice(&header.to_bytes());
        Some(chunk.into())
    }
}

/// Opens the chunks of one stream, in order.
#[derive(Default)]
pub struct Opener {
    /// `None` before the first chunk, and after one that could not be opened.
    context: Option<DCtx<'static>>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").field("begun", &self.context.is_some()).finish_non_exhaustive()
    }
}

impl Opener {
    /// The frames of a chunk, one behind the other; `window_log` is the largest window that this stream may have. Takes
    /// memory for what the header says, which is bounded, and for the window. After an error no chunk that continues this one
    /// is opened any more.
    pub fn open(&mut self, header: &ChunkHeader, coded: &[u8], window_log: u32) -> Result<Bytes, ChunkError> {
        if coded.len() != header.coded_bytes as usize {
            return Err(ChunkError::Short);
        }
        let mut context = match self.context.take() {
            Some(context) if !header.restarts => context,
            None if !header.restarts => return Err(ChunkError::NotBegun),
            known => known
                .or_else(DCtx::try_create)
                .ok_or(ChunkError::Coding("there is no memory for a decoder"))?,
        };
        if header.restarts {
            context.reset(ResetDirective::SessionAndParameters).map_err(coding)?;
            let window_log = window_log.clamp(MIN_WINDOW_LOG, MAX_WINDOW_LOG);
            context.set_parameter(DParameter::WindowLogMax(window_log)).map_err(coding)?;
        }
        let frames = decompress(&mut context, header.raw_bytes as usize, coded)?;
        self.context = Some(context);
        Ok(frames)
    }
}

/// Exactly `length` bytes out of all of `coded`.
fn decompress(context: &mut DCtx<'static>, length: usize, coded: &[u8]) -> Result<Bytes, ChunkError> {
    // Room for one more, so that what is too long shows.
    let mut raw = Vec::with_capacity(length + 1);
    let mut input = InBuffer::around(coded);
    loop {
        let (taken, had) = (input.pos(), raw.len());
        let mut out = OutBuffer::around_pos(&mut raw, had);
        let left = context.decompress_stream(&mut out, &mut input).map_err(coding)?;
        if left == 0 {
            return Err(ChunkError::Coding("it ends the stream of chunks"));
        }
        let all_taken = input.pos() == coded.len();
        let stuck = input.pos() == taken && raw.len() == had;
        if raw.len() > length || stuck || (all_taken && raw.len() < raw.capacity()) {
            break;
        }
    }
    if raw.len() != length || input.pos() != coded.len() {
        return Err(ChunkError::Coding("its frames have another length than it says"));
    }
    Ok(raw.into())
}

fn coding(code: usize) -> ChunkError {
    ChunkError::Coding(zstd::zstd_safe::get_error_name(code))
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
