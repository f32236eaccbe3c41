//! Hooks: the operator's own programs, run when something happens to a group. Described in `docs/hooks.md`.
//!
//! The daemons say what happens ([`Hooks::run`] where the outcome matters, [`Hooks::tell`] where it has happened); here
//! is decided whether there is a program for it, whether it may be run, and when. A run is bounded in time, has its
//! output kept for the log, and occupies a thread of its own: neither a caller nor its runtime waits for a disk or a
//! child.
//!
//! | module | noun |
//! |---|---|
//! | `event` | what hooks are run for |
//! | `facts` | what they are told |
//! | `program` | the file of a hook, and whether it may be run |
//! | `process` | one run |
//! | `queue` | what has happened to a group and was not told yet |

mod event;
mod facts;
mod process;
mod program;
mod queue;
#[cfg(test)]
mod tests;

use afterimage_events::event;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot};

pub use event::Event;
pub use facts::Facts;
pub use program::find;

use crate::config::{self, Config, OnFailure};
use crate::units::format_duration;
use process::Ended;
use queue::Queue;

/// How long beyond its limit a run is waited for: killing and reading the last output take a moment.
const GRACE: Duration = Duration::from_secs(5);

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The file, or the directory it is in, cannot be looked at.
    #[error("cannot look at {}: {source}", path.display())]
    Look {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It may not be run.
    #[error("{} is not run: {why}", path.display())]
    Refused {
        /// The file or directory.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// It could not be run, or not be waited for.
    #[error("cannot run {}: {source}", path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It ended, and not with exit status 0.
    #[error("{} failed with {status}{}", path.display(), said(.output))]
    Failed {
        /// The file.
        path: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// It was killed at the time limit.
    #[error("{} did not end within {} and was killed{}", path.display(), format_duration(*.after), said(.output))]
    TimedOut {
        /// The file.
        path: PathBuf,
        /// The limit.
        after: Duration,
        /// The end of what it wrote.
        output: String,
    },
}

fn said(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(": {output}") }
}

/// The hooks of a host. Clones are the same hooks.
#[derive(Clone)]
pub struct Hooks {
    runtime: Handle,
    inner: Arc<RwLock<Option<Arc<Inner>>>>,
}

struct Inner {
    config: Config,
    hooks: config::Hooks,
    runtime: Handle,
    groups: BTreeMap<String, Arc<Group>>,
}

/// What goes on for one group.
#[derive(Default)]
struct Group {
    queue: std::sync::Mutex<Queue>,
    /// For each event, by its place in [`Event::ALL`]: held while its hook runs.
    running: [Mutex<()>; Event::ALL.len()],
}

impl Hooks {
    /// The hooks that `config` asks for, if it does. What is told is worked off on `runtime`; when that ends, what was
    /// not told yet stays untold.
    pub fn new(config: &Config, runtime: Handle) -> Self {
        let hooks = Self { runtime, inner: Arc::default() };
        hooks.set(config);
        hooks
    }

    /// Has those of `config` run from now on. Hooks that run go on as they were begun, and so does what was told.
    pub fn set(&self, config: &Config) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let known = inner.as_ref().map(|inner| inner.groups.clone()).unwrap_or_default();
        let group = |name: &String| (name.clone(), known.get(name).cloned().unwrap_or_default());
        *inner = config.hooks.clone().map(|hooks| {
            let groups = config.groups.keys().map(group).collect();
            Arc::new(Inner { config: config.clone(), hooks, runtime: self.runtime.clone(), groups })
        });
    }

    fn inner(&self) -> Option<Arc<Inner>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether hooks are configured at all.
    pub fn are_configured(&self) -> bool {
        self.inner().is_some()
    }

    /// Runs the hook of `event` now and returns when it has ended, within the configured limit and a few seconds; `Ok`
    /// at once if there is none. While a hook of the same event runs for the same group, it waits for that first.
    ///
    /// # Errors
    /// If the hook did not do its work and the event's policy is to abort. Under the other policy, and for events that
    /// have no policy, a failure is logged.
    pub async fn run(&self, event: Event, facts: &Facts) -> Result<(), HookError> {
        let Some(inner) = self.inner() else { return Ok(()) };
        let Some(group) = inner.groups.get(&facts.group) else { return Ok(()) };
        match inner.run(group, event, facts).await {
            Err(error) if event.on_failure(&inner.hooks) == OnFailure::Abort => Err(error),
            Err(error) => {
                event!(
                    afterimage_events::Event::HookFailed,
                    group = facts.group,
                    hook = event.name(),
                    %error,
                    "a hook failed"
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Notes that something has happened, and returns at once. The hooks of a group's events run one after the other,
    /// in the order in which they happened; an event that happens again before its hook has begun counts once, as the
    /// newer.
    pub fn tell(&self, event: Event, facts: Facts) {
        let Some(inner) = self.inner() else { return };
        let Some(group) = inner.groups.get(&facts.group) else { return };
        if group.queue().push(event, facts) {
            let (inner, group) = (inner.clone(), group.clone());
            inner.runtime.clone().spawn(async move { inner.work_off(&group).await });
        }
    }
}

impl Group {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    async fn work_off(&self, group: &Group) {
        loop {
            let next = group.queue().pop();
            let Some((event, facts)) = next else { return };
            if let Err(error) = self.run(group, event, &facts).await {
                event!(
                    afterimage_events::Event::HookFailed,
                    group = facts.group,
                    hook = event.name(),
                    %error,
                    "a hook failed"
                );
            }
        }
    }

    async fn run(&self, group: &Group, event: Event, facts: &Facts) -> Result<(), HookError> {
        let place = Event::ALL.iter().position(|e| *e == event).unwrap_or_default();
        let _alone = group.running[place].lock().await;
        let dir = self.hooks.dir.clone();
        let path = dir.join(event.name());
        let variables = facts::variables(&self.config, event, facts);
        let limit = self.hooks.timeout;
        let (ended, end) = oneshot::channel();
        let work = move || {
            let result = program::find(&dir, event).and_then(|found| {
                let Some(path) = found else { return Ok(None) };
                let began = Instant::now();
                let ended = process::run(&path, &variables, limit);
                ended
                    .map(|ended| Some((ended, began.elapsed())))
                    .map_err(|source| HookError::Run { path, source })
            });
            // Whoever waited may have given up.
            let _ = ended.send(result);
        };
        // Not a thread of the runtime: its end would wait for the hook, and a disk that hangs would hold one for ever.
        let thread = std::thread::Builder::new().name("hook".to_owned()).spawn(work);
        thread.map_err(|source| HookError::Run { path: path.clone(), source })?;
        match tokio::time::timeout(limit + GRACE, end).await {
            Ok(Ok(Ok(None))) => Ok(()),
            Ok(Ok(Ok(Some((ended, took))))) => judge(path, facts, event, ended, took, limit),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => {
                let source = std::io::Error::other("the thread that ran it broke down");
                Err(HookError::Run { path, source })
            }
            Err(_) => Err(HookError::TimedOut { path, after: limit, output: String::new() }),
        }
    }
}

fn judge(
    path: PathBuf,
    facts: &Facts,
    event: Event,
    ended: Ended,
    took: Duration,
    limit: Duration,
) -> Result<(), HookError> {
    let Ended { status, output } = ended;
    match status {
        Some(status) if status.success() => {
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            event!(
                afterimage_events::Event::HookRun,
                group = facts.group,
                hook = event.name(),
                took_ms,
                output,
                "a hook has run"
            );
            Ok(())
        }
        Some(status) => Err(HookError::Failed { path, status, output }),
        None => Err(HookError::TimedOut { path, after: limit, output }),
    }
}
