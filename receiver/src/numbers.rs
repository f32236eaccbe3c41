//! What the metrics count of a group beside its status.

use std::collections::BTreeMap;
use std::sync::Arc;

use afterimage_contract::config::Config;
use afterimage_contract::status::Status;
use afterimage_metrics::{Checkpoints, Daemon, Numbers};
use afterimage_protocol::Time;

use crate::group::{Group, Phase};
use crate::node::Node;
use crate::{clock, status};

impl Daemon for Node {
    fn look(&self) -> (Status, BTreeMap<String, Numbers>) {
        let numbers = self.groups().map(|group| (group.name().to_owned(), numbers(group)));
        (status::report(self), numbers.collect())
    }

    fn config(&self) -> Arc<Config> {
        self.reloader.running()
    }
}

fn numbers(group: &Group) -> Numbers {
    let snapshot = group.snapshot();
    if snapshot.phase != Phase::Standby {
        let failed = matches!(snapshot.phase, Phase::Failed { .. });
        return Numbers { promotable: failed.then_some(false), ..Numbers::default() };
    }
    let details = snapshot.details;
    let us = |time: Option<Time>| time.map(|time| time.0);
    Numbers {
        promotable: Some(details.promotable),
        safe_until_us: us(details.covered_until),
        checkpoints: Checkpoints {
            newest_us: us(details.newest_time),
            durable_us: us(details.durable_time),
            oldest_us: us(details.oldest_time),
        },
        apply_lag_us: Some(details.apply_lag_us(clock::now())),
        received_bytes: Some(details.received_bytes),
        applied_bytes: Some(details.applied_bytes),
        applied: Some(details.applied),
        ..Numbers::default()
    }
}
