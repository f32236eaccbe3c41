//! What a daemon knows when it is asked, and its text.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use afterimage_contract::status::{GroupStatus, Status};
use afterimage_events::Count;
use afterimage_protocol::latency::Latencies;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::registry::Registry;

use crate::families::FAMILIES;
use crate::sample::{Samples, Value};

/// What the encoder writes as `+Inf`.
const NO_BOUND: f64 = f64::MAX;

/// What a daemon knows of itself and its groups at one moment.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// `agent` or `receiver`.
    pub daemon: &'static str,
    /// Its part of the status document.
    pub status: Status,
    /// What it counts beside that, by group. Groups without are left out.
    pub numbers: BTreeMap<String, Numbers>,
    /// What the groups are meant to achieve, by the name of each configured group.
    pub objectives: BTreeMap<String, (Option<Duration>, Option<Duration>)>,
    /// What has happened since the daemon was started.
    pub events: Vec<Count>,
}

/// What a daemon counts of a group beside its status. `None` is unknown, or none of this daemon's business.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// Both hosts have writes of their own.
    pub split_brain: Option<bool>,
    /// The volumes are served to clients.
    pub serving: Option<bool>,
    /// The standby has all that was admitted before this time, by the primary's clock, in microseconds since 1970.
    pub safe_until_us: Option<u64>,
    /// Bytes that were sent and that the standby does not have on stable storage yet.
    pub in_flight_bytes: Option<u64>,
    /// Counts of the volumes, in the order of the status.
    pub volumes: Vec<VolumeNumbers>,
    /// Bytes that were read for catch-ups and verifications.
    pub read_bytes: Option<u64>,
    /// How long clients' writes took until they were answered.
    pub answered: Option<Latencies>,
    /// How long records took until they were on stable storage at the standby.
    pub durable: Option<Latencies>,
    /// How long the group was not protected as it is configured to be, in microseconds.
    pub unprotected_us: Option<u64>,
    /// The standby could be promoted now.
    pub promotable: Option<bool>,
    /// When the standby got to its checkpoints.
    pub checkpoints: Checkpoints,
    /// Age of the oldest checkpoint of the standby that is not in its base, in microseconds.
    pub apply_lag_us: Option<u64>,
    /// Bytes of frames that the standby was sent, as they are in its journal or base.
    pub received_bytes: Option<u64>,
    /// Bytes that were written to the base from the journal.
    pub applied_bytes: Option<u64>,
    /// How long each batch took from the journal to the base.
    pub applied: Option<Latencies>,
}

/// When a standby got to its checkpoints, by its own clock, in microseconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checkpoints {
    /// The newest.
    pub newest_us: Option<u64>,
    /// The newest on stable storage.
    pub durable_us: Option<u64>,
    /// The oldest that can be recovered.
    pub oldest_us: Option<u64>,
}

/// Counts of a volume.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeNumbers {
    /// Bytes that clients wrote or zeroed.
    pub written_bytes: u64,
    /// Bytes that clients read.
    pub read_bytes: u64,
}

/// A group, as the functions of `families` see it.
pub(crate) struct GroupView<'a> {
    pub status: &'a GroupStatus,
    pub numbers: &'a Numbers,
}

impl Scrape {
    /// All metrics as OpenMetrics text, which Prometheus reads.
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupView<'_>> {
        static NONE: std::sync::LazyLock<Numbers> = std::sync::LazyLock::new(Numbers::default);
        self.status
            .groups
            .iter()
            .map(|status| GroupView { status, numbers: self.numbers.get(&status.name).unwrap_or(&NONE) })
    }

    /// How often what `wanted` chooses has happened to a group.
    pub(crate) fn happened(&self, group: &str, wanted: impl Fn(&Count) -> bool) -> u64 {
        self.events
            .iter()
            .filter(|count| count.group == group && wanted(count))
            .map(|count| count.count)
            .sum()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in FAMILIES {
            let mut samples = Samples::default();
            family.source.collect(self, &mut samples);
            let samples = samples.into_vec();
            if samples.is_empty() {
                continue;
            }
            // Those of counters end in `_total`, which the encoder adds.
            let name = family.name.strip_suffix("_total").unwrap_or(family.name);
            let mut metric = encoder.encode_descriptor(name, family.help, None, family.kind.metric_type())?;
            for (labels, value) in &samples {
                family.kind.encode(metric.encode_family(labels)?, value)?;
            }
        }
        Ok(())
    }
}

impl crate::families::Kind {
    fn encode(self, mut metric: MetricEncoder<'_>, value: &Value) -> fmt::Result {
        match (self, value) {
            (Self::Counter, Value::Number(number)) => {
                metric.encode_counter::<NoLabelSet, _, f64>(number, None)
            }
            (_, Value::Number(number)) => metric.encode_gauge(number),
            (_, Value::Latencies(latencies)) => {
                let bucket = |(bound, count): (Option<u64>, u64)| {
                    (bound.map_or(NO_BOUND, |us| us as f64 / 1e6), count)
                };
                let buckets: Vec<_> = latencies.classes().map(bucket).collect();
                let sum = latencies.sum_us() as f64 / 1e6;
                metric.encode_histogram::<NoLabelSet>(sum, latencies.count(), &buckets, None)
            }
        }
    }
}
