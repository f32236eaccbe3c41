//! How often each event has happened, and whether it may be logged once more.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Event;

/// Lines of one event and one group in one [`WINDOW`], at most: enough to see that something repeats itself.
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Groups that are told apart; a host has at most 64, and names of others come from outside.
const MAX_GROUPS: usize = 128;

/// How often something has happened since the process began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// What.
    pub event: Event,
    /// To this group; empty for what concerns the host.
    pub group: String,
    /// How often, logged or not.
    pub count: u64,
}

#[derive(Debug, Default)]
struct Window {
    total: u64,
    began: Option<Instant>,
    lines: u32,
    unlogged: u64,
}

impl Window {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        self.total += 1;
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            self.began = Some(now);
            self.lines = 0;
        }
        if self.lines == LINES {
            self.unlogged += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

type Log = BTreeMap<String, BTreeMap<Event, Window>>;

/// Events are of the process, as its log is.
static LOG: Mutex<Log> = Mutex::new(BTreeMap::new());

/// Counts an event. `Some` if it may be logged, with the number of those that were not since the last line.
pub fn admit(event: Event, group: &str) -> Option<u64> {
    window(&mut lock(), event, group).admit(Instant::now())
}

/// Counts an event that is logged in any case.
pub fn count(event: Event, group: &str) {
    window(&mut lock(), event, group).total += 1;
}

/// What has happened so far, by group and event.
pub fn counts() -> Vec<Count> {
    let log = lock();
    let of_group = |(group, events): (&String, &BTreeMap<Event, Window>)| {
        let count = |(event, window): (&Event, &Window)| Count {
            event: *event,
            group: group.clone(),
            count: window.total,
        };
        events.iter().map(count).collect::<Vec<_>>()
    };
    log.iter().flat_map(of_group).collect()
}

fn lock() -> MutexGuard<'static, Log> {
    // Counters: whatever a panic left of them is good enough.
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

fn window<'a>(log: &'a mut Log, event: Event, group: &str) -> &'a mut Window {
    let group = if log.len() >= MAX_GROUPS && !log.contains_key(group) { "" } else { group };
    if !log.contains_key(group) {
        log.insert(group.to_owned(), BTreeMap::new());
    }
    // Just made, if it was not there.
    log.entry(group.to_owned()).or_default().entry(event).or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_itself_is_logged_now_and_then() {
        let mut window = Window::default();
        let start = Instant::now();
        let logged = (0..1000).filter_map(|_| window.admit(start)).count();
        assert_eq!((logged, window.total), (LINES as usize, 1000));
        assert_eq!(window.admit(start + WINDOW), Some(1000 - u64::from(LINES)));
        assert_eq!(window.admit(start + WINDOW), Some(0));
    }

    #[test]
    fn events_are_counted_for_each_group_and_groups_are_bounded() {
        let mut log = Log::new();
        for n in 0..10_000 {
            window(&mut log, Event::LinkUp, &format!("group-{n}")).total += 1;
        }
        assert_eq!(log.len(), MAX_GROUPS + 1);
        let total: u64 = log.values().flat_map(BTreeMap::values).map(|window| window.total).sum();
        assert_eq!(total, 10_000);
    }

    #[test]
    fn a_logged_event_is_counted() {
        crate::event!(Event::Promoted, group = "counted", generation = 7, "promoted");
        crate::event!(limited: Event::Promoted, group = String::from("counted"), "promoted");
        crate::event!(Event::Started, "a daemon starts");
        let count = |event, group: &str| {
            counts().iter().find(|c| c.event == event && c.group == group).map_or(0, |c| c.count)
        };
        assert_eq!(count(Event::Promoted, "counted"), 2);
        assert_eq!(count(Event::Started, ""), 1);
    }
}
