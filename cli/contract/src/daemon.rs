//! What every daemon does alike: its log, the signals that end it, and what a bug does to it.

use afterimage_events::{Event, event};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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
}

/// Logs to stderr in this shape: what `level` says, else the environment's `RUST_LOG`, else `info`.
pub fn start_log(level: Option<&str>, shape: LogFormat) -> Result<(), DaemonError> {
    let filter = match level {
        Some(level) => EnvFilter::try_new(level)
            .map_err(|source| DaemonError::LogLevel { level: level.to_owned(), source })?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    tracing_subscriber::registry().with(filter).with(log::lines(shape)).init();
    Ok(())
}

/// Has the allocator keep the memory of large buffers for the next ones, up to 64 MiB for each of its arenas: what is given back
/// to the system comes back page by page, zeroed. To be called before there are other threads.
pub fn keep_buffers() {
    #[cfg(target_env = "gnu")]
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, 32 << 20), (libc::M_TRIM_THRESHOLD, 64 << 20)] {
        // SAFETY: it sets a number that the allocator reads later. An allocator that does not take it goes on as it was.
        unsafe { libc::mallopt(parameter, bytes) };
    }
}

/// Becomes `true` with the first SIGTERM or SIGINT. SIGHUP is ignored from now on, so that a log rotation that sends it
/// does no harm. To be called within a tokio runtime.
pub fn shutdown() -> Result<watch::Receiver<bool>, DaemonError> {
    let (stop, shutdown) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {}
            }
        }
        stop.send_replace(true);
    });
    Ok(shutdown)
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
        let error = start_log(Some("afterimage=loud"), LogFormat::Text).unwrap_err().to_string();
        assert!(error.contains("afterimage=loud") && error.contains("debug"), "{error}");
    }
}
