//! A host that was replaced becomes a standby again: what only it has is saved, and then counts as lacking.

use afterimage_protocol::bitmap::{Bitmap, runs, set_all, set_blocks};
use afterimage_protocol::state::{GroupState, LostBlocks, Role};
use afterimage_protocol::*;

use super::{GroupError, GroupStore, SourceStore, VolumeFile};
use crate::io::Dir;
use crate::salvage::{self, Head, SalvageError, Saved};

/// Why a host cannot be reinstated. Nothing of it has changed.
#[derive(Debug, thiserror::Error)]
pub enum ReinstateError {
    /// Its state.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// What it has cannot be saved.
    #[error(transparent)]
    Salvage(#[from] SalvageError),
    /// The bitmaps, which say what differs, cannot be made durable.
    #[error("cannot make the bitmaps durable")]
    Bitmaps(#[source] std::io::Error),
    /// It is not fenced.
    #[error("this host was not replaced: there is nothing to reinstate")]
    NotFenced,
}

/// What a reinstatement did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reinstated {
    /// What was saved.
    pub saved: Saved,
    /// Blocks that may differ and will come from the peer.
    pub blocks: u64,
    /// Which ones differ is not known: everything is compared.
    pub all: bool,
}

/// Makes a fenced host a standby. What its bitmaps say that the peer lacks is saved to a new file in `salvage_dir` first;
/// the volumes stay as they are until the peer's data has come whole. Durable on return; after a crash in the middle the
/// host is fenced as before, or a standby.
pub fn reinstate(
    group: GroupStore,
    mut state: GroupState,
    salvage_dir: &dyn Dir,
    volumes: &[VolumeFile],
    boot_id: [u8; 16],
    time: Time,
) -> Result<Reinstated, ReinstateError> {
    if state.role != Role::Fenced {
        return Err(ReinstateError::NotFenced);
    }
    let power_lost = state.boot_id != boot_id;
    // Any capacity holds what is there.
    let (mut store, mut files) = SourceStore::open(group, &mut state, boot_id, 1, volumes)?;
    // What it had lost when it was promoted may be in no bitmap: those bits may have gone with the power.
    let all_lost = matches!(state.lost, LostBlocks::All | LostBlocks::Bitmaps);
    if let LostBlocks::Ranges(ranges) = &state.lost {
        ranges.iter().for_each(|range| set_blocks(&mut files.bitmaps, *range));
    }
    let all = state.compare_all || all_lost || files.hot.is_none();
    if power_lost {
        for extent in files.hot.iter().flatten() {
            set_blocks(&mut files.bitmaps, extent.blocks());
        }
    }
    if all {
        set_all(&mut files.bitmaps);
    }
    store.bitmap_syncs().sync_all().map_err(ReinstateError::Bitmaps)?;
    let (replaced_by, left_at) = state.replaced_by.unwrap_or_default();
    let head = Head {
        time,
        generation: state.generation(),
        replaced_by,
        left_at,
        volumes: state.volumes.iter().map(|v| (v.name.clone(), v.size_bytes)).collect(),
    };
    let saved = salvage::save(salvage_dir, &head, volumes, runs(&files.bitmaps))?;
    state.compare_all = all;
    state.become_standby();
    state.boot_id = boot_id;
    store.write_state(&state)?;
    let blocks = files.bitmaps.iter().map(Bitmap::dirty_blocks).sum();
    Ok(Reinstated { saved, blocks, all })
}

#[cfg(test)]
#[path = "reinstate_tests.rs"]
mod tests;
