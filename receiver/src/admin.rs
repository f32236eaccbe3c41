//! What the operator asks for over the administration socket.

use std::sync::Arc;

use afterimage_contract::admin::{
    At, AtError, Discarded, ErrorCode, Following, Loss, Promotion, Request, Response, format_time,
};
use afterimage_contract::status::Position;
use afterimage_protocol::target::{self, CannotPromote, NoSuchPoint, Wanted};
use afterimage_protocol::{Generation, Sequence, Time};
use tokio::sync::oneshot;

use crate::group::{Group, Input, PromoteError, PromoteRequest, Promoted, fresh_generation};
use crate::node::Node;
use crate::{hooks, status};

/// Answers one request.
pub async fn answer(node: Arc<Node>, request: Request) -> Response {
    match request {
        Request::Ping => Response::done(),
        Request::Status => Response::ok(&status::report(&node)),
        Request::Reload => node.reloader.reload().await,
        Request::Promote { group, dry_run, at, force } => match (node.group(&group), wanted(at.as_deref())) {
            (None, _) => Response::unknown_group(&group),
            (_, Err(error)) => Response::error(
                ErrorCode::BadRequest,
                error.to_string(),
                "nothing was done; name another point",
            ),
            (Some(group), Ok(at)) => promote(&node, group, dry_run, at, force).await,
        },
        Request::Follow { group } => match node.group(&group) {
            None => Response::unknown_group(&group),
            Some(group) => follow(group).await,
        },
        Request::Activate { .. }
        | Request::RollBack { .. }
        | Request::Reinstate { .. }
        | Request::Divergence { .. }
        | Request::KeepLocal { .. }
        | Request::Switchover { .. }
        | Request::Resize { .. }
        | Request::Verify { .. }
        | Request::Verification { .. }
        | Request::CancelVerification { .. }
        | Request::PauseStream { .. }
        | Request::ResumeStream { .. } => Response::error(
            ErrorCode::WrongDaemon,
            "that is the agent's work, and this is the receiver",
            "ask on the agent's socket",
        ),
    }
}

fn wanted(at: Option<&str>) -> Result<Option<Wanted>, AtError> {
    let point = |at: &str| {
        Ok(match at.parse()? {
            At::Sequence(sequence) => Wanted::Sequence(Sequence(sequence)),
            At::Time { us } => Wanted::Time(Time(us)),
            At::Bookmark(_) => Wanted::Bookmark,
        })
    };
    at.map(point).transpose()
}

async fn promote(
    node: &Arc<Node>,
    group: &Group,
    dry_run: bool,
    at: Option<Wanted>,
    force: bool,
) -> Response {
    let generation = match fresh_generation() {
        Ok(generation) => generation,
        Err(error) => {
            return Response::error(
                ErrorCode::Failed,
                format!("the system gives no random numbers: {error}"),
                "try again",
            );
        }
    };
    // A hook may put the other host out of service: it is not run for a promotion that would be refused.
    let would = match ask(group, true, at, generation).await {
        Ok(would) => would,
        Err(error) => return refusal(group.name(), &error),
    };
    if dry_run {
        return Response::ok(&promotion(group.name(), None, would));
    }
    if !force && primary_answers(group).await {
        return Response::error(
            ErrorCode::Refused,
            format!("group {} was not promoted: its primary is connected and answers", group.name()),
            format!(
                "to change the roles as planned, on the primary: afterimage switchover {0}; if it must not go on, here: \
                 afterimage promote {0} --force",
                group.name()
            ),
        );
    }
    if let Err(error) = hooks::before_promotion(node, group.name(), &would).await {
        return Response::error(
            ErrorCode::Failed,
            format!("group {} was not promoted, and nothing has changed: {error}", group.name()),
            "mend the hook and promote again; or set hooks.before_promotion.on_failure = \"continue\" and run \
             `afterimage config reload`",
        );
    }
    match ask(group, false, at, generation).await {
        Ok(promoted) => {
            hooks::after_promotion(node, group.name(), generation, &promoted);
            Response::ok(&promotion(group.name(), Some(generation), promoted))
        }
        Err(error) => refusal(group.name(), &error),
    }
}

/// Takes the group over if this host is its standby.
async fn follow(group: &Group) -> Response {
    let (answer, outcome) = oneshot::channel();
    group.send(Input::Follow(answer));
    let standby = outcome.await.unwrap_or_default();
    Response::ok(&Following { group: group.name().to_owned(), standby })
}

/// Whether the primary is there and well.
async fn primary_answers(group: &Group) -> bool {
    let snapshot = group.snapshot();
    let Some(link) = snapshot.link else { return false };
    link.is_answered(snapshot.numbers.applied.unwrap_or_default()).await
}

async fn ask(
    group: &Group,
    dry_run: bool,
    at: Option<Wanted>,
    generation: Generation,
) -> Result<Promoted, PromoteError> {
    let (answer, outcome) = oneshot::channel();
    group.send(Input::Promote(PromoteRequest { dry_run, at, generation, answer }));
    outcome.await.unwrap_or(Err(PromoteError::Stopping))
}

fn promotion(group: &str, generation: Option<Generation>, promoted: Promoted) -> Promotion {
    let mut warnings = Vec::new();
    if promoted.connected && generation.is_none() {
        warnings.push("the primary is connected: a promotion ends its session and fences it".to_owned());
    }
    let position = promoted.position;
    let loss = loss(&promoted);
    let discarded = promoted.discarded.map(|discarded| Discarded {
        records: discarded.records,
        bytes: discarded.bytes,
        newest_sequence: discarded.newest.map_or(position.sequence.0, |newest| newest.sequence.0),
        newest_time_us: discarded.newest.and_then(|newest| newest.time).map(|time| time.0),
    });
    Promotion {
        group: group.to_owned(),
        dry_run: generation.is_none(),
        generation: generation.map(|g| g.to_string()),
        position: Position { generation: position.generation.to_string(), sequence: position.sequence.0 },
        time_us: promoted.time.map(|t| t.0),
        primary_seen_us: promoted.source_seen.map(|t| t.0),
        loss,
        discarded,
        warnings,
    }
}

fn loss(promoted: &Promoted) -> Loss {
    match promoted.loss {
        target::Loss::Nothing => Loss::Nothing,
        // All that was admitted up to the last write in the image is in it too.
        target::Loss::Unknown { since } => Loss::Unknown { since_us: since.max(promoted.time).map(|t| t.0) },
    }
}

fn refusal(group: &str, error: &PromoteError) -> Response {
    let (code, action) = match error {
        PromoteError::Primary(_) | PromoteError::ConfiguredPrimary => {
            (ErrorCode::Refused, "nothing needs doing here; see: afterimage status")
        }
        PromoteError::Cannot(CannotPromote::UnderWay) => {
            (ErrorCode::Busy, "wait for it to end; see: afterimage status")
        }
        PromoteError::Cannot(CannotPromote::Failed(_)) | PromoteError::Failed(_) => {
            (ErrorCode::Failed, "mend what failed, then promote again; see: afterimage status")
        }
        PromoteError::Cannot(CannotPromote::NoSuchPoint(range)) => {
            return Response::error(
                ErrorCode::Refused,
                format!("group {group} was not promoted: {error}"),
                selectable(range),
            );
        }
        PromoteError::Cannot(_) => (ErrorCode::Refused, "see: afterimage status"),
        PromoteError::Stopping => (ErrorCode::Failed, "start the receiver, then promote again"),
    };
    Response::error(code, format!("group {group} was not promoted: {error}"), action)
}

/// What `--at` can be, for a person.
fn selectable(range: &NoSuchPoint) -> String {
    let NoSuchPoint { oldest, oldest_timed, newest } = range;
    let mut text = format!("choose a sequence from {} to {}", oldest.sequence, newest.sequence);
    if let (Some(from), Some(to)) = (oldest_timed.and_then(|point| point.time), newest.time) {
        text += &format!(
            ", or a time from {} (of sequence {}) on; the newest is of {}",
            format_time(from.0),
            oldest_timed.map_or(oldest.sequence, |point| point.sequence),
            format_time(to.0)
        );
    }
    text + "; there are no bookmarks yet"
}
