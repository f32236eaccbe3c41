//! Runs a daemon inside this binary: what the demo does, so that it needs nothing but `afterimage` itself. Services run
//! the daemons' own binaries.

use std::path::Path;

use afterimage_contract::config::Config;
use afterimage_contract::daemon;
use afterimage_contract::log::LogFormat;

use crate::args::Daemon;
use crate::exit::CommandError;

/// Runs until SIGTERM or SIGINT.
pub fn run(config: &Path, which: Daemon) -> Result<(), CommandError> {
    let config = Config::load(config)?;
    serve(config, which).map_err(|e| CommandError::failed(format!("{e:#}")))
}

fn serve(config: Config, which: Daemon) -> anyhow::Result<()> {
    daemon::start_log(None, &config.log.level, LogFormat::Text)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = daemon::signals()?.shutdown;
        match which {
            Daemon::Agent => afterimage_agent::run(config, shutdown).await,
            Daemon::Receiver => afterimage_receiver::run(config, shutdown).await,
        }
    })
}
