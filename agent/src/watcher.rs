//! Looks at a group once a second: since when it is protected as it is, and how fast a catch-up goes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use afterimage_contract::config;
use afterimage_contract::status::Protection;
use afterimage_protocol::Time;

use crate::group::Group;
use crate::link::Link;
use crate::status::protection;

const INTERVAL: Duration = Duration::from_secs(1);
/// Weight of the last second in the rate of a catch-up: fluctuations of a few seconds even out.
const NEW_WEIGHT: f64 = 0.3;

/// What was seen.
pub(crate) struct Watched {
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy)]
struct Seen {
    protection: Option<Protection>,
    since: Time,
    sent_bytes: Option<u64>,
    rate: Option<f64>,
}

impl Watched {
    pub fn new(now: Time) -> Self {
        Self { seen: Mutex::new(Seen { protection: None, since: now, sent_bytes: None, rate: None }) }
    }

    /// Since when the group has been protected like this.
    pub fn since(&self, now: Time, protection: Protection) -> Time {
        let seen = self.lock();
        if seen.protection == Some(protection) { seen.since } else { now }
    }

    /// What the catch-up under way sends in a second, in bytes; `None` until it was measured.
    pub fn rate(&self) -> Option<u64> {
        self.lock().rate.map(|rate| rate as u64)
    }

    /// Never returns.
    pub async fn run(&self, group: &Group, link: &Link, config: &config::Group) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let status = group.status();
            let now = group.clock.now();
            let protection = protection(&status, &link.state(), config, now);
            let mut seen = self.lock();
            if seen.protection != Some(protection) {
                seen.since = now;
                let was = seen.protection.replace(protection);
                report(group, was, protection);
            }
            let sent_bytes = status.catch_up.map(|(sent, _)| sent);
            let last = sent_bytes.zip(seen.sent_bytes);
            seen.rate = last
                .and_then(|(now, before)| Some((now.checked_sub(before)? as f64, seen.rate)))
                .map(|(new, old)| old.map_or(new, |old| new * NEW_WEIGHT + old * (1.0 - NEW_WEIGHT)));
            seen.sent_bytes = sent_bytes;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report(group: &Group, was: Option<Protection>, is: Protection) {
    let group = &group.name;
    match is {
        Protection::InSync | Protection::AsyncStreaming | Protection::CatchingUp | Protection::FirstSync => {
            tracing::info!(group, ?was, ?is, "the protection of the group has changed");
        }
        _ => tracing::warn!(group, ?was, ?is, "the protection of the group has changed"),
    }
}
