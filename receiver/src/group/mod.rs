//! A group: its state machine, files and volumes are behind one lock, and everything that happens to it is an input. A thread
//! of the group's own takes the inputs in order; few short frames are handled by whoever has read them, if nothing waits.
//!
//! | module | noun |
//! |---|---|
//! | `input` | what can happen, and the bounded way in |
//! | `thread` | the loop: take what is there, let the state machine work, sleep |
//! | `open` | finding out whether this host is the standby, and opening what belongs to it |
//! | `standby` | an open group: performs what the state machine asks for |
//! | `jobs` | the helper threads for what takes its time |
//! | `promote` | a promotion, from the request to the answer |
//! | `snapshot` | what the status shows, readable while the thread is busy |

mod input;
mod jobs;
mod open;
mod promote;
mod snapshot;
mod standby;
mod thread;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use afterimage_contract::config::{self, Mode};
use afterimage_contract::daemon::or_abort;
use afterimage_contract::low_latency::Waited;
use afterimage_events::{Event, event};
use anyhow::Context;
use tokio::sync::Semaphore;

pub use input::{Input, Permit};
pub use open::{Setup, make_private_dir};
pub use promote::{PromoteError, PromoteRequest, Promoted, fresh_generation};
pub use snapshot::{Numbers, Phase, Snapshot};

use input::BUDGET_BYTES;
use snapshot::Shared;
use thread::Owner;

/// Frames of no more than this together are handled where they come from, if nothing waits before them: that is over
/// sooner than another thread has begun with it. In bytes.
const SHORT_BYTES: usize = 256 << 10;
/// What the client of a synchronous write waits on this host, about.
const FRAME_WAIT: Duration = Duration::from_micros(200);

/// A group as the rest of the receiver sees it.
pub struct Group {
    config: config::Group,
    inputs: mpsc::Sender<Input>,
    /// Inputs that were sent and are not handled yet.
    waiting: Arc<AtomicUsize>,
    owner: Arc<Owner>,
    budget: Arc<Semaphore>,
    shared: Arc<Shared>,
    /// What the peer's clients wait, if they wait for this host.
    waited: Option<Arc<Waited>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Group {
    /// Starts the group's thread, which opens the group if this host is its standby.
    pub fn start(setup: Setup) -> anyhow::Result<Arc<Self>> {
        let (inputs, outlet) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let waiting = Arc::<AtomicUsize>::default();
        let config = setup.group.clone();
        let waited = (config.mode == Mode::Sync).then(|| setup.waited.clone());
        let owner = Arc::new(Owner::new(setup, inputs.clone(), shared.clone()));
        let thread = std::thread::Builder::new()
            .name(format!("group-{}", config.name))
            .spawn({
                let (owner, waiting) = (owner.clone(), waiting.clone());
                let name = config.name.clone();
                move || or_abort(&name, || owner.run(&outlet, &waiting))
            })
            .with_context(|| format!("cannot start a thread for group {}", config.name))?;
        let budget = Arc::new(Semaphore::new(BUDGET_BYTES));
        let thread = Mutex::new(Some(thread));
        Ok(Arc::new(Self { config, inputs, waiting, owner, budget, shared, waited, thread }))
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The group as configured.
    pub fn config(&self) -> &config::Group {
        &self.config
    }

    /// Waits for room for an input of `bytes`; given back once the input was handled.
    pub async fn room(&self, bytes: usize) -> Permit {
        Permit::take(&self.budget, bytes).await
    }

    /// Room for an input of `bytes`, if there is any now.
    pub fn room_now(&self, bytes: usize) -> Option<Permit> {
        Permit::take_now(&self.budget, bytes)
    }

    /// Hands an input to the thread; `false` when it is gone.
    pub fn send(&self, input: Input) -> bool {
        self.waiting.fetch_add(1, Ordering::Release);
        self.inputs.send(input).is_ok()
    }

    /// Hands frames over, in order. Handles them here and now if the caller `may_wait` for a disk, they are few, and nothing
    /// waits before them; else the thread does. What is returned syncs the journal when it is dropped, if that is due: to be
    /// kept until what was answered is on its way. `None` when the thread is gone.
    pub fn hand_over(&self, frames: &mut Vec<Input>, may_wait: bool) -> Option<Sync<'_>> {
        if let Some(waited) = &self.waited {
            waited.add_all(frames.len(), FRAME_WAIT);
        }
        let bytes: usize = frames.iter().map(Input::bytes).sum();
        if may_wait
            && bytes <= SHORT_BYTES
            && let Some(mut thread) = self.owner.try_lock()
            // Under the lock: what is sent from now on comes after these.
            && self.waiting.load(Ordering::Acquire) == 0
            && thread.is_quick()
        {
            let due = or_abort(self.name(), || thread.take_all(frames.drain(..)));
            return Some(Sync(due.then_some(self)));
        }
        frames.drain(..).all(|frame| self.send(frame)).then_some(Sync(None))
    }

    fn sync_now(&self) {
        match self.owner.try_lock() {
            Some(mut thread) => or_abort(self.name(), || thread.sync_now()),
            // It does it itself, if it is told before it sleeps.
            None => drop(self.inputs.send(Input::Wake)),
        }
    }

    /// What was the case when the thread last came to rest.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.read()
    }

    /// Has the thread end the session, bring what was taken to the disk, and end.
    pub fn begin_stop(&self) {
        self.send(Input::Stop);
    }

    /// [`Group::begin_stop`], and waits for the thread. Blocks.
    pub fn stop(&self) {
        self.begin_stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            event!(Event::Panicked, group = self.name(), "the group's thread has panicked");
        }
    }
}

/// A sync of the journal that is due, or nothing.
#[must_use = "it blocks when it is dropped"]
pub struct Sync<'a>(Option<&'a Group>);

impl Sync<'_> {
    /// Whether there is anything to be done.
    pub fn is_due(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Sync<'_> {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            group.sync_now();
        }
    }
}

impl Drop for Group {
    /// The thread ends in good order by itself; [`Group::stop`] is for those who wait for that.
    fn drop(&mut self) {
        self.send(Input::Stop);
    }
}
