//! One group's state on one host, and the performing of what the state machines ask for.
//!
//! [`GroupStore`] is the superblock, which both roles have. [`SourceStore`] adds bitmaps and the hot-extent log,
//! [`TargetStore`] the journal; both work on volumes. They are the same over a real disk and a simulated one, and decide
//! nothing: when something is done is the state machines' business.

mod growth;
mod primary_volume;
mod reinstate;
mod source;
mod target;

use std::sync::Arc;

use afterimage_protocol::state::{GroupState, StateError};

use crate::bitmap::BitmapError;
use crate::hot_log::HotLogError;
use crate::io::{Dir, File};
use crate::journal::JournalError;
use crate::superblock::{Superblock, SuperblockError};

pub use growth::BitmapSyncs;
pub use primary_volume::PrimaryVolume;
pub use reinstate::{ReinstateError, Reinstated, reinstate};
pub use source::{SourceFiles, SourceStore, content_of, read_run, write_content};
pub(crate) use source::{hashes_of, is_zero};
pub use target::{StateWriter, TargetStore, compare_base, divergent_blocks, search_journal, write_base};

/// The superblock's file name.
const SUPERBLOCK: &str = "superblock";

/// A volume that is open.
pub type VolumeFile = Arc<dyn File>;

/// Why a group's state cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The superblock cannot be used.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// Its content is not a group state.
    #[error("the superblock holds something that is not a group state")]
    State(#[from] StateError),
    /// It cannot be written.
    #[error("cannot write the superblock")]
    Write(#[source] std::io::Error),
    /// A bitmap cannot be used.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// The hot-extent log cannot be used.
    #[error(transparent)]
    HotLog(#[from] HotLogError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A damaged file cannot be moved out of the way.
    #[error("cannot move the damaged {name} out of the way")]
    Quarantine {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Makes volumes read as they are on stable storage. An earlier process may have failed to sync them; from then on the
/// cache may hold what a power cut takes, a later sync succeeds without it, and a comparison would not find it. To be
/// called before a target starts on its bases, and before a source starts without a log of what is not durable yet.
pub fn settle(volumes: &[VolumeFile]) -> std::io::Result<()> {
    volumes.iter().try_for_each(|volume| volume.sync().and_then(|()| volume.forget_cached()))
}

/// The durable state of a group.
pub struct GroupStore {
    dir: Arc<dyn Dir>,
    superblock: Superblock,
}

impl GroupStore {
    /// Opens the state in `dir`; `None` for a group that was never used here.
    pub fn open(dir: Arc<dyn Dir>) -> Result<(Self, Option<GroupState>), GroupError> {
        let (superblock, payload) = Superblock::open(&*dir, SUPERBLOCK)?;
        let state = payload.map(|p| GroupState::decode(&p)).transpose()?;
        Ok((Self { dir, superblock }, state))
    }

    /// The state in `dir` while another process may own it; changes nothing.
    pub fn peek(dir: &dyn Dir) -> Result<Option<GroupState>, GroupError> {
        Ok(Superblock::peek(dir, SUPERBLOCK)?.map(|p| GroupState::decode(&p)).transpose()?)
    }

    /// Replaces the state; durable in both slots on return.
    pub fn write(&mut self, state: &GroupState) -> Result<(), GroupError> {
        self.superblock.write(&state.encode()).map_err(GroupError::Write)
    }
}
