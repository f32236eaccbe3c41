//! `afterimage resize`: has all of volumes replicated that were made larger on both hosts.

use std::path::Path;

use afterimage_contract::admin::{Request, Resize};
use afterimage_contract::status::GroupStatus;
use afterimage_contract::units::ByteSize;
use serde_json::json;

use crate::args::ResizeArgs;
use crate::exit::{CommandError, explain};
use crate::host;
use crate::progress::{Work, ask_long};
use crate::text::emit;

/// Version of the JSON that `resize --json` prints.
pub const JSON_VERSION: u32 = 1;

/// Grows the volumes of a group whose primary is this host.
pub async fn run(config: &Path, args: &ResizeArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    host::ensure_group(&config, &args.group)?;
    let request =
        Request::Resize { group: args.group.clone(), volume: args.volume.clone(), dry_run: args.dry_run };
    let group = &args.group;
    let work = |_: Option<&GroupStatus>| Work::named(format!("resize of {group}"));
    let goes_on = || {
        format!(
            "the agent does the resize of {group} as a whole, or not at all; see: afterimage status {group}"
        )
    };
    let answer = ask_long(&config.agent_socket(), &request, group, work, goes_on).await?;
    let done: Resize = answer.map_err(|error| explain(error, unknown_outcome(args)))?;
    if args.json {
        let document = json!({ "version": JSON_VERSION, "resize": done });
        emit(&format!("{document:#}\n"))
    } else {
        emit(&render(&done))
    }
}

fn unknown_outcome(args: &ResizeArgs) -> Option<String> {
    let group = &args.group;
    let text = format!(
        "whether the volumes of {group} have grown is not known; all of them have, or none; see: afterimage status {group}"
    );
    (!args.dry_run).then_some(text)
}

/// The outcome for people.
pub fn render(done: &Resize) -> String {
    let group = &done.group;
    let mut lines = vec![match done.dry_run {
        true => format!("{group} could be resized now; nothing was changed"),
        false => format!("{group} is resized"),
    }];
    let size = |bytes| ByteSize::from_bytes(bytes).approximate();
    for volume in &done.volumes {
        let (from, to) = (volume.from_bytes, volume.to_bytes);
        lines.push(format!("  {:<10} {} -> {} ({from} -> {to} bytes)", volume.name, size(from), size(to)));
    }
    if let Some(held_us) = done.held_us {
        lines.push(format!("  held       {:.1} ms at most", held_us as f64 / 1e3));
    }
    match done.standby_knows {
        Some(true) => lines.push(format!(
            "the standby takes the new area with a catch-up: afterimage status {group}\n\
             clients see the new size when they connect anew"
        )),
        Some(false) => lines.push(format!(
            "the standby has not begun a session with the new sizes yet; see: afterimage status {group}"
        )),
        None => {}
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use afterimage_contract::admin::ResizedVolume;

    use super::*;

    fn done(dry_run: bool) -> Resize {
        Resize {
            group: "orders".into(),
            dry_run,
            volumes: vec![ResizedVolume { name: "pgdata".into(), from_bytes: 1 << 30, to_bytes: 3 << 30 }],
            standby_knows: (!dry_run).then_some(true),
            held_us: (!dry_run).then_some(120_500),
        }
    }

    #[test]
    fn it_shows_the_old_and_the_new_size() {
        assert_eq!(
            render(&done(false)),
            "orders is resized\n  pgdata     1 GiB -> 3 GiB (1073741824 -> 3221225472 bytes)\n  \
             held       120.5 ms at most\n\
             the standby takes the new area with a catch-up: afterimage status orders\n\
             clients see the new size when they connect anew\n"
        );
    }

    #[test]
    fn a_dry_run_changes_nothing_and_says_so() {
        assert_eq!(
            render(&done(true)),
            "orders could be resized now; nothing was changed\n  pgdata     1 GiB -> 3 GiB \
             (1073741824 -> 3221225472 bytes)\n"
        );
    }

    #[test]
    fn a_standby_that_does_not_know_is_shown() {
        let text = render(&Resize { standby_knows: Some(false), ..done(false) });
        assert!(text.contains("has not begun a session with the new sizes"), "{text}");
    }
}
