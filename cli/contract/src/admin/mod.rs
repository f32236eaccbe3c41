//! The local administration protocol: how the operator's command talks to the daemons of its host.
//!
//! One JSON object a line, in both directions, over a unix socket that only its owner can open
//! (`state_dir/agent.sock`, `state_dir/receiver.sock`, mode 0600). A request carries [`VERSION`]; each gets
//! one response, in order. The messages are in this module, the two ends in [`call`] and [`serve`].

mod client;
mod divergence;
mod line;
mod server;
#[cfg(test)]
mod tests;
mod when;

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use client::{AdminError, call, call_within};
pub use divergence::{Divergence, DivergentVolume, History, MAX_RANGES, Range};
pub use server::{MAX_CONNECTIONS, REQUEST_TIMEOUT, Server, serve};
pub use when::{At, AtError, format_time};

use crate::status::Position;
use crate::units::ByteSize;

/// Version of the protocol. A daemon refuses another one by name.
pub const VERSION: u32 = 1;
/// Longest response: the status of 64 groups of 64 volumes is below 4 MiB.
pub const MAX_RESPONSE_LEN: ByteSize = ByteSize::from_mib(16);
/// Longest request: names and a time; short, so that hostile clients cannot claim memory.
pub const MAX_REQUEST_LEN: ByteSize = ByteSize::from_kib(64);

/// What can be asked of a daemon. On the wire `"status"` or `{"promote":{"group":"orders",…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Both: answer with nothing.
    Ping,
    /// Both: answer with this daemon's [`crate::status::Status`].
    Status,
    /// Both: read the configuration again and make what can change at once count; answers with a [`Reloaded`].
    Reload,
    /// Receiver: make this host the group's primary; answers with a [`Promotion`].
    Promote {
        /// The group.
        group: String,
        /// Only say what would be done.
        #[serde(default)]
        dry_run: bool,
        /// The point to promote at, as [`At`] reads it; the newest if absent.
        #[serde(default)]
        at: Option<String>,
        /// Also while the primary is connected and answers.
        #[serde(default)]
        force: bool,
    },
    /// Agent: look at the group's role now and serve it if this host is its primary; answers with an
    /// [`Activation`].
    Activate {
        /// The group.
        group: String,
    },
    /// Agent: save what only this host has and make it the group's standby, after it was replaced; answers with a
    /// [`Reinstatement`].
    Reinstate {
        /// The group.
        group: String,
        /// Also where clients were answered here for writes that the other host never saw.
        #[serde(default)]
        divergent: bool,
    },
    /// Agent: how the histories of both hosts differ, and which blocks only this one may have; answers with a
    /// [`Divergence`].
    Divergence {
        /// The group.
        group: String,
    },
    /// Agent: in a split brain, keep the history of this host, which was replaced: it is the primary again; answers
    /// with a [`Kept`].
    KeepLocal {
        /// The group.
        group: String,
    },
    /// Agent: take back the promotion that made this host the primary, as long as nothing was written after it; answers with
    /// a [`RolledBack`].
    RollBack {
        /// The group.
        group: String,
        /// Only say whether it could be done now.
        #[serde(default)]
        dry_run: bool,
    },
    /// Receiver: look at the group's role now and take it over if this host is its standby; answers with a
    /// [`Following`].
    Follow {
        /// The group.
        group: String,
    },
    /// Agent: hold clients, have the peer take over at the last write, and become its standby; answers with a
    /// [`Switchover`].
    Switchover {
        /// The group.
        group: String,
        /// Only say whether it could begin now.
        #[serde(default)]
        dry_run: bool,
    },
    /// Agent: replicate all of volumes that have grown on both hosts; answers with a [`Resize`].
    Resize {
        /// The group.
        group: String,
        /// The volume; every one that has grown if absent.
        #[serde(default)]
        volume: Option<String>,
        /// Only say what would be done.
        #[serde(default)]
        dry_run: bool,
    },
    /// Agent: begin a verification of the group's copies; answers with its
    /// [`crate::status::VerificationStatus`]. While one is under way, it answers with that one.
    Verify {
        /// The group.
        group: String,
        /// Make the standby's blocks that differ equal to the primary's.
        #[serde(default)]
        repair: bool,
        /// The most bytes to read in a second; what is configured if absent.
        #[serde(default)]
        rate_bytes_per_s: Option<u64>,
    },
    /// Agent: answer with the [`crate::status::VerificationStatus`] of the verification under way, or the last one, or
    /// `null`.
    Verification {
        /// The group.
        group: String,
    },
    /// Agent: give the verification up; answers as [`Request::Verification`] does.
    CancelVerification {
        /// The group.
        group: String,
    },
    /// Agent: end the group's stream and do not connect again until told, as if the link were cut.
    PauseStream {
        /// The group.
        group: String,
    },
    /// Agent: undo [`Request::PauseStream`].
    ResumeStream {
        /// The group.
        group: String,
    },
}

impl Request {
    /// How long [`call`] waits for the answer.
    pub fn timeout(&self) -> Duration {
        match self {
            // Both fsync what may be gigabytes of page cache before they answer.
            Self::Promote { .. }
            | Self::Activate { .. }
            | Self::Divergence { .. }
            | Self::KeepLocal { .. }
            | Self::RollBack { .. }
            | Self::Follow { .. } => Duration::from_secs(300),
            // The peer applies what its journal holds.
            Self::Switchover { .. } => Duration::from_secs(3600),
            // Volumes and bitmaps become durable, which may be gigabytes.
            Self::Resize { .. } => Duration::from_secs(300),
            // It copies all that differs.
            Self::Reinstate { .. } => Duration::from_secs(24 * 3600),
            _ => Duration::from_secs(10),
        }
    }
}

/// What a daemon answers: exactly one of `ok` and `error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`] of the daemon.
    pub version: u32,
    /// The outcome.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done; the answer's shape belongs to the request.
    Ok(serde_json::Value),
    /// It was not done, and nothing changed unless the message says so.
    Error(Failure),
}

impl Response {
    /// It was done, and this is the answer.
    pub fn ok<T: Serialize>(answer: &T) -> Self {
        match serde_json::to_value(answer) {
            Ok(value) => Self { version: VERSION, outcome: Outcome::Ok(value) },
            Err(error) => Self::error(
                ErrorCode::Internal,
                format!("the answer cannot be written as JSON: {error}"),
                "report this as a defect",
            ),
        }
    }

    /// It was done, and there is nothing to say.
    pub fn done() -> Self {
        Self { version: VERSION, outcome: Outcome::Ok(serde_json::Value::Null) }
    }

    /// It was not done.
    pub fn error(code: ErrorCode, message: impl Into<String>, action: impl Into<String>) -> Self {
        let failure = Failure { code, message: message.into(), action: action.into() };
        Self { version: VERSION, outcome: Outcome::Error(failure) }
    }

    /// The group is not configured here.
    pub fn unknown_group(group: &str) -> Self {
        Self::error(
            ErrorCode::UnknownGroup,
            format!("there is no group {group} in this daemon's configuration"),
            "check the name; after a change of the configuration restart the daemon",
        )
    }

    /// The answer, in the shape that belongs to the request.
    pub fn into_answer<T: DeserializeOwned>(self) -> Result<T, AdminError> {
        match self.outcome {
            Outcome::Ok(value) => serde_json::from_value(value).map_err(AdminError::Answer),
            Outcome::Error(failure) => Err(AdminError::Failed(failure)),
        }
    }
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}; {action}")]
pub struct Failure {
    /// What kind of reason.
    pub code: ErrorCode,
    /// What happened, to which thing.
    pub message: String,
    /// What to do.
    pub action: String,
}

/// The kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request cannot be read, or has a value that makes no sense.
    BadRequest,
    /// The request has another protocol version.
    Version,
    /// The group is not configured here.
    UnknownGroup,
    /// This daemon does not do that; another one does.
    WrongDaemon,
    /// It would be unsafe: the command exits with status 3.
    Refused,
    /// Too much is under way; try again.
    Busy,
    /// It was tried and failed.
    Failed,
    /// A defect of the daemon.
    Internal,
    /// A kind that this release does not know: the daemon is newer.
    #[serde(other)]
    Unrecognized,
}

/// Answer to [`Request::Promote`]: what was done, or with `dry_run` would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Promotion {
    /// The group.
    pub group: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The new generation in hexadecimal; `null` with `dry_run`.
    pub generation: Option<String>,
    /// The position that the volumes now show: the fork from the old generation.
    pub position: Position,
    /// When the primary admitted the last write in the image: microseconds since 1970 by the primary's clock.
    pub time_us: Option<u64>,
    /// When this host last heard of the primary: microseconds since 1970.
    pub primary_seen_us: Option<u64>,
    /// What is lost of the writes that the primary acknowledged.
    pub loss: Loss,
    /// What the standby had after the chosen point and gives up; `null` when the newest point was chosen.
    pub discarded: Option<Discarded>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// What a promotion loses of the acknowledged writes, apart from what [`Promotion::discarded`] gives up by
/// choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Loss {
    /// Nothing: the primary's lease proves that this host has every acknowledged write.
    Nothing,
    /// Not known: the primary may have acknowledged writes after this time that never arrived.
    Unknown {
        /// Microseconds since 1970; `null` if not even that is known.
        since_us: Option<u64>,
    },
}

/// What lies after a chosen point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// Writes.
    pub records: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// The newest sequence given up.
    pub newest_sequence: u64,
    /// When the primary admitted that one: microseconds since 1970.
    pub newest_time_us: Option<u64>,
}

/// Answer to [`Request::KeepLocal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The group.
    pub group: String,
    /// The generation that goes on from this host's history.
    pub generation: String,
    /// Whether it is served already; if not, it is once the peer has given way.
    pub serving: bool,
}

/// Answer to [`Request::Reinstate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reinstatement {
    /// The group.
    pub group: String,
    /// The file with what only this host had; `null` if there was nothing.
    pub salvage: Option<String>,
    /// Bytes of the volumes in it.
    pub saved_bytes: u64,
    /// Blocks that may differ from the peer's and will come from there.
    pub blocks: u64,
    /// Whether it is not known which blocks differ, so that all are compared.
    pub compares_all: bool,
}

/// Answer to [`Request::RollBack`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The group.
    pub group: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The peer, which is the primary of the old generation.
    pub peer: String,
    /// The generation that the promotion had begun, in hexadecimal.
    pub generation: String,
    /// The position of the old generation that the image stands for again.
    pub position: Position,
}

/// Answer to [`Request::Follow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// The group.
    pub group: String,
    /// Whether this host is its standby, and ready to be one.
    pub standby: bool,
}

/// Answer to [`Request::Switchover`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switchover {
    /// The group.
    pub group: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The peer, which is the primary now.
    pub peer: String,
    /// The last write in the image that it took over; `null` with `dry_run`.
    pub sequence: Option<u64>,
    /// How long clients were held here until this host knew that the peer had taken over, in microseconds; `null` with
    /// `dry_run`.
    pub held_us: Option<u64>,
}

/// Answer to [`Request::Resize`]: what was done, or with `dry_run` would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// The group.
    pub group: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The volumes that have grown.
    pub volumes: Vec<ResizedVolume>,
    /// Whether the standby has taken the new sizes over; `null` with `dry_run`. If not, it does with its next session.
    pub standby_knows: Option<bool>,
    /// How long clients were held, at most, in microseconds; `null` with `dry_run`.
    pub held_us: Option<u64>,
}

/// A volume that has grown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizedVolume {
    /// Its name.
    pub name: String,
    /// Its size until now, in bytes.
    pub from_bytes: u64,
    /// Its size from now on, in bytes.
    pub to_bytes: u64,
}

/// Answer to [`Request::Reload`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The keys that have changed and count now.
    pub applied: Vec<String>,
    /// The keys that have changed and count after a restart of the daemon.
    pub restart: Vec<String>,
    /// What is legal in the new configuration and probably not meant.
    pub warnings: Vec<String>,
}

/// Answer to [`Request::Activate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// The group.
    pub group: String,
    /// Whether the agent serves the group now.
    pub serving: bool,
    /// Where: socket paths, `host:port`, `/dev/nbdN`.
    pub exports: Vec<String>,
}
