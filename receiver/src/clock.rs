//! The host's clock as the state machines want it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use afterimage_protocol::Time;

/// Microseconds since 1970; never goes back within the process, whatever is done to the host's clock.
pub fn now() -> Time {
    static LATEST: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    Time(LATEST.fetch_max(us, Ordering::Relaxed).max(us))
}
