//! `afterimage-agent`: the daemon of a primary.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;

use afterimage_agent::{Options, run_with};
use afterimage_contract::config::{Config, DEFAULT_PATH};
use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Serves the volumes of the groups whose primary is this host over NBD, and keeps their standby up to date.
#[derive(Parser)]
#[command(name = "afterimage-agent", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// What to log, such as `debug` or `afterimage_agent=debug`; RUST_LOG if not given, else `info`.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
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
    let filter = match &arguments.log_level {
        Some(level) => EnvFilter::try_new(level).context("cannot read --log-level")?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();
    let config = Config::load(&arguments.config)?;
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
        run_with(config, Options { alone: arguments.alone }, shutdown).await
    })
}
