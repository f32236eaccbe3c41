//! Time as the source wants it: microseconds since 1970 that never go back.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use afterimage_protocol::Time;

/// The host's clock as it was at the start, and the time that has passed since: a clock that is set while the agent
/// runs moves nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin_us: u64,
    started: Instant,
}

impl Clock {
    pub fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { origin_us: us(since_1970), started: Instant::now() }
    }

    pub fn now(&self) -> Time {
        Time(self.origin_us).plus_us(us(self.started.elapsed()))
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

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
