//! What can happen to a group, and the bounded way in.

use std::sync::Arc;

use afterimage_contract::service::Answer;
use afterimage_protocol::frame::Frame;
use afterimage_protocol::message::{Open, Ping};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::promote::PromoteRequest;
use crate::link::Link;

/// Frames read off the network and not handled yet, in bytes: twice what quinn buffers for a connection, so that the disk
/// has something to do while the network catches up.
pub const BUDGET_BYTES: usize = 32 << 20;
/// What an input costs beside its bytes, so that tiny ones are bounded too.
const INPUT_BYTES: usize = 256;

/// Room for one input; given back when this is dropped.
pub struct Permit {
    _permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Permit {
    /// Waits for room for `bytes`.
    pub async fn take(budget: &Arc<Semaphore>, bytes: usize) -> Self {
        let bytes = (bytes + INPUT_BYTES).min(BUDGET_BYTES);
        // Fails only for a semaphore that was closed, which this one never is.
        let permit = budget.clone().acquire_many_owned(bytes as u32).await.ok();
        Self { _permit: permit, bytes }
    }

    /// The same, if there is room now.
    pub fn take_now(budget: &Arc<Semaphore>, bytes: usize) -> Option<Self> {
        let bytes = (bytes + INPUT_BYTES).min(BUDGET_BYTES);
        let permit = budget.clone().try_acquire_many_owned(bytes as u32).ok()?;
        Some(Self { _permit: Some(permit), bytes })
    }
}

/// Something that happened.
pub enum Input {
    /// A source asks for a session.
    Open {
        /// What it says of itself.
        open: Box<Open>,
        /// Its connection.
        link: Arc<Link>,
    },
    /// A frame came, verified.
    Frame {
        /// Over this link.
        serial: u64,
        /// The frame.
        frame: Box<Frame>,
        /// Its room.
        permit: Permit,
    },
    /// A ping came.
    Ping {
        /// Over this link.
        serial: u64,
        /// What it says.
        ping: Ping,
        /// Its room.
        permit: Permit,
    },
    /// The source asks how large the volumes are.
    Measure {
        /// Over this link.
        serial: u64,
        /// Its room.
        permit: Permit,
    },
    /// A connection is gone.
    Disconnected {
        /// Which.
        serial: u64,
        /// Why.
        reason: String,
    },
    /// A helper thread has something to report, or the time until which the thread sleeps has changed.
    Wake,
    /// The operator asks for a promotion.
    Promote(PromoteRequest),
    /// The group's role may have changed: look at it, and answer whether this host is its standby.
    Follow(oneshot::Sender<bool>),
    /// The watchdog asks whether the thread works.
    Pulse(Answer),
    /// The receiver stops.
    Stop,
}

impl Input {
    /// What it counts for when inputs are taken together.
    pub fn bytes(&self) -> usize {
        match self {
            Input::Frame { permit, .. } | Input::Ping { permit, .. } | Input::Measure { permit, .. } => {
                permit.bytes
            }
            _ => INPUT_BYTES,
        }
    }

    /// Whether it was counted when it was sent.
    pub fn is_counted(&self) -> bool {
        !matches!(self, Input::Wake)
    }
}
