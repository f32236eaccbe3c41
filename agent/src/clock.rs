//! Time as the source wants it: microseconds since 1970 that never go back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afterimage_protocol::Time;
use rustix::time::{ClockId, clock_gettime};

/// The host's clock as it was at the start, and the time that has passed since: a clock that is set while the agent
/// runs moves nothing, and the time that the host sleeps counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin_us: u64,
    started: Duration,
}

impl Clock {
    pub fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { origin_us: us(since_1970), started: since_boot() }
    }

    pub fn now(&self) -> Time {
        Time(self.origin_us).plus_us(us(since_boot().saturating_sub(self.started)))
    }

    /// How long it is until `at`; zero when that has passed.
    pub fn until(&self, at: Time) -> Duration {
        Duration::from_micros(at.since_us(self.now()))
    }

    /// When the clock was started.
    pub fn origin(&self) -> Time {
        Time(self.origin_us)
    }
}

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    // Both are positive.
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
