//! Catch-up: blocks are read in order under the range lock and sent as an epoch while writing goes on.
//!
//! A cursor goes once over the bitmap. A block ahead of it needs no record when it is written, because it will be read; a
//! block behind it does. What must be read again (a record that overflowed, a frame lost with its session) is requeued and
//! taken in further passes. When nothing is left the epoch commits at the current sequence, and from there on the stream
//! goes on in order.

use super::*;
use crate::block_set::BlockSet;
use crate::frame::{Block, Compare, HASH_BYTES, frame_digest};

/// Blocks of one data read: one frame's payload.
const DATA_RUN_BLOCKS: u64 = MAX_PAYLOAD_BYTES / BLOCK_BYTES;
/// Blocks of the longest read, when all has been zeroes so far.
const ZERO_RUN_BLOCKS: u64 = MAX_ZERO_BYTES / BLOCK_BYTES;
/// Reads under way at once, in number and in bytes: enough to keep a disk busy, with large ones and with small ones.
const MAX_READS: usize = 64;
const MAX_READ_BYTES: u64 = 4 * MAX_PAYLOAD_BYTES;
/// What the target has and has not on stable storage yet may be so many times what may wait to be sent, or else this many bytes
/// if that is less: a sync of its disk must not stop the flow. The bytes are in its files by then, and in nobody's memory.
const UNSYNCED_WINDOWS: u64 = 8;
const UNSYNCED_BYTES: u64 = 128 << 20;
/// Bytes that a frame counts for in the window beside its own.
const FRAME_COST_BYTES: u64 = 256;
/// After this many passes over requeued blocks, admission is held so that the epoch can close (rule 15).
const THROTTLE_AFTER_PASSES: u32 = 3;
/// How long admission is held at most, in microseconds, and for how long not again after that.
const HOLD_US: u64 = 200_000;
/// A block that cannot be read this often stays behind; the epoch commits without it.
const READ_TRIES: u32 = 3;
/// And is tried again this often, in microseconds.
const REPAIR_EVERY_US: u64 = 5_000_000;
/// The reads of such repairs belong to no epoch.
const REPAIR: EpochId = EpochId(0);
/// Bound of what is remembered of blocks rewritten in an epoch; beyond it no bit clears before the commit.
const MAX_REWRITTEN_BYTES: u64 = 32 << 20;

#[derive(Debug)]
pub(super) struct Read {
    pub epoch: EpochId,
    pub blocks: BlockRange,
    pub hash: bool,
}

impl Read {
    /// What comes from the disk at most.
    fn bytes(&self) -> u64 {
        (self.blocks.count * BLOCK_BYTES).min(MAX_PAYLOAD_BYTES)
    }
}

#[derive(Debug)]
struct Outstanding {
    blocks: BlockRange,
    read_at: Sequence,
    cost: u64,
    undecided: bool,
}

#[derive(Debug)]
pub(super) struct Epoch {
    pub id: EpochId,
    cursor: (u32, u64),
    pub cursor_done: bool,
    requeued: BlockSet,
    /// Requeued blocks behind the end of what a read has returned: they are next, so that blocks go in order.
    rests: VecDeque<BlockRange>,
    pub rewritten: BlockSet,
    rewritten_all: bool,
    /// Blocks that differ and must go as data.
    differing: BlockSet,
    outbox: VecDeque<Frame>,
    outbox_bytes: u64,
    outstanding: BTreeMap<FrameId, Outstanding>,
    pub outstanding_bytes: u64,
    next_frame: u64,
    frames: u64,
    digest: u64,
    /// The last record that went to the queue in this epoch.
    pub last_record: Sequence,
    /// Records up to here were freed because the target has them staged durably.
    freed: Sequence,
    pub committed: Option<Sequence>,
    compare: bool,
    /// How often reading a block has failed.
    failed: BTreeMap<(VolumeIndex, u64), u32>,
    passes: u32,
    run_blocks: u64,
    pub sent_bytes: u64,
    sent_blocks: u64,
    total_blocks: u64,
}

impl Epoch {
    fn new(id: EpochId, compare: bool, total_blocks: u64) -> Self {
        Self {
            id,
            cursor: (0, 0),
            cursor_done: false,
            requeued: BlockSet::default(),
            rests: VecDeque::new(),
            rewritten: BlockSet::default(),
            rewritten_all: false,
            differing: BlockSet::default(),
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            outstanding: BTreeMap::new(),
            outstanding_bytes: 0,
            next_frame: 0,
            frames: 0,
            digest: 0,
            last_record: Sequence(0),
            freed: Sequence(0),
            committed: None,
            compare,
            failed: BTreeMap::new(),
            passes: 0,
            run_blocks: DATA_RUN_BLOCKS,
            sent_bytes: 0,
            sent_blocks: 0,
            total_blocks,
        }
    }

    fn is_ahead(&self, volume: VolumeIndex, block: u64) -> bool {
        !self.cursor_done && (volume.0, block) >= self.cursor
    }

    /// The part of `blocks` that the cursor has passed.
    fn behind(&self, blocks: BlockRange) -> BlockRange {
        let end = match blocks.volume.0.cmp(&self.cursor.0) {
            _ if self.cursor_done => blocks.end(),
            std::cmp::Ordering::Less => blocks.end(),
            std::cmp::Ordering::Equal => blocks.end().min(self.cursor.1),
            std::cmp::Ordering::Greater => blocks.first,
        };
        BlockRange { count: end.saturating_sub(blocks.first), ..blocks }
    }

    /// Whether all of `blocks` will still be read in this epoch.
    pub fn are_unsent(&self, blocks: BlockRange) -> bool {
        self.requeued.contains_all(self.behind(blocks))
    }

    /// A client writes `blocks`: those that were sent already clear with the commit only.
    pub fn written(&mut self, blocks: BlockRange) {
        if self.rewritten_all {
            return;
        }
        self.rewritten.insert(self.behind(blocks));
        if self.rewritten.memory_bytes() > MAX_REWRITTEN_BYTES {
            self.rewritten.clear();
            self.rewritten_all = true;
        }
    }

    /// `blocks` have to be read (again).
    pub fn put_back(&mut self, blocks: BlockRange) {
        self.requeued.insert(self.behind(blocks));
    }

    /// No frame still to come was read before this sequence.
    pub fn floor(&self, current: Sequence) -> Sequence {
        self.outstanding.values().next().map_or(current, |o| o.read_at)
    }

    /// Whether only what was put back is left: clients are held until it is sent, if that takes long (rule 15).
    fn closes(&self) -> bool {
        self.cursor_done
    }

    fn is_idle(&self) -> bool {
        self.outbox.is_empty() && !self.outstanding.values().any(|o| o.undecided)
    }

    fn may_try_again(&mut self, block: BlockRange) -> bool {
        let tries = self.failed.entry((block.volume, block.first)).or_default();
        *tries += 1;
        *tries < READ_TRIES
    }

    fn forget_frame(&mut self, frame: FrameId) -> Option<Outstanding> {
        let o = self.outstanding.remove(&frame)?;
        self.outstanding_bytes -= o.cost;
        Some(o)
    }
}

impl ReadOutcome {
    /// How many blocks it is about.
    pub(super) fn blocks(&self) -> u64 {
        match self {
            Self::Data(bytes, _) => blocks_in(bytes.len() as u64),
            Self::Hashes { blocks, .. } | Self::Zeroes { blocks } => *blocks,
            Self::Failed => 0,
        }
    }

    /// Bytes that came from the disk, and bytes that go over the link.
    fn costs(&self) -> (u64, u64) {
        match self {
            Self::Data(bytes, _) => (bytes.len() as u64, bytes.len() as u64),
            Self::Hashes { blocks, hashes } => (blocks * BLOCK_BYTES, hashes.len() as u64),
            // Only a hole is found to be one at a greater length, and is not read.
            Self::Zeroes { blocks } if *blocks <= DATA_RUN_BLOCKS => (blocks * BLOCK_BYTES, 0),
            Self::Zeroes { .. } | Self::Failed => (0, 0),
        }
    }
}

impl Source {
    pub(super) fn remaining_blocks(&self, e: &Epoch) -> u64 {
        e.total_blocks.saturating_sub(e.sent_blocks).max(e.requeued.len())
    }

    pub(super) fn read_again_at(&self) -> Option<Time> {
        let urgent = self.epoch.as_ref()?.closes() || self.needs_peer();
        let at = self.pace.next_at(urgent);
        (at > self.now).then_some(at)
    }

    /// Whether blocks are being sent, or would be.
    pub(super) fn is_catching_up(&self) -> bool {
        self.session.is_active() && self.epoch.as_ref().is_some_and(|e| e.committed.is_none())
    }

    pub(super) fn pump_epoch(&mut self) {
        if self.phase != Phase::CatchUp || !self.session.is_active() || !self.ready {
            return;
        }
        if self.epoch.is_none() {
            self.begin_epoch();
        }
        while self.start_read() {}
        self.commit_epoch();
    }

    fn begin_epoch(&mut self) {
        self.next_epoch += 1;
        let id = EpochId(self.next_epoch);
        self.queue.clear();
        self.unreadable.clear();
        let total = self.bitmaps.iter().map(|b| b.dirty_blocks()).sum();
        self.epoch = Some(Epoch::new(id, self.state.compare_all, total));
        self.queue.push(Frame::EpochBegin {
            epoch: id,
            generation: self.state.generation(),
            incarnation: self.state.incarnation,
        });
    }

    /// Starts the next read, if one may start; whether it did.
    fn start_read(&mut self) -> bool {
        let window = self.config.window_bytes;
        let unsynced = window.saturating_mul(UNSYNCED_WINDOWS).min(UNSYNCED_BYTES.max(window));
        let reading = self.reading_bytes();
        // Where clients wait for the peer, nothing helps them more than the end of the catch-up.
        let needed = self.needs_peer();
        let Some(e) = &mut self.epoch else { return false };
        let reads = self.reads.len() >= MAX_READS || reading >= MAX_READ_BYTES;
        let full = e.outbox_bytes >= window || e.outstanding_bytes >= unsynced;
        let waits = !self.pace.may_read(self.now, reading, e.closes() || needed);
        if e.committed.is_some() || reads || full || waits {
            return false;
        }
        let Some(mut blocks) = next_blocks(&self.bitmaps, e) else { return false };
        match self.locks.first_conflict(blocks) {
            Some(first) if first == blocks.first => return false,
            Some(first) => blocks.count = first - blocks.first,
            None => {}
        }
        let again = !e.is_ahead(blocks.volume, blocks.first);
        if again && e.outstanding.values().any(|o| o.blocks.overlaps(&blocks)) {
            // An older frame of a block must not overtake a newer one: it is staged first.
            return false;
        }
        if !again {
            e.cursor = (blocks.volume.0, blocks.end());
        }
        e.requeued.remove(blocks);
        let differing = e.differing.intersects(blocks);
        let hash = e.compare && !differing;
        if differing {
            e.differing.remove(blocks);
        }
        let epoch = e.id;
        self.locks.hold(blocks);
        let read = self.token();
        self.pace.started();
        self.reads.insert(read, Read { epoch, blocks, hash });
        self.outputs.push_back(Output::Read { read, blocks, hash });
        true
    }

    /// Bytes that are being read.
    pub(super) fn reading_bytes(&self) -> u64 {
        self.reads.values().map(Read::bytes).sum()
    }

    /// A read for the catch-up has ended. What it found is in order from the first block on; the rest of the blocks is read again.
    pub fn blocks_read(&mut self, now: Time, read: u64, outcomes: Vec<ReadOutcome>) {
        self.now = self.now.max(now);
        let Some(r) = self.reads.remove(&read) else { return };
        self.locks.release(r.blocks);
        let (mut disk_bytes, mut sent_bytes) = (0, 0);
        for outcome in &outcomes {
            self.counters.read(r.blocks, outcome);
            let (disk, sent) = outcome.costs();
            (disk_bytes, sent_bytes) = (disk_bytes + disk, sent_bytes + sent);
        }
        self.pace.read(self.now, disk_bytes, sent_bytes);
        if self.epoch.as_ref().is_some_and(|e| e.id == r.epoch && e.committed.is_none()) {
            self.send_blocks(r, outcomes);
        } else if let Some(outcome) = outcomes.into_iter().next() {
            match r.epoch {
                REPAIR => self.repaired(r.blocks, outcome),
                verify::VERIFY => self.check_read(read, r.blocks, outcome),
                _ => {}
            }
        }
        self.pump(now);
    }

    /// What was read goes over the link; what was not, is put back.
    fn send_blocks(&mut self, r: Read, outcomes: Vec<ReadOutcome>) {
        let sequence = self.sequence;
        let size_bytes = self.size_bytes(r.blocks.volume);
        let Some(e) = &mut self.epoch else { return };
        let mut rest = r.blocks;
        for outcome in outcomes {
            let taken = outcome.blocks().min(rest.count);
            let got = BlockRange { count: taken, ..rest };
            rest = BlockRange { first: got.end(), count: rest.count - taken, ..rest };
            if taken > 0 {
                e.emit(got, got.bytes(size_bytes), outcome, sequence, r.hash);
            }
        }
        if rest.count < r.blocks.count {
            e.put_back(rest);
            if rest.count > 0 {
                e.rests.push_back(rest);
            }
        } else if rest.count > 1 {
            e.put_back(rest);
            e.run_blocks = 1;
        } else if e.may_try_again(rest) {
            e.put_back(rest);
        } else {
            self.unreadable.insert(rest);
        }
    }

    fn commit_epoch(&mut self) {
        let Some(e) = &mut self.epoch else { return };
        let reading = self.reads.values().any(|r| r.epoch == e.id);
        if e.committed.is_some() || reading || !e.is_idle() {
            return;
        }
        if next_blocks(&self.bitmaps, e).is_some() || !self.is_checkpoint_noted() {
            return;
        }
        let Some(e) = &mut self.epoch else { return };
        e.committed = Some(self.sequence);
        let compare = e.compare;
        self.queue.push(Frame::EpochCommit {
            epoch: e.id,
            position: Position::new(self.state.generation(), self.sequence),
            time: self.now,
            frames: e.frames,
            digest: e.digest,
        });
        self.phase = Phase::Streaming;
        self.recent.clear();
        self.clearing.committed(self.sequence, compare);
        self.hold_until = Time(0);
        self.approach.close_in(self.now);
    }

    /// Whether it is durable that the target may have a checkpoint: with the first one it can be promoted, and whoever starts
    /// here after that has to ask it first.
    fn is_checkpoint_noted(&mut self) -> bool {
        if !self.state.peer_has_checkpoint {
            self.state.peer_has_checkpoint = true;
            self.checkpoint_noted_by = Some(self.persist());
        }
        self.checkpoint_noted_by.is_none() || !self.rules.on(Rule::FirstCommitNoted)
    }

    /// The target has these frames of the open epoch, and its records up to `records_to`, on stable storage.
    pub(super) fn staged(
        &mut self,
        epoch: EpochId,
        frames: &[(FrameId, u64)],
        records_to: Sequence,
        mark: Option<u64>,
    ) {
        let Some(e) = self.epoch.as_mut().filter(|e| e.id == epoch) else { return };
        let mut blocks = Vec::new();
        for frame in held(&e.outstanding, frames) {
            blocks.extend(e.forget_frame(frame).map(|o| o.blocks));
        }
        let records_to = records_to.min(e.last_record);
        if e.committed.is_none() && records_to > e.freed {
            e.freed = records_to;
            self.queue.free(records_to);
        }
        if let Some(mark) = mark.filter(|_| !e.rewritten_all) {
            self.clear_frames(mark, blocks);
        }
    }

    /// The target says which blocks of a compare frame it lacks.
    pub(super) fn differs(&mut self, epoch: EpochId, frame: FrameId, blocks: &[BlockRange]) {
        let Some(e) = self.epoch.as_mut().filter(|e| e.id == epoch && e.committed.is_none()) else { return };
        let Some(o) = e.outstanding.get_mut(&frame) else { return };
        o.undecided = false;
        let asked = o.blocks;
        for b in blocks.iter().filter(|b| b.volume == asked.volume) {
            let first = b.first.max(asked.first);
            let range = BlockRange { first, count: b.end().min(asked.end()).saturating_sub(first), ..asked };
            e.differing.insert(range);
            e.requeued.insert(range);
            e.rewritten.insert(range);
            e.total_blocks += range.count;
        }
    }

    /// Takes up the open epoch where the target has it; whether that is possible (rule 9).
    pub(super) fn resume_epoch(&mut self, open: &crate::message::OpenEpoch) -> bool {
        let foreign = open.incarnation != self.state.incarnation;
        if foreign && !self.rules.on(Rule::EpochIncarnation) {
            // A hasty reading: what the target has staged need not be sent again.
            let staged: u64 = open.frames.iter().map(|(_, n)| *n).sum();
            let mut e = Epoch::new(open.epoch, false, 0);
            (e.cursor_done, e.frames, e.digest, e.next_frame) = (true, staged, open.digest, 1 << 40);
            self.epoch = Some(e);
            return true;
        }
        let Some(e) = self.epoch.as_mut().filter(|e| e.id == open.epoch) else { return false };
        if foreign || e.committed.is_some() || open.records_to < e.freed {
            return false;
        }
        e.outbox.clear();
        e.outbox_bytes = 0;
        for frame in held(&e.outstanding, &open.frames) {
            // A verdict that was under way is lost with its session: those blocks are compared again.
            if let Some(o) = e.forget_frame(frame).filter(|o| o.undecided) {
                e.put_back(o.blocks);
            }
        }
        for (frame, o) in std::mem::take(&mut e.outstanding) {
            e.frames -= 1;
            e.digest = e.digest.wrapping_sub(frame_digest(frame, o.read_at));
            e.put_back(o.blocks);
        }
        e.outstanding_bytes = 0;
        let staged: u64 = open.frames.iter().map(|(_, n)| *n).fold(0, u64::saturating_add);
        if staged != e.frames || open.digest != e.digest {
            return false;
        }
        let last_record = e.last_record;
        self.queue.rewind(open.records_to);
        // Frames may wait for a record that has overflowed since: the mark stands for it.
        self.queue.push(Frame::Mark { sequence: last_record, sync: false });
        true
    }
}

impl Epoch {
    fn emit(&mut self, blocks: BlockRange, range: ByteRange, outcome: ReadOutcome, at: Sequence, hash: bool) {
        let frame = FrameId(self.next_frame);
        let (epoch, after) = (self.id, self.last_record);
        let mut undecided = false;
        let message = match outcome {
            ReadOutcome::Data(bytes, checksum) => {
                self.run_blocks = DATA_RUN_BLOCKS;
                let raw_bytes = bytes.len() as u32;
                let content = Content::Data(crate::frame::Payload {
                    codec: crate::frame::Codec::Raw,
                    raw_bytes,
                    checksum,
                    encoded: bytes,
                });
                Frame::Block(Block { epoch, frame, range, read_at: at, after, content })
            }
            ReadOutcome::Hashes { hashes, .. } if hash => {
                debug_assert_eq!(hashes.len() as u64, blocks.count * HASH_BYTES as u64);
                self.run_blocks = DATA_RUN_BLOCKS;
                undecided = true;
                Frame::Compare(Compare { epoch, frame, range, read_at: at, after, hashes })
            }
            ReadOutcome::Zeroes { .. } => {
                self.run_blocks = (self.run_blocks * 2).min(ZERO_RUN_BLOCKS);
                let content = Content::Zeroes { punch: true };
                Frame::Block(Block { epoch, frame, range, read_at: at, after, content })
            }
            ReadOutcome::Hashes { .. } | ReadOutcome::Failed => {
                self.put_back(blocks);
                return;
            }
        };
        self.next_frame += 1;
        self.frames += 1;
        self.digest = self.digest.wrapping_add(frame_digest(frame, at));
        let cost = frame_cost(&message);
        self.sent_bytes += range.length;
        self.sent_blocks += blocks.count;
        self.outstanding_bytes += cost;
        self.outstanding.insert(frame, Outstanding { blocks, read_at: at, cost, undecided });
        self.outbox_bytes += cost;
        self.outbox.push_back(message);
    }

    pub fn has_block(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The next frame for a block stream.
    pub fn take_block(&mut self) -> Option<Frame> {
        let frame = self.outbox.pop_front()?;
        self.outbox_bytes -= frame_cost(&frame);
        Some(frame)
    }
}

/// What a frame counts for in the window, in bytes.
fn frame_cost(frame: &Frame) -> u64 {
    frame.encoded_len() as u64 + FRAME_COST_BYTES
}

impl Source {
    /// When a block that could not be read is tried again.
    pub(super) fn repair_at(&self) -> Option<Time> {
        let idle = self.phase == Phase::Streaming && self.session.is_active() && !self.repairing;
        (idle && !self.unreadable.is_empty()).then_some(self.next_repair)
    }

    /// Tries to read one of the blocks that an epoch had to leave behind.
    pub(super) fn pump_repair(&mut self) {
        if self.repair_at().is_none_or(|at| at > self.now) || self.sequence >= self.state.reserved {
            return;
        }
        let Some(blocks) = self.unreadable.first_run(1).filter(|b| !self.locks.conflicts(*b)) else { return };
        self.next_repair = self.now.plus_us(REPAIR_EVERY_US);
        self.repairing = true;
        self.locks.hold(blocks);
        let read = self.token();
        self.reads.insert(read, Read { epoch: REPAIR, blocks, hash: false });
        self.outputs.push_back(Output::Read { read, blocks, hash: false });
    }

    /// A block can be read again: it goes as a record that writes what is there, so the order stays what it is.
    fn repaired(&mut self, blocks: BlockRange, outcome: ReadOutcome) {
        self.repairing = false;
        if self.phase != Phase::Streaming {
            return;
        }
        let range = blocks.bytes(self.size_bytes(blocks.volume));
        let content = match outcome {
            ReadOutcome::Data(bytes, checksum) if bytes.len() as u64 == range.length => {
                let raw_bytes = bytes.len() as u32;
                let codec = crate::frame::Codec::Raw;
                Content::Data(crate::frame::Payload { codec, raw_bytes, checksum, encoded: bytes })
            }
            ReadOutcome::Zeroes { .. } => Content::Zeroes { punch: false },
            _ => return,
        };
        self.unreadable.remove(blocks);
        self.push_record(range, content);
    }
}

/// The frames of `runs` that are outstanding; a lying run costs no more than what is outstanding.
fn held(outstanding: &BTreeMap<FrameId, Outstanding>, runs: &[(FrameId, u64)]) -> Vec<FrameId> {
    runs.iter()
        .flat_map(|(first, count)| {
            let end = FrameId(first.0.saturating_add(*count));
            outstanding.range(*first..end.max(*first)).map(|(f, _)| *f)
        })
        .collect()
}

/// The next run of blocks to read: what a read has left over, then ahead of the cursor, then what else was put back.
fn next_blocks(bitmaps: &[Bitmap], e: &mut Epoch) -> Option<BlockRange> {
    while let Some(rest) = e.rests.front() {
        if let Some(run) = e.requeued.next_run(rest.volume, rest.first, rest.end(), e.run_blocks) {
            return Some(run);
        }
        e.rests.pop_front();
    }
    while !e.cursor_done {
        let (volume, from) = e.cursor;
        let Some(bitmap) = bitmaps.get(volume as usize) else {
            e.cursor_done = true;
            break;
        };
        if let Some((first, count)) = bitmap.next_run(from, e.run_blocks) {
            return Some(BlockRange { volume: VolumeIndex(volume), first, count });
        }
        e.cursor = (volume + 1, 0);
    }
    e.requeued.first_run(e.run_blocks)
}

impl Source {
    /// Holds admission for a while when passes over requeued blocks do not come to an end by themselves.
    pub(super) fn throttle(&mut self) {
        let Some(e) = self.epoch.as_mut().filter(|e| e.committed.is_none() && e.cursor_done) else { return };
        e.passes += 1;
        let rested = self.now >= self.hold_until.plus_us(HOLD_US);
        if e.passes >= THROTTLE_AFTER_PASSES && rested && self.rules.on(Rule::Throttle) {
            self.hold_until = self.now.plus_us(HOLD_US);
        }
    }
}
