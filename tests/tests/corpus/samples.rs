//! The samples that corpora begin with: every kind of valid input, and what is wrong in a way that a program has to see.

use std::os::unix::fs::PermissionsExt;

use afterimage_contract::admin::{ErrorCode, Loss, Promotion, Request, Response};
use afterimage_contract::status::Position as ShownPosition;
use afterimage_nbd::wire::codes::*;
use afterimage_protocol::chunk::{CHUNK_HEADER_BYTES, ChunkHeader, Coder, MIN_WINDOW_LOG, Strength};
use afterimage_protocol::codec::{content_checksum, encode};
use afterimage_protocol::frame::*;
use afterimage_protocol::lineage::{Lineage, Standing};
use afterimage_protocol::message::{self, *};
use afterimage_protocol::state::*;
use afterimage_protocol::*;
use afterimage_storage::bitmap::open_bitmap;
use afterimage_storage::hot_log::HotLog;
use afterimage_storage::journal::{Journal, JournalOptions};
use afterimage_storage::superblock::Superblock;
use afterimage_transport::{
    Fingerprint, IDENTITY_FILE, Identity, PINS_FILE, PinStore, PinnedPeer, create_offer,
};
use bytes::Bytes;
use tests::fuzz::Parts;
use tests::sim::SimDisk;

type Samples = Vec<(String, Vec<u8>)>;

/// The samples of a target: its own, and what can be done to the first of them.
pub fn of(target: &str) -> Samples {
    let mut samples = match target {
        "frame" => frame(),
        "chunk" => chunk(),
        "source_message" => source_message(),
        "target_message" => target_message(),
        "nbd_handshake" => nbd_handshake(),
        "nbd_request" => nbd_request(),
        "group_state" => group_state(),
        "superblock" => superblock(),
        "hot_log" => hot_log(),
        "bitmap" => bitmap(),
        "journal" => journal(),
        "config" => config(),
        "admin_request" => admin_request(),
        "admin_response" => admin_response(),
        "pairing_token" => pairing_token(),
        "pins" => pins(),
        "identity" => identity(),
        other => panic!("no samples for {other}"),
    };
    let first = samples.first().map(|(_, bytes)| bytes.clone()).unwrap_or_default();
    let mut flipped = first.clone();
    if let Some(byte) = flipped.get_mut(first.len() / 2) {
        *byte ^= 0x10;
    }
    let derived: [(&str, Vec<u8>); 7] = [
        ("cut-in-half", first[..first.len() / 2].to_vec()),
        ("cut-by-one", first[..first.len().saturating_sub(1)].to_vec()),
        ("flipped", flipped),
        ("twice", first.repeat(2)),
        ("nothing", Vec::new()),
        ("zeroes", vec![0; 200]),
        ("ones", vec![0xff; 200]),
    ];
    samples.extend(derived.map(|(name, bytes)| (name.to_owned(), bytes)));
    samples
}

fn named<const N: usize>(samples: [(&str, Vec<u8>); N]) -> Samples {
    samples.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}

fn raw(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i / 100) as u8).collect::<Vec<_>>().into()
}

fn data(codec: Codec, bytes: usize) -> Content {
    let raw = raw(bytes);
    Content::Data(encode(codec, &raw, content_checksum(&raw)))
}

fn position() -> Position {
    Position::new(Generation(0x5f0c), Sequence(42))
}

fn range(length: u64) -> ByteRange {
    ByteRange::new(VolumeIndex(1), 8192, length)
}

fn record(content: Content, length: u64) -> Frame {
    Frame::Record(Record {
        position: position(),
        range: range(length),
        time: Time(7),
        content,
        floor: Sequence(3),
    })
}

fn frames() -> [(&'static str, Frame); 11] {
    let epoch = EpochId(9);
    let block = |content| {
        let (frame, read_at, after) = (FrameId(2), Sequence(41), Sequence(40));
        Frame::Block(Block { epoch, frame, range: range(4096), read_at, after, content })
    };
    [
        ("record-raw", record(data(Codec::Raw, 512), 512)),
        ("record-lz4", record(data(Codec::Lz4, 4096), 4096)),
        ("record-zstd", record(data(Codec::Zstd, 4096), 4096)),
        ("record-zeroes", record(Content::Zeroes { punch: true }, 64 << 20)),
        ("block", block(data(Codec::Lz4, 4096))),
        ("block-zeroes", block(Content::Zeroes { punch: false })),
        ("mark", Frame::Mark { sequence: Sequence(43), sync: true }),
        ("epoch-begin", Frame::EpochBegin { epoch, generation: Generation(1), incarnation: Incarnation(2) }),
        (
            "epoch-commit",
            Frame::EpochCommit { epoch, position: position(), time: Time(8), frames: 3, digest: 77 },
        ),
        ("epoch-abort", Frame::EpochAbort { epoch }),
        ("point", Frame::Point { position: position(), time: Time(8) }),
    ]
}

/// What may follow the preface of a stream, and lies about lengths.
fn chunk() -> Samples {
    let strength = |window_log| Strength::Zstd { level: 1, window_log, long_distance: false };
    let mut coder = Coder::new(strength(MIN_WINDOW_LOG)).unwrap();
    let mut chunk = |frames: &[Frame]| {
        for frame in frames {
            coder.push(frame).unwrap();
        }
        coder.finish().unwrap().to_vec()
    };
    let page = |first: u8| {
        let raw: Bytes = [&[first; 100][..], &raw(3996)].concat().into();
        record(Content::Data(encode(Codec::Raw, &raw, content_checksum(&raw))), 4096)
    };
    let (first, second) = (chunk(&[page(1), page(2)]), chunk(&[page(3)]));
    let mut lz4 = Coder::new(Strength::Lz4).unwrap();
    let [lz4_first, lz4_second] = [page(1), page(2)].map(|page| {
        lz4.push(&page).unwrap();
        lz4.finish().unwrap()
    });
    // A block of 4 MiB.
    let mut lz4_large = lz4_first.to_vec();
    lz4_large[CHUNK_HEADER_BYTES + 5] = 0x70;
    let mixed = [&first[..], &page(4).to_bytes(), &second].concat();
    let all: Vec<Frame> = frames().map(|(_, frame)| frame).into();
    let header = ChunkHeader::parse(&first).unwrap().unwrap();
    let with = |header: ChunkHeader| [&header.to_bytes()[..], &first[CHUNK_HEADER_BYTES..]].concat();
    let mut wide = Coder::new(strength(MIN_WINDOW_LOG + 1)).unwrap();
    wide.push(&page(1)).unwrap();
    named([
        ("valid-chunk", first.clone()),
        ("valid-two-chunks", [&first[..], &second].concat()),
        ("valid-lz4", [&lz4_first[..], &lz4_second].concat()),
        ("valid-lz4-after-zstd", [&first[..], &lz4_first, &first].concat()),
        ("bad-lz4-continues-zstd", [&first[..], &lz4_second].concat()),
        ("bad-lz4-block-size", lz4_large),
        ("valid-chunks-and-a-frame", mixed),
        ("valid-every-frame", [&first[..], &second, &chunk(&all)].concat()),
        ("bad-continues-nothing", second),
        ("bad-too-long", with(ChunkHeader { raw_bytes: header.raw_bytes + 1, ..header })),
        ("bad-too-short", with(ChunkHeader { raw_bytes: header.raw_bytes - 1, ..header })),
        ("bad-raw-length", with(ChunkHeader { raw_bytes: u32::MAX, ..header })),
        ("bad-coded-length", with(ChunkHeader { coded_bytes: u32::MAX, ..header })),
        ("bad-window", wide.finish().unwrap().to_vec()),
    ])
}

fn frame() -> Samples {
    let mut samples: Samples =
        frames().map(|(name, frame)| (format!("valid-{name}"), frame.to_bytes().to_vec())).into();
    let compare = Frame::Compare(Compare {
        epoch: EpochId(9),
        frame: FrameId(3),
        range: range(8192),
        read_at: Sequence(41),
        after: Sequence(40),
        hashes: raw(2 * HASH_BYTES),
    });
    samples.push(("valid-compare".into(), compare.to_bytes().to_vec()));
    let take_over = Frame::TakeOver { position: position() };
    samples.push(("valid-take-over".into(), take_over.to_bytes().to_vec()));
    let check = |range, hashes| Frame::Check(Check { id: CheckId(5), position: position(), range, hashes });
    let hashed = check(range(8192), raw(2 * HASH_BYTES)).to_bytes().to_vec();
    samples.push(("valid-check".into(), hashed));
    samples.push(("valid-check-zeroes".into(), check(range(64 << 20), Bytes::new()).to_bytes().to_vec()));
    // Compressed, and claiming to be what a bomb would be.
    let Content::Data(mut payload) = data(Codec::Zstd, 1 << 20) else { unreachable!() };
    payload.raw_bytes = 4096;
    samples.push(("bad-zstd-of-more".into(), record(Content::Data(payload), 4096).to_bytes().to_vec()));
    let Content::Data(mut payload) = data(Codec::Lz4, 4096) else { unreachable!() };
    payload.checksum ^= 1;
    samples.push(("bad-content".into(), record(Content::Data(payload), 4096).to_bytes().to_vec()));
    let good = record(data(Codec::Raw, 512), 512).to_bytes().to_vec();
    for (name, at, value) in [
        ("version", 4, 2),
        ("kind", 5, 10),
        ("codec", 6, 3),
        ("payload-length", 10, 0x20),
        ("volume", 16, 64),
        ("range-length", 54, 1),
        ("offset", 47, 0x80),
    ] {
        let mut bytes = good.clone();
        bytes[at] = value;
        samples.push((format!("bad-{name}"), bytes));
    }
    samples
}

fn standing() -> Standing {
    let mut lineage = Lineage::new(Generation(0x5f0b));
    lineage.fork(Generation(0x5f0c), position().sequence);
    Standing { role: Role::Primary, lineage, sequence: Sequence(1 << 40), alone: false, parted: Time(77) }
}

fn open_message() -> Open {
    Open {
        group: "orders".into(),
        session: SessionId(u64::MAX),
        known_session: SessionId(3),
        standing: standing(),
        incarnation: Incarnation(4),
        durable_acks: true,
        pending: false,
        volumes: vec![VolumeInfo { name: "pgdata".into(), size_bytes: 1 << 40 }],
    }
}

fn source_message() -> Samples {
    let bytes = |message: SourceMessage| message::encode(&message);
    let many = (0..64).map(|n| VolumeInfo { name: format!("v{n}"), size_bytes: n << 30 }).collect();
    let blank = Standing { lineage: Lineage::default(), ..standing() };
    let new = Open { standing: blank, volumes: Vec::new(), group: String::new(), ..open_message() };
    named([
        ("valid-open", bytes(SourceMessage::Open(open_message()))),
        ("valid-open-many-volumes", bytes(SourceMessage::Open(Open { volumes: many, ..open_message() }))),
        ("valid-open-empty", bytes(SourceMessage::Open(new))),
        (
            "valid-ping",
            bytes(SourceMessage::Ping(Ping {
                time: Time(u64::MAX),
                sequence: Sequence(7),
                lease: Some(Lease { heard: Time(3), us: 250_000 }),
            })),
        ),
        ("valid-measure", bytes(SourceMessage::Measure)),
        // A string that claims 2^60 bytes.
        ("bad-length", vec![0, 253, 0, 0, 0, 0, 0, 0, 0, 16]),
        ("bad-variant", vec![7]),
        ("bad-text", vec![0, 2, 0xc3, 0x28]),
    ])
}

fn target_message() -> Samples {
    let bytes = |message: TargetMessage| message::encode(&message);
    let blocks = |n: u64| BlockRange { volume: VolumeIndex(0), first: n * 3, count: 2 };
    let opened = |lost| {
        TargetMessage::Opened(Opened {
            session: SessionId(1),
            known_session: SessionId(2),
            previous_session: SessionId(3),
            received: Some(position()),
            durable: None,
            mark: 5,
            epoch: Some(OpenEpoch {
                epoch: EpochId(1),
                incarnation: Incarnation(2),
                frames: vec![(FrameId(0), 9), (FrameId(11), 1)],
                digest: 3,
                records_to: Sequence(8),
            }),
            lost,
        })
    };
    let staged = |mark| TargetMessage::Staged {
        epoch: EpochId(1),
        frames: vec![(FrameId(0), 3)],
        records_to: Sequence(9),
        mark,
    };
    let refused = TargetMessage::Refused {
        code: Refusal::Promoted,
        text: "promoted at 12:00".into(),
        standing: Some(standing()),
    };
    named([
        ("valid-opened", bytes(opened(Lost::None))),
        ("valid-opened-lost", bytes(opened(Lost::Ranges((0..300).map(blocks).collect())))),
        ("valid-opened-all-lost", bytes(opened(Lost::All))),
        ("valid-refused", bytes(refused)),
        ("valid-received", bytes(TargetMessage::Received { sequence: Sequence(1) })),
        ("valid-durable", bytes(TargetMessage::Durable { sequence: Sequence(u64::MAX) })),
        ("valid-staged", bytes(staged(Some(4)))),
        ("valid-staged-empty", bytes(staged(None))),
        ("valid-differs", {
            bytes(TargetMessage::Differs { epoch: EpochId(1), frame: FrameId(2), blocks: vec![blocks(1)] })
        }),
        ("valid-checked", {
            bytes(TargetMessage::Checked { id: CheckId(5), differing: vec![blocks(1)], unchecked: 7 })
        }),
        ("valid-measured", bytes(TargetMessage::Measured { sizes: vec![1 << 40, 512, 0] })),
        ("valid-pong", bytes(TargetMessage::Pong { time: Time(5), applied: Sequence(6), clock: Time(3) })),
        // 2^60 ranges.
        ("bad-length", vec![5, 1, 1, 253, 0, 0, 0, 0, 0, 0, 0, 16]),
    ])
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn nbd_handshake() -> Samples {
    let info = [&text("pgdata")[..], &[0, 2, 0, 3, 0, 1]].concat();
    let meta = [&text("pgdata")[..], &[0, 0, 0, 2], &text("base:allocation"), &text("base:")].concat();
    named([
        ("valid-go", option(OPT_GO, &info)),
        ("valid-info", option(OPT_INFO, &info)),
        ("valid-flags", 3u32.to_be_bytes().into()),
        ("valid-export-name", option(OPT_EXPORT_NAME, b"pgdata")),
        ("valid-list", option(OPT_LIST, &[])),
        ("valid-abort", option(OPT_ABORT, &[])),
        ("valid-structured-reply", option(OPT_STRUCTURED_REPLY, &[])),
        ("valid-set-meta-context", option(OPT_SET_META_CONTEXT, &meta)),
        ("valid-list-meta-context", option(OPT_LIST_META_CONTEXT, &meta)),
        ("bad-flags", 0x8000_0000u32.to_be_bytes().into()),
        ("bad-magic", vec![1; 20]),
        ("bad-name-length", option(OPT_GO, &[0xff; 6])),
        ("bad-name-text", option(OPT_GO, &[0, 0, 0, 2, 0xc3, 0x28, 0, 0])),
        // Four thousand million queries, of which none is there.
        ("bad-query-count", option(OPT_SET_META_CONTEXT, &[&text("x")[..], &[0xff; 4]].concat())),
        ("bad-info-count", option(OPT_GO, &[&text("x")[..], &[0xff; 2]].concat())),
    ])
}

fn nbd_request() -> Samples {
    let request = |command: u16, flags: u16, offset: u64, length: u32| {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&0x1122_3344_5566_7788u64.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes
    };
    named([
        ("valid-read", request(CMD_READ, 0, 4096, 4096)),
        ("valid-write-fua", request(CMD_WRITE, CMD_FLAG_FUA, 4096, 512)),
        ("valid-flush", request(CMD_FLUSH, 0, 0, 0)),
        ("valid-trim", request(CMD_TRIM, 0, 0, 1 << 30)),
        ("valid-write-zeroes", request(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO, 0, 1 << 30)),
        ("valid-block-status", request(CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, 0, 1 << 30)),
        ("valid-cache", request(CMD_CACHE, 0, 0, 4096)),
        ("valid-disconnect", request(CMD_DISC, 0, 0, 0)),
        ("valid-past-the-end", request(CMD_WRITE, 0, u64::MAX, u32::MAX)),
        ("valid-unknown-command", request(999, 0xffff, 0, 0)),
        ("bad-magic", request(CMD_READ, 0, 0, 0).into_iter().rev().collect()),
    ])
}

fn states() -> [(&'static str, GroupState); 6] {
    let volume = |n: usize| VolumeState {
        name: format!("pgdata{n}"),
        size_bytes: 1 << 40,
        identity: b"device 1099511627776 dm-uuid LVM-x".to_vec(),
    };
    let standby = GroupState {
        lineage: standing().lineage,
        keeps_image: true,
        base: Some(BasePoint { position: position(), lsn: Lsn(4096) }),
        boot_id: *b"0123456789abcdef",
        session: SessionId(9),
        ..GroupState::new(Role::Standby, vec![volume(0)])
    };
    let mut lost = standby.clone();
    lost.lost.add((0..400).map(|n| BlockRange { volume: VolumeIndex(0), first: 2 * n, count: 1 }));
    let primary = GroupState {
        lineage: Lineage::new(Generation(0x5f0c)),
        replaced_by: Some((Generation(4), Sequence(5))),
        alone: true,
        incarnation: Incarnation(12),
        reserved: Sequence(1 << 30),
        noted: Sequence(1 << 20),
        peer_has_checkpoint: true,
        compare_all: true,
        pending: true,
        rolled_back: vec![Generation(7), Generation(8)],
        ..GroupState::new(Role::Primary, (0..MAX_VOLUMES).map(volume).collect())
    };
    [
        ("standby", standby.clone()),
        ("lost", lost),
        ("all-lost", GroupState { lost: LostBlocks::All, ..standby.clone() }),
        ("primary", primary.clone()),
        ("fenced", GroupState { role: Role::Fenced, ..primary }),
        ("new", GroupState::new(Role::Standby, Vec::new())),
    ]
}

fn group_state() -> Samples {
    let mut samples: Samples = states().map(|(name, state)| (format!("valid-{name}"), state.encode())).into();
    let good = states()[0].1.encode();
    for (name, at, value) in [("version", 0, 4), ("role", 4, 4), ("flag", 33, 2), ("trailing", good.len(), 0)]
    {
        let mut bytes = good.clone();
        bytes.resize(bytes.len().max(at + 1), 0);
        bytes[at] = value;
        samples.push((format!("bad-{name}"), bytes));
    }
    samples
}

/// The content of a file on a simulated disk, without the zeroes at its end.
fn content(disk: &SimDisk, path: &str, from: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    assert!(disk.peek(path, &mut bytes, from), "{path}");
    let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    bytes.truncate(used);
    bytes
}

fn superblock() -> Samples {
    const SLOT_BYTES: u64 = 69_632;
    let slots = |payloads: &[&[u8]]| {
        let disk = SimDisk::new(0);
        let (mut superblock, _) = Superblock::open(&*disk.dir("g"), "superblock").unwrap();
        payloads.iter().for_each(|p| superblock.write(p).unwrap());
        [0, SLOT_BYTES].map(|at| content(&disk, "g/superblock", at, SLOT_BYTES))
    };
    let both = |a: &[u8], b: &[u8]| {
        let mut input = Vec::new();
        Parts::put(&mut input, 0, 0, a);
        Parts::put(&mut input, 0, 1, b);
        input
    };
    let [older, newer] = [&states()[0].1, &states()[3].1].map(GroupState::encode);
    let [a1, b1] = slots(&[&older]);
    let [a2, b2] = slots(&[&older, &newer]);
    let [a0, b0] = slots(&[]);
    let [other, _] = slots(&[&newer]);
    let [nonsense, _] = slots(&[b"not a group state"]);
    let mut samples = named([
        ("valid-both", both(&a1, &b1)),
        ("valid-second-write", both(&a2, &b2)),
        ("valid-cut-between-slots", both(&a2, &b1)),
        ("valid-torn-in-a", both(&a2[..100], &b1)),
        ("valid-torn-in-b", both(&a2, &b2[..100])),
        ("never-written", both(&a0, &b0)),
        ("bad-differ", both(&a1, &other)),
        ("bad-both-torn", both(&a1[..50], &b1[..50])),
        ("bad-payload", both(&nonsense, &nonsense)),
    ]);
    let mut version = a1.clone();
    version[4] = 2;
    samples.push(("bad-version".into(), both(&version, &b1[..10])));
    samples
}

fn hot_log() -> Samples {
    const COPY_BYTES: u64 = 790_528;
    let extents = |count: u64| -> Vec<Extent> {
        (0..count).map(|index| Extent { volume: VolumeIndex((index % 3) as u32), index: index * 7 }).collect()
    };
    let log = |sets: &[u64]| {
        let disk = SimDisk::new(0);
        let (mut log, _) = HotLog::open(&*disk.dir("g"), "h", 1024).unwrap();
        sets.iter().for_each(|count| log.write(&extents(*count)).unwrap());
        [0, 1, 2, 3].map(|copy| content(&disk, "g/h", copy * COPY_BYTES, 32 + 12 * 1024))
    };
    let all = |copies: &[Vec<u8>; 4]| {
        let mut input = Vec::new();
        copies.iter().enumerate().for_each(|(n, copy)| Parts::put(&mut input, 0, n as u64, copy));
        input
    };
    let (new, one, two, three) = (log(&[]), log(&[3]), log(&[3, 900]), log(&[3, 900, 1]));
    let torn = |n: usize, copies: &[Vec<u8>; 4]| {
        let mut copies = copies.clone();
        let half = copies[n].len() / 2;
        copies[n].truncate(half);
        all(&copies)
    };
    named([
        ("valid-two", all(&two)),
        ("valid-new", all(&new)),
        ("valid-one", all(&one)),
        ("valid-three", all(&three)),
        ("valid-a-copy-torn", torn(0, &two)),
        ("valid-the-other-copy-torn", torn(2, &two)),
        ("valid-newest-torn-in-both", {
            let mut copies = two.clone();
            copies[1].truncate(20);
            copies[3].truncate(20);
            all(&copies)
        }),
        ("bad-nothing-whole", all(&[vec![], vec![], vec![], vec![]])),
        (
            "bad-an-old-copy",
            all(&[three[0].clone(), log(&[3, 9, 1, 2, 5, 6])[1].clone(), new[2].clone(), vec![]]),
        ),
    ])
}

fn bitmap() -> Samples {
    const BLOCKS: u64 = 5000;
    let file = |name: &str, blocks: u64, runs: &[(u64, u64)]| {
        let disk = SimDisk::new(0);
        let mut file = open_bitmap(&*disk.dir("g"), name, blocks, true).unwrap();
        for (first, count) in runs {
            file.bitmap.set(*first, *count);
        }
        drop(file);
        content(&disk, &format!("g/{name}"), 0, 4096 + 8 * 82)
    };
    let some = file("bitmap-0", BLOCKS, &[(3, 2), (4000, 200), (4999, 1)]);
    let past_the_end = {
        let mut bytes = some.clone();
        bytes.resize(4096 + 8 * 79, 0);
        bytes[4096 + 8 * 78..].fill(0xff);
        bytes
    };
    let without_summary = {
        let mut bytes = some.clone();
        bytes.truncate(4096 + 8 * 79);
        bytes
    };
    let longer = {
        let mut bytes = some.clone();
        bytes.resize(4096 + 8 * 83, 0);
        bytes
    };
    named([
        ("valid-some", some),
        ("valid-none", file("bitmap-0", BLOCKS, &[])),
        ("valid-all", file("bitmap-0", BLOCKS, &[(0, BLOCKS)])),
        ("valid-without-summary", without_summary),
        ("valid-bits-past-the-end", past_the_end),
        ("bad-other-name", file("bitmap-1", BLOCKS, &[(1, 1)])),
        ("bad-other-size", file("bitmap-0", BLOCKS - 1, &[(1, 1)])),
        ("bad-longer", longer),
    ])
}

/// Appends the files of a journal on a simulated disk to an input.
fn journal_input(disk: &SimDisk) -> Vec<u8> {
    let mut input = Vec::new();
    for path in disk.files() {
        let name = path.strip_prefix("j/").unwrap();
        let length = disk.file_len(&path).unwrap();
        let bytes = content(disk, &path, 0, length);
        let (tag, place) = match name {
            "start" => (0, 0),
            "durable" => (1, 0),
            "damage" => (2, 0),
            segment => {
                let (id, base) = segment.strip_prefix("segment-").unwrap().split_once('-').unwrap();
                let hex = |text| u64::from_str_radix(text, 16).unwrap();
                (u8::try_from(hex(id)).unwrap() + 2, hex(base))
            }
        };
        Parts::put(&mut input, tag, place, &bytes);
    }
    input
}

fn journal() -> Samples {
    let options = JournalOptions { segment_bytes: 16 << 10, ..JournalOptions::default() };
    let fill = |journal: &mut Journal| {
        for (_, frame) in frames() {
            journal.append(&frame).unwrap();
        }
    };
    let make = |then: &dyn Fn(&SimDisk, Journal)| {
        let disk = SimDisk::new(0);
        let (mut journal, _) = Journal::open(disk.dir("j"), options, &mut |_| {}).unwrap();
        fill(&mut journal);
        then(&disk, journal);
        journal_input(&disk)
    };
    let sync = |journal: &mut Journal| {
        let ticket = journal.start_sync().unwrap();
        let result = ticket.run();
        journal.finish_sync(ticket, result).unwrap();
    };
    let rolled = make(&|_, mut journal| (0..30).for_each(|_| fill(&mut journal)));
    let synced = make(&|_, mut journal| sync(&mut journal));
    let truncated = make(&|_, mut journal| {
        let at = journal.end();
        fill(&mut journal);
        sync(&mut journal);
        journal.truncate(at).unwrap();
        fill(&mut journal);
    });
    let reopened = make(&|disk, journal| {
        drop(journal);
        Journal::open(disk.dir("j"), options, &mut |_| {}).unwrap();
    });
    let trimmed = make(&|_, mut journal| {
        (0..30).for_each(|_| fill(&mut journal));
        sync(&mut journal);
        let end = journal.end();
        journal.trim(Lsn(end.0 / 2)).unwrap();
    });
    // A bit of a durable entry flips: the next open cuts there and remembers what was lost.
    let flip = |disk: &SimDisk| {
        let segment = disk.files().into_iter().find(|f| f.starts_with("j/segment-")).unwrap();
        disk.flip(&segment, 4096 + 64 + 112 + 20, 1);
    };
    let damaged = make(&|disk, mut journal| {
        sync(&mut journal);
        flip(disk);
    });
    let remembered = make(&|disk, mut journal| {
        sync(&mut journal);
        flip(disk);
        drop(journal);
        Journal::open(disk.dir("j"), options, &mut |_| {}).unwrap();
        // What the copy for people is called is not part of the format.
        disk.lose("j/quarantine-*");
    });
    let mut version = synced.clone();
    // The version in the header of the last part, a segment.
    let at = version.windows(8).rposition(|w| w == b"AIJRNL\r\n").unwrap();
    version[at + 8] = 2;
    named([
        ("valid-synced", synced),
        ("valid-not-synced", make(&|_, _| {})),
        ("valid-rolled", rolled),
        ("valid-truncated", truncated),
        ("valid-opened-again", reopened),
        ("valid-trimmed", trimmed),
        ("bad-damaged", damaged),
        ("bad-damage-remembered", remembered),
        ("bad-version", version),
    ])
}

const EXAMPLE: &str = include_str!("../../../docs/afterimage.example.toml");
const SMALL: &str = r#"
[node]
name = "alpha"
[peer]
name = "beta"
address = "[2001:db8::1]:7789"
[group.a]
primary = "alpha"
[[group.a.volume]]
name = "v"
device = "/dev/vg0/v"
"#;

fn config() -> Samples {
    let small = |from: &str, to: &str| SMALL.replace(from, to).into_bytes();
    named([
        ("valid-example", EXAMPLE.into()),
        ("valid-small", SMALL.into()),
        (
            "valid-sync",
            small("primary", "mode = \"sync\"\nack = \"durable\"\non_link_loss = \"block\"\nprimary"),
        ),
        (
            "valid-sizes",
            small("primary", "queue_size = \"1GiB\"\nhistory = \"1h 30m\"\nmax_rate = \"1MiB/s\"\nprimary"),
        ),
        ("valid-dotted", small("[peer]\nname", "[peer]\n\"name\"")),
        ("bad-key", small("device", "devise")),
        ("bad-value", small("primary", "mode = \"snyc\"\nprimary")),
        ("bad-size", small("primary", "queue_size = \"200GB\"\nprimary")),
        ("bad-duration", small("primary", "history = \"99999999999999999999d\"\nprimary")),
        ("bad-number", small("primary", "hot_extents = -9223372036854775808\nprimary")),
        ("bad-path", small("/dev/vg0/v", "../v")),
        ("bad-twice", SMALL.repeat(2).into()),
        ("bad-nested", ["a = ", &"[".repeat(300), &"]".repeat(300)].concat().into()),
        ("bad-text", vec![b'a', b'=', b'"', 0xc3, 0x28, b'"']),
        ("bad-control", small("alpha", "al\\u0000pha\\u001b[2J")),
    ])
}

fn admin_request() -> Samples {
    let line = |request: &Request| {
        let request =
            serde_json::json!({ "version": afterimage_contract::admin::VERSION, "request": request });
        format!("{request}\n").into_bytes()
    };
    let promote =
        Request::Promote { group: "orders".into(), dry_run: true, at: Some("42".into()), force: false };
    let activate = Request::Activate { group: "orders".into() };
    named([
        ("valid-promote", line(&promote)),
        ("valid-ping", line(&Request::Ping)),
        ("valid-status", line(&Request::Status)),
        ("valid-activate", line(&activate)),
        ("valid-pause", line(&Request::PauseStream { group: "orders".into() })),
        ("valid-verify", {
            let rate_bytes_per_s = Some(1 << 20);
            line(&Request::Verify { group: "orders".into(), repair: true, rate_bytes_per_s })
        }),
        ("valid-resize", {
            let volume = Some("pgdata".into());
            line(&Request::Resize { group: "orders".into(), volume, dry_run: true })
        }),
        ("valid-verification", line(&Request::Verification { group: "orders".into() })),
        ("valid-several", [line(&promote), line(&activate), line(&Request::Ping)].concat()),
        ("valid-after-a-bad-one", [b"{}\n".to_vec(), line(&Request::Ping)].concat()),
        ("bad-version", b"{\"version\":2,\"request\":\"ping\"}\n".into()),
        ("bad-request", b"{\"version\":1,\"request\":\"reboot\"}\n".into()),
        ("bad-key", b"{\"version\":1,\"request\":{\"promote\":{\"group\":\"a\",\"forse\":true}}}\n".into()),
        ("bad-nested", [vec![b'['; 2000], vec![b'\n']].concat()),
        ("bad-text", b"{\"version\":1,\"request\":\"\xc3\x28\"}\n".into()),
        ("bad-too-long", vec![b' '; (64 << 10) + 2]),
        ("bad-no-newline", line(&Request::Ping)[..20].into()),
    ])
}

fn admin_response() -> Samples {
    let bytes = |response: &Response| serde_json::to_vec(response).unwrap();
    let promotion = Promotion {
        group: "orders".into(),
        dry_run: false,
        generation: Some("77aa".into()),
        position: ShownPosition { generation: "5f0c".into(), sequence: 42 },
        time_us: Some(u64::MAX),
        primary_seen_us: None,
        loss: Loss::Unknown { since_us: None },
        discarded: None,
        warnings: vec!["one".into()],
    };
    named([
        ("valid-promotion", bytes(&Response::ok(&promotion))),
        ("valid-done", bytes(&Response::done())),
        ("valid-error", bytes(&Response::error(ErrorCode::Refused, "the peer is newer", "reinstate it"))),
        ("valid-unknown-code", br#"{"version":9,"error":{"code":"new","message":"m","action":"a"}}"#.into()),
        ("bad-both", br#"{"version":1}"#.into()),
        ("bad-number", br#"{"version":1e99,"ok":null}"#.into()),
        ("time", b"2026-01-31T12:00:00Z".into()),
        ("bookmark", b"before-upgrade".into()),
    ])
}

fn pairing_token() -> Samples {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::load_or_create(dir.path()).unwrap();
    let token = |address| {
        create_offer(dir.path(), &identity, address, 1_800_000_000).unwrap().to_string().into_bytes()
    };
    let plain = token(None);
    let wrapped = plain.chunks(20).collect::<Vec<_>>().join(&b"\n  "[..]);
    named([
        ("valid-address", token(Some("beta.example.net:7789"))),
        ("valid-ipv6", token(Some("[2001:db8::1]:7789"))),
        ("valid-lower-case", plain.to_ascii_lowercase()),
        ("valid-wrapped", wrapped),
        ("valid-plain", plain),
        ("bad-version", b"AI2-ABCD".into()),
        ("bad-prefix", b"AI-".into()),
        ("bad-letters", "AI1-é".into()),
        ("fingerprint", identity.fingerprint().to_string().into()),
        ("name", b"db-1.example.net".into()),
    ])
}

fn pins() -> Samples {
    let file = |peers: &[(&str, u8, Option<&str>)]| {
        let dir = tempfile::tempdir().unwrap();
        let store = PinStore::new(dir.path());
        for (name, key, address) in peers {
            let peer = PinnedPeer {
                name: name.parse().unwrap(),
                fingerprint: Fingerprint([*key; 32]),
                address: address.map(str::to_owned),
                paired_at_unix: 1_800_000_000,
            };
            store.pin(peer).unwrap();
        }
        std::fs::read(dir.path().join(PINS_FILE)).unwrap()
    };
    let one = file(&[("beta", 1, Some("beta.example.net:7789"))]);
    let text = |from: &str, to: &str| String::from_utf8(one.clone()).unwrap().replace(from, to).into_bytes();
    let (version, kind, name) = (
        text("afterimage-peers 1", "afterimage-peers 2"),
        text("afterimage-peers", "afterimage-offer"),
        text("beta\"", "b ta\""),
    );
    let key = text("\"peers\"", "\"pears\"");
    named([
        ("valid-one", one.clone()),
        ("valid-two", file(&[("beta", 1, None), ("gamma", 2, Some("[::1]:7789"))])),
        ("valid-many", file(&(0..20).map(|n| (NAMES[n], n as u8, None)).collect::<Vec<_>>())),
        ("bad-version", version),
        ("bad-kind", kind),
        ("bad-name", name),
        ("bad-key", key),
    ])
}

const NAMES: [&str; 20] =
    ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];

fn identity() -> Samples {
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        String::from_utf8(std::fs::read(&path).unwrap()).unwrap()
    };
    let (one, other) = (make(), make());
    let split = |pem: &str| pem.find("-----BEGIN CERTIFICATE").unwrap();
    let (key, certificate) = one.split_at(split(&one));
    let swapped = [certificate, key].concat();
    let mixed = [key, &other[split(&other)..]].concat();
    named([
        ("valid-identity", one.clone().into()),
        ("valid-other-order", swapped.into()),
        ("valid-windows-newlines", one.replace('\n', "\r\n").into()),
        ("bad-mixed", mixed.into()),
        ("bad-key-only", key.into()),
        ("bad-certificate-only", certificate.into()),
        ("bad-two", [one.as_str(), other.as_str()].concat().into()),
    ])
}
