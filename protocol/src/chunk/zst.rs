//! One Zstandard stream (RFC 8878) that is flushed after each frame and never ended.

use bytes::Bytes;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::{ChunkError, MAX_WINDOW_LOG, MIN_WINDOW_LOG};

/// Codes a stream.
pub(super) struct Encoder {
    context: CCtx<'static>,
}

impl Encoder {
    /// Begins a stream.
    pub fn new(level: i32, window_log: u32, long_distance: bool) -> Result<Self, ChunkError> {
        let mut context = CCtx::try_create().ok_or(ChunkError::Coding("there is no memory for a coder"))?;
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::WindowLog(window_log.clamp(MIN_WINDOW_LOG, MAX_WINDOW_LOG)),
            CParameter::EnableLongDistanceMatching(long_distance),
            // The stream has no end.
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
        ] {
            context.set_parameter(parameter).map_err(coding)?;
        }
        Ok(Self { context })
    }

    /// Appends to `out` all that `parts` come to.
    pub fn push(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), ChunkError> {
        out.reserve(zstd::zstd_safe::compress_bound(parts.iter().map(|part| part.len()).sum()));
        for part in parts {
            self.feed(part, out)?;
        }
        loop {
            let at = out.len();
            let left =
                self.context.flush_stream(&mut OutBuffer::around_pos(&mut *out, at)).map_err(coding)?;
            if left == 0 {
                return Ok(());
            }
            out.reserve(left);
        }
    }

    fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ChunkError> {
        let mut input = InBuffer::around(bytes);
        while input.pos() < bytes.len() {
            let at = out.len();
            let mut coded = OutBuffer::around_pos(&mut *out, at);
            self.context.compress_stream(&mut coded, &mut input).map_err(coding)?;
            if input.pos() < bytes.len() {
                out.reserve(bytes.len() - input.pos());
            }
        }
        Ok(())
    }
}

/// Decodes a stream.
pub(super) struct Decoder {
    context: DCtx<'static>,
}

impl Decoder {
    /// Begins a stream whose window may be as large as `window_log` says.
    pub fn begin(window_log: u32) -> Result<Self, ChunkError> {
        let context = DCtx::try_create().ok_or(ChunkError::Coding("there is no memory for a decoder"))?;
        Self { context }.begin_again(window_log)
    }

    /// Forgets the stream so far and begins another.
    pub fn begin_again(mut self, window_log: u32) -> Result<Self, ChunkError> {
        self.context.reset(ResetDirective::SessionAndParameters).map_err(coding)?;
        let window_log = window_log.clamp(MIN_WINDOW_LOG, MAX_WINDOW_LOG);
        self.context.set_parameter(DParameter::WindowLogMax(window_log)).map_err(coding)?;
        Ok(self)
    }

    /// Exactly `length` bytes out of all of `coded`.
    pub fn open(&mut self, length: usize, coded: &[u8]) -> Result<Bytes, ChunkError> {
        // Room for one more, so that what is too long shows.
        let mut raw = Vec::with_capacity(length + 1);
        let mut input = InBuffer::around(coded);
        loop {
            let (taken, had) = (input.pos(), raw.len());
            let mut out = OutBuffer::around_pos(&mut raw, had);
            let left = self.context.decompress_stream(&mut out, &mut input).map_err(coding)?;
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
            return Err(super::OTHER_LENGTH);
        }
        Ok(raw.into())
    }
}

fn coding(code: usize) -> ChunkError {
    ChunkError::Coding(zstd::zstd_safe::get_error_name(code))
}
