//! Verification: the whole of both copies is compared while writing goes on (rule 25).
//!
//! A cursor goes over all blocks of all volumes. A run of blocks is read and hashed under the range lock, and its hashes go to
//! the ordered stream as a [`Check`] at once: behind every record that the read has seen, before every one that it has not. So
//! the target compares them with its image at exactly that sequence, and a difference is one.
//!
//! Checks are answered in order, and count in order: what the report says is true of all blocks before its cursor. When the
//! stream ends (a lost session, a full queue, a catch-up) all that was not answered is asked again once records stream again.
//!
//! With `repair` the bits of blocks that differ are set at a new sequence, and a catch-up carries them like any other change;
//! the walk goes on when it is durable. The report, with its cursor and what is being repaired, is noted now and then, and a
//! restarted source goes on from there. A note that is lost costs only time: blocks are compared again.
//!
//! What cannot be compared is counted, never guessed: blocks that cannot be read, that are written without a pause, or of which
//! the target's journal holds too much.

use super::*;
use crate::block_set::BlockSet;
use crate::frame::{Check, HASH_BYTES};
use crate::message::MAX_RANGES;

/// The reads of a verification belong to no epoch.
pub(super) const VERIFY: EpochId = EpochId(u64::MAX);
/// Blocks of one check: a write that comes meanwhile waits for a read of 256 KiB at most.
const RUN_BLOCKS: u64 = 64;
/// Blocks of the longest check, when all have been zeroes so far.
const ZERO_RUN_BLOCKS: u64 = 4096;
/// Bytes under check at once: enough for 1 Gbit/s and a standby that is busy for a tenth of a second.
const WINDOW_BYTES: u64 = 16 << 20;
/// Checks under way at once; the target takes four times as many.
const MAX_ASKED: usize = 64;
/// Bytes that a hole counts for in the rate: it is not read.
const HOLE_COST_BYTES: u64 = BLOCK_BYTES;
/// A block that is written without a pause for so long is left out, in microseconds.
const PATIENCE_US: u64 = 1_000_000;
/// The report is noted this often, in microseconds: what is compared again after a crash.
const NOTE_EVERY_US: u64 = 10_000_000;
/// Ranges of differing blocks that a report lists.
const MAX_LISTED: usize = 100;
/// Version of a stored report.
const NOTE_VERSION: u32 = 1;

/// What is to be verified, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Make the target's blocks that differ equal to the source's.
    pub repair: bool,
    /// Bound of the reading, in bytes a second; 0 for none.
    pub rate: u64,
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyState {
    /// It goes on.
    UnderWay,
    /// Every block was looked at.
    Finished,
    /// It was given up.
    Cancelled,
}

/// A verification and what it has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The history that is verified.
    pub generation: Generation,
    /// How far it is.
    pub state: VerifyState,
    /// What was asked for.
    pub options: VerifyOptions,
    /// When it began.
    pub started: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// All before this volume and block counts below.
    pub cursor: (VolumeIndex, u64),
    /// Blocks that were looked at.
    pub passed_blocks: u64,
    /// Those of them that could not be compared.
    pub unchecked_blocks: u64,
    /// Those of them that differed.
    pub mismatched_blocks: u64,
    /// Those of them that are equal again.
    pub repaired_blocks: u64,
    /// Some of those that differed, the first ones.
    pub differing: Vec<BlockRange>,
    /// Blocks that a catch-up is to carry, at least.
    pub mending: Vec<BlockRange>,
}

#[derive(Debug)]
struct Asked {
    id: CheckId,
    blocks: BlockRange,
    /// Its blocks that differ, and how many could not be compared.
    answer: Option<(Vec<BlockRange>, u64)>,
}

#[derive(Debug)]
struct Run {
    report: Verification,
    /// What is read next.
    next: (VolumeIndex, u64),
    run_blocks: u64,
    reading: Option<u64>,
    asked: VecDeque<Asked>,
    next_read_at: Time,
    /// Since when the next block cannot be locked.
    blocked_since: Option<Time>,
    /// Blocks that differ, to be repaired.
    found: BlockSet,
    /// Blocks that a catch-up carries, from this sequence on.
    mending: Option<(Sequence, BlockSet)>,
    next_note: Time,
}

/// The verification under way, if there is one, and the last.
#[derive(Debug, Default)]
pub(super) struct Verifier {
    run: Option<Run>,
    last: Option<Verification>,
    next_check: u64,
    note_wanted: bool,
    noting: bool,
}

impl Run {
    fn new(report: Verification, now: Time) -> Self {
        Self {
            next: report.cursor,
            report,
            run_blocks: RUN_BLOCKS,
            reading: None,
            asked: VecDeque::new(),
            next_read_at: now,
            blocked_since: None,
            found: BlockSet::default(),
            mending: None,
            next_note: now.plus_us(NOTE_EVERY_US),
        }
    }

    /// What is under way is asked again.
    fn start_over(&mut self) {
        self.next = self.report.cursor;
        self.run_blocks = RUN_BLOCKS;
        self.reading = None;
        self.asked.clear();
        self.blocked_since = None;
    }

    fn asked_bytes(&self) -> u64 {
        self.asked.iter().map(|a| a.blocks.count * BLOCK_BYTES).sum()
    }

    /// Passes over blocks that cannot be compared.
    fn leave_out(&mut self, blocks: BlockRange) {
        self.asked.push_back(Asked { id: CheckId(0), blocks, answer: Some((Vec::new(), blocks.count)) });
        self.next = (blocks.volume, blocks.end());
        self.blocked_since = None;
    }

    /// Counts the answers that have come, in order.
    fn count_answers(&mut self) {
        while self.asked.front().is_some_and(|a| a.answer.is_some()) {
            let Some(Asked { blocks, answer: Some((differing, unchecked)), .. }) = self.asked.pop_front()
            else {
                return;
            };
            let r = &mut self.report;
            r.cursor = (blocks.volume, blocks.end());
            r.passed_blocks += blocks.count;
            r.unchecked_blocks += unchecked;
            for range in differing {
                r.mismatched_blocks += range.count;
                let listed = r.differing.len();
                match r.differing.last_mut() {
                    Some(last) if last.volume == range.volume && last.end() == range.first => {
                        last.count += range.count;
                    }
                    _ if listed < MAX_LISTED => r.differing.push(range),
                    _ => {}
                }
                if r.options.repair {
                    self.found.insert(range);
                }
            }
        }
    }
}

impl Source {
    /// Begins a verification; `false` while one is under way. It goes on whenever records stream.
    pub fn verify(&mut self, now: Time, options: VerifyOptions) -> bool {
        self.now = self.now.max(now);
        if self.verifier.run.is_some() {
            return false;
        }
        let report = Verification {
            generation: self.state.generation(),
            state: VerifyState::UnderWay,
            options,
            started: self.now,
            ended: None,
            cursor: (VolumeIndex(0), 0),
            passed_blocks: 0,
            unchecked_blocks: 0,
            mismatched_blocks: 0,
            repaired_blocks: 0,
            differing: Vec::new(),
            mending: Vec::new(),
        };
        self.verifier.run = Some(Run::new(report, self.now));
        self.verifier.note_wanted = true;
        self.pump(now);
        true
    }

    /// Goes on with what the last run of the source has noted, right after [`Source::start`]. A note of another history is
    /// nothing to this one.
    pub fn resume_verification(&mut self, now: Time, note: Verification) {
        if note.generation != self.state.generation() || self.verifier.run.is_some() {
            return;
        }
        if note.state != VerifyState::UnderWay {
            self.verifier.last = Some(note);
            return;
        }
        let mut run = Run::new(note, self.now);
        let mut blocks = BlockSet::default();
        for range in std::mem::take(&mut run.report.mending) {
            // The power may have taken the bits. An epoch carries them: every run begins with one.
            self.set_bits(range);
            blocks.insert(range);
        }
        run.mending = (!blocks.is_empty()).then_some((self.sequence, blocks));
        self.verifier.run = Some(run);
        self.pump(now);
    }

    /// Gives the verification up, if one is under way; whether there was one.
    pub fn cancel_verification(&mut self, now: Time) -> bool {
        let was = self.verifier.run.is_some();
        self.now = self.now.max(now);
        self.end_verification(VerifyState::Cancelled);
        self.pump(now);
        was
    }

    /// The verification under way, or the last one.
    pub fn verification(&self) -> Option<&Verification> {
        self.verifier.run.as_ref().map(|run| &run.report).or(self.verifier.last.as_ref())
    }

    /// The report of [`Output::NoteVerification`] was stored, or not: then the next one may be.
    pub fn verification_noted(&mut self, now: Time) {
        self.verifier.noting = false;
        self.pump(now);
    }

    /// When the verification goes on by itself.
    pub(super) fn verify_at(&self) -> Option<Time> {
        let walks = |run: &&Run| run.reading.is_none() && run.found.is_empty() && run.mending.is_none();
        let run = self.verifier.run.as_ref().filter(walks).filter(|_| self.verifies())?;
        let blocked = run.blocked_since.map(|since| since.plus_us(PATIENCE_US));
        let at = run.next_read_at.max(self.pace.next_at(false));
        let paced = (at > self.now).then_some(at);
        [blocked, paced].into_iter().flatten().min()
    }

    /// Whether blocks are being compared, or would be.
    pub(super) fn is_verifying(&self) -> bool {
        self.verifier.run.is_some() && self.verifies()
    }

    fn verifies(&self) -> bool {
        // What it finds would take a sequence behind the one that is handed over.
        let holds = self.holds_for_handover();
        self.phase == Phase::Streaming && self.session.is_active() && self.ready && !holds
    }

    pub(super) fn pump_verify(&mut self) {
        self.note_verification();
        let verifies = self.verifies();
        let Some(run) = &mut self.verifier.run else { return };
        if !verifies {
            run.start_over();
            return;
        }
        run.count_answers();
        if !self.is_mended() {
            return;
        }
        self.start_check();
        let Some(run) = &mut self.verifier.run else { return };
        if !run.asked.is_empty() || run.reading.is_some() {
            return;
        }
        if !run.found.is_empty() {
            self.mend();
        } else if self.next_to_check().is_none() {
            self.end_verification(VerifyState::Finished);
            self.note_verification();
        }
    }

    fn end_verification(&mut self, state: VerifyState) {
        let Some(mut run) = self.verifier.run.take() else { return };
        run.report.state = state;
        run.report.ended = Some(self.now);
        run.report.mending.clear();
        self.verifier.last = Some(run.report);
        self.verifier.note_wanted = true;
    }

    fn note_verification(&mut self) {
        if let Some(run) = self.verifier.run.as_mut().filter(|run| self.now >= run.next_note) {
            run.next_note = self.now.plus_us(NOTE_EVERY_US);
            self.verifier.note_wanted = true;
        }
        // Differing blocks that nothing remembers yet are found again.
        let found = self.verifier.run.as_ref().is_some_and(|run| !run.found.is_empty());
        if !self.verifier.note_wanted || self.verifier.noting || found {
            return;
        }
        if let Some(report) = self.verification().cloned() {
            self.verifier.note_wanted = false;
            self.verifier.noting = true;
            self.outputs.push_back(Output::NoteVerification(Box::new(report)));
        }
    }

    /// The next blocks of the walk; `None` at its end.
    fn next_to_check(&self) -> Option<BlockRange> {
        let run = self.verifier.run.as_ref()?;
        let (mut volume, mut first) = run.next;
        loop {
            let blocks = self.bitmaps.get(volume.0 as usize)?.blocks();
            if first < blocks {
                return Some(BlockRange { volume, first, count: run.run_blocks.min(blocks - first) });
            }
            (volume, first) = (VolumeIndex(volume.0 + 1), 0);
        }
    }

    fn start_check(&mut self) {
        while let Some(mut blocks) = self.next_to_check() {
            let one = BlockRange { count: 1, ..blocks };
            let unreadable = blocks.iter().position(|b| self.unreadable.contains(blocks.volume, b));
            let conflict = self.locks.first_conflict(blocks);
            let waits = !self.pace.may_read(self.now, self.reading_bytes(), false);
            let Some(run) = &mut self.verifier.run else { return };
            let busy =
                run.reading.is_some() || run.asked_bytes() >= WINDOW_BYTES || run.asked.len() >= MAX_ASKED;
            if busy || waits || self.now < run.next_read_at || !run.found.is_empty() {
                return;
            }
            if unreadable == Some(0) {
                run.leave_out(one);
                run.count_answers();
                continue;
            }
            if let Some(n) = unreadable {
                blocks.count = n as u64;
            }
            match conflict {
                Some(first) if first == blocks.first => {
                    let since = *run.blocked_since.get_or_insert(self.now);
                    if self.now < since.plus_us(PATIENCE_US) {
                        return;
                    }
                    run.leave_out(one);
                    run.count_answers();
                    continue;
                }
                Some(first) => blocks.count = blocks.count.min(first - blocks.first),
                None => {}
            }
            run.blocked_since = None;
            self.locks.hold(blocks);
            self.pace.started();
            let read = self.token();
            if let Some(run) = &mut self.verifier.run {
                run.reading = Some(read);
            }
            self.reads.insert(read, epoch::Read { epoch: VERIFY, blocks, hash: true });
            self.outputs.push_back(Output::Read { read, blocks, hash: true });
            return;
        }
    }

    /// A read of the verification has ended; its range was locked until now.
    pub(super) fn check_read(&mut self, read: u64, blocks: BlockRange, outcome: ReadOutcome) {
        let (position, verifies) = (self.position(), self.verifies());
        let size_bytes = self.size_bytes(blocks.volume);
        let Some(run) = self.verifier.run.as_mut().filter(|run| verifies && run.reading == Some(read)) else {
            return;
        };
        run.reading = None;
        let (count, hashes) = match outcome {
            ReadOutcome::Hashes { hashes, blocks: n } if hashes.len() as u64 == n * HASH_BYTES as u64 => {
                (n, hashes)
            }
            ReadOutcome::Zeroes { blocks: n } => (n.min(blocks.count), Bytes::new()),
            _ => (0, Bytes::new()),
        };
        if count == 0 || count > blocks.count {
            if blocks.count == 1 {
                run.leave_out(blocks);
            }
            run.run_blocks = 1;
            return;
        }
        // Only a hole is found to be one at this length.
        let hole = hashes.is_empty() && count > RUN_BLOCKS;
        let cost = if hole { HOLE_COST_BYTES } else { count * BLOCK_BYTES };
        if let Some(us) = (cost * 1_000_000).checked_div(run.report.options.rate) {
            run.next_read_at = run.next_read_at.max(self.now).plus_us(us);
        }
        run.run_blocks = match hashes.is_empty() {
            true => (run.run_blocks.max(RUN_BLOCKS) * 2).min(ZERO_RUN_BLOCKS),
            false => RUN_BLOCKS,
        };
        let blocks = BlockRange { count, ..blocks };
        self.verifier.next_check += 1;
        let id = CheckId(self.verifier.next_check);
        run.asked.push_back(Asked { id, blocks, answer: None });
        run.next = (blocks.volume, blocks.end());
        let check = Frame::Check(Check { id, position, range: blocks.bytes(size_bytes), hashes });
        if self.rules.on(Rule::CheckInOrder) {
            self.queue.push(check);
        } else {
            self.queue.push_first(check);
        }
    }

    /// The target has compared a check.
    pub(super) fn checked(&mut self, id: CheckId, differing: &[BlockRange], unchecked: u64) {
        let Some(run) = &mut self.verifier.run else { return };
        let Some(asked) = run.asked.iter_mut().find(|a| a.id == id && a.answer.is_none()) else { return };
        let blocks = asked.blocks;
        // Nothing that the peer says reaches beyond what it was asked.
        let mut set = BlockSet::default();
        for b in differing.iter().filter(|b| b.volume == blocks.volume) {
            let first = b.first.max(blocks.first);
            set.insert(BlockRange {
                first,
                count: b.end().min(blocks.end()).saturating_sub(first),
                ..blocks
            });
        }
        asked.answer = Some((set.runs(), unchecked.min(blocks.count)));
    }

    /// What differs gets a new sequence and goes with a catch-up.
    fn mend(&mut self) {
        if self.sequence >= self.state.reserved {
            return;
        }
        let Some(run) = &mut self.verifier.run else { return };
        let found = std::mem::take(&mut run.found);
        let runs = found.runs();
        self.sequence = self.sequence.next();
        run.report.mending = coarse(&runs);
        run.mending = Some((self.sequence, found));
        runs.into_iter().for_each(|range| self.set_bits(range));
        self.verifier.note_wanted = true;
        self.fall_to_catch_up();
        self.note_verification();
    }

    /// Whether nothing is being repaired any more.
    fn is_mended(&mut self) -> bool {
        let Some(run) = &mut self.verifier.run else { return true };
        let Some((_, blocks)) = run.mending.take_if(|(since, _)| *since <= self.durable) else {
            return run.mending.is_none();
        };
        let runs = blocks.runs();
        let carried = runs.iter().flat_map(|r| r.iter().map(|b| (r.volume, b)));
        let carried = carried.filter(|(volume, b)| !self.unreadable.contains(*volume, *b)).count() as u64;
        let report = &mut run.report;
        // What a restart knows of them may be more than differed.
        report.repaired_blocks = (report.repaired_blocks + carried).min(report.mismatched_blocks);
        report.mending.clear();
        self.verifier.note_wanted = true;
        true
    }
}

/// At most [`MAX_RANGES`] ranges that cover `runs`.
fn coarse(runs: &[BlockRange]) -> Vec<BlockRange> {
    let together = runs.len().div_ceil(MAX_RANGES).max(1);
    let mut ranges: Vec<BlockRange> = Vec::new();
    for (n, run) in runs.iter().enumerate() {
        match ranges.last_mut().filter(|last| n % together != 0 && last.volume == run.volume) {
            Some(last) => last.count = run.end() - last.first,
            None => ranges.push(*run),
        }
    }
    ranges
}

impl Verification {
    /// The stored form (docs/formats.md, "verification").
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&NOTE_VERSION.to_le_bytes());
        out.push(match self.state {
            VerifyState::UnderWay => 1,
            VerifyState::Finished => 2,
            VerifyState::Cancelled => 3,
        });
        out.push(u8::from(self.options.repair));
        let ended = self.ended.map_or(u64::MAX, |t| t.0);
        let numbers = [
            self.generation.0,
            self.options.rate,
            self.started.0,
            ended,
            self.cursor.0.0.into(),
            self.cursor.1,
            self.passed_blocks,
            self.unchecked_blocks,
            self.mismatched_blocks,
            self.repaired_blocks,
        ];
        numbers.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        for ranges in [&self.differing, &self.mending] {
            out.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
            for range in ranges {
                out.extend_from_slice(&range.volume.0.to_le_bytes());
                out.extend_from_slice(&range.first.to_le_bytes());
                out.extend_from_slice(&range.count.to_le_bytes());
            }
        }
        out
    }

    /// Reads the stored form; `None` if it is none, or of another version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut left = bytes;
        if u32::from_le_bytes(*take(&mut left)?) != NOTE_VERSION {
            return None;
        }
        let [state, repair] = *take::<2>(&mut left)?;
        let mut numbers = [0; 10];
        for n in &mut numbers {
            *n = u64::from_le_bytes(*take(&mut left)?);
        }
        let [generation, rate, started, ended, volume, block, passed, unchecked, mismatched, repaired] =
            numbers;
        let report = Self {
            generation: Generation(generation),
            state: match state {
                1 => VerifyState::UnderWay,
                2 => VerifyState::Finished,
                3 => VerifyState::Cancelled,
                _ => return None,
            },
            options: VerifyOptions { repair: flag(repair)?, rate },
            started: Time(started),
            ended: (ended != u64::MAX).then_some(Time(ended)),
            cursor: (VolumeIndex(u32::try_from(volume).ok()?), block),
            passed_blocks: passed,
            unchecked_blocks: unchecked,
            mismatched_blocks: mismatched,
            repaired_blocks: repaired,
            differing: ranges(&mut left, MAX_LISTED)?,
            mending: ranges(&mut left, MAX_RANGES)?,
        };
        left.is_empty().then_some(report)
    }
}

fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn take<'a, const N: usize>(left: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = left.split_first_chunk()?;
    *left = rest;
    Some(taken)
}

fn ranges(left: &mut &[u8], most: usize) -> Option<Vec<BlockRange>> {
    let count = u32::from_le_bytes(*take(left)?) as usize;
    if count > most {
        return None;
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let volume = VolumeIndex(u32::from_le_bytes(*take(left)?));
        let first = u64::from_le_bytes(*take(left)?);
        let count = u64::from_le_bytes(*take(left)?);
        first.checked_add(count)?;
        ranges.push(BlockRange { volume, first, count });
    }
    Some(ranges)
}
