//! Without any fault.

use afterimage_protocol::frame::{Codec, Compare, Frame};
use afterimage_protocol::*;
use afterimage_storage::journal::{Journal, JournalError, JournalOptions};
use bytes::Bytes;

use afterimage_memory::aligned;
use afterimage_storage::io::{Dir, Open};

use crate::disk::{Disk, Fault};
use crate::frames::*;

/// What is in front of a payload.
const HEADERS_BYTES: u64 = 64 + 112;
const BLOCK_BYTES: u64 = 4096;

fn filled(disk: &Disk, count: u64) -> (Journal, Vec<Held>) {
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let mut random = Random::new(1);
    let mut all = Vec::new();
    for i in 0..count {
        let frame = any_frame(&mut random, i + 1);
        let start = journal.end();
        all.push((start, journal.append(&frame).unwrap(), frame));
        if i % 16 == 15 {
            sync(&mut journal).unwrap();
        }
    }
    (journal, all)
}

#[test]
fn what_is_appended_is_read_at_once_and_after_a_restart() {
    let disk = Disk::default();
    let (journal, all) = filled(&disk, 200);
    assert_eq!(held(&journal), all);
    assert!(journal.durable() < journal.end());
    assert!(disk.names_with("segment-").len() > 3);
    drop(journal);
    let (journal, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
    assert_eq!(found, all);
    assert_eq!(held(&journal), all);
    assert_eq!((recovered.start, recovered.end), (Lsn(0), all.last().unwrap().1));
    assert_eq!(recovered.damage, None);
    assert_eq!(journal.durable(), journal.end());
}

#[test]
fn where_small_appends_will_be_is_written_while_nobody_waits_for_one() {
    let disk = Disk::default();
    let options = JournalOptions { max_bytes: 64 << 20, segment_bytes: 4 << 20, ..OPTIONS };
    let (mut journal, ..) = open(disk.dir(), options).unwrap();
    let mut random = Random::new(3);
    let (mut all, mut slow_appends, mut slow_syncs) = (Vec::new(), 0, 0);
    for i in 0..1000 {
        let frame = any_frame(&mut random, i + 1);
        let (start, before) = (journal.end(), disk.operations());
        all.push((start, journal.append(&frame).unwrap(), frame));
        let appended = disk.operations();
        sync(&mut journal).unwrap();
        let synced = disk.operations();
        slow_appends += u32::from(i > 0 && appended - before > 1);
        slow_syncs += u32::from(synced - appended > 8);
    }
    assert_eq!(disk.names_with("segment-").len(), 1);
    assert_eq!(slow_appends, 0, "an append writes its entry and nothing else");
    assert!((1..=8).contains(&slow_syncs), "one in hundreds pays for all: {slow_syncs}");
    assert_eq!(held(&journal), all);
    drop(journal);
    assert_eq!(open(disk.dir(), options).unwrap().2, all);
}

#[test]
fn a_part_is_read_from_any_entry_on() {
    let disk = Disk::default();
    let (journal, all) = filled(&disk, 60);
    for i in 0..all.len() {
        let j = (i + 7).min(all.len() - 1);
        let part: Vec<_> = journal.read(all[i].0, all[j].0).map(|e| e.unwrap()).collect();
        assert_eq!(part, all[i..j]);
    }
    let odd = Lsn(all[3].0.0 + 8);
    assert!(matches!(journal.read(odd, journal.end()).next(), Some(Err(JournalError::Damaged { .. }))));
    assert!(journal.read(journal.end(), journal.end()).next().is_none());
}

#[test]
fn restarts_do_not_pile_up_files() {
    let disk = Disk::default();
    drop(filled(&disk, 3));
    let names = disk.names().len();
    for _ in 0..5 {
        let (journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        assert!(journal.bytes() < 4 * OPTIONS.segment_bytes);
    }
    assert!(disk.names().len() <= names + 1, "{:?}", disk.names());
}

#[test]
fn a_truncated_journal_ends_there_also_after_a_restart() {
    let disk = Disk::default();
    let (mut journal, mut all) = filled(&disk, 100);
    journal.truncate(all[70].0).unwrap();
    all.truncate(70);
    assert_eq!(held(&journal), all);
    let odd = Lsn(all[3].0.0 + 8);
    assert!(matches!(journal.truncate(odd), Err(JournalError::NoEntry { .. })));
    let beyond = Lsn(journal.end().0 + 8);
    assert!(matches!(journal.truncate(beyond), Err(JournalError::NoEntry { .. })));
    let frame = Frame::EpochAbort { epoch: EpochId(9) };
    let start = journal.end();
    all.push((start, journal.append(&frame).unwrap(), frame));
    drop(journal);
    assert_eq!(open(disk.dir(), OPTIONS).unwrap().2, all);
}

#[test]
fn a_trim_forgets_whole_segments_and_the_lsn_goes_on() {
    let disk = Disk::default();
    let (mut journal, all) = filled(&disk, 200);
    let (bytes, end) = (journal.bytes(), journal.end());
    journal.trim(all[100].0).unwrap();
    let start = journal.start();
    assert!(start > Lsn(0) && start <= all[100].0);
    assert!(journal.bytes() < bytes);
    let kept: Vec<_> = all.iter().filter(|e| e.0 >= start).cloned().collect();
    assert_eq!(held(&journal), kept);
    drop(journal);
    let (mut journal, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
    assert_eq!((recovered.start, recovered.end), (start, end));
    assert_eq!(found, kept);

    journal.trim(end).unwrap();
    drop(journal);
    let (mut journal, recovered, _) = open(disk.dir(), OPTIONS).unwrap();
    assert_eq!((recovered.end, recovered.damage), (end, None));
    assert!(journal.append(&all[0].2).unwrap() > end);
}

#[test]
fn a_trim_spares_what_is_not_durable() {
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let mut random = Random::new(3);
    for i in 0..40 {
        journal.append(&write(&mut random, i, 0, 1024)).unwrap();
    }
    journal.trim(journal.end()).unwrap();
    assert_eq!(held(&journal).len(), 40);
}

#[test]
fn a_reset_journal_is_empty_and_the_lsn_goes_on() {
    let disk = Disk::default();
    let (mut journal, all) = filled(&disk, 50);
    let end = journal.end();
    journal.reset().unwrap();
    assert_eq!((journal.start(), journal.end(), journal.durable()), (end, end, end));
    assert_eq!(disk.names_with("segment-").len(), 1);
    drop(journal);
    let (mut journal, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
    assert_eq!((recovered.start, recovered.end, recovered.damage), (end, end, None));
    assert!(found.is_empty());
    journal.append(&all[0].2).unwrap();
    assert_eq!(held(&journal)[0].0, end);
}

#[test]
fn a_batch_is_one_write() {
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let mut random = Random::new(2);
    let batch: Vec<_> = (0..10).map(|i| any_frame(&mut random, i)).collect();
    let before = disk.operations();
    journal.append_batch(&batch).unwrap();
    assert_eq!(disk.operations(), before + 1);
    assert_eq!(held(&journal).into_iter().map(|e| e.2).collect::<Vec<_>>(), batch);
    assert_eq!(journal.append_batch(&[]).unwrap(), []);
}

#[test]
fn a_batch_larger_than_a_segment_fits() {
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let mut random = Random::new(2);
    let batch: Vec<_> = (0..10).map(|i| write(&mut random, i, 0, 4096)).collect();
    journal.append_batch(&batch).unwrap();
    assert_eq!(held(&journal).len(), 10);
}

#[test]
fn what_is_not_durable_is_bounded() {
    let disk = Disk::default();
    let options = JournalOptions { max_unsynced_bytes: 4096, ..OPTIONS };
    let (mut journal, ..) = open(disk.dir(), options).unwrap();
    let mut random = Random::new(2);
    let frame = write(&mut random, 1, 0, 3000);
    journal.append(&frame).unwrap();
    let end = journal.end();
    assert!(matches!(journal.append(&frame), Err(JournalError::Backlog { limit: 4096, .. })));
    assert_eq!(journal.end(), end);
    sync(&mut journal).unwrap();
    journal.append(&frame).unwrap();
}

#[test]
fn the_size_is_bounded_and_a_trim_makes_room() {
    let disk = Disk::default();
    let options = JournalOptions { max_bytes: 64 << 10, ..OPTIONS };
    let (mut journal, ..) = open(disk.dir(), options).unwrap();
    let mut random = Random::new(2);
    let full = loop {
        match journal.append(&write(&mut random, 1, 0, 1000)) {
            Ok(_) => sync(&mut journal).unwrap(),
            Err(e) => break e,
        };
    };
    assert!(matches!(full, JournalError::Full { limit: 65536, source: None, .. }), "{full}");
    assert!(journal.bytes() <= 65536);
    let before = held(&journal);
    journal.trim(journal.durable()).unwrap();
    journal.append(&before[0].2).unwrap();
}

#[test]
fn what_could_not_be_read_again_is_refused() {
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let range = ByteRange::new(VolumeIndex(0), 0, 4096);
    let compare = Frame::Compare(Compare {
        epoch: EpochId(1),
        frame: FrameId(0),
        range,
        read_at: Sequence(1),
        after: Sequence(0),
        hashes: Bytes::from(vec![0; 16]),
    });
    assert!(matches!(journal.append(&compare), Err(JournalError::Refused { source: None })));
    let mut random = Random::new(2);
    let nowhere = write(&mut random, 1, u64::MAX - 5, 512);
    assert!(matches!(journal.append(&nowhere), Err(JournalError::Refused { source: Some(_) })));
    let long = record(1, 0, data(random.bytes(512), Codec::Raw), 511);
    assert!(matches!(journal.append(&long), Err(JournalError::Refused { source: Some(_) })));
    assert_eq!(journal.end(), Lsn(0));
}

#[test]
fn one_sync_at_a_time() {
    let disk = Disk::default();
    let (mut journal, _) = filled(&disk, 3);
    let ticket = journal.start_sync().unwrap();
    assert!(matches!(journal.start_sync(), Err(JournalError::SyncUnderWay)));
    let end = journal.end();
    journal.append(&Frame::EpochAbort { epoch: EpochId(1) }).unwrap();
    let result = ticket.run();
    assert_eq!(journal.finish_sync(ticket, result).unwrap(), end);
    assert_eq!(journal.durable(), end);
    assert_eq!(sync(&mut journal).unwrap(), journal.end());
}

/// Fills some segments, and has the first of them trimmed away.
fn trimmed(disk: &Disk) -> (Journal, Vec<Held>) {
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let mut random = Random::new(8);
    let mut all = Vec::new();
    while disk.names_with("segment-").len() < 4 {
        let frame = write(&mut random, all.len() as u64, 0, 700);
        all.push((journal.end(), journal.append(&frame).unwrap(), frame));
    }
    sync(&mut journal).unwrap();
    (journal, all)
}

#[test]
fn the_next_segment_is_made_of_one_that_was_trimmed_away() {
    let disk = Disk::default();
    let (mut journal, all) = trimmed(&disk);
    let mut random = Random::new(9);
    journal.trim(journal.end()).unwrap();
    assert_eq!(disk.names_with("spare").len(), 1);
    let mut kept: Vec<_> = all.into_iter().filter(|entry| entry.0 >= journal.start()).collect();
    let segments = disk.names_with("segment-").len();
    while disk.names_with("segment-").len() == segments {
        let frame = write(&mut random, 99, 0, 700);
        kept.push((journal.end(), journal.append(&frame).unwrap(), frame));
    }
    assert_eq!(disk.names_with("spare").len(), 0);
    assert_eq!(held(&journal), kept);
    sync(&mut journal).unwrap();
    drop(journal);
    // What the file held before is not taken for entries, nor for something that was lost.
    let (_, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
    assert_eq!((found, recovered.damage), (kept, None));
}

#[test]
fn a_segment_that_somebody_reads_is_not_made_another() {
    let disk = Disk::default();
    let (mut journal, all) = trimmed(&disk);
    let reader = journal.read(journal.start(), journal.end());
    journal.trim(journal.end()).unwrap();
    assert_eq!(disk.names_with("spare").len(), 0);
    let read: Vec<_> = reader.map(Result::unwrap).collect();
    assert_eq!(read, all);
}

#[test]
fn a_long_batch_ends_where_the_next_payload_begins_at_a_block() {
    const LONG: JournalOptions = JournalOptions { segment_bytes: 64 << 10, ..OPTIONS };
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), LONG).unwrap();
    let mut random = Random::new(3);
    let mut all = Vec::new();
    for n in 0..12 {
        let batch: Vec<_> = (0..1 + n % 6).map(|i| write(&mut random, i, 0, 700)).collect();
        let start = journal.end();
        let ends = journal.append_batch(&batch).unwrap();
        let bytes: u64 = batch.iter().map(Journal::entry_bytes).sum();
        let is_long = bytes >= OPTIONS.long_write_bytes;
        assert_eq!(is_long, (journal.end().0 + HEADERS_BYTES).is_multiple_of(BLOCK_BYTES), "{n}");
        assert_eq!(is_long, journal.end().0 > start.0 + bytes, "{n}");
        let starts = [start].into_iter().chain(ends.iter().copied());
        all.extend(starts.zip(ends.clone()).zip(batch).map(|((start, end), frame)| (start, end, frame)));
    }
    assert_eq!(held(&journal), all);
    // Written again, they are where they were.
    disk.fail(Fault::Sync(0));
    let ticket = journal.start_sync().unwrap();
    let result = ticket.run();
    journal.finish_sync(ticket, result).unwrap();
    assert_eq!((journal.rewrites(), held(&journal)), (1, all.clone()));
    drop(journal);
    assert_eq!(open(disk.dir(), LONG).unwrap().2, all);
}

/// Records of 8192 bytes each, in memory that a disk takes as it is.
fn aligned_records(random: &mut Random, count: u64) -> Vec<Frame> {
    let record = |n| {
        let mut payload = aligned(8192);
        payload.extend_from_slice(&random.bytes(8192));
        record(n, 8192 * n, data(payload.freeze(), Codec::Raw), 8192)
    };
    (0..count).map(record).collect()
}

/// Whether all that was appended since it was last asked was whole blocks, from memory that a disk takes as it is.
fn wrote_whole_blocks(disk: &Disk) -> bool {
    let writes = disk.take_vectored();
    assert!(!writes.is_empty());
    writes.iter().all(|(offset, buffers)| {
        let aligned =
            |(address, length): &(usize, usize)| address.is_multiple_of(512) && length.is_multiple_of(4096);
        offset.is_multiple_of(BLOCK_BYTES) && buffers.iter().all(aligned)
    })
}

#[test]
fn long_entries_are_written_as_whole_blocks_from_where_they_are_in_memory() {
    const LONG: JournalOptions =
        JournalOptions { segment_bytes: 256 << 10, max_unsynced_bytes: 1 << 20, ..OPTIONS };
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), LONG).unwrap();
    let mut random = Random::new(9);
    let mut all = Vec::new();
    disk.take_vectored();
    let mut append = |journal: &mut Journal, batch: Vec<Frame>| {
        let start = journal.end();
        let ends = journal.append_batch(&batch).unwrap();
        let starts = [start].into_iter().chain(ends.clone());
        all.extend(starts.zip(ends).zip(batch).map(|((start, end), frame)| (start, end, frame)));
        wrote_whole_blocks(&disk)
    };
    // Nothing tells where a payload will begin that comes behind a short entry, or first, and it ends in the middle of a block.
    for short in [None, Some(write(&mut random, 1, 0, 512)), None] {
        if let Some(short) = short {
            append(&mut journal, vec![short]);
        }
        for _ in 0..2 {
            append(&mut journal, aligned_records(&mut random, 1));
        }
        for count in [1, 3, 1] {
            assert!(append(&mut journal, aligned_records(&mut random, count)), "{count}");
        }
    }
    disk.fail(Fault::Sync(0));
    sync(&mut journal).unwrap();
    assert_eq!(journal.rewrites(), 1);
    for batch in [aligned_records(&mut random, 1), vec![write(&mut random, 2, 0, 9)]] {
        append(&mut journal, batch);
    }
    assert_eq!(held(&journal), all);
    sync(&mut journal).unwrap();
    drop(journal);
    let found = open(disk.dir(), LONG).unwrap().2;
    assert_eq!(found, all);
    // They go to a volume from where they were read to.
    let places = found.iter().map(|(.., frame)| frame.payload()).filter(|payload| payload.len() == 8192);
    assert!(places.map(|payload| payload.as_ptr() as usize).all(|place| place.is_multiple_of(512)));
}

#[test]
fn a_frame_of_what_the_file_was_before_is_not_one_of_the_new_segment() {
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let mut random = Random::new(5);
    let mut append = |journal: &mut Journal| {
        let frame = write(&mut random, 1, 0, 700);
        (journal.end(), journal.append(&frame).unwrap(), frame)
    };
    while disk.names_with("segment-").len() < 3 {
        append(&mut journal);
    }
    sync(&mut journal).unwrap();
    journal.trim(journal.end()).unwrap();
    let old = disk.bytes_of("spare");
    while !disk.names_with("spare").is_empty() {
        append(&mut journal);
    }
    sync(&mut journal).unwrap();
    let mut kept = held(&journal);
    kept.push(append(&mut journal));
    drop(journal);
    // The power fails: of the last entry the header is on the disk, and behind it is still what was there before.
    let name = disk.names_with("segment-").pop().unwrap();
    let base = u64::from_str_radix(name.rsplit('-').next().unwrap(), 16).unwrap();
    let last = kept.last().unwrap();
    let at = 4096 + (last.0.0 - base) as usize;
    let frame = at + 64..at + 64 + last.2.encoded_len();
    assert_eq!(old[at..][..4], *b"AIJE", "the places are the same");
    disk.open(&name, Open::Existing).unwrap().write_at(&old[frame.clone()], frame.start as u64).unwrap();
    let (_, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
    kept.pop();
    assert!(found == kept);
    assert_eq!(recovered.damage, None);
}
