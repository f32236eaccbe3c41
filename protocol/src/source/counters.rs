//! What has happened since the source was started, for metrics: additions beside what is done anyway.

use super::*;
use crate::latency::Latencies;

/// Counts since the source was started.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// How long clients' writes took until they were answered.
    pub answered: Latencies,
    /// How long records took from their admission until they were on stable storage at the target.
    pub durable: Latencies,
    /// Bytes that clients wrote or zeroed, of each volume.
    pub written_bytes: Vec<u64>,
    /// Bytes that were read for catch-ups, repairs and verifications.
    pub read_bytes: u64,
}

impl Counters {
    pub(super) fn new(volumes: usize) -> Self {
        Self { written_bytes: vec![0; volumes], ..Self::default() }
    }

    pub(super) fn admitted(&mut self, range: ByteRange) {
        if let Some(bytes) = self.written_bytes.get_mut(range.volume.0 as usize) {
            *bytes += range.length;
        }
    }

    pub(super) fn answered(&mut self, now: Time, arrived: Time) {
        self.answered.note(now.since_us(arrived));
    }

    pub(super) fn read(&mut self, blocks: BlockRange, outcome: &ReadOutcome) {
        self.read_bytes += match outcome {
            ReadOutcome::Data(bytes, _) => bytes.len() as u64,
            other => other.blocks().min(blocks.count) * BLOCK_BYTES,
        };
    }
}

impl Source {
    /// What has happened since the source was started.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
