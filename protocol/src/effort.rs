//! How much is done to send fewer bytes: chosen by how fast the link takes them against how long it takes to make them fewer.
//!
//! [`Chooser`] is told what was sent, how long coding took, how long the link kept the sender waiting, and what the
//! congestion control thinks of the link. From that it reckons for each [`Effort`] how long a MiB takes to be coded and to
//! cross the link, and goes to the one that is quickest, once it is clearly so and for more than a moment.

use crate::chunk::{MIN_WINDOW_LOG, Strength};
use crate::ids::Time;

/// How much is done to send fewer bytes. In the order of bytes sent, the most first; [`Effort::Lz4`] is never chosen, as
/// [`Effort::Fast`] sends fewer bytes in about the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Nothing.
    Plain,
    /// Together with what was sent just before, with LZ4.
    Lz4,
    /// Together with what was sent a little before.
    Fast,
    /// Together with all that both ends remember.
    Dense,
    /// The same, with more time taken.
    Densest,
}

impl Effort {
    /// Those that are chosen from.
    const LADDER: [Self; 4] = [Self::Plain, Self::Fast, Self::Dense, Self::Densest];

    /// How a stream is coded that may remember as much as `window_log` says; `None` if its frames go as they are.
    pub fn strength(self, window_log: u32) -> Option<Strength> {
        let (level, window_log) = match self {
            Self::Plain => return None,
            Self::Lz4 => return Some(Strength::Lz4),
            Self::Fast => (-1, MIN_WINDOW_LOG),
            Self::Dense => (1, window_log),
            Self::Densest => (3, window_log),
        };
        Some(Strength::Zstd { level, window_log, long_distance: window_log > MIN_WINDOW_LOG })
    }

    /// Bytes sent and time taken, as parts of those of [`Effort::Fast`]: between what a database and files of programs
    /// came to. They only have to be good enough for the first step: after it, both are measured.
    fn beside_fast(self) -> (f64, f64) {
        match self {
            Self::Plain | Self::Lz4 | Self::Fast => (1.0, 1.0),
            Self::Dense => (0.87, 2.2),
            Self::Densest => (0.83, 3.2),
        }
    }
}

/// What was sent since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of frames.
    pub raw_bytes: u64,
    /// Bytes that were written to streams for them.
    pub wire_bytes: u64,
    /// Time that coding them took, in microseconds.
    pub coding_us: u64,
    /// Time that streams did not take what there was to write, in microseconds.
    pub waiting_us: u64,
}

/// Less than this is not looked at: what a few bytes take says nothing.
const ENOUGH_BYTES: u64 = 256 << 10;
/// What a byte costs beside the link, in microseconds a MiB: encryption, packets and system calls of both ends.
const HANDLING_US: f64 = 1500.0;
/// The link limits what is sent when the sender waits for it during this part of the time.
const LINK_BOUND: f64 = 0.25;
/// Coding does when it takes this part of the time and the link does not.
const CODER_BOUND: f64 = 0.5;
/// How many times faster than it looks the link is then taken to be: nothing has shown what it can do.
const UNSEEN: f64 = 4.0;
/// Another effort has to take less than this part of the time.
const CLEARLY: f64 = 0.95;
/// It has to do so for so many looks in a row.
const LOOKS: u32 = 3;
/// An effort is kept for so long, in microseconds; longer each time that it turns out to have been the better one.
const DWELL_US: u64 = 2_000_000;
const MAX_DWELL_US: u64 = 300_000_000;
/// Without coding, what it would do is measured again after this long, in microseconds.
const MEASURE_AGAIN_US: u64 = 60_000_000;
/// What a new measurement counts beside the older ones.
const WEIGHT: f64 = 0.3;
const MIB: f64 = (1 << 20) as f64;

/// Chooses the effort of a link.
#[derive(Clone, Debug)]
pub struct Chooser {
    effort: Effort,
    left: Option<Effort>,
    changed: Time,
    dwell_us: u64,
    looked: Time,
    sent: Sent,
    /// What [`Effort::Fast`] makes of a byte, and the time that it takes, in microseconds a MiB; `None` before it was measured.
    ratio: Option<f64>,
    coding_us: Option<f64>,
    better: Option<(Effort, u32)>,
}

impl Chooser {
    /// Begins at `now` with the effort that is right for most links.
    pub fn new(now: Time) -> Self {
        Self {
            effort: Effort::Fast,
            left: None,
            changed: now,
            dwell_us: DWELL_US,
            looked: now,
            sent: Sent::default(),
            ratio: None,
            coding_us: None,
            better: None,
        }
    }

    /// What it is at.
    pub fn effort(&self) -> Effort {
        self.effort
    }

    /// What was sent since the last call, and what the congestion control thinks that the link takes, in bytes a second.
    pub fn look(&mut self, now: Time, sent: Sent, link_bytes_per_s: u64) -> Effort {
        self.sent.raw_bytes += sent.raw_bytes;
        self.sent.wire_bytes += sent.wire_bytes;
        self.sent.coding_us += sent.coding_us;
        self.sent.waiting_us += sent.waiting_us;
        let elapsed_us = now.since_us(self.looked);
        if self.sent.raw_bytes < ENOUGH_BYTES || elapsed_us == 0 {
            return self.effort;
        }
        let sent = std::mem::take(&mut self.sent);
        self.looked = now;
        self.measure(&sent);
        let rate = rate(&sent, elapsed_us as f64, link_bytes_per_s as f64);
        self.consider(now, rate);
        self.effort
    }

    fn measure(&mut self, sent: &Sent) {
        if self.effort == Effort::Plain {
            return;
        }
        let (ratio, time) = self.effort.beside_fast();
        let raw = sent.raw_bytes as f64;
        mix(&mut self.ratio, sent.wire_bytes as f64 / raw / ratio);
        mix(&mut self.coding_us, sent.coding_us as f64 * MIB / raw / time);
    }

    /// How long a MiB takes with `effort` over a link of `rate` bytes a second, in microseconds.
    fn takes_us(&self, effort: Effort, rate: f64) -> f64 {
        let link_us = MIB / rate * 1e6 + HANDLING_US;
        let (ratio, time) = effort.beside_fast();
        match (effort, self.ratio, self.coding_us) {
            (Effort::Plain, ..) => link_us,
            (_, Some(fast), Some(coding)) => coding * time + (fast * ratio).min(1.0) * link_us,
            _ => f64::MAX,
        }
    }

    fn consider(&mut self, now: Time, rate: f64) {
        let dwelt_us = now.since_us(self.changed);
        if self.effort == Effort::Plain && dwelt_us >= MEASURE_AGAIN_US.max(self.dwell_us) {
            return self.change(now, Effort::Fast);
        }
        let mut best = (self.effort, self.takes_us(self.effort, rate) * CLEARLY);
        for effort in Effort::LADDER.into_iter().filter(|effort| *effort != self.effort) {
            let takes = self.takes_us(effort, rate);
            if takes < best.1 {
                best = (effort, takes);
            }
        }
        if best.0 == self.effort {
            self.better = None;
            return;
        }
        let looks = self.better.filter(|(effort, _)| *effort == best.0).map_or(1, |(_, looks)| looks + 1);
        self.better = Some((best.0, looks));
        if looks >= LOOKS && dwelt_us >= self.dwell_us {
            self.change(now, best.0);
        }
    }

    fn change(&mut self, now: Time, effort: Effort) {
        // Back to where it came from: the step was not worth it, and the next one waits longer.
        self.dwell_us = match self.left {
            Some(left) if left == effort => (self.dwell_us * 2).min(MAX_DWELL_US),
            _ => DWELL_US,
        };
        self.left = Some(self.effort);
        self.effort = effort;
        self.changed = now;
        self.better = None;
    }
}

/// What the link takes, in bytes a second: what it took while it was what limited the sender, else what is thought of it.
fn rate(sent: &Sent, elapsed_us: f64, link: f64) -> f64 {
    let took = sent.wire_bytes as f64 / elapsed_us * 1e6;
    if sent.waiting_us as f64 >= elapsed_us * LINK_BOUND {
        return took.max(1.0);
    }
    let seen = took.max(link).max(1.0);
    if sent.coding_us as f64 >= elapsed_us * CODER_BOUND { seen * UNSEEN } else { seen }
}

fn mix(known: &mut Option<f64>, new: f64) {
    *known = Some(known.map_or(new, |old| old + (new - old) * WEIGHT));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: f64 = 125_000.0;

    /// What there is to send, and over what.
    #[derive(Clone, Copy)]
    struct World {
        /// Bytes a second that are written by clients.
        load: f64,
        /// Bytes a second that the link takes.
        link: f64,
        /// What [`Effort::Fast`] makes of a byte.
        ratio: f64,
        /// Its time for a MiB, in microseconds.
        coding_us: f64,
    }

    /// A database on a link of so many bytes a second.
    fn database(link: f64) -> World {
        World { load: 20.0 * MIB, link, ratio: 0.045, coding_us: 740.0 }
    }

    /// The files of programs.
    fn files(link: f64) -> World {
        World { load: 100.0 * MIB, link, ratio: 0.45, coding_us: 3300.0 }
    }

    /// Runs for `seconds` from `now`; the efforts it went through.
    fn run(chooser: &mut Chooser, now: &mut Time, world: World, seconds: u64) -> Vec<Effort> {
        let mut through = vec![chooser.effort()];
        for _ in 0..seconds * 4 {
            *now = now.plus_us(250_000);
            let (ratio, time) = chooser.effort().beside_fast();
            let (ratio, coding) = match chooser.effort() {
                Effort::Plain => (1.0, 0.0),
                _ => ((world.ratio * ratio).min(1.0), world.coding_us * time),
            };
            let by_coder = if coding > 0.0 { 1e6 / coding * MIB } else { f64::MAX };
            let raw = world.load.min(world.link / ratio).min(by_coder) / 4.0;
            let waits = world.link / ratio < world.load.min(by_coder);
            let sent = Sent {
                raw_bytes: raw as u64,
                wire_bytes: (raw * ratio) as u64,
                coding_us: (raw / MIB * coding) as u64,
                waiting_us: if waits { 200_000 } else { 0 },
            };
            let effort = chooser.look(*now, sent, world.link as u64);
            if through.last() != Some(&effort) {
                through.push(effort);
            }
        }
        through
    }

    fn settles_at(world: World) -> Effort {
        let mut now = Time(1_000_000);
        let mut chooser = Chooser::new(now);
        run(&mut chooser, &mut now, world, 30);
        chooser.effort()
    }

    #[test]
    fn a_slow_link_is_worth_more_time_than_a_fast_one() {
        assert_eq!(settles_at(database(10.0 * MBIT)), Effort::Densest);
        assert_eq!(settles_at(database(1_000.0 * MBIT)), Effort::Fast);
        assert_eq!(settles_at(database(10_000.0 * MBIT)), Effort::Fast);
        assert_eq!(settles_at(files(10.0 * MBIT)), Effort::Densest);
        assert_eq!(settles_at(files(50.0 * MBIT)), Effort::Dense);
        assert_eq!(settles_at(files(1_000.0 * MBIT)), Effort::Fast);
        assert_eq!(settles_at(files(10_000.0 * MBIT)), Effort::Plain);
    }

    #[test]
    fn a_link_that_changes_is_followed() {
        let mut now = Time(1_000_000);
        let mut chooser = Chooser::new(now);
        run(&mut chooser, &mut now, database(1_000.0 * MBIT), 30);
        assert_eq!(chooser.effort(), Effort::Fast);
        run(&mut chooser, &mut now, database(10.0 * MBIT), 30);
        assert_eq!(chooser.effort(), Effort::Densest);
        run(&mut chooser, &mut now, database(1_000.0 * MBIT), 60);
        assert_eq!(chooser.effort(), Effort::Fast);
    }

    #[test]
    fn a_coder_that_is_what_limits_gives_way() {
        // The congestion control has not seen more of the link than the coder gave it.
        let mut now = Time(1_000_000);
        let mut chooser = Chooser::new(now);
        run(&mut chooser, &mut now, files(10.0 * MBIT), 30);
        assert_eq!(chooser.effort(), Effort::Densest);
        let sent = Sent { raw_bytes: 20 << 20, wire_bytes: 7 << 20, coding_us: 240_000, waiting_us: 0 };
        for _ in 0..40 {
            now = now.plus_us(250_000);
            chooser.look(now, sent, 10 << 20);
        }
        assert!(matches!(chooser.effort(), Effort::Fast | Effort::Plain), "{:?}", chooser.effort());
    }

    #[test]
    fn what_goes_as_it_is_gets_another_chance_and_a_step_that_was_not_worth_it_waits() {
        let mut now = Time(1_000_000);
        let mut chooser = Chooser::new(now);
        let world = files(10_000.0 * MBIT);
        let through = run(&mut chooser, &mut now, world, 3600);
        assert!(through.len() > 5, "{through:?}");
        assert!(through.len() < 60, "{through:?}");
        run(&mut chooser, &mut now, database(100.0 * MBIT), 700);
        assert_ne!(chooser.effort(), Effort::Plain);
    }

    #[test]
    fn a_trickle_changes_nothing() {
        let mut now = Time(1_000_000);
        let mut chooser = Chooser::new(now);
        let sent = Sent { raw_bytes: 4096, wire_bytes: 4096, coding_us: 1000, waiting_us: 250_000 };
        for _ in 0..40 {
            now = now.plus_us(250_000);
            assert_eq!(chooser.look(now, sent, 1), Effort::Fast);
        }
    }
}
