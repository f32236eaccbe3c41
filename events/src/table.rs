//! The ids.

use tracing::Level;

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $level:ident;)+) => {
        /// Something that an operator may want to know of. `docs/events.md` has a section for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Event {
            $($(#[$doc])* $name,)+
        }

        impl Event {
            /// Every event, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable id: the field `event` of a line in the log, and what `afterimage status` shows in brackets.
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)+
                }
            }

            /// How bad it is: `ERROR` needs somebody, `WARN` should be known, `INFO` is the normal course of things.
            pub const fn level(self) -> Level {
                match self {
                    $(Self::$name => Level::$level,)+
                }
            }
        }
    };
}

events! {
    /// A daemon has started.
    Started = "started", INFO;
    /// A daemon has stopped.
    Stopped = "stopped", INFO;
    /// Not everything was on stable storage when a daemon stopped.
    StopIncomplete = "stop-incomplete", ERROR;
    /// A bug: the process ends, to be started again.
    Panicked = "panicked", ERROR;
    /// Something in the configuration is probably not meant.
    ConfigDoubtful = "config-doubtful", WARN;
    /// The configuration was read again.
    ConfigReloaded = "config-reloaded", INFO;
    /// The configuration was changed and cannot be used.
    ConfigNotReloaded = "config-not-reloaded", ERROR;
    /// The address of the metrics cannot be listened on.
    MetricsNotServed = "metrics-not-served", ERROR;
    /// A program of the operator's has failed.
    HookFailed = "hook-failed", ERROR;
    /// A program of the operator's was run.
    HookRun = "hook-run", INFO;
    /// There is a session with the peer.
    LinkUp = "link-up", INFO;
    /// There is no session with the peer.
    LinkDown = "link-down", WARN;
    /// The peer refuses a session.
    PeerRefuses = "peer-refuses", WARN;
    /// This host refuses a session to the peer.
    SessionRefused = "session-refused", WARN;
    /// A connection was refused; the line shows the key that was seen.
    KeyRefused = "key-refused", WARN;
    /// The pinned keys cannot be read, and nobody is let in.
    PinsUnreadable = "pins-unreadable", ERROR;
    /// A connection was refused because too many are open.
    BusyRefused = "busy-refused", WARN;
    /// The peer sent what it may not send.
    ProtocolViolated = "protocol-violated", WARN;
    /// The hosts have exchanged their keys.
    Paired = "paired", INFO;
    /// The hosts have not exchanged their keys.
    PairingFailed = "pairing-failed", WARN;
    /// The standby has every write that was acknowledged.
    InSync = "in-sync", INFO;
    /// Every write is on its way to the standby, in order.
    Streaming = "streaming", INFO;
    /// Writes are acknowledged that the standby does not have.
    Degraded = "degraded", WARN;
    /// Writes wait for the standby.
    Blocked = "blocked", WARN;
    /// The standby is being brought up to date.
    CatchUpBegun = "catch-up-begun", INFO;
    /// The standby has been brought up to date.
    CatchUpEnded = "catch-up-ended", INFO;
    /// The standby gets its first copy.
    FirstSyncBegun = "first-sync-begun", INFO;
    /// The standby can be promoted.
    FirstSyncEnded = "first-sync-ended", INFO;
    /// The standby has lacked writes for longer than the objective allows.
    RpoBreached = "rpo-breached", WARN;
    /// An operator has paused the stream.
    StreamPaused = "stream-paused", WARN;
    /// This host serves the volumes.
    Serving = "serving", INFO;
    /// Nothing is served before the peer has said that it was not promoted.
    WaitingForPeer = "waiting-for-peer", WARN;
    /// Volumes are served without asking the peer, as was wanted.
    ServedAlone = "served-alone", WARN;
    /// This host is the standby.
    StandingBy = "standing-by", INFO;
    /// This host was promoted.
    Promoted = "promoted", WARN;
    /// A promotion has failed.
    NotPromoted = "not-promoted", ERROR;
    /// Clients are held, and the peer is to take over.
    SwitchoverBegun = "switchover-begun", INFO;
    /// The roles were swapped in good order.
    HandedOver = "handed-over", INFO;
    /// A switchover did not come about.
    NotHandedOver = "not-handed-over", WARN;
    /// A promotion was taken back.
    RolledBack = "rolled-back", WARN;
    /// A promotion could not be taken back.
    NotRolledBack = "not-rolled-back", WARN;
    /// The peer was promoted: this host serves nothing any more.
    Fenced = "fenced", ERROR;
    /// The peer's promotion was taken back: this host is the primary again.
    FenceLifted = "fence-lifted", WARN;
    /// A host that was replaced is a standby again.
    Reinstated = "reinstated", WARN;
    /// Both hosts have writes of their own.
    SplitBrain = "split-brain", ERROR;
    /// An operator wants the peer's history kept.
    GivingWay = "giving-way", WARN;
    /// An operator wants this host's history kept.
    HistoryKept = "history-kept", WARN;
    /// The host stood still, and clients wait until the peer was heard of.
    StoodStill = "stood-still", WARN;
    /// A group cannot be served or kept.
    GroupFailed = "group-failed", ERROR;
    /// A device holds another volume than the one that was replicated.
    WrongVolume = "wrong-volume", ERROR;
    /// A volume cannot be served to clients.
    NotExported = "not-exported", ERROR;
    /// Volumes have grown.
    Resized = "resized", INFO;
    /// No volume has grown, though that was asked for.
    NotResized = "not-resized", WARN;
    /// A volume is larger than what is replicated of it.
    VolumeGrown = "volume-grown", WARN;
    /// A read or a write of a disk has failed.
    IoFailed = "io-failed", ERROR;
    /// A flush has failed: writes that were acknowledged may be lost.
    FlushFailed = "flush-failed", ERROR;
    /// Blocks cannot be read, and the standby lacks them.
    UnreadableBlocks = "unreadable-blocks", ERROR;
    /// Which blocks changed is not known any more: every block counts as dirty.
    TrackingLost = "tracking-lost", ERROR;
    /// The state of a group cannot be written.
    StateFailed = "state-failed", ERROR;
    /// The standby's journal has no room.
    JournalFull = "journal-full", WARN;
    /// The standby's journal cannot be written, read or made durable.
    JournalFailed = "journal-failed", ERROR;
    /// The journal has no room for the history that is configured.
    HistoryCut = "history-cut", WARN;
    /// Bytes are not those that were written or sent.
    ChecksumError = "checksum-error", ERROR;
    /// A verification begins.
    VerifyBegun = "verify-begun", INFO;
    /// A verification has ended, and both copies are alike.
    VerifyEnded = "verify-ended", INFO;
    /// A verification has found blocks that differ.
    VerifyFound = "verify-found", ERROR;
    /// A verification was given up.
    VerifyCancelled = "verify-cancelled", INFO;
}

impl Event {
    /// The event with this id.
    pub fn by_id(id: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|event| event.id() == id)
    }

    /// Whether the role of the host changes with it.
    pub const fn is_role_change(self) -> bool {
        matches!(
            self,
            Self::Promoted
                | Self::HandedOver
                | Self::RolledBack
                | Self::Fenced
                | Self::FenceLifted
                | Self::Reinstated
                | Self::HistoryKept
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_can_be_typed() {
        for (index, event) in Event::ALL.iter().enumerate() {
            let id = event.id();
            assert_eq!(Event::ALL.iter().position(|other| other.id() == id), Some(index), "{id}");
            assert!(id.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{id}");
            assert_eq!(Event::by_id(id), Some(*event));
        }
        assert_eq!(Event::by_id("no-such-event"), None);
    }
}
