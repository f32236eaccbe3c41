//! Looks at a group once a second: since when it is protected as it is, how fast a catch-up goes, and what the hooks
//! are to be told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use afterimage_contract::hooks::{Event, Facts};
use afterimage_contract::status::{Protection, Role};
use afterimage_protocol::{Time, source};

use crate::alarm::{Alarms, Look};
use crate::group::Group;
use crate::link::LinkState;
use crate::rest::Rest;
use crate::status::protection;
use crate::supervisor::Supervisor;

const INTERVAL: Duration = Duration::from_secs(1);
/// Weight of the last second in the rate of a catch-up: fluctuations of a few seconds even out.
const NEW_WEIGHT: f64 = 0.3;

/// What was seen.
pub(crate) struct Watched {
    seen: Mutex<Seen>,
    alarms: Mutex<Alarms>,
}

#[derive(Clone, Copy)]
struct Seen {
    protection: Option<Protection>,
    since: Time,
    sent_bytes: Option<u64>,
    rate: Option<f64>,
}

impl Watched {
    /// Nothing yet, of a group that is opened now and has the objective `rpo`.
    pub fn new(now: Time, rpo: Option<Duration>) -> Self {
        let seen = Seen { protection: None, since: now, sent_bytes: None, rate: None };
        Self { seen: Mutex::new(seen), alarms: Mutex::new(Alarms::new(now, rpo)) }
    }

    /// The objective is another from now on.
    pub fn set_rpo(&self, rpo: Option<Duration>) {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).set_rpo(rpo);
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
    pub async fn run(&self, group: &Group, supervisor: &Supervisor) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rest = Rest::default();
        loop {
            interval.tick().await;
            self.look(group, supervisor);
            rest.look(group, group.look(|source| source.position().sequence.0));
        }
    }

    /// Looks once.
    pub fn look(&self, group: &Group, supervisor: &Supervisor) {
        if group.is_handed_over() {
            // The session ends as it should.
            return;
        }
        let status = group.status();
        let (now, link) = (group.clock.now(), supervisor.link.state());
        let protection = protection(&status, &link, &supervisor.config, now);
        self.note(group, now, protection, status.catch_up.map(|(sent, _)| sent));
        let lag_us = status.oldest_unsafe.map_or(0, |oldest| now.since_us(oldest));
        let look = Look {
            protection,
            connected: status.connected,
            split_brain: link.split_brain,
            first_sync: status.first_sync,
            lag: status.lag_known.then_some(Duration::from_micros(lag_us)),
            all_durable: status.durable >= status.position.sequence,
        };
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        for event in alarms.look(now, &look) {
            let facts = Facts {
                role: Some(Role::Primary),
                generation: Some(status.position.generation.to_string()),
                sequence: Some(status.position.sequence.0),
                protection: Some(protection),
                lag_seconds: look.lag.map(|lag| lag.as_secs_f64()),
                exports: supervisor.exports(),
                reason: reason(event, &status, &link, alarms.exposed_us(now)),
                ..Facts::new(&group.name)
            };
            tracing::warn!(
                group = group.name,
                event = event.name(),
                reason = facts.reason,
                "an event of the group"
            );
            supervisor.hooks.tell(event, facts);
        }
    }

    fn note(&self, group: &Group, now: Time, protection: Protection, sent_bytes: Option<u64>) {
        let mut seen = self.lock();
        if seen.protection != Some(protection) {
            seen.since = now;
            let was = seen.protection.replace(protection);
            report(group, was, protection);
        }
        let last = sent_bytes.zip(seen.sent_bytes);
        seen.rate = last
            .and_then(|(now, before)| Some((now.checked_sub(before)? as f64, seen.rate)))
            .map(|(new, old)| old.map_or(new, |old| new * NEW_WEIGHT + old * (1.0 - NEW_WEIGHT)));
        seen.sent_bytes = sent_bytes;
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

fn reason(event: Event, status: &source::Status, link: &LinkState, exposed_us: u64) -> Option<String> {
    match event {
        Event::RpoBreach => {
            let about = if status.lag_known { "" } else { "at least " };
            Some(format!("the standby has lacked writes for {about}{:.1} s", exposed_us as f64 / 1e6))
        }
        Event::ProtectionRegained => None,
        _ => link.last_error.clone().filter(|_| !status.connected),
    }
}
