//! One way of the link, as a pure queue: packets go in at a time, come out at a later time, or never.
//!
//! A packet first meets the loss of the line, then waits until the packets before it have left at the line's
//! rate, then travels for the delay. The order never changes. Time is the [`Duration`] since any fixed moment.

use std::{collections::VecDeque, time::Duration};

use crate::profile::{Profile, ProfileError};

/// How much may wait in front of a line with a rate, in time: a router with 100 ms of buffer, the usual advice.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// At very low rates 100 ms is less than a packet; a few full packets always fit.
const MIN_WAIT_BYTES: u64 = 16 * 1500;
/// Everything held, waiting or travelling: 2.5 Gbit/s for 200 ms, beyond what one thread can forward.
const MAX_HELD_BYTES: u64 = 64 << 20;

/// What became of the packets of one way. `offered` is the sum of all the others and of those still held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that entered.
    pub offered: u64,
    /// Packets that came out.
    pub delivered: u64,
    /// Bytes that came out.
    pub delivered_bytes: u64,
    /// Packets lost by the profile's loss.
    pub lost: u64,
    /// Packets dropped because the queue was full.
    pub overflowed: u64,
    /// Packets that met, or were caught by, a cut.
    pub cut: u64,
}

/// One way of the link.
#[derive(Debug)]
pub struct Line {
    profile: Profile,
    seed: u64,
    is_cut: bool,
    held: VecDeque<Held>,
    held_bytes: u64,
    /// When the packet admitted last has left the sender's end.
    busy_until: Duration,
    counters: Counters,
}

#[derive(Debug)]
struct Held {
    due: Duration,
    packet: Vec<u8>,
}

impl Line {
    /// An empty line. Whether the n-th packet is lost depends on `seed`, n and the loss alone.
    pub fn new(profile: Profile, seed: u64) -> Result<Self, ProfileError> {
        profile.check()?;
        Ok(Self {
            profile,
            seed,
            is_cut: false,
            held: VecDeque::new(),
            held_bytes: 0,
            busy_until: Duration::ZERO,
            counters: Counters::default(),
        })
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The profile in force.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Changes the line for the packets to come; those already on it keep their times.
    pub fn set_profile(&mut self, profile: Profile) -> Result<(), ProfileError> {
        profile.check()?;
        self.profile = profile;
        Ok(())
    }

    /// Loses what is on the line and everything offered until [`Line::heal`].
    pub fn cut(&mut self) {
        self.is_cut = true;
        self.counters.cut += count(self.held.len());
        self.held.clear();
        self.held_bytes = 0;
        self.busy_until = Duration::ZERO;
    }

    /// Ends a cut.
    pub fn heal(&mut self) {
        self.is_cut = false;
    }

    /// Takes in a packet at `now`.
    pub fn push(&mut self, now: Duration, packet: Vec<u8>) {
        let number = self.counters.offered;
        self.counters.offered += 1;
        if self.is_cut {
            self.counters.cut += 1;
            return;
        }
        if self.loses(number) {
            self.counters.lost += 1;
            return;
        }
        let bytes = count(packet.len());
        let start = self.busy_until.max(now);
        if self.is_full(start - now, bytes) {
            self.counters.overflowed += 1;
            return;
        }
        self.busy_until = start + self.profile.busy_for(bytes);
        let arrival = self.busy_until + self.profile.delay;
        let due = self.held.back().map_or(arrival, |last| last.due.max(arrival));
        self.held_bytes += bytes;
        self.held.push_back(Held { due, packet });
    }

    /// When the next packet comes out, if any is held.
    pub fn next_due(&self) -> Option<Duration> {
        self.held.front().map(|held| held.due)
    }

    /// The next packet that has arrived by `now`.
    pub fn pop(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        let packet = self.held.pop_front()?.packet;
        let bytes = count(packet.len());
        self.held_bytes -= bytes;
        self.counters.delivered += 1;
        self.counters.delivered_bytes += bytes;
        Some(packet)
    }

    fn is_full(&self, wait: Duration, bytes: u64) -> bool {
        let max_wait = MAX_WAIT.max(self.profile.busy_for(MIN_WAIT_BYTES));
        wait > max_wait || self.held_bytes + bytes > MAX_HELD_BYTES
    }

    /// Counting packets instead of drawing from a stream keeps the pattern the same whatever else happens.
    fn loses(&self, number: u64) -> bool {
        let draw = splitmix64(self.seed.wrapping_add(number.wrapping_mul(GOLDEN_GAMMA)));
        let uniform = (draw >> 11) as f64 / (1u64 << 53) as f64;
        uniform * 100.0 < self.profile.loss_pct
    }
}

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
/// 2014), public domain constants.
pub(crate) fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(GOLDEN_GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn count(len: usize) -> u64 {
    len as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn line(profile: Profile) -> Line {
        Line::new(profile, 7).expect("valid profile")
    }

    fn lost_numbers(seed: u64, loss_pct: f64, packets: u64) -> Vec<u64> {
        let mut line = Line::new(Profile { loss_pct, ..Profile::default() }, seed).expect("valid profile");
        (0..packets)
            .filter(|_| {
                line.push(Duration::ZERO, vec![0; 100]);
                line.pop(Duration::ZERO).is_none()
            })
            .collect()
    }

    #[test]
    fn a_packet_arrives_after_the_delay_and_not_before() {
        let mut line = line(Profile { delay: 20 * MS, ..Profile::default() });
        line.push(5 * MS, vec![1]);
        assert_eq!(line.next_due(), Some(25 * MS));
        assert_eq!(line.pop(25 * MS - Duration::from_nanos(1)), None);
        assert_eq!(line.pop(25 * MS), Some(vec![1]));
        assert_eq!(line.next_due(), None);
    }

    #[test]
    fn packets_leave_one_after_another_at_the_rate() {
        let mut line = line(Profile { delay: 10 * MS, rate_mbit: 1.0, ..Profile::default() });
        for _ in 0..3 {
            line.push(Duration::ZERO, vec![0; 125]);
        }
        for expected in [11 * MS, 12 * MS, 13 * MS] {
            assert_eq!(line.next_due(), Some(expected));
            assert!(line.pop(expected).is_some());
        }
        line.push(100 * MS, vec![0; 125]);
        assert_eq!(line.next_due(), Some(111 * MS), "an idle line starts at once");
    }

    #[test]
    fn the_queue_holds_100_ms_and_drops_the_rest() {
        let mut line = line(Profile { delay: 500 * MS, rate_mbit: 10.0, ..Profile::default() });
        for _ in 0..1000 {
            line.push(Duration::ZERO, vec![0; 1250]);
        }
        let counters = line.counters();
        assert_eq!(counters.overflowed, 899, "101 packets of 1 ms start within 100 ms");
        assert_eq!(line.next_due(), Some(501 * MS));
    }

    #[test]
    fn a_line_slower_than_a_packet_in_100_ms_still_passes_packets() {
        let mut line = line(Profile { rate_mbit: 0.01, ..Profile::default() });
        line.push(Duration::ZERO, vec![0; 1500]);
        line.push(Duration::ZERO, vec![0; 1500]);
        assert_eq!(line.counters().overflowed, 0);
    }

    #[test]
    fn what_is_held_is_bounded_without_a_rate_too() {
        let mut line = line(Profile { delay: 1000 * MS, ..Profile::default() });
        for _ in 0..65 {
            line.push(Duration::ZERO, vec![0; 1 << 20]);
        }
        assert_eq!(line.counters().overflowed, 1);
        while line.pop(1000 * MS).is_some() {}
        line.push(1000 * MS, vec![0; 1 << 20]);
        assert_eq!(line.counters().overflowed, 1, "room again once packets have left");
    }

    #[test]
    fn a_shorter_delay_does_not_reorder() {
        let mut line = line(Profile { delay: 100 * MS, ..Profile::default() });
        line.push(Duration::ZERO, vec![1]);
        line.set_profile(Profile { delay: 10 * MS, ..Profile::default() }).expect("valid profile");
        line.push(MS, vec![2]);
        assert_eq!(line.pop(50 * MS), None);
        assert_eq!(line.pop(100 * MS), Some(vec![1]));
        assert_eq!(line.pop(100 * MS), Some(vec![2]));
    }

    #[test]
    fn the_same_seed_loses_the_same_packets() {
        let first = lost_numbers(42, 5.0, 10_000);
        assert_eq!(first, lost_numbers(42, 5.0, 10_000));
        assert_ne!(first, lost_numbers(43, 5.0, 10_000));
        assert_eq!(&first[..8], &PINNED_SEED_42_AT_5_PCT, "a seed in an old report must mean the same today");
    }

    const PINNED_SEED_42_AT_5_PCT: [u64; 8] = [4, 54, 59, 63, 80, 105, 123, 128];

    #[test]
    fn the_loss_is_the_one_asked_for() {
        for (loss_pct, packets) in [(0.1, 1_000_000u64), (1.0, 200_000), (5.0, 100_000), (50.0, 100_000)] {
            let lost = count(lost_numbers(1, loss_pct, packets).len()) as f64;
            let p = loss_pct / 100.0;
            let (mean, deviation) = (packets as f64 * p, (packets as f64 * p * (1.0 - p)).sqrt());
            assert!((lost - mean).abs() < 4.0 * deviation, "{loss_pct} %: {lost} of {packets}");
        }
        assert_eq!(lost_numbers(1, 0.0, 10_000), []);
        assert_eq!(lost_numbers(1, 100.0, 1_000).len(), 1_000);
    }

    #[test]
    fn a_cut_does_not_shift_the_pattern_of_later_losses() {
        let profile = Profile { loss_pct: 10.0, ..Profile::default() };
        let mut line = Line::new(profile, 42).expect("valid profile");
        let undisturbed: Vec<u64> = lost_numbers(42, 10.0, 200).into_iter().filter(|n| *n >= 100).collect();
        line.cut();
        let mut lost = Vec::new();
        for number in 0..200 {
            if number == 100 {
                line.heal();
            }
            line.push(Duration::ZERO, vec![0]);
            if line.pop(Duration::ZERO).is_none() && number >= 100 {
                lost.push(number);
            }
        }
        assert_eq!(lost, undisturbed);
    }

    #[test]
    fn a_cut_takes_what_is_on_the_line_and_what_comes() {
        let mut line = line(Profile { delay: 10 * MS, ..Profile::default() });
        line.push(Duration::ZERO, vec![1]);
        line.cut();
        line.push(MS, vec![2]);
        assert_eq!(line.pop(20 * MS), None);
        line.heal();
        line.push(20 * MS, vec![3]);
        assert_eq!(line.pop(30 * MS), Some(vec![3]));
        let counters = line.counters();
        assert_eq!((counters.offered, counters.cut, counters.delivered), (3, 2, 1));
    }
}
