//! Whether a write of an async group waits for room in the queue, rather than that the standby falls far behind, or, once the
//! queue is full, that the group goes to catch-up.
//!
//! On a fast link it does: clients then write as fast as the link is, and the standby stays in order and close behind. Nobody
//! measures the link beforehand; what the oldest write in the queue has waited for says it. Where it was not fast, clients
//! have waited in vain and are left alone for a while, longer each time.

use crate::ids::Time;

/// A link that takes as many bytes a second, with the target's syncs, is fast: more than a gigabit line, and no less than what a
/// disk of its own would give to a client that writes so much.
const FAST_BYTES_PER_S: u64 = 160 << 20;
/// Nobody waits any more once the oldest write is so old, in microseconds, however large the queue is: to its clients the volume
/// would seem to hang.
const MAX_WAIT_US: u64 = 1_000_000;
/// How long clients are left alone after they have waited in vain, in microseconds: on a slow link they wait for no more than one
/// part in twenty of the time, and soon for less.
const REST_US: u64 = 20_000_000;
/// And at most.
const MAX_REST_US: u64 = 32 * REST_US;

/// This part of a queue has what a fast link needs: with more, the standby only lacks more, and with less, a sync of its disk that
/// takes long would count as a slow link.
const NEAR_PART: u64 = 4;

/// How far a queue is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// As far as a fast link needs it.
    Near,
    /// To its bound.
    Full,
}

impl Fill {
    /// So much is then in a queue that may have `queue_bytes`.
    pub fn bytes(self, queue_bytes: u64) -> u64 {
        match self {
            Fill::Near => queue_bytes / NEAR_PART,
            Fill::Full => queue_bytes,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Room {
    /// A write waits for room until then.
    wait: Option<(Fill, Time)>,
    near: Patience,
    full: Patience,
}

/// Whether it is worth while to wait.
#[derive(Debug, Default)]
struct Patience {
    /// Nobody waits before this time.
    rests_until: Time,
    rest_us: u64,
}

impl Room {
    /// Until when a write waits, if one does.
    pub fn wait_ends(&self) -> Option<Time> {
        self.wait.map(|(_, ends)| ends)
    }

    /// Nothing waits any more, as far as is known; for what a write has waited until now.
    pub fn forget_wait(&mut self) -> Option<Fill> {
        self.wait.take().map(|(fill, _)| fill)
    }

    /// Whether a write waits that does not go into these bytes with `oldest` and what came after it. `waited`: for what one has
    /// waited until now.
    pub fn is_waited_for(
        &mut self,
        now: Time,
        oldest: Time,
        (fill, bytes): (Fill, u64),
        waited: Option<Fill>,
    ) -> bool {
        let patience = match fill {
            Fill::Near => &mut self.near,
            Fill::Full => &mut self.full,
        };
        if now < patience.rests_until {
            return false;
        }
        let fast_us = bytes.saturating_mul(1_000_000) / FAST_BYTES_PER_S;
        let ends = oldest.plus_us(fast_us.min(MAX_WAIT_US));
        if now < ends {
            self.wait = Some((fill, ends));
            return true;
        }
        if waited == Some(fill) {
            patience.rest(now);
        }
        false
    }
}

impl Patience {
    fn rest(&mut self, now: Time) {
        let again = now.since_us(self.rests_until) < self.rest_us;
        self.rest_us = if again { (self.rest_us * 2).min(MAX_REST_US) } else { REST_US };
        self.rests_until = now.plus_us(self.rest_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: u64 = 64 << 20;
    const FAST_US: u64 = 400_000;

    /// A client waits from `at` on, on a link that takes nothing; whether it waited.
    fn in_vain(room: &mut Room, at: Time) -> bool {
        let waited = room.is_waited_for(at, at, (Fill::Full, QUEUE), None);
        let ends = at.plus_us(FAST_US);
        assert_eq!(room.wait_ends(), waited.then_some(ends));
        room.forget_wait();
        assert!(!room.is_waited_for(ends, at, (Fill::Full, QUEUE), waited.then_some(Fill::Full)));
        waited
    }

    #[test]
    fn those_who_waited_in_vain_are_left_alone_for_longer_each_time() {
        let mut room = Room::default();
        let mut at = Time(1_000_000_000);
        for rest_us in [20, 40, 80, 160, 320, 640, 640].map(|s| s * 1_000_000) {
            assert!(in_vain(&mut room, at));
            let ends = at.plus_us(FAST_US + rest_us);
            assert!(!in_vain(&mut room, Time(ends.0 - 1)));
            at = ends;
        }
        // It was fast for long: what happened before is over.
        at = at.plus_us(2 * MAX_REST_US);
        assert!(in_vain(&mut room, at));
        assert!(in_vain(&mut room, at.plus_us(FAST_US + REST_US)));
    }

    #[test]
    fn a_link_that_was_slow_before_anybody_waited_is_not_held_against_it() {
        let mut room = Room::default();
        let old = Time(1_000_000_000);
        let now = old.plus_us(2 * FAST_US);
        assert!(!room.is_waited_for(now, old, (Fill::Full, QUEUE), None));
        // Nor is it that one has waited for something else.
        assert!(!room.is_waited_for(now, old, (Fill::Full, QUEUE), Some(Fill::Near)));
        assert!(room.is_waited_for(now, now, (Fill::Full, QUEUE), None));
    }
}
