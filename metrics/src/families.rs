//! The metrics: name, kind, meaning, and where each value comes from.
//!
//! Names have base units (seconds, bytes). What is not known has no series. `docs/monitoring/README.md` has a line for each, and a
//! test compares the two.

use afterimage_contract::config::Mode;
use afterimage_contract::status::{Protection, Role, VerificationState};
use afterimage_events::Event;
use afterimage_protocol::BLOCK_BYTES;
use prometheus_client::metrics::MetricType;

use crate::sample::Samples;
use crate::scrape::{GroupView, Scrape, VolumeNumbers};

/// What a metric does as time goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Goes up, and begins at 0 when the daemon or the group is started.
    Counter,
    /// Counts of durations, by how long they were.
    Histogram,
}

impl Kind {
    /// As in the text format and the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }

    pub(crate) fn metric_type(self) -> MetricType {
        match self {
            Self::Gauge => MetricType::Gauge,
            Self::Counter => MetricType::Counter,
            Self::Histogram => MetricType::Histogram,
        }
    }
}

pub(crate) struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub source: Source,
}

pub(crate) enum Source {
    Host(fn(&Scrape, &mut Samples)),
    Group(fn(&GroupView<'_>, &mut Samples)),
}

impl Source {
    pub fn collect(&self, scrape: &Scrape, samples: &mut Samples) {
        match self {
            Self::Host(collect) => collect(scrape, samples),
            Self::Group(collect) => {
                for group in scrape.groups() {
                    samples.label(&[("group", &group.status.name), ("peer", &group.status.peer.name)]);
                    collect(&group, samples);
                }
            }
        }
    }
}

/// Name, kind and meaning of every metric.
pub fn described() -> impl Iterator<Item = (&'static str, Kind, &'static str)> {
    FAMILIES.iter().map(|family| (family.name, family.kind, family.help))
}

const fn host(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    collect: fn(&Scrape, &mut Samples),
) -> Family {
    Family { name, kind, help, source: Source::Host(collect) }
}

const fn gauge(name: &'static str, help: &'static str, collect: fn(&GroupView<'_>, &mut Samples)) -> Family {
    Family { name, kind: Kind::Gauge, help, source: Source::Group(collect) }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    collect: fn(&GroupView<'_>, &mut Samples),
) -> Family {
    Family { name, kind: Kind::Counter, help, source: Source::Group(collect) }
}

const fn histogram(
    name: &'static str,
    help: &'static str,
    collect: fn(&GroupView<'_>, &mut Samples),
) -> Family {
    Family { name, kind: Kind::Histogram, help, source: Source::Group(collect) }
}

pub(crate) const FAMILIES: &[Family] = &[
    // The daemon.
    host("afterimage_build_info", Kind::Gauge, "Always 1; the labels say what runs", |scrape, out| {
        let labels = [("daemon", scrape.daemon), ("version", env!("CARGO_PKG_VERSION"))];
        out.labelled(&labels, Some(1.0));
    }),
    host(
        "afterimage_start_timestamp_seconds",
        Kind::Gauge,
        "When the daemon was started, in seconds since 1970",
        |scrape, out| {
            let since = |daemon: &Option<afterimage_contract::status::Daemon>| daemon.as_ref()?.since_us;
            out.label(&[("daemon", scrape.daemon)]);
            out.us(since(&scrape.status.agent).or(since(&scrape.status.receiver)));
        },
    ),
    host(
        "afterimage_events_total",
        Kind::Counter,
        "Events that the daemon has logged or left out (docs/events.md), by their id; the group is empty for what concerns the host",
        |scrape, out| {
            for count in &scrape.events {
                let labels = [("group", count.group.as_str()), ("event", count.event.id())];
                out.labelled(&labels, Some(count.count as f64));
            }
        },
    ),
    host(
        "afterimage_role_changes_total",
        Kind::Counter,
        "Times that this host's role for the group has changed",
        |scrape, out| {
            for group in scrape.objectives.keys() {
                let count = scrape.happened(group, |count| count.event.is_role_change());
                out.labelled(&[("group", group)], Some(count as f64));
            }
        },
    ),
    host(
        "afterimage_checksum_errors_total",
        Kind::Counter,
        "Bytes from the peer or from a disk that were not those that were sent or written",
        |scrape, out| {
            for group in scrape.objectives.keys() {
                let count = scrape.happened(group, |count| count.event == Event::ChecksumError);
                out.labelled(&[("group", group)], Some(count as f64));
            }
        },
    ),
    host(
        "afterimage_refused_keys_total",
        Kind::Counter,
        "Connections that were refused because of their key, or that refused this host's",
        |scrape, out| {
            let count = scrape.happened("", |count| count.event == Event::KeyRefused);
            out.labelled(&[("daemon", scrape.daemon)], Some(count as f64));
        },
    ),
    host(
        "afterimage_objective_rpo_seconds",
        Kind::Gauge,
        "The group's objectives.rpo; none if it has none",
        |scrape, out| {
            for (group, (rpo, _)) in &scrape.objectives {
                out.labelled(&[("group", group)], rpo.map(|rpo| rpo.as_secs_f64()));
            }
        },
    ),
    host(
        "afterimage_objective_rto_seconds",
        Kind::Gauge,
        "The group's objectives.rto; none if it has none",
        |scrape, out| {
            for (group, (_, rto)) in &scrape.objectives {
                out.labelled(&[("group", group)], rto.map(|rto| rto.as_secs_f64()));
            }
        },
    ),
    // What the group is.
    gauge(
        "afterimage_role",
        "1 for what this host is for the group: primary, standby or fenced",
        |group, out| {
            out.states("role", ROLES, role(group.status.role));
        },
    ),
    gauge("afterimage_protection", "1 for how well the group is protected (docs/status.md)", |group, out| {
        let states = Protection::ALL.iter().filter_map(|protection| name(*protection));
        out.states("state", states, name(group.status.protection));
    }),
    gauge(
        "afterimage_protection_since_timestamp_seconds",
        "Since when it is protected like that, in seconds since 1970",
        |group, out| out.us(group.status.since_us),
    ),
    gauge("afterimage_mode", "1 for the mode that is configured: sync or async", |group, out| {
        let mode = match group.status.mode {
            Mode::Sync => "sync",
            Mode::Async => "async",
        };
        out.states("mode", ["sync", "async"], Some(mode));
    }),
    gauge(
        "afterimage_level",
        "1 for the level that is reached now: sync (nothing that was acknowledged would be lost), async (what is on its way would be), none",
        |group, out| {
            let level = match group.status.protection {
                Protection::InSync => "sync",
                Protection::AsyncStreaming => "async",
                _ => "none",
            };
            out.states("level", ["sync", "async", "none"], Some(level));
        },
    ),
    gauge(
        "afterimage_warning",
        "1 for each thing that is wrong or needs a decision (docs/status.md)",
        |group, out| {
            let mut known: Vec<&str> = Vec::new();
            for warning in &group.status.warnings {
                if !known.contains(&warning.id.as_str()) {
                    known.push(&warning.id);
                    out.labelled(&[("id", &warning.id)], Some(1.0));
                }
            }
        },
    ),
    gauge("afterimage_serving", "Whether the volumes are served to clients", |group, out| {
        out.flag(group.numbers.serving);
    }),
    gauge("afterimage_promotable", "Whether this standby could be promoted now", |group, out| {
        out.flag(group.numbers.promotable);
    }),
    gauge("afterimage_split_brain", "Whether both hosts have writes of their own", |group, out| {
        out.flag(group.numbers.split_brain);
    }),
    // The peer.
    gauge("afterimage_peer_connected", "Whether there is a session with the peer", |group, out| {
        out.flag(Some(group.status.peer.connected));
    }),
    gauge("afterimage_peer_paired", "Whether a key of the peer is pinned", |group, out| {
        out.flag(Some(group.status.peer.fingerprint.is_some()));
    }),
    gauge(
        "afterimage_peer_round_trip_seconds",
        "Round trip to the peer; none without a session",
        |group, out| {
            out.us(group.status.peer.rtt_us);
        },
    ),
    // What a loss of the primary would cost.
    gauge(
        "afterimage_transport_lag_seconds",
        "On the primary: age of the oldest write that the standby lacks; none while that is unknown",
        |group, out| out.number(group.status.lag.map(|lag| lag.seconds)),
    ),
    gauge(
        "afterimage_transport_lag_bytes",
        "On the primary: bytes that the standby lacks; none while that is unknown",
        |group, out| out.count(group.status.lag.map(|lag| lag.bytes)),
    ),
    gauge(
        "afterimage_safe_until_timestamp_seconds",
        "All that was written before this time, by the primary's clock in seconds since 1970, is at the standby; it moves on without writes too, and stands still while the lag is unknown; none while nothing is known",
        |group, out| out.us(group.numbers.safe_until_us),
    ),
    gauge(
        "afterimage_checkpoint_timestamp_seconds",
        "On the standby: when it got to its newest checkpoint, the newest durable one and the oldest that can be recovered, by its clock in seconds since 1970",
        |group, out| {
            let points = group.numbers.checkpoints;
            for (point, us) in
                [("newest", points.newest_us), ("durable", points.durable_us), ("oldest", points.oldest_us)]
            {
                out.labelled(&[("point", point)], us.map(|us| us as f64 / 1e6));
            }
        },
    ),
    gauge(
        "afterimage_apply_lag_seconds",
        "On the standby: age of the oldest checkpoint that is not in the base; history keeps it back on purpose",
        |group, out| out.us(group.numbers.apply_lag_us),
    ),
    gauge(
        "afterimage_sequence",
        "Places in the write order: admitted (primary), received, durable, applied (standby)",
        |group, out| {
            let admitted = group.status.position.as_ref().filter(|_| group.status.role == Role::Primary);
            for (point, sequence) in [
                ("admitted", admitted.map(|position| position.sequence)),
                ("received", group.status.received_sequence),
                ("durable", group.status.durable_sequence),
                ("applied", group.status.journal.as_ref().and_then(|journal| journal.applied_sequence)),
            ] {
                out.labelled(&[("point", point)], sequence.map(|sequence| sequence as f64));
            }
        },
    ),
    counter(
        "afterimage_degraded_seconds_total",
        "On the primary: how long the group was not protected as it is configured to be",
        |group, out| out.us(group.numbers.unprotected_us),
    ),
    // What waits.
    gauge(
        "afterimage_dirty_bytes",
        "On the primary: bytes of the volume's blocks that the standby may lack",
        |group, out| {
            for volume in &group.status.volumes {
                out.labelled(&[("volume", &volume.name)], volume.dirty_bytes.map(|bytes| bytes as f64));
            }
        },
    ),
    gauge("afterimage_queue_bytes", "On the primary: bytes in the queue, sent or not", |group, out| {
        out.count(group.status.queued_bytes);
    }),
    gauge("afterimage_queue_limit_bytes", "On the primary: bound of the queue", |group, out| {
        out.count(group.status.queue_limit_bytes);
    }),
    gauge(
        "afterimage_in_flight_bytes",
        "On the primary: bytes that were sent and that the standby does not have on stable storage yet",
        |group, out| out.count(group.numbers.in_flight_bytes),
    ),
    gauge(
        "afterimage_resync_remaining_bytes",
        "On the primary: bytes of blocks that a catch-up has to carry until writes stream again; 0 when they do",
        |group, out| {
            let status = group.status;
            let left = status.catchup.map(|catchup| catchup.total_bytes.saturating_sub(catchup.done_bytes));
            let left = if status.protection.is_healthy() { Some(0) } else { left.or(status.dirty_bytes) };
            out.count(left.filter(|_| status.role == Role::Primary));
        },
    ),
    // The journal.
    gauge("afterimage_journal_bytes", "On the standby: bytes of the journal", |group, out| {
        out.count(group.status.journal.as_ref().map(|journal| journal.bytes));
    }),
    gauge("afterimage_journal_limit_bytes", "On the standby: bound of the journal", |group, out| {
        out.count(group.status.journal.as_ref().map(|journal| journal.limit_bytes));
    }),
    // What was done.
    counter(
        "afterimage_client_written_bytes_total",
        "On the primary: bytes that clients wrote or zeroed",
        |group, out| {
            volumes(group, out, |volume| volume.written_bytes);
        },
    ),
    counter("afterimage_client_read_bytes_total", "On the primary: bytes that clients read", |group, out| {
        volumes(group, out, |volume| volume.read_bytes);
    }),
    counter(
        "afterimage_resync_read_bytes_total",
        "On the primary: bytes that were read from the volumes for catch-ups and verifications",
        |group, out| out.count(group.numbers.read_bytes),
    ),
    counter(
        "afterimage_sent_bytes_total",
        "On the primary: bytes of what was sent, before it was coded",
        |group, out| {
            out.count(group.status.compression.map(|compression| compression.raw_bytes));
        },
    ),
    counter("afterimage_wire_bytes_total", "On the primary: bytes that were sent for it", |group, out| {
        out.count(group.status.compression.map(|compression| compression.wire_bytes));
    }),
    counter(
        "afterimage_packet_bytes_total",
        "On the primary: bytes of all packets of the sessions, with encryption, headers and what was sent again",
        |group, out| out.count(group.status.compression.map(|compression| compression.packet_bytes)),
    ),
    counter("afterimage_coding_seconds_total", "On the primary: time that compressing took", |group, out| {
        out.us(group.status.compression.map(|compression| compression.coding_us));
    }),
    counter(
        "afterimage_link_wait_seconds_total",
        "On the primary: time that the link kept what was ready to be sent waiting",
        |group, out| out.us(group.status.compression.map(|compression| compression.waiting_us)),
    ),
    counter(
        "afterimage_received_bytes_total",
        "On the standby: bytes of the frames that came, as they are kept",
        |group, out| out.count(group.numbers.received_bytes),
    ),
    counter(
        "afterimage_applied_bytes_total",
        "On the standby: bytes that were written from the journal to the base",
        |group, out| {
            out.count(group.numbers.applied_bytes);
        },
    ),
    histogram(
        "afterimage_acknowledgement_seconds",
        "On the primary: from when a client's write came until it was answered; in sync mode the standby is part of that",
        |group, out| out.latencies(group.numbers.answered.as_ref()),
    ),
    histogram(
        "afterimage_durable_seconds",
        "On the primary: from the admission of a write until it was on stable storage at the standby, while writes stream",
        |group, out| out.latencies(group.numbers.durable.as_ref()),
    ),
    histogram(
        "afterimage_apply_seconds",
        "On the standby: time of each batch from the journal to the base",
        |group, out| {
            out.latencies(group.numbers.applied.as_ref());
        },
    ),
    // The volumes.
    gauge("afterimage_volume_size_bytes", "Size of the volume as it is replicated", |group, out| {
        for volume in &group.status.volumes {
            out.labelled(&[("volume", &volume.name)], volume.size_bytes.map(|bytes| bytes as f64));
        }
    }),
    gauge(
        "afterimage_volume_failed",
        "Whether the volume is not in order; afterimage status says why",
        |group, out| {
            for volume in &group.status.volumes {
                out.labelled(&[("volume", &volume.name)], Some(f64::from(u8::from(volume.error.is_some()))));
            }
        },
    ),
    gauge(
        "afterimage_unreadable_bytes",
        "On the primary: bytes of blocks that cannot be read and that the standby lacks, where the group has one volume",
        |group, out| {
            let blocks: Option<u64> =
                group.status.volumes.iter().filter_map(|v| v.unreadable_blocks).reduce(u64::max);
            out.count(blocks.map(|blocks| blocks * BLOCK_BYTES));
        },
    ),
    // Verification.
    gauge(
        "afterimage_verify_running",
        "On the primary: whether a verification is under way",
        |group, out| {
            let verification = group.status.verification.as_ref();
            out.flag(verification.map(|verification| verification.state == VerificationState::Running));
        },
    ),
    gauge(
        "afterimage_verify_finished_timestamp_seconds",
        "When the last verification ended, in seconds since 1970",
        |group, out| {
            out.us(group.status.verification.as_ref().and_then(|verification| verification.finished_us));
        },
    ),
    gauge(
        "afterimage_verify_done_bytes",
        "What the verification under way, or the last one, has looked at",
        |group, out| {
            out.count(group.status.verification.as_ref().map(|verification| verification.done_bytes));
        },
    ),
    gauge("afterimage_verify_unchecked_bytes", "What of that could not be compared", |group, out| {
        out.count(group.status.verification.as_ref().map(|verification| verification.unchecked_bytes));
    }),
    gauge(
        "afterimage_verify_mismatched_bytes",
        "Bytes of the blocks that it found to differ",
        |group, out| {
            let blocks =
                group.status.verification.as_ref().map(|verification| verification.mismatched_blocks);
            out.count(blocks.map(|blocks| blocks * BLOCK_BYTES));
        },
    ),
    gauge("afterimage_verify_repaired_bytes", "Those of them that are equal again", |group, out| {
        let blocks = group.status.verification.as_ref().map(|verification| verification.repaired_blocks);
        out.count(blocks.map(|blocks| blocks * BLOCK_BYTES));
    }),
];

const ROLES: [&str; 3] = ["primary", "standby", "fenced"];

fn role(role: Role) -> Option<&'static str> {
    Some(match role {
        Role::Primary => "primary",
        Role::Standby => "standby",
        Role::Fenced => "fenced",
        Role::Unrecognized => return None,
    })
}

/// As in the status document.
pub(crate) fn name(protection: Protection) -> Option<&'static str> {
    (protection != Protection::Unrecognized).then(|| protection.name())
}

fn volumes(group: &GroupView<'_>, out: &mut Samples, count: fn(&VolumeNumbers) -> u64) {
    for (volume, numbers) in group.status.volumes.iter().zip(&group.numbers.volumes) {
        out.labelled(&[("volume", &volume.name)], Some(count(numbers) as f64));
    }
}
