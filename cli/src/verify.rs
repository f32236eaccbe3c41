//! `afterimage verify`: begins a verification of a group's copies, or joins the one under way, and waits for its end.

use std::path::Path;
use std::time::Duration;

use afterimage_contract::admin::{Request, call};
use afterimage_contract::status::{VerificationState, VerificationStatus};
use afterimage_contract::units::ByteSize;
use serde_json::json;

use crate::args::VerifyArgs;
use crate::exit::CommandError;
use crate::host;
use crate::progress::{Progress, Work, or_interrupted};
use crate::text::emit;

/// Version of the JSON that `verify --json` prints.
pub const JSON_VERSION: u32 = 1;
/// How often the agent is asked for its progress.
const POLL: Duration = Duration::from_millis(500);

/// Verifies a group from its primary's host. Fails while blocks differ.
pub async fn run(config: &Path, args: &VerifyArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    host::ensure_group(&config, &args.group)?;
    let group = args.group.clone();
    let request = if args.cancel {
        Request::CancelVerification { group }
    } else if args.status {
        Request::Verification { group }
    } else {
        let rate_bytes_per_s = args.rate.map(|rate| rate.bytes_per_s());
        Request::Verify { group, repair: args.repair, rate_bytes_per_s }
    };
    let mut shown = ask(&config.agent_socket(), &request).await?;
    let waits = !args.cancel && !args.status;
    if waits {
        shown = or_interrupted(follow(&config.agent_socket(), args, shown), || {
            let group = &args.group;
            format!(
                "the verification of {group} goes on in the agent\n  how far it is:  afterimage verify {group} --status\n  \
                 to give it up:  afterimage verify {group} --cancel"
            )
        })
        .await?;
    }
    if args.json {
        let document = json!({ "version": JSON_VERSION, "group": args.group, "verification": shown });
        emit(&format!("{document:#}\n"))?;
    } else {
        emit(&render(&args.group, shown.as_ref()))?;
    }
    match shown {
        Some(v) if v.mismatched_blocks > v.repaired_blocks => Err(CommandError::failed("")),
        Some(v) if waits && v.state != VerificationState::Finished => {
            Err(CommandError::failed(format!("the verification of {} was given up", args.group)))
        }
        _ => Ok(()),
    }
}

/// Waits for the end of the verification, and shows how far it is. Another one that takes its place is followed too.
async fn follow(
    socket: &Path,
    args: &VerifyArgs,
    mut shown: Option<VerificationStatus>,
) -> Result<Option<VerificationStatus>, CommandError> {
    let mut progress = Progress::new(args.quiet);
    while let Some(v) = shown.as_ref().filter(|v| v.state == VerificationState::Running) {
        progress.show(&work(&args.group, v));
        tokio::time::sleep(POLL).await;
        shown = ask(socket, &Request::Verification { group: args.group.clone() }).await?;
    }
    progress.end();
    Ok(shown)
}

fn work(group: &str, v: &VerificationStatus) -> Work {
    let differ = match (v.mismatched_blocks, v.repaired_blocks) {
        (0, _) => None,
        (found, 0) => Some(format!("{found} blocks differ")),
        (found, repaired) => Some(format!("{found} blocks differed, {repaired} repaired")),
    };
    Work {
        name: format!("verification of {group}"),
        id: v.started_us,
        done_bytes: Some(v.done_bytes),
        total_bytes: Some(v.total_bytes),
        rate_bytes_per_s: None,
        note: differ,
    }
}

async fn ask(socket: &Path, request: &Request) -> Result<Option<VerificationStatus>, CommandError> {
    let answer = call(socket, request).await.and_then(|response| response.into_answer());
    answer.map_err(CommandError::from)
}

/// What is known of a verification, for people.
pub fn render(group: &str, shown: Option<&VerificationStatus>) -> String {
    let Some(v) = shown else { return format!("{group} was never verified\n") };
    let size = |bytes| ByteSize::from_bytes(bytes).approximate();
    let left = v.mismatched_blocks.saturating_sub(v.repaired_blocks);
    let head = match v.state {
        VerificationState::Running => format!("{group} is being verified"),
        VerificationState::Cancelled => format!("the verification of {group} was given up"),
        _ if left > 0 => format!("{group} differs on its standby"),
        _ => format!("{group} is equal on both hosts"),
    };
    let mut lines = vec![
        head,
        format!("  compared   {} of {}", size(v.done_bytes - v.unchecked_bytes), size(v.total_bytes)),
    ];
    if v.unchecked_bytes > 0 {
        lines.push(format!(
            "  left out   {} that could not be read, or are in the standby's journal and not in its volumes yet",
            size(v.unchecked_bytes)
        ));
    }
    if v.mismatched_blocks > 0 {
        lines.push(format!(
            "  differed   {} blocks of 4 KiB, {} repaired",
            v.mismatched_blocks, v.repaired_blocks
        ));
    }
    for d in &v.differing {
        lines
            .push(format!("             volume {}, block {}, {} of them", d.volume, d.first_block, d.blocks));
    }
    if left > 0 && v.state != VerificationState::Running {
        lines.push(format!(
            "do: make sure that the data here is right, then run: afterimage verify {group} --repair"
        ));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use afterimage_contract::status::DifferingBlocks;

    use super::*;

    fn finished() -> VerificationStatus {
        VerificationStatus {
            state: VerificationState::Finished,
            repair: false,
            started_us: 1,
            finished_us: Some(2),
            done_bytes: 1 << 30,
            total_bytes: 1 << 30,
            unchecked_bytes: 0,
            mismatched_blocks: 0,
            repaired_blocks: 0,
            differing: Vec::new(),
            rate_limit_bytes_per_s: None,
        }
    }

    #[test]
    fn equal_copies_need_two_lines() {
        let text = render("orders", Some(&finished()));
        assert_eq!(text, "orders is equal on both hosts\n  compared   1 GiB of 1 GiB\n");
    }

    #[test]
    fn what_differs_is_named_with_what_to_do() {
        let differing = vec![DifferingBlocks { volume: "pgdata".into(), first_block: 7, blocks: 2 }];
        let shown = VerificationStatus { mismatched_blocks: 2, differing, ..finished() };
        let text = render("orders", Some(&shown));
        assert!(text.starts_with("orders differs on its standby\n"), "{text}");
        assert!(text.contains("volume pgdata, block 7, 2 of them"), "{text}");
        assert!(text.contains("do: make sure"), "{text}");
        let repaired = render("orders", Some(&VerificationStatus { repaired_blocks: 2, ..shown }));
        assert!(repaired.starts_with("orders is equal on both hosts\n"), "{repaired}");
        assert!(!repaired.contains("do:"), "{repaired}");
    }
}
