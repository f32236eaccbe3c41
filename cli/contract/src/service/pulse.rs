//! The threads that have to answer, and what it means if one does not.
//!
//! A daemon that is started again helps where one of its threads has stopped working. It does not where a disk hangs: the
//! process could not even be killed, and groups on other disks would lose their service for nothing. So a thread that does
//! not answer counts as stuck only while no thread of the process has been waiting for a disk all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use super::threads::{Threads, Tid};

/// A thread that works on disks by itself may be silent for this long, asleep and not woken once, while helpers of it work:
/// syncs and recoveries of a large journal take minutes.
const WORKER_PATIENCE: Duration = Duration::from_secs(300);
/// What an answer holds before it is given.
const NOT_YET: Tid = 0;

/// The way to ask a thread: given an answer, to be given by that thread.
type Ask = Box<dyn Fn(Answer) + Send + Sync>;

/// The threads that have to answer.
#[derive(Default)]
pub struct Pulses {
    pulses: Vec<Pulse>,
}

struct Pulse {
    name: String,
    ask: Ask,
    /// It may be busy for long, with what is its work.
    works: bool,
    /// The thread that answered last.
    tid: Option<Tid>,
    /// The question that is not answered, and since when.
    asked: Option<(Instant, Arc<AtomicI32>)>,
}

/// To be given by the thread that is asked.
#[derive(Debug)]
pub struct Answer(Arc<AtomicI32>);

impl Answer {
    /// This thread works.
    pub fn give(self) {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        self.0.store(tid, Ordering::Release);
    }
}

/// What the silence of threads means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// These have stopped working.
    pub stuck: Vec<String>,
    /// These do not answer while a disk hangs.
    pub at_disk: Vec<String>,
}

impl Verdict {
    pub fn is_alive(&self) -> bool {
        self.stuck.is_empty()
    }

    /// What is wrong, for the log.
    pub fn complaint(&self) -> Option<String> {
        match (&self.stuck[..], &self.at_disk[..]) {
            ([], []) => None,
            ([], at_disk) => Some(format!(
                "{} does not answer while a disk hangs: this process is not ended for that; look at the disk",
                at_disk.join(", ")
            )),
            (stuck, _) => Some(format!(
                "{} has stopped working: the watchdog will have this process started again",
                stuck.join(", ")
            )),
        }
    }
}

impl Pulses {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a thread that always answers soon, unless it waits for a disk.
    pub fn add(&mut self, name: impl Into<String>, ask: impl Fn(Answer) + Send + Sync + 'static) {
        self.push(name.into(), false, Box::new(ask));
    }

    /// Adds a runtime, all of whose threads together count as one.
    pub fn add_runtime(&mut self, name: impl Into<String>, runtime: tokio::runtime::Handle) {
        self.add(name, move |answer| drop(runtime.spawn(async move { answer.give() })));
    }

    /// Adds a thread that does long work itself: its silence counts only when it has been asleep for minutes.
    pub fn add_worker(&mut self, name: impl Into<String>, ask: impl Fn(Answer) + Send + Sync + 'static) {
        self.push(name.into(), true, Box::new(ask));
    }

    fn push(&mut self, name: String, works: bool, ask: Ask) {
        self.pulses.push(Pulse { name, ask, works, tid: None, asked: None });
    }

    /// Takes the answers that were given, asks again, and says what the silence of the others means. Silence begins to count
    /// after `patience`.
    pub(super) fn look(&mut self, now: Instant, patience: Duration, threads: &Threads) -> Verdict {
        let mut verdict = Verdict::default();
        for pulse in &mut self.pulses {
            let Some(silent) = pulse.silence(now) else { continue };
            let stuck = match pulse.tid {
                Some(tid) if pulse.works => {
                    silent >= WORKER_PATIENCE && threads.is_still(tid, WORKER_PATIENCE)
                }
                // It has not begun to work: what it opens may take as long as it takes.
                None if pulse.works => false,
                _ => silent >= patience,
            };
            let at_disk =
                threads.disk_hangs(patience) || pulse.tid.is_some_and(|tid| threads.is_at_disk(tid));
            match (stuck, at_disk) {
                (true, false) => verdict.stuck.push(pulse.name.clone()),
                (_, true) if silent >= patience => verdict.at_disk.push(pulse.name.clone()),
                _ => {}
            }
        }
        verdict
    }
}

impl Pulse {
    /// For how long it has been asked without an answer; asks it if it is not.
    fn silence(&mut self, now: Instant) -> Option<Duration> {
        if let Some((since, answer)) = &self.asked {
            match answer.load(Ordering::Acquire) {
                NOT_YET => return Some(now.saturating_duration_since(*since)),
                tid => self.tid = Some(tid),
            }
        }
        let answer = Arc::new(AtomicI32::new(NOT_YET));
        (self.ask)(Answer(answer.clone()));
        self.asked = Some((now, answer));
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    /// A pulse whose answers a test gives.
    #[derive(Clone, Default)]
    struct Asked(Arc<Mutex<Vec<Answer>>>);

    impl Asked {
        fn ask(&self) -> impl Fn(Answer) + Send + Sync + 'static {
            let asked = self.0.clone();
            move |answer| asked.lock().unwrap().push(answer)
        }

        /// Answers on a thread that has ended when this returns; its id.
        fn answer(&self) -> Tid {
            let asked = std::mem::take(&mut *self.0.lock().unwrap());
            let thread = std::thread::spawn(move || {
                asked.into_iter().for_each(Answer::give);
                rustix::thread::gettid().as_raw_nonzero().get()
            });
            thread.join().unwrap()
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_thread_that_answers_is_alive() {
        let (start, asked, threads) = (Instant::now(), Asked::default(), Threads::default());
        let mut pulses = Pulses::new();
        pulses.add("lane", asked.ask());
        for second in (0..120).step_by(5) {
            assert_eq!(pulses.look(start + at(second), PATIENCE, &threads), Verdict::default());
            asked.answer();
        }
    }

    #[test]
    fn a_thread_that_does_not_answer_is_stuck_and_alive_again_once_it_does() {
        let (start, asked, threads) = (Instant::now(), Asked::default(), Threads::default());
        let mut pulses = Pulses::new();
        pulses.add("lane", asked.ask());
        assert!(pulses.look(start, PATIENCE, &threads).is_alive());
        assert!(pulses.look(start + at(14), PATIENCE, &threads).is_alive());
        let verdict = pulses.look(start + at(15), PATIENCE, &threads);
        assert_eq!(verdict.stuck, ["lane"]);
        assert!(verdict.complaint().unwrap().contains("lane has stopped working"));
        asked.answer();
        assert_eq!(pulses.look(start + at(20), PATIENCE, &threads), Verdict::default());
    }

    #[test]
    fn a_disk_that_hangs_does_not_end_the_process() {
        let (start, asked) = (Instant::now(), Asked::default());
        let mut threads = Threads::default();
        let mut pulses = Pulses::new();
        pulses.add("lane", asked.ask());
        for second in (0..3600).step_by(5) {
            // Another thread than the one that is asked, which waits for it.
            threads.see(start + at(second), &[(77, 'D', 1), (78, 'S', 1)]);
            assert!(pulses.look(start + at(second), PATIENCE, &threads).is_alive());
        }
        let verdict = pulses.look(start + at(3600), PATIENCE, &threads);
        assert_eq!((verdict.stuck.len(), verdict.at_disk.as_slice()), (0, &["lane".to_owned()][..]));
        assert!(verdict.complaint().unwrap().contains("a disk hangs"));
        // The disk answers, the thread does not.
        threads.see(start + at(3605), &[(78, 'S', 1)]);
        assert_eq!(pulses.look(start + at(3605), PATIENCE, &threads).stuck, ["lane"]);
    }

    #[test]
    fn a_worker_may_take_its_time_unless_it_is_never_woken() {
        let (start, asked) = (Instant::now(), Asked::default());
        let mut threads = Threads::default();
        let mut pulses = Pulses::new();
        pulses.add_worker("group", asked.ask());
        // Before its first answer it opens what it works on.
        for second in (0..1000).step_by(5) {
            assert_eq!(pulses.look(start + at(second), PATIENCE, &threads), Verdict::default());
        }
        let tid = asked.answer();
        assert!(pulses.look(start + at(1000), PATIENCE, &threads).is_alive());
        for second in (1000..2000).step_by(5) {
            threads.see(start + at(second), &[(tid, 'S', second)]);
            assert!(pulses.look(start + at(second), PATIENCE, &threads).is_alive());
        }
        let mut verdict = Verdict::default();
        for second in (2000..2310).step_by(5) {
            threads.see(start + at(second), &[(tid, 'S', 1995)]);
            verdict = pulses.look(start + at(second), PATIENCE, &threads);
        }
        assert_eq!(verdict.stuck, ["group"]);
    }

    #[test]
    fn a_runtime_answers_as_long_as_a_thread_of_it_runs() {
        let start = Instant::now();
        let threads = Threads::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let mut pulses = Pulses::new();
        pulses.add_runtime("runtime", runtime.handle().clone());
        assert!(pulses.look(start, PATIENCE, &threads).is_alive());
        // What is started later runs later.
        runtime.block_on(runtime.spawn(async {})).unwrap();
        assert!(pulses.look(start + at(15), PATIENCE, &threads).is_alive());
        runtime.block_on(runtime.spawn(async {})).unwrap();
        assert!(pulses.look(start + at(30), PATIENCE, &threads).is_alive());
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            begun.send(()).unwrap();
            held.recv().unwrap_err();
        });
        has_begun.recv().unwrap();
        assert!(pulses.look(start + at(45), PATIENCE, &threads).is_alive());
        assert_eq!(pulses.look(start + at(60), PATIENCE, &threads).stuck, ["runtime"]);
        drop(hold);
    }
}
