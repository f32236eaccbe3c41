//! What a line is like: its delay, its loss, its rate; and which way a change applies.

use std::time::Duration;

/// Above this a test would wait for minutes because of a slip of the finger.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// The way packets go, or both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From side a to side b.
    AToB,
    /// From side b to side a.
    BToA,
    /// Both ways.
    Both,
}

impl Direction {
    /// Whether `self` covers the one-way direction `one_way`.
    pub fn covers(self, one_way: Direction) -> bool {
        self == Direction::Both || self == one_way
    }
}

/// One way of a line. A round trip over two equal ways takes twice `delay`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// One-way propagation delay.
    pub delay: Duration,
    /// Packets lost, in percent, 0 to 100.
    pub loss_pct: f64,
    /// Rate in Mbit/s of IP packets; 0 for no limit.
    pub rate_mbit: f64,
}

impl Default for Profile {
    fn default() -> Self {
        Self { delay: Duration::ZERO, loss_pct: 0.0, rate_mbit: 0.0 }
    }
}

impl Profile {
    /// Refuses what no line can be.
    pub fn check(&self) -> Result<(), ProfileError> {
        if !(0.0..=100.0).contains(&self.loss_pct) {
            return Err(ProfileError::Loss(self.loss_pct));
        }
        if !self.rate_mbit.is_finite() || self.rate_mbit < 0.0 {
            return Err(ProfileError::Rate(self.rate_mbit));
        }
        if self.delay > MAX_DELAY {
            return Err(ProfileError::Delay(self.delay));
        }
        Ok(())
    }

    /// How long the line is busy with `bytes`.
    pub(crate) fn busy_for(&self, bytes: u64) -> Duration {
        if self.rate_mbit == 0.0 {
            return Duration::ZERO;
        }
        let nanos = bytes as f64 * 8_000.0 / self.rate_mbit;
        Duration::from_nanos(nanos as u64)
    }
}

/// A profile that was refused.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ProfileError {
    /// Not a percentage.
    #[error("a loss of {0} % is not possible: give 0 to 100")]
    Loss(f64),
    /// Not a rate.
    #[error("a rate of {0} Mbit/s is not possible: give 0 (no limit) or more")]
    Rate(f64),
    /// Too long to be meant.
    #[error("a delay of {0:?} is more than {MAX_DELAY:?}")]
    Delay(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direction_covers_itself_and_both_covers_each() {
        assert!(Direction::Both.covers(Direction::AToB) && Direction::Both.covers(Direction::BToA));
        assert!(Direction::AToB.covers(Direction::AToB));
        assert!(!Direction::AToB.covers(Direction::BToA));
    }

    #[test]
    fn impossible_profiles_are_refused() {
        let good = Profile { delay: Duration::from_millis(20), loss_pct: 0.1, rate_mbit: 100.0 };
        assert_eq!(good.check(), Ok(()));
        assert!(Profile { loss_pct: 100.1, ..good }.check().is_err());
        assert!(Profile { loss_pct: f64::NAN, ..good }.check().is_err());
        assert!(Profile { rate_mbit: -1.0, ..good }.check().is_err());
        assert!(Profile { rate_mbit: f64::INFINITY, ..good }.check().is_err());
        assert!(Profile { delay: Duration::from_secs(61), ..good }.check().is_err());
    }

    #[test]
    fn a_packet_of_1250_bytes_takes_100_microseconds_at_100_mbit() {
        let profile = Profile { rate_mbit: 100.0, ..Profile::default() };
        assert_eq!(profile.busy_for(1250), Duration::from_micros(100));
        assert_eq!(Profile::default().busy_for(1250), Duration::ZERO);
    }
}
