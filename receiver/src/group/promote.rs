//! A promotion, from the operator's request to the answer.

use afterimage_protocol::target::{CannotPromote, Discarded, Loss, Wanted};
use afterimage_protocol::{Generation, Position, Time};
use tokio::sync::oneshot;

/// What the operator asks for.
pub struct PromoteRequest {
    /// Only say what would be done.
    pub dry_run: bool,
    /// The point to promote at; the newest if there is none.
    pub at: Option<Wanted>,
    /// The history to begin: random, new.
    pub generation: Generation,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Promoted, PromoteError>>,
}

/// What was done, or would be.
#[derive(Clone, Debug)]
pub struct Promoted {
    /// The image is the old primary's at this position.
    pub position: Position,
    /// When the old primary admitted the last write in the image, by its clock; everything admitted before is in the image.
    pub time: Option<Time>,
    /// What is lost of what the old primary had answered.
    pub loss: Loss,
    /// When the old primary was last heard of, by this host's clock.
    pub source_seen: Option<Time>,
    /// Whether the source still had its session.
    pub connected: bool,
    /// What this host had, or has, after a point that was asked for.
    pub discarded: Option<Discarded>,
}

/// Why nothing was promoted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PromoteError {
    /// The state machine refuses.
    #[error(transparent)]
    Cannot(#[from] CannotPromote),
    /// This host is the primary already.
    #[error("this host is the primary of the group already, generation {0}")]
    Primary(Generation),
    /// This host is the primary as configured.
    #[error("this host is the primary of the group as configured")]
    ConfiguredPrimary,
    /// The group cannot be opened.
    #[error("{0}")]
    Failed(String),
    /// The receiver is stopping.
    #[error("the receiver stops")]
    Stopping,
}

/// A generation that was never used: random, and not "none".
pub fn fresh_generation() -> std::io::Result<Generation> {
    let mut bytes = [0; 8];
    loop {
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
        let generation = Generation(u64::from_le_bytes(bytes));
        if generation != Generation::NONE {
            return Ok(generation);
        }
    }
}
