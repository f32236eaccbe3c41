//! `afterimage reinstate` and `afterimage resolve`: a host that was replaced becomes the standby.

use std::path::Path;

use afterimage_contract::admin::{Kept, Reinstatement, Request};
use afterimage_contract::status::GroupStatus;
use afterimage_contract::units::ByteSize;
use serde_json::json;

use crate::args::{Keep, ReinstateArgs, ResolveArgs};
use crate::exit::CommandError;
use crate::progress::{Work, ask_long};
use crate::text::emit;
use crate::{host, resolve};

/// Version of the JSON that `reinstate --json` prints.
pub const JSON_VERSION: u32 = 1;

/// Reinstates a group on this host.
pub async fn run(config: &Path, args: &ReinstateArgs) -> Result<(), CommandError> {
    reinstate(config, &args.group, false, args.json).await
}

/// Ends a split brain on this host.
pub async fn resolve(config: &Path, args: &ResolveArgs) -> Result<(), CommandError> {
    match args.keep {
        None => resolve::show(config, &args.group, args.json).await,
        Some(Keep::Peer) => reinstate(config, &args.group, true, args.json).await,
        Some(Keep::Local) => keep_local(config, &args.group, args.json).await,
    }
}

async fn reinstate(config: &Path, group: &str, divergent: bool, as_json: bool) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    host::ensure_group(&config, group)?;
    let request = Request::Reinstate { group: group.to_owned(), divergent };
    let work = |_: Option<&GroupStatus>| Work::named(format!("saving what only this host has of {group}"));
    let goes_on = || {
        format!(
            "the agent takes the reinstatement of {group} to its end; see: afterimage status {group}, and what was saved: \
             afterimage salvage list {group}"
        )
    };
    let answer = ask_long(&config.agent_socket(), &request, group, work, goes_on).await?;
    let done: Reinstatement = answer.map_err(CommandError::from)?;
    if as_json {
        let document = json!({ "version": JSON_VERSION, "reinstatement": done });
        emit(&format!("{document:#}\n"))?;
    } else {
        emit(&render(&done))?;
    }
    Ok(())
}

async fn keep_local(config: &Path, group: &str, as_json: bool) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    host::ensure_group(&config, group)?;
    let request = Request::KeepLocal { group: group.to_owned() };
    let work = |_: Option<&GroupStatus>| Work::named(format!("keeping the history of {group}"));
    let goes_on = || format!("the agent takes it to its end; see: afterimage status {group}");
    let answer = ask_long(&config.agent_socket(), &request, group, work, goes_on).await?;
    let done: Kept = answer.map_err(CommandError::from)?;
    if as_json {
        emit(&format!("{:#}\n", json!({ "version": JSON_VERSION, "kept": done })))
    } else {
        emit(&render_kept(&done, &config.peer.name))
    }
}

/// The outcome of keeping this host's history, for people.
pub fn render_kept(done: &Kept, peer: &str) -> String {
    let Kept { group, generation, serving } = done;
    let served = if *serving { "now" } else { "once the other host has given way" };
    format!(
        "{group} keeps the history of this host, which is its primary again\n  generation {generation}, new\n  \
         served     {served}\nthen, on {peer}: afterimage resolve {group} --keep peer\n"
    )
}

/// The outcome for people.
pub fn render(done: &Reinstatement) -> String {
    let group = &done.group;
    let mut lines = vec![format!("{group} is reinstated: this host is its standby")];
    match &done.salvage {
        Some(file) => {
            lines.push(format!(
                "  saved      {} that only this host had",
                ByteSize::from_bytes(done.saved_bytes).approximate()
            ));
            lines.push(format!("             {file}"));
        }
        None => lines.push("  saved      nothing: this host had nothing that its peer lacks".to_owned()),
    }
    lines.push(if done.compares_all {
        "  to come    everything is compared with the peer, since it is not known what differs".to_owned()
    } else {
        format!("  to come    {} blocks, and what the peer has written since", done.blocks)
    });
    lines.push(format!("see how it comes along with: afterimage wait {group}"));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_its_history_is_told_what_comes_next() {
        let done = Kept { group: "orders".into(), generation: "5f0c".into(), serving: false };
        assert_eq!(
            render_kept(&done, "beta"),
            "orders keeps the history of this host, which is its primary again\n  generation 5f0c, new\n  \
             served     once the other host has given way\nthen, on beta: afterimage resolve orders --keep peer\n"
        );
    }
}
