//! What a promotion loses of what clients were answered (rule 24).
//!
//! Every ping says what the source had admitted by when. Once the target has that, all that was answered by then is here.
//! A ping may lend a lease: the source answers nobody without the target while it runs. Its time counts from when this
//! host said something that the source had heard before it lent it, so no two clocks are compared.

use super::*;
use crate::message::{Lease, MAX_LEASE_US, Ping};

/// Pings that are remembered at once; when there are more, every second one is forgotten.
const MAX_HEARD: usize = 64;
/// A lease is trusted for this part less than it was lent for: two clocks do not run alike.
const DRIFT_PART: u64 = 64;

/// What is lost, of the writes that the source has answered, if this host is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    Nothing,
    /// It is not known: everything that was answered before this time, by the source's clock, is here.
    Unknown {
        /// The time; `None` if not even that is known.
        since: Option<Time>,
    },
}

/// What a ping told.
#[derive(Clone, Copy, Debug)]
struct Heard {
    time: Time,
    sequence: Sequence,
    lease: Option<Lease>,
}

impl Heard {
    fn lease_runs(&self, now: Time, rules: Rules) -> bool {
        let runs = |lease: &Lease| {
            let trusted_us = lease.us.saturating_sub(lease.us / DRIFT_PART);
            now.since_us(lease.heard) < trusted_us || !rules.on(Rule::LeaseAge)
        };
        self.lease.as_ref().is_some_and(runs)
    }

    /// Before this time, by the source's clock, everything that was answered is at or below the sequence.
    fn covers_until(&self) -> Time {
        self.time.plus_us(self.lease.map_or(0, |lease| lease.us))
    }
}

/// What the pings of a source have told, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Pings {
    heard: VecDeque<Heard>,
}

impl Pings {
    fn heard(&mut self, now: Time, newest: Sequence, rules: Rules, heard: Heard) {
        // Of those whose writes are here, the latest says it all, but for the leases.
        while self.heard.get(1).is_some_and(|next| next.sequence <= newest)
            && !self.heard[0].lease_runs(now, rules)
        {
            self.heard.pop_front();
        }
        if self.heard.len() >= MAX_HEARD {
            let mut keep = false;
            self.heard.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.heard.push_back(heard);
    }

    /// A session begins, which may be another run of the source: what it had lent is void.
    pub fn session_begins(&mut self, same_history: bool) {
        if !same_history {
            self.heard.clear();
        }
        self.heard.iter_mut().for_each(|heard| heard.lease = None);
    }

    /// Only what is known of writes up to `newest`.
    pub fn covered(&self, newest: Sequence, rules: Rules) -> Pings {
        let here = |heard: &&Heard| heard.sequence <= newest || !rules.on(Rule::LeaseCovers);
        Pings { heard: self.heard.iter().filter(here).copied().collect() }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.heard.len()
    }

    /// What is lost when all of these pings are covered.
    pub fn loss(&self, now: Time, rules: Rules) -> Loss {
        if self.heard.iter().any(|heard| heard.lease_runs(now, rules)) {
            return Loss::Nothing;
        }
        Loss::Unknown { since: self.heard.iter().map(Heard::covers_until).max() }
    }
}

impl Target {
    /// A ping came on the control stream of `session`.
    pub fn ping(&mut self, now: Time, session: SessionId, ping: Ping) {
        self.now = self.now.max(now);
        if self.session.active() != Some(session) {
            return;
        }
        // What this host has not said yet nobody can have heard.
        let lease = ping.lease.filter(|lease| lease.heard <= self.now && lease.us <= MAX_LEASE_US);
        let heard = Heard { time: ping.time, sequence: ping.sequence, lease };
        let newest = self.newest_sequence();
        self.pings.heard(self.now, newest, self.rules, heard);
        let applied = self.applied_to().map_or(Sequence(0), |p| p.sequence);
        self.send(TargetMessage::Pong { time: ping.time, applied, clock: self.now });
    }

    /// What a promotion now would lose, apart from what it gives up by choice.
    pub fn loss(&mut self, now: Time) -> Loss {
        self.now = self.now.max(now);
        self.pings.covered(self.newest_sequence(), self.rules).loss(self.now, self.rules)
    }

    /// Until when, by the source's clock, all that it had admitted is here: later with every ping, also when nobody writes.
    /// `None` if it has said nothing yet.
    pub fn covered_until(&self) -> Option<Time> {
        let newest = self.newest_sequence();
        self.pings.heard.iter().filter(|heard| heard.sequence <= newest).map(|heard| heard.time).max()
    }

    pub(super) fn newest_sequence(&self) -> Sequence {
        self.points.newest().map_or(Sequence(0), |point| point.position.sequence)
    }
}
