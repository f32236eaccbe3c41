//! The `afterimage-receiver` binary; see the library.

use std::path::PathBuf;
use std::process::ExitCode;

use afterimage_contract::config::{Config, DEFAULT_PATH};
use afterimage_contract::daemon;
use afterimage_contract::log::LogFormat;
use anyhow::Context;
use clap::Parser;

/// Keeps the standby's copy of the groups whose standby this host is.
#[derive(Debug, Parser)]
#[command(name = "afterimage-receiver", version)]
struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// What to log: a level (error, warn, info, debug, trace) or a filter as RUST_LOG has it, which it overrides.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How to log it: text, or json for a JSON object on each line.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log: LogFormat,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("afterimage-receiver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> anyhow::Result<()> {
    daemon::keep_buffers();
    daemon::start_log(args.log_level.as_deref(), args.log)?;
    let config = Config::load(&args.config)?;
    // For what the operator asks: the network and the groups have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async { afterimage_receiver::run(config, daemon::shutdown()?).await })
}
