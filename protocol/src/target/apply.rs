//! Redo from the journal to the base (rule 16).
//!
//! One batch at a time: `oldest` is raised durably to the batch's end, then the base is written, synced, and the journal
//! trimmed. A batch that fails is redone from the journal as a whole; nothing is fsynced twice and called durable.

use super::*;
use crate::state::BasePoint;

/// A batch covers about this much of the journal, in bytes; an epoch is always one batch.
const BATCH_BYTES: u64 = 64 << 20;
/// A batch that nobody waits for begins no sooner than this after the one before, in microseconds: each costs two writes of
/// the superblock and a sync of every base.
const INTERVAL_US: u64 = 1_000_000;
/// Nothing has come for this long, in microseconds: a pause, in which a batch takes disk and processors from nobody.
pub(super) const PAUSE_US: u64 = 100_000;
/// How long a batch should wait for a pause, in microseconds. What is written again meanwhile is written once to the base, and a
/// promotion finds no more than what came in this time and in a second.
pub const PATIENCE_US: u64 = 2_000_000;
/// A batch of this size does not wait, in bytes: what was received last is still in memory.
pub(super) const LARGE_BYTES: u64 = BATCH_BYTES / 4 * 3;
/// A batch that failed is tried again after this long, in microseconds.
const RETRY_US: u64 = 5_000_000;
/// History gives way when the journal is this full, in eighths.
const FULL_EIGHTHS: u64 = 6;

#[derive(Debug)]
pub(super) enum Apply {
    Idle,
    Raising { version: u64, to: Lsn },
    Writing { to: Lsn, point: Option<BasePoint> },
    Syncing { to: Lsn, point: Option<BasePoint> },
    Failed { until: Time },
}

impl Target {
    /// When a batch begins, if there is one that can and it is not large.
    pub(super) fn apply_at(&self) -> Option<Time> {
        match self.apply {
            Apply::Failed { until } => Some(until),
            Apply::Idle if self.failed.is_none() && self.promoting.is_none() && !self.holds_apply() => {
                let from = self.state.base.map_or(self.journal_start, |b| b.lsn);
                let point = self.points.next_to_apply(from)?;
                let due = point.time.plus_us(self.config.history_us).max(self.next_batch);
                let pause = self.last_appended.plus_us(PAUSE_US);
                Some(due.max(pause.min(due.plus_us(self.config.patience_us))))
            }
            _ => None,
        }
    }

    /// A batch that failed may be tried again.
    pub(super) fn retry_apply(&mut self) {
        if matches!(self.apply, Apply::Failed { until } if self.now >= until) {
            self.apply = Apply::Idle;
        }
    }

    pub(super) fn pump_apply(&mut self) {
        let Some(base) = self.state.base else { return };
        if !matches!(self.apply, Apply::Idle) || self.promoting.is_some() || self.holds_apply() {
            return;
        }
        if self.journal_start < base.lsn {
            // A batch was under way when the process ended: it is redone.
            self.write_batch(base.lsn, None);
            return;
        }
        let full = self.is_full();
        let aged = match self.config.history_us {
            0 => Time(u64::MAX),
            _ if full => Time(u64::MAX),
            us => Time(self.now.0.saturating_sub(us)),
        };
        let rests = self.apply_at().is_some_and(|at| self.now < at) && !full;
        if rests && self.points.end().0 < base.lsn.0 + LARGE_BYTES {
            return;
        }
        let durable_only = self.rules.on(Rule::ApplyDurable);
        let limit = if durable_only { self.points.durable() } else { self.points.end() };
        let limit = self.apply_limit().map_or(limit, |held| held.min(limit));
        let point = self.points.to_apply(base.lsn, aged, BATCH_BYTES, limit);
        if let Some(point) = point.filter(|p| !rests || p.lsn.0 >= base.lsn.0 + LARGE_BYTES) {
            self.next_batch = self.now.plus_us(INTERVAL_US);
            self.begin_batch(point);
        }
    }

    pub(super) fn begin_batch(&mut self, point: Checkpoint) {
        let raised = BasePoint { position: point.position, lsn: point.lsn };
        self.raised = Some(point);
        if self.rules.on(Rule::OldestFirst) {
            self.state.base = Some(raised);
            let version = self.persist();
            self.apply = Apply::Raising { version, to: point.lsn };
        } else {
            self.write_batch(point.lsn, Some(raised));
        }
    }

    /// Redoes a batch that was under way.
    pub(super) fn redo_batch(&mut self, to: Lsn) {
        self.write_batch(to, None);
    }

    fn write_batch(&mut self, to: Lsn, point: Option<BasePoint>) {
        self.apply = Apply::Writing { to, point };
        self.outputs.push_back(Output::Apply { to, skip: self.skip.clone() });
    }

    pub(super) fn apply_noted(&mut self, version: u64) {
        if let Apply::Raising { version: v, to } = self.apply
            && v <= version
        {
            self.write_batch(to, None);
        }
    }

    /// The batch is in the bases, not yet durable; or it could not be written.
    pub fn applied(&mut self, now: Time, ok: bool) {
        self.now = self.now.max(now);
        let Apply::Writing { to, point } = self.apply else { return };
        if !ok {
            self.apply = Apply::Failed { until: self.now.plus_us(RETRY_US) };
        } else if self.rules.on(Rule::TrimAfterSync) {
            self.apply = Apply::Syncing { to, point };
            self.outputs.push_back(Output::SyncBase);
        } else {
            self.batch_done(to, point);
        }
        self.pump(now);
    }

    /// Whether the sync of the base that ended was the applier's.
    pub(super) fn apply_base_synced(&mut self, ok: bool) -> bool {
        let Apply::Syncing { to, point } = self.apply else { return false };
        if ok {
            self.batch_done(to, point);
        } else {
            self.apply = Apply::Failed { until: self.now.plus_us(RETRY_US) };
        }
        true
    }

    fn batch_done(&mut self, to: Lsn, point: Option<BasePoint>) {
        self.apply = Apply::Idle;
        if point.is_some() {
            self.state.base = point;
            self.persist();
        }
        self.journal_full = false;
        self.journal_start = to;
        self.points.applied(to);
        self.skip.retain(|(_, end)| *end > to);
        self.overlay.applied(to);
        self.outputs.push_back(Output::Trim { before: to });
    }

    /// Whether less than the configured history is kept because the journal has no room for it.
    pub fn cuts_history(&self) -> bool {
        self.config.history_us > 0 && self.is_full()
    }

    fn is_full(&self) -> bool {
        self.journal_full
            || self.points.end().0 - self.journal_start.0 > self.config.journal_bytes / 8 * FULL_EIGHTHS
    }

    /// Whether a batch is under way.
    pub(super) fn applying(&self) -> bool {
        !matches!(self.apply, Apply::Idle | Apply::Failed { .. })
    }

    /// The part of the journal that is not in the base yet.
    pub fn unapplied(&self) -> std::ops::Range<Lsn> {
        self.journal_start..self.points.end().max(self.journal_start)
    }

    /// The last position whose writes are all in the base.
    pub fn applied_to(&self) -> Option<Position> {
        self.state.base.filter(|b| b.lsn <= self.journal_start).map(|b| b.position)
    }
}
