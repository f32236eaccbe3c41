//! What the metrics count of a group beside its status.

use std::collections::BTreeMap;
use std::sync::Arc;

use afterimage_contract::config::Config;
use afterimage_contract::status::Status;
use afterimage_metrics::{Daemon, Numbers, VolumeNumbers};

use crate::admin::Admin;
use crate::supervisor::{Phase, Supervisor};

impl Daemon for Admin {
    fn look(&self) -> (Status, BTreeMap<String, Numbers>) {
        let numbers = self.groups.iter().map(|(name, supervisor)| (name.clone(), numbers(supervisor)));
        (self.status(), numbers.collect())
    }

    fn config(&self) -> Arc<Config> {
        self.reloader.running()
    }
}

fn numbers(supervisor: &Supervisor) -> Numbers {
    let split_brain = Some(supervisor.link.state().split_brain);
    let Phase::Served { group, exports, watched } = supervisor.phase() else {
        return Numbers { split_brain, serving: Some(false), ..Numbers::default() };
    };
    let (status, counters) = group.look(|source| (source.status(), source.counters().clone()));
    let volumes = group.volumes.iter().zip(&counters.written_bytes);
    let volumes = volumes.map(|(volume, written_bytes)| VolumeNumbers {
        written_bytes: *written_bytes,
        read_bytes: volume.read_bytes(),
    });
    Numbers {
        split_brain,
        serving: Some(exports.is_some()),
        safe_until_us: watched.safe_until().map(|time| time.0),
        in_flight_bytes: Some(status.in_flight_bytes),
        volumes: volumes.collect(),
        read_bytes: Some(counters.read_bytes),
        answered: Some(counters.answered),
        durable: Some(counters.durable),
        unprotected_us: Some(watched.unprotected_us()),
        ..Numbers::default()
    }
}
