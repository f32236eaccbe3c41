//! How much may be under way: a model of the path, and the phases that keep it true.
//!
//! The ideas are those of BBR (draft-ietf-ccwg-bbr): the path is known by the most it has delivered lately and by its
//! shortest round trip; their product is what has to be under way to fill it. Loss alone is no reason to slow down,
//! because a long line loses packets without being full; losing more than [`EXCESS_LOSS`] of a round is. Unlike BBR,
//! which sets a pace and bounds what is under way loosely, only a window is set here: that is what quinn asks a controller
//! for, and it paces by the window. So the window is the product plus [`SLACK`], and the standing queue is no longer than
//! that.
//!
//! - `Startup`: the window doubles in each round until the rate grows no more.
//! - `Cruise`: the path is full.
//! - `Probe`: after some rounds, a round with a quarter more: is there more to be had?
//! - `Drain`: when the shortest round trip was not seen for [`MIN_RTT_LIFETIME`], a round with half of it, so that the queue
//!   runs empty and shows it.
//!
//! Other traffic that keeps a queue of its own would starve a flow that keeps none. If the round trip stays long although
//! this flow has just held itself back, the path is crowded: until the next look the window follows the measured round
//! trip, to at most twice the shortest.

use std::time::{Duration, Instant};

use super::filter::MaxFilter;
use super::sampler::{Sample, Sampler};

/// The window before anything is known, in packets (RFC 9002 section 7.2).
const INITIAL_PACKETS: u64 = 10;
/// The least window, in packets: enough for the delayed acknowledgements of a peer.
const MIN_PACKETS: u64 = 4;
/// The window never exceeds this, in bytes. Above what any endpoint here buffers, and below what quinn can pace.
const MAX_WINDOW: u64 = 1 << 30;
/// The window counts as used up when no more than this is left of it: quinn sends whole packets, several at once.
const NEARLY_FULL_PACKETS: u64 = 3;
/// Rounds for which a delivery rate counts: more than a cycle of probing in its shortest form.
const RATE_ROUNDS: u64 = 10;
/// Rounds for which a burst of acknowledgements counts: long, because what makes bursts, such as a busy host, comes and goes.
const BURST_ROUNDS: u64 = 60;
/// What may wait at the bottleneck so that it never runs dry, in time: quinn paces in bursts of 2 ms, and a busy host is late
/// by some more. Measured: 2 ms leave a line of 1 Gbit/s idle for several percent of the time.
const SLACK: Duration = Duration::from_millis(4);
/// How much more than the product may be under way while the rate is unknown: the window can double in a round.
const STARTUP_GAIN: f64 = 2.0;
/// By how much the rate must grow in [`FULL_ROUNDS`] rounds to count as growing.
const GROWTH: f64 = 1.25;
const FULL_ROUNDS: u32 = 3;
const PROBE_GAIN: f64 = 1.25;
const DRAIN_GAIN: f64 = 0.5;
const CROWDED_GAIN: f64 = 2.0;
/// Rounds from one probe to the next; doubled up to the longest when a probe only caused loss.
const SHORTEST_CRUISE: u64 = 8;
const LONGEST_CRUISE: u64 = 64;
/// Rounds after a probe until the round trip tells whether the path is crowded: one to drain, one to see.
const LOOK_AFTER: u64 = 2;
/// The share of a round that may be lost without a response, beyond what the line loses anyhow.
const EXCESS_LOSS: f64 = 0.02;
/// What a line may be taken to lose anyhow; what is above is always congestion.
const MOST_LINE_LOSS: f64 = 0.08;
/// Rounds of which the one with the least loss says what the line loses anyhow: the window was cut meanwhile, if it had
/// to be, and loss that a smaller window does not cure is not this flow's.
const LINE_LOSS_ROUNDS: u64 = 16;
/// A shorter round, in packets, says nothing about loss.
const MIN_LOSS_PACKETS: f64 = 50.0;
/// What is left of the window after a round with excess loss.
const BACK_OFF: f64 = 0.85;
/// How long a shortest round trip counts, and half of the longest time that it is taken for true.
const MIN_RTT_LIFETIME: Duration = Duration::from_secs(10);
/// A round trip this little above the shortest has seen it, as a share and in time.
const NEAR_MIN_RTT: f64 = 1.02;
const NEAR_MIN_RTT_TIME: Duration = Duration::from_micros(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Startup,
    Cruise,
    Probe,
    Drain,
}

/// Decides the window by what is acknowledged and lost. Time is an argument.
#[derive(Debug, Clone)]
pub(super) struct Model {
    packet_bytes: u64,
    sampler: Sampler,
    round: Round,
    rate: MaxFilter,
    burst: Burst,
    /// The share that arrives of each round, in millionths.
    arriving: MaxFilter,
    min_rtt: MinRtt,
    smoothed_rtt: Duration,
    phase: Phase,
    /// The round in which the phase began.
    phase_began: u64,
    full: FullRate,
    /// Rounds until the next probe.
    cruise_rounds: u64,
    is_crowded: bool,
    /// What the last excess loss allows.
    ceiling: Option<u64>,
    window: u64,
}

/// From the sending of a packet to its acknowledgement.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    number: u64,
    /// It ends with the acknowledgement of something sent after so much was delivered.
    ends_at: u64,
    began_at: u64,
    lost: u64,
    is_marked: bool,
    /// The window was used up at some time.
    was_full: bool,
    min_rtt: Option<Duration>,
}

/// Whether the rate still grows.
#[derive(Debug, Clone, Copy, Default)]
struct FullRate {
    rate: u64,
    rounds: u32,
}

impl Model {
    pub(super) fn new(now: Instant, packet_bytes: u64) -> Self {
        Self {
            packet_bytes,
            sampler: Sampler::new(now),
            round: Round::default(),
            rate: MaxFilter::new(RATE_ROUNDS),
            burst: Burst::new(now),
            arriving: MaxFilter::new(LINE_LOSS_ROUNDS),
            min_rtt: MinRtt::new(now),
            smoothed_rtt: Duration::ZERO,
            phase: Phase::Startup,
            phase_began: 0,
            full: FullRate::default(),
            cruise_rounds: SHORTEST_CRUISE,
            is_crowded: false,
            ceiling: None,
            window: INITIAL_PACKETS * packet_bytes,
        }
    }

    /// Bytes that may be under way.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// The window that a new path begins with, in bytes.
    pub(super) fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.packet_bytes
    }

    /// Bytes per second that the path can do, as far as known.
    pub(super) fn rate(&self) -> Option<u64> {
        self.rate.get()
    }

    #[cfg(test)]
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn set_packet_bytes(&mut self, packet_bytes: u64) {
        self.packet_bytes = packet_bytes;
        self.window = self.window.max(self.least());
    }

    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64) {
        self.sampler.on_sent(now, bytes);
        let left = self.window.saturating_sub(self.sampler.in_flight());
        self.round.was_full |= left < NEARLY_FULL_PACKETS * self.packet_bytes;
    }

    /// One packet was acknowledged; [`Model::on_acks_end`] ends the batch.
    pub(super) fn on_ack(&mut self, sent_at: Instant, bytes: u64) {
        self.sampler.on_ack(sent_at, bytes);
    }

    /// `smoothed_rtt` is quinn's, which it paces with.
    pub(super) fn on_acks_end(
        &mut self,
        now: Instant,
        in_flight: u64,
        is_app_limited: bool,
        smoothed_rtt: Duration,
    ) {
        self.smoothed_rtt = smoothed_rtt;
        let shortest = self.min_rtt.get().unwrap_or_default();
        let Some(sample) = self.sampler.finish(now, in_flight, is_app_limited, shortest) else { return };
        self.min_rtt.update(now, sample.rtt);
        self.round.min_rtt = Some(self.round.min_rtt.map_or(sample.rtt, |least| least.min(sample.rtt)));
        if let Some(rate) = sample.rate
            && (!sample.is_app_limited || self.rate.get().is_none_or(|known| rate >= known))
        {
            self.rate.update(self.round.number, rate);
        }
        self.burst.update(now, self.round.number, sample.acked, self.rate.get().unwrap_or_default());
        if sample.delivered_before >= self.round.ends_at {
            self.end_round(now, in_flight);
        }
        self.set_window(&sample);
    }

    /// Packets were found lost. `bytes` is 0 for a congestion mark. `is_persistent`: nothing got through for long, so
    /// what is known of the path is worth nothing.
    pub(super) fn on_loss(&mut self, bytes: u64, is_persistent: bool) {
        self.round.lost += bytes;
        self.round.is_marked |= bytes == 0;
        if is_persistent {
            self.rate.clear();
            self.full = FullRate::default();
            self.ceiling = None;
            self.is_crowded = false;
            self.begin(Phase::Startup);
            self.window = self.least();
        }
    }

    fn least(&self) -> u64 {
        MIN_PACKETS * self.packet_bytes
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_began = self.round.number;
    }

    fn end_round(&mut self, now: Instant, in_flight: u64) {
        let delivered = self.sampler.delivered();
        let is_congested = self.is_congested(delivered - self.round.began_at);
        let was_full = self.round.was_full;
        let rtt = self.round.min_rtt;
        self.round = Round {
            number: self.round.number + 1,
            ends_at: delivered,
            began_at: delivered,
            ..Round::default()
        };
        let is_growing = self.phase == Phase::Startup && !(was_full && self.stopped_growing());
        let is_congested = is_congested && !(self.phase == Phase::Startup && self.full.rounds == 0);
        if is_congested {
            let left = (self.window as f64 * BACK_OFF) as u64;
            self.ceiling = Some(self.ceiling.unwrap_or(left).min(left).max(self.least()));
        }
        let rounds = self.round.number - self.phase_began;
        match self.phase {
            Phase::Startup => {
                if is_congested || !is_growing {
                    self.begin(Phase::Cruise);
                }
            }
            Phase::Cruise => {
                if rounds == LOOK_AFTER {
                    self.is_crowded = rtt.is_some_and(|rtt| self.is_queue_of_others(rtt));
                }
                if self.min_rtt.is_due(now) && was_full {
                    self.begin(Phase::Drain);
                } else if rounds >= self.cruise_rounds && was_full {
                    self.full.rate = self.rate.get().unwrap_or_default();
                    self.begin(Phase::Probe);
                }
            }
            Phase::Probe => {
                if is_congested {
                    self.cruise_rounds = (self.cruise_rounds * 2).min(LONGEST_CRUISE);
                    self.begin(Phase::Cruise);
                } else {
                    // What the ceiling allowed was delivered.
                    self.ceiling = self.ceiling.map(|ceiling| (ceiling as f64 * PROBE_GAIN) as u64);
                    let rate = self.rate.get().unwrap_or_default();
                    let grew = rate as f64 >= self.full.rate as f64 * (1.0 + (PROBE_GAIN - 1.0) / 2.0);
                    if grew {
                        self.cruise_rounds = SHORTEST_CRUISE;
                        self.full.rate = rate;
                        self.begin(Phase::Probe);
                    } else if rounds >= 2 {
                        self.begin(Phase::Cruise);
                    }
                }
            }
            Phase::Drain => {
                if rounds >= 2 && in_flight <= self.product(DRAIN_GAIN).max(self.least()) {
                    self.min_rtt.rotate(now);
                    self.begin(Phase::Cruise);
                    self.window = self.target();
                }
            }
        }
    }

    /// Whether the round that ends lost more than the line and chance explain.
    fn is_congested(&mut self, delivered: u64) -> bool {
        if self.round.is_marked {
            return true;
        }
        let packets = |bytes: u64| bytes as f64 / self.packet_bytes as f64;
        let (sent, lost) = (packets(delivered + self.round.lost), packets(self.round.lost));
        if sent >= MIN_LOSS_PACKETS {
            let arrived = (1.0 - lost / sent) * 1e6;
            self.arriving.update(self.round.number, arrived as u64);
        }
        let line_loss = self.arriving.get().map_or(0.0, |arriving| 1.0 - arriving as f64 / 1e6);
        let allowed = sent * (line_loss.min(MOST_LINE_LOSS) + EXCESS_LOSS);
        // Two standard deviations of so rare an event.
        lost > allowed + 2.0 * allowed.sqrt() + 1.0
    }

    fn stopped_growing(&mut self) -> bool {
        let rate = self.rate.get().unwrap_or_default();
        if rate as f64 >= self.full.rate as f64 * GROWTH {
            self.full = FullRate { rate, rounds: 0 };
        } else {
            self.full.rounds += 1;
        }
        self.full.rounds >= FULL_ROUNDS
    }

    /// Whether a round trip is longer than this flow's own queue explains.
    fn is_queue_of_others(&self, rtt: Duration) -> bool {
        let (Some(rate), Some(min_rtt)) = (self.rate.get(), self.min_rtt.get()) else { return false };
        let own = Duration::from_secs_f64(self.slack() as f64 / rate.max(1) as f64);
        rtt > (min_rtt + own).mul_f64(PROBE_GAIN)
    }

    fn set_window(&mut self, sample: &Sample) {
        let target = self.target();
        let grown = self.window.saturating_add(sample.acked);
        self.window = match self.phase {
            Phase::Startup => grown.min(target).max(self.window),
            _ => grown.min(target),
        };
        let ceiling = self.ceiling.unwrap_or(MAX_WINDOW).min(MAX_WINDOW);
        self.window = self.window.min(ceiling).max(self.least());
        if self.ceiling.is_some_and(|ceiling| ceiling > self.product(CROWDED_GAIN) + self.slack()) {
            self.ceiling = None;
        }
    }

    fn target(&self) -> u64 {
        if self.rate.get().is_none() {
            return MAX_WINDOW;
        }
        let has_looked = self.round.number - self.phase_began >= LOOK_AFTER;
        match self.phase {
            Phase::Startup => self.product(STARTUP_GAIN) + self.slack(),
            Phase::Cruise if self.is_crowded && has_looked => self.crowded() + self.slack(),
            Phase::Cruise => self.product(1.0) + self.slack(),
            Phase::Probe if self.is_crowded => (self.crowded() as f64 * PROBE_GAIN) as u64 + self.slack(),
            Phase::Probe => self.product(PROBE_GAIN) + self.slack(),
            Phase::Drain => self.product(DRAIN_GAIN),
        }
    }

    /// What keeps the rate while others lengthen the round trip.
    fn crowded(&self) -> u64 {
        let Some(min_rtt) = self.min_rtt.get() else { return 0 };
        let stretch = self.smoothed_rtt.as_secs_f64() / min_rtt.as_secs_f64().max(1e-9);
        self.product(stretch.clamp(1.0, CROWDED_GAIN))
    }

    /// Rate times shortest round trip, in bytes.
    fn product(&self, gain: f64) -> u64 {
        let rate = self.rate.get().unwrap_or_default() as f64;
        let min_rtt = self.min_rtt.get().unwrap_or_default().as_secs_f64();
        (rate * min_rtt * gain) as u64
    }

    /// What may wait, so that neither bursts nor late acknowledgements leave the path idle.
    fn slack(&self) -> u64 {
        let rate = self.rate.get().unwrap_or_default() as f64;
        let waiting = (rate * SLACK.as_secs_f64()) as u64;
        waiting.max(self.burst.get()).max(self.least())
    }
}

/// The shortest round trip of the last while: the lesser of two halves of it.
#[derive(Debug, Clone, Copy)]
struct MinRtt {
    before: Option<Duration>,
    lately: Option<Duration>,
    lately_began: Instant,
}

impl MinRtt {
    fn new(now: Instant) -> Self {
        Self { before: None, lately: None, lately_began: now }
    }

    fn get(&self) -> Option<Duration> {
        self.before.into_iter().chain(self.lately).min()
    }

    fn update(&mut self, now: Instant, rtt: Duration) {
        self.lately = Some(self.lately.map_or(rtt, |least| least.min(rtt)));
        // Without a look at the empty path the last known value is kept once more, and no longer.
        if self.has_seen_it() && self.age(now) > MIN_RTT_LIFETIME || self.age(now) > 2 * MIN_RTT_LIFETIME {
            self.rotate(now);
        }
    }

    /// Whether the queue has to run empty for a true value.
    fn is_due(&self, now: Instant) -> bool {
        self.age(now) > MIN_RTT_LIFETIME && !self.has_seen_it()
    }

    fn rotate(&mut self, now: Instant) {
        self.before = self.lately;
        self.lately = None;
        self.lately_began = now;
    }

    fn has_seen_it(&self) -> bool {
        let (Some(least), Some(lately)) = (self.get(), self.lately) else { return false };
        lately <= least.mul_f64(NEAR_MIN_RTT) + NEAR_MIN_RTT_TIME
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.lately_began)
    }
}

/// How many bytes are acknowledged at once beyond the rate: a peer or a path that collects acknowledgements.
#[derive(Debug, Clone)]
struct Burst {
    largest: MaxFilter,
    began: Instant,
    acked: u64,
}

impl Burst {
    fn new(now: Instant) -> Self {
        Self { largest: MaxFilter::new(BURST_ROUNDS), began: now, acked: 0 }
    }

    fn get(&self) -> u64 {
        self.largest.get().unwrap_or_default()
    }

    fn update(&mut self, now: Instant, round: u64, acked: u64, rate: u64) {
        let expected = (rate as f64 * now.saturating_duration_since(self.began).as_secs_f64()) as u64;
        if self.acked <= expected {
            (self.began, self.acked) = (now, 0);
        }
        self.acked += acked;
        let expected = (rate as f64 * now.saturating_duration_since(self.began).as_secs_f64()) as u64;
        self.largest.update(round, self.acked.saturating_sub(expected));
    }
}

#[cfg(test)]
mod tests;
