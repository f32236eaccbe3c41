//! `afterimage-agent`: the daemon of a primary.

use std::process::ExitCode;
use std::time::Duration;

use afterimage_agent::{Arguments, Options, run_with};
use afterimage_contract::config::Config;
use afterimage_contract::daemon::{self, DaemonError};
use afterimage_contract::reload::Source;
use clap::Parser;

/// A thread that has done its work waits so long for more. A first sync has hundreds of them at times, each with its memory.
const IDLE_THREAD: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    daemon::keep_buffers();
    let started = daemon::start(&arguments.config, arguments.log_level.as_deref(), arguments.log);
    let status = started.as_ref().map_or_else(DaemonError::exit_status, |_| ExitCode::FAILURE);
    match started.map_err(anyhow::Error::new).and_then(|config| run(config, &arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("afterimage-agent: {error:#}");
            status
        }
    }
}

fn run(config: Config, arguments: &Arguments) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_keep_alive(IDLE_THREAD).build()?;
    runtime.block_on(async {
        let signals = daemon::signals()?;
        let configuration = Source { path: Some(arguments.config.clone()), hangups: Some(signals.hangups) };
        run_with(config, Options { alone: arguments.alone, configuration }, signals.shutdown).await
    })
}
