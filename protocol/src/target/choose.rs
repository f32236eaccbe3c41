//! Points older than the newest checkpoint: which of them a promotion is wanted at, and what lies after it (rule 18).
//!
//! The shell reads the journal and feeds a [`Search`] with its entries; what is found is decided here.

use std::fmt;

use super::*;
use crate::block_set::BlockSet;

/// The point that a promotion is wanted at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The newest checkpoint at or before this sequence.
    Sequence(Sequence),
    /// The newest checkpoint at or before this time of the source's clock.
    Time(Time),
    /// A bookmark. There are none.
    Bookmark,
}

/// A point that can be chosen: its sequence, and when it was reached at the source, if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The sequence.
    pub sequence: Sequence,
    /// By the source's clock.
    pub time: Option<Time>,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.sequence)
    }
}

/// The points that can be chosen, and those between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no such point: the oldest one here is {oldest}, the newest {newest}")]
pub struct NoSuchPoint {
    /// The base of the standby.
    pub oldest: Point,
    /// The oldest one that can be chosen by its time.
    pub oldest_timed: Option<Point>,
    /// The newest checkpoint.
    pub newest: Point,
}

/// What lies after a chosen point.
#[derive(Clone, Debug, Default)]
pub struct Discarded {
    /// Count of writes.
    pub records: u64,
    /// Bytes written by them, and by the blocks of epochs.
    pub bytes: u64,
    /// The newest checkpoint, if it is not the chosen one.
    pub newest: Option<Point>,
    blocks: BlockSet,
}

/// A chosen point.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Base and journal up to here make it.
    pub point: Checkpoint,
    /// When it was reached at the source, if that is known.
    pub time: Option<Time>,
    /// What a promotion there gives up.
    pub discarded: Discarded,
}

impl Choice {
    /// The blocks that differ from those of the newest checkpoint.
    pub(super) fn blocks(&self) -> Vec<BlockRange> {
        self.discarded.blocks.runs()
    }
}

/// A search for a point, to be fed with the entries of the journal in order, from its start to its end.
#[derive(Clone, Debug)]
pub struct Search {
    wanted: Wanted,
    base: Lsn,
    skip: Vec<(Lsn, Lsn)>,
    in_epoch: bool,
    /// A checkpoint was passed that is later than what is wanted.
    passed: bool,
    oldest: Point,
    oldest_timed: Option<Point>,
    newest: Point,
    chosen: Option<(Checkpoint, Option<Time>)>,
    discarded: Discarded,
}

impl Search {
    /// The next entry of the journal; its payload does not matter.
    pub fn entry(&mut self, start: Lsn, end: Lsn, frame: &Frame) {
        let reached = match frame {
            Frame::EpochBegin { .. } => {
                self.in_epoch = true;
                None
            }
            Frame::EpochAbort { .. } => {
                self.in_epoch = false;
                None
            }
            Frame::EpochCommit { position, time, .. } | Frame::Point { position, time } => {
                self.in_epoch = false;
                Some((*position, *time))
            }
            Frame::Record(r) => (!self.in_epoch).then_some((r.position, r.time)),
            _ => None,
        };
        if end <= self.base {
            return;
        }
        let counts = !self.skip.iter().any(|(from, to)| start >= *from && start < *to);
        if let Some(range) = frame.written_range() {
            self.discarded.blocks.insert(range.blocks());
            if counts {
                self.discarded.bytes += range.length;
                self.discarded.records += u64::from(matches!(frame, Frame::Record(_)));
            }
        }
        if let Some((position, time)) = reached.filter(|_| counts) {
            self.reached(Checkpoint { position, lsn: end, time });
        }
    }

    fn reached(&mut self, point: Checkpoint) {
        self.newest = Point { sequence: point.position.sequence, time: Some(point.time) };
        self.oldest_timed.get_or_insert(self.newest);
        self.passed |= match self.wanted {
            Wanted::Sequence(sequence) => point.position.sequence > sequence,
            Wanted::Time(time) => point.time > time,
            Wanted::Bookmark => true,
        };
        if self.passed {
            self.discarded.newest = Some(self.newest);
        } else {
            self.chosen = Some((point, Some(point.time)));
            self.discarded = Discarded::default();
        }
    }

    /// All entries were fed.
    pub fn finish(self) -> Result<Choice, NoSuchPoint> {
        let beyond = matches!(self.wanted, Wanted::Sequence(sequence) if sequence > self.newest.sequence);
        match self.chosen.filter(|_| !beyond) {
            Some((point, time)) => Ok(Choice { point, time, discarded: self.discarded }),
            None => {
                Err(NoSuchPoint { oldest: self.oldest, oldest_timed: self.oldest_timed, newest: self.newest })
            }
        }
    }
}

impl Target {
    /// Begins a search for the point that a promotion is wanted at. Changes nothing; holds for the journal as it is now.
    pub fn search(&self, wanted: Wanted) -> Result<Search, CannotPromote> {
        self.may_promote()?;
        self.new_search(wanted).ok_or(CannotPromote::NoCheckpoint)
    }

    pub(super) fn new_search(&self, wanted: Wanted) -> Option<Search> {
        let base = self.state.base?;
        // When the base was reached is not known any more, so no time chooses it.
        let oldest = Point { sequence: base.position.sequence, time: None };
        let by_sequence = matches!(wanted, Wanted::Sequence(sequence) if sequence >= oldest.sequence);
        let point = Checkpoint { position: base.position, lsn: base.lsn, time: self.now };
        Some(Search {
            wanted,
            base: base.lsn,
            skip: self.skipped(),
            in_epoch: false,
            passed: false,
            oldest,
            oldest_timed: None,
            newest: oldest,
            chosen: by_sequence.then_some((point, None)),
            discarded: Discarded::default(),
        })
    }
}
