//! `afterimage-agent`: the daemon of a primary.

use std::path::PathBuf;
use std::process::ExitCode;

use afterimage_agent::{Options, run_with};
use afterimage_contract::config::{Config, DEFAULT_PATH};
use afterimage_contract::daemon;
use afterimage_contract::log::LogFormat;
use clap::Parser;

/// Serves the volumes of the groups whose primary is this host over NBD, and keeps their standby up to date.
#[derive(Parser)]
#[command(name = "afterimage-agent", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// What to log: a level (error, warn, info, debug, trace) or a filter as RUST_LOG has it, which it overrides.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How to log it: text, or json for a JSON object on each line.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log: LogFormat,
    /// Serve volumes at once, without asking the peer whether it was promoted while this host was down. If it was,
    /// both hosts write, and one of the two histories will be lost.
    #[arg(long)]
    alone: bool,
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("afterimage-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    daemon::keep_buffers();
    daemon::start_log(arguments.log_level.as_deref(), arguments.log)?;
    let config = Config::load(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime
        .block_on(async { run_with(config, Options { alone: arguments.alone }, daemon::shutdown()?).await })
}
