//! What a run is configured as, the same on both sides.

use std::sync::Arc;

use afterimage_protocol::message::VolumeInfo;
use afterimage_protocol::pace::Background;
use afterimage_protocol::rules::Rules;
use afterimage_protocol::source::*;
use afterimage_protocol::state::{GroupState, VolumeState};
use afterimage_storage::io::File;

use super::model::SIZES;
use super::theme::Shape;
use crate::sim::{Rng, SimDisk};

/// What a run is configured as.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The source's configuration.
    pub config: Config,
    /// Whether the target's copy was there before and is to be compared.
    pub compare: bool,
}

/// Names and sizes, as the machines are configured.
pub fn volume_infos(sizes: &[u64]) -> Vec<VolumeInfo> {
    let info = |(n, size): (usize, &u64)| VolumeInfo { name: format!("v{n}"), size_bytes: *size };
    sizes.iter().enumerate().map(info).collect()
}

pub fn volume_states(sizes: &[u64]) -> Vec<VolumeState> {
    let state =
        |(n, size): (usize, &u64)| VolumeState { name: format!("v{n}"), size_bytes: *size, identity: vec![] };
    sizes.iter().enumerate().map(state).collect()
}

/// The sizes of the volumes as a host has them in its state.
pub fn sizes_in(state: &GroupState) -> [u64; 2] {
    [0, 1].map(|n| state.volumes.get(n).map_or(0, |v| v.size_bytes))
}

pub fn open_volumes(disk: &SimDisk) -> Vec<Arc<dyn File>> {
    (0..SIZES.len()).map(|n| disk.volume(&format!("v{n}"), SIZES[n])).collect()
}

/// All rules but those switched off, in a source's configuration.
pub fn source_config(rng: &mut Rng, rules: Rules, shape: &Shape) -> Config {
    let mode = if rng.coin() { Mode::Sync } else { Mode::Async };
    Config {
        group: "g".into(),
        mode,
        ack: if rng.coin() { AckLevel::Received } else { AckLevel::Durable },
        on_link_loss: if mode == Mode::Sync && rng.chance(0.3) {
            OnLinkLoss::Block
        } else {
            OnLinkLoss::Degrade
        },
        sync_timeout_us: *rng.pick(&[5_000, 50_000, 5_000_000]),
        queue_bytes: *rng.pick(&[12_000, 30_000, 1 << 20]),
        window_bytes: if shape.narrow { 1 } else { *rng.pick(&[1, 12_000, 1 << 20]) },
        hot_capacity: shape.hot_capacity,
        max_rate: rng.chance(0.1).then_some(64 << 20),
        background: Background::default(),
        volumes: volume_infos(&SIZES),
        rules,
    }
}
