//! What can be changed while the source runs, and whether it can be left.

use super::*;

impl Source {
    /// What catch-up and verification leave to clients from now on, and the bound of a catch-up's reading, in bytes a second.
    pub fn set_pace(&mut self, now: Time, background: Background, max_rate: Option<u64>) {
        self.now = self.now.max(now);
        (self.config.background, self.config.max_rate) = (background, max_rate);
        self.pace.follow(background, max_rate, self.now);
    }

    /// How long a client waits for the target from now on, those that wait already included, in microseconds. A lease that
    /// was lent is kept to its end.
    pub fn set_sync_timeout(&mut self, now: Time, sync_timeout_us: u64) {
        self.now = self.now.max(now);
        self.config.sync_timeout_us = sync_timeout_us;
    }

    /// Whether no request of a client is under way or waits: without another one nothing is written to a volume any more.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.flushes.is_empty() && self.waiting.is_empty()
    }
}
