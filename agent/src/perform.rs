//! Does what a source wants done, and tells it how that ended.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use afterimage_contract::daemon::or_abort;
use afterimage_events::{Event, event};
use afterimage_protocol::bitmap::Bitmap;
use afterimage_protocol::frame::Content;
use afterimage_protocol::source::{Growth, LocalError, Output, ReadOutcome, Unused, Write};
use afterimage_protocol::state::GroupState;
use afterimage_protocol::*;
use afterimage_storage::group::read_run;

use crate::group::Group;
use crate::verify;

/// A write of no more than this goes to the page cache in less time than another thread would take to wake up.
pub(crate) const SHORT_BYTES: u64 = 64 << 10;

/// Small reads that one thread does one after the other, in number and in bytes: as many threads are busy as with large ones.
const BATCH_READS: usize = 16;
const BATCH_BYTES: u64 = 256 << 10;

/// Threads that read for one group: a few keep a disk busy, and many groups leave room for each other and for clients.
const READ_THREADS: usize = 4;

/// Reads that no thread has taken, and the threads that take them.
#[derive(Default)]
pub(crate) struct Readings {
    waiting: VecDeque<Reading>,
    threads: usize,
}

impl Readings {
    /// Counts threads that are to come, as many as what waits is worth; how many.
    fn call_threads(&mut self) -> usize {
        let bytes: u64 = self.waiting.iter().map(Reading::bytes).sum();
        let reads = self.waiting.len();
        let batches = reads.div_ceil(BATCH_READS).max(bytes.div_ceil(BATCH_BYTES) as usize).min(reads);
        let more = batches.min(READ_THREADS).saturating_sub(self.threads);
        self.threads += more;
        more
    }

    /// The next reads for one thread; `None` counts it as gone.
    fn next_batch(&mut self) -> Option<Vec<Reading>> {
        let mut bytes = 0;
        let batch: Vec<Reading> = std::iter::from_fn(|| {
            let next = self.waiting.front()?.bytes();
            if bytes > 0 && bytes + next > BATCH_BYTES {
                return None;
            }
            bytes += next;
            self.waiting.pop_front()
        })
        .take(BATCH_READS)
        .collect();
        if batch.is_empty() {
            self.threads -= 1;
            return None;
        }
        Some(batch)
    }
}

/// A read that the source wants.
struct Reading {
    read: u64,
    blocks: BlockRange,
    hash: bool,
}

impl Reading {
    fn bytes(&self) -> u64 {
        self.blocks.count.saturating_mul(BLOCK_BYTES)
    }
}

impl Group {
    /// Does what the source wants, in order; what takes long, on threads of its own. `here` says that this is the lane, which
    /// does what is short, and looks after local writes next ([`Group::run_locals_later`]).
    pub(crate) fn perform(self: &Arc<Self>, outputs: Vec<Output>, here: bool) {
        let mut reads = Vec::new();
        for output in outputs {
            match output {
                Output::LocalWrite { sequence, write } => {
                    if let Some(write) = self.queue_local(sequence, write, here) {
                        self.job(move |group| {
                            let result = group.write_local(&write);
                            drop(write);
                            group.feed(|source, now| source.local_done(now, sequence, result));
                        });
                    }
                }
                Output::LocalFlush { token, volume } => {
                    let Some(local) = self.volumes.get(volume.0 as usize) else { continue };
                    let started = local.want_flush(token);
                    // Alone, a short flush is over before another thread has begun with it.
                    if started && here && self.flushes_are_few() && local.flush_is_short() {
                        self.run_flushes(volume);
                    } else if started {
                        self.job(move |group| group.run_flushes(volume));
                    }
                }
                Output::PersistState { version, state } => self.job(move |group| {
                    let ok = group.persist_state(*state);
                    group.feed(|source, now| source.state_persisted(now, version, ok));
                }),
                Output::PersistHot { transaction, extents } => self.job(move |group| {
                    let ok = group.store.lock().unwrap_or_else(PoisonError::into_inner).persist_hot(&extents);
                    group.feed(|source, now| source.hot_persisted(now, transaction, ok));
                }),
                Output::SyncBitmap { token, words } => self.job(move |group| {
                    let ok = group.sync_bitmaps(&words);
                    group.feed(|source, now| source.bitmap_synced(now, token, ok));
                }),
                Output::Read { read, blocks, hash } => reads.push(Reading { read, blocks, hash }),
                Output::NoteVerification(report) => self.job(move |group| {
                    let mut store = group.store.lock().unwrap_or_else(PoisonError::into_inner);
                    store.note_verification(&report);
                    drop(store);
                    verify::tell(&group.name, &report);
                    group.feed(|source, now| source.verification_noted(now));
                }),
                Output::Disconnect { reason } => self.hang_up(reason),
                Output::PrepareGrowth(growth) => self.job(move |group| {
                    let prepared = group.prepare_growth(&growth);
                    group.feed(|source, now| source.growth_prepared(now, prepared));
                }),
                Output::ForgetGrowth(Unused(bitmaps)) => self.job(move |group| {
                    group.store.lock().unwrap_or_else(PoisonError::into_inner).forget_growth(bitmaps);
                }),
                Output::Grown(growth) => self.job(move |group| {
                    group.store.lock().unwrap_or_else(PoisonError::into_inner).growth_noted();
                    group.end_resize(Ok(growth));
                }),
                Output::NotGrown(why) => self.end_resize(Err(why)),
                Output::RolesStay(why) => self.end_switchover(Err(why)),
                Output::RolledBack(outcome) => self.end_rollback(outcome),
                // Answered where it was taken from the source.
                Output::Complete { .. } => {}
            }
        }
        self.read_together(reads);
    }

    /// Gives `reads` to a few threads, which take several small ones at a time: reading a block takes less than having a thread
    /// wake up.
    fn read_together(self: &Arc<Self>, reads: Vec<Reading>) {
        if reads.is_empty() {
            return;
        }
        let more = {
            let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
            readings.waiting.extend(reads);
            readings.call_threads()
        };
        for _ in 0..more {
            self.job(|group| {
                while let Some(batch) = group.next_batch() {
                    group.read_batch(&batch);
                }
            });
        }
    }

    /// What a thread reads next; `None` if it is to end.
    fn next_batch(&self) -> Option<Vec<Reading>> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner).next_batch()
    }

    fn read_batch(self: &Arc<Self>, batch: &[Reading]) {
        if batch.len() > 1 {
            // A disk is the faster the more it is asked for at once.
            batch.iter().for_each(|reading| self.will_read(reading.blocks));
        }
        let outcomes: Vec<_> = batch
            .iter()
            .map(|reading| (reading.read, self.read_blocks(reading.blocks, reading.hash)))
            .collect();
        let waits = self.take_reads();
        self.feed(|source, now| {
            source.clients_read(now, &waits);
            for (read, found) in outcomes {
                source.blocks_read(now, read, found);
            }
        });
    }

    /// Runs `job` on a thread that may block.
    pub(crate) fn job(self: &Arc<Self>, job: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let group = self.clone();
        self.blocking.spawn_blocking(move || or_abort(&group.name, || job(&group)));
    }

    fn write_local(&self, write: &Write) -> Result<(), LocalError> {
        self.volumes.get(write.range.volume.0 as usize).ok_or(LocalError::Io)?.write(write)
    }

    /// One flush answers all that were wanted before it started.
    fn run_flushes(self: &Arc<Self>, volume: VolumeIndex) {
        let Some(local) = self.volumes.get(volume.0 as usize) else { return };
        loop {
            let tokens = local.take_flushes();
            if tokens.is_empty() {
                return;
            }
            let ok = local.flush();
            for token in tokens {
                self.feed(|source, now| source.local_flushed(now, token, ok));
            }
        }
    }

    fn persist_state(&self, mut state: GroupState) -> bool {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        self.note_fence(&mut state);
        store.persist_state(&state)
    }

    fn prepare_growth(&self, growth: &[Growth]) -> Option<Vec<Bitmap>> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = store.prepare_growth(growth);
        if let Err(error) = &prepared {
            event!(Event::StateFailed, group = self.name, %error, "the bitmaps of volumes that grow cannot be made");
        }
        prepared.ok()
    }

    fn sync_bitmaps(&self, words: &[(VolumeIndex, std::ops::Range<usize>)]) -> bool {
        words.iter().all(|(volume, range)| {
            let synced = self.bitmaps.sync(*volume, range.clone());
            if let Err(error) = &synced {
                event!(Event::StateFailed, group = self.name, %error, "a bitmap cannot be made durable");
            }
            synced.is_ok()
        })
    }

    fn will_read(&self, blocks: BlockRange) {
        if let Some(volume) = self.volumes.get(blocks.volume.0 as usize) {
            let range = blocks.bytes(volume.size_bytes());
            volume.file().will_read(range.offset, range.length.min(MAX_PAYLOAD_BYTES));
        }
    }

    fn read_blocks(&self, blocks: BlockRange, hash: bool) -> Vec<ReadOutcome> {
        match self.volumes.get(blocks.volume.0 as usize) {
            Some(volume) => read_run(volume.file(), volume.size_bytes(), blocks, hash),
            None => vec![ReadOutcome::Failed],
        }
    }
}

pub(crate) fn is_short(write: &Write) -> bool {
    !write.fua && matches!(write.content, Content::Data(_)) && write.range.length <= SHORT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(read: u64, count: u64) -> Reading {
        Reading { read, blocks: BlockRange { volume: VolumeIndex(0), first: 0, count }, hash: false }
    }

    fn waiting(counts: &[u64]) -> Readings {
        let waiting = counts.iter().zip(0..).map(|(count, read)| reading(read, *count)).collect();
        Readings { waiting, threads: 0 }
    }

    /// How many reads each batch has, until there are none.
    fn batches(readings: &mut Readings) -> Vec<usize> {
        std::iter::from_fn(|| readings.next_batch()).map(|batch| batch.len()).collect()
    }

    #[test]
    fn small_reads_go_together_and_large_ones_alone_in_order() {
        let large = MAX_PAYLOAD_BYTES / BLOCK_BYTES;
        let mut readings = waiting(&[1; 20]);
        readings.threads = 1;
        assert_eq!(batches(&mut readings), [BATCH_READS, 4]);
        let mut readings = waiting(&[1, 1, large, large, 1, 32, 32, 1]);
        readings.threads = 1;
        let first = readings.next_batch().unwrap();
        assert_eq!(first.iter().map(|reading| reading.read).collect::<Vec<_>>(), [0, 1]);
        // 1, 32 and 32 blocks would be more than one batch has.
        assert_eq!(batches(&mut readings), [1, 1, 2, 2]);
    }

    #[test]
    fn as_many_threads_come_as_there_is_work_and_all_of_them_go() {
        for (counts, threads) in
            [(vec![1; 3], 1), (vec![1; 17], 2), (vec![256; 2], 2), (vec![256; 100], READ_THREADS)]
        {
            let mut readings = waiting(&counts);
            assert_eq!(readings.call_threads(), threads, "{} reads", counts.len());
            // Those are counted from here on.
            assert_eq!(readings.call_threads(), 0);
            while readings.next_batch().is_some() {}
            assert_eq!(readings.threads, threads - 1, "the one that found nothing has gone");
        }
    }
}
