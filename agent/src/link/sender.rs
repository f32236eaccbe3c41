//! The streams with data: one ordered stream of records, and block streams whose frames may overtake each other.

use std::sync::Arc;
use std::time::Instant;

use afterimage_protocol::SessionId;
use afterimage_protocol::chunk::MIN_WINDOW_LOG;
use afterimage_protocol::frame::Frame;
use afterimage_transport::{Connection, SendStream};

use super::encoder::Encoder;
use super::session::{Broken, lost};
use crate::group::Group;

/// Streams for blocks: enough that one lost packet does not hold up all.
pub(super) const BLOCK_STREAMS: usize = 3;
/// Frames that are taken and written together, in bytes.
const BATCH_BYTES: usize = 256 << 10;
/// The same of blocks, which several streams share.
const BLOCKS_BATCH_BYTES: usize = 64 << 10;
/// Records go before blocks.
const ORDERED_PRIORITY: i32 = 1;
const BLOCKS_PRIORITY: i32 = 0;
/// First byte of a stream: what it carries. The session follows, little-endian.
const ORDERED_KIND: u8 = b'O';
const BLOCKS_KIND: u8 = b'B';

/// What the sending tasks of a session share.
pub(super) struct Sender {
    group: Arc<Group>,
}

impl Sender {
    pub fn new(group: Arc<Group>) -> Self {
        Self { group }
    }

    /// Sends records and what orders them.
    pub async fn run_ordered(self: Arc<Self>, connection: Connection, session: SessionId) -> Broken {
        let mut stream = match begin(&connection, ORDERED_KIND, ORDERED_PRIORITY, session).await {
            Ok(stream) => stream,
            Err(broken) => return broken,
        };
        let mut encoder = Encoder::new(self.group.wire.window_log());
        loop {
            let frames = self.group.take_frames(BATCH_BYTES);
            if frames.is_empty() {
                self.group.frames.notified().await;
                continue;
            }
            match self.send(&connection, &mut stream, encoder, frames).await {
                Ok(back) => encoder = back,
                Err(broken) => return broken,
            }
        }
    }

    /// Sends blocks; several of these share the frames.
    pub async fn run_blocks(self: Arc<Self>, connection: Connection, session: SessionId) -> Broken {
        let mut stream = match begin(&connection, BLOCKS_KIND, BLOCKS_PRIORITY, session).await {
            Ok(stream) => stream,
            Err(broken) => return broken,
        };
        let mut encoder = Encoder::new(MIN_WINDOW_LOG);
        loop {
            // Taking some wakes the next stream if there are more.
            let frames = self.group.take_blocks(BLOCKS_BATCH_BYTES);
            if frames.is_empty() {
                self.group.blocks.notified().await;
                continue;
            }
            match self.send(&connection, &mut stream, encoder, frames).await {
                Ok(back) => encoder = back,
                Err(broken) => return broken,
            }
        }
    }

    /// Writes frames to a stream; the encoder comes back for the next ones.
    async fn send(
        &self,
        connection: &Connection,
        stream: &mut SendStream,
        mut encoder: Encoder,
        frames: Vec<Frame>,
    ) -> Result<Encoder, Broken> {
        let wire = &self.group.wire;
        encoder.set_effort(wire.effort()).map_err(lost)?;
        let bytes: usize = frames.iter().map(Frame::encoded_len).sum();
        let encoded = if bytes < encoder.long_bytes() {
            encoder.encode(frames)
        } else {
            let encoding = self.group.blocking.spawn_blocking(move || {
                let encoded = encoder.encode(frames);
                (encoder, encoded)
            });
            let encoded;
            (encoder, encoded) = encoding.await.map_err(lost)?;
            encoded
        };
        let (mut pieces, sent) = encoded.map_err(lost)?;
        wire.coded(sent);
        let began = Instant::now();
        stream.write_all_chunks(&mut pieces).await.map_err(lost)?;
        wire.written(began.elapsed().as_micros() as u64, connection);
        Ok(encoder)
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
