//! After a standstill: whether this host is still the primary.
//!
//! A process that was stopped, or a host that slept, goes on as if no time had passed, and the peer may have been promoted
//! meanwhile. Nothing is admitted before the peer has shown, with something that it said after the standstill, that it was
//! not; or before it counts as lost, as at any other time.

use super::*;

impl Source {
    /// This host stood still, for longer than it would have taken to hear of a promotion, until `now`.
    pub fn doubt(&mut self, now: Time) {
        self.now = self.now.max(now);
        if !self.state.peer_has_checkpoint {
            // Nothing could have been promoted.
            return;
        }
        self.doubted_since = Some(self.now);
        if !matches!(self.session, Session::None | Session::Active) {
            // What it answers may be from before, and may be here already.
            self.session = Session::None;
            self.disconnected_since = self.now;
            self.outputs.push_back(Output::Disconnect { reason: "this host stood still" });
        }
        self.pump(now);
    }

    /// Whether clients are held until the peer was heard of.
    pub fn is_in_doubt(&self) -> bool {
        self.doubted_since.is_some()
    }

    /// The peer answers a ping of this time, or has agreed to a session.
    pub(super) fn heard_of_peer(&mut self, asked: Time) {
        // An answer to no ping may be from any time.
        if asked <= self.now {
            self.doubted_since.take_if(|since| *since <= asked);
        }
    }

    /// When an unreachable peer counts as lost.
    pub(super) fn doubt_ends_at(&self) -> Option<Time> {
        let since = self.doubted_since.filter(|_| !self.session.is_active())?;
        Some(since.plus_us(self.config.sync_timeout_us))
    }

    pub(super) fn end_doubt(&mut self) {
        if self.doubt_ends_at().is_some_and(|at| at <= self.now) {
            self.doubted_since = None;
        }
    }
}
