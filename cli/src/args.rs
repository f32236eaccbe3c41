//! What can be typed.

mod wait;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use afterimage_contract::admin::At;
use afterimage_contract::config::DEFAULT_PATH;
use afterimage_contract::units::ByteRate;
use clap::{Parser, Subcommand};

pub use wait::{Goal, WaitArgs};

const EXIT_STATUS: &str = "Exit status:
  0  done
  1  failed; nothing changed unless the message says so
  2  wrong use
  3  refused, because it would be unsafe

Environment:
  NO_COLOR  if it is set to something, nothing is coloured

See also: afterimage-agent(8), afterimage-receiver(8)";

const STATUS_EXAMPLES: &str = "Examples:
  afterimage status                 one line for each group, and what is wrong
  afterimage status orders          one group in detail
  afterimage status -x              only what is not healthy: quiet in cron, loud when it matters
  afterimage status --watch         a live view with lag and throughput; q leaves it
  afterimage status --watch=5       the same every 5 seconds; plain text where stdout is no terminal
  afterimage status --json | jq '.groups[] | select(.protection != \"in_sync\") | .name'

Every line about something that is wrong ends in the id of its event, which docs/events.md explains, and says below what to do.
The transport lag is what a loss of the primary would cost, and the primary knows it; the apply lag is how far the standby's
base is behind what the standby has, which loses nothing. What is not known is shown as unknown.

The exit status says whether the status could be read, not whether it is good; programs read --json.";

const PROMOTE_EXAMPLES: &str = "Examples:
  afterimage promote orders --dry-run                  what would be served, and what would be lost
  afterimage promote orders                            serve the newest image that is whole
  afterimage promote orders --at 2026-01-31T12:00:00Z  as it was at a time (UTC, the primary's clock)
  afterimage promote orders --at 81204                 as it was after a write's sequence
  afterimage promote orders --rollback                 take it back, as long as nothing was written here since

Run it on the standby. From then on this host refuses the old primary, which has to be reinstated.

A rollback is asked for on the promoted host: it is the standby again, with the image that it was promoted at, and the old
primary serves as before, once it reaches this host. It is refused, with status 3, once a client has written here.

Ctrl-C ends the command with status 1, not the promotion or the rollback, which the daemons take to its end: see afterimage
status.";

const REINSTATE_EXAMPLES: &str = "Examples:
  afterimage reinstate orders       on the old primary, once its peer was promoted and can be reached

What only this host has is saved to a file first. Then the peer sends what differs, and nothing else; until all of it is
there the old image stays as it is.

Ctrl-C ends the command with status 1, not the reinstatement, which the agent takes to its end. Then this shows what is to come:
afterimage wait orders";

const SWITCHOVER_EXAMPLES: &str = "Examples:
  afterimage switchover orders              on the primary: its peer takes over, this host becomes the standby
  afterimage switchover orders --dry-run    only say whether it could begin now

Clients are held, everything that they were answered for gets to the peer, the peer serves. Nothing is lost. Where a step
fails before the peer was asked, this host serves on.

Ctrl-C ends the command with status 1, not the switchover: the two hosts take it to its end, or abandon it, after 10 seconds at
the latest while nothing was asked of the peer. See afterimage status.";

const RESIZE_EXAMPLES: &str = "Examples:
  afterimage resize orders                     on the primary, once the volumes are larger on both hosts
  afterimage resize orders --volume pgdata     only this one
  afterimage resize orders --dry-run           only say what would grow, or what is missing

Make the volume larger on the standby first, then on the primary, with the tool that is made for it (lvextend, truncate -s);
then run this on the primary. Clients are held for a moment, and see the new size when they connect anew.

Ctrl-C ends the command with status 1, not the resize, which the agent does as a whole or not at all.";

const VERIFY_EXAMPLES: &str = "Examples:
  afterimage verify orders                      compare both copies, and say what differs
  afterimage verify orders --repair             and make the standby equal to this host where it differs
  afterimage verify orders --rate 200MiB/s      faster than configured
  afterimage verify orders --status             how far it is, or how the last one ended
  afterimage verify orders --cancel             give it up

Run it on the primary; the volumes stay in use. Ctrl-C ends the command with status 1 and not the verification: that goes on in
the agent, also after a restart; asked again, the command joins it. The exit status is 1 while blocks differ.

It cannot know which side is right: look at the data before --repair, which takes the primary's.";

const RESOLVE_EXAMPLES: &str = "Examples:
  afterimage resolve orders                 both histories, and the blocks that only this host has; changes nothing

  afterimage resolve orders --keep peer     on the fenced host: it gives way; its own writes are saved to a file first

  afterimage resolve orders --keep local    the other way round: on the fenced host, whose history stays; then
  afterimage resolve orders --keep peer     on the promoted host: it stops serving and gives way

Ctrl-C ends the command with status 1, not what the agent was asked for.";

const SALVAGE_LIST_EXAMPLES: &str = "Examples:
  afterimage salvage list              what reinstatements have saved on this host
  afterimage salvage list orders --json

Every file is read through, so that one that is damaged is shown as such. No daemon is needed.";

const SALVAGE_EXPORT_EXAMPLES: &str = "Examples:
  afterimage salvage export FILE --image ./saved     a sparse image of each volume, holes where nothing was saved
  afterimage salvage export FILE --blocks ./saved    a list of the saved ranges, and their bytes (docs/salvage.md)

FILE is a path that `afterimage salvage list` shows. Nothing is overwritten. What is whole in a damaged file is
exported, with exit status 1. On Ctrl-C, or when the disk is full, what was made so far is removed again, with status 1. No
daemon and no configuration is needed.";

const RUNBOOK_EXAMPLES: &str = "Examples:
  afterimage runbook orders >orders.md    on each host, after every change of the configuration

Keep it where it can be read when the hosts cannot.";

const CHECK_EXAMPLES: &str = "Examples:
  afterimage config check                      before the daemons are started, and after every change
  afterimage config check --file-only          the file alone, such as one that is meant for another host
  afterimage config check --config ./new.toml

Looked at are, beside the file: keys and pairing, directories and the space in them, devices, sockets, hooks, whether the peer
can be reached and accepts this host, and what the daemons say of each group, such as sizes that do not fit. Nothing is changed.
A warning is worth a look; the exit status is 1 only for what cannot work.";

const RELOAD_EXAMPLES: &str = "Examples:
  afterimage config reload            both daemons of this host read the configuration again
  afterimage config reload agent      one of them, as `systemctl reload afterimage-agent` does

Clients notice nothing. What can change at once does; what needs a restart is named, and stays as it was until then. A
configuration that is not valid changes nothing, and the exit status is 1.";

const COMPLETIONS_EXAMPLES: &str = "Examples:
  afterimage completions bash >/etc/bash_completion.d/afterimage
  afterimage completions --dir ./completions      of all three programs, for bash, zsh and fish";

const MAN_EXAMPLES: &str = "Examples:
  afterimage man | man -l -                 the page of this command
  afterimage man --dir ./man                all pages: of the three programs and of each command";

const PAIR_EXAMPLES: &str = "Examples:
  afterimage pair --new        on one host, whose receiver is running: prints the token for the other one
  afterimage pair TOKEN        on the other host

The token holds the first host's key and a secret that works once, for 15 minutes.";

/// What `--watch` takes: the daemons look at most things once a second, and nobody waits for longer than an hour.
const WATCH_SECONDS: RangeInclusive<f64> = 0.1..=3600.0;

/// Block-level replication: keeps a second site ready to take over.
#[derive(Debug, Parser)]
#[command(name = "afterimage", version, after_help = EXIT_STATUS, propagate_version = true)]
pub struct Args {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how well each group is protected, what is wrong and what to do.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Make this host the primary of a group, after the loss of the old one.
    #[command(after_help = PROMOTE_EXAMPLES)]
    Promote(PromoteArgs),
    /// Change the roles as planned: the peer takes over, without loss.
    #[command(after_help = SWITCHOVER_EXAMPLES)]
    Switchover(SwitchoverArgs),
    /// Make this host the standby of a group again, after it was replaced by a promotion.
    #[command(after_help = REINSTATE_EXAMPLES)]
    Reinstate(ReinstateArgs),
    /// Replicate all of volumes that were made larger on both hosts, while they are in use.
    #[command(after_help = RESIZE_EXAMPLES)]
    Resize(ResizeArgs),
    /// Compare both copies of a group, block for block, while they are in use.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Wait until a group is protected, or its journal applied, and show how far that is.
    #[command(after_help = wait::EXAMPLES)]
    Wait(WaitArgs),
    /// See what a split brain is about, and end it: say which side stays.
    #[command(after_help = RESOLVE_EXAMPLES)]
    Resolve(ResolveArgs),
    /// See and take out what was saved when this host was reinstated.
    Salvage {
        /// What to do with it.
        #[command(subcommand)]
        command: SalvageCommand,
    },
    /// Print what to do when something happens to a group: the exact steps and commands, as Markdown.
    #[command(after_help = RUNBOOK_EXAMPLES)]
    Runbook(RunbookArgs),
    /// Show this host's key and the peers it trusts.
    Identity,
    /// Make two hosts trust each other: a token from one, used on the other.
    #[command(after_help = PAIR_EXAMPLES)]
    Pair(PairArgs),
    /// Show the whole story on this machine in under a minute: first sync, streaming, a link cut, a lost primary, a
    /// promotion. Touches nothing but a temporary directory.
    Demo(DemoArgs),
    /// Run a daemon in the foreground, for the demo.
    #[command(hide = true)]
    Daemon {
        /// Which one.
        #[arg(value_enum)]
        which: Daemon,
    },
    /// Work with the configuration file.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print what a shell needs to complete command lines.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Print the manual page.
    #[command(after_help = MAN_EXAMPLES)]
    Man(ManArgs),
}

/// What can be done with the configuration file.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration file and what it names on this host and the other one, and list everything that is wrong.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Have the daemons of this host read the configuration again.
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload(ReloadArgs),
}

/// Arguments of `config check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Look at the file alone, and neither at this host nor at the peer.
    #[arg(long)]
    pub file_only: bool,
}

/// Arguments of `config reload`.
#[derive(Debug, clap::Args)]
pub struct ReloadArgs {
    /// This daemon only; both that run otherwise.
    #[arg(value_enum)]
    pub daemon: Option<Daemon>,
    /// Print the outcome as JSON (docs/services.md).
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct CompletionsArgs {
    /// Print the completions of this command for a shell.
    #[arg(value_enum)]
    pub shell: Option<clap_complete::Shell>,
    /// Write those of all three programs, for bash, zsh and fish, into this directory.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write the pages of all three programs and of each command into this directory.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// What can be done with salvage files.
#[derive(Debug, Subcommand)]
pub enum SalvageCommand {
    /// List the salvage files of this host.
    #[command(after_help = SALVAGE_LIST_EXAMPLES)]
    List(SalvageListArgs),
    /// Take the data out of a salvage file.
    #[command(after_help = SALVAGE_EXPORT_EXAMPLES)]
    Export(SalvageExportArgs),
}

/// Arguments of `salvage list`.
#[derive(Debug, clap::Args)]
pub struct SalvageListArgs {
    /// List the files of this group only.
    pub group: Option<String>,
    /// Print the list as JSON (docs/salvage.md).
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `salvage export`.
#[derive(Debug, Clone, clap::Args)]
pub struct SalvageExportArgs {
    /// The salvage file.
    pub file: PathBuf,
    /// Where to.
    #[command(flatten)]
    pub to: SalvageTarget,
    /// Print the outcome as JSON (docs/salvage.md).
    #[arg(long)]
    pub json: bool,
}

/// Where a salvage file is exported to.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct SalvageTarget {
    /// Make an image file VOLUME.img of each volume in this directory.
    #[arg(long, value_name = "DIR")]
    pub image: Option<PathBuf>,
    /// Make this directory, with a list of the ranges and their bytes.
    #[arg(long, value_name = "OUT")]
    pub blocks: Option<PathBuf>,
}

/// The daemons.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Daemon {
    /// The source's side.
    Agent,
    /// The target's side.
    Receiver,
}

impl From<Daemon> for afterimage_contract::config::Daemon {
    fn from(daemon: Daemon) -> Self {
        match daemon {
            Daemon::Agent => Self::Agent,
            Daemon::Receiver => Self::Receiver,
        }
    }
}

/// Arguments of `pair`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct PairArgs {
    /// Make a token for the other host; the receiver must be running here.
    #[arg(long)]
    pub new: bool,
    /// The token that the other host made.
    pub token: Option<String>,
}

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Keep the temporary directory, and say where it is.
    #[arg(long)]
    pub keep: bool,
}

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Show this group only, in detail.
    pub group: Option<String>,
    /// Print the status document (docs/status.md).
    #[arg(long)]
    pub json: bool,
    /// Show only what is not healthy.
    #[arg(short = 'x', long)]
    pub unhealthy: bool,
    /// Look again every second, or every SECONDS, until q or Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1",
          value_parser = interval)]
    pub watch: Option<Duration>,
}

/// Seconds between two looks.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if !WATCH_SECONDS.contains(&seconds) {
        return Err(format!(
            "it has to be between {} and {} seconds",
            WATCH_SECONDS.start(),
            WATCH_SECONDS.end()
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Arguments of `reinstate`.
#[derive(Debug, clap::Args)]
pub struct ReinstateArgs {
    /// The group to bring home.
    pub group: String,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `switchover`.
#[derive(Debug, clap::Args)]
pub struct SwitchoverArgs {
    /// The group.
    pub group: String,
    /// Only say whether it could begin now.
    #[arg(long)]
    pub dry_run: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `resize`.
#[derive(Debug, clap::Args)]
pub struct ResizeArgs {
    /// The group.
    pub group: String,
    /// This volume only; every one that has grown otherwise.
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// Only say what would grow, or what is missing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The group to compare.
    pub group: String,
    /// Make the standby's blocks that differ equal to the primary's.
    #[arg(long)]
    pub repair: bool,
    /// The most to read in a second, such as 200MiB/s; what is configured otherwise.
    #[arg(long)]
    pub rate: Option<ByteRate>,
    /// Begin nothing: say how far it is, or how the last one ended.
    #[arg(long, conflicts_with_all = ["repair", "rate", "cancel"])]
    pub status: bool,
    /// Give up the one that is under way.
    #[arg(long, conflicts_with_all = ["repair", "rate"])]
    pub cancel: bool,
    /// Do not show the progress.
    #[arg(long, short)]
    pub quiet: bool,
    /// Print the outcome as JSON (docs/status.md).
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `resolve`.
#[derive(Debug, clap::Args)]
pub struct ResolveArgs {
    /// The group.
    pub group: String,
    /// The side whose data stays; without it both histories and what only this host has are shown, and nothing is changed.
    #[arg(long, value_enum)]
    pub keep: Option<Keep>,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `runbook`.
#[derive(Debug, clap::Args)]
pub struct RunbookArgs {
    /// The group.
    pub group: String,
}

/// The side that stays.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Keep {
    /// This host's, which was replaced: it is the primary again. The other one gives way afterwards.
    Local,
    /// The other host's: this one gives way.
    Peer,
}

/// Arguments of `promote`.
#[derive(Debug, clap::Args)]
pub struct PromoteArgs {
    /// The group to take over.
    pub group: String,
    /// Promote at a time, sequence or bookmark instead of the newest point; what came after it is given up.
    #[arg(long, value_name = "TIME|SEQUENCE|BOOKMARK")]
    pub at: Option<At>,
    /// Say what would be done and lost, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Also while the primary is connected and answers: it is fenced, and loses what this host has not got.
    #[arg(long)]
    pub force: bool,
    /// Take the promotion of this host back, as long as nothing was written after it.
    #[arg(long, conflicts_with_all = ["at", "force"])]
    pub rollback: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_configuration_can_be_named_after_the_command() {
        let args = Args::try_parse_from(["afterimage", "config", "check", "--config", "x.toml"]).unwrap();
        assert_eq!(args.config, PathBuf::from("x.toml"));
    }

    #[test]
    fn a_point_that_cannot_be_understood_is_wrong_use() {
        let error =
            Args::try_parse_from(["afterimage", "promote", "orders", "--at", "2026-01-31"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("a UTC time (2026-01-31T12:00:00Z)"), "{error}");
    }
}
