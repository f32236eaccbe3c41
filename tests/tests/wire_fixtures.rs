//! What goes over the wire and into the superblock, byte for byte: what an older program sent or stored is read, and this
//! one writes the same.
//!
//! `AFTERIMAGE_WRITE_FIXTURES=1 cargo test -p tests --test wire_fixtures` writes those of the current version;
//! those of an older one are never written again.

use std::path::Path;

use afterimage_protocol::chunk::*;
use afterimage_protocol::codec;
use afterimage_protocol::frame::*;
use afterimage_protocol::lineage::{Lineage, Standing};
use afterimage_protocol::message::*;
use afterimage_protocol::source::{Verification, VerifyOptions, VerifyState};
use afterimage_protocol::state::*;
use afterimage_protocol::*;
use bytes::Bytes;

/// What the fixture `file` holds.
fn read(file: &str, written: Option<&[u8]>) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wire").join(file);
    if let Some(written) = written.filter(|_| std::env::var_os("AFTERIMAGE_WRITE_FIXTURES").is_some()) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, written).unwrap();
    }
    std::fs::read(&path).unwrap().into()
}

/// Compares `written` with the fixture `file`, and returns what the fixture holds.
fn stored(file: &str, written: &[u8]) -> Bytes {
    let stored = read(file, Some(written));
    let differs = stored.iter().zip(written).position(|(a, b)| a != b);
    assert_eq!((differs, stored.len()), (None, written.len()), "{file} is written differently now");
    stored
}

fn position(sequence: u64) -> Position {
    Position::new(Generation(0x0123_4567_89ab_cdef), Sequence(sequence))
}

fn standing(role: Role) -> Standing {
    let mut lineage = Lineage::new(Generation(6));
    lineage.fork(Generation(7), Sequence(1 << 33));
    lineage.fork(position(0).generation, Sequence(1 << 34));
    Standing { role, lineage, sequence: Sequence(1 << 40), alone: true, parted: Time(77) }
}

fn blocks(first: u64, count: u64) -> BlockRange {
    BlockRange { volume: VolumeIndex(3), first, count }
}

fn data(codec: Codec) -> Content {
    let raw: Bytes = (0..8192_u32).map(|n| (n / 512) as u8).collect::<Vec<_>>().into();
    Content::Data(codec::encode(codec, &raw, codec::content_checksum(&raw)))
}

fn record(sequence: u64, content: Content) -> Frame {
    let range = ByteRange::new(VolumeIndex(3), 4096 * sequence, 8192);
    Frame::Record(Record {
        position: position(sequence),
        range,
        time: Time(1_700_000_000_000_000),
        content,
        floor: Sequence(sequence - 1),
    })
}

#[test]
fn frames() {
    let (epoch, frame, after) = (EpochId(0x1_0000_0002), FrameId(77), Sequence(40));
    let range = ByteRange::new(VolumeIndex(3), 1 << 40, 8192);
    let hashes: Bytes = (0..2 * HASH_BYTES as u8).collect::<Vec<_>>().into();
    let all = [
        record(41, data(Codec::Raw)),
        record(44, Content::Zeroes { punch: true }),
        record(45, Content::Zeroes { punch: false }),
        Frame::Mark { sequence: Sequence(45), sync: true },
        Frame::EpochBegin { epoch, generation: position(0).generation, incarnation: Incarnation(9) },
        Frame::Block(Block { epoch, frame, range, read_at: Sequence(46), after, content: data(Codec::Raw) }),
        Frame::Compare(Compare { epoch, frame, range, read_at: Sequence(46), after, hashes: hashes.clone() }),
        Frame::EpochCommit { epoch, position: position(50), time: Time(5), frames: 3, digest: u64::MAX },
        Frame::EpochAbort { epoch },
        Frame::Point { position: position(51), time: Time(6) },
    ];
    // Once stored and sent, an example stays as it is: what came later has a file of its own.
    let range = ByteRange::new(VolumeIndex(3), 1 << 40, 8192);
    let checks: Vec<u8> = [hashes.clone(), Bytes::new()]
        .into_iter()
        .flat_map(|hashes| {
            let check = Check { id: CheckId(78), position: position(52), range, hashes };
            Frame::Check(check).to_bytes()
        })
        .collect();
    let mut checks = stored("check-frames.v1.bin", &checks);
    for hashes in [hashes.clone(), Bytes::new()] {
        let (frame, length) = Frame::decode(&checks).unwrap();
        assert_eq!(frame, Frame::Check(Check { id: CheckId(78), position: position(52), range, hashes }));
        checks = checks.slice(length..);
    }
    assert!(checks.is_empty());
    let written: Vec<u8> = all.iter().flat_map(|frame| frame.to_bytes()).collect();
    for mut stored in [read("frames.v1.bin", None), stored("frames.v2.bin", &written)] {
        for expected in &all {
            let (frame, length) = Frame::decode(&stored).unwrap();
            assert_eq!(&frame, expected);
            stored = stored.slice(length..);
        }
        assert!(stored.is_empty());
    }
}

/// What a coder makes of frames may change with its version; what it made once is opened for ever.
#[test]
fn chunks() {
    let parts = [
        vec![record(41, data(Codec::Raw)), record(42, data(Codec::Raw))],
        vec![Frame::Mark { sequence: Sequence(42), sync: true }, record(43, data(Codec::Raw))],
    ];
    let written = |strength| {
        let mut coder = Coder::new(strength).unwrap();
        let chunk = |frames: &Vec<Frame>| {
            for frame in frames {
                coder.push(frame).unwrap();
            }
            coder.finish().unwrap()
        };
        parts.iter().flat_map(chunk).collect::<Vec<u8>>()
    };
    let zstd = written(Strength::Zstd { level: 1, window_log: 23, long_distance: true });
    let lz4 = written(Strength::Lz4);
    // The frames in the first have checksums over their payloads.
    for mut stored in [
        read("chunks.v1.bin", None),
        read("chunks.v2.bin", Some(&zstd)),
        read("chunks-lz4.v2.bin", Some(&lz4)),
    ] {
        let mut opener = Opener::default();
        for frames in &parts {
            let header = ChunkHeader::parse(&stored).unwrap().unwrap();
            let end = CHUNK_HEADER_BYTES + header.coded_bytes as usize;
            let coded = stored.split_to(end).split_off(CHUNK_HEADER_BYTES);
            let raw = opener.open(&header, &coded, 23).unwrap();
            let opened: Vec<Frame> = Frames::of(raw).map(Result::unwrap).collect();
            assert_eq!(&opened, frames);
        }
        assert!(stored.is_empty());
    }
}

#[test]
fn frame_of_a_switchover() {
    let frame = Frame::TakeOver { position: position(52) };
    let stored = stored("take-over-frame.v1.bin", &frame.to_bytes());
    assert_eq!(Frame::decode(&stored).unwrap().0, frame);
}

/// Another version of a compressor may find other bytes; those of an older one have to be understood.
#[test]
fn compressed_frames() {
    let written: Vec<u8> =
        [Codec::Lz4, Codec::Zstd].iter().flat_map(|codec| record(42, data(*codec)).to_bytes()).collect();
    let mut stored = read("compressed-frames.v1.bin", Some(&written));
    let Content::Data(raw) = data(Codec::Raw) else { unreachable!() };
    for codec in [Codec::Lz4, Codec::Zstd] {
        let (frame, length) = Frame::decode(&stored).unwrap();
        let Frame::Record(Record { content: Content::Data(payload), .. }) = frame else {
            panic!("{frame:?}")
        };
        assert_eq!((payload.codec, codec::decode(&payload).unwrap()), (codec, raw.encoded.clone()));
        stored = stored.slice(length..);
    }
    assert!(stored.is_empty());
}

#[test]
fn messages_of_the_source() {
    let open = Open {
        group: "orders".into(),
        session: SessionId(u64::MAX),
        known_session: SessionId(1),
        standing: standing(Role::Primary),
        incarnation: Incarnation(3),
        durable_acks: true,
        pending: true,
        volumes: vec![VolumeInfo { name: "pgdata".into(), size_bytes: 1 << 44 }],
    };
    let lease = Some(Lease { heard: Time(9), us: 250_000 });
    let ping = Ping { time: Time(8), sequence: Sequence(1), lease };
    let all = [SourceMessage::Open(open), SourceMessage::Ping(ping), SourceMessage::Measure];
    for (n, message) in all.iter().enumerate() {
        let stored = stored(&format!("source-message-{n}.v2.bin"), &encode(message));
        assert_eq!(&decode::<SourceMessage>(&stored).unwrap(), message);
    }
}

#[test]
fn messages_of_the_target() {
    let opened = |lost, epoch| {
        TargetMessage::Opened(Opened {
            session: SessionId(5),
            known_session: SessionId(4),
            previous_session: SessionId(3),
            received: Some(position(10)),
            durable: None,
            mark: 2,
            epoch,
            lost,
        })
    };
    let epoch = OpenEpoch {
        epoch: EpochId(6),
        incarnation: Incarnation(2),
        frames: vec![(FrameId(0), 9), (FrameId(11), 1)],
        digest: 12,
        records_to: Sequence(8),
    };
    let all = [
        opened(Lost::None, None),
        opened(Lost::Ranges(vec![blocks(1, 2)]), Some(epoch)),
        opened(Lost::All, None),
        TargetMessage::Refused { code: Refusal::UnknownGroup, text: "no such group".into(), standing: None },
        TargetMessage::Received { sequence: Sequence(300) },
        TargetMessage::Durable { sequence: Sequence(70_000) },
        TargetMessage::Staged {
            epoch: EpochId(6),
            frames: vec![(FrameId(1), 2)],
            records_to: Sequence(9),
            mark: Some(1),
        },
        TargetMessage::Differs { epoch: EpochId(6), frame: FrameId(1), blocks: vec![blocks(0, 1)] },
        TargetMessage::Pong { time: Time(8), applied: Sequence(1), clock: Time(9) },
        TargetMessage::Refused {
            code: Refusal::Promoted,
            text: "was promoted".into(),
            standing: Some(standing(Role::Standby)),
        },
        TargetMessage::Lacks { blocks: vec![blocks(5, 6)] },
        opened(Lost::Told, None),
        TargetMessage::NotTaken { text: "an epoch is open".into() },
        TargetMessage::Checked { id: CheckId(70_000), differing: vec![blocks(7, 8)], unchecked: 300 },
        TargetMessage::RolledBack { generations: vec![Generation(7), Generation(u64::MAX)] },
        TargetMessage::Measured { sizes: vec![1 << 44, 512] },
    ];
    for (n, message) in all.iter().enumerate() {
        let stored = stored(&format!("target-message-{n}.v2.bin"), &encode(message));
        assert_eq!(&decode::<TargetMessage>(&stored).unwrap(), message);
    }
}

#[test]
fn verification() {
    let verification = Verification {
        generation: Generation(7),
        state: VerifyState::UnderWay,
        options: VerifyOptions { repair: true, rate: 50 << 20 },
        started: Time(1_700_000_000_000_000),
        ended: None,
        cursor: (VolumeIndex(3), 1 << 28),
        passed_blocks: 1 << 30,
        unchecked_blocks: 5,
        mismatched_blocks: 3,
        repaired_blocks: 2,
        differing: vec![blocks(7, 2), blocks(9, 1)],
        mending: vec![blocks(9, 1)],
    };
    let found = stored("verification.v1.bin", &verification.encode());
    assert_eq!(Verification::decode(&found).as_ref(), Some(&verification));
    for cut in 0..found.len() {
        assert_eq!(Verification::decode(&found[..cut]), None);
    }
}

#[test]
fn group_state() {
    let volume = VolumeState { name: "pgdata".into(), size_bytes: 1 << 44, identity: b"serial 17".to_vec() };
    let mut state = GroupState::new(Role::Standby, vec![volume]);
    state.lineage = standing(Role::Standby).lineage;
    state.replaced_by = Some((Generation(9), Sequence(10)));
    state.alone = true;
    state.handing_over = Some(Sequence(98));
    state.keeps_image = true;
    state.boot_id = *b"0123456789abcdef";
    state.incarnation = Incarnation(3);
    state.reserved = Sequence(1 << 20);
    state.session = SessionId(5);
    state.previous_session = SessionId(4);
    state.noted = Sequence(99);
    state.mark = 2;
    state.peer_has_checkpoint = true;
    state.base = Some(BasePoint { position: position(90), lsn: Lsn(4096) });
    state.lost = LostBlocks::Ranges(vec![blocks(1, 2), blocks(9, 1)]);
    state.pending = true;
    state.rolled_back = vec![Generation(11), Generation(12)];
    let newest = stored("group-state.v3.bin", &state.encode());
    assert_eq!(GroupState::decode(&newest).unwrap(), state);
    // Version 2 knew nothing of rollbacks.
    let older = GroupState::decode(&read("group-state.v2.bin", None)).unwrap();
    (state.pending, state.rolled_back) = (false, Vec::new());
    assert_eq!(older, state);
    // Version 1 knew the parent only.
    let oldest = GroupState::decode(&read("group-state.v1.bin", None)).unwrap();
    state.lineage = Lineage::from_parts(vec![(position(7).generation, Sequence(7))], position(0).generation);
    (state.replaced_by, state.handing_over) = (None, None);
    (state.alone, state.keeps_image) = (false, false);
    assert_eq!(oldest, state);
}
