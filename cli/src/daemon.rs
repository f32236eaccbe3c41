//! Runs a daemon inside this binary: what the demo does, so that it needs nothing but `afterimage` itself. Services run
//! the daemons' own binaries.

use std::path::Path;

use afterimage_contract::config::Config;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::args::Daemon;
use crate::exit::CommandError;

/// Runs until SIGTERM or SIGINT.
pub fn run(config: &Path, which: Daemon) -> Result<(), CommandError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let config = Config::load(config)?;
    serve(config, which).map_err(|e| CommandError::failed(format!("{e:#}")))
}

fn serve(config: Config, which: Daemon) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stop, shutdown) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.send_replace(true);
        });
        match which {
            Daemon::Agent => afterimage_agent::run(config, shutdown).await,
            Daemon::Receiver => afterimage_receiver::run(config, shutdown).await,
        }
    })
}
