//! The `afterimage-receiver` binary; see the library.

use std::process::ExitCode;

use afterimage_contract::config::Config;
use afterimage_contract::daemon::{self, DaemonError};
use afterimage_contract::reload::Source;
use afterimage_receiver::{Arguments, run_with};
use anyhow::Context;
use clap::Parser;

fn main() -> ExitCode {
    let args = Arguments::parse();
    daemon::keep_buffers();
    let started = daemon::start(&args.config, args.log_level.as_deref(), args.log);
    let status = started.as_ref().map_or_else(DaemonError::exit_status, |_| ExitCode::FAILURE);
    match started.map_err(anyhow::Error::new).and_then(|config| run(config, &args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("afterimage-receiver: {error:#}");
            status
        }
    }
}

fn run(config: Config, args: &Arguments) -> anyhow::Result<()> {
    // For what the operator asks: the network and the groups have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let signals = daemon::signals()?;
        let source = Source { path: Some(args.config.clone()), hangups: Some(signals.hangups) };
        run_with(config, source, signals.shutdown).await
    })
}
