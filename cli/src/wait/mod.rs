//! `afterimage wait`: until a group is protected, or what its standby has is in the volumes. `judge` decides by what the
//! status shows; this asks for it.

mod judge;

use std::path::Path;
use std::time::{Duration, Instant};

use afterimage_contract::config::Config;
use afterimage_contract::status::GroupStatus;
use afterimage_contract::units::format_duration;
use afterimage_events::Event;
use serde_json::json;

use crate::args::{Goal, WaitArgs};
use crate::exit::CommandError;
use crate::host;
use crate::progress::{Progress, or_interrupted};
use crate::status::Note;
use crate::text::{emit, span};
use judge::{Judge, Verdict};

/// Version of the JSON that `wait --json` prints.
pub const JSON_VERSION: u32 = 1;
/// How often the daemons are asked.
const POLL: Duration = Duration::from_millis(500);

/// How the waiting ended.
struct Ending {
    outcome: &'static str,
    obstacle: Option<Note>,
    status: Option<GroupStatus>,
}

/// Waits for a group of this host.
pub async fn run(config: &Path, args: &WaitArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    host::ensure_group(&config, &args.group)?;
    let goal = args.goal;
    if goal == Goal::Applied && config.groups.get(&args.group).is_some_and(|g| !g.history.is_zero()) {
        return Err(CommandError::failed(format!(
            "what the standby of {} has is applied only when it is older than its history, as configured; nothing was \
             waited for: use --for protected, or shorten history",
            args.group
        )));
    }
    let began = Instant::now();
    let group = &args.group;
    let ending = or_interrupted(wait(&config, args, began), || {
        format!("{group} is not {} yet; the daemons go on; see: afterimage status {group}", goal.name())
    })
    .await?;
    if args.json {
        let document = json!({
            "version": JSON_VERSION,
            "group": group,
            "for": goal.name(),
            "outcome": ending.outcome,
            "waited_s": began.elapsed().as_secs_f64(),
            "event": ending.obstacle.as_ref().and_then(|o| o.event).map(Event::id),
            "reason": ending.obstacle.as_ref().map(|o| &o.text),
            "action": ending.obstacle.as_ref().and_then(|o| o.action.as_ref()),
            "status": ending.status,
        });
        emit(&format!("{document:#}\n"))?;
    }
    let Some(obstacle) = ending.obstacle else {
        let waited = span(began.elapsed().as_secs());
        let is = format!("{group} {} (waited {waited})\n", judge::reached(goal, ending.status.as_ref()));
        return if args.json { Ok(()) } else { emit(&is) };
    };
    let head = match args.timeout.filter(|_| ending.outcome == "timeout") {
        Some(limit) => format!("{group} is not {} after {}", goal.name(), format_duration(limit)),
        None => format!("{group} cannot be {} before somebody acts", goal.name()),
    };
    let advice = obstacle.advice().map(|advice| format!("\n{advice}")).unwrap_or_default();
    Err(CommandError::failed(format!("{head}: {}{advice}", obstacle.head())))
}

async fn wait(config: &Config, args: &WaitArgs, began: Instant) -> Result<Ending, CommandError> {
    let mut judge = Judge::new(&args.group, args.goal);
    let mut progress = Progress::new(args.quiet);
    loop {
        let seen = host::status(config).await;
        let silence = match &seen {
            Ok(status) => status.warnings.first().map(|warning| warning.text.clone()),
            Err(error) => Some(error.message.clone()),
        };
        let status = seen.ok().and_then(|s| s.groups.into_iter().find(|group| group.name == args.group));
        let verdict = judge.look(began.elapsed(), status.as_ref(), silence.as_deref());
        let late = args.timeout.is_some_and(|limit| began.elapsed() >= limit);
        let (outcome, obstacle) = match verdict {
            Verdict::Reached => {
                progress.end();
                return Ok(Ending { outcome: "reached", obstacle: None, status });
            }
            Verdict::Never(obstacle) => ("impossible", obstacle),
            Verdict::Wait(_, obstacle) if late => ("timeout", obstacle),
            Verdict::Wait(work, _) => {
                progress.show(&work);
                let left = args.timeout.map_or(POLL, |limit| limit.saturating_sub(began.elapsed()));
                tokio::time::sleep(POLL.min(left)).await;
                continue;
            }
        };
        progress.abandon();
        return Ok(Ending { outcome, obstacle: Some(obstacle), status });
    }
}
