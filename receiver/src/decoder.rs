//! What comes over a stream, as frames that stand for themselves: out of chunks that were coded together, or as they came.
//!
//! What leaves here depends on nothing that came before it, and its payload was compared with the checksum taken where the
//! write was admitted. Payloads that came in a chunk are compressed again, each by itself: a journal holds hours of them.

use std::collections::VecDeque;

use afterimage_protocol::chunk::{ChunkError, ChunkHeader, Frames, Opener};
use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Codec, Content, Frame, FrameError, Header, Payload, Record};
use bytes::Bytes;

/// From here on a chunk is opened on another thread: it would hold up what other streams and groups have to say.
const LONG_BYTES: u32 = 64 << 10;
/// A payload below this is not worth compressing.
const MIN_COMPRESSED_BYTES: usize = 512;
/// A chunk that lost less than one part in this many has payloads that do not shrink.
const SHRANK: u32 = 8;

/// Why there is no next frame.
#[derive(Debug)]
pub enum DecodeError {
    /// A frame that is none, or not the one that was sent.
    Frame(FrameError),
    /// The same of a chunk.
    Chunk(ChunkError),
    /// The process ends.
    Stopping,
}

impl From<FrameError> for DecodeError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<ChunkError> for DecodeError {
    fn from(error: ChunkError) -> Self {
        Self::Chunk(error)
    }
}

/// Opens the chunks of one stream. Beside what the group has room for it holds one chunk, coded and opened, and the window.
#[derive(Debug)]
pub struct Decoder {
    opener: Opener,
    window_log: u32,
    /// Of the last chunk, not yet taken.
    opened: VecDeque<Frame>,
}

impl Decoder {
    /// For a stream whose chunks may have a window of this many bytes, as a power of two.
    pub fn new(window_log: u32) -> Self {
        Self { opener: Opener::default(), window_log, opened: VecDeque::new() }
    }

    /// The next frame of the chunk that was opened last.
    pub fn next(&mut self) -> Option<Frame> {
        self.opened.pop_front()
    }

    /// Opens the next chunk of the stream, once all frames of the last one are taken. After an error the stream cannot be
    /// used.
    pub async fn open(&mut self, chunk: ChunkHeader, coded: Bytes) -> Result<(), DecodeError> {
        let window_log = self.window_log;
        if chunk.raw_bytes < LONG_BYTES {
            self.opened = open(&mut self.opener, &chunk, &coded, window_log)?;
            return Ok(());
        }
        let mut opener = std::mem::take(&mut self.opener);
        let opening = tokio::task::spawn_blocking(move || {
            let opened = open(&mut opener, &chunk, &coded, window_log);
            (opener, opened)
        });
        // Fails only by a panic, or as the runtime ends.
        let (opener, opened) = opening.await.map_err(|_| DecodeError::Stopping)?;
        self.opener = opener;
        self.opened = opened?;
        Ok(())
    }
}

/// A frame that came by itself, verified; `content` is the checksum of a raw payload.
pub fn whole_frame(header: &Header, payload: Bytes, content: Option<u64>) -> Result<Frame, DecodeError> {
    let mut frame = header.open_summed(payload, content)?;
    if let Some(payload) = payload_of(&mut frame) {
        codec::decode_opened(payload)?;
    }
    Ok(frame)
}

/// The frames of a chunk, verified.
fn open(
    opener: &mut Opener,
    chunk: &ChunkHeader,
    coded: &Bytes,
    window_log: u32,
) -> Result<VecDeque<Frame>, DecodeError> {
    let raw = opener.open(chunk, coded, window_log)?;
    let shrank = chunk.coded_bytes < chunk.raw_bytes - chunk.raw_bytes / SHRANK;
    let mut frames = VecDeque::new();
    for frame in Frames::of(raw) {
        let mut frame = frame?;
        if let Some(payload) = payload_of(&mut frame) {
            let raw = codec::decode_opened(payload)?;
            if shrank && payload.codec == Codec::Raw && raw.len() >= MIN_COMPRESSED_BYTES {
                *payload = codec::encode(Codec::Lz4, &raw, payload.checksum);
            }
        }
        frames.push_back(frame);
    }
    Ok(frames)
}

fn payload_of(frame: &mut Frame) -> Option<&mut Payload> {
    match frame {
        Frame::Record(Record { content: Content::Data(payload), .. })
        | Frame::Block(Block { content: Content::Data(payload), .. }) => Some(payload),
        _ => None,
    }
}
