//! What can be typed after `afterimage wait`.

use std::time::Duration;

use afterimage_contract::units::parse_duration;

pub(super) const EXAMPLES: &str = "Examples:
  afterimage wait orders                          until its standby has what the configured mode asks for
  afterimage wait orders --timeout 10m && systemctl start myapp
  afterimage wait orders --for applied            on the standby: until all that it has now is in its volumes

On a terminal a bar shows first sync, catch-up or applying; elsewhere there are lines, on stderr; --quiet shows neither.

The exit status is 0 once it is so. It is 1 after the timeout, when it cannot be so before somebody acts (fenced, split brain,
another volume, refused by the peer), and on Ctrl-C, which stops nothing but the waiting. Whether a group is protected is best
asked on its primary.";

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// The group.
    pub group: String,
    /// What to wait for.
    #[arg(long = "for", value_enum, default_value_t = Goal::Protected)]
    pub goal: Goal,
    /// How long at most, such as 10m; for ever otherwise.
    #[arg(long, value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Print the outcome as JSON (docs/status.md).
    #[arg(long)]
    pub json: bool,
    /// Do not show the progress.
    #[arg(long, short)]
    pub quiet: bool,
}

/// What can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Goal {
    /// First sync and catch-up are over: a sync group is in sync, an async one streams.
    Protected,
    /// What the standby had received when it was asked is in its volumes, and a promotion finds nothing to apply of it.
    Applied,
}

impl Goal {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::Applied => "applied",
        }
    }
}
