//! Answers the operator's requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use afterimage_contract::admin::{Activation, ErrorCode, Request, Response};
use afterimage_contract::config::Peer;
use afterimage_contract::status::{Daemon, Status};

use crate::clock::Clock;
use crate::open::Host;
use crate::reinstate::{self, Refused};
use crate::status::group_status;
use crate::supervisor::{Phase, Supervisor};
use crate::verify;

/// What the administration socket has to do with.
pub(crate) struct Admin {
    pub node: String,
    pub peer: Peer,
    pub clock: Clock,
    pub host: Host,
    pub groups: BTreeMap<String, Arc<Supervisor>>,
}

impl Admin {
    pub async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Ping => Response::done(),
            Request::Status => Response::ok(&self.status()),
            Request::Activate { group } => match self.groups.get(&group) {
                Some(supervisor) => activate(supervisor).await,
                None => Response::unknown_group(&group),
            },
            Request::Verify { group, repair, rate_bytes_per_s } => {
                self.about(&group, |supervisor| verify::begin(supervisor, repair, rate_bytes_per_s))
            }
            Request::Verification { group } => self.about(&group, verify::report),
            Request::CancelVerification { group } => self.about(&group, verify::cancel),
            Request::PauseStream { group } => self.stream(&group, |supervisor| supervisor.link.pause()),
            Request::ResumeStream { group } => self.stream(&group, |supervisor| supervisor.link.resume()),
            Request::Reinstate { group, divergent } => match self.groups.get(&group) {
                Some(supervisor) => reinstate(supervisor, self.host.clone(), divergent).await,
                None => Response::unknown_group(&group),
            },
            Request::Promote { .. } => Response::error(
                ErrorCode::WrongDaemon,
                "the agent promotes nothing",
                "ask the receiver; `afterimage promote` does",
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

    fn status(&self) -> Status {
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
    let done = main.spawn_blocking(move || reinstate::reinstate(&host, &config, divergent)).await;
    let done = done.unwrap_or_else(|panic| Err(anyhow::Error::new(panic).into()));
    supervisor.look_now().await;
    match done {
        Ok(reinstatement) => {
            tracing::warn!(
                group,
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
                 and gives it up"
            ),
        ),
        Err(failed) => {
            Response::error(ErrorCode::Failed, failed.to_string(), "mend the cause, then try again")
        }
    }
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
