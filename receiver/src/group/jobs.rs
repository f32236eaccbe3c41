//! The helper threads of a group: what takes its time runs there, and comes back as [`Done`].
//!
//! Three of them, so that the journal is synced while the base is written and the state noted. Results are kept apart from
//! the group's other inputs: where the group cannot go on without one, it waits for that alone.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use afterimage_contract::daemon::{give_way, or_abort};
use afterimage_protocol::Lsn;
use afterimage_protocol::state::GroupState;
use afterimage_protocol::target::{CheckResult, Choice, Comparison, NoSuchPoint, Search};
use afterimage_storage::apply::{self, ApplyError, ApplyStats, DEFAULT_BUDGET_BYTES};
use afterimage_storage::group::{StateWriter, VolumeFile, search_journal};
use afterimage_storage::journal::{JournalError, Reader, SyncTicket};
use afterimage_storage::lock::DirLock;
use afterimage_storage::scatter::Scatter;
use afterimage_storage::verify;

use super::input::Input;

/// What a helper thread did.
pub enum Done {
    /// A sync of the journal.
    Journal(SyncTicket, io::Result<()>),
    /// A redo of the journal.
    Apply(Result<ApplyStats, ApplyError>),
    /// A comparison of the checks of a verification.
    Verify(Vec<CheckResult>),
    /// A sync of all volumes.
    Base(io::Result<()>),
    /// A search for the point that a promotion is wanted at.
    Search(Result<Result<Choice, NoSuchPoint>, JournalError>),
    /// A write of this version of the state, and whether it is durable.
    State(u64, bool),
}

type Job = Box<dyn FnOnce() -> Done + Send>;

/// The helper threads, and the lock of the group's state. They end with their last job once this is dropped.
pub struct Jobs {
    journal: mpsc::Sender<Job>,
    base: mpsc::Sender<Job>,
    state: mpsc::Sender<Job>,
    done: mpsc::Receiver<Done>,
    under_way: usize,
    base_under_way: usize,
    /// How the base is written.
    scatter: Arc<Mutex<Scatter>>,
    /// Every job holds it too: a group that was given up is not opened again, here or elsewhere, while an old job may still
    /// write.
    lock: Arc<DirLock>,
}

enum Helper {
    Journal,
    Base,
    State,
}

impl Jobs {
    /// Starts the threads; `wake` is told of each result.
    pub fn start(group: &str, wake: &mpsc::Sender<Input>, lock: DirLock) -> io::Result<Self> {
        let (report, done) = mpsc::channel();
        let journal = helper("sync", group, report.clone(), wake.clone())?;
        let base = helper("base", group, report.clone(), wake.clone())?;
        let state = helper("state", group, report, wake.clone())?;
        Ok(Self {
            journal,
            base,
            state,
            done,
            under_way: 0,
            base_under_way: 0,
            scatter: Arc::default(),
            lock: Arc::new(lock),
        })
    }

    /// Runs a sync of the journal.
    pub fn sync_journal(&mut self, ticket: SyncTicket) {
        self.run(Helper::Journal, move || {
            let result = ticket.run();
            Done::Journal(ticket, result)
        });
    }

    /// Brings `entries`, but for those that begin in `skip`, to the volumes.
    pub fn apply(&mut self, entries: Reader, skip: Vec<(Lsn, Lsn)>, volumes: Vec<VolumeFile>) {
        self.base_under_way += 1;
        let scatter = self.scatter.clone();
        self.run(Helper::Base, move || {
            let skipped = |lsn: Lsn| {
                let before = skip.partition_point(|(start, _)| *start <= lsn);
                before.checked_sub(1).and_then(|n| skip.get(n)).is_some_and(|(_, end)| lsn < *end)
            };
            // Only ever taken here, on one thread.
            let mut scatter = scatter.lock().unwrap_or_else(PoisonError::into_inner);
            Done::Apply(apply::apply(entries, &skipped, &volumes, &mut scatter, DEFAULT_BUDGET_BYTES))
        });
    }

    /// Compares checks with the volumes and, as far as the comparison says so, `entries`.
    pub fn verify(&mut self, comparison: Comparison, entries: Option<Reader>, volumes: Vec<VolumeFile>) {
        self.base_under_way += 1;
        self.run(Helper::Base, move || Done::Verify(verify::compare(&volumes, &comparison, entries)));
    }

    /// Syncs all volumes.
    pub fn sync_base(&mut self, volumes: Vec<VolumeFile>) {
        self.base_under_way += 1;
        self.run(Helper::Base, move || Done::Base(volumes.iter().try_for_each(|v| v.sync())));
    }

    /// Looks for the point that a promotion is wanted at.
    pub fn search(&mut self, search: Search, entries: Reader) {
        self.run(Helper::Base, move || Done::Search(search_journal(search, entries)));
    }

    /// Writes the state.
    pub fn persist_state(&mut self, writer: StateWriter, version: u64, state: Box<GroupState>) {
        self.run(Helper::State, move || Done::State(version, writer.persist(&state)));
    }

    fn run(&mut self, helper: Helper, work: impl FnOnce() -> Done + Send + 'static) {
        self.under_way += 1;
        let lock = self.lock.clone();
        let thread = match helper {
            Helper::Journal => &self.journal,
            Helper::Base => &self.base,
            Helper::State => &self.state,
        };
        // Fails only if the thread has panicked, and then the process ends.
        let _ = thread.send(Box::new(move || {
            let done = work();
            drop(lock);
            done
        }));
    }

    /// A result, if there is one.
    pub fn try_done(&mut self) -> Option<Done> {
        let done = self.done.try_recv().ok()?;
        Some(self.count(done))
    }

    /// Waits for the next result; `None` when no job is under way.
    pub fn wait(&mut self) -> Option<Done> {
        if self.under_way == 0 {
            return None;
        }
        let done = self.done.recv().ok()?;
        Some(self.count(done))
    }

    /// Whether the volumes are being written or synced.
    pub fn base_is_busy(&self) -> bool {
        self.base_under_way > 0
    }

    fn count(&mut self, done: Done) -> Done {
        self.under_way -= 1;
        if matches!(done, Done::Apply(_) | Done::Base(_) | Done::Verify(_)) {
            self.base_under_way -= 1;
        }
        done
    }
}

fn helper(
    what: &str,
    group: &str,
    report: mpsc::Sender<Done>,
    wake: mpsc::Sender<Input>,
) -> io::Result<mpsc::Sender<Job>> {
    let (jobs, next) = mpsc::channel::<Job>();
    let group = group.to_owned();
    std::thread::Builder::new().name(format!("{what}-{group}")).spawn(move || {
        give_way();
        while let Ok(job) = next.recv() {
            let done = or_abort(&group, job);
            // Nobody listens any more once the group was closed.
            let _ = report.send(done);
            let _ = wake.send(Input::Wake);
        }
    })?;
    Ok(jobs)
}
