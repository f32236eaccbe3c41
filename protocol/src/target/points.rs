//! Checkpoints: which were received, which are durable, and what the source has been told (rule 1).

use super::*;

/// Checkpoints kept for the applier are at least this far apart in the journal, in bytes.
const APPLY_STEP_BYTES: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct Points {
    end: Lsn,
    durable: Lsn,
    newest: Option<Checkpoint>,
    durable_point: Option<Checkpoint>,
    /// Checkpoints that are not durable yet, in order.
    pending: VecDeque<Checkpoint>,
    /// Some of the checkpoints after the base, in order; the newest among them.
    applicable: VecDeque<Checkpoint>,
    told_received: Sequence,
    told_durable: Sequence,
    /// With rule 1 off: a record inside an epoch.
    loose: Option<(Lsn, Sequence)>,
}

impl Points {
    pub fn new(end: Lsn) -> Self {
        Self {
            end,
            durable: end,
            newest: None,
            durable_point: None,
            pending: VecDeque::new(),
            applicable: VecDeque::new(),
            told_received: Sequence(0),
            told_durable: Sequence(0),
            loose: None,
        }
    }

    pub fn end(&self) -> Lsn {
        self.end
    }

    pub fn durable(&self) -> Lsn {
        self.durable
    }

    pub fn newest(&self) -> Option<Checkpoint> {
        self.newest
    }

    pub fn durable_point(&self) -> Option<Checkpoint> {
        self.durable_point
    }

    pub fn appended(&mut self, end: Lsn) {
        self.end = end;
    }

    pub fn found(&mut self, point: Checkpoint) {
        self.newest = Some(point);
        self.pending.push_back(point);
        let dense = self
            .applicable
            .len()
            .checked_sub(2)
            .and_then(|n| self.applicable.get(n))
            .is_some_and(|before| point.lsn.0 < before.lsn.0 + APPLY_STEP_BYTES);
        if dense {
            self.applicable.pop_back();
        }
        self.applicable.push_back(point);
    }

    pub fn all_durable(&mut self) {
        self.synced(self.end);
    }

    pub fn synced(&mut self, durable: Lsn) {
        self.durable = self.durable.max(durable);
        while self.pending.front().is_some_and(|p| p.lsn <= self.durable) {
            self.durable_point = self.pending.pop_front();
        }
    }

    /// The base itself has become this checkpoint, durably, and the journal holds nothing before it.
    pub fn set_base(&mut self, point: Checkpoint) {
        self.pending.clear();
        self.applicable.clear();
        self.newest = Some(point);
        self.durable_point = Some(point);
    }

    /// Everything at and after `at` was cut off; `chosen` ends there, if it was an older checkpoint that was asked for.
    pub fn cut(&mut self, at: Lsn, chosen: Option<Checkpoint>) {
        self.end = at;
        self.durable = self.durable.min(at);
        self.pending.retain(|p| p.lsn <= at);
        self.applicable.retain(|p| p.lsn <= at);
        if self.newest.is_some_and(|p| p.lsn > at) {
            self.newest = chosen;
            self.durable_point = chosen.filter(|point| point.lsn <= self.durable);
            // Not every checkpoint is kept for the applier.
            if let Some(point) = chosen.filter(|c| self.applicable.back().is_none_or(|p| p.lsn < c.lsn)) {
                self.applicable.push_back(point);
            }
        }
    }

    /// A new session is told everything anew.
    pub fn forget_told(&mut self) {
        self.told_received = self.newest.map_or(Sequence(0), |p| p.position.sequence);
        self.told_durable = self.durable_point.map_or(Sequence(0), |p| p.position.sequence);
        self.loose = None;
    }

    pub fn bytes_unsynced(&self) -> u64 {
        self.end.0.saturating_sub(self.durable.0)
    }

    /// The furthest checkpoint to apply up to: at or before `limit`, aged, within `batch_bytes` of `from` unless the next one is
    /// further away by itself.
    pub fn to_apply(&self, from: Lsn, oldest_us: Time, batch_bytes: u64, limit: Lsn) -> Option<Checkpoint> {
        // In order of place and of time: a long history is not looked through for what is not ripe yet.
        let ripe = |p: &&Checkpoint| p.lsn <= limit && p.time <= oldest_us;
        let mut points = self.applicable.iter().skip_while(|p| p.lsn <= from).take_while(ripe);
        let first = points.next()?;
        let within = points.take_while(|p| p.lsn.0 <= from.0 + batch_bytes).last();
        Some(*within.unwrap_or(first))
    }

    /// The first checkpoint that waits to be applied.
    pub fn next_to_apply(&self, from: Lsn) -> Option<&Checkpoint> {
        self.applicable.iter().find(|p| p.lsn > from && p.lsn <= self.durable)
    }

    pub fn applied(&mut self, to: Lsn) {
        while self.applicable.front().is_some_and(|p| p.lsn <= to) {
            self.applicable.pop_front();
        }
    }
}

impl Target {
    /// Since when there are checkpoints that are not in the base; `None` when all are.
    pub fn unapplied_since(&self) -> Option<Time> {
        self.points.applicable.iter().find(|point| point.lsn > self.journal_start).map(|point| point.time)
    }

    /// When this host got to the oldest position that may be offered, by its clock; `None` when that was in an earlier run.
    pub fn oldest_time(&self) -> Option<Time> {
        let base = self.state.base?.position;
        self.raised.filter(|point| point.position == base).map(|point| point.time)
    }

    pub(super) fn checkpoint(&mut self, position: Position, lsn: Lsn) {
        self.points.found(Checkpoint { position, lsn, time: self.now });
        self.checks.reached(position, lsn);
    }

    /// With rule 1 off, a record inside an epoch is acknowledged like any other.
    pub(super) fn loose_record(&mut self, lsn: Lsn, sequence: Sequence) {
        if !self.rules.on(Rule::AckIsCheckpoint) {
            self.points.loose = Some((lsn, sequence));
        }
    }

    /// The next acknowledgement, if there is something new to say.
    pub(super) fn next_ack(&mut self) -> Option<Output> {
        let session = self.session.active()?;
        let p = &mut self.points;
        let loose = |limit: Lsn| p.loose.filter(|(l, _)| *l <= limit).map_or(Sequence(0), |(_, s)| s);
        let received = p.newest.map_or(Sequence(0), |p| p.position.sequence).max(loose(p.end));
        let durable = p.durable_point.map_or(Sequence(0), |p| p.position.sequence).max(loose(p.durable));
        let message = if durable > p.told_durable {
            p.told_durable = durable;
            p.told_received = p.told_received.max(durable);
            TargetMessage::Durable { sequence: durable }
        } else if received > p.told_received {
            p.told_received = received;
            TargetMessage::Received { sequence: received }
        } else {
            return None;
        };
        Some(Output::Send { session, message })
    }

    /// When the journal is to be synced, if nobody asks for it before.
    pub(super) fn idle_sync_at(&self) -> Option<Time> {
        let since = self.unsynced_since.filter(|_| self.syncing.is_none())?;
        Some(since.plus_us(SYNC_DELAY_US).max(self.next_idle_sync))
    }

    pub(super) fn pump_sync(&mut self) {
        if self.syncing.is_some() || self.points.bytes_unsynced() == 0 {
            return;
        }
        let late = self.idle_sync_at().is_some_and(|at| self.now >= at);
        let awaited = self.sync_wanted || self.session.wants_durable();
        if awaited || late || self.points.bytes_unsynced() >= SYNC_BYTES {
            self.syncing = Some(self.now);
            self.sync_wanted = false;
            self.unsynced_since = None;
            self.outputs.push_back(Output::SyncJournal { awaited });
        }
    }

    /// The journal is durable up to `durable`; `None`: it cannot be made so.
    pub fn journal_synced(&mut self, now: Time, durable: Option<Lsn>) {
        let took_us = self.syncing.take().map_or(0, |began| now.since_us(began));
        self.next_idle_sync = now.plus_us(took_us.saturating_mul(SYNC_PART).min(MAX_SYNC_PAUSE_US));
        match durable {
            Some(lsn) => {
                self.points.synced(lsn);
                if self.points.bytes_unsynced() > 0 && self.unsynced_since.is_none() {
                    self.unsynced_since = Some(now);
                }
                self.staged_synced(lsn);
                self.kept_synced(lsn);
                self.clear_lost_if_committed();
            }
            None => self.fail(super::JOURNAL_SYNC_FAILED),
        }
        self.pump(now);
    }

    /// An entry was appended; `None`: it could not be, and neither was any that [`Target::poll`] gave after it.
    pub fn appended(&mut self, now: Time, frame: &Frame, end: Option<Lsn>) {
        self.now = self.now.max(now);
        let Some(end) = end else {
            self.end_session("the journal is full");
            self.journal_full = true;
            if self.epoch.is_some() {
                self.rest.no_room(self.now);
            }
            // Nothing may follow the one that is missing.
            self.outputs.retain(|o| !matches!(o, Output::Append(_)));
            self.drop_staged();
            self.pump(now);
            return;
        };
        let start = self.points.end();
        self.points.appended(end);
        self.unsynced_since.get_or_insert(now);
        self.last_appended = self.now;
        self.entry_appended(start, end, frame);
        self.pump(now);
    }
}
