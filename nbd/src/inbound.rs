//! The receiving half of a connection: bytes of the socket, cut into request headers and payloads.
//!
//! Small payloads are slices of the receive buffer, large ones are read straight into a buffer of their own, so
//! that a payload is copied once, by the kernel (of a large one, the little that came with its header is copied
//! a second time).

use std::{
    future::Future,
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use afterimage_memory::Buffer;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::wire::{self, DecodeError, REQUEST_HEADER_BYTES, RequestHeader};

/// The receive buffer, and so the most that one read takes in: some sixty requests of 4 KiB, about what a socket
/// buffer holds.
const BUFFER_BYTES: usize = 256 << 10;
/// With less room than this the buffer is renewed before a read, so that reads do not get small.
const ROOM_BYTES_MIN: usize = 32 << 10;
/// From here on a payload gets a buffer of its own: below, sharing is cheaper than a second read.
const LARGE_BYTES: usize = 64 << 10;
/// After a large payload the next header is read with no more than this behind it: another large payload is
/// likely, and what is read here of it must be copied.
const PEEK_BYTES: usize = 512;

/// Received and not yet taken.
pub(crate) struct Inbound {
    buffer: BytesMut,
    /// A large payload that is being received, with room for what is missing of it.
    large: Option<Buffer>,
    /// Bytes that the small payload waited for needs in `buffer`.
    needed_bytes: usize,
    after_large: bool,
}

impl Inbound {
    /// Begins with what was received behind the handshake.
    pub(crate) fn new(received: BytesMut) -> Self {
        Self { buffer: received, large: None, needed_bytes: 0, after_large: false }
    }

    /// Reads once. Returns how many bytes came; 0 is the end of the stream.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<usize>> {
        if let Some(payload) = &mut self.large {
            return pin!(stream.read_buf(payload)).poll(cx);
        }
        self.make_room();
        if self.after_large && self.needed_bytes == 0 {
            return pin!(stream.read_buf(&mut (&mut self.buffer).limit(PEEK_BYTES))).poll(cx);
        }
        let received = ready!(pin!(stream.read_buf(&mut self.buffer)).poll(cx));
        Poll::Ready(received)
    }

    /// The next request header, once it is there.
    pub(crate) fn take_header(&mut self) -> Result<Option<RequestHeader>, DecodeError> {
        let Some(bytes) = self.buffer.get(..REQUEST_HEADER_BYTES) else { return Ok(None) };
        let header = wire::decode_request(bytes)?;
        self.buffer.advance(REQUEST_HEADER_BYTES);
        Ok(Some(header))
    }

    /// Whether something is there that is not a whole header.
    pub(crate) fn has_partial_header(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The payload behind the header that was taken last, once all of it is there. Ask with the same length until
    /// it is.
    pub(crate) fn take_payload(&mut self, length: usize) -> Option<Bytes> {
        if self.large.is_some() {
            return self.large.take_if(|payload| payload.len() == length).map(Buffer::freeze);
        }
        if self.buffer.len() >= length {
            self.needed_bytes = 0;
            self.after_large = length >= LARGE_BYTES;
            return Some(self.buffer.split_to(length).freeze());
        }
        if length >= LARGE_BYTES {
            let mut payload = Buffer::new(length);
            payload.put(self.buffer.split());
            self.large = Some(payload);
            self.after_large = true;
        } else {
            self.needed_bytes = length;
        }
        None
    }

    /// Drops up to `left` bytes of a payload that nobody wants; returns how many are still to come.
    pub(crate) fn discard(&mut self, left: u32) -> u32 {
        self.after_large = false;
        let here = self.buffer.len().min(left as usize);
        self.buffer.advance(here);
        // At most `left`, so the cast keeps the value.
        left - here as u32
    }

    fn make_room(&mut self) {
        if self.buffer.is_empty() {
            // Starts over in the same memory when no payload holds on to it.
            let _ = self.buffer.try_reclaim(BUFFER_BYTES);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let missing = self.needed_bytes.saturating_sub(self.buffer.len());
        if room < ROOM_BYTES_MIN.max(missing) {
            self.buffer.reserve(BUFFER_BYTES - self.buffer.len().min(BUFFER_BYTES / 2));
        }
    }
}
