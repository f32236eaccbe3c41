//! What every daemon does alike: its log, the signals that end it, and what a bug does to it.

use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use afterimage_events::{Event, event};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{Config, ConfigError};
use crate::log::{self, LogFormat};

/// Why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The filter of the log is not one.
    #[error(
        "cannot read the log level {level:?}: give error, warn, info, debug or trace, or a filter such as \
         afterimage_agent=debug"
    )]
    LogLevel {
        /// What was given.
        level: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// A signal cannot be handled.
    #[error("cannot handle signals")]
    Signal(#[from] std::io::Error),
    /// There is no configuration to start with.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
}

/// The exit status of a daemon that was started with something wrong: starting it again changes nothing.
const WRONG_USE: u8 = 2;

impl DaemonError {
    /// With which status the process ends.
    pub fn exit_status(&self) -> ExitCode {
        match self {
            Self::LogLevel { .. } | Self::Configuration(ConfigError::Invalid(_)) => ExitCode::from(WRONG_USE),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Reads the configuration and starts the log, in this shape; `level` is what the command line says of it.
pub fn start(config: &Path, level: Option<&str>, shape: LogFormat) -> Result<Config, DaemonError> {
    let config = Config::load(config)?;
    start_log(level, &config.log.level, shape)?;
    Ok(config)
}

/// How to change the filter of the log while the process runs; not there if it was fixed at the start.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Logs to stderr in this shape: what `level` says, else the environment's `RUST_LOG`, else what is `configured`, which
/// [`set_log_level`] changes.
pub fn start_log(level: Option<&str>, configured: &str, shape: LogFormat) -> Result<(), DaemonError> {
    let environment = EnvFilter::try_from_default_env().ok();
    let is_fixed = level.is_some() || environment.is_some();
    let filter = match (level, environment) {
        (Some(level), _) => parse(level)?,
        (None, Some(filter)) => filter,
        (None, None) => parse(configured)?,
    };
    let (filter, handle) = reload::Layer::new(filter);
    tracing_subscriber::registry().with(filter).with(log::lines(shape)).init();
    if !is_fixed {
        // It is the first: a second start of the log panics above.
        let _ = FILTER.set(handle);
    }
    Ok(())
}

fn parse(level: &str) -> Result<EnvFilter, DaemonError> {
    EnvFilter::try_new(level).map_err(|source| DaemonError::LogLevel { level: level.to_owned(), source })
}

/// Changes what is logged to what is configured now; `false` where the command line or the environment has fixed it, or
/// nothing is logged at all.
pub fn set_log_level(configured: &str) -> bool {
    let Some((handle, filter)) = FILTER.get().zip(parse(configured).ok()) else { return false };
    handle.reload(filter).is_ok()
}

/// Has the allocator keep the memory of large buffers for the next ones, up to 64 MiB: what is given back to the system comes
/// back page by page, zeroed. All threads share one arena: buffers go from thread to thread, and of several arenas each would
/// keep what it once had at its end, since [`give_back_buffers`] reaches that of the first one only. To be called before there
/// are other threads.
pub fn keep_buffers() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, 32 << 20), (libc::M_TRIM_THRESHOLD, 64 << 20)]
    {
        // SAFETY: it sets a number that the allocator reads later. An allocator that does not take it goes on as it was.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives memory that [`keep_buffers`] has kept, and that of long buffers, back to the system, as far as nothing uses it. Takes some
/// milliseconds.
pub fn give_back_buffers() {
    afterimage_memory::release_unused();
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes nothing but which free memory the allocator keeps.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has the calling thread begin, when it was woken, only once a processor has nothing else to do or its turn has come: not
/// instead of a thread that serves somebody. Best effort.
pub fn give_way() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: it reads a number, and changes nothing but when this thread runs.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) };
}

/// What signals ask of a daemon.
#[derive(Debug)]
pub struct Signals {
    /// Becomes `true` with the first SIGTERM or SIGINT.
    pub shutdown: watch::Receiver<bool>,
    /// Counts the SIGHUPs: each asks for the configuration to be read again.
    pub hangups: watch::Receiver<u64>,
}

/// Takes signals from now on. To be called within a tokio runtime.
pub fn signals() -> Result<Signals, DaemonError> {
    let (stop, shutdown) = watch::channel(false);
    let (hung_up, hangups) = watch::channel(0);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => hung_up.send_modify(|count| *count += 1),
            }
        }
        stop.send_replace(true);
        // A second hang-up must not kill a process that is about to stop.
        while hangup.recv().await.is_some() {}
    });
    Ok(Signals { shutdown, hangups })
}

/// Ends the process if `work`, which is done for `group`, panics: what it was doing would stay under way for ever, and the
/// group with it. A process that is started again finds what is on the disks, as after a kill.
pub fn or_abort<R>(group: &str, work: impl FnOnce() -> R) -> R {
    // Nothing that it may have left half done is looked at any more.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        event!(
            Event::Panicked,
            group = group,
            "a thread of the group has panicked: the process ends, to be started again"
        );
        std::process::abort();
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const INNER: &str = "AFTERIMAGE_TEST_PANICS";
    const SIGABRT: i32 = 6;

    #[test]
    fn a_panic_ends_the_process() {
        if std::env::var_os(INNER).is_some() {
            or_abort("orders", || panic!("a bug"));
        }
        assert_eq!(or_abort("orders", || 7), 7);
        let mut inner = Command::new(std::env::current_exe().unwrap());
        inner.args(["--exact", "daemon::tests::a_panic_ends_the_process"]).env(INNER, "1");
        let status = inner.output().unwrap().status;
        assert_eq!(status.signal(), Some(SIGABRT), "{status}");
    }

    #[test]
    fn a_filter_that_is_none_is_named() {
        let error = start_log(Some("afterimage=loud"), "info", LogFormat::Text).unwrap_err().to_string();
        assert!(error.contains("afterimage=loud") && error.contains("debug"), "{error}");
    }
}
