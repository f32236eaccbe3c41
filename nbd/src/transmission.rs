//! The transmission phase of one connection: requests in, replies out, many in flight.
//!
//! One task does all of it by turns: it sends what is done, reads what has come, starts what was read, and polls
//! what is in flight. A request whose backend is ready at once is answered in the same turn, with no task and no
//! wake-up in between; all replies of a turn leave in one write. A request holds its share of the [`Budget`] from
//! its header to the last byte of its reply, so a client that does not read its replies comes to a halt.
//!
//! Whatever ends the input, requests that have begun run to their end, and their replies are sent while the client
//! takes them.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    command::{self, Command},
    execute::{Answer, Done, Job},
    export::Errno,
    inbound::Inbound,
    limits::Limits,
    negotiation::Agreement,
    outbound::{Outbound, Sent},
    wire::{DecodeError, RequestHeader, codes},
};

/// After this many requests are done their replies are sent before more are looked at: the client gets to work on
/// them meanwhile. Half of what one write takes.
const SEND_EARLY_REQUESTS: usize = 16;

/// Why no more requests were read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the client disconnected")]
    Disconnect,
    /// The stream ended without `CMD_DISC`; `mid_request` says whether inside a request.
    #[error("the client vanished{}", if *mid_request { " in the middle of a request" } else { "" })]
    Vanished { mid_request: bool },
    #[error("the server shuts down")]
    Shutdown,
    #[error("the server shuts down and gave up on {requests} requests that took too long")]
    DrainTimeout { requests: usize },
    #[error("the client does not read its replies")]
    NotReading,
    #[error("the client is out of step: {0}")]
    Protocol(#[from] DecodeError),
    #[error("the client announced a write of {length_bytes} bytes")]
    OversizedWrite { length_bytes: u32 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the transmission phase to its end. `start` begins a job on the backend; `stop` is ready once the server
/// shuts down. Does not close the stream.
pub(crate) async fn run<S, G, F>(
    stream: &mut S,
    received: BytesMut,
    agreement: Agreement,
    limits: &Limits,
    stop: impl Future<Output = ()>,
    start: G,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
    G: Fn(Job) -> F,
    F: Future<Output = Done>,
{
    let mut transmission = Transmission {
        inbound: Inbound::new(received),
        outbound: Outbound::new(agreement.structured),
        reading: Reading::Header,
        end: None,
        stopping: false,
        broken: false,
        deadline: None,
        budget: Budget::new(limits),
        in_flight: FuturesUnordered::new(),
        agreement,
        limits,
        start,
    };
    let mut stop = pin!(stop);
    poll_fn(|cx| transmission.poll(cx, stream, stop.as_mut())).await
}

/// What comes next from the client.
enum Reading {
    Header,
    /// A request that the budget has no room for yet.
    Parked {
        cookie: u64,
        command: Command,
    },
    Payload {
        cookie: u64,
        command: Command,
        length: usize,
    },
    /// The payload of a write that was refused; the reply follows it.
    Discard {
        cookie: u64,
        errno: Errno,
        left: u32,
    },
}

struct Transmission<'a, G, F> {
    inbound: Inbound,
    outbound: Outbound,
    reading: Reading,
    /// Set once nothing more is read.
    end: Option<End>,
    /// The server shuts down: `stop` was ready and must not be asked again.
    stopping: bool,
    /// Nothing can be sent any more.
    broken: bool,
    /// When to give up after `end`.
    deadline: Option<Pin<Box<Sleep>>>,
    budget: Budget,
    in_flight: FuturesUnordered<F>,
    agreement: Agreement,
    limits: &'a Limits,
    start: G,
}

impl<G, F> Transmission<'_, G, F>
where
    G: Fn(Job) -> F,
    F: Future<Output = Done>,
{
    fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<End> {
        loop {
            if !self.stopping && stop.as_mut().poll(cx).is_ready() {
                self.stopping = true;
                self.finish_reading(End::Shutdown);
                self.set_deadline(self.limits.drain_timeout);
            }
            self.parse();
            let mut progress = self.collect(cx);
            progress |= self.send(cx, stream);
            if self.end.is_none() && self.wants_input() {
                progress |= self.fill(cx, stream);
            }
            if self.end.is_some() && self.in_flight.is_empty() && self.outbound.is_empty() {
                return Poll::Ready(self.take_end());
            }
            if self.expired(cx) {
                return Poll::Ready(self.give_up());
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// Begins every request that has fully come and that there is room for.
    fn parse(&mut self) {
        while self.end.is_none() {
            match self.reading {
                Reading::Header => match self.inbound.take_header() {
                    Ok(Some(header)) => self.begin(&header),
                    Ok(None) => return,
                    Err(error) => self.finish_reading(error.into()),
                },
                Reading::Parked { cookie, command } => {
                    if !self.budget.take(command.cost_bytes()) {
                        return;
                    }
                    if let Command::Write { length, .. } = command {
                        self.reading = Reading::Payload { cookie, command, length: length as usize };
                    } else {
                        self.reading = Reading::Header;
                        self.in_flight.push((self.start)(Job { cookie, command, payload: Bytes::new() }));
                    }
                }
                Reading::Payload { cookie, command, length } => {
                    let Some(payload) = self.inbound.take_payload(length) else { return };
                    self.reading = Reading::Header;
                    self.in_flight.push((self.start)(Job { cookie, command, payload }));
                }
                Reading::Discard { cookie, errno, left } => {
                    let left = self.inbound.discard(left);
                    self.reading = Reading::Discard { cookie, errno, left };
                    // The budget is asked last: a reply must find room like any other.
                    if left > 0 || !self.budget.take(0) {
                        return;
                    }
                    self.reading = Reading::Header;
                    self.outbound.push(Done { cookie, cost_bytes: 0, answer: Answer::Failure(errno) });
                }
            }
        }
    }

    /// Decides what a header means for what is read next.
    fn begin(&mut self, header: &RequestHeader) {
        let RequestHeader { cookie, length_bytes, .. } = *header;
        if header.command == codes::CMD_DISC {
            return self.finish_reading(End::Disconnect);
        }
        let is_write = header.command == codes::CMD_WRITE;
        if is_write && length_bytes > self.limits.max_discard_bytes.max(self.agreement.geometry.max_block) {
            return self.finish_reading(End::OversizedWrite { length_bytes });
        }
        self.reading = match command::check(header, &self.agreement) {
            Ok(command) => Reading::Parked { cookie, command },
            Err(errno) if matches!(header.command, codes::CMD_READ | codes::CMD_BLOCK_STATUS) => {
                Reading::Parked { cookie, command: Command::Refused { errno } }
            }
            Err(errno) => Reading::Discard { cookie, errno, left: if is_write { length_bytes } else { 0 } },
        };
    }

    /// Whether more input could be of use: not while a request waits for room.
    fn wants_input(&self) -> bool {
        match self.reading {
            Reading::Header | Reading::Payload { .. } => true,
            Reading::Parked { .. } => false,
            Reading::Discard { left, .. } => left > 0,
        }
    }

    /// Takes what the backend has done.
    fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        // Never skipped, however many replies wait: a request may hold what other connections need.
        for _ in 0..SEND_EARLY_REQUESTS {
            let Poll::Ready(Some(done)) = self.in_flight.poll_next_unpin(cx) else { break };
            progress = true;
            if self.broken {
                self.budget.release(&Sent { requests: 1, cost_bytes: done.cost_bytes });
            } else {
                self.outbound.push(done);
            }
        }
        progress
    }

    fn send<S: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> bool {
        let mut progress = false;
        while !self.outbound.is_empty() {
            match self.outbound.poll_send(cx, stream) {
                Poll::Pending => break,
                Poll::Ready(Ok(sent)) => self.budget.release(&sent),
                Poll::Ready(Err(error)) => {
                    self.broken = true;
                    self.outbound.clear();
                    self.finish_reading(error.into());
                }
            }
            progress = true;
        }
        if self.end.is_some() && self.in_flight.is_empty() && !self.outbound.is_empty() {
            self.set_deadline(self.limits.drain_timeout);
        }
        progress
    }

    fn fill<S: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> bool {
        match self.inbound.poll_fill(cx, stream) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => {
                let mid_request =
                    !matches!(self.reading, Reading::Header) || self.inbound.has_partial_header();
                self.finish_reading(End::Vanished { mid_request });
            }
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => self.finish_reading(error.into()),
        }
        true
    }

    /// The first reason is the one that is told.
    fn finish_reading(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.reading = Reading::Header;
        self.inbound = Inbound::new(BytesMut::new());
    }

    /// The first deadline stands.
    fn set_deadline(&mut self, after: Duration) {
        self.deadline.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + after)));
    }

    fn expired(&mut self, cx: &mut Context<'_>) -> bool {
        self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready())
    }

    fn give_up(&mut self) -> End {
        match self.in_flight.len() {
            0 => End::NotReading,
            requests => End::DrainTimeout { requests },
        }
    }

    fn take_end(&mut self) -> End {
        self.end.take().unwrap_or(End::Shutdown)
    }
}

/// What a connection may hold, and what it holds.
struct Budget {
    requests: usize,
    bytes: usize,
    requests_max: usize,
    bytes_max: usize,
}

impl Budget {
    fn new(limits: &Limits) -> Self {
        Self {
            requests: 0,
            bytes: 0,
            requests_max: limits.max_in_flight_requests.max(1),
            bytes_max: limits.max_in_flight_bytes,
        }
    }

    /// Takes room for one request, if there is any. A single request always has room.
    fn take(&mut self, cost_bytes: usize) -> bool {
        let fits = self.requests < self.requests_max && self.bytes + cost_bytes <= self.bytes_max;
        if fits || self.requests == 0 {
            self.requests += 1;
            self.bytes += cost_bytes;
            return true;
        }
        false
    }

    fn release(&mut self, sent: &Sent) {
        self.requests -= sent.requests;
        self.bytes -= sent.cost_bytes;
    }
}
