//! The frames of a session: unidirectional streams from the source, each verified before its group sees it.
//!
//! A stream begins with [`PREFACE_BYTES`]: its kind and the session (u64, little-endian), so that a stream of another
//! session is never taken for one of this.

use std::sync::Arc;
use std::time::Duration;

use afterimage_memory::Buffer;
use afterimage_protocol::SessionId;
use afterimage_protocol::chunk::{
    CHUNK_HEADER_BYTES, ChunkError, ChunkHeader, MAX_WINDOW_LOG, MIN_WINDOW_LOG,
};
use afterimage_protocol::codec::ContentSum;
use afterimage_protocol::frame::{Frame, FrameError, HEADER_BYTES, Header};
use afterimage_transport::{Connection, ConnectionLost, ReadError, ReadExactError, RecvStream};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::task::JoinSet;
use tracing::debug;

use crate::decoder::{self, DecodeError, Decoder};
use crate::group::{Group, Input, Permit};
use crate::link::Link;

/// Bytes in front of the first frame.
pub const PREFACE_BYTES: usize = 9;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames that are handed over together, at most: each has room in the group's budget.
const FRAMES_MAX: usize = 64;
/// A frame of this many bytes is handed over at once.
const LONG_BYTES: usize = 64 << 10;
/// What is taken from a stream at once, in bytes: it comes in pieces of a packet.
const READ_BYTES: usize = 16 << 10;
/// What a stream of another session is stopped with.
const OTHER_SESSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The group's write order: one stream a session.
    Ordered,
    /// Blocks of an epoch: any number.
    Blocks,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ordered => "ordered stream",
            Kind::Blocks => "block stream",
        }
    }

    /// The largest window of its chunks, as a power of two: blocks of a catch-up have little to do with each other.
    fn window_log(self) -> u32 {
        match self {
            Kind::Ordered => MAX_WINDOW_LOG,
            Kind::Blocks => MIN_WINDOW_LOG,
        }
    }

    fn carries(self, frame: &Frame) -> bool {
        matches!(frame, Frame::Block(_) | Frame::Compare(_)) == (self == Kind::Blocks)
    }
}

/// Why a stream cannot be used; the session ends.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is gone.
    #[error(transparent)]
    Lost(#[from] ConnectionLost),
    /// Reading failed otherwise.
    #[error("a stream broke off: {0}")]
    Read(#[from] ReadError),
    /// The stream ended inside its preface or a frame.
    #[error("a stream ended in the middle of a frame")]
    Truncated,
    /// No preface came.
    #[error("a stream did not say what it carries")]
    NoPreface,
    /// A preface of no known kind.
    #[error("a stream of the unknown kind {0:#04x}")]
    Kind(u8),
    /// A second ordered stream.
    #[error("a second ordered stream")]
    SecondOrdered,
    /// Bytes that are no frame, or not the one that was sent.
    #[error("{stream}: {source}")]
    Frame {
        /// Which kind of stream.
        stream: &'static str,
        /// What is wrong.
        source: FrameError,
    },
    /// Bytes that are no chunk, or not the one that was sent.
    #[error("{stream}: {source}")]
    Chunk {
        /// Which kind of stream.
        stream: &'static str,
        /// What is wrong.
        source: ChunkError,
    },
    /// A frame on the wrong kind of stream.
    #[error("a frame on the {0} that belongs on another kind of stream")]
    Misplaced(&'static str),
    /// The group's thread is gone.
    #[error("the receiver stops")]
    Stopping,
}

/// Takes streams until one of them breaks the protocol or the connection ends. A stream that ends in good order, or is of
/// another session, ends by itself.
pub async fn accept(
    connection: &Connection,
    group: &Arc<Group>,
    link: &Arc<Link>,
) -> Result<(), StreamError> {
    link.begun().await;
    let mut streams = JoinSet::new();
    let mut has_ordered = false;
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let (stream, group, link) = (stream?, group.clone(), link.clone());
                streams.spawn(async move {
                    let read = begin(stream, link.session).await?;
                    Ok::<_, StreamError>(read.map(|(kind, stream)| (kind, stream, group, link)))
                });
            }
            Some(done) = streams.join_next() => match done {
                Ok(Ok(Some((kind, stream, group, link)))) => {
                    if kind == Kind::Ordered && std::mem::replace(&mut has_ordered, true) {
                        return Err(StreamError::SecondOrdered);
                    }
                    streams.spawn(async move {
                        read_frames(stream, kind, &group, &link).await?;
                        Ok(None)
                    });
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(StreamError::Stopping),
            },
        }
    }
}

/// Reads the preface; `None` for a stream of another session, which is stopped.
async fn begin(
    mut stream: RecvStream,
    session: SessionId,
) -> Result<Option<(Kind, RecvStream)>, StreamError> {
    let mut preface = [0; PREFACE_BYTES];
    let read = tokio::time::timeout(PREFACE_TIMEOUT, stream.read_exact(&mut preface)).await;
    read.map_err(|_| StreamError::NoPreface)??;
    let [kind, id @ ..] = preface;
    let kind = match kind {
        b'O' => Kind::Ordered,
        b'B' => Kind::Blocks,
        other => return Err(StreamError::Kind(other)),
    };
    let id = SessionId(u64::from_le_bytes(id));
    if id != session {
        debug!(session = session.0, other = id.0, "a stream of another session was stopped");
        // Fails only for a stream that has ended by itself.
        let _ = stream.stop(OTHER_SESSION.into());
        return Ok(None);
    }
    Ok(Some((kind, stream)))
}

/// Hands the stream's frames over, in order, as the group takes them; those that have come together, together.
async fn read_frames(
    mut stream: RecvStream,
    kind: Kind,
    group: &Group,
    link: &Link,
) -> Result<(), StreamError> {
    let bad = |error| match error {
        DecodeError::Frame(source) => StreamError::Frame { stream: kind.name(), source },
        DecodeError::Chunk(source) => StreamError::Chunk { stream: kind.name(), source },
        DecodeError::Stopping => StreamError::Stopping,
    };
    let mut gate = link.watch_ordered();
    let mut received = Received::default();
    let mut decoder = Decoder::new(kind.window_log());
    let mut frames = Vec::new();
    loop {
        if kind == Kind::Ordered {
            // Fails only once the link is gone.
            let _ = gate.wait_for(|takes| *takes).await;
        }
        loop {
            let (frame, permit) = if let Some(frame) = decoder.next() {
                let permit = room(group, link, &mut frames, frame.encoded_len()).await?;
                (frame, permit)
            } else {
                let begins = match received.fill(&mut stream, CHUNK_HEADER_BYTES, frames.is_empty()).await? {
                    Filled::Whole => ChunkHeader::parse(&received.0).map_err(|e| bad(e.into()))?,
                    Filled::InPart => break,
                    Filled::End if received.0.is_empty() => {
                        hand_over(group, link, &mut frames).await?;
                        return Ok(());
                    }
                    Filled::End => return Err(StreamError::Truncated),
                };
                if let Some(chunk) = begins {
                    received.0.advance(CHUNK_HEADER_BYTES);
                    let bytes = chunk.coded_bytes as usize;
                    let here = (chunk.raw_bytes as usize) < LONG_BYTES
                        && matches!(received.fill(&mut stream, bytes, false).await?, Filled::Whole);
                    if !here {
                        // The rest, or its opening, may take long.
                        hand_over(group, link, &mut frames).await?;
                    }
                    let coded = received.payload(&mut stream, bytes, None).await?;
                    decoder.open(chunk, coded).await.map_err(bad)?;
                    continue;
                }
                let header = match received.fill(&mut stream, HEADER_BYTES, frames.is_empty()).await? {
                    Filled::Whole => Header::parse(&received.take_header()).map_err(|e| bad(e.into()))?,
                    Filled::InPart => break,
                    Filled::End => return Err(StreamError::Truncated),
                };
                let payload_bytes = header.payload_bytes();
                let bytes = HEADER_BYTES + payload_bytes;
                let permit = room(group, link, &mut frames, bytes).await?;
                let here = bytes < LONG_BYTES
                    && matches!(received.fill(&mut stream, payload_bytes, false).await?, Filled::Whole);
                if !here {
                    // The rest may be long in coming.
                    hand_over(group, link, &mut frames).await?;
                }
                let mut sum = header.is_raw().then(ContentSum::default);
                let payload = received.payload(&mut stream, payload_bytes, sum.as_mut()).await?;
                (decoder::whole_frame(&header, payload, sum.map(|sum| sum.finish())).map_err(bad)?, permit)
            };
            if !kind.carries(&frame) {
                return Err(StreamError::Misplaced(kind.name()));
            }
            let bytes = frame.encoded_len();
            frames.push(Input::Frame { serial: link.serial, frame: Box::new(frame), permit });
            if frames.len() >= FRAMES_MAX || bytes >= LONG_BYTES {
                break;
            }
        }
        hand_over(group, link, &mut frames).await?;
    }
}

/// Room for `bytes`; if there is none, what was read is handed over before it is waited for.
async fn room(
    group: &Group,
    link: &Link,
    frames: &mut Vec<Input>,
    bytes: usize,
) -> Result<Permit, StreamError> {
    Ok(match group.room_now(bytes) {
        Some(permit) => permit,
        None => {
            hand_over(group, link, frames).await?;
            group.room(bytes).await
        }
    })
}

/// Hands over what was read; if the journal is to be synced here, answers go first.
async fn hand_over(group: &Group, link: &Link, frames: &mut Vec<Input>) -> Result<(), StreamError> {
    if frames.is_empty() {
        return Ok(());
    }
    let sync = group.hand_over(frames, link.is_alone()).ok_or(StreamError::Stopping)?;
    if sync.is_due() {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// What there is of what was waited for.
enum Filled {
    Whole,
    /// Not all of it has come yet.
    InPart,
    /// The stream has ended before it.
    End,
}

/// Bytes of a stream that were received and not taken.
#[derive(Default)]
struct Received(BytesMut);

impl Received {
    /// Receives until there are `bytes`; waits for them only if `may_wait`.
    async fn fill(
        &mut self,
        stream: &mut RecvStream,
        bytes: usize,
        may_wait: bool,
    ) -> Result<Filled, StreamError> {
        while self.0.len() < bytes {
            let chunk = stream.read_chunk(READ_BYTES, true);
            let chunk = if may_wait { Some(chunk.await) } else { chunk.now_or_never() };
            match chunk.transpose()? {
                None => return Ok(Filled::InPart),
                Some(Some(chunk)) => self.0.extend_from_slice(&chunk.bytes),
                Some(None) => return Ok(Filled::End),
            }
        }
        Ok(Filled::Whole)
    }

    /// The header that [`Received::fill`] has found whole.
    fn take_header(&mut self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        self.0.copy_to_slice(&mut header);
        header
    }

    /// The next `length` bytes, which are waited for, and added to `sum` as they come. Long ones are in memory that a disk takes
    /// as it is.
    async fn payload(
        &mut self,
        stream: &mut RecvStream,
        length: usize,
        mut sum: Option<&mut ContentSum>,
    ) -> Result<Bytes, StreamError> {
        let mut add = |part: &[u8]| {
            if let Some(sum) = &mut sum {
                sum.add(part);
            }
        };
        if self.0.len() >= length {
            let payload = self.0.split_to(length).freeze();
            add(&payload);
            return Ok(payload);
        }
        let mut payload = Buffer::new(length);
        let begun = self.0.split();
        add(&begun);
        payload.put_slice(&begun);
        while payload.len() < length {
            let chunk =
                stream.read_chunk(length - payload.len(), true).await?.ok_or(StreamError::Truncated)?;
            add(&chunk.bytes);
            payload.put_slice(&chunk.bytes);
        }
        Ok(payload.freeze())
    }
}

impl From<ReadExactError> for StreamError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Truncated,
            ReadExactError::ReadError(error) => Self::Read(error),
        }
    }
}
