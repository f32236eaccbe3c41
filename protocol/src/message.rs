//! Control messages between source and target, and their codec.
//!
//! bincode is used here and nowhere else: the messages are few and small, length-capped by the transport, and never
//! stored. Data travels in frames.

use serde::{Deserialize, Serialize};

use crate::ids::*;
use crate::lineage::Standing;

/// Longest encoded control message, in bytes: an `Opened` with the most ranges of lost blocks fits many times.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Longest lease, in microseconds: for so long a source that was started again answers nobody before it has heard of its
/// peer.
pub const MAX_LEASE_US: u64 = 2_500_000;
/// Most ranges in one message.
pub const MAX_RANGES: usize = 10_000;

/// From the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceMessage {
    /// Asks for a session; the first message on a control stream.
    Open(Open),
    /// Asks for an answer, to show that the link lives and to measure it.
    Ping(Ping),
    /// Asks how large the target's volumes are now.
    Measure,
}

/// Where the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// The source's clock, returned as it came.
    pub time: Time,
    /// The last write that was admitted by then.
    pub sequence: Sequence,
    /// The group is in sync, and stays so for a while.
    pub lease: Option<Lease>,
}

/// No client is answered without the target before this has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The clock of the last [`TargetMessage::Pong`] that the source had heard.
    pub heard: Time,
    /// How long, in microseconds, from when the source said so; at most [`MAX_LEASE_US`].
    pub us: u64,
}

/// What the source says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The group's configured name.
    pub group: String,
    /// The session to begin: a fresh random number.
    pub session: SessionId,
    /// The last session that the source noted.
    pub known_session: SessionId,
    /// The source's image and the histories that led to it.
    pub standing: Standing,
    /// The run of the source.
    pub incarnation: Incarnation,
    /// Whether every acknowledgement is waited for as durable, so that fsyncs should not be delayed.
    pub durable_acks: bool,
    /// Whether the source's generation could still be rolled back: nobody follows it then.
    pub pending: bool,
    /// The volumes, in the order of their indices.
    pub volumes: Vec<VolumeInfo>,
}

/// A volume as the source has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its configured name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// From the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetMessage {
    /// The session begins.
    Opened(Opened),
    /// It does not.
    Refused {
        /// Why, for a program.
        code: Refusal,
        /// Why, for a person.
        text: String,
        /// The target's image and the histories that led to it, where that is the reason.
        standing: Option<Standing>,
    },
    /// The newest checkpoint that survives the target's process.
    Received {
        /// Its sequence.
        sequence: Sequence,
    },
    /// The newest checkpoint on stable storage.
    Durable {
        /// Its sequence.
        sequence: Sequence,
    },
    /// Progress inside an open epoch: these are on stable storage. Advances no checkpoint.
    Staged {
        /// The epoch.
        epoch: EpochId,
        /// Frames, as runs of (first, count).
        frames: Vec<(FrameId, u64)>,
        /// Every record up to here is staged.
        records_to: Sequence,
        /// In a first sync that goes to the base: the number of the fsync that covers the frames. Their bits may
        /// clear.
        mark: Option<u64>,
    },
    /// These blocks of a compare frame differ and must be sent.
    Differs {
        /// The epoch.
        epoch: EpochId,
        /// The frame.
        frame: FrameId,
        /// The blocks.
        blocks: Vec<BlockRange>,
    },
    /// Answers a ping.
    Pong {
        /// As it came.
        time: Time,
        /// The newest position whose writes are in the base.
        applied: Sequence,
        /// The target's clock, for [`Lease::heard`].
        clock: Time,
    },
    /// Before [`TargetMessage::Opened`]: blocks that the target lacks, when they are too many for it.
    Lacks {
        /// The blocks, at most [`MAX_RANGES`] of them.
        blocks: Vec<BlockRange>,
    },
    /// Answers [`crate::frame::Frame::TakeOver`] with no: the session goes on.
    NotTaken {
        /// Why, for a person.
        text: String,
    },
    /// Answers a check of a verification.
    Checked {
        /// The check.
        id: CheckId,
        /// Its blocks that differ at its position.
        differing: Vec<BlockRange>,
        /// Count of its blocks that could not be compared.
        unchecked: u64,
    },
    /// Answers an [`Open`] of a fenced host: this one is the standby of its history.
    RolledBack {
        /// The last generations that were rolled back here, durably.
        generations: Vec<Generation>,
    },
    /// Answers [`SourceMessage::Measure`].
    Measured {
        /// What each volume has room for, in bytes, in the order of their indices; at least what is replicated.
        sizes: Vec<u64>,
    },
}

/// What the target says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The session that begins.
    pub session: SessionId,
    /// The target's last session before this one.
    pub known_session: SessionId,
    /// What the source had noted when that one began.
    pub previous_session: SessionId,
    /// The newest checkpoint, in the target's page cache or better.
    pub received: Option<Position>,
    /// The newest checkpoint on stable storage.
    pub durable: Option<Position>,
    /// The last progress mark given out in a first sync.
    pub mark: u64,
    /// The epoch that is open and can be resumed.
    pub epoch: Option<OpenEpoch>,
    /// Blocks that the target lacks and the source must join to its own.
    pub lost: Lost,
}

/// An epoch that the target has staged in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenEpoch {
    /// Its id.
    pub epoch: EpochId,
    /// The run of the source that opened it.
    pub incarnation: Incarnation,
    /// The staged frames as runs of (first, count).
    pub frames: Vec<(FrameId, u64)>,
    /// The digests of the staged frames, added up.
    pub digest: u64,
    /// The last staged record.
    pub records_to: Sequence,
}

/// Blocks that the target lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lost {
    /// None.
    None,
    /// These.
    Ranges(Vec<BlockRange>),
    /// All of them, or it cannot be told which.
    All,
    /// Those of the [`TargetMessage::Lacks`] that came before.
    Told,
}

/// Why a session is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The target does not have the group.
    UnknownGroup,
    /// The target's volumes have other names or sizes.
    Volumes,
    /// The target was promoted: the source is no longer the primary.
    Promoted,
    /// The histories do not fit.
    Generation,
    /// The target cannot take data now (its journal or a volume failed).
    NotReady,
    /// The target is the primary of this group as configured.
    Role,
    /// The target has data that the source's history lacks: it has to be reinstated first.
    Reinstate,
    /// Both hosts went on after their histories parted: the operator has to say which side stays.
    SplitBrain,
    /// Both hosts claim to be the primary of one history.
    Clone,
    /// The source's generation could still be rolled back: it has to note that it is real, and ask again.
    Pending,
}

impl Refusal {
    /// As logs call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownGroup => "unknown_group",
            Self::Volumes => "volumes",
            Self::Promoted => "promoted",
            Self::Generation => "generation",
            Self::NotReady => "not_ready",
            Self::Role => "role",
            Self::Reinstate => "reinstate",
            Self::SplitBrain => "split_brain",
            Self::Clone => "clone",
            Self::Pending => "pending",
        }
    }
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Longer than any message.
    #[error("a control message of {0} bytes is longer than any")]
    TooLong(usize),
    /// Not a message.
    #[error("the control message cannot be read: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    /// Bytes are left over.
    #[error("the control message is followed by {0} bytes that belong to nothing")]
    Trailing(usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_MESSAGE_BYTES>()
}

/// The encoded form of a message; at most [`MAX_MESSAGE_BYTES`] long.
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    bincode::serde::encode_to_vec(message, config()).unwrap_or_default()
}

/// Reads a message, the whole of `bytes`.
pub fn decode<M: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<M, MessageError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(MessageError::TooLong(bytes.len()));
    }
    let (message, used) = bincode::serde::decode_from_slice(bytes, config())?;
    if used != bytes.len() {
        return Err(MessageError::Trailing(bytes.len() - used));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_and_cuts_do_not() {
        let m = TargetMessage::Opened(Opened {
            session: SessionId(u64::MAX),
            known_session: SessionId(1),
            previous_session: SessionId(2),
            received: Some(Position::new(Generation(3), Sequence(4))),
            durable: None,
            mark: 5,
            epoch: Some(OpenEpoch {
                epoch: EpochId(1),
                incarnation: Incarnation(2),
                frames: vec![(FrameId(0), 9)],
                digest: 3,
                records_to: Sequence(8),
            }),
            lost: Lost::Ranges(vec![BlockRange { volume: VolumeIndex(0), first: 1, count: 2 }]),
        });
        let bytes = encode(&m);
        assert_eq!(decode::<TargetMessage>(&bytes).unwrap(), m);
        for n in 0..bytes.len() {
            assert!(decode::<TargetMessage>(&bytes[..n]).is_err());
        }
    }

    #[test]
    fn a_lying_length_allocates_nothing() {
        // Variant 0 (Opened) cannot be this; a vector that claims 2^60 ranges must fail at once.
        let mut bytes = encode(&Lost::Ranges(vec![]));
        bytes.pop();
        bytes.extend_from_slice(&[253, 0, 0, 0, 0, 0, 0, 0, 16]);
        assert!(decode::<Lost>(&bytes).is_err());
    }
}
