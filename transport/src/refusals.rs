//! Telling of refused connections without letting strangers fill the log.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Fingerprint;

/// Lines that may be logged in one [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts refusals, and says which may be logged.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    total: AtomicU64,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    lines: u32,
    unlogged: u64,
}

impl Refusals {
    /// Counts one. `Some` if it may be logged, with the number that were not since the last line.
    pub(crate) fn count(&self, now: Instant) -> Option<u64> {
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            window.began = Some(now);
            window.lines = 0;
        }
        if window.lines == LINES {
            window.unlogged += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.unlogged))
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// A connection that was refused because of its key.
#[derive(Clone, Debug)]
pub struct RefusedKey {
    /// Where it came from.
    pub address: SocketAddr,
    /// The key that was seen.
    pub key: Fingerprint,
    /// Why it was refused.
    pub reason: String,
    at: Instant,
}

/// The newest [`RefusedKey`] of an endpoint. Copies show the same one.
#[derive(Clone, Debug, Default)]
pub struct RefusedKeys(Arc<Mutex<Option<RefusedKey>>>);

impl RefusedKeys {
    /// The newest, if it came within this time.
    pub fn within(&self, time: Duration) -> Option<RefusedKey> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone().filter(|refused| refused.at.elapsed() <= time)
    }

    pub(crate) fn note(&self, address: SocketAddr, key: Fingerprint, reason: String) {
        let refused = RefusedKey { address, key, reason, at: Instant::now() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_logged_now_and_then() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let logged = (0..1000).filter_map(|_| refusals.count(start)).count();
        assert_eq!(logged, LINES as usize);
        assert_eq!(refusals.total(), 1000);
        assert_eq!(refusals.count(start + WINDOW), Some(1000 - u64::from(LINES)));
        assert_eq!(refusals.count(start + WINDOW), Some(0));
    }
}
