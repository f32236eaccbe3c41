//! `afterimage promote --rollback`: the agent gives the group up, then the receiver takes it as the standby.

use std::path::Path;

use afterimage_contract::admin::{AdminError, Following, Request, RolledBack, call};
use afterimage_contract::status::GroupStatus;
use serde_json::json;

use crate::args::PromoteArgs;
use crate::exit::{CommandError, explain};
use crate::host;
use crate::progress::{Work, ask_long, or_interrupted};
use crate::text::emit;

/// Version of the JSON that `promote --rollback --json` prints.
pub const JSON_VERSION: u32 = 1;

/// Takes the promotion of this host back. Once the agent has done it, it stays done.
pub async fn run(config: &Path, args: &PromoteArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    host::ensure_group(&config, &args.group)?;
    let request = Request::RollBack { group: args.group.clone(), dry_run: args.dry_run };
    let group = &args.group;
    let work = |_: Option<&GroupStatus>| Work::named(format!("rollback of {group}"));
    let answer = ask_long(&config.agent_socket(), &request, group, work, || goes_on(group)).await?;
    let done: RolledBack = answer.map_err(|error| explain(error, unknown_outcome(args)))?;
    let following = if done.dry_run {
        None
    } else {
        let follow = async { Ok(follow(&config.receiver_socket(), group).await) };
        Some(or_interrupted(follow, || goes_on(group)).await?)
    };
    if args.json {
        let standby = matches!(&following, Some(Ok(Following { standby: true, .. })));
        let document = json!({
            "version": JSON_VERSION,
            "rollback": done,
            "standby": following.is_some().then_some(standby),
        });
        emit(&format!("{document:#}\n"))
    } else {
        emit(&render(&done, following.as_ref()))
    }
}

async fn follow(receiver: &Path, group: &str) -> Result<Following, AdminError> {
    call(receiver, &Request::Follow { group: group.to_owned() }).await?.into_answer()
}

fn goes_on(group: &str) -> String {
    format!("the daemons take the rollback of {group} to its end; see: afterimage status {group}")
}

fn unknown_outcome(args: &PromoteArgs) -> Option<String> {
    let group = &args.group;
    let text = format!(
        "whether the promotion of {group} was rolled back is not known; this host is its primary, or its standby as \
         before; see: afterimage status {group}"
    );
    (!args.dry_run).then_some(text)
}

/// The outcome for people. `following` is `None` after a dry run.
pub fn render(done: &RolledBack, following: Option<&Result<Following, AdminError>>) -> String {
    let RolledBack { group, peer, generation, position, .. } = done;
    if done.dry_run {
        return format!(
            "the promotion of {group} could be rolled back to sequence {} now; nothing was changed\n",
            position.sequence
        );
    }
    let standby = match following {
        Some(Ok(Following { standby: true, .. })) => "yes".to_owned(),
        Some(Err(error)) => format!("not yet: {error}"),
        _ => format!("not yet; see: afterimage status {group}"),
    };
    format!(
        "the promotion of {group} is rolled back: {peer} is its primary again, once it reaches this host\n  \
         image      sequence {} of generation {}\n  given up   generation {generation}, in which nothing was written\n  \
         standby    {standby}\n",
        position.sequence, position.generation
    )
}

#[cfg(test)]
mod tests {
    use afterimage_contract::status::Position;

    use super::*;

    fn done(dry_run: bool) -> RolledBack {
        RolledBack {
            group: "orders".into(),
            dry_run,
            peer: "alpha".into(),
            generation: "77aa".into(),
            position: Position { generation: "5f0c".into(), sequence: 42 },
        }
    }

    #[test]
    fn a_rollback_says_what_this_host_is_from_then_on() {
        let following = Following { group: "orders".into(), standby: true };
        assert_eq!(
            render(&done(false), Some(&Ok(following))),
            "\
the promotion of orders is rolled back: alpha is its primary again, once it reaches this host
  image      sequence 42 of generation 5f0c
  given up   generation 77aa, in which nothing was written
  standby    yes
"
        );
    }

    #[test]
    fn a_dry_run_says_that_nothing_was_changed() {
        let text = render(&done(true), None);
        assert!(
            text.contains("could be rolled back to sequence 42") && text.contains("nothing was changed"),
            "{text}"
        );
    }

    #[test]
    fn a_receiver_that_does_not_run_leaves_the_rollback_done() {
        let error = AdminError::NotRunning { daemon: "afterimage-receiver", path: "/x".into() };
        let text = render(&done(false), Some(&Err(error)));
        assert!(
            text.contains("is rolled back") && text.contains("not yet: afterimage-receiver is not running"),
            "{text}"
        );
    }
}
