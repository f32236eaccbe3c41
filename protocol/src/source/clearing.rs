//! When bits clear (rules 2, 12, 23).
//!
//! A bit clears when the block's last write is at or below the durable checkpoint, no local write to it is in flight, and
//! "the peer has durably X" is noted in the superblock. A note is two syncs of a disk that clients' flushes wait for, so while
//! they write there is one a second: what is not cleared yet is only sent again after a crash. It is made sooner when much waits,
//! and once they rest.

use super::*;
use crate::block_set::BlockSet;

/// A note is made this long after the one before while records come, in microseconds.
const NOTE_EVERY_US: u64 = 1_000_000;
/// And no sooner than this, when none has come for as long or much waits.
const NOTE_SOON_US: u64 = 100_000;
/// Much is so many records, or so many blocks in them.
const NOTE_AT_RECORDS: usize = 4096;
const NOTE_AT_BLOCKS: u64 = (64 << 20) / BLOCK_BYTES;

#[derive(Clone, Copy, Debug)]
struct Commit {
    at: Sequence,
    compared: bool,
}

#[derive(Debug, Default)]
pub(super) struct Clearing {
    /// Records whose bits are set, in order, and the blocks in them.
    records: VecDeque<(Sequence, BlockRange)>,
    blocks: u64,
    last_record: Time,
    /// The commit of an epoch: all that was written up to it clears with it.
    commit: Option<Commit>,
    /// In this stint of streaming, everything up to here has been cleared.
    through: Sequence,
    /// The note under way, and the version that makes it durable.
    noting: Option<(u64, Sequence)>,
    /// Frames of a first sync, and the version that makes their mark durable.
    frames: Vec<(u64, Vec<BlockRange>)>,
    last_note: Time,
}

impl Clearing {
    pub fn recorded(&mut self, now: Time, sequence: Sequence, blocks: BlockRange) {
        self.records.push_back((sequence, blocks));
        self.blocks += blocks.count;
        self.last_record = now;
    }

    /// The next record, if it is at or below `durable`.
    fn take_record(&mut self, durable: Sequence) -> Option<(Sequence, BlockRange)> {
        let record = self.records.pop_front_if(|(sequence, _)| *sequence <= durable)?;
        self.blocks -= record.1.count;
        Some(record)
    }

    /// When a note of records is due.
    fn due_at(&self) -> Time {
        let (soon, latest) = (self.last_note.plus_us(NOTE_SOON_US), self.last_note.plus_us(NOTE_EVERY_US));
        let much = self.records.len() >= NOTE_AT_RECORDS || self.blocks >= NOTE_AT_BLOCKS;
        if much { soon } else { soon.max(latest.min(self.last_record.plus_us(NOTE_SOON_US))) }
    }

    pub fn committed(&mut self, at: Sequence, compared: bool) {
        self.commit = Some(Commit { at, compared });
    }

    /// Streaming has ended: what was not cleared will be sent again.
    pub fn forget_records(&mut self) {
        self.records.clear();
        self.blocks = 0;
        self.commit = None;
        self.through = Sequence(0);
        self.noting = None;
        self.frames.clear();
    }

    fn waits_for(&self, durable: Sequence) -> bool {
        self.commit.is_some_and(|c| c.at <= durable)
            || self.records.front().is_some_and(|(s, _)| *s <= durable)
    }
}

impl Source {
    pub(super) fn clearing_at(&self) -> Option<Time> {
        let waits = self.clearing.noting.is_none() && self.clearing.waits_for(self.durable);
        (waits && !self.state_failed).then(|| self.clearing.due_at())
    }

    pub(super) fn pump_clearing(&mut self) {
        let waits = self.clearing.noting.is_none() && self.clearing.waits_for(self.durable);
        if !waits || self.state_failed {
            return;
        }
        let commit = self.clearing.commit.filter(|c| c.at <= self.durable);
        let due = self.now >= self.clearing.due_at();
        if commit.is_none() && !due {
            return;
        }
        self.clearing.last_note = self.now;
        self.state.noted = self.state.noted.max(self.durable);
        if let Some(commit) = commit {
            self.state.lost = LostBlocks::None;
            if commit.compared && !self.tracking_lost {
                self.state.compare_all = false;
            }
        }
        let version = self.persist();
        self.clearing.noting = Some((version, self.durable));
        if !self.rules.on(Rule::NoteFirst) {
            self.state_noted(version);
        }
    }

    /// Frames of a first sync are on stable storage at the target's `mark`: their bits clear once it is noted.
    pub(super) fn clear_frames(&mut self, mark: u64, blocks: Vec<BlockRange>) {
        self.state.mark = self.state.mark.max(mark);
        let version = self.persist();
        self.clearing.frames.push((version, blocks));
    }

    /// The state of `version` is durable: what waited for it clears.
    pub(super) fn state_noted(&mut self, version: u64) {
        if self.tracking_lost {
            return;
        }
        if self.clearing.noting.is_some_and(|(v, _)| v <= version)
            && let Some((_, durable)) = self.clearing.noting.take()
        {
            self.clear_through(durable);
        }
        let (ripe, rest) =
            std::mem::take(&mut self.clearing.frames).into_iter().partition(|(v, _)| *v <= version);
        self.clearing.frames = rest;
        let ripe: Vec<(u64, Vec<BlockRange>)> = ripe;
        for blocks in ripe.into_iter().flat_map(|(_, b)| b) {
            self.clear_frame(blocks);
        }
    }

    fn clear_through(&mut self, durable: Sequence) {
        if let Some(commit) = self.clearing.commit.filter(|c| c.at <= durable) {
            self.clearing.commit = None;
            self.clear_epoch(commit.at);
        }
        while let Some((sequence, blocks)) = self.clearing.take_record(durable) {
            let writing = self.in_flight.get(&sequence).is_some_and(|f| !f.local_done);
            if writing && self.rules.on(Rule::ClearLocal) {
                continue;
            }
            self.clear_written(sequence, blocks);
        }
        self.clearing.through = self.clearing.through.max(durable);
    }

    /// Clears the blocks of `blocks` whose last write is `sequence`.
    fn clear_written(&mut self, sequence: Sequence, blocks: BlockRange) {
        let Some(bitmap) = self.bitmaps.get_mut(blocks.volume.0 as usize) else { return };
        let last_write = self.rules.on(Rule::ClearLastWrite);
        self.recent.settle(blocks, sequence, |first, end| {
            bitmap.clear(first, end - first);
        });
        if !last_write {
            bitmap.clear(blocks.first, blocks.count);
        }
    }

    /// A local write ended after its record was durable and noted: its bits clear now.
    pub(super) fn clear_late(&mut self, sequence: Sequence, blocks: BlockRange) {
        if self.phase == Phase::Streaming && sequence <= self.clearing.through && !self.tracking_lost {
            self.clear_written(sequence, blocks);
        }
    }

    /// An epoch's commit is durable: every bit clears but for what was written since, is being written, or could not be
    /// read.
    fn clear_epoch(&mut self, commit: Sequence) {
        let mut written = BlockSet::default();
        for (volume, first, end, sequence) in self.recent.iter() {
            if sequence > commit {
                written.insert(BlockRange { volume, first, count: end - first });
            }
        }
        if self.rules.on(Rule::ClearLocal) {
            for f in self.in_flight.values().filter(|f| !f.local_done) {
                written.insert(f.blocks);
            }
        }
        let mut keep = written.clone();
        keep.union(&self.unreadable);
        if !self.rules.on(Rule::ClearLastWrite) {
            keep.clear();
        }
        for (index, bitmap) in self.bitmaps.iter_mut().enumerate() {
            let (volume, end) = (VolumeIndex(index as u32), bitmap.blocks());
            let mut at = 0;
            while let Some(kept) = keep.next_run(volume, at, end, u64::MAX) {
                bitmap.clear(at, kept.first - at);
                settle(bitmap, kept, &written);
                at = kept.end();
            }
            bitmap.clear(at, end - at);
        }
    }

    fn clear_frame(&mut self, blocks: BlockRange) {
        let Some(epoch) = &self.epoch else { return };
        let Some(bitmap) = self.bitmaps.get_mut(blocks.volume.0 as usize) else { return };
        let (volume, end) = (blocks.volume, blocks.end());
        let mut at = blocks.first;
        while at < end {
            let left = BlockRange { volume, first: at, count: end - at };
            let written = epoch.rewritten.next_run(volume, at, end, u64::MAX);
            let unreadable = self.unreadable.next_run(volume, at, end, u64::MAX);
            let recent = self.recent.within(left).next().map(|(first, until, _)| {
                let first = first.max(at);
                BlockRange { volume, first, count: until.min(end) - first }
            });
            let kept = [written, recent, self.locks.first_held(left), unreadable];
            let Some(kept) = kept.into_iter().flatten().min_by_key(|kept| kept.first) else { break };
            bitmap.clear(at, kept.first - at);
            // Bits that clients have set are safe from a loss of power, by the hot extents.
            settle(bitmap, kept, &epoch.rewritten);
            at = kept.end();
        }
        bitmap.clear(at, end - at);
    }
}

/// What of `kept` was written, as `written` says, holds the tail of the bitmap back no more.
fn settle(bitmap: &mut Bitmap, kept: BlockRange, written: &BlockSet) {
    let mut at = kept.first;
    while let Some(run) = written.next_run(kept.volume, at, kept.end(), u64::MAX) {
        bitmap.settle(run.first, run.count);
        at = run.end();
    }
}
