//! Whether this process, or its host, stood still: stopped by a signal, asleep, or not scheduled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How often it beats.
pub(crate) const INTERVAL: Duration = Duration::from_millis(250);
/// Without a beat for this long it stood still: less than a promotion and the start of its clients take.
const STANDSTILL_US: u64 = 2_000_000;

/// Beats while the process runs.
pub(crate) struct Heart {
    /// When it beat last, by a clock that goes on while the host sleeps.
    last_us: AtomicU64,
}

impl Heart {
    pub fn new() -> Self {
        Self { last_us: AtomicU64::new(now_us()) }
    }

    pub fn beat(&self) {
        self.last_us.store(now_us(), Ordering::Release);
    }

    /// Whether it stands still, or has stood still and not beaten since.
    pub fn stood_still(&self) -> bool {
        now_us().saturating_sub(self.last_us.load(Ordering::Acquire)) > STANDSTILL_US
    }
}

fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_until_it_beats() {
        let heart = Heart::new();
        assert!(!heart.stood_still());
        heart.last_us.fetch_sub(STANDSTILL_US + 1, Ordering::AcqRel);
        assert!(heart.stood_still() && heart.stood_still());
        heart.beat();
        assert!(!heart.stood_still());
    }
}
