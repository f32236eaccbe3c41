//! How fast something grows that is counted, such as the bytes of a copy. Pure: time is an argument.

/// A rate is told of at least so much time, in microseconds: shorter stretches say more about scheduling than about the work.
const LEAST_US: u64 = 1_000_000;
/// What was so long ago counts for about a third, in microseconds: fluctuations of a few seconds even out.
const MEMORY_US: f64 = 5e6;
/// Without a look for this long nothing is known any more, in microseconds.
const STALE_US: u64 = 5_000_000;

/// A smoothed rate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    /// When it was looked at last, and the count then.
    last: Option<(u64, u64)>,
    per_s: Option<f64>,
}

impl Meter {
    /// Looks at the count at a time in microseconds. A count that is unknown, or smaller than before, is of another work:
    /// what was measured is forgotten. Looks may come as often as one likes.
    pub fn note(&mut self, now_us: u64, count: Option<u64>) {
        let Some(count) = count else {
            *self = Self::default();
            return;
        };
        let Some((at, before)) = self.last.filter(|(_, before)| *before <= count) else {
            *self = Self { last: Some((now_us, count)), per_s: None };
            return;
        };
        let passed = now_us.saturating_sub(at);
        if passed < LEAST_US {
            return;
        }
        let new = (count - before) as f64 * 1e6 / passed as f64;
        let kept = (-(passed as f64) / MEMORY_US).exp();
        self.per_s = Some(self.per_s.map_or(new, |old| old * kept + new * (1.0 - kept)));
        self.last = Some((now_us, count));
    }

    /// The rate in units per second; `None` until it was measured, and when the last look is long ago.
    pub fn per_s(&self, now_us: u64) -> Option<u64> {
        let (at, _) = self.last?;
        self.per_s.filter(|_| now_us.saturating_sub(at) <= STALE_US).map(|rate| rate as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    #[test]
    fn a_rate_is_unknown_until_it_was_measured_for_a_second() {
        let mut meter = Meter::default();
        assert_eq!(meter.per_s(0), None);
        meter.note(0, Some(100));
        meter.note(S / 2, Some(600));
        assert_eq!(meter.per_s(S / 2), None);
        meter.note(S, Some(1100));
        assert_eq!(meter.per_s(S), Some(1000));
    }

    #[test]
    fn it_follows_slowly_and_a_standstill_is_0() {
        let mut meter = Meter::default();
        for second in 0..5 {
            meter.note(second * S, Some(second * 1000));
        }
        meter.note(5 * S, Some(4000));
        let slower = meter.per_s(5 * S).unwrap();
        assert!((500..1000).contains(&slower), "{slower}");
        for second in 6..60 {
            meter.note(second * S, Some(4000));
        }
        assert_eq!(meter.per_s(59 * S), Some(0));
    }

    #[test]
    fn what_is_not_looked_at_or_begins_anew_is_unknown() {
        let mut meter = Meter::default();
        meter.note(0, Some(0));
        meter.note(S, Some(10));
        assert_eq!(meter.per_s(S + STALE_US + 1), None);
        meter.note(2 * S, Some(5));
        assert_eq!(meter.per_s(2 * S), None);
        meter.note(3 * S, Some(6));
        assert_eq!(meter.per_s(3 * S), Some(1));
        meter.note(4 * S, None);
        assert_eq!(meter.per_s(4 * S), None);
    }
}
