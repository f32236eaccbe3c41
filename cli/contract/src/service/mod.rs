//! What a daemon tells the service manager that started it, by the protocol of `sd_notify(3)`: that it is ready, how it is
//! doing, that it reads its configuration again, that it stops, and now and then that it is alive. Without a service
//! manager nothing is told. Described for operators in `docs/services.md`.
//!
//! | module | noun |
//! |---|---|
//! | `pulse` | the threads that have to answer, and what it means if one does not |
//! | `threads` | what the threads of this process are doing, as the kernel says |

mod pulse;
mod threads;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pulse::Verdict;
pub use pulse::{Answer, Pulses};
use sd_notify::NotifyState;
use threads::Threads;

use crate::status::Status;

/// How often the status line is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long a group that is not looked at yet, such as one with a disk that hangs, may hold up that the daemon is ready: well
/// below the 90 s after which a start counts as failed.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// A stop that takes its time asks for so much more of it, again and again.
const EXTENSION: Duration = Duration::from_secs(30);
/// But not for ever: a disk that takes longer than this for a flush hangs, and what is not flushed is found at the next start.
const STOP_LIMIT: Duration = Duration::from_secs(300);
/// Pings in the time after which the service manager takes the daemon for dead: one may be late, and another be lost.
const PINGS: u32 = 5;
/// Keys that a status line names; the log names all.
const SHOWN_KEYS: usize = 3;

/// The service manager of this process, if there is one.
#[derive(Debug, Default)]
pub struct Manager {
    shown: Mutex<Shown>,
}

/// What was last said.
#[derive(Debug, Default)]
struct Shown {
    status: String,
    /// What is added to the status line until it changes.
    note: Option<String>,
    stopping: bool,
}

/// How a daemon is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doing {
    /// In a line.
    pub text: String,
    /// Whether all is looked at, so that the daemon counts as started.
    pub started: bool,
}

impl Manager {
    /// Nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells how the daemon is doing from now on, and pings as long as every thread that has to answer does. Never returns.
    /// To be run on a runtime whose thread has to be alive too.
    pub async fn attend(&self, mut pulses: Pulses, doing: impl Fn() -> Doing) {
        if !is_there() {
            return std::future::pending().await;
        }
        let began = Instant::now();
        let mut ready = false;
        let watchdog = watchdog();
        let mut threads = Threads::default();
        let mut pinged: Option<Instant> = None;
        let mut complaint = None;
        let mut tick = tokio::time::interval(TICK.min(watchdog.map_or(TICK, |limit| limit / PINGS)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = Instant::now();
            let Doing { text, started } = doing();
            self.status(&text);
            if !ready && (started || now - began >= READY_LIMIT) {
                ready = true;
                say(&[NotifyState::Ready]);
            }
            let Some(limit) = watchdog else { continue };
            if pinged.is_some_and(|at| now - at < limit / PINGS) {
                continue;
            }
            threads.look(now);
            let verdict = pulses.look(now, limit / 2, &threads);
            if verdict.is_alive() {
                pinged = Some(now);
                say(&[NotifyState::Watchdog]);
            }
            report(&verdict, &mut complaint);
        }
    }

    /// The configuration is being read again. Whoever says so also says [`Manager::reloaded`].
    pub fn reloading(&self) {
        // The clock of the kernel can always be read.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            say(&[NotifyState::Reloading, now]);
        }
    }

    /// It was read, with this outcome, which the status line shows from now on.
    pub fn reloaded(&self, note: Option<String>) {
        let mut shown = self.lock();
        shown.note = note;
        let line = shown.line();
        drop(shown);
        say(&[NotifyState::Ready, NotifyState::Status(&line)]);
    }

    /// The daemon stops.
    pub fn stopping(&self) {
        let mut shown = self.lock();
        shown.stopping = true;
        drop(shown);
        say(&[NotifyState::Stopping, NotifyState::Status("stopping: finishing what is under way")]);
    }

    /// Asks for the time that a stop takes, within reason. Never returns; to be dropped when it is done.
    pub async fn ask_for_time(&self) {
        let began = Instant::now();
        while began.elapsed() < STOP_LIMIT {
            say(&[NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32), NotifyState::Watchdog]);
            tokio::time::sleep(EXTENSION / 3).await;
        }
        std::future::pending().await
    }

    /// Shows a status line, if it is another one. Once the daemon stops it stays as it is.
    fn status(&self, text: &str) {
        let mut shown = self.lock();
        if shown.stopping || shown.status == text {
            return;
        }
        text.clone_into(&mut shown.status);
        let line = shown.line();
        drop(shown);
        say(&[NotifyState::Status(&line)]);
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    fn line(&self) -> String {
        match &self.note {
            Some(note) => format!("{}; {note}", self.status),
            None => self.status.clone(),
        }
    }
}

/// How the groups of a daemon are, in a line, from its status document. Groups that are the other daemon's are not in it.
/// Where there is none, it is `idle`.
pub fn line(status: &Status, idle: &str) -> String {
    let group = |group: &crate::status::GroupStatus| {
        format!("{}: {}, {}", group.name, word(&group.role), word(&group.protection))
    };
    match status.groups.len() {
        0 => idle.to_owned(),
        _ => status.groups.iter().map(group).collect::<Vec<_>>().join("; "),
    }
}

/// Names some of the keys that need a restart.
pub fn restart_note(keys: &[String]) -> Option<String> {
    let more = match keys.len().saturating_sub(SHOWN_KEYS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = keys.iter().take(SHOWN_KEYS).map(String::as_str).collect::<Vec<_>>().join(", ");
    (!keys.is_empty()).then(|| format!("restart to apply {named}{more}"))
}

/// A word of the status document, as it is written there.
fn word(value: &impl serde::Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.as_ref().and_then(|word| word.as_str()).unwrap_or("unknown").replace('_', " ")
}

/// Says once what is wrong, and once when it is over.
fn report(verdict: &Verdict, complaint: &mut Option<String>) {
    let now = verdict.complaint();
    if now == *complaint {
        return;
    }
    match (&now, verdict.is_alive()) {
        (Some(text), true) => tracing::warn!("{text}"),
        (Some(text), false) => tracing::error!("{text}"),
        (None, _) => tracing::info!("every thread answers again"),
    }
    *complaint = now;
}

fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// After how long without a ping this process is taken for dead; `None` if it is not watched.
fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())
}

fn say(what: &[NotifyState]) {
    // A service manager that does not listen is not told, and it does not matter to the volumes.
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::status::{GroupStatus, PeerStatus, Protection, Role};

    #[test]
    fn a_line_says_how_each_group_is() {
        let mut status = Status::new("alpha", 0);
        assert_eq!(line(&status, "idle"), "idle");
        let group = |name: &str, role, protection| {
            GroupStatus::new(name, role, Mode::Sync, protection, PeerStatus::default())
        };
        status.groups.push(group("orders", Role::Primary, Protection::InSync));
        status.groups.push(group("mail", Role::Standby, Protection::JournalFull));
        assert_eq!(line(&status, "idle"), "orders: primary, in sync; mail: standby, journal full");
    }

    #[test]
    fn a_note_names_a_few_keys() {
        let keys = |n: usize| (0..n).map(|n| format!("k{n}")).collect::<Vec<_>>();
        assert_eq!(restart_note(&keys(0)), None);
        assert_eq!(restart_note(&keys(2)).unwrap(), "restart to apply k0, k1");
        assert_eq!(restart_note(&keys(5)).unwrap(), "restart to apply k0, k1, k2 and 2 more");
    }
}
