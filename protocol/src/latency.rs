//! How long things took: counts in fixed classes, so that noting one costs two additions and no memory.

/// Classes with a bound.
const BOUNDED: usize = 21;
/// Bound of the first class, in microseconds; each further one is twice as large, up to about 67 s.
const FIRST_US: u64 = 64;

/// How long each of many things took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// By class; the last has no bound.
    counts: [u64; BOUNDED + 1],
    sum_us: u64,
}

impl Latencies {
    /// One more took `us`.
    pub fn note(&mut self, us: u64) {
        let class = us.div_ceil(FIRST_US).max(1).next_power_of_two().ilog2() as usize;
        if let Some(count) = self.counts.get_mut(class.min(BOUNDED)) {
            *count += 1;
        }
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long they took together, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// Of each class its upper bound, which belongs to it, in microseconds (`None`: there is none), and how many there were.
    pub fn classes(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bound = |class: usize| (class < BOUNDED).then(|| FIRST_US << class);
        self.counts.iter().enumerate().map(move |(class, count)| (bound(class), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_falls_into_the_class_below_whose_bound_it_is() {
        for (us, bound) in [
            (0, Some(64)),
            (1, Some(64)),
            (64, Some(64)),
            (65, Some(128)),
            (128, Some(128)),
            (129, Some(256)),
            (64 << 20, Some(64 << 20)),
            ((64 << 20) + 1, None),
            (u64::MAX, None),
        ] {
            let mut latencies = Latencies::default();
            latencies.note(us);
            let found: Vec<_> = latencies.classes().filter(|(_, count)| *count > 0).collect();
            assert_eq!(found, [(bound, 1)], "{us}");
            assert_eq!((latencies.count(), latencies.sum_us()), (1, us));
        }
    }

    #[test]
    fn a_sum_does_not_overflow() {
        let mut latencies = Latencies::default();
        latencies.note(u64::MAX);
        latencies.note(7);
        assert_eq!((latencies.count(), latencies.sum_us()), (2, u64::MAX));
    }
}
