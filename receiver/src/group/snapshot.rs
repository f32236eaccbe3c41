//! What the status shows of a group: written by its thread whenever it comes to rest, read by anyone at any time.

use std::sync::{Arc, Mutex, PoisonError};

use afterimage_contract::meter::Meter;
use afterimage_protocol::latency::Latencies;
use afterimage_protocol::{Generation, Position, Sequence, Time};

use crate::link::Link;

/// What a group's thread is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Opening the group.
    #[default]
    Opening,
    /// The group is not the receiver's.
    Elsewhere,
    /// This host is the standby.
    Standby,
    /// The group cannot be opened, or failed.
    Failed {
        /// Why.
        text: String,
        /// Whether a device holds another volume than the one that was replicated.
        wrong_volume: bool,
    },
}

/// The numbers of a group whose standby this host is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// The history that is followed.
    pub generation: Generation,
    /// Where it forked off its parent.
    pub parent: Option<Position>,
    /// The newest checkpoint.
    pub newest: Option<Position>,
    /// When the source reached it, by the source's clock.
    pub newest_time: Option<Time>,
    /// The newest checkpoint on stable storage.
    pub durable: Option<Position>,
    /// The oldest position that may be offered.
    pub oldest: Option<Position>,
    /// What is in the base.
    pub applied: Option<Sequence>,
    /// Where the part of the journal begins that is not in the base, in bytes since there is one; and how long it is.
    pub unapplied: (u64, u64),
    /// Bytes of the journal on the disk.
    pub journal_bytes: u64,
    /// Bytes staged in the open epoch, and whether it is a first sync that goes to the base.
    pub staging: Option<(u64, bool)>,
    /// Whether the journal had no room for the last frame.
    pub journal_full: bool,
    /// When it last had none, by this host's clock.
    pub journal_full_at: Option<Time>,
}

/// What the metrics show of a group whose standby this host is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Details {
    /// It could be promoted.
    pub promotable: bool,
    /// Until when, by the source's clock, all that it had admitted is here.
    pub covered_until: Option<Time>,
    /// When this host got to the newest checkpoint.
    pub newest_time: Option<Time>,
    /// When it got to the newest one on stable storage.
    pub durable_time: Option<Time>,
    /// When it got to the oldest one that can be recovered.
    pub oldest_time: Option<Time>,
    /// Since when there are checkpoints that are not in the base.
    pub unapplied_since: Option<Time>,
    /// Bytes of the frames that came.
    pub received_bytes: u64,
    /// Bytes that were written from the journal to the base.
    pub applied_bytes: u64,
    /// How long each batch took from the journal to the base.
    pub applied: Latencies,
}

impl Details {
    /// The apply lag at `now`, in microseconds: 0 while all checkpoints are in the base.
    pub fn apply_lag_us(&self, now: Time) -> u64 {
        self.unapplied_since.map_or(0, |since| now.since_us(since))
    }
}

/// How fast the work of a standby goes. Bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// What comes of a first sync.
    pub first_sync: Meter,
    /// What gets from the journal to the base.
    pub applied: Meter,
}

impl Rates {
    /// Looks at the numbers of now.
    pub fn note(&mut self, now: Time, numbers: &Numbers) {
        self.first_sync.note(now.0, numbers.staging.filter(|(_, first)| *first).map(|(bytes, _)| bytes));
        self.applied.note(now.0, Some(numbers.unapplied.0));
    }
}

/// The state of a group when its thread last came to rest.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// What the thread does.
    pub phase: Phase,
    /// Since when it does that.
    pub since: Time,
    /// Numbers of a standby; the last known ones otherwise.
    pub numbers: Numbers,
    /// Up to a second old.
    pub details: Details,
    /// How fast it goes.
    pub rates: Rates,
    /// Sizes of the volumes, when they are open.
    pub volume_bytes: Vec<u64>,
    /// The connection of the session.
    pub link: Option<Arc<Link>>,
    /// When the source was last heard of.
    pub source_seen: Option<Time>,
    /// Why the last session ended or was refused, or what last failed.
    pub last_error: Option<String>,
    /// Whether the last session that was asked for was refused.
    pub refused: bool,
}

/// A snapshot that one thread writes and others read.
#[derive(Default)]
pub struct Shared(Mutex<Snapshot>);

impl Shared {
    /// A copy.
    pub fn read(&self) -> Snapshot {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it in place.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
