//! The frames of a session: unidirectional streams from the source, each verified before its group sees it.
//!
//! A stream begins with [`PREFACE_BYTES`]: its kind and the session (u64, little-endian), so that a stream of another
//! session is never taken for one of this.

use std::sync::Arc;
use std::time::Duration;

use afterimage_protocol::SessionId;
use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Content, Frame, FrameError, HEADER_BYTES, Header, Record};
use afterimage_transport::{Connection, ConnectionLost, ReadError, ReadExactError, RecvStream};
use tokio::task::JoinSet;
use tracing::debug;

use crate::group::{Group, Input};
use crate::link::Link;

/// Bytes in front of the first frame.
pub const PREFACE_BYTES: usize = 9;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
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

/// Hands the stream's frames over, in order, as the group takes them.
async fn read_frames(
    mut stream: RecvStream,
    kind: Kind,
    group: &Group,
    link: &Link,
) -> Result<(), StreamError> {
    let bad = |source| StreamError::Frame { stream: kind.name(), source };
    let mut gate = link.watch_ordered();
    loop {
        if kind == Kind::Ordered {
            // Fails only once the link is gone.
            let _ = gate.wait_for(|takes| *takes).await;
        }
        let mut header = [0; HEADER_BYTES];
        match stream.read_exact(&mut header).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let header = Header::parse(&header).map_err(bad)?;
        let permit = group.room(HEADER_BYTES + header.payload_bytes()).await;
        let mut payload = vec![0; header.payload_bytes()];
        stream.read_exact(&mut payload).await?;
        let frame = header.open(payload.into()).map_err(bad)?;
        verify(&frame).map_err(bad)?;
        if !kind.carries(&frame) {
            return Err(StreamError::Misplaced(kind.name()));
        }
        if !group.send(Input::Frame { serial: link.serial, frame: Box::new(frame), permit }) {
            return Err(StreamError::Stopping);
        }
    }
}

/// Whether the payload is what was taken in at the source.
fn verify(frame: &Frame) -> Result<(), FrameError> {
    match frame {
        Frame::Record(Record { content: Content::Data(payload), .. })
        | Frame::Block(Block { content: Content::Data(payload), .. }) => codec::decode(payload).map(drop),
        _ => Ok(()),
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
