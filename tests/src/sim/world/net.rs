//! The simulated network: one connection at a time counts, older ones may still deliver.

use std::collections::VecDeque;

use afterimage_protocol::SessionId;
use bytes::Bytes;

/// Block streams of a connection.
pub const BLOCK_STREAMS: usize = 3;

/// A connection from the source to the target.
#[derive(Default)]
pub struct Connection {
    /// The session that it carries.
    pub session: SessionId,
    /// Encoded control messages.
    pub to_target: VecDeque<Vec<u8>>,
    pub to_source: VecDeque<Vec<u8>>,
    /// Encoded frames.
    pub ordered: VecDeque<Bytes>,
    pub blocks: [VecDeque<Bytes>; BLOCK_STREAMS],
    /// A record was lost on it, as no connection should: it may hang, and is not kept when everything is mended.
    pub lossy: bool,
    /// The source has let go of it.
    pub source_gone: bool,
    /// The target has.
    pub target_gone: bool,
}

impl Connection {
    pub fn new(session: SessionId) -> Self {
        Self { session, ..Self::default() }
    }

    pub fn is_over(&self) -> bool {
        self.source_gone && self.target_gone
    }
}
