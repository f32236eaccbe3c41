//! Looks at a group once a second: since when it is protected as it is, how fast a catch-up goes, and what the hooks
//! are to be told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use afterimage_contract::hooks::{Event, Facts};
use afterimage_contract::meter::Meter;
use afterimage_contract::status::{Protection, Role};
use afterimage_events::{Event as Logged, event};
use afterimage_protocol::{Time, source};

use crate::admitted::Admitted;
use crate::alarm::{Alarms, Look};
use crate::group::Group;
use crate::link::LinkState;
use crate::rest::Rest;
use crate::status::protection;
use crate::supervisor::Supervisor;

const INTERVAL: Duration = Duration::from_secs(1);

/// What was seen.
pub(crate) struct Watched {
    seen: Mutex<Seen>,
    alarms: Mutex<Alarms>,
    admitted: Mutex<Admitted>,
}

#[derive(Clone, Copy)]
struct Seen {
    protection: Option<Protection>,
    since: Time,
    /// What the catch-up under way has sent.
    sent: Meter,
    /// When it was last looked at.
    looked: Time,
    /// How long it was not protected as it is configured to be, in microseconds.
    unprotected_us: u64,
    /// The state cannot be written, tracking is lost, blocks cannot be read.
    faults: [bool; 3],
    /// The standby had no checkpoint yet.
    first_sync: bool,
}

impl Watched {
    /// Nothing yet, of a group that is opened now and has the objective `rpo`.
    pub fn new(now: Time, rpo: Option<Duration>) -> Self {
        let seen = Seen {
            protection: None,
            since: now,
            sent: Meter::default(),
            looked: now,
            unprotected_us: 0,
            faults: [false; 3],
            first_sync: false,
        };
        Self { seen: Mutex::new(seen), alarms: Mutex::new(Alarms::new(now, rpo)), admitted: Mutex::default() }
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

    /// How long the group was not protected as it is configured to be, in microseconds.
    pub fn unprotected_us(&self) -> u64 {
        self.lock().unprotected_us
    }

    /// The standby lacks nothing that was admitted before this; `None` while that was never known.
    pub fn safe_until(&self) -> Option<Time> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).safe_until()
    }

    /// Age, in seconds, of the oldest write that the standby has received and that is not in its base; `None` when it is not
    /// known.
    pub fn apply_lag(&self, now: Time, status: &source::Status) -> Option<f64> {
        if !status.connected {
            return None;
        }
        let admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.age_us(now, status.applied.0, status.received.0).map(|us| us as f64 / 1e6)
    }

    /// What the catch-up under way sends in a second, in bytes; `None` until it was measured.
    pub fn rate(&self, now: Time) -> Option<u64> {
        self.lock().sent.per_s(now.0)
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
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.note(now, status.position.sequence.0, status.applied.0);
        drop(admitted);
        self.note_first_sync(group, status.first_sync);
        self.note(group, now, protection, status.catch_up.map(|(sent, _)| sent));
        self.note_faults(group, &status);
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
            match event {
                Event::RpoBreach => {
                    event!(
                        Logged::RpoBreached,
                        group = group.name,
                        reason = facts.reason,
                        "the objective is missed"
                    );
                }
                Event::SplitBrain => {
                    event!(
                        Logged::SplitBrain,
                        group = group.name,
                        reason = facts.reason,
                        "both hosts have writes of their own"
                    );
                }
                // What is logged where it is noticed.
                _ => {}
            }
            supervisor.hooks.tell(event, facts);
        }
    }

    fn note(&self, group: &Group, now: Time, protection: Protection, sent_bytes: Option<u64>) {
        let mut seen = self.lock();
        if seen.protection.is_some_and(|was| !was.is_healthy()) {
            seen.unprotected_us += now.since_us(seen.looked);
        }
        seen.looked = now;
        if seen.protection != Some(protection) {
            seen.since = now;
            let was = seen.protection.replace(protection);
            report(group, was, protection);
        }
        seen.sent.note(now.0, sent_bytes);
    }

    /// Says that there is something to be promoted, also if the first sync took less than the time between two looks.
    fn note_first_sync(&self, group: &Group, first_sync: bool) {
        if std::mem::replace(&mut self.lock().first_sync, first_sync) && !first_sync {
            event!(Logged::FirstSyncEnded, group = group.name, "the standby can be promoted");
        }
    }

    /// Says what goes wrong on the disks, once.
    fn note_faults(&self, group: &Group, status: &source::Status) {
        let faults = [status.state_failed, status.tracking_lost, status.unreadable_blocks > 0];
        let known = std::mem::replace(&mut self.lock().faults, faults);
        let [state, tracking, unreadable] = std::array::from_fn(|n| faults[n] && !known[n]);
        if state {
            event!(
                Logged::StateFailed,
                group = group.name,
                "the state cannot be written: nothing is replicated any more"
            );
        }
        if tracking {
            event!(Logged::TrackingLost, group = group.name, "every block counts as dirty");
        }
        if unreadable {
            let blocks = status.unreadable_blocks;
            event!(
                Logged::UnreadableBlocks,
                group = group.name,
                blocks,
                "blocks cannot be read, and the standby lacks them"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report(group: &Group, was: Option<Protection>, is: Protection) {
    let group = &group.name;
    let before = was.map_or("unknown", Protection::name);
    if was == Some(Protection::CatchingUp) && is.is_healthy() {
        event!(Logged::CatchUpEnded, group = group, "the standby has been brought up to date");
    }
    match is {
        Protection::InSync => {
            event!(Logged::InSync, group = group, was = before, "the standby has every acknowledged write")
        }
        Protection::AsyncStreaming => {
            event!(
                Logged::Streaming,
                group = group,
                was = before,
                "every write is on its way to the standby"
            );
        }
        Protection::CatchingUp => {
            event!(Logged::CatchUpBegun, group = group, was = before, "the standby is brought up to date");
        }
        Protection::FirstSync => {
            event!(Logged::FirstSyncBegun, group = group, was = before, "the standby gets its first copy")
        }
        Protection::Degraded => {
            event!(
                Logged::Degraded,
                group = group,
                was = before,
                "writes are acknowledged that the standby does not have"
            );
        }
        Protection::Blocked => {
            event!(Logged::Blocked, group = group, was = before, "writes wait for the standby")
        }
        // What led there is logged where it is noticed.
        _ => tracing::debug!(group, was = before, is = is.name(), "the protection of the group has changed"),
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
