//! The sending half of a connection: replies that wait for the socket, written many at a time.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::{
    execute::{Answer, Done},
    export::Errno,
    wire::{self, Head},
};

/// Pieces of one vectored write: the heads and data of 32 replies. More gains nothing that can be measured.
const PIECES_MAX: usize = 64;

/// A reply, or one chunk of it.
struct Frame {
    head: Head,
    data: Bytes,
    /// On the last frame of a reply: the bytes that the request was charged.
    charge: Option<usize>,
}

impl Frame {
    fn len(&self) -> usize {
        self.head.as_slice().len() + self.data.len()
    }
}

/// Requests whose reply has been handed to the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) requests: usize,
    pub(crate) cost_bytes: usize,
}

/// Replies that have not been sent.
pub(crate) struct Outbound {
    structured: bool,
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that have been sent.
    sent_bytes: usize,
}

impl Outbound {
    pub(crate) fn new(structured: bool) -> Self {
        Self { structured, frames: VecDeque::new(), sent_bytes: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Forgets everything: the client is gone.
    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.sent_bytes = 0;
    }

    /// Queues the reply to a request.
    pub(crate) fn push(&mut self, done: Done) {
        let Done { cookie, cost_bytes, answer } = done;
        let charge = Some(cost_bytes);
        let bare = |head| Frame { head, data: Bytes::new(), charge };
        let frame = match answer {
            Answer::Success => bare(wire::encode_simple(cookie, 0)),
            Answer::Failure(errno) => bare(wire::encode_simple(cookie, errno.code())),
            Answer::DataFailure(errno) if self.structured => {
                bare(wire::encode_error_chunk(cookie, errno.code()))
            }
            Answer::DataFailure(errno) => bare(wire::encode_simple(cookie, errno.code())),
            Answer::Data { data, .. } if self.structured && data.is_empty() => {
                bare(wire::encode_none_chunk(cookie))
            }
            Answer::Data { offset, data } if self.structured => {
                Frame { head: wire::encode_data_chunk(cookie, offset, length_of(&data)), data, charge }
            }
            Answer::Data { data, .. } => Frame { head: wire::encode_simple(cookie, 0), data, charge },
            Answer::Status(mut contexts) => {
                let Some((context, data)) = contexts.pop() else {
                    return self.frames.push_back(bare(wire::encode_error_chunk(cookie, Errno::Io.code())));
                };
                for (context, data) in contexts {
                    let head = wire::encode_status_chunk(cookie, context.id(), length_of(&data), false);
                    self.frames.push_back(Frame { head, data, charge: None });
                }
                let head = wire::encode_status_chunk(cookie, context.id(), length_of(&data), true);
                Frame { head, data, charge }
            }
        };
        self.frames.push_back(frame);
    }

    /// Writes once, as much as the socket takes of the first frames. Not for an empty queue.
    pub(crate) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<Sent>> {
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let mut skip = self.sent_bytes;
        let parts = self.frames.iter().flat_map(|frame| [frame.head.as_slice(), &frame.data[..]]);
        let rest = parts.filter_map(|part| {
            let rest = part.get(skip.min(part.len())..).unwrap_or_default();
            skip = skip.saturating_sub(part.len());
            (!rest.is_empty()).then_some(rest)
        });
        let mut count = 0;
        for (piece, part) in pieces.iter_mut().zip(rest) {
            *piece = IoSlice::new(part);
            count += 1;
        }
        let pieces = pieces.get(..count).unwrap_or_default();
        let written = ready!(Pin::new(stream).poll_write_vectored(cx, pieces))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok(self.advance(written)))
    }

    fn advance(&mut self, written: usize) -> Sent {
        let mut sent = Sent::default();
        self.sent_bytes += written;
        while let Some(frame) = self.frames.front() {
            let Some(beyond) = self.sent_bytes.checked_sub(frame.len()) else { break };
            self.sent_bytes = beyond;
            if let Some(cost_bytes) = frame.charge {
                sent.requests += 1;
                sent.cost_bytes += cost_bytes;
            }
            self.frames.pop_front();
        }
        sent
    }
}

/// Data of a reply is never longer than the largest block.
fn length_of(data: &Bytes) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}
