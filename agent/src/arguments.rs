//! What can be typed after `afterimage-agent`.

use std::path::PathBuf;

use afterimage_contract::config::DEFAULT_PATH;
use afterimage_contract::log::LogFormat;
use clap::Parser;

const EXAMPLES: &str = "Examples:
  afterimage-agent                                    as the systemd unit runs it
  afterimage-agent --config ./a.toml --log-level debug

SIGTERM and SIGINT stop it: requests under way are finished, the standby gets the rest if it can, and everything is on
stable storage. SIGHUP has it read its configuration again (`afterimage config reload` says what came of that).

Exit status:
  0  stopped as asked
  1  failed
  2  wrong use, or a configuration that is not valid";

/// Serves the volumes of the groups whose primary is this host over NBD, and keeps their standby up to date.
#[derive(Debug, Parser)]
#[command(name = "afterimage-agent", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// What to log: a level (error, warn, info, debug, trace) or a filter as RUST_LOG has it, which it overrides.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How to log it: text, or json for a JSON object on each line.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log: LogFormat,
    /// Serve volumes at once, without asking the peer whether it was promoted while this host was down. If it was,
    /// both hosts write, and one of the two histories will be lost.
    #[arg(long)]
    pub alone: bool,
}
