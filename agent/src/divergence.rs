//! How the histories of both hosts differ, for an operator who has to name the side that stays. Changes nothing.

use std::sync::Arc;

use afterimage_contract::admin::{
    Divergence, DivergentVolume, ErrorCode, History, MAX_RANGES, Range, Response,
};
use afterimage_contract::config;
use afterimage_contract::status;
use afterimage_protocol::bitmap::Bitmap;
use afterimage_protocol::lineage::{Relation, Standing, relate};
use afterimage_protocol::state::{GroupState, Role, VolumeState};
use afterimage_protocol::{BLOCK_BYTES, Position, VolumeIndex};
use afterimage_storage::group::divergent_blocks;
use anyhow::{Context, anyhow};

use crate::group::Group;
use crate::open::Host;
use crate::reinstate::open_locked;
use crate::status::position;
use crate::supervisor::{Phase, Supervisor};

/// What is known here of both histories, and the blocks that only this host may have.
pub(crate) async fn divergence(supervisor: &Supervisor, host: Host) -> Response {
    let group = &supervisor.config.name;
    let peer = supervisor.link.state().standing;
    let found = match supervisor.phase() {
        Phase::Served { group, .. } => Ok(of_served(&group, peer.as_ref())),
        Phase::Fenced => {
            let (config, main) = (supervisor.config.clone(), host.main.clone());
            let found = main.spawn_blocking(move || of_fenced(&host, &config, peer.as_ref())).await;
            found.unwrap_or_else(|panic| Err(anyhow!(panic)))
        }
        Phase::Standby => {
            return Response::error(
                ErrorCode::Refused,
                format!("this host is the standby of {group}: it has nothing of its own"),
                format!(
                    "ask on the primary, or on the host that was replaced; see: afterimage status {group}"
                ),
            );
        }
        Phase::Starting | Phase::Failed(_) => Err(anyhow!("the group is not open")),
    };
    match found {
        Ok(divergence) => Response::ok(&divergence),
        Err(error) => Response::error(
            ErrorCode::Failed,
            format!("it cannot be told what {group} has on this host: {error:#}"),
            format!("see: afterimage status {group}"),
        ),
    }
}

/// What is dirty of a volume.
#[derive(Default)]
struct Dirty {
    blocks: u64,
    /// The first runs, at most [`MAX_RANGES`], as first block and count.
    runs: Vec<(u64, u64)>,
}

impl Dirty {
    /// `next` finds the first run from a block on. Bounded: clients may wait for this.
    fn new(blocks: u64, next: impl Fn(u64) -> Option<(u64, u64)>) -> Self {
        let runs = std::iter::successors(next(0), |(first, count)| next(first + count));
        Self { blocks, runs: runs.take(MAX_RANGES).collect() }
    }
}

fn of_served(group: &Arc<Group>, peer: Option<&Standing>) -> Divergence {
    let (state, standing, dirty) = group.look(|source| {
        let counts = source.status().dirty_blocks.into_iter().zip(0..);
        let dirty = counts.map(|(blocks, volume)| {
            Dirty::new(blocks, |from| source.next_dirty(VolumeIndex(volume), from, u64::MAX))
        });
        (source.state().clone(), source.standing(), dirty.collect())
    });
    describe(&group.name, &state, &standing, peer, dirty)
}

fn of_fenced(host: &Host, config: &config::Group, peer: Option<&Standing>) -> anyhow::Result<Divergence> {
    let (_lock, store, state) = open_locked(host, config)?;
    let mut state = state.context("the group has no state here")?;
    let bitmaps = divergent_blocks(&store, &mut state);
    let standing = state.standing(state.reserved);
    let dirty = |bitmap: &Bitmap| Dirty::new(bitmap.dirty_blocks(), |from| bitmap.next_run(from, u64::MAX));
    Ok(describe(&config.name, &state, &standing, peer, bitmaps.iter().map(dirty).collect()))
}

fn describe(
    group: &str,
    state: &GroupState,
    own: &Standing,
    peer: Option<&Standing>,
    dirty: Vec<Dirty>,
) -> Divergence {
    // Where the bitmaps cannot be read there are none.
    let dirty = dirty.into_iter().chain(std::iter::repeat_with(Dirty::default));
    let volumes = state.volumes.iter().zip(dirty).map(|(volume, dirty)| divergent(volume, &dirty)).collect();
    let left = state.replaced_by.map(|(_, left_at)| Position::new(state.generation(), left_at));
    let common = peer.and_then(|peer| common(own, peer)).or(left);
    Divergence {
        group: group.to_owned(),
        split_brain: peer.map_or(own.alone && left.is_some(), |peer| both_answered(own, peer)),
        local: history(own),
        peer: peer.map(history),
        common: common.map(position),
        compares_all: state.compare_all,
        volumes,
    }
}

/// Whether clients were answered on both hosts after the histories had parted.
fn both_answered(own: &Standing, peer: &Standing) -> bool {
    match relate(own, peer) {
        Relation::BothForked { .. } => true,
        Relation::Forked { .. } => own.alone,
        Relation::Overtaken { .. } => peer.alone,
        _ => false,
    }
}

/// The last position that both images have.
fn common(own: &Standing, peer: &Standing) -> Option<Position> {
    match relate(own, peer) {
        Relation::Behind { fork } | Relation::Forked { fork } => {
            Some(Position::new(own.lineage.current(), fork))
        }
        Relation::Ahead { fork } | Relation::Overtaken { fork } => {
            Some(Position::new(peer.lineage.current(), fork))
        }
        Relation::BothForked { common } => Some(common),
        Relation::Same | Relation::Blank | Relation::Unrelated => None,
    }
}

fn history(standing: &Standing) -> History {
    let past = standing.lineage.past().iter().map(|(generation, at)| Position::new(*generation, *at));
    History {
        role: match standing.role {
            Role::Primary => status::Role::Primary,
            Role::Standby => status::Role::Standby,
            Role::Fenced => status::Role::Fenced,
        },
        generation: standing.lineage.current().to_string(),
        past: past.map(position).collect(),
        sequence: standing.sequence.0,
        alone: standing.alone,
        parted_us: Some(standing.parted.0).filter(|us| *us > 0),
    }
}

fn divergent(volume: &VolumeState, dirty: &Dirty) -> DivergentVolume {
    let range = |(first, count): &(u64, u64)| {
        let offset = first * BLOCK_BYTES;
        // The last block may be short.
        let length = (count * BLOCK_BYTES).min(volume.size_bytes.saturating_sub(offset));
        Range { offset, length }
    };
    let ranges: Vec<_> = dirty.runs.iter().map(range).collect();
    let named_blocks: u64 = dirty.runs.iter().map(|(_, count)| count).sum();
    let more_bytes = dirty.blocks.saturating_sub(named_blocks) * BLOCK_BYTES;
    DivergentVolume {
        name: volume.name.clone(),
        size_bytes: volume.size_bytes,
        divergent_bytes: ranges.iter().map(|range| range.length).sum::<u64>() + more_bytes,
        ranges,
        more_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divergent_of(runs: &[(u64, u64)], blocks: u64) -> DivergentVolume {
        let size_bytes = 1_000_000 * BLOCK_BYTES + 512;
        let volume = VolumeState { name: "v".into(), size_bytes, identity: Vec::new() };
        let next = |from: u64| runs.iter().find(|(first, _)| *first >= from).copied();
        divergent(&volume, &Dirty::new(blocks, next))
    }

    #[test]
    fn the_ranges_are_bounded_and_the_bytes_are_all_of_them() {
        let runs: Vec<_> = (0..5_000).map(|n| (n * 10, 2)).collect();
        let found = divergent_of(&runs, 10_000);
        assert_eq!((found.ranges.len(), found.divergent_bytes), (MAX_RANGES, 10_000 * BLOCK_BYTES));
        assert_eq!(found.more_bytes, 8_000 * BLOCK_BYTES);
        assert_eq!(found.ranges[1], Range { offset: 10 * BLOCK_BYTES, length: 2 * BLOCK_BYTES });
    }

    #[test]
    fn a_short_last_block_counts_with_its_bytes() {
        let found = divergent_of(&[(999_999, 2)], 2);
        assert_eq!((found.divergent_bytes, found.more_bytes), (BLOCK_BYTES + 512, 0));
        let none = divergent_of(&[], 0);
        assert_eq!((none.divergent_bytes, none.ranges.len()), (0, 0));
    }
}
