//! Answers the operator's requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use afterimage_contract::admin::{Activation, ErrorCode, Kept, Request, Response, RolledBack, Switchover};
use afterimage_contract::config::Peer;
use afterimage_contract::hooks::Event;
use afterimage_contract::reload::Reloader;
use afterimage_contract::status::{Daemon, Position, Role, Status};
use afterimage_events::{Event as Logged, event};
use afterimage_protocol::source::{RolesStay, Source};
use afterimage_protocol::state::CannotRollBack;

use crate::clock::Clock;
use crate::divergence::divergence;
use crate::open::Host;
use crate::reinstate::{self, Refused};
use crate::resize;
use crate::status::group_status;
use crate::supervisor::{Phase, Supervisor};
use crate::verify;

/// How long clients are held for what is under way to get to the standby, before a switchover is given up.
const SWITCHOVER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take until the peer has refused this host once more: it is asked every second.
const GIVE_WAY_TIMEOUT: Duration = Duration::from_secs(8);
const GIVE_WAY_POLL: Duration = Duration::from_millis(50);

/// What the administration socket has to do with.
pub(crate) struct Admin {
    pub node: String,
    pub peer: Peer,
    pub clock: Clock,
    pub host: Host,
    pub groups: BTreeMap<String, Arc<Supervisor>>,
    pub reloader: Arc<Reloader>,
}

impl Admin {
    pub async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Ping => Response::done(),
            Request::Status => Response::ok(&self.status()),
            Request::Reload => self.reloader.reload().await,
            Request::Activate { group } => match self.groups.get(&group) {
                Some(supervisor) => activate(supervisor).await,
                None => Response::unknown_group(&group),
            },
            Request::Verify { group, repair, rate_bytes_per_s } => {
                self.about(&group, |supervisor| verify::begin(supervisor, repair, rate_bytes_per_s))
            }
            Request::Verification { group } => self.about(&group, verify::report),
            Request::CancelVerification { group } => self.about(&group, verify::cancel),
            Request::PauseStream { group } => self.stream(&group, |supervisor| {
                event!(Logged::StreamPaused, group = group, "an operator has paused the stream");
                supervisor.link.pause();
            }),
            Request::ResumeStream { group } => self.stream(&group, |supervisor| supervisor.link.resume()),
            Request::Reinstate { group, divergent } => match self.groups.get(&group) {
                Some(supervisor) => reinstate(supervisor, self.host.clone(), divergent).await,
                None => Response::unknown_group(&group),
            },
            Request::Divergence { group } => match self.groups.get(&group) {
                Some(supervisor) => divergence(supervisor, self.host.clone()).await,
                None => Response::unknown_group(&group),
            },
            Request::KeepLocal { group } => match self.groups.get(&group) {
                Some(supervisor) => keep_own(supervisor, self.host.clone()).await,
                None => Response::unknown_group(&group),
            },
            Request::Switchover { group, dry_run } => match self.groups.get(&group) {
                Some(supervisor) => switchover(supervisor, &self.peer.name, dry_run).await,
                None => Response::unknown_group(&group),
            },
            Request::RollBack { group, dry_run } => match self.groups.get(&group) {
                Some(supervisor) => roll_back(supervisor, &self.peer.name, dry_run).await,
                None => Response::unknown_group(&group),
            },
            Request::Resize { group, volume, dry_run } => match self.groups.get(&group) {
                Some(supervisor) => {
                    resize::resize(supervisor, &self.peer.name, volume.as_deref(), dry_run).await
                }
                None => Response::unknown_group(&group),
            },
            Request::Promote { .. } => Response::error(
                ErrorCode::WrongDaemon,
                "the agent promotes nothing",
                "ask the receiver; `afterimage promote` does",
            ),
            Request::Follow { .. } => Response::error(
                ErrorCode::WrongDaemon,
                "the agent is the standby of nothing",
                "ask the receiver; `afterimage promote --rollback` does",
            ),
        }
    }

    fn about(&self, group: &str, answer: impl FnOnce(&Supervisor) -> Response) -> Response {
        self.groups.get(group).map_or_else(|| Response::unknown_group(group), |supervisor| answer(supervisor))
    }

    fn stream(&self, group: &str, switch: impl FnOnce(&Supervisor)) -> Response {
        match self.groups.get(group) {
            Some(supervisor) => {
                switch(supervisor);
                Response::done()
            }
            None => Response::unknown_group(group),
        }
    }

    pub fn status(&self) -> Status {
        let mut status = Status::new(&self.node, self.clock.now().0);
        let since_us = Some(self.clock.origin().0);
        status.agent = Some(Daemon { release: env!("CARGO_PKG_VERSION").to_owned(), since_us });
        let groups = self.groups.values().filter_map(|supervisor| group_status(supervisor, &self.peer));
        status.groups = groups.collect();
        status
    }
}

async fn reinstate(supervisor: &Supervisor, host: Host, divergent: bool) -> Response {
    let (config, main) = (supervisor.config.clone(), host.main.clone());
    let group = config.name.clone();
    // Nothing of the group is held on to while it is given up.
    let served = matches!(supervisor.phase(), Phase::Served { .. });
    if divergent
        && served
        && let Err(refused) = give_way(supervisor).await
    {
        return refused;
    }
    let done = main.spawn_blocking(move || reinstate::reinstate(&host, &config, divergent)).await;
    let done = done.unwrap_or_else(|panic| Err(anyhow::Error::new(panic).into()));
    supervisor.look_now().await;
    match done {
        Ok(reinstatement) => {
            event!(
                Logged::Reinstated,
                group = group,
                blocks = reinstatement.blocks,
                salvage = reinstatement.salvage,
                "reinstated: this host is a standby"
            );
            Response::ok(&reinstatement)
        }
        Err(refused @ Refused::NotFenced { .. }) => Response::error(
            ErrorCode::Refused,
            refused.to_string(),
            format!("only a host that was replaced is reinstated; see: afterimage status {group}"),
        ),
        Err(refused @ Refused::SplitBrain { .. }) => Response::error(
            ErrorCode::Refused,
            refused.to_string(),
            format!(
                "say which side stays: `afterimage resolve {group} --keep peer` here saves what only this host has \
                 and gives it up; `afterimage resolve {group} --keep local` here, then --keep peer on the other host, \
                 keeps it"
            ),
        ),
        Err(failed @ (Refused::NotKept { .. } | Refused::Failed(_))) => {
            Response::error(ErrorCode::Failed, failed.to_string(), "mend the cause, then try again")
        }
    }
}

/// In a split brain, has a group that this host serves give way to its peer: it is fenced on return.
async fn give_way(supervisor: &Supervisor) -> Result<(), Response> {
    let group = &supervisor.config.name;
    if supervisor.link.state().split_brain {
        event!(
            Logged::GivingWay,
            group = group,
            "an operator wants the peer's history kept: this host gives way"
        );
        supervisor.link.give_way(true);
        let began = Instant::now();
        let served = || matches!(supervisor.phase(), Phase::Served { .. });
        // Once it gives way, it takes as long as it takes to get the volumes to the disk.
        while served() && (supervisor.link.state().gave_way || began.elapsed() < GIVE_WAY_TIMEOUT) {
            tokio::time::sleep(GIVE_WAY_POLL).await;
        }
        supervisor.link.give_way(false);
        if matches!(supervisor.phase(), Phase::Fenced) {
            return Ok(());
        }
    }
    Err(Response::error(
        ErrorCode::Refused,
        format!("{group} is served here, and its peer was not told to keep its own history in a split brain"),
        format!("first, on the other host: afterimage resolve {group} --keep local; then here again"),
    ))
}

/// In a split brain, keeps the history of this host, which was replaced.
async fn keep_own(supervisor: &Supervisor, host: Host) -> Response {
    let (config, main) = (supervisor.config.clone(), host.main.clone());
    let group = config.name.clone();
    // What was the case a moment ago, such as a state that was just being made, need not be any more.
    supervisor.look_now().await;
    if matches!(supervisor.phase(), Phase::Served { .. } | Phase::Standby) {
        return not_kept(&group, &"this host was not replaced");
    }
    let done = main.spawn_blocking(move || reinstate::keep_own(&host, &config)).await;
    let done = done.unwrap_or_else(|panic| Err(anyhow::Error::new(panic).into()));
    supervisor.look_now().await;
    match done {
        Ok(generation) => {
            event!(Logged::HistoryKept, group = group, %generation, "an operator keeps this host's history: it is the primary again");
            let serving = matches!(supervisor.phase(), Phase::Served { exports: Some(_), .. });
            Response::ok(&Kept { group, generation: generation.to_string(), serving })
        }
        Err(Refused::NotKept { why, .. }) => not_kept(&group, &why),
        Err(failed) => {
            Response::error(ErrorCode::Failed, failed.to_string(), "mend the cause, then try again")
        }
    }
}

fn not_kept(group: &str, why: &dyn std::fmt::Display) -> Response {
    Response::error(
        ErrorCode::Refused,
        format!("{group} stays as it is on this host: {why}"),
        format!(
            "only the fenced side of a split brain can keep its own history; see: afterimage status {group}; a host \
             that was replaced otherwise is brought home with: afterimage reinstate {group}"
        ),
    )
}

async fn switchover(supervisor: &Supervisor, peer: &str, dry_run: bool) -> Response {
    let name = supervisor.config.name.clone();
    let Phase::Served { group, .. } = supervisor.phase() else {
        return Response::error(
            ErrorCode::Refused,
            format!("this host is not the primary of {name}"),
            format!("a switchover is asked for on the primary; see: afterimage status {name}"),
        );
    };
    if !dry_run && group.look(Source::may_hand_over).is_ok() {
        let facts = supervisor.facts(&group, Role::Primary);
        if let Err(error) = supervisor.hooks.run(Event::BeforeSwitchover, &facts).await {
            return Response::error(
                ErrorCode::Failed,
                format!("{name} was not switched over, and nothing has changed: {error}"),
                "mend the hook and try again; or set hooks.before_switchover.on_failure = \"continue\" and run \
                 `afterimage config reload`",
            );
        }
    }
    let held_since = Instant::now();
    let outcome = if dry_run {
        group.look(Source::may_hand_over).map(|()| None)
    } else {
        event!(Logged::SwitchoverBegun, group = name, "clients are held: the peer is to take over");
        group.hand_over(SWITCHOVER_TIMEOUT).await.map(Some)
    };
    match outcome {
        Ok(sequence) => Response::ok(&Switchover {
            group: name,
            dry_run,
            peer: peer.to_owned(),
            sequence: sequence.map(|sequence| sequence.0),
            held_us: sequence.map(|_| u64::try_from(held_since.elapsed().as_micros()).unwrap_or(u64::MAX)),
        }),
        Err(why) => {
            let code = match why {
                RolesStay::UnderWay | RolesStay::Resizing => ErrorCode::Busy,
                RolesStay::NotConnected | RolesStay::CatchingUp => ErrorCode::Refused,
                _ => ErrorCode::Failed,
            };
            Response::error(
                code,
                format!("{name} was not switched over, and is served here as before: {why}"),
                format!("try again once the standby has everything; see: afterimage status {name}"),
            )
        }
    }
}

/// Takes a promotion back. The group is free for the receiver on return.
async fn roll_back(supervisor: &Supervisor, peer: &str, dry_run: bool) -> Response {
    let name = supervisor.config.name.clone();
    // A promotion a moment ago may not have been noticed here.
    supervisor.look_now().await;
    let Phase::Served { group, .. } = supervisor.phase() else {
        return not_rolled_back(&name, peer, CannotRollBack::NotPromoted);
    };
    let generation = group.look(|source| source.position().generation);
    let outcome = if dry_run {
        group.look(Source::may_roll_back)
    } else {
        let ended = group.roll_back();
        // Nothing of the group is held on to while it is given up.
        drop(group);
        // Without an answer the agent stops.
        ended.await.unwrap_or(Err(CannotRollBack::Failed))
    };
    match outcome {
        Ok(position) => {
            if !dry_run {
                while matches!(supervisor.phase(), Phase::Served { .. }) {
                    tokio::time::sleep(GIVE_WAY_POLL).await;
                }
                supervisor.look_now().await;
            }
            let position =
                Position { generation: position.generation.to_string(), sequence: position.sequence.0 };
            let (group, peer) = (name, peer.to_owned());
            Response::ok(&RolledBack { group, dry_run, peer, generation: generation.to_string(), position })
        }
        Err(why) => not_rolled_back(&name, peer, why),
    }
}

fn not_rolled_back(group: &str, peer: &str, why: CannotRollBack) -> Response {
    let (code, action) = match why {
        CannotRollBack::NotPromoted => (
            ErrorCode::Refused,
            format!("only the host that was promoted rolls that back; see: afterimage status {group}"),
        ),
        CannotRollBack::Real => (
            ErrorCode::Refused,
            format!(
                "{peer} cannot go on from before that. To have it back: `afterimage reinstate {group}` there, if it is \
                 fenced; then, here: afterimage switchover {group}"
            ),
        ),
        CannotRollBack::UnderWay => (ErrorCode::Busy, format!("wait for it; see: afterimage status {group}")),
        CannotRollBack::Failed => (
            ErrorCode::Failed,
            format!(
                "whether it was written is found when the disk is mended and afterimage-agent started again; see: \
                 afterimage status {group}"
            ),
        ),
    };
    Response::error(code, format!("the promotion of {group} is not rolled back: {why}"), action)
}

async fn activate(supervisor: &Supervisor) -> Response {
    supervisor.look_now().await;
    let group = supervisor.config.name.clone();
    match supervisor.phase() {
        Phase::Served { exports: Some(exports), .. } => {
            let exports = exports.iter().flat_map(|exported| exported.at.clone()).collect();
            Response::ok(&Activation { group, serving: true, exports })
        }
        Phase::Failed(error) => Response::error(
            ErrorCode::Failed,
            format!("the group {group} cannot be served: {:#}", error.error),
            "mend the cause, then try again",
        ),
        Phase::Served { exports: None, .. } | Phase::Starting | Phase::Standby | Phase::Fenced => {
            Response::ok(&Activation { group, serving: false, exports: Vec::new() })
        }
    }
}
