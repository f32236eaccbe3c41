//! The status document: what `afterimage status --json` prints, described in `docs/status.md`.
//!
//! Each daemon reports the groups it serves in a [`Status`] of its own; [`merge`] makes one document of a
//! host out of the two. What is not known is `null`, never 0 and never left out. A field may be added without
//! a new [`VERSION`]; one that is removed or changes its meaning needs it. Readers ignore fields they do not
//! know.

mod merge;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use merge::{DaemonReport, merge};

use crate::config::{Background, Compression, Mode};

/// Version of the document's shape.
pub const VERSION: u32 = 1;

/// The status of one host, or of one daemon's part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The name of this node.
    pub node: String,
    /// When the document was made: microseconds since 1970 by this host's clock.
    pub time_us: u64,
    /// The agent; `null` if it did not answer, or in the receiver's own report.
    pub agent: Option<Daemon>,
    /// The receiver; `null` if it did not answer, or in the agent's own report.
    pub receiver: Option<Daemon>,
    /// The groups, sorted by name.
    pub groups: Vec<GroupStatus>,
    /// What concerns the host and no single group.
    pub warnings: Vec<Warning>,
}

impl Status {
    /// An empty report of `node` at a time in microseconds since 1970.
    pub fn new(node: impl Into<String>, time_us: u64) -> Self {
        Self {
            version: VERSION,
            node: node.into(),
            time_us,
            agent: None,
            receiver: None,
            groups: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// A daemon that answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its release, such as `0.1.0`.
    pub release: String,
    /// When it started: microseconds since 1970.
    pub since_us: Option<u64>,
}

/// One group on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group's name.
    pub name: String,
    /// What this host is for the group.
    pub role: Role,
    /// The id of the current history, in hexadecimal; `null` before there is one.
    pub generation: Option<String>,
    /// Where this generation forked from its parent; `null` for a first generation.
    pub parent: Option<Position>,
    /// The configured mode.
    pub mode: Mode,
    /// How well the group is protected now, whatever is configured.
    pub protection: Protection,
    /// Since when `protection` is what it is: microseconds since 1970.
    pub since_us: Option<u64>,
    /// The newest position: admitted on a primary, received on a standby.
    pub position: Option<Position>,
    /// The other host, as this one sees it.
    pub peer: PeerStatus,
    /// The transport lag: what a loss of the primary now would cost; `null` when that is unknown.
    pub lag: Option<Lag>,
    /// How far the base is behind what the standby has; `null` when that is unknown.
    pub apply_lag: Option<ApplyLag>,
    /// The newest sequence that the standby has received.
    pub received_sequence: Option<u64>,
    /// The newest sequence that the standby has on stable storage.
    pub durable_sequence: Option<u64>,
    /// Bytes of the blocks that the standby may lack.
    pub dirty_bytes: Option<u64>,
    /// Bytes waiting in the queue for the link; `null` on a standby.
    pub queued_bytes: Option<u64>,
    /// The bound of that queue.
    pub queue_limit_bytes: Option<u64>,
    /// Bytes that clients wrote since the group was opened; `null` on a standby.
    pub written_bytes: Option<u64>,
    /// Bytes that the standby was sent since it was opened there; `null` on a primary.
    pub received_bytes: Option<u64>,
    /// What is done to send fewer bytes; `null` on a standby.
    pub compression: Option<CompressionStatus>,
    /// The catch-up or first sync under way.
    pub catchup: Option<CatchUp>,
    /// What that and a verification leave to clients; `null` on a standby.
    pub background: Option<BackgroundStatus>,
    /// The verification under way on a primary, or the last one.
    pub verification: Option<VerificationStatus>,
    /// The redo log of a standby.
    pub journal: Option<JournalStatus>,
    /// The volumes, in the order of the configuration.
    pub volumes: Vec<VolumeStatus>,
    /// What is wrong or needs a decision, the most urgent first.
    pub warnings: Vec<Warning>,
}

impl GroupStatus {
    /// A group of which nothing but this is known yet.
    pub fn new(
        name: impl Into<String>,
        role: Role,
        mode: Mode,
        protection: Protection,
        peer: PeerStatus,
    ) -> Self {
        Self {
            name: name.into(),
            role,
            generation: None,
            parent: None,
            mode,
            protection,
            since_us: None,
            position: None,
            peer,
            lag: None,
            apply_lag: None,
            received_sequence: None,
            durable_sequence: None,
            dirty_bytes: None,
            queued_bytes: None,
            queue_limit_bytes: None,
            written_bytes: None,
            received_bytes: None,
            compression: None,
            catchup: None,
            background: None,
            verification: None,
            journal: None,
            volumes: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// What a host is for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It serves the volumes.
    Primary,
    /// It keeps the copy.
    Standby,
    /// It was the primary, has been replaced and serves nothing.
    Fenced,
    /// A role that this release does not know: the daemon is newer.
    #[serde(other)]
    Unrecognized,
}

/// How well a group is protected at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// The standby has every write that was acknowledged.
    InSync,
    /// Every write is on its way to the standby, in order.
    AsyncStreaming,
    /// The standby is being brought up to date; it keeps its last checkpoint meanwhile.
    CatchingUp,
    /// The standby gets its first copy: it cannot be promoted yet.
    FirstSync,
    /// A sync group acknowledges writes that the standby does not have.
    Degraded,
    /// Writes wait for the standby, as `on_link_loss = "block"` asks.
    Blocked,
    /// There is no session with the peer.
    Disconnected,
    /// The peer refuses the session, or this host refuses the peer.
    Refused,
    /// This host was replaced by a promotion.
    Fenced,
    /// A device holds another volume than the one that was replicated.
    WrongVolume,
    /// The standby's journal is at its limit.
    JournalFull,
    /// The group stopped on an error.
    Failed,
    /// A state that this release does not know: the daemon is newer.
    #[serde(other)]
    Unrecognized,
}

impl Protection {
    /// Every state, for tables and tests.
    pub const ALL: [Self; 13] = [
        Self::InSync,
        Self::AsyncStreaming,
        Self::CatchingUp,
        Self::FirstSync,
        Self::Degraded,
        Self::Blocked,
        Self::Disconnected,
        Self::Refused,
        Self::Fenced,
        Self::WrongVolume,
        Self::JournalFull,
        Self::Failed,
        Self::Unrecognized,
    ];

    /// As the document and the logs call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InSync => "in_sync",
            Self::AsyncStreaming => "async_streaming",
            Self::CatchingUp => "catching_up",
            Self::FirstSync => "first_sync",
            Self::Degraded => "degraded",
            Self::Blocked => "blocked",
            Self::Disconnected => "disconnected",
            Self::Refused => "refused",
            Self::Fenced => "fenced",
            Self::WrongVolume => "wrong_volume",
            Self::JournalFull => "journal_full",
            Self::Failed => "failed",
            Self::Unrecognized => "unrecognized",
        }
    }

    /// Whether the group does what it was configured to do, and nobody needs to look. A catch-up is not: it
    /// ends by itself, and until then the exposure grows.
    pub fn is_healthy(self) -> bool {
        matches!(self, Self::InSync | Self::AsyncStreaming)
    }
}

/// A place in a group's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The generation's id in hexadecimal.
    pub generation: String,
    /// The place in that generation's order.
    pub sequence: u64,
}

/// The other host of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Whether there is a session for this group.
    pub connected: bool,
    /// The address of the session, or the one that is tried.
    pub address: Option<String>,
    /// The pinned key's fingerprint; `null` before pairing.
    pub fingerprint: Option<String>,
    /// Round trip in microseconds; `null` without a session.
    pub rtt_us: Option<u64>,
    /// Why the last attempt or session ended; `null` if none failed since the start.
    pub last_error: Option<String>,
}

/// What is not yet durable at the standby.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Age of the oldest write that the standby lacks.
    pub seconds: f64,
    /// Bytes that the standby lacks.
    pub bytes: u64,
}

/// What is in the standby's journal and not in its base. A configured history keeps it back on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ApplyLag {
    /// Age of the oldest checkpoint that is not in the base.
    pub seconds: f64,
}

/// A transfer of dirty blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatchUp {
    /// Bytes of blocks that need no further transfer.
    pub done_bytes: u64,
    /// Bytes of all blocks of this catch-up; grows when clean blocks are written.
    pub total_bytes: u64,
    /// Recent progress; `null` until it was measured.
    pub rate_bytes_per_s: Option<u64>,
    /// Seconds to the end at that rate; `null` while it cannot be told.
    pub eta_s: Option<u64>,
    /// Whether this is the first sync: there is nothing to promote before it ends.
    pub first: bool,
}

/// What catch-up, first sync and verification leave to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackgroundStatus {
    /// As it was configured.
    pub setting: Background,
    /// What holds back the work that is under way; `null` where nothing does, or nothing is under way.
    pub held_back_by: Option<HeldBackBy>,
    /// The most that it may read in a second now, in bytes; `null` where nothing holds it back.
    pub limit_bytes_per_s: Option<u64>,
}

/// What holds background work back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBackBy {
    /// Clients, who would wait for too long.
    Clients,
    /// `max_rate`.
    MaxRate,
    /// Something that this release does not know: the daemon is newer.
    #[serde(other)]
    Unrecognized,
}

/// What a primary does to send fewer bytes. The counts begin anew when the group is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressionStatus {
    /// As it was configured.
    pub setting: Compression,
    /// What is done now.
    pub effort: CompressionEffort,
    /// How much of what was sent both ends may remember.
    pub window_bytes: u64,
    /// Bytes of what was sent, before it was coded.
    pub raw_bytes: u64,
    /// Bytes that were sent for it, without what encryption and packets add.
    pub wire_bytes: u64,
    /// Bytes of all packets of the group's sessions, with what encryption, headers and retransmissions add. A second old.
    pub packet_bytes: u64,
    /// Time that coding took, in microseconds.
    pub coding_us: u64,
    /// Time that the link kept what was ready to be sent waiting, in microseconds.
    pub waiting_us: u64,
}

/// How much is done to send fewer bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompressionEffort {
    /// Nothing.
    None,
    /// Together with what was sent just before, with LZ4.
    Lz4,
    /// Together with what was sent just before.
    ZstdFast,
    /// Together with all that is remembered.
    Zstd,
    /// The same, with more time taken.
    ZstdHigh,
    /// One that this release does not know: the daemon is newer.
    #[serde(other)]
    Unrecognized,
}

/// A comparison of both copies, block for block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationStatus {
    /// How far it is.
    pub state: VerificationState,
    /// Whether blocks that differ are made equal to the primary's.
    pub repair: bool,
    /// When it began: microseconds since 1970.
    pub started_us: u64,
    /// When it ended; `null` while it goes on.
    pub finished_us: Option<u64>,
    /// Bytes of the blocks that were looked at.
    pub done_bytes: u64,
    /// Bytes of all volumes.
    pub total_bytes: u64,
    /// Bytes of the blocks that were looked at and could not be compared.
    pub unchecked_bytes: u64,
    /// Blocks of 4 KiB that differed.
    pub mismatched_blocks: u64,
    /// Those of them that are equal again.
    pub repaired_blocks: u64,
    /// The first of the blocks that differed.
    pub differing: Vec<DifferingBlocks>,
    /// The most bytes that are read in a second.
    pub rate_limit_bytes_per_s: Option<u64>,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerificationState {
    /// It goes on whenever records stream.
    Running,
    /// Every block was looked at.
    Finished,
    /// It was given up.
    Cancelled,
    /// A state that this release does not know: the daemon is newer.
    #[serde(other)]
    Unrecognized,
}

/// Blocks side by side that differed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingBlocks {
    /// The volume's name.
    pub volume: String,
    /// The first block of 4 KiB.
    pub first_block: u64,
    /// Count of blocks.
    pub blocks: u64,
}

/// A standby's redo log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Bytes on disk.
    pub bytes: u64,
    /// `journal.max_size`.
    pub limit_bytes: u64,
    /// The oldest position that can be recovered to.
    pub oldest: Option<JournalPoint>,
    /// The newest position that can be recovered to.
    pub newest: Option<JournalPoint>,
    /// The newest sequence that the base includes.
    pub applied_sequence: Option<u64>,
    /// Bytes of the journal that are not in the base yet.
    pub unapplied_bytes: Option<u64>,
    /// What of it gets into the base in a second; `null` until it was measured, and where nothing is to be applied.
    pub apply_rate_bytes_per_s: Option<u64>,
}

/// A recoverable position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalPoint {
    /// Its sequence.
    pub sequence: u64,
    /// When the primary admitted it: microseconds since 1970 by the primary's clock.
    pub time_us: Option<u64>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// The configured device.
    pub device: String,
    /// Its size; `null` if it could not be opened.
    pub size_bytes: Option<u64>,
    /// Bytes of its blocks that the standby may lack.
    pub dirty_bytes: Option<u64>,
    /// Blocks of 4 KiB that could not be read here and are missing at the standby.
    pub unreadable_blocks: Option<u64>,
    /// Where it is served now: socket paths, `host:port`, `/dev/nbdN`. Empty when it is not.
    pub exports: Vec<String>,
    /// Why it is not in order; `null` if it is.
    pub error: Option<String>,
}

/// Something that a person should know or do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Stable name for programs, such as `receiver_not_running`.
    pub id: String,
    /// What is the case, and for which thing.
    pub text: String,
    /// What to do; `null` if nothing needs doing.
    pub action: Option<String>,
}

impl Warning {
    /// A warning with something to do.
    pub fn new(id: &str, text: impl Into<String>, action: impl Into<String>) -> Self {
        Self { id: id.to_owned(), text: text.into(), action: Some(action.into()) }
    }
}
