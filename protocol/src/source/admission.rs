//! A write on its way in.
//!
//! Order of the steps: range lock, hot extents durable, room in the queue, bits, sequence; then the local write and the
//! record start together. A write that has to wait keeps its place before later ones that overlap it.

use super::room::Fill;
use super::*;
use crate::frame::Record;

#[derive(Debug)]
pub(super) struct Waiting {
    request: RequestId,
    write: Write,
    pub blocks: BlockRange,
    arrived: Time,
    /// Until when it waited for room that an async client does not count on.
    held: Time,
}

enum Verdict {
    Admit,
    Wait,
    /// As does every write that came later: a large one would never find the room that small ones take.
    WaitForRoom,
}

impl Source {
    /// A client wants to write. Answered by [`Output::Complete`]. A range outside its volume, or longer than a write may
    /// be, is answered with an error at once; so is a write with `fua` once a flush of the volume has failed.
    pub fn write(&mut self, now: Time, request: RequestId, write: Write) {
        let r = write.range;
        let limit = match write.content {
            Content::Data(_) => MAX_PAYLOAD_BYTES,
            Content::Zeroes { .. } => MAX_ZERO_BYTES,
        };
        let valid = r.length > 0 && r.length <= limit && r.end() <= self.size_bytes(r.volume);
        if !valid || self.waiting.len() >= MAX_WAITING {
            self.outputs.push_back(Output::Complete { request, result: Err(LocalError::Io) });
            return;
        }
        if write.fua && self.cannot_flush(r.volume) {
            self.outputs.push_back(Output::Complete { request, result: Err(LocalError::Flush) });
            return;
        }
        self.now = self.now.max(now);
        let (blocks, arrived) = (r.blocks(), self.now);
        self.waiting.push_back(Waiting { request, blocks, write, arrived, held: Time(0) });
        self.pump(now);
    }

    /// When admission that is held for an epoch to close goes on.
    pub(super) fn hold_ends_at(&self) -> Option<Time> {
        (self.hold_until > self.now && !self.waiting.is_empty()).then_some(self.hold_until)
    }

    /// When a write that waits for room in the queue goes on without.
    pub(super) fn room_wait_ends_at(&self) -> Option<Time> {
        self.room.wait_ends().filter(|_| !self.waiting.is_empty())
    }

    pub(super) fn admit_waiting(&mut self) {
        let waited = self.room.forget_wait();
        if !self.ready || self.waiting.is_empty() {
            return;
        }
        if self.can_never_be_real() {
            let refused = |w: Waiting| Output::Complete { request: w.request, result: Err(LocalError::Io) };
            self.outputs.extend(self.waiting.drain(..).map(refused));
            return;
        }
        let mut passed_by: Vec<BlockRange> = Vec::new();
        let mut index = 0;
        while index < self.waiting.len() {
            let Some(w) = self.waiting.get(index) else { break };
            let blocks = w.blocks;
            let behind = passed_by.iter().any(|p| p.overlaps(&blocks));
            let payload = match &w.write.content {
                Content::Data(p) => p.encoded.len() as u64,
                Content::Zeroes { .. } => 0,
            };
            let verdict = if behind { Verdict::Wait } else { self.may_admit(blocks, payload, waited) };
            match verdict {
                Verdict::Wait => {
                    passed_by.push(blocks);
                    index += 1;
                }
                Verdict::WaitForRoom => break,
                Verdict::Admit => self.waiting.remove(index).into_iter().for_each(|w| self.admit(w)),
            }
        }
        if self.room.wait_ends().is_some() {
            self.waiting.iter_mut().for_each(|w| w.held = self.now);
        }
    }

    /// `waited`: a write has waited for room until now.
    fn may_admit(&mut self, blocks: BlockRange, payload_bytes: u64, waited: Option<Fill>) -> Verdict {
        let held = self.now < self.hold_until;
        let exhausted = self.sequence.next() > self.state.reserved && !self.state_failed;
        // Before it is durable that every block counts as dirty, a power cut would leave no trace of the write.
        let untracked = self.loss_noted_by.is_some() && !self.state_failed;
        // Where clients do not wait for the target, it has to know first that they do not.
        let leased = self.config.mode == Mode::Async && !self.session.is_active() && self.is_leased();
        let held =
            held || leased || self.holds_for_handover() || self.holds_for_growth() || self.is_in_doubt();
        if held || exhausted || untracked || self.state.role != Role::Primary {
            return Verdict::Wait;
        }
        if self.locks.conflicts(blocks) || !self.is_alone_noted() || !self.is_real_noted() {
            return Verdict::Wait;
        }
        let in_volume = self.bitmaps.get(blocks.volume.0 as usize).map_or(0, Bitmap::blocks);
        if !self.tracking_lost && !self.hot.admit(blocks, in_volume, self.rules.on(Rule::HotTogether)) {
            return Verdict::Wait;
        }
        // One record has room, however large it is.
        let (held_bytes, queue_bytes) = (self.queue.bytes(), self.config.queue_bytes);
        let with_it = held_bytes + Queue::cost_of(payload_bytes);
        let exceeds = |fill: &Fill| held_bytes > 0 && with_it > fill.bytes(queue_bytes);
        let fill = [Fill::Full, Fill::Near].into_iter().find(exceeds);
        if let Some(fill) = fill.filter(|_| self.needs_record(blocks)) {
            if self.session.is_active() && self.is_room_waited_for(fill, waited) {
                return Verdict::WaitForRoom;
            }
            if fill == Fill::Full {
                self.overflow();
            }
        }
        Verdict::Admit
    }

    /// Whether a write waits for room in the queue, rather than that the standby falls behind, or records are given up.
    fn is_room_waited_for(&mut self, fill: Fill, waited: Option<Fill>) -> bool {
        match (self.config.mode, self.queue.oldest()) {
            // The write would wait for the target anyway.
            (Mode::Sync, _) => fill == Fill::Full && (self.in_sync || self.approach.is_closing()),
            (Mode::Async, Some(oldest)) if self.phase == Phase::Streaming => {
                let bytes = fill.bytes(self.config.queue_bytes);
                self.room.is_waited_for(self.now, oldest, (fill, bytes), waited)
            }
            (Mode::Async, _) => false,
        }
    }

    fn needs_record(&self, blocks: BlockRange) -> bool {
        match (self.phase, &self.epoch) {
            (Phase::Streaming, _) => true,
            (Phase::CatchUp, Some(e)) if self.session.is_active() => !e.are_unsent(blocks),
            _ => false,
        }
    }

    /// The queue is full: what is not sent is read from the volume later (section 4.4, rule 11).
    fn overflow(&mut self) {
        if self.phase == Phase::Streaming {
            self.fall_to_catch_up();
            return;
        }
        let dropped = self.queue.drop_unsent_records();
        let requeues = self.rules.on(Rule::OverflowRequeues);
        if let (Some(last), Some(e)) = (dropped.last(), &mut self.epoch) {
            if requeues {
                for r in &dropped {
                    e.put_back(r.range.blocks());
                }
            }
            self.queue.push(Frame::Mark { sequence: last.position.sequence, sync: false });
            self.throttle();
        }
    }

    fn admit(&mut self, w: Waiting) {
        let Waiting { request, write, blocks, arrived, held } = w;
        let cost = Queue::cost_of(match &write.content {
            Content::Data(p) => p.encoded.len() as u64,
            Content::Zeroes { .. } => 0,
        });
        let mut records = self.needs_record(blocks);
        if records && self.phase == Phase::CatchUp && self.queue.bytes() + cost > self.config.queue_bytes {
            // All that fills the queue is on its way already: the blocks are read again in its place.
            if let Some(e) = self.epoch.as_mut().filter(|_| self.rules.on(Rule::OverflowRequeues)) {
                e.put_back(blocks);
            }
            records = false;
        }
        self.counters.admitted(write.range);
        self.locks.hold(blocks);
        self.hot.write_started(blocks);
        self.set_bits(blocks);
        self.sequence = self.sequence.next();
        let sequence = self.sequence;
        if self.is_alone() {
            self.alone_until = Some(sequence);
        }
        if let Some(e) = self.epoch.as_mut().filter(|e| e.committed.is_none()) {
            e.written(blocks);
            if !self.session.is_active() && self.rules.on(Rule::EpochResumeRewrites) {
                e.put_back(blocks);
            }
        }
        if records {
            self.push_record_at(sequence, write.range, write.content.clone());
            if write.fua && self.config.mode == Mode::Sync {
                self.queue.push(Frame::Mark { sequence, sync: true });
            } else {
                self.foresee_flush();
            }
        }
        self.in_flight.insert(
            sequence,
            InFlight {
                request,
                blocks,
                arrived,
                admitted: self.now,
                // Being held says nothing of how fast the disk or the link is.
                since: arrived.max(held).max(self.hold_until.min(self.now)),
                local_done: false,
                locked: true,
                fua: write.fua,
            },
        );
        self.outputs.push_back(Output::LocalWrite { sequence, write });
    }

    /// Whether a write that is admitted now may be answered though no session carries it: if the peer is promoted, both
    /// histories go on (section 6 of the design).
    fn is_alone(&self) -> bool {
        !self.session.is_active() && self.state.peer_has_checkpoint && !self.needs_peer()
    }

    /// The target has all that no session had carried.
    pub(super) fn end_alone(&mut self) {
        let durable = self.durable;
        if self.session.is_active() && self.alone_until.take_if(|until| *until <= durable).is_some() {
            self.state.alone = false;
            self.persist();
        }
    }

    /// Whether it is durable that such a write is admitted; asks for it. After a kill nothing else would tell that
    /// clients were answered here.
    fn is_alone_noted(&mut self) -> bool {
        if !self.is_alone() || self.state_failed {
            return true;
        }
        if !self.state.alone {
            self.state.alone = true;
            self.state.parted = self.now;
            // Taken back once the target has all of it, also if the session is back before anything was admitted.
            self.alone_until = Some(self.sequence);
            self.alone_noted_by = Some(self.persist());
        }
        self.alone_noted_by.is_none()
    }

    /// A record with the next sequence.
    pub(super) fn push_record(&mut self, range: ByteRange, content: Content) {
        self.sequence = self.sequence.next();
        self.push_record_at(self.sequence, range, content);
    }

    fn push_record_at(&mut self, sequence: Sequence, range: ByteRange, content: Content) {
        let blocks = range.blocks();
        if self.phase == Phase::Streaming {
            self.recent.insert(blocks, sequence);
            self.clearing.recorded(self.now, sequence, blocks);
        }
        if let Some(e) = &mut self.epoch {
            e.last_record = sequence;
        }
        self.queue.push(Frame::Record(Record {
            position: Position::new(self.state.generation(), sequence),
            range,
            time: self.now,
            content,
            floor: Sequence(0),
        }));
    }
}
