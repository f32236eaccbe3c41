//! `afterimage switchover`: the planned change of roles, without loss.

use std::path::Path;

use afterimage_contract::admin::{Request, Switchover};
use afterimage_contract::status::GroupStatus;
use serde_json::json;

use crate::args::SwitchoverArgs;
use crate::exit::{CommandError, explain};
use crate::host;
use crate::progress::{Left, Work, ask_long};
use crate::text::emit;

/// Version of the JSON that `switchover --json` prints.
pub const JSON_VERSION: u32 = 1;

/// Has the peer take over a group whose primary is this host.
pub async fn run(config: &Path, args: &SwitchoverArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    host::ensure_group(&config, &args.group)?;
    let request = Request::Switchover { group: args.group.clone(), dry_run: args.dry_run };
    let group = &args.group;
    let mut left = Left::default();
    let drains = |status: Option<&GroupStatus>| {
        left.note(status.and_then(|status| status.queued_bytes).unwrap_or(0));
        match left.is_nothing() {
            true => Work::named(format!("waiting for {} to take {group} over", config.peer.name)),
            false => left.of(format!("bringing what was written to {group} to {}", config.peer.name)),
        }
    };
    let goes_on = || {
        format!(
            "the two hosts take the switchover of {group} to its end, or abandon it; see, on both: afterimage status {group}"
        )
    };
    let answer = ask_long(&config.agent_socket(), &request, group, drains, goes_on).await?;
    let done: Switchover = answer.map_err(|error| explain(error, unknown_outcome(args)))?;
    if args.json {
        let document = json!({ "version": JSON_VERSION, "switchover": done });
        emit(&format!("{document:#}\n"))
    } else {
        emit(&render(&done))
    }
}

fn unknown_outcome(args: &SwitchoverArgs) -> Option<String> {
    let group = &args.group;
    let text = format!(
        "which host is the primary of {group} is not known; it is one of the two, and both find out once they reach each \
         other; see, on both: afterimage status {group}"
    );
    (!args.dry_run).then_some(text)
}

/// The outcome for people.
pub fn render(done: &Switchover) -> String {
    let Switchover { group, peer, .. } = done;
    if done.dry_run {
        return format!("{group} could be switched over to {peer} now; nothing was changed\n");
    }
    let mut lines = vec![format!("{group} is switched over: {peer} is its primary, this host its standby")];
    if let Some(sequence) = done.sequence {
        lines.push(format!("  image      sequence {sequence}: every write that was answered here"));
    }
    if let Some(held_us) = done.held_us {
        lines.push(format!("  held       {:.1} ms, until this host knew of it", held_us as f64 / 1e3));
    }
    lines.push(format!("clients go on at {peer}; see there: afterimage status {group}"));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(dry_run: bool) -> Switchover {
        Switchover {
            group: "orders".into(),
            dry_run,
            peer: "beta".into(),
            sequence: (!dry_run).then_some(77),
            held_us: (!dry_run).then_some(12_345),
        }
    }

    #[test]
    fn it_says_who_is_what_now() {
        let text = render(&done(false));
        assert_eq!(
            text,
            "orders is switched over: beta is its primary, this host its standby\n  \
             image      sequence 77: every write that was answered here\n  \
             held       12.3 ms, until this host knew of it\n\
             clients go on at beta; see there: afterimage status orders\n"
        );
    }

    #[test]
    fn a_dry_run_changes_nothing_and_says_so() {
        assert_eq!(render(&done(true)), "orders could be switched over to beta now; nothing was changed\n");
    }
}
