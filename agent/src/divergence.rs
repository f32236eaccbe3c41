//! How the histories of both hosts differ, for an operator who has to name the side that stays. Changes nothing.

use std::sync::Arc;

use afterimage_contract::admin::{
    Divergence, DivergentVolume, ErrorCode, History, MAX_RANGES, Range, Response,
};
use afterimage_contract::config;
use afterimage_contract::status;
use afterimage_protocol::lineage::{Relation, Standing, relate};
use afterimage_protocol::state::{GroupState, Role, VolumeState};
use afterimage_protocol::{BLOCK_BYTES, BlockRange, Position, bitmap};
use afterimage_storage::disk::RealDir;
use afterimage_storage::group::{GroupStore, divergent_blocks};
use anyhow::{Context, anyhow};

use crate::group::Group;
use crate::open::{Host, group_dir};
use crate::reinstate::lock;
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

fn of_served(group: &Arc<Group>, peer: Option<&Standing>) -> Divergence {
    let (state, standing, dirty) = group.look(|source| {
        let dirty: Vec<_> = source.dirty().collect();
        (source.state().clone(), source.standing(), dirty)
    });
    describe(&group.name, &state, &standing, peer, dirty.into_iter())
}

fn of_fenced(host: &Host, config: &config::Group, peer: Option<&Standing>) -> anyhow::Result<Divergence> {
    let path = group_dir(host, config);
    let _lock = lock(&path, config)?;
    let dir = Arc::new(RealDir::open(&path).with_context(|| format!("cannot open {path:?}"))?);
    let (store, state) = GroupStore::open(dir).context("cannot open the state of the group")?;
    let mut state = state.context("the group has no state here")?;
    let bitmaps = divergent_blocks(&store, &mut state);
    let standing = state.standing(state.reserved);
    Ok(describe(&config.name, &state, &standing, peer, bitmap::runs(&bitmaps)))
}

fn describe(
    group: &str,
    state: &GroupState,
    own: &Standing,
    peer: Option<&Standing>,
    dirty: impl Iterator<Item = BlockRange>,
) -> Divergence {
    let mut volumes: Vec<_> = state.volumes.iter().map(untouched).collect();
    for range in dirty {
        if let Some(volume) = volumes.get_mut(range.volume.0 as usize) {
            add(volume, range);
        }
    }
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

fn untouched(volume: &VolumeState) -> DivergentVolume {
    DivergentVolume {
        name: volume.name.clone(),
        size_bytes: volume.size_bytes,
        divergent_bytes: 0,
        ranges: Vec::new(),
        more_bytes: 0,
    }
}

fn add(volume: &mut DivergentVolume, range: BlockRange) {
    let offset = range.first * BLOCK_BYTES;
    // The last block may be short.
    let length = (range.count * BLOCK_BYTES).min(volume.size_bytes.saturating_sub(offset));
    volume.divergent_bytes += length;
    if volume.ranges.len() < MAX_RANGES {
        volume.ranges.push(Range { offset, length });
    } else {
        volume.more_bytes += length;
    }
}
