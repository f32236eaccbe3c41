//! The ordered, bounded queue between admission and the wire.
//!
//! Records stay after they were sent until they are durable at the target: a record freed on `received` would be lost
//! if the target's host lost power. Marks and epoch frames are gone once sent; a new session makes new ones.

use std::collections::VecDeque;

use crate::frame::{Frame, HEADER_BYTES, Record};
use crate::ids::{Sequence, Time};
use crate::latency::Latencies;

/// Bytes counted for a record besides its payload: what it costs in memory, roughly.
const OVERHEAD_BYTES: u64 = 256;

/// Records that nobody waits for are sent together if they come within this time, in microseconds: each sending costs both hosts
/// about as much as several records, and a client that writes one block after the other waits for the processor meanwhile.
pub(super) const GATHER_US: u64 = 5_000;
/// And this much does not wait, in bytes.
const GATHERED_BYTES: u64 = 256 << 10;

#[derive(Debug, Default)]
pub(super) struct Queue {
    sent: VecDeque<Record>,
    unsent: VecDeque<Frame>,
    bytes: u64,
    sent_bytes: u64,
}

fn cost(record: &Record) -> u64 {
    let payload = match &record.content {
        crate::frame::Content::Data(p) => p.encoded.len() as u64,
        crate::frame::Content::Zeroes { .. } => 0,
    };
    payload + OVERHEAD_BYTES + HEADER_BYTES as u64
}

impl Queue {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Those of them that were sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// What a record would add to [`Queue::bytes`].
    pub fn cost_of(payload_bytes: u64) -> u64 {
        payload_bytes + OVERHEAD_BYTES + HEADER_BYTES as u64
    }

    /// When the oldest record in the queue was admitted.
    pub fn oldest(&self) -> Option<Time> {
        self.sent.front().map(|r| r.time).or_else(|| {
            self.unsent.iter().find_map(|f| if let Frame::Record(r) = f { Some(r.time) } else { None })
        })
    }

    pub fn push(&mut self, frame: Frame) {
        if let Frame::Record(r) = &frame {
            self.bytes += cost(r);
        }
        self.unsent.push_back(frame);
    }

    /// Puts a frame that is not a record before all others.
    pub fn push_first(&mut self, frame: Frame) {
        debug_assert!(!matches!(frame, Frame::Record(_)));
        self.unsent.push_front(frame);
    }

    /// Takes the next frame to send; a record is kept until [`Queue::free`].
    pub fn take_next(&mut self, floor: Sequence) -> Option<Frame> {
        let mut frame = self.unsent.pop_front()?;
        if let Frame::Record(r) = &mut frame {
            r.floor = floor;
            self.sent_bytes += cost(r);
            self.sent.push_back(r.clone());
        }
        Some(frame)
    }

    /// Whether [`Queue::take_next`] has a frame.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Until when what was not sent may wait for more; `None` if it may not: it is much already, or not only records.
    pub fn gathers_until(&self) -> Option<Time> {
        if self.bytes - self.sent_bytes >= GATHERED_BYTES {
            return None;
        }
        match (self.unsent.front()?, self.unsent.back()?) {
            (Frame::Record(first), Frame::Record(_)) => Some(first.time.plus_us(GATHER_US)),
            _ => None,
        }
    }

    /// Frees sent records up to `sequence`.
    pub fn free(&mut self, sequence: Sequence) {
        while self.free_first(sequence).is_some() {}
    }

    /// [`Queue::free`], of records that are on stable storage at the target; how long that took each is noted.
    pub fn free_durable(&mut self, sequence: Sequence, now: Time, took: &mut Latencies) {
        while let Some(admitted) = self.free_first(sequence) {
            took.note(now.since_us(admitted));
        }
    }

    /// Frees the first record that was sent, if it is at or below `sequence`; when it was admitted.
    fn free_first(&mut self, sequence: Sequence) -> Option<Time> {
        self.sent.front().filter(|r| r.position.sequence <= sequence)?;
        let r = self.sent.pop_front()?;
        self.bytes -= cost(&r);
        self.sent_bytes -= cost(&r);
        Some(r.time)
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The first record held, sent or not.
    pub fn first_record(&self) -> Option<Sequence> {
        self.sent.front().map(|r| r.position.sequence).or_else(|| {
            self.unsent.iter().find_map(|f| match f {
                Frame::Record(r) => Some(r.position.sequence),
                _ => None,
            })
        })
    }

    /// For a new session: everything but records is dropped, records after `have` are to be sent again.
    pub fn rewind(&mut self, have: Sequence) {
        self.free(have);
        let unsent = std::mem::take(&mut self.unsent);
        let sent = std::mem::take(&mut self.sent);
        self.sent_bytes = 0;
        let records = unsent.into_iter().filter(|f| matches!(f, Frame::Record(_)));
        self.unsent = sent.into_iter().map(Frame::Record).chain(records).collect();
        while let Some(Frame::Record(r)) = self.unsent.front() {
            if r.position.sequence > have {
                break;
            }
            self.bytes -= cost(r);
            self.unsent.pop_front();
        }
    }

    /// Drops the records that were not sent and returns them, in order; other frames stay.
    pub fn drop_unsent_records(&mut self) -> Vec<Record> {
        let mut dropped = Vec::new();
        for frame in std::mem::take(&mut self.unsent) {
            match frame {
                Frame::Record(r) => {
                    self.bytes -= cost(&r);
                    dropped.push(r);
                }
                other => self.unsent.push_back(other),
            }
        }
        dropped
    }
}
