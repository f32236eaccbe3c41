//! What has happened to a group and was not told yet.

use std::collections::VecDeque;

use super::{Event, Facts};

/// Bounded by the number of events: of each kind only the newest waits.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<(Event, Facts)>,
    /// Somebody works it off.
    worked_off: bool,
}

impl Queue {
    /// Puts an event at the end, in place of an earlier one of its kind; whether somebody has to begin to work it off.
    pub(super) fn push(&mut self, event: Event, facts: Facts) -> bool {
        self.waiting.retain(|(waiting, _)| *waiting != event);
        self.waiting.push_back((event, facts));
        !std::mem::replace(&mut self.worked_off, true)
    }

    /// The oldest event; with `None`, whoever worked the queue off is done.
    pub(super) fn pop(&mut self) -> Option<(Event, Facts)> {
        let next = self.waiting.pop_front();
        self.worked_off = next.is_some();
        next
    }
}
