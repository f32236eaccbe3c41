//! When a client is answered.
//!
//! `async`: the local write is done. `sync`: and the target has it, at the level asked for; FLUSH and FUA wait for stable
//! storage at both ends. Out of sync, `degrade` answers after the local write and `block` holds; a first sync always runs
//! degraded, because there is nothing yet that a promotion could yield.

use super::*;

/// How long a failed approach keeps the next one off, at most, in sync timeouts.
const MAX_REST_TIMEOUTS: u64 = 64;

/// The way of a degraded group back into sync.
#[derive(Debug, Default)]
pub(super) struct Approach {
    step: Step,
    /// Not before this time again.
    rest_until: Time,
    rest_us: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Step {
    /// The target is not known to be close.
    #[default]
    Far,
    /// How long does it take until the target has what was admitted at a certain time?
    Probing { sequence: Sequence, since: Time },
    /// Not long: clients wait for it.
    Closing,
}

impl Approach {
    pub fn is_closing(&self) -> bool {
        self.step == Step::Closing
    }

    /// All that the target lacks is on its way.
    pub fn close_in(&mut self, now: Time) {
        if now >= self.rest_until {
            self.step = Step::Closing;
        }
    }

    fn abandon(&mut self) {
        self.step = Step::Far;
    }

    /// Clients have waited for too long, in sync or on the way to it: they are left alone for a while, longer each time.
    fn fail(&mut self, now: Time, timeout_us: u64) {
        self.step = Step::Far;
        let longest = timeout_us.saturating_mul(MAX_REST_TIMEOUTS);
        self.rest_us = self.rest_us.saturating_mul(2).clamp(timeout_us, longest);
        self.rest_until = now.plus_us(self.rest_us);
    }

    fn go_on(&mut self, now: Time, level: Sequence, sequence: Sequence, timeout_us: u64) {
        match self.step {
            Step::Far if now >= self.rest_until => self.step = Step::Probing { sequence, since: now },
            Step::Probing { sequence: asked, since } if level >= asked => {
                // Half of what clients would wait for at most: what is under way takes as long again.
                let close = now.0.saturating_sub(since.0) <= timeout_us / 2;
                self.step = if close { Step::Closing } else { Step::Probing { sequence, since: now } };
            }
            _ => {}
        }
    }
}

/// Whether clients flush after each write: then the target is asked to make a write durable before the flush for it comes.
#[derive(Debug, Default)]
pub(super) struct FlushHabit {
    /// Writes since the last flush.
    writes: u32,
    /// Flushes in a row that each followed a single write.
    flushes: u32,
}

impl FlushHabit {
    /// So many flushes in a row make it likely that the next write is followed by one too.
    const LIKELY: u32 = 3;

    /// A write is admitted; whether a flush is likely to follow it.
    fn write(&mut self) -> bool {
        self.writes += 1;
        if self.writes > 1 {
            self.flushes = 0;
        }
        self.flushes >= Self::LIKELY
    }

    fn flush(&mut self) {
        self.flushes = if self.writes == 1 { self.flushes.saturating_add(1) } else { 0 };
        self.writes = 0;
    }
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub request: RequestId,
    pub blocks: BlockRange,
    pub arrived: Time,
    pub admitted: Time,
    /// Since when the client waits for nothing but what every client waits for.
    pub since: Time,
    pub local_done: bool,
    pub locked: bool,
    pub fua: bool,
}

#[derive(Debug)]
pub(super) struct PendingFlush {
    request: Option<RequestId>,
    token: u64,
    volume: VolumeIndex,
    stamp: u64,
    /// The last write acknowledged on the volume before the flush came.
    need: Sequence,
    since: Time,
    local_done: bool,
}

impl Source {
    /// The local write of `sequence` has ended.
    pub fn local_done(&mut self, now: Time, sequence: Sequence, result: Result<(), LocalError>) {
        self.now = self.now.max(now);
        let Some(f) = self.in_flight.get_mut(&sequence) else { return };
        let (request, blocks, since, arrived) = (f.request, f.blocks, f.since, f.arrived);
        f.local_done = true;
        self.hot.write_ended(blocks);
        let keep_lock =
            !self.rules.on(Rule::LockEndsLocally) && self.config.mode == Mode::Sync && result.is_ok();
        if !keep_lock {
            self.locks.release(blocks);
            if let Some(f) = self.in_flight.get_mut(&sequence) {
                f.locked = false;
            }
        }
        match result {
            Ok(()) => {
                self.unreadable.remove(blocks);
                self.clear_late(sequence, blocks);
                if self.config.mode == Mode::Async {
                    self.in_flight.remove(&sequence);
                    self.acknowledge(sequence, blocks.volume, since);
                    self.counters.answered(self.now, arrived);
                    self.outputs.push_back(Output::Complete { request, result: Ok(()) });
                }
            }
            Err(error) => {
                self.in_flight.remove(&sequence);
                self.local_failed(blocks);
                if error == LocalError::Flush {
                    self.flush_failed(blocks.volume);
                }
                self.outputs.push_back(Output::Complete { request, result: Err(error) });
            }
        }
        self.pump(now);
    }

    /// The volume now holds something that no record says: it takes a place in the order and is read and sent (rule 5).
    fn local_failed(&mut self, blocks: BlockRange) {
        if !self.rules.on(Rule::ErrorEpoch) {
            return;
        }
        self.sequence = self.sequence.next();
        match &mut self.epoch {
            Some(e) if e.committed.is_none() && self.phase == Phase::CatchUp => {
                e.written(blocks);
                e.put_back(blocks);
            }
            _ => self.fall_to_catch_up(),
        }
    }

    /// What was written to `volume` since its last flush may not reach stable storage, and read as if it had: until the
    /// group is started again, with its volumes as they are on stable storage, every block counts as dirty.
    fn flush_failed(&mut self, volume: VolumeIndex) {
        if let Some(failed) = self.flush_failed.get_mut(volume.0 as usize) {
            *failed = true;
        }
        if self.rules.on(Rule::FailedFlush) {
            self.lose_tracking();
        }
    }

    /// Whether nothing that is written to `volume` can be promised to be durable.
    pub(super) fn cannot_flush(&self, volume: VolumeIndex) -> bool {
        self.flush_failed.get(volume.0 as usize).copied().unwrap_or_default()
    }

    fn acknowledge(&mut self, sequence: Sequence, volume: VolumeIndex, since: Time) {
        self.pace.waited(self.now, Request::Write, self.now.since_us(since));
        self.acknowledged = self.acknowledged.max(sequence);
        if let Some(last) = self.last_acked.get_mut(volume.0 as usize) {
            *last = (*last).max(sequence);
        }
    }

    /// A client wants what was acknowledged on `volume` before now to be on stable storage. Once a flush of the volume
    /// has failed, all do.
    pub fn flush(&mut self, now: Time, request: RequestId, volume: VolumeIndex) {
        self.now = self.now.max(now);
        if self.cannot_flush(volume) {
            self.outputs.push_back(Output::Complete { request, result: Err(LocalError::Flush) });
            return;
        }
        self.flush_habit.flush();
        self.start_local_flush(volume, Some(request));
        self.pump(now);
    }

    pub(super) fn start_local_flush(&mut self, volume: VolumeIndex, request: Option<RequestId>) -> u64 {
        let token = self.token();
        let stamp = self.hot.next_stamp();
        let need = self.last_acked.get(volume.0 as usize).copied().unwrap_or_default();
        self.flushes.push(PendingFlush {
            request,
            token,
            volume,
            stamp,
            need,
            since: self.now,
            local_done: false,
        });
        self.outputs.push_back(Output::LocalFlush { token, volume });
        if request.is_some() {
            self.ask_for_durable(need);
        }
        token
    }

    /// Asks the target to make durable what it has, when a client waits for `need`.
    pub(super) fn ask_for_durable(&mut self, need: Sequence) {
        let remote = self.config.mode == Mode::Sync && self.session.is_active();
        if remote && self.phase == Phase::Streaming && need > self.durable && need > self.asked_durable {
            self.asked_durable = self.sequence;
            self.queue.push(Frame::Mark { sequence: self.sequence, sync: true });
        }
    }

    /// The write that was admitted last has a record: if a flush is likely to follow it, it is to be durable by then.
    pub(super) fn foresee_flush(&mut self) {
        if self.flush_habit.write() {
            self.ask_for_durable(self.sequence);
        }
    }

    /// What has gathered while there was no session is to be safe as soon as it is there: not when it is next time for a sync
    /// that nobody waits for. So is what flushes and FUA writes wait for, which was asked for in the last session.
    pub(super) fn ask_for_all_durable(&mut self) {
        if self.phase == Phase::Streaming && self.sequence > self.durable {
            self.asked_durable = self.sequence;
            self.queue.push(Frame::Mark { sequence: self.sequence, sync: true });
        }
    }

    /// A local flush has ended.
    pub fn local_flushed(&mut self, now: Time, token: u64, ok: bool) {
        self.now = self.now.max(now);
        let Some(at) = self.flushes.iter().position(|f| f.token == token) else { return };
        let (volume, stamp, request) =
            (self.flushes[at].volume, self.flushes[at].stamp, self.flushes[at].request);
        if ok {
            self.hot.flushed(volume, stamp);
            self.flushes[at].local_done = true;
        } else {
            self.flush_failed(volume);
        }
        match request {
            None => {
                self.flushes.swap_remove(at);
                self.cooling_flushed(token);
                if ok {
                    self.handover_flushed(token);
                }
            }
            Some(request) if !ok => {
                self.flushes.swap_remove(at);
                self.outputs.push_back(Output::Complete { request, result: Err(LocalError::Flush) });
            }
            Some(_) => {}
        }
        self.pump(now);
    }

    /// Whether clients are answered without the target.
    fn alone(&self) -> bool {
        let holds = self.needs_peer() || self.is_in_doubt() || self.is_leased();
        self.config.mode == Mode::Async || (!self.in_sync && !holds && !self.approach.is_closing())
    }

    /// Whether no client is answered without the target, however long that takes.
    pub(super) fn needs_peer(&self) -> bool {
        let blocks = self.config.mode == Mode::Sync && self.config.on_link_loss == OnLinkLoss::Block;
        blocks && self.state.peer_has_checkpoint
    }

    pub(super) fn complete_ready(&mut self) {
        self.complete_flushes();
        if self.config.mode == Mode::Async {
            return;
        }
        let alone = self.alone();
        if !alone && !self.in_sync {
            return;
        }
        let level = self.level();
        let mut done = Vec::new();
        for (sequence, f) in &self.in_flight {
            if !alone && *sequence > self.received {
                break;
            }
            let covered = *sequence <= if f.fua { self.durable } else { level };
            if f.local_done && (alone || covered) {
                done.push(*sequence);
            }
        }
        for sequence in done {
            let Some(f) = self.in_flight.remove(&sequence) else { continue };
            if f.locked {
                self.locks.release(f.blocks);
            }
            if f.fua {
                self.promised = self.promised.max(sequence);
            }
            self.acknowledge(sequence, f.blocks.volume, f.since);
            self.counters.answered(self.now, f.arrived);
            self.outputs.push_back(Output::Complete { request: f.request, result: Ok(()) });
        }
    }

    fn complete_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let (alone, in_sync, durable) = (self.alone(), self.in_sync, self.durable);
        let (outputs, promised, pace) = (&mut self.outputs, &mut self.promised, &mut self.pace);
        let now = self.now;
        self.flushes.retain(|f| {
            let remote = alone || (in_sync && durable >= f.need);
            match f.request {
                Some(request) if f.local_done && remote => {
                    *promised = (*promised).max(f.need);
                    pace.waited(now, Request::Flush, now.since_us(f.since));
                    outputs.push_back(Output::Complete { request, result: Ok(()) });
                    false
                }
                _ => true,
            }
        });
    }

    /// The acknowledgement that sync mode waits for.
    pub(super) fn level(&self) -> Sequence {
        match self.config.ack {
            AckLevel::Received => self.received,
            AckLevel::Durable => self.durable,
        }
    }

    /// Whether acknowledged writes are at the target again (rule 3).
    ///
    /// While clients are answered without the target, the last answer may always be ahead of it. So once the target is
    /// close, clients wait for it again before the group says that it is in sync: then what is to be covered stands still.
    pub(super) fn regain_sync(&mut self) {
        if self.config.mode != Mode::Sync || self.in_sync {
            return;
        }
        if self.phase != Phase::Streaming || !self.session.is_active() {
            self.approach.abandon();
            return;
        }
        let late = self.late_at().is_some_and(|at| at <= self.now);
        // What was answered as durable while alone has to be durable there too.
        let durable = self.durable >= self.promised;
        let covers = (self.level() >= self.acknowledged && durable) || !self.rules.on(Rule::InSyncCovers);
        if covers && !late && self.received >= self.recovery {
            self.in_sync = true;
            self.approach = Approach::default();
            return;
        }
        if late && self.approach.is_closing() {
            self.approach.fail(self.now, self.config.sync_timeout_us);
        }
        let (level, sequence) = (self.level(), self.sequence);
        self.approach.go_on(self.now, level, sequence, self.config.sync_timeout_us);
    }

    /// When a sync group that waits for its target stops waiting.
    pub(super) fn degrade_at(&self) -> Option<Time> {
        self.late_at().filter(|_| (self.in_sync || self.approach.is_closing()) && !self.needs_peer())
    }

    /// When the target has let something wait for too long.
    pub(super) fn late_at(&self) -> Option<Time> {
        if self.config.mode != Mode::Sync {
            return None;
        }
        let write = self.in_flight.range(self.level().next()..).map(|(_, f)| f.admitted).next();
        let waits = |f: &&PendingFlush| f.request.is_some() && f.need > self.durable;
        let flush = self.flushes.iter().filter(waits).map(|f| f.since).min();
        let link = (!self.session.is_active()).then_some(self.disconnected_since);
        let oldest = [write, flush, link].into_iter().flatten().min()?;
        Some(oldest.plus_us(self.config.sync_timeout_us))
    }

    pub(super) fn degrade_if_late(&mut self, now: Time) {
        if self.degrade_at().is_some_and(|at| at <= now) {
            self.in_sync = false;
            self.approach.fail(now, self.config.sync_timeout_us);
        }
    }
}
