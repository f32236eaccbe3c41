//! The time of a daemon: microseconds since 1970 that never go back, and never stand still.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// The host's clock as it was when first asked for, and the time that has passed since.
struct Clock {
    origin_us: u64,
    started: Duration,
}

static CLOCK: LazyLock<Clock> = LazyLock::new(|| {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clock { origin_us: us(since_1970), started: since_boot() }
});

/// Microseconds since 1970, by the host's clock as it was at the first call of the process: a clock that is set later
/// moves nothing. The time that the host sleeps counts.
pub fn now_us() -> u64 {
    let passed = since_boot().saturating_sub(CLOCK.started);
    CLOCK.origin_us.saturating_add(us(passed))
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
