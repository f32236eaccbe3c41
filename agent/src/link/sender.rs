//! The streams with data: one ordered stream of records, and block streams whose frames may overtake each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use afterimage_protocol::SessionId;
use afterimage_protocol::codec;
use afterimage_protocol::frame::{Codec, Content, Frame, Payload};
use afterimage_transport::{Connection, SendStream};
use bytes::{Bytes, BytesMut};

use super::session::{Broken, lost};
use crate::group::Group;

/// Streams for blocks: enough that one lost packet does not hold up all.
pub(super) const BLOCK_STREAMS: usize = 3;
/// Frames that are taken and written together, in bytes.
const BATCH_BYTES: usize = 256 << 10;
/// A payload below this is not worth compressing.
const MIN_COMPRESSED_BYTES: usize = 512;
/// From here on a payload is compressed on another thread: it would hold up the acknowledgements.
const LONG_BYTES: usize = 64 << 10;
/// Up to here a payload is copied behind its header; a longer one is handed over as it is.
const COPIED_BYTES: usize = 16 << 10;
/// Records go before blocks.
const ORDERED_PRIORITY: i32 = 1;
const BLOCKS_PRIORITY: i32 = 0;
/// First byte of a stream: what it carries. The session follows, little-endian.
const ORDERED_KIND: u8 = b'O';
const BLOCKS_KIND: u8 = b'B';

/// What the sending tasks of a session share.
pub(super) struct Sender {
    group: Arc<Group>,
    probe: Probe,
}

impl Sender {
    pub fn new(group: Arc<Group>) -> Self {
        Self { group, probe: Probe::default() }
    }

    /// Sends records and what orders them.
    pub async fn run_ordered(self: Arc<Self>, connection: Connection, session: SessionId) -> Broken {
        let mut stream = match begin(&connection, ORDERED_KIND, ORDERED_PRIORITY, session).await {
            Ok(stream) => stream,
            Err(broken) => return broken,
        };
        loop {
            let frames = self.group.take_frames(BATCH_BYTES);
            if frames.is_empty() {
                self.group.frames.notified().await;
                continue;
            }
            let mut chunks = Chunks::default();
            for frame in frames {
                chunks.push(&self.compressed(frame).await);
            }
            if let Err(error) = stream.write_all_chunks(&mut chunks.finish()).await {
                return lost(error);
            }
        }
    }

    /// Sends blocks; several of these share the frames.
    pub async fn run_blocks(self: Arc<Self>, connection: Connection, session: SessionId) -> Broken {
        let mut stream = match begin(&connection, BLOCKS_KIND, BLOCKS_PRIORITY, session).await {
            Ok(stream) => stream,
            Err(broken) => return broken,
        };
        loop {
            // Taking one wakes the next stream if there are more.
            let Some(frame) = self.group.take_block() else {
                self.group.blocks.notified().await;
                continue;
            };
            let mut chunks = Chunks::default();
            chunks.push(&self.compressed(frame).await);
            if let Err(error) = stream.write_all_chunks(&mut chunks.finish()).await {
                return lost(error);
            }
        }
    }

    /// The frame with its payload compressed, where that is worth it.
    async fn compressed(self: &Arc<Self>, mut frame: Frame) -> Frame {
        let Some(payload) = payload_mut(&mut frame) else { return frame };
        let long = payload.encoded.len() >= MIN_COMPRESSED_BYTES;
        if payload.codec != Codec::Raw || !long || !self.probe.wants_to_try() {
            return frame;
        }
        let encode = |p: &Payload| codec::encode(Codec::Lz4, &p.encoded, p.checksum);
        *payload = if payload.encoded.len() < LONG_BYTES {
            encode(payload)
        } else {
            let raw = payload.clone();
            // Only a panic of the codec is an error here: the payload goes as it is.
            self.group.blocking.spawn_blocking(move || encode(&raw)).await.unwrap_or_else(|_| payload.clone())
        };
        self.probe.tried(payload.codec != Codec::Raw);
        frame
    }
}

async fn begin(
    connection: &Connection,
    kind: u8,
    priority: i32,
    session: SessionId,
) -> Result<SendStream, Broken> {
    let mut stream = connection.open_uni().await.map_err(lost)?;
    // Fails only on a stream that is closed, which the next write tells.
    let _ = stream.set_priority(priority);
    let mut preface = [kind; 9];
    preface[1..].copy_from_slice(&session.0.to_le_bytes());
    stream.write_all(&preface).await.map_err(lost)?;
    Ok(stream)
}

fn payload_mut(frame: &mut Frame) -> Option<&mut Payload> {
    match frame {
        Frame::Record(record) => match &mut record.content {
            Content::Data(payload) => Some(payload),
            Content::Zeroes { .. } => None,
        },
        Frame::Block(block) => match &mut block.content {
            Content::Data(payload) => Some(payload),
            Content::Zeroes { .. } => None,
        },
        _ => None,
    }
}

/// Encoded frames as few pieces of memory.
#[derive(Default)]
struct Chunks {
    done: Vec<Bytes>,
    last: BytesMut,
}

impl Chunks {
    fn push(&mut self, frame: &Frame) {
        let payload = frame.payload();
        self.last.extend_from_slice(&frame.header());
        if payload.len() <= COPIED_BYTES {
            self.last.extend_from_slice(&payload);
        } else {
            self.done.push(self.last.split().freeze());
            self.done.push(payload);
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.done.push(self.last.freeze());
        self.done.retain(|chunk| !chunk.is_empty());
        self.done
    }
}

/// Whether compressing is worth its time: after payloads that did not shrink, most are not tried.
#[derive(Default)]
struct Probe {
    failures: AtomicU32,
    to_skip: AtomicU32,
}

impl Probe {
    /// So many payloads in a row that did not shrink end the trying of each.
    const PATIENCE: u32 = 8;
    /// Then one in this many is tried.
    const INTERVAL: u32 = 32;

    fn wants_to_try(&self) -> bool {
        let skipped = self.to_skip.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        skipped.is_err()
    }

    fn tried(&self, shrank: bool) {
        if shrank {
            self.failures.store(0, Ordering::Relaxed);
            self.to_skip.store(0, Ordering::Relaxed);
        } else if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= Self::PATIENCE {
            self.failures.store(Self::PATIENCE - 1, Ordering::Relaxed);
            self.to_skip.store(Self::INTERVAL - 1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_shrink_is_seldom_tried_and_what_does_is_tried_again() {
        let probe = Probe::default();
        let tries = (0..1000).filter(|_| probe.wants_to_try().then(|| probe.tried(false)).is_some()).count();
        assert!((30..60).contains(&tries), "{tries}");
        while !probe.wants_to_try() {}
        probe.tried(true);
        assert!((0..8).all(|_| probe.wants_to_try().then(|| probe.tried(false)).is_some()));
    }
}
