//! What the target may promise when it is promoted: that nothing is lost (rule 24).
//!
//! While the group is in sync the source lends the target that promise for a while with every ping: it answers nobody
//! without the target for so long. The time is counted here from the ping, and at the target from before it, each by its
//! own clock.

use super::*;
use crate::message::{Lease, MAX_LEASE_US, Ping};

impl Source {
    /// A ping for the target, to be sent at once. To be asked for every [`Source::ping_interval_us`].
    pub fn ping(&mut self, now: Time) -> Ping {
        self.now = self.now.max(now);
        let us = self.lease_us();
        // Never so long that clients would wait for its end rather than for the target.
        let late = self.late_at().is_some_and(|at| at <= self.now.plus_us(us));
        let lends = self.in_sync && self.session.is_active() && !late;
        let lease = self.peer_clock.filter(|_| lends).map(|heard| Lease { heard, us });
        if lease.is_some() {
            self.leased_until = self.leased_until.max(self.now.plus_us(us));
        }
        Ping { time: self.now, sequence: self.sequence, lease }
    }

    /// How often to ping, in microseconds: several times while a lease runs.
    pub fn ping_interval_us(&self) -> u64 {
        match self.config.mode {
            Mode::Async => PING_INTERVAL_US,
            Mode::Sync => (self.lease_us() / 4).clamp(PING_INTERVAL_MIN_US, PING_INTERVAL_US),
        }
    }

    /// Half of what clients wait for the target, so that the other half is left in which it may be late.
    fn lease_us(&self) -> u64 {
        (self.config.sync_timeout_us / 2).min(MAX_LEASE_US)
    }

    /// The target answered the ping of `time`, at `clock` by its own clock.
    pub(super) fn answered(&mut self, time: Time, clock: Time) {
        // An answer to no ping may be from any time.
        if time <= self.now {
            self.peer_clock = Some(clock);
        }
    }

    /// Whether the target may be promising that nobody is answered without it.
    pub(super) fn is_leased(&self) -> bool {
        self.now < self.leased_until && self.rules.on(Rule::LeaseHeld)
    }

    /// When those who wait for the end of a lease are answered.
    pub(super) fn lease_ends_at(&self) -> Option<Time> {
        let idle = self.in_flight.is_empty() && self.flushes.is_empty() && self.waiting.is_empty();
        (!idle && self.is_leased()).then_some(self.leased_until)
    }

    /// An earlier run may have lent the target a lease.
    pub(super) fn lease_of_before(&mut self) {
        if self.state.peer_has_checkpoint && !self.first_run {
            self.leased_until = self.now.plus_us(MAX_LEASE_US);
        }
    }

    /// The target has let go of every lease when it agreed to the session.
    pub(super) fn end_lease(&mut self) {
        self.leased_until = Time(0);
        self.peer_clock = None;
    }
}
