//! How fast the path delivers: a sample for each batch of acknowledgements.
//!
//! The method is that of the Internet draft "Delivery Rate Estimation" (draft-cheng-iccrg-delivery-rate-estimation): each
//! packet remembers how much had been delivered when it was sent. When it is acknowledged, what was delivered since,
//! divided by the longer of the time the sending and the acknowledging took, is no more than the path can do. A sample
//! taken while the application had nothing to send is marked: it is a lower bound only.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Sendings that are remembered. One for each moment something was sent, so that a window of any size here fits; what is
/// beyond is forgotten, and its acknowledgement gives no sample.
const MAX_SENDINGS: usize = 16 << 10;

/// What is known of a path by one batch of acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Bytes per second that were delivered; `None` if the time is too short to say.
    pub(super) rate: Option<u64>,
    /// The application sent less than it could, so the path may be faster.
    pub(super) is_app_limited: bool,
    /// From the sending of the newest packet acknowledged to now.
    pub(super) rtt: Duration,
    /// Bytes delivered when that packet was sent.
    pub(super) delivered_before: u64,
    /// Bytes that this batch acknowledges.
    pub(super) acked: u64,
}

/// Remembers sendings until they are acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Sampler {
    delivered: u64,
    delivered_at: Instant,
    /// When the newest packet acknowledged so far was sent: the sending time of a sample begins there.
    first_sent_at: Instant,
    /// The sampling is app-limited until more than so much is delivered.
    app_limited_until: Option<u64>,
    in_flight: u64,
    /// Ascending in time.
    sendings: VecDeque<Sending>,
    batch: Option<Batch>,
}

#[derive(Debug, Clone, Copy)]
struct Sending {
    at: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    is_app_limited: bool,
}

#[derive(Debug, Clone, Copy)]
struct Batch {
    newest_sent_at: Instant,
    bytes: u64,
}

impl Sampler {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            delivered: 0,
            delivered_at: now,
            first_sent_at: now,
            app_limited_until: None,
            in_flight: 0,
            sendings: VecDeque::new(),
            batch: None,
        }
    }

    /// Bytes acknowledged so far.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Bytes under way: as of the last batch, and what was sent since.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Notes that packets were sent.
    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64) {
        if self.in_flight == 0 {
            // After a pause there is no earlier packet to measure from.
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        self.in_flight += bytes;
        if self.sendings.back().is_some_and(|last| last.at >= now) {
            return;
        }
        if self.sendings.len() == MAX_SENDINGS {
            self.sendings.pop_front();
        }
        self.sendings.push_back(Sending {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            is_app_limited: self.app_limited_until.is_some_and(|until| self.delivered <= until),
        });
    }

    /// Notes that a packet sent at `sent_at` was acknowledged. [`Sampler::finish`] ends the batch.
    pub(super) fn on_ack(&mut self, sent_at: Instant, bytes: u64) {
        self.delivered += bytes;
        let batch = self.batch.get_or_insert(Batch { newest_sent_at: sent_at, bytes: 0 });
        batch.newest_sent_at = batch.newest_sent_at.max(sent_at);
        batch.bytes += bytes;
    }

    /// Ends a batch of acknowledgements. `in_flight` is what is under way after it; a rate measured over less than
    /// `shortest` is none, because it is that of a burst.
    pub(super) fn finish(
        &mut self,
        now: Instant,
        in_flight: u64,
        is_app_limited: bool,
        shortest: Duration,
    ) -> Option<Sample> {
        self.in_flight = in_flight;
        if is_app_limited {
            self.app_limited_until = Some(self.delivered + in_flight);
        }
        let batch = self.batch.take()?;
        self.delivered_at = now;
        let place = self.sendings.binary_search_by_key(&batch.newest_sent_at, |sending| sending.at).ok()?;
        let sending = self.sendings[place];
        self.first_sent_at = self.first_sent_at.max(sending.at);
        self.sendings.drain(..place);
        let sent_in = sending.at.saturating_duration_since(sending.first_sent_at);
        let acked_in = now.saturating_duration_since(sending.delivered_at);
        let interval = sent_in.max(acked_in);
        let is_measurable = interval >= shortest && !interval.is_zero();
        Some(Sample {
            rate: is_measurable.then(|| per_second(self.delivered - sending.delivered, interval)),
            is_app_limited: sending.is_app_limited,
            rtt: now.saturating_duration_since(sending.at),
            delivered_before: sending.delivered,
            acked: batch.bytes,
        })
    }
}

/// Bytes per second; `interval` is not zero.
fn per_second(bytes: u64, interval: Duration) -> u64 {
    let nanos = interval.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_flow_is_measured_at_its_rate() {
        let start = Instant::now();
        let mut sampler = Sampler::new(start);
        let mut last = None;
        // A packet of 1000 bytes each millisecond, acknowledged 20 ms later.
        for ms in 0..100u32 {
            let now = start + ms * MS;
            if ms >= 20 {
                sampler.on_ack(now - 20 * MS, 1000);
                last = sampler.finish(now, 20_000, false, MS);
            }
            sampler.on_sent(now, 1000);
        }
        let sample = last.expect("acknowledged");
        assert_eq!(sample.rate, Some(1_000_000));
        assert_eq!((sample.rtt, sample.acked, sample.is_app_limited), (20 * MS, 1000, false));
        assert!(sampler.sendings.len() <= 21, "what is acknowledged is forgotten");
    }

    #[test]
    fn acknowledgements_that_come_at_once_do_not_make_the_path_look_faster() {
        let start = Instant::now();
        let mut sampler = Sampler::new(start);
        for ms in 0..40u32 {
            sampler.on_sent(start + ms * MS, 1000);
        }
        let mut best = 0;
        for ms in 0..40u32 {
            sampler.on_ack(start + ms * MS, 1000);
            let sample = sampler.finish(start + 60 * MS, 0, false, MS).expect("known");
            best = best.max(sample.rate.unwrap_or_default());
        }
        assert!(best <= 1_000_000, "{best}");
    }

    #[test]
    fn a_pause_of_the_application_marks_what_is_sent_after_it() {
        let start = Instant::now();
        let mut sampler = Sampler::new(start);
        sampler.on_sent(start, 1000);
        sampler.on_ack(start, 1000);
        let first = sampler.finish(start + 10 * MS, 500, true, MS).expect("known");
        assert!(!first.is_app_limited);
        sampler.on_sent(start + 10 * MS, 1000);
        sampler.on_ack(start + 10 * MS, 1000);
        let second = sampler.finish(start + 20 * MS, 0, false, MS).expect("known");
        assert!(second.is_app_limited, "what was under way then still counts as limited");
        sampler.on_sent(start + 20 * MS, 1000);
        sampler.on_ack(start + 20 * MS, 1000);
        assert!(!sampler.finish(start + 30 * MS, 0, true, MS).expect("known").is_app_limited);
        sampler.on_sent(start + 30 * MS, 1000);
        sampler.on_ack(start + 30 * MS, 1000);
        assert!(
            sampler.finish(start + 40 * MS, 0, false, MS).expect("known").is_app_limited,
            "one at a time"
        );
    }

    #[test]
    fn what_was_not_sent_or_takes_no_time_gives_no_rate() {
        let start = Instant::now();
        let mut sampler = Sampler::new(start);
        assert_eq!(sampler.finish(start, 0, false, MS), None);
        sampler.on_ack(start, 1000);
        assert_eq!(sampler.finish(start + MS, 0, false, MS), None, "of a path before this one");
        sampler.on_sent(start + 2 * MS, 1000);
        sampler.on_ack(start + 2 * MS, 1000);
        let sample = sampler.finish(start + 2 * MS, 0, false, Duration::ZERO).expect("known");
        assert_eq!(sample.rate, None);
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut sampler = Sampler::new(start);
        for us in 0..20_000 {
            sampler.on_sent(start + Duration::from_micros(us), 1000);
        }
        assert_eq!(sampler.sendings.len(), MAX_SENDINGS);
    }
}
