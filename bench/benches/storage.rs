//! Frames, the hot-extent log and the journal, on the file system of the temporary directory.
//!
//! There is no index and no view of the journal yet: what a promotion and a verification read is the journal in order.

use std::hint::black_box;
use std::sync::Arc;

use afterimage_protocol::codec::{content_checksum, encode};
use afterimage_protocol::frame::{Codec, Content, Frame, Record};
use afterimage_protocol::*;
use afterimage_storage::disk::RealDir;
use afterimage_storage::hot_log::HotLog;
use afterimage_storage::journal::{Journal, JournalOptions};
use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;

/// Lengths of writes, in bytes.
const LENGTHS: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];
/// A journal holds at most twice this much that is not durable: a sync now and then, which the median leaves out.
const UNSYNCED_BYTES: u64 = 32 << 20;

fn main() {
    divan::main();
}

/// A record whose bytes do not compress.
fn record(sequence: u64, length: usize) -> Frame {
    let mut random = 88_172_645_463_325_252 ^ sequence;
    let bytes: Vec<u8> = (0..length)
        .map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as u8
        })
        .collect();
    let bytes = Bytes::from(bytes);
    let checksum = content_checksum(&bytes);
    Frame::Record(Record {
        position: Position::new(Generation(7), Sequence(sequence)),
        range: ByteRange::new(VolumeIndex(0), sequence % 1000 * (1 << 20), length as u64),
        time: Time(sequence),
        content: Content::Data(encode(Codec::Raw, &bytes, checksum)),
        floor: Sequence(0),
    })
}

#[divan::bench(args = LENGTHS)]
fn frame_encode(bencher: Bencher<'_, '_>, length: usize) {
    let frame = record(1, length);
    bencher.counter(BytesCount::new(length)).bench(|| (black_box(&frame).header(), frame.payload()));
}

#[divan::bench(args = LENGTHS)]
fn frame_decode(bencher: Bencher<'_, '_>, length: usize) {
    let bytes = record(1, length).to_bytes();
    bencher.counter(BytesCount::new(length)).bench(|| Frame::decode(black_box(&bytes)).expect("a frame"));
}

#[divan::bench(args = [1024, 4096])]
fn hot_log_write(bencher: Bencher<'_, '_>, extents: u64) {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = RealDir::open(temp.path()).expect("the directory");
    let (mut log, _) = HotLog::open(&dir, "hot", extents as usize).expect("a log");
    let extents: Vec<Extent> = (0..extents).map(|index| Extent { volume: VolumeIndex(0), index }).collect();
    bencher.bench_local(|| log.write(&extents).expect("a durable log"));
}

/// Makes all of the journal durable, and forgets it.
fn sync(journal: &mut Journal, end: Lsn) {
    let ticket = journal.start_sync().expect("a sync");
    let synced = ticket.run();
    journal.finish_sync(ticket, synced).expect("a durable journal");
    journal.trim(end).expect("a journal without its past");
}

fn journal(dir: &tempfile::TempDir) -> Journal {
    let dir = RealDir::open(dir.path()).expect("the directory");
    Journal::open(Arc::new(dir), JournalOptions::default(), &mut |_| {}).expect("a journal").0
}

#[divan::bench(args = LENGTHS)]
fn journal_append(bencher: Bencher<'_, '_>, length: usize) {
    let temp = tempfile::tempdir().expect("a directory");
    let mut journal = journal(&temp);
    let frame = record(1, length);
    bencher.counter(BytesCount::new(length)).bench_local(|| {
        let end = journal.append(&frame).expect("room");
        if end.0 - journal.durable().0 > UNSYNCED_BYTES {
            sync(&mut journal, end);
        }
    });
}

/// So many writes of 4 KiB appended together and made durable by one sync.
#[divan::bench(args = [1, 8, 32, 128])]
fn journal_group_commit(bencher: Bencher<'_, '_>, writes: usize) {
    let temp = tempfile::tempdir().expect("a directory");
    let mut journal = journal(&temp);
    let frames: Vec<Frame> = (0..writes as u64).map(|n| record(n + 1, 4 << 10)).collect();
    bencher.counter(divan::counter::ItemsCount::new(writes)).bench_local(|| {
        journal.append_batch(&frames).expect("room");
        let end = journal.end();
        sync(&mut journal, end);
    });
}

/// What a promotion that applies, and a verification, read.
#[divan::bench]
fn journal_read(bencher: Bencher<'_, '_>) {
    const WRITES: u64 = 4096;
    let temp = tempfile::tempdir().expect("a directory");
    let mut journal = journal(&temp);
    for n in 0..WRITES {
        journal.append(&record(n + 1, 4 << 10)).expect("room");
    }
    bencher.counter(BytesCount::new(WRITES * (4 << 10))).bench_local(|| {
        let entries = journal.read(journal.start(), journal.end());
        assert_eq!(entries.filter(Result::is_ok).count() as u64, WRITES);
    });
}
