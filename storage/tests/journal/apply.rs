//! Redo against the plainest model: every frame written in order into an array.

use std::sync::Arc;

use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Codec, Content, Frame};
use afterimage_protocol::*;
use afterimage_storage::apply::{ApplyError, ApplyStats, DEFAULT_BUDGET_BYTES, apply};
use afterimage_storage::disk::RealDir;
use afterimage_storage::io::{Dir, File, Open};
use afterimage_storage::journal::{Journal, JournalError, JournalOptions};
use afterimage_storage::scatter::Scatter;

use crate::disk::{Disk, Fault};
use crate::frames::*;

pub const VOLUME_BYTES: u64 = 256 << 10;

fn contents(volume: &Arc<dyn File>) -> Vec<u8> {
    let mut bytes = vec![0; volume.len().unwrap() as usize];
    volume.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn all(journal: &Journal, volumes: &[Arc<dyn File>], budget: u64) -> Result<ApplyStats, ApplyError> {
    apply(journal.read(journal.start(), journal.end()), &|_| false, volumes, &mut Scatter::default(), budget)
}

pub fn draw(random: &mut Random, volumes: u32) -> Frame {
    let volume = VolumeIndex(random.below(u64::from(volumes)) as u32);
    let length = [1, 17, 512, 4096, 9000, 40000][random.below(6) as usize];
    let offset = random.below(VOLUME_BYTES - length);
    let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][random.below(3) as usize];
    let content = match random.below(4) {
        0 => Content::Zeroes { punch: random.below(2) == 0 },
        1 => data(vec![random.next() as u8; length as usize].into(), codec),
        _ => data(random.bytes(length), codec),
    };
    if random.below(4) == 0 {
        return Frame::Block(Block {
            epoch: EpochId(1),
            frame: FrameId(0),
            range: ByteRange::new(volume, offset / 4096 * 4096, length),
            read_at: Sequence(0),
            after: Sequence(0),
            content,
        });
    }
    let Frame::Record(mut r) = record(random.below(1000), offset, content, length) else { unreachable!() };
    r.range.volume = volume;
    Frame::Record(r)
}

pub fn model_write(model: &mut [Vec<u8>], frame: &Frame) {
    let range = frame.written_range().unwrap();
    let target =
        &mut model[range.volume.0 as usize][range.offset as usize..(range.offset + range.length) as usize];
    match frame {
        Frame::Record(afterimage_protocol::frame::Record { content: Content::Data(p), .. })
        | Frame::Block(Block { content: Content::Data(p), .. }) => {
            target.copy_from_slice(&codec::decode(p).unwrap())
        }
        _ => target.fill(0),
    }
}

#[test]
fn the_base_is_what_writing_in_order_gives_whatever_the_window() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let disk = Disk::default();
        let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        let mut model = vec![vec![0; VOLUME_BYTES as usize]; 2];
        let mut skipped = Vec::new();
        for _ in 0..80 {
            let frame = draw(&mut random, 2);
            let start = journal.end();
            journal.append(&frame).unwrap();
            sync(&mut journal).unwrap();
            if random.below(5) == 0 {
                skipped.push(start);
            } else {
                model_write(&mut model, &frame);
            }
        }
        for budget in [0, 1, 20_000, 200_000, DEFAULT_BUDGET_BYTES] {
            let volumes = [disk.volume(VOLUME_BYTES), disk.volume(VOLUME_BYTES)];
            for _ in 0..2 {
                let entries = journal.read(Lsn(0), journal.end());
                let stats =
                    apply(entries, &|lsn| skipped.contains(&lsn), &volumes, &mut Scatter::default(), budget)
                        .unwrap();
                assert_eq!(stats.taken + stats.skipped, 80);
                assert_eq!(stats.end, journal.end());
                assert!(
                    volumes.iter().map(contents).eq(model.iter().cloned()),
                    "seed {seed} budget {budget}"
                );
            }
        }
    }
}

#[test]
fn it_is_the_same_past_the_page_cache() {
    let temp = tempfile::tempdir().unwrap();
    let dir = RealDir::open(temp.path()).unwrap();
    let mut scatter = Scatter::default();
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let disk = Disk::default();
        let (mut journal, ..) = open(disk.dir(), JournalOptions { max_bytes: 64 << 20, ..OPTIONS }).unwrap();
        let mut model = vec![vec![0; VOLUME_BYTES as usize]; 2];
        for _ in 0..150 {
            let mut frame = draw(&mut random, 2);
            if let Frame::Record(record) = &mut frame
                && random.below(4) != 0
            {
                // Whole blocks, often the same ones.
                let block = random.below(8) * BLOCK_BYTES;
                let bytes = vec![random.below(256) as u8; (BLOCK_BYTES * (1 + random.below(3))) as usize];
                record.range = ByteRange::new(record.range.volume, block, bytes.len() as u64);
                record.content = data(bytes.into(), Codec::Raw);
            }
            journal.append(&frame).unwrap();
            sync(&mut journal).unwrap();
            model_write(&mut model, &frame);
        }
        for budget in [0, 20_000, DEFAULT_BUDGET_BYTES] {
            let volumes: Vec<Arc<dyn File>> = ["a", "b"]
                .map(|name| {
                    let file = dir.open_log(&format!("{name}{seed}-{budget}"), Open::New).unwrap();
                    file.allocate(VOLUME_BYTES).unwrap();
                    assert!(
                        file.direct(std::ptr::null(), 0, BLOCK_BYTES).is_some(),
                        "there is no way past it here"
                    );
                    file
                })
                .into();
            let entries = journal.read(Lsn(0), journal.end());
            apply(entries, &|_| false, &volumes, &mut scatter, budget).unwrap();
            assert!(volumes.iter().map(contents).eq(model.iter().cloned()), "seed {seed} budget {budget}");
        }
    }
}

#[test]
fn a_redo_that_was_killed_anywhere_is_made_good_by_another() {
    let mut random = Random::new(9);
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let mut model = vec![vec![0; VOLUME_BYTES as usize]];
    for _ in 0..60 {
        let frame = draw(&mut random, 1);
        journal.append(&frame).unwrap();
        sync(&mut journal).unwrap();
        model_write(&mut model, &frame);
    }
    for n in 0..1000 {
        let volumes = [disk.volume(VOLUME_BYTES)];
        disk.fail(Fault::From(n));
        let outcome = all(&journal, &volumes, 50_000);
        disk.fail(Fault::None);
        all(&journal, &volumes, 50_000).unwrap();
        assert_eq!(contents(&volumes[0]), model[0]);
        if outcome.is_ok() {
            assert!(n > 20);
            return;
        }
        assert!(matches!(outcome, Err(ApplyError::Volume { .. })));
    }
    panic!("never came to its end");
}

#[test]
fn a_hot_block_is_written_once_and_neighbours_with_it() {
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let mut random = Random::new(4);
    for i in 0..50 {
        journal.append(&write(&mut random, i, 8192 + i % 4 * 512, 512)).unwrap();
        sync(&mut journal).unwrap();
    }
    let volumes = [disk.volume(VOLUME_BYTES)];
    let stats = all(&journal, &volumes, DEFAULT_BUDGET_BYTES).unwrap();
    assert_eq!((stats.operations, stats.written_bytes, stats.taken_bytes), (1, 2048, 50 * 512));
}

#[test]
fn a_window_is_verified_before_its_first_byte_is_written() {
    for codec in [Codec::Raw, Codec::Lz4] {
        let disk = Disk::default();
        let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        let mut random = Random::new(4);
        journal.append(&write(&mut random, 1, 0, 512)).unwrap();
        let Frame::Record(mut bad) = write(&mut random, 2, 512, 512) else { unreachable!() };
        let mut payload = codec::encode(codec, &vec![7; 512].into(), 0);
        assert_eq!(payload.codec, codec);
        payload.checksum ^= 1;
        bad.content = Content::Data(payload);
        let bad_lsn = journal.end();
        journal.append(&Frame::Record(bad)).unwrap();
        let volumes = [disk.volume(VOLUME_BYTES)];
        let error = all(&journal, &volumes, DEFAULT_BUDGET_BYTES).unwrap_err();
        // What is stored as it is was verified when it was read.
        let found = match &error {
            ApplyError::Journal(JournalError::Damaged { lsn, .. }) if codec == Codec::Raw => *lsn,
            ApplyError::Content { lsn, offset: 512, .. } if codec == Codec::Lz4 => *lsn,
            other => panic!("{codec:?}: {other}"),
        };
        assert_eq!(found, bad_lsn);
        assert!(error.is_damage());
        assert!(contents(&volumes[0]).iter().all(|b| *b == 0));
    }
}

#[test]
fn what_lies_outside_the_volumes_is_refused() {
    for (volume, offset) in [(0, VOLUME_BYTES - 511), (1, 0), (0, i64::MAX as u64 - 512)] {
        let disk = Disk::default();
        let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        let mut random = Random::new(4);
        let Frame::Record(mut outside) = write(&mut random, 2, offset, 512) else { unreachable!() };
        outside.range.volume = VolumeIndex(volume);
        journal.append(&Frame::Record(outside)).unwrap();
        let volumes = [disk.volume(VOLUME_BYTES)];
        let error = all(&journal, &volumes, DEFAULT_BUDGET_BYTES).unwrap_err();
        assert!(matches!(error, ApplyError::Outside { .. }), "{error}");
    }
}
