//! The helper threads of a group: what takes its time runs there, and comes back as [`Done`].
//!
//! Two of them, so that the journal is synced while the base is written. Results are kept apart from the group's other
//! inputs: where the group cannot go on without one, it waits for that alone.

use std::io;
use std::sync::mpsc;

use afterimage_protocol::Lsn;
use afterimage_storage::apply::{self, ApplyError, ApplyStats, DEFAULT_BUDGET_BYTES};
use afterimage_storage::group::VolumeFile;
use afterimage_storage::journal::{Reader, SyncTicket};

use super::input::Input;

/// What a helper thread did.
pub enum Done {
    /// A sync of the journal.
    Journal(SyncTicket, io::Result<()>),
    /// A redo of the journal.
    Apply(Result<ApplyStats, ApplyError>),
    /// A sync of all volumes.
    Base(io::Result<()>),
}

type Job = Box<dyn FnOnce() -> Done + Send>;

/// The helper threads. They end with their last job once this is dropped.
pub struct Jobs {
    journal: mpsc::Sender<Job>,
    base: mpsc::Sender<Job>,
    done: mpsc::Receiver<Done>,
    under_way: usize,
    base_under_way: usize,
}

impl Jobs {
    /// Starts the threads; `wake` is told of each result.
    pub fn start(group: &str, wake: &mpsc::Sender<Input>) -> io::Result<Self> {
        let (report, done) = mpsc::channel();
        let journal = helper(&format!("sync-{group}"), report.clone(), wake.clone())?;
        let base = helper(&format!("base-{group}"), report, wake.clone())?;
        Ok(Self { journal, base, done, under_way: 0, base_under_way: 0 })
    }

    /// Runs a sync of the journal.
    pub fn sync_journal(&mut self, ticket: SyncTicket) {
        self.under_way += 1;
        // Fails only if the thread has panicked; then the job stays under way, and the group with it.
        let _ = self.journal.send(Box::new(move || {
            let result = ticket.run();
            Done::Journal(ticket, result)
        }));
    }

    /// Brings `entries`, but for those that begin in `skip`, to the volumes.
    pub fn apply(&mut self, entries: Reader, skip: Vec<(Lsn, Lsn)>, volumes: Vec<VolumeFile>) {
        self.under_way += 1;
        self.base_under_way += 1;
        let _ = self.base.send(Box::new(move || {
            let skipped = |lsn: Lsn| {
                let before = skip.partition_point(|(start, _)| *start <= lsn);
                before.checked_sub(1).and_then(|n| skip.get(n)).is_some_and(|(_, end)| lsn < *end)
            };
            Done::Apply(apply::apply(entries, &skipped, &volumes, DEFAULT_BUDGET_BYTES))
        }));
    }

    /// Syncs all volumes.
    pub fn sync_base(&mut self, volumes: Vec<VolumeFile>) {
        self.under_way += 1;
        self.base_under_way += 1;
        let _ = self.base.send(Box::new(move || Done::Base(volumes.iter().try_for_each(|v| v.sync()))));
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
        if matches!(done, Done::Apply(_) | Done::Base(_)) {
            self.base_under_way -= 1;
        }
        done
    }
}

fn helper(
    name: &str,
    report: mpsc::Sender<Done>,
    wake: mpsc::Sender<Input>,
) -> io::Result<mpsc::Sender<Job>> {
    let (jobs, next) = mpsc::channel::<Job>();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        while let Ok(job) = next.recv() {
            // Nobody listens any more once the group was closed.
            let _ = report.send(job());
            let _ = wake.send(Input::JobDone);
        }
    })?;
    Ok(jobs)
}
