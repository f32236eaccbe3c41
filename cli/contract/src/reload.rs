//! Reading the configuration again while a daemon runs: asked for by a signal or by the operator, done once at a time, told to
//! the service manager. What a daemon does with it is its own.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use afterimage_events::{Event, event};
use tokio::sync::watch;

use crate::admin::{ErrorCode, Reloaded, Response};
use crate::config::{Config, Daemon, Reload, reload};
use crate::daemon;
use crate::service::{Manager, restart_note};

/// Where a daemon finds its configuration again, and how it is asked to look. A daemon without one, as in a test, refuses.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The file.
    pub path: Option<PathBuf>,
    /// Counts how often a signal asked for it.
    pub hangups: Option<watch::Receiver<u64>>,
}

/// What a daemon does with what it can change at once: it is to return soon, and to hold up no client.
type Apply = Box<dyn Fn(&Config) + Send + Sync>;

/// Reads the configuration again.
pub struct Reloader {
    daemon: Daemon,
    source: Source,
    manager: Arc<Manager>,
    /// What is in force.
    running: Mutex<Arc<Config>>,
    /// Held while the configuration is read again.
    turn: tokio::sync::Mutex<()>,
    apply: Apply,
}

impl Reloader {
    /// Of a daemon that runs with `running`, and makes another configuration count by `apply`.
    pub fn new(
        daemon: Daemon,
        source: Source,
        manager: Arc<Manager>,
        running: Config,
        apply: impl Fn(&Config) + Send + Sync + 'static,
    ) -> Self {
        let running = Mutex::new(Arc::new(running));
        Self { daemon, source, manager, running, turn: tokio::sync::Mutex::default(), apply: Box::new(apply) }
    }

    /// The configuration that is in force now.
    pub fn running(&self) -> Arc<Config> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads it again with each signal that asks for it. Never returns.
    pub async fn run(&self) {
        let Some(mut hangups) = self.source.hangups.clone() else {
            return std::future::pending().await;
        };
        while hangups.changed().await.is_ok() {
            // What came of it is in the log and in the status line.
            self.reload().await;
        }
        std::future::pending().await
    }

    /// Reads it again; what came of that, for the operator: a [`Reloaded`], or why all stays as it is.
    pub async fn reload(&self) -> Response {
        let program = self.daemon.program();
        let Some(path) = self.source.path.clone() else {
            return Response::error(
                ErrorCode::Failed,
                format!("{program} was started without a configuration file"),
                "start it again to change its configuration",
            );
        };
        let _turn = self.turn.lock().await;
        self.manager.reloading();
        let loaded = tokio::task::spawn_blocking(move || Config::load(path)).await;
        let found = match loaded {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return self.refused(&error.to_string()),
            Err(panic) => return self.refused(&panic.to_string()),
        };
        let Reload { config, applied, mut restart } = reload(&self.running(), &found, self.daemon);
        if applied.iter().any(|key| key == "log.level") && !daemon::set_log_level(&config.log.level) {
            tracing::info!("log.level has no effect: RUST_LOG or --log-level was given at the start");
        }
        (self.apply)(&config);
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        restart.sort();
        let warnings: Vec<String> = found.warnings.iter().map(ToString::to_string).collect();
        for warning in &warnings {
            event!(Event::ConfigDoubtful, "{warning}");
        }
        event!(
            Event::ConfigReloaded,
            applied = applied.join(", "),
            needs_restart = restart.join(", "),
            "the configuration was read again"
        );
        self.manager.reloaded(restart_note(&restart));
        Response::ok(&Reloaded { applied, restart, warnings })
    }

    fn refused(&self, why: &str) -> Response {
        event!(
            Event::ConfigNotReloaded,
            "the configuration was not taken over, and the old one stays in force: {why}"
        );
        let first = why.lines().next().unwrap_or_default();
        self.manager.reloaded(Some(format!("the configuration was not taken over: {first}")));
        Response::error(
            ErrorCode::Failed,
            format!(
                "{} goes on with the configuration that it has, since the new one is not valid:\n{why}",
                self.daemon.program()
            ),
            "mend it, see `afterimage config check`, and reload again",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;

    use super::*;

    const OLD: &str = "[node]\nname = \"alpha\"\n[peer]\nname = \"beta\"\naddress = \"beta:7789\"\n\
        [group.orders]\nprimary = \"alpha\"\n[[group.orders.volume]]\nname = \"v\"\ndevice = \"/v\"\n";

    #[tokio::test]
    async fn what_is_valid_counts_and_what_is_not_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        let seen = Arc::new(StdMutex::new(Vec::new()));
        let told = seen.clone();
        let source = Source { path: Some(path.clone()), hangups: None };
        let reloader = Reloader::new(
            Daemon::Agent,
            source,
            Arc::default(),
            Config::parse(OLD, "a.toml").unwrap(),
            move |config| told.lock().unwrap().push(config.groups["orders"].max_rate),
        );
        std::fs::write(&path, OLD.replace("primary =", "max_rate = \"1MiB/s\"\nmode = \"sync\"\nprimary ="))
            .unwrap();
        let done: Reloaded = reloader.reload().await.into_answer().unwrap();
        assert_eq!(
            (done.applied, done.restart),
            (vec!["group.orders.max_rate".into()], vec!["group.orders.mode".into()])
        );
        assert_eq!(done.warnings.len(), 1, "the volume without an export");
        assert_eq!(*seen.lock().unwrap(), [Some(crate::units::ByteRate::from_bytes_per_s(1 << 20))]);

        std::fs::write(&path, OLD.replace("primary", "primry")).unwrap();
        let error = reloader.reload().await.into_answer::<Reloaded>().unwrap_err().to_string();
        assert!(error.contains("goes on with the configuration that it has"), "{error}");
        assert!(
            error.contains("a.toml:7: group.orders.primry: unknown key; did you mean `primary`?"),
            "{error}"
        );
        assert_eq!(seen.lock().unwrap().len(), 1, "nothing was made to count");

        // Still to be restarted for, against what is in force.
        std::fs::write(&path, OLD.replace("primary =", "mode = \"sync\"\nprimary =")).unwrap();
        let done: Reloaded = reloader.reload().await.into_answer().unwrap();
        assert_eq!(
            (done.applied, done.restart),
            (vec!["group.orders.max_rate".into()], vec!["group.orders.mode".into()])
        );
    }

    #[tokio::test]
    async fn a_signal_asks_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, OLD).unwrap();
        let (hang_up, hangups) = watch::channel(0);
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let source = Source { path: Some(path), hangups: Some(hangups) };
        let config = Config::parse(OLD, "a.toml").unwrap();
        let apply = move |_: &Config| tell.send(()).unwrap();
        let reloader = Arc::new(Reloader::new(Daemon::Receiver, source, Arc::default(), config, apply));
        let running = tokio::spawn(async move { reloader.run().await });
        hang_up.send_replace(1);
        told.recv().await.unwrap();
        running.abort();
    }
}
