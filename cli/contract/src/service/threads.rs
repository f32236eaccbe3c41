//! What the threads of this process are doing, as the kernel says: which of them have been waiting for a disk, and since when,
//! and whether one has moved at all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The id of a thread.
pub(super) type Tid = i32;

/// What was seen of the threads.
#[derive(Debug, Default)]
pub(super) struct Threads {
    seen: BTreeMap<Tid, Seen>,
    looked: Option<Instant>,
}

/// What was seen of a thread.
#[derive(Debug, Clone, Copy)]
struct Seen {
    state: State,
    /// How often it went to sleep or was interrupted.
    switches: u64,
    /// Since when it was seen waiting for a disk each time.
    at_disk_since: Option<Instant>,
    /// Since when it was seen asleep each time, without having run between.
    still_since: Option<Instant>,
}

/// The state of a thread, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It waits for a disk, and cannot be interrupted.
    Disk,
    Asleep,
    Other,
}

impl Threads {
    /// Looks at all of them.
    pub fn look(&mut self, now: Instant) {
        self.take(now, read());
    }

    fn take(&mut self, now: Instant, found: BTreeMap<Tid, (State, u64)>) {
        let since = |holds: bool, before: Option<Instant>| holds.then(|| before.unwrap_or(now));
        let seen = found.into_iter().map(|(tid, (state, switches))| {
            let before = self.seen.get(&tid);
            let moved = before.is_none_or(|before| before.switches != switches);
            let still = before.and_then(|before| before.still_since).filter(|_| !moved);
            let seen = Seen {
                state,
                switches,
                at_disk_since: since(state == State::Disk, before.and_then(|before| before.at_disk_since)),
                still_since: since(state == State::Asleep, still),
            };
            (tid, seen)
        });
        self.seen = seen.collect();
        self.looked = Some(now);
    }

    /// Whether a thread has waited for a disk, each time that it was looked at, for so long.
    pub fn disk_hangs(&self, limit: Duration) -> bool {
        self.seen.values().any(|seen| self.since(seen.at_disk_since).is_some_and(|time| time >= limit))
    }

    /// Whether this thread waits for a disk now.
    pub fn is_at_disk(&self, tid: Tid) -> bool {
        self.seen.get(&tid).is_some_and(|seen| seen.state == State::Disk)
    }

    /// Whether this thread has been asleep, and was not woken once, for so long.
    pub fn is_still(&self, tid: Tid, limit: Duration) -> bool {
        let still = self.seen.get(&tid).and_then(|seen| self.since(seen.still_since));
        still.is_some_and(|time| time >= limit)
    }

    fn since(&self, at: Option<Instant>) -> Option<Duration> {
        Some(self.looked?.saturating_duration_since(at?))
    }

    /// For tests of what is made of it: one more look, at which these threads are at the disk (`D`) or asleep (`S`), with so
    /// many switches.
    #[cfg(test)]
    pub fn see(&mut self, now: Instant, threads: &[(Tid, char, u64)]) {
        let found = threads.iter().map(|(tid, state, switches)| (*tid, (state_of(*state), *switches)));
        self.take(now, found.collect());
    }
}

/// What the kernel says now. What cannot be read is left out: a thread may end at any time.
fn read() -> BTreeMap<Tid, (State, u64)> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return BTreeMap::new() };
    let one = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let tid = entry.file_name().to_str()?.parse().ok()?;
        Some((tid, parse(&std::fs::read_to_string(entry.path().join("status")).ok()?)?))
    };
    tasks.filter_map(one).collect()
}

/// The state and the switches in the text of a thread's `status` file, see `proc(5)`.
fn parse(status: &str) -> Option<(State, u64)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let state = state_of(field("State")?.trim().chars().next()?);
    let count = |name| field(name)?.trim().parse::<u64>().ok();
    Some((state, count("voluntary_ctxt_switches")?.wrapping_add(count("nonvoluntary_ctxt_switches")?)))
}

fn state_of(letter: char) -> State {
    match letter {
        'D' => State::Disk,
        'S' => State::Asleep,
        _ => State::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn the_kernel_is_understood() {
        let found = read();
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let (state, switches) = found[&own];
        assert_eq!(state, State::Other, "a thread that asks is running");
        assert!(switches < u64::MAX / 2);
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            held.recv().unwrap_err();
        });
        let tid = told.recv().unwrap();
        while read()[&tid].0 != State::Asleep {
            std::thread::yield_now();
        }
        drop(hold);
        sleeper.join().unwrap();
        assert_eq!(parse("Name:\tx\nState:\tD (disk sleep)\nvoluntary_ctxt_switches:\t3\n"), None);
        let text = "Name:\tState:\nState:\tD (disk sleep)\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4\n";
        assert_eq!(parse(text), Some((State::Disk, 7)));
    }

    #[test]
    fn a_disk_hangs_when_one_thread_waits_for_it_all_the_time() {
        let start = Instant::now();
        let mut threads = Threads::default();
        // Two that take turns are busy with disks that answer.
        for second in 0..30 {
            let turn = second % 2;
            let states = [(1, if turn == 0 { 'D' } else { 'S' }, second), (2, 'S', second)];
            threads.see(start + Duration::from_secs(second), &states);
            assert!(!threads.disk_hangs(LIMIT));
        }
        for second in 30..40 {
            threads.see(start + Duration::from_secs(second), &[(1, 'D', 9), (2, 'S', 9)]);
            assert!(!threads.disk_hangs(LIMIT));
        }
        threads.see(start + Duration::from_secs(40), &[(1, 'D', 9), (2, 'S', 9)]);
        assert!(threads.disk_hangs(LIMIT) && threads.is_at_disk(1) && !threads.is_at_disk(2));
        threads.see(start + Duration::from_secs(41), &[(2, 'S', 9)]);
        assert!(!threads.disk_hangs(LIMIT));
    }

    #[test]
    fn a_thread_that_was_woken_is_not_still() {
        let start = Instant::now();
        let mut threads = Threads::default();
        for (second, switches) in [(0, 5), (6, 5), (12, 5)] {
            threads.see(start + Duration::from_secs(second), &[(1, 'S', switches)]);
        }
        assert!(threads.is_still(1, LIMIT) && !threads.is_still(2, LIMIT));
        threads.see(start + Duration::from_secs(13), &[(1, 'S', 6)]);
        assert!(!threads.is_still(1, LIMIT));
    }
}
