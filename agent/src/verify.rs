//! Verifications as the operator asks for them and sees them.

use afterimage_contract::admin::{ErrorCode, Response};
use afterimage_contract::config;
use afterimage_contract::status::{DifferingBlocks, VerificationState, VerificationStatus, Warning};
use afterimage_contract::units::ByteRate;
use afterimage_events::{Event, event};
use afterimage_protocol::BLOCK_BYTES;
use afterimage_protocol::source::{Verification, VerifyOptions, VerifyState};

use crate::group::Group;
use crate::supervisor::{Phase, Supervisor};

/// Begins a verification, or joins the one under way.
pub(crate) fn begin(supervisor: &Supervisor, repair: bool, rate: Option<u64>) -> Response {
    with_group(supervisor, |group, config| {
        let rate = rate.unwrap_or(config.verify.rate.bytes_per_s());
        if rate < config::MIN_MAX_RATE.bytes_per_s() {
            let (rate, least) = (ByteRate::from_bytes_per_s(rate), config::MIN_MAX_RATE);
            return Response::error(
                ErrorCode::BadRequest,
                format!("{rate} is too slow"),
                format!("use at least {least}"),
            );
        }
        let begun = group.feed(|source, now| source.verify(now, VerifyOptions { repair, rate }));
        if begun {
            event!(Event::VerifyBegun, group = group.name, repair, rate, "a verification begins");
        }
        let report = group.look(|source| source.verification().cloned());
        match report {
            Some(report) if !begun && repair && !report.options.repair => Response::error(
                ErrorCode::Busy,
                format!("a verification of {} without repair is under way", group.name),
                format!("wait for it, or run `afterimage verify {} --cancel` first", group.name),
            ),
            report => Response::ok(&report.map(|report| status(&report, group, config))),
        }
    })
}

/// What is known of the verification under way, or the last one.
pub(crate) fn report(supervisor: &Supervisor) -> Response {
    with_group(supervisor, |group, config| Response::ok(&shown(group, config)))
}

/// Gives the verification up.
pub(crate) fn cancel(supervisor: &Supervisor) -> Response {
    with_group(supervisor, |group, config| {
        if group.feed(|source, now| source.cancel_verification(now)) {
            event!(Event::VerifyCancelled, group = group.name, "the verification was given up");
        }
        Response::ok(&shown(group, config))
    })
}

fn with_group(
    supervisor: &Supervisor,
    answer: impl FnOnce(&std::sync::Arc<Group>, &config::Group) -> Response,
) -> Response {
    match supervisor.phase() {
        Phase::Served { group, .. } => answer(&group, &supervisor.current()),
        _ => Response::error(
            ErrorCode::Refused,
            format!("this host is not the primary of {}", supervisor.config.name),
            "verify on the host that serves the volumes; see: afterimage status",
        ),
    }
}

/// Says how a verification has ended, if it has.
pub(crate) fn tell(group: &str, report: &Verification) {
    let (mismatched, repaired) = (report.mismatched_blocks, report.repaired_blocks);
    if report.state != VerifyState::Finished {
        return;
    }
    match mismatched {
        0 => event!(Event::VerifyEnded, group = group, "a verification has ended: both copies are alike"),
        _ => event!(
            Event::VerifyFound,
            group = group,
            mismatched,
            repaired,
            "a verification found blocks that differ"
        ),
    }
}

/// The verification for the status document.
pub(crate) fn shown(group: &Group, config: &config::Group) -> Option<VerificationStatus> {
    let report = group.look(|source| source.verification().cloned())?;
    Some(status(&report, group, config))
}

/// What the operator should know of it.
pub(crate) fn warning(shown: &VerificationStatus, group: &str) -> Option<Warning> {
    let left = shown.mismatched_blocks.saturating_sub(shown.repaired_blocks);
    let running = shown.state == VerificationState::Running && shown.repair;
    (left > 0 && !running).then(|| {
        Warning::new(
            "copies_differ",
            format!("a verification of {group} found {left} blocks of 4 KiB that differ on the standby"),
            format!(
                "make sure that the data here is right, then make the standby equal to it: \
                 afterimage verify {group} --repair"
            ),
        )
    })
}

fn status(report: &Verification, group: &Group, config: &config::Group) -> VerificationStatus {
    let named = |r: &afterimage_protocol::BlockRange| DifferingBlocks {
        volume: config.volumes.get(r.volume.0 as usize).map_or_else(String::new, |v| v.name.clone()),
        first_block: r.first,
        blocks: r.count,
    };
    let total_bytes = group.volumes.iter().map(|v| v.size_bytes()).sum();
    VerificationStatus {
        state: match report.state {
            VerifyState::UnderWay => VerificationState::Running,
            VerifyState::Finished => VerificationState::Finished,
            VerifyState::Cancelled => VerificationState::Cancelled,
        },
        repair: report.options.repair,
        started_us: report.started.0,
        finished_us: report.ended.map(|t| t.0),
        // A last block may be short.
        done_bytes: (report.passed_blocks * BLOCK_BYTES).min(total_bytes),
        total_bytes,
        unchecked_bytes: (report.unchecked_blocks * BLOCK_BYTES).min(total_bytes),
        mismatched_blocks: report.mismatched_blocks,
        repaired_blocks: report.repaired_blocks,
        differing: report.differing.iter().map(named).collect(),
        rate_limit_bytes_per_s: Some(report.options.rate).filter(|rate| *rate > 0),
    }
}
