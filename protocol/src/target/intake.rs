//! Frames as they come.
//!
//! Outside an epoch every record is the next one (rule 13). Inside an epoch block frames may overtake records and each
//! other; a block frame waits until the ordered stream has passed what it was read after, and gives way to records that are
//! newer than it (rule 10). So the journal holds an epoch in the order in which it is to be redone.

use std::collections::BTreeMap;

use super::*;
use crate::codec;
use crate::frame::{Block, Check, Codec, Payload, frame_digest};
use crate::intervals::Intervals;

/// Bound of the frames that wait for others, in bytes: what the source's window lets it send, with room to spare.
const MAX_HELD_BYTES: u64 = 256 << 20;
/// A part of a block frame that gave way in part; the last part carries the frame's number.
const PART: FrameId = FrameId(u64::MAX);

/// The peer broke the protocol; the session ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A record that is not the next one.
    #[error("record {got} came where {expected} is next")]
    NotNext {
        /// What came.
        got: Position,
        /// What is next.
        expected: Position,
    },
    /// A record before anything that it could follow.
    #[error("record {0} came before any checkpoint or epoch")]
    NoCheckpoint(Position),
    /// A range outside its volume.
    #[error("bytes {offset}+{length} are outside volume {volume}")]
    OutOfRange {
        /// The volume.
        volume: VolumeIndex,
        /// First byte.
        offset: u64,
        /// Count of bytes.
        length: u64,
    },
    /// More frames wait for others than the source may have sent.
    #[error("more than {MAX_HELD_BYTES} bytes of frames wait for frames that do not come")]
    TooMuchHeld,
    /// A frame of a kind or history that may not come here.
    #[error("a frame came that does not belong here: {0}")]
    Unexpected(&'static str),
}

#[derive(Debug)]
pub(super) struct OpenEpoch {
    pub id: EpochId,
    incarnation: Incarnation,
    pub direct: bool,
    /// Staged beside an old image that is kept: the commit makes the base's first checkpoint.
    kept: bool,
    /// Where its commit ends in the journal.
    commit_end: Option<Lsn>,
    pub begin: Lsn,
    /// Staged frames as disjoint runs: first to end.
    frames: BTreeMap<u64, u64>,
    count: u64,
    digest: u64,
    /// The last sequence taken from the ordered stream.
    ordered: Sequence,
    /// The last record that is staged.
    records_to: Sequence,
    recent: Intervals,
    held: Vec<Frame>,
    held_bytes: u64,
    commit: Option<Commit>,
    held_ordered: VecDeque<Frame>,
    /// Staged and not yet reported durable: place and frame.
    unreported: Vec<(u64, FrameId)>,
    reported_records: Sequence,
    /// Frames covered by a base sync whose mark is being noted.
    noting: Option<(u64, Vec<FrameId>, Sequence)>,
    touched: BlockSet,
    clears_lost: bool,
    pub bytes: u64,
}

#[derive(Debug)]
struct Commit {
    position: Position,
    time: Time,
    frames: u64,
    digest: u64,
    /// The base sync or state version that makes it durable is under way.
    noting: Option<u64>,
}

impl OpenEpoch {
    fn new(id: EpochId, incarnation: Incarnation, direct: bool, begin: Lsn) -> Self {
        Self {
            id,
            incarnation,
            direct,
            kept: false,
            commit_end: None,
            begin,
            frames: BTreeMap::new(),
            count: 0,
            digest: 0,
            ordered: Sequence(0),
            records_to: Sequence(0),
            recent: Intervals::default(),
            held: Vec::new(),
            held_bytes: 0,
            commit: None,
            held_ordered: VecDeque::new(),
            unreported: Vec::new(),
            reported_records: Sequence(0),
            noting: None,
            touched: BlockSet::default(),
            clears_lost: false,
            bytes: 0,
        }
    }

    /// The frame is staged; `false` if it was before.
    fn add_frame(&mut self, frame: FrameId, read_at: Sequence) -> bool {
        let before = self.frames.range(..=frame.0).next_back().map(|(s, e)| (*s, *e));
        if before.is_some_and(|(_, end)| end > frame.0) {
            return false;
        }
        let mut start = frame.0;
        let mut end = frame.0 + 1;
        if let Some((s, e)) = before.filter(|(_, e)| *e == frame.0) {
            debug_assert_eq!(e, frame.0);
            start = s;
        }
        if let Some(e) = self.frames.remove(&end) {
            end = e;
        }
        self.frames.insert(start, end);
        self.count += 1;
        self.digest = self.digest.wrapping_add(frame_digest(frame, read_at));
        true
    }

    fn has_frame(&self, frame: FrameId) -> bool {
        self.frames.range(..=frame.0).next_back().is_some_and(|(_, end)| *end > frame.0)
    }

    /// What a source may take up; a first sync or a commit that waits is begun anew.
    pub fn for_resume(&self) -> Option<crate::message::OpenEpoch> {
        let runs = self.frames.len() <= crate::message::MAX_RANGES;
        (!self.direct && runs).then(|| crate::message::OpenEpoch {
            epoch: self.id,
            incarnation: self.incarnation,
            frames: self.frames.iter().map(|(s, e)| (FrameId(*s), e - s)).collect(),
            digest: self.digest,
            records_to: self.records_to,
        })
    }

    /// What the epoch waits for, for a log.
    pub fn activity(&self) -> String {
        format!(
            "{} direct {} frames {} held {} ordered {} commit {:?} noting {:?}",
            self.id,
            self.direct,
            self.count,
            self.held.len(),
            self.ordered,
            self.commit,
            self.noting.as_ref().map(|n| n.0),
        )
    }

    /// The blocks that were staged.
    pub fn discarded(&self) -> Vec<BlockRange> {
        self.touched.runs()
    }

    /// Whether a commit to the base is being noted.
    pub fn is_being_noted(&self) -> bool {
        let noting = self.commit.as_ref().is_some_and(|c| c.noting.is_some_and(|v| v > 0));
        (self.direct || self.kept) && noting
    }

    pub fn session_ended(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
        self.held_ordered.clear();
        self.commit = None;
        self.commit_end = None;
        self.unreported.clear();
        self.noting = None;
    }

    pub fn session_began(&mut self) {
        self.ordered = self.records_to;
        self.recent = Intervals::default();
        self.reported_records = Sequence(0);
    }

    fn hold(&mut self, frame: Frame) -> Result<(), Violation> {
        self.held_bytes += frame.encoded_len() as u64;
        if self.held_bytes > MAX_HELD_BYTES {
            return Err(Violation::TooMuchHeld);
        }
        self.held.push(frame);
        Ok(())
    }
}

/// Block frames that came before the beginning of their epoch, which travels on another stream.
#[derive(Debug, Default)]
pub(super) struct EarlyFrames {
    frames: Vec<Frame>,
    bytes: u64,
    /// The last epoch that began in this session: frames of it and of older ones are late. Ids of another session say
    /// nothing, since they may be another source's.
    begun: Option<EpochId>,
}

impl EarlyFrames {
    fn hold(&mut self, epoch: EpochId, frame: Frame) -> Result<(), Violation> {
        if self.begun.is_some_and(|begun| epoch <= begun) {
            return Ok(());
        }
        self.bytes += frame.encoded_len() as u64;
        if self.bytes > MAX_HELD_BYTES {
            return Err(Violation::TooMuchHeld);
        }
        self.frames.push(frame);
        Ok(())
    }

    /// `epoch` begins: what waited.
    fn begin(&mut self, epoch: EpochId) -> Vec<Frame> {
        std::mem::replace(self, Self { begun: Some(epoch), ..Self::default() }).frames
    }
}

fn waits_for(frame: &Frame) -> Sequence {
    match frame {
        Frame::Block(b) => b.after,
        Frame::Compare(c) => c.after,
        _ => Sequence(0),
    }
}

impl Target {
    /// A frame came over a stream of `session`. A violation means that the connection has to be closed; nothing of the
    /// frame was taken.
    pub fn frame(&mut self, now: Time, session: SessionId, frame: Frame) -> Result<(), Violation> {
        self.now = self.now.max(now);
        if self.failed.is_some() || self.promoting.is_some() || self.state.role != Role::Standby {
            return Ok(());
        }
        if self.session.active() != Some(session) && self.rules.on(Rule::SessionFence) {
            return Ok(());
        }
        let result = self.take(frame);
        if let Err(violation) = &result {
            self.end_session(&violation.to_string());
        }
        self.pump(now);
        result
    }

    /// Whether the ordered stream may be read on: not while a commit waits for block frames.
    pub fn takes_ordered(&self) -> bool {
        self.epoch.as_ref().is_none_or(|e| e.commit.is_none())
    }

    fn take(&mut self, frame: Frame) -> Result<(), Violation> {
        if let Some(range) = frame.written_range() {
            self.check_range(range)?;
        }
        if let Frame::Compare(Compare { range, .. }) | Frame::Check(Check { range, .. }) = &frame {
            self.check_range(*range)?;
        }
        let ordered = !matches!(frame, Frame::Block(_) | Frame::Compare(_));
        if let Some(e) = self.epoch.as_mut().filter(|e| e.commit.is_some() && ordered) {
            e.held_bytes += frame.encoded_len() as u64;
            if e.held_bytes > MAX_HELD_BYTES {
                return Err(Violation::TooMuchHeld);
            }
            e.held_ordered.push_back(frame);
            return Ok(());
        }
        match frame {
            Frame::Record(_) => self.take_record(frame)?,
            Frame::Mark { sequence, sync } => {
                self.sync_wanted |= sync;
                if let Some(e) = &mut self.epoch {
                    e.ordered = e.ordered.max(sequence);
                }
            }
            Frame::EpochBegin { epoch, generation, incarnation } => {
                self.begin_epoch(epoch, generation, incarnation)?;
            }
            Frame::Block(_) | Frame::Compare(_) => self.take_block(frame)?,
            Frame::EpochCommit { epoch, position, time, frames, digest } => {
                if let Some(e) = self.epoch.as_mut().filter(|e| e.id == epoch) {
                    if position.generation != self.state.generation() {
                        return Err(Violation::Unexpected("a commit of another generation"));
                    }
                    e.commit = Some(Commit { position, time, frames, digest, noting: None });
                }
            }
            Frame::EpochAbort { epoch } => {
                if self.epoch.as_ref().is_some_and(|e| e.id == epoch) {
                    self.abort_epoch();
                }
            }
            Frame::TakeOver { position } => self.asked_to_take_over(position),
            Frame::Point { .. } => return Err(Violation::Unexpected("a point")),
            Frame::Check(check) => self.take_check(check)?,
        }
        self.release_held()
    }

    fn check_range(&self, range: ByteRange) -> Result<(), Violation> {
        let size = self.config.volumes.get(range.volume.0 as usize).map_or(0, |v| v.size_bytes);
        if range.end() > size {
            let ByteRange { volume, offset, length } = range;
            return Err(Violation::OutOfRange { volume, offset, length });
        }
        Ok(())
    }

    fn take_record(&mut self, frame: Frame) -> Result<(), Violation> {
        let Frame::Record(record) = &frame else { return Ok(()) };
        let position = record.position;
        if let Some(e) = &mut self.epoch {
            let known = position.generation == self.state.generation() && position.sequence > e.ordered;
            if !known && self.rules.on(Rule::Contiguous) {
                return Err(Violation::Unexpected("a record that is not newer than the last"));
            }
            e.ordered = e.ordered.max(position.sequence);
            e.recent.prune(record.floor);
            e.recent.insert(record.range, position.sequence);
            if e.direct {
                e.bytes += record.range.length;
                e.records_to = e.records_to.max(position.sequence);
                self.write_base(record.range, record.content.clone());
            } else {
                self.outputs.push_back(Output::Append(frame));
            }
            return Ok(());
        }
        let Some(newest) = self.points.newest() else { return Err(Violation::NoCheckpoint(position)) };
        let expected = Position::new(self.state.generation(), newest.position.sequence.next());
        let coming = self.coming.unwrap_or(expected.sequence);
        let expected = Position { sequence: coming, ..expected };
        if position != expected && self.rules.on(Rule::Contiguous) {
            return Err(Violation::NotNext { got: position, expected });
        }
        self.coming = Some(position.sequence.next());
        self.outputs.push_back(Output::Append(frame));
        Ok(())
    }

    fn begin_epoch(
        &mut self,
        epoch: EpochId,
        generation: Generation,
        incarnation: Incarnation,
    ) -> Result<(), Violation> {
        if generation != self.state.generation() {
            return Err(Violation::Unexpected("an epoch of another generation"));
        }
        self.abort_epoch();
        let first = self.points.newest().is_none() || !self.rules.on(Rule::DirectOnlyFirst);
        let direct = first && !self.state.keeps_image;
        let mut open = OpenEpoch::new(epoch, incarnation, direct, self.points.end());
        open.kept = first && !direct;
        open.clears_lost = std::mem::take(&mut self.lost_handed_over);
        self.epoch = Some(open);
        self.coming = None;
        if !direct {
            self.rest.catch_up_begins(self.now);
            self.outputs.push_back(Output::Append(Frame::EpochBegin { epoch, generation, incarnation }));
        }
        self.early.begin(epoch).into_iter().try_for_each(|frame| self.take_block(frame))
    }

    /// What is staged counts for nothing.
    pub(super) fn abort_epoch(&mut self) {
        let Some(e) = self.epoch.take() else { return };
        self.lost_handed_over |= e.clears_lost;
        if !e.direct {
            self.overlay.union(&e.touched, self.points.end());
            self.aborting = Some(e.begin);
            self.outputs.push_back(Output::Append(Frame::EpochAbort { epoch: e.id }));
        }
    }

    /// The journal cannot take more: what is staged for the open epoch makes room. So does what was staged for one whose
    /// abort could not be appended, since without it those entries would count.
    pub(super) fn drop_staged(&mut self) {
        let open = self.epoch.take_if(|e| !e.direct).map(|e| e.begin);
        if let Some(begin) = self.aborting.take().or(open)
            && begin < self.points.end()
        {
            self.cut_journal(begin);
        }
    }

    fn take_block(&mut self, frame: Frame) -> Result<(), Violation> {
        let (epoch, id) = match &frame {
            Frame::Block(b) => (b.epoch, b.frame),
            Frame::Compare(c) => (c.epoch, c.frame),
            _ => return Ok(()),
        };
        if self.epoch.as_ref().is_none_or(|e| e.id != epoch) {
            return self.early.hold(epoch, frame);
        }
        let Some(e) = &mut self.epoch else { return Ok(()) };
        if id == PART {
            return Err(Violation::Unexpected("a block frame with a reserved number"));
        }
        if frame.written_range().is_some_and(|r| !r.offset.is_multiple_of(BLOCK_BYTES)) {
            return Err(Violation::Unexpected("a block frame that does not begin with a block"));
        }
        if e.has_frame(id) {
            return Ok(());
        }
        if waits_for(&frame) > e.ordered && self.rules.on(Rule::LastWriterWins) {
            return e.hold(frame);
        }
        self.stage(frame);
        Ok(())
    }

    fn release_held(&mut self) -> Result<(), Violation> {
        loop {
            let Some(e) = &mut self.epoch else { return Ok(()) };
            let ordered = e.ordered;
            let Some(at) = e.held.iter().position(|f| waits_for(f) <= ordered) else { return Ok(()) };
            let frame = e.held.swap_remove(at);
            e.held_bytes = e.held_bytes.saturating_sub(frame.encoded_len() as u64);
            if !matches!(&frame, Frame::Block(b) if e.has_frame(b.frame)) {
                self.stage(frame);
            }
        }
    }

    /// Stages a block frame whose turn it is, less what newer records have written.
    fn stage(&mut self, frame: Frame) {
        let wins = self.rules.on(Rule::LastWriterWins);
        let Some(e) = &mut self.epoch else { return };
        let block = match frame {
            Frame::Compare(c) => {
                self.outputs.push_back(Output::Compare(c));
                return;
            }
            Frame::Block(block) => block,
            _ => return,
        };
        let parts = if wins { e.recent.remaining(block.range, block.read_at) } else { vec![block.range] };
        let whole = parts.len() == 1 && parts.first() == Some(&block.range);
        if e.direct {
            for part in parts {
                e.bytes += part.length;
                let content = if whole { Some(block.content.clone()) } else { slice(&block, part) };
                if let Some(content) = content {
                    self.base_writes += 1;
                    self.outputs.push_back(Output::WriteBase { range: part, content });
                }
            }
            self.frame_staged(block.frame, block.read_at, None);
            return;
        }
        if whole {
            self.outputs.push_back(Output::Append(Frame::Block(block)));
            return;
        }
        let last = parts.len().wrapping_sub(1);
        for (n, part) in parts.iter().enumerate() {
            let frame = if n == last { block.frame } else { PART };
            let Some(content) = slice(&block, *part) else { return };
            let piece = Block { frame, range: *part, content, ..block.clone() };
            self.outputs.push_back(Output::Append(Frame::Block(piece)));
        }
        if parts.is_empty() {
            self.frame_staged(block.frame, block.read_at, Some(self.points.end()));
        }
    }

    fn frame_staged(&mut self, frame: FrameId, read_at: Sequence, lsn: Option<Lsn>) {
        let writes = self.base_writes;
        let Some(e) = &mut self.epoch else { return };
        if e.add_frame(frame, read_at) {
            e.unreported.push((lsn.map_or(writes, |l| l.0), frame));
        }
    }

    fn write_base(&mut self, range: ByteRange, content: Content) {
        self.base_writes += 1;
        self.outputs.push_back(Output::WriteBase { range, content });
    }

    /// Writes to the base were performed, or one of them failed. One report covers all that [`Target::poll`] gave before, and
    /// is due before the next frame: a commit may wait for it.
    pub fn base_written(&mut self, now: Time, ok: bool) {
        if !ok {
            self.fail("a volume cannot be written");
        }
        self.pump(now);
    }

    /// Which blocks of the compare frame differ from the base.
    pub fn compared(&mut self, now: Time, compare: &Compare, mut differing: Vec<BlockRange>) {
        self.now = self.now.max(now);
        let blocks = compare.range.blocks();
        let Some(e) = self.epoch.as_mut().filter(|e| e.id == compare.epoch) else { return };
        for b in blocks.iter() {
            // What the journal holds is newer than the base: send it.
            if e.touched.contains(blocks.volume, b) || self.overlay.contains(blocks.volume, b) {
                differing.push(BlockRange { first: b, count: 1, ..blocks });
            }
        }
        let message =
            TargetMessage::Differs { epoch: compare.epoch, frame: compare.frame, blocks: differing };
        let place = (!e.direct).then(|| self.points.end());
        self.send(message);
        self.frame_staged(compare.frame, compare.read_at, place);
        self.pump(now);
    }

    /// An entry is in the journal.
    pub(super) fn entry_appended(&mut self, start: Lsn, end: Lsn, frame: &Frame) {
        match frame {
            Frame::EpochBegin { epoch, .. } => {
                if let Some(e) = self.epoch.as_mut().filter(|e| e.id == *epoch) {
                    e.begin = start;
                }
            }
            Frame::EpochAbort { .. } => {
                let begin = self.aborting.take().unwrap_or(start);
                self.skip.push((begin, end));
            }
            Frame::Record(r) => match &mut self.epoch {
                Some(e) => {
                    e.records_to = e.records_to.max(r.position.sequence);
                    e.bytes += r.range.length;
                    e.touched.insert(r.range.blocks());
                    self.loose_record(end, r.position.sequence);
                }
                None => {
                    self.overlay.insert(r.range.blocks(), end);
                    self.checkpoint(r.position, end);
                }
            },
            Frame::Block(b) => {
                if let Some(e) = self.epoch.as_mut().filter(|e| e.id == b.epoch) {
                    e.bytes += b.range.length;
                    e.touched.insert(b.range.blocks());
                    if b.frame != PART {
                        self.frame_staged(b.frame, b.read_at, Some(end));
                    }
                }
            }
            Frame::EpochCommit { epoch, position, .. } => {
                self.rest.committed();
                if let Some(e) = self.epoch.as_mut().filter(|e| e.id == *epoch && e.kept) {
                    e.commit_end = Some(end);
                    self.sync_wanted = true;
                } else if let Some(e) = self.epoch.take_if(|e| e.id == *epoch) {
                    self.overlay.union(&e.touched, end);
                    self.checkpoint(*position, end);
                    self.sync_wanted = true;
                    if e.clears_lost {
                        self.lost_until = Some(position.sequence);
                    }
                    self.replay_held(e.held_ordered);
                }
            }
            Frame::Point { position, .. } => self.checkpoint(*position, end),
            Frame::Mark { .. } | Frame::Compare(_) | Frame::TakeOver { .. } | Frame::Check(_) => {}
        }
    }

    /// Frames of the ordered stream that came while the commit waited.
    fn replay_held(&mut self, frames: VecDeque<Frame>) {
        self.coming = None;
        for frame in frames {
            if let Err(violation) = self.take(frame) {
                self.end_session(&violation.to_string());
                return;
            }
        }
    }

    /// An entry of a journal that a start has found; `first` is where its first one begins.
    pub(super) fn found_entry(&mut self, first: Lsn, start: Lsn, end: Lsn, frame: &Frame) {
        if let Frame::EpochBegin { epoch, incarnation, .. } = frame {
            self.epoch = Some(OpenEpoch::new(*epoch, *incarnation, false, start));
        }
        if let Frame::EpochAbort { .. } = frame {
            // One whose beginning was trimmed away had begun before the first entry.
            self.aborting = Some(self.epoch.take().map_or(first, |e| e.begin));
        }
        let covered = self.state.base.is_some_and(|b| end <= b.lsn);
        let checkpoint = matches!(frame, Frame::EpochCommit { .. } | Frame::Point { .. })
            || (matches!(frame, Frame::Record(_)) && self.epoch.is_none());
        if covered && checkpoint {
            // At or before the base's own checkpoint: redone, but not offered.
            if let Some(range) = frame.written_range() {
                self.overlay.insert(range.blocks(), end);
            }
            if let Some(e) = self.epoch.take() {
                self.overlay.union(&e.touched, end);
            }
            self.points.appended(end);
            return;
        }
        self.points.appended(end);
        self.entry_appended(start, end, frame);
        if let Some(e) = &mut self.epoch {
            e.unreported.clear();
        }
    }

    pub(super) fn pump_epoch(&mut self) {
        let waits_all = self.rules.on(Rule::CommitWaits);
        let idle = self.outputs.iter().all(|o| !matches!(o, Output::Append(_) | Output::WriteBase { .. }));
        let Some(e) = &mut self.epoch else { return };
        if let Some(c) = &e.commit {
            let whole = e.count == c.frames && e.digest == c.digest && e.held.is_empty();
            if (whole || !waits_all) && idle && c.noting.is_none() {
                self.commit_epoch();
                return;
            }
        }
        self.pump_direct();
        self.staged_synced(self.points.durable());
    }

    fn commit_epoch(&mut self) {
        let Some(e) = &mut self.epoch else { return };
        let Some(c) = &mut e.commit else { return };
        if !e.direct {
            let frame = Frame::EpochCommit {
                epoch: e.id,
                position: c.position,
                time: c.time,
                frames: c.frames,
                digest: c.digest,
            };
            c.noting = Some(0);
            self.outputs.push_back(Output::Append(frame));
            return;
        }
        if self.base_syncing.is_none() {
            c.noting = Some(0);
            self.base_syncing = Some(self.base_writes);
            self.outputs.push_back(Output::SyncBase);
        }
    }

    /// Syncs the base of a first sync now and then, so that its source may clear bits.
    fn pump_direct(&mut self) {
        let Some(e) = self.epoch.as_mut().filter(|e| e.direct) else { return };
        if self.base_syncing.is_some() || e.noting.is_some() || e.unreported.is_empty() || e.commit.is_some()
        {
            return;
        }
        self.base_syncing = Some(self.base_writes);
        if self.rules.on(Rule::DirectFsync) {
            self.outputs.push_back(Output::SyncBase);
        } else {
            self.direct_synced(self.base_writes);
        }
    }

    /// The bases are durable as they were when [`Output::SyncBase`] was given, or not.
    pub fn base_synced(&mut self, now: Time, ok: bool) {
        self.now = self.now.max(now);
        if self.apply_base_synced(ok) {
            self.pump(now);
            return;
        }
        let covered = self.base_syncing.take();
        match (ok, covered) {
            (true, Some(covered)) => self.direct_synced(covered),
            (true, None) => {}
            (false, _) => self.fail("a volume cannot be synced"),
        }
        self.pump(now);
    }

    fn direct_synced(&mut self, covered: u64) {
        self.base_syncing = None;
        let end = self.points.end();
        let version = self.state_version + 1;
        let Some(e) = self.epoch.as_mut().filter(|e| e.direct) else { return };
        if let Some(c) = e.commit.as_mut().filter(|c| c.noting == Some(0)) {
            c.noting = Some(version);
            self.state.base = Some(crate::state::BasePoint { position: c.position, lsn: end });
            if e.clears_lost {
                self.state.lost = LostBlocks::None;
            }
            self.state_wanted = true;
            return;
        }
        let (done, rest) = std::mem::take(&mut e.unreported).into_iter().partition(|(at, _)| *at <= covered);
        e.unreported = rest;
        let done: Vec<(u64, FrameId)> = done;
        let frames = done.into_iter().map(|(_, f)| f).collect();
        e.noting = Some((version, frames, e.records_to));
        self.state.mark += 1;
        self.state_wanted = true;
    }

    pub(super) fn staged_noted(&mut self, version: u64) {
        let Some(e) = self.epoch.as_mut().filter(|e| e.direct || e.kept) else { return };
        if let Some(c) = e.commit.as_ref().filter(|c| c.noting.is_some_and(|v| v > 0 && v <= version)) {
            if let Some(end) = e.commit_end.filter(|_| e.kept) {
                let (position, held) = (c.position, std::mem::take(&mut e.held_ordered));
                self.overlay.union(&e.touched, end);
                self.epoch = None;
                self.checkpoint(position, end);
                self.points.synced(self.points.durable());
                if self.session.active().is_some() {
                    self.replay_held(held);
                }
                return;
            }
            let point = Checkpoint { position: c.position, lsn: self.points.end(), time: c.time };
            self.points.set_base(point);
            let held = std::mem::take(&mut e.held_ordered);
            self.epoch = None;
            if self.session.active().is_some() {
                self.replay_held(held);
            }
            return;
        }
        if let Some((_, frames, records_to)) = e.noting.take_if(|(v, _, _)| *v <= version) {
            let message = TargetMessage::Staged {
                epoch: e.id,
                frames: runs(frames),
                records_to,
                mark: Some(self.state.mark),
            };
            self.send(message);
        }
    }

    /// The journal is durable up to `lsn`: the commit of an epoch beside an old image makes it the base's, from which on
    /// the old image counts for nothing.
    pub(super) fn kept_synced(&mut self, lsn: Lsn) {
        let version = self.state_version + 1;
        let Some(e) = self.epoch.as_mut().filter(|e| e.kept && (e.clears_lost || self.state.lost.is_none()))
        else {
            return;
        };
        let (Some(end), Some(c)) = (e.commit_end.filter(|end| *end <= lsn), &mut e.commit) else { return };
        if c.noting == Some(0) {
            c.noting = Some(version);
            self.state.base = Some(crate::state::BasePoint { position: c.position, lsn: end });
            self.state.keeps_image = false;
            self.state.lost = LostBlocks::None;
            self.state_wanted = true;
        }
    }

    /// The journal is durable up to `lsn`: what was staged before it is reported.
    pub(super) fn staged_synced(&mut self, lsn: Lsn) {
        let end = self.points.end();
        let Some(e) = self.epoch.as_mut().filter(|e| !e.direct) else { return };
        let (done, rest) = std::mem::take(&mut e.unreported).into_iter().partition(|(at, _)| *at <= lsn.0);
        e.unreported = rest;
        let done: Vec<(u64, FrameId)> = done;
        let records_to = if lsn >= end { e.records_to } else { e.reported_records };
        if done.is_empty() && records_to <= e.reported_records {
            return;
        }
        e.reported_records = records_to;
        let message = TargetMessage::Staged {
            epoch: e.id,
            frames: runs(done.into_iter().map(|(_, f)| f).collect()),
            records_to,
            mark: None,
        };
        self.send(message);
    }

    /// What was lost has come again with an epoch that is durable now (rule 19).
    pub(super) fn clear_lost_if_committed(&mut self) {
        let durable = self.points.durable_point().map(|p| p.position.sequence);
        if self.lost_until.is_some_and(|s| durable.is_some_and(|d| d >= s)) {
            self.lost_until = None;
            if !self.state.lost.is_none() {
                self.state.lost = LostBlocks::None;
                self.persist();
            }
        }
    }
}

/// The part of a block frame's content that lies in `part`.
fn slice(block: &Block, part: ByteRange) -> Option<Content> {
    match &block.content {
        Content::Zeroes { punch } => Some(Content::Zeroes { punch: *punch }),
        Content::Data(payload) => {
            let raw = codec::decode(payload).ok()?;
            let from = usize::try_from(part.offset - block.range.offset).ok()?;
            let bytes = raw.slice(from..from + part.length as usize);
            Some(Content::Data(Payload {
                codec: Codec::Raw,
                raw_bytes: bytes.len() as u32,
                checksum: codec::content_checksum(&bytes),
                encoded: bytes,
            }))
        }
    }
}

/// Runs of consecutive frames.
fn runs(mut frames: Vec<FrameId>) -> Vec<(FrameId, u64)> {
    frames.sort_unstable();
    let mut runs: Vec<(FrameId, u64)> = Vec::new();
    for f in frames {
        match runs.last_mut() {
            Some((first, count)) if first.0 + *count == f.0 => *count += 1,
            _ => runs.push((f, 1)),
        }
    }
    runs
}
