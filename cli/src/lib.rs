//! The operator's command, `afterimage`. [`args`] is what can be typed; each command has a module that asks
//! the daemons of this host ([`host`]) through their administration sockets and prints what they answer. Text
//! is made by pure functions ([`status::render`], [`promote::render`], [`runbook::render`], [`salvage::render`])
//! and tested as such.

pub mod args;
pub mod config_check;
pub mod daemon;
pub mod demo;
pub mod exit;
pub mod generate;
pub mod host;
pub mod identity;
pub mod owner;
pub mod progress;
pub mod promote;
pub mod reinstate;
pub mod reload;
pub mod resize;
pub mod resolve;
pub mod rollback;
pub mod runbook;
pub mod salvage;
pub mod status;
pub mod switchover;
pub mod text;
pub mod verify;
pub mod wait;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command, ConfigCommand, SalvageCommand};
use exit::CommandError;

/// Runs the command line of this process and returns its exit status. Prints errors to stderr.
pub fn main() -> ExitCode {
    // A wrong command line ends the process here, with status 2.
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.message.is_empty() {
                eprintln!("afterimage: {}", text::printable_lines(&error.message));
            }
            error.exit.into()
        }
    }
}

fn run(args: &Args) -> Result<(), CommandError> {
    if let Command::Daemon { which } = args.command {
        return daemon::run(&args.config, which);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::failed(format!("cannot start the asynchronous runtime: {error}")))?;
    runtime.block_on(async {
        match &args.command {
            Command::Config { command: ConfigCommand::Check(check) } => {
                config_check::run(&args.config, check).await
            }
            Command::Config { command: ConfigCommand::Reload(reload) } => {
                reload::run(&args.config, reload).await
            }
            Command::Completions(completions) => generate::completions(completions),
            Command::Man(man) => generate::man(man),
            Command::Identity => identity::identity(&args.config),
            Command::Pair(pair) => identity::pair(&args.config, pair).await,
            Command::Demo(demo) => demo::run(demo).await,
            Command::Daemon { .. } => Ok(()),
            Command::Status(status) => status::run(&args.config, status).await,
            Command::Promote(promote) if promote.rollback => rollback::run(&args.config, promote).await,
            Command::Promote(promote) => promote::run(&args.config, promote).await,
            Command::Switchover(switchover) => switchover::run(&args.config, switchover).await,
            Command::Reinstate(reinstate) => reinstate::run(&args.config, reinstate).await,
            Command::Runbook(runbook) => runbook::run(&args.config, runbook).await,
            Command::Resize(resize) => resize::run(&args.config, resize).await,
            Command::Wait(wait) => wait::run(&args.config, wait).await,
            Command::Verify(verify) => verify::run(&args.config, verify).await,
            Command::Salvage { command: SalvageCommand::List(list) } => salvage::list(&args.config, list),
            Command::Salvage { command: SalvageCommand::Export(export) } => salvage::export(export).await,
            Command::Resolve(resolve) => reinstate::resolve(&args.config, resolve).await,
        }
    })
}
