//! A journal of each format version with one frame of each kind: it can be read, and the bytes of the current version do not
//! change.
//!
//! `UPDATE_FIXTURES=1` writes it anew; only for a new version, beside the old one.

use std::path::PathBuf;

use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Codec, Content, Frame, Payload, Record};
use afterimage_protocol::rules::Rules;
use afterimage_protocol::*;
use afterimage_storage::io::{Dir, Open};
use afterimage_storage::journal::{Journal, JournalOptions};

use bytes::Bytes;

use crate::disk::Disk;
use crate::frames::*;

const OPTIONS: JournalOptions = JournalOptions {
    segment_bytes: 4096 + 1024,
    max_bytes: 1 << 20,
    max_unsynced_bytes: 1 << 20,
    recent_bytes: 0,
    long_write_bytes: 1100,
    salt: 0x5a17,
    rules: Rules::ALL,
};

const VERSIONS: [&str; 2] = ["v1", "v2"];

fn fixture(version: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/journal").join(version)
}

/// What [`raw`] is encoded as: constants, because another version of a compressor may give other bytes.
const LZ4_OF_2: &[u8] = &[
    31, 2, 1, 0, 44, 31, 3, 1, 0, 44, 31, 0, 1, 0, 44, 31, 1, 1, 0, 44, 31, 6, 1, 0, 44, 31, 7, 1, 0, 44, 31,
    4, 1, 0, 44, 31, 5, 1, 0, 38, 96, 5, 5, 5, 5, 5, 5,
];
const ZSTD_OF_3: &[u8] = &[
    40, 181, 47, 253, 96, 0, 1, 181, 0, 0, 72, 3, 3, 2, 1, 0, 7, 6, 5, 4, 8, 20, 0, 39, 20, 30, 25, 133, 71,
    70, 49, 44,
];

fn raw(fill: u8) -> Bytes {
    (0..512).map(|i| fill ^ (i / 64) as u8).collect::<Vec<_>>().into()
}

fn encoded(codec: Codec, fill: u8, encoded: &'static [u8]) -> Content {
    let payload = Payload {
        codec,
        raw_bytes: 512,
        checksum: codec::content_checksum(&raw(fill)),
        encoded: Bytes::from_static(encoded),
    };
    assert_eq!(codec::decode(&payload).unwrap(), raw(fill));
    Content::Data(payload)
}

fn frames() -> Vec<Frame> {
    let position = Position::new(Generation(7), Sequence(42));
    let range = ByteRange::new(VolumeIndex(1), 4096, 512);
    let time = Time(1_700_000_000_000_000);
    let record = |content| Frame::Record(Record { position, range, time, content, floor: Sequence(3) });
    let odd = ByteRange::new(VolumeIndex(1), 77, 3);
    vec![
        record(data(raw(1), Codec::Raw)),
        record(encoded(Codec::Lz4, 2, LZ4_OF_2)),
        record(encoded(Codec::Zstd, 3, ZSTD_OF_3)),
        Frame::Record(Record {
            position,
            range: odd,
            time,
            content: data(vec![1, 2, 3].into(), Codec::Raw),
            floor: Sequence(0),
        }),
        record(Content::Zeroes { punch: true }),
        Frame::Mark { sequence: Sequence(43), sync: true },
        Frame::EpochBegin { epoch: EpochId(3), generation: Generation(7), incarnation: Incarnation(2) },
        Frame::Block(Block {
            epoch: EpochId(3),
            frame: FrameId(1),
            range,
            read_at: Sequence(41),
            after: Sequence(40),
            content: encoded(Codec::Lz4, 2, LZ4_OF_2),
        }),
        Frame::EpochCommit { epoch: EpochId(3), position, time, frames: 1, digest: 77 },
        Frame::EpochAbort { epoch: EpochId(4) },
        Frame::Point { position, time },
    ]
}

/// Several segments, one of them superseded in part, with a sync before the last entries.
fn build() -> (Disk, Vec<Frame>) {
    let disk = Disk::default();
    let (mut journal, ..) = Journal::open(disk.dir(), OPTIONS, &mut |_| {}).unwrap();
    let frames = frames();
    journal.append(&frames[0]).unwrap();
    let cut = journal.end();
    journal.append(&frames[9]).unwrap();
    sync(&mut journal).unwrap();
    journal.truncate(cut).unwrap();
    for frame in &frames[1..8] {
        journal.append(frame).unwrap();
    }
    sync(&mut journal).unwrap();
    journal.append_batch(&frames[8..]).unwrap();
    (disk, frames)
}

#[test]
fn version_2_is_written_as_it_always_was() {
    let fixture = || fixture("v2");
    let (disk, _) = build();
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::create_dir_all(fixture()).unwrap();
        for name in disk.names() {
            std::fs::write(fixture().join(&name), disk.bytes_of(&name)).unwrap();
        }
    }
    let mut stored: Vec<_> = std::fs::read_dir(fixture())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    stored.sort();
    assert_eq!(disk.names(), stored);
    for name in stored {
        assert!(std::fs::read(fixture().join(&name)).unwrap() == disk.bytes_of(&name), "{name} changed");
    }
}

#[test]
fn every_version_can_be_read() {
    for version in VERSIONS {
        let disk = Disk::default();
        for entry in std::fs::read_dir(fixture(version)).unwrap() {
            let entry = entry.unwrap();
            let file = disk.open(entry.file_name().to_str().unwrap(), Open::New).unwrap();
            file.write_at(&std::fs::read(entry.path()).unwrap(), 0).unwrap();
        }
        let (_, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
        assert_eq!(found.into_iter().map(|e| e.2).collect::<Vec<_>>(), frames(), "{version}");
        assert_eq!(recovered.damage, None, "{version}");
    }
}
