//! What can be typed after `afterimage-receiver`.

use std::path::PathBuf;

use afterimage_contract::config::DEFAULT_PATH;
use afterimage_contract::log::LogFormat;
use clap::Parser;

const EXAMPLES: &str = "Examples:
  afterimage-receiver                                 as the systemd unit runs it
  afterimage-receiver --config ./b.toml --log-level debug

SIGTERM and SIGINT stop it, with all that it has taken on stable storage. SIGHUP has it read its configuration again
(`afterimage config reload` says what came of that).

Exit status:
  0  stopped as asked
  1  failed
  2  wrong use, or a configuration that is not valid";

/// Keeps the standby's copy of the groups whose standby this host is.
#[derive(Debug, Parser)]
#[command(name = "afterimage-receiver", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// What to log: a level (error, warn, info, debug, trace) or a filter as RUST_LOG has it, which it overrides.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How to log it: text, or json for a JSON object on each line.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log: LogFormat,
}
