//! What goes wrong: hostile frames, wrong volumes, a full journal.

mod common;

use afterimage_contract::status::Protection;
use afterimage_protocol::SessionId;
use afterimage_protocol::chunk::{CHUNK_HEADER_BYTES, ChunkHeader, Coder, MIN_WINDOW_LOG, Strength};
use afterimage_protocol::frame::{Content, Frame};
use afterimage_protocol::message::{Lost, MAX_MESSAGE_BYTES, Refusal};

use common::frames::{BLOCK, Epoch, noise, position, record};
use common::source::{Source, open_message, stream};
use common::*;

/// These frames as a chunk that depends on none before it.
fn chunk(frames: &[&Frame]) -> Vec<u8> {
    let strength = Strength::Zstd { level: 1, window_log: MIN_WINDOW_LOG, long_distance: false };
    let mut coder = Coder::new(strength).expect("a coder");
    for frame in frames {
        coder.push(frame).expect("a frame");
    }
    coder.finish().expect("a chunk").to_vec()
}

/// Bytes on the ordered stream, and words that the receiver closes the connection with.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = record(11, 0, 4096).to_bytes().to_vec();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let Frame::Record(mut other) = record(11, 0, 4096) else { unreachable!() };
    if let Content::Data(payload) = &mut other.content {
        payload.checksum ^= 1;
    }
    let mut epoch = Epoch::new(2);
    let block = epoch.block(0, &noise(1, BLOCK), 10);
    let chunk = chunk(&[&record(11, 0, 4096)]);
    let with = |header: ChunkHeader| [&header.to_bytes()[..], &chunk[CHUNK_HEADER_BYTES..]].concat();
    let header = ChunkHeader::parse(&chunk).expect("a chunk").expect("a chunk");
    let mut garbled = chunk.clone();
    garbled[CHUNK_HEADER_BYTES..].fill(0x77);
    vec![
        ("a chunk that continues nothing", with(ChunkHeader { restarts: false, ..header }), "never begun"),
        ("a giant chunk", with(ChunkHeader { raw_bytes: u32::MAX, ..header }), "raw length"),
        ("a giant coded length", with(ChunkHeader { coded_bytes: u32::MAX, ..header }), "coded length"),
        (
            "a chunk that opens to more than it says",
            with(ChunkHeader { raw_bytes: header.raw_bytes - 1, ..header }),
            "another length",
        ),
        ("a garbled chunk", garbled, "cannot be decoded"),
        ("wrong content in a chunk", self::chunk(&[&Frame::Record(other.clone())]), "content does not match"),
        ("blocks in a chunk where records belong", self::chunk(&[&block]), "another kind of stream"),
        ("a sequence too many in a chunk", self::chunk(&[&record(12, 0, 512)]), "where"),
        ("a flipped bit in the payload", changed(good.len() - 1, 0x55), "content does not match"),
        ("a flipped bit in the header", changed(40, 0x55), "checksum does not match"),
        ("a giant payload", changed(11, 0xff), "payload length"),
        ("no frame", vec![0x77; 500], "no frame begins here"),
        ("another version", changed(4, 9), "version 9"),
        (
            "content that is not what was taken in",
            Frame::Record(other).to_bytes().to_vec(),
            "content does not match",
        ),
        ("bytes past the end", record(11, VOLUME_BYTES - 512, 4096).to_bytes().to_vec(), "outside volume 0"),
        ("a sequence too many", record(12, 0, 512).to_bytes().to_vec(), "where"),
        ("a sequence again", record(10, 0, 512).to_bytes().to_vec(), "where"),
        ("blocks where records belong", block.to_bytes().to_vec(), "another kind of stream"),
        (
            "a point",
            Frame::Point { position: position(20), time: Default::default() }.to_bytes().to_vec(),
            "a point",
        ),
    ]
}

#[tokio::test]
async fn hostile_frames_end_their_session_and_nothing_else() {
    let standby = Standby::new();
    let receiver = standby.run();
    drop(Source::first_sync(&standby, 1).await);
    let mut session = 2;
    for (what, bytes, words) in hostile() {
        let (mut source, opened) = Source::open(&standby, session).await;
        assert_eq!(opened.received, Some(position(10)), "after {what}");
        source.raw(&bytes).await;
        let text = source.closed().await;
        assert!(text.contains(words), "{what}: {text}");
        session += 1;
    }
    let (mut source, _) = Source::open(&standby, session).await;
    source.send(&record(11, 0, 512)).await;
    // As it is, and in a chunk.
    source.raw(&chunk(&[&record(12, 0, 4096), &record(13, 8192, 512)])).await;
    source.until_durable(13).await;
    standby.status_when(|g| g.journal.as_ref().unwrap().applied_sequence == Some(13)).await;
    receiver.stop().await;
    assert!(standby.bytes()[8704..1 << 20] == noise(1, 1 << 20)[8704..]);
    assert!(standby.bytes()[8192..8704] != noise(1, 1 << 20)[8192..8704]);
}

#[tokio::test]
async fn hostile_streams_and_messages_end_their_session_and_nothing_else() {
    let standby = Standby::new();
    let receiver = standby.run();
    drop(Source::first_sync(&standby, 1).await);

    let (source, _) = Source::open(&standby, 2).await;
    let _stream = stream(&source.connection, b'X', SessionId(2)).await;
    assert!(source.closed().await.contains("unknown kind 0x58"));

    let (source, _) = Source::open(&standby, 3).await;
    let _stream = stream(&source.connection, b'O', SessionId(3)).await;
    assert_eq!(source.closed().await, "a second ordered stream");

    let (mut source, _) = Source::open(&standby, 4).await;
    source.send.write_all(&(MAX_MESSAGE_BYTES as u32 + 1).to_le_bytes()).await.unwrap();
    assert!(source.closed().await.contains("at most"));

    let (mut source, _) = Source::open(&standby, 5).await;
    source.send.write_all(&[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    assert!(source.closed().await.contains("cannot be read"));

    let (source, _) = Source::open(&standby, 6).await;
    let mut stream = stream(&source.connection, b'B', SessionId(6)).await;
    stream.write_all(&[1, 2, 3]).await.unwrap();
    stream.finish().unwrap();
    assert!(source.closed().await.contains("middle of a frame"));

    let (mut source, opened) = Source::open(&standby, 7).await;
    assert_eq!(opened.received, Some(position(10)));
    source.send(&record(11, 0, 512)).await;
    source.until_durable(11).await;
    receiver.stop().await;
}

#[tokio::test]
async fn volumes_that_differ_are_refused() {
    let standby = Standby::new();
    let receiver = standby.run();
    let mut open = open_message(1);
    open.volumes[0].size_bytes += 512;
    let (code, text) = Source::ask(&standby, open).await.err().unwrap();
    assert_eq!(code, Refusal::Volumes);
    assert!(text.contains("pgdata"), "{text}");
    standby.status_when(|g| g.protection == Protection::Refused).await;
    receiver.stop().await;
}

#[tokio::test]
async fn another_volume_under_the_name_is_not_written_to() {
    let standby = Standby::new();
    let receiver = standby.run();
    drop(Source::first_sync(&standby, 1).await);
    receiver.stop().await;

    let kept = standby.host.dir.path().join("kept.img");
    std::fs::rename(standby.image(), &kept).unwrap();
    let receiver = standby.run();
    let (code, text) = Source::ask(&standby, open_message(2)).await.err().unwrap();
    assert_eq!(code, Refusal::NotReady);
    assert!(text.contains(&format!("truncate -s {VOLUME_BYTES}")), "{text}");
    assert!(!standby.image().exists(), "never made silently");

    standby.make_image();
    let (code, text) = Source::ask(&standby, open_message(3)).await.err().unwrap();
    assert_eq!(code, Refusal::NotReady);
    assert!(text.contains("is not the volume that was replicated before"), "{text}");
    standby.status_when(|g| g.protection == Protection::WrongVolume).await;
    assert!(standby.promote(true).await.unwrap_err().contains("not the volume"));

    std::fs::rename(&kept, standby.image()).unwrap();
    let (_source, opened) = Source::open(&standby, 4).await;
    assert_eq!(opened.received, Some(position(10)));
    receiver.stop().await;
}

#[tokio::test]
async fn a_full_journal_gives_up_the_epoch_and_takes_records_again() {
    let mut standby = Standby::new();
    (standby.history, standby.journal_max) = ("1h", "16MiB");
    let receiver = standby.run();
    let mut source = Source::first_sync(&standby, 1).await;
    source.send(&record(11, 0, 512)).await;
    source.until_durable(11).await;
    let mut epoch = Epoch::new(2);
    source.send(&epoch.begin()).await;
    let blocks: Vec<_> = (0..20).map(|n| epoch.block(n << 20, &noise(200 + n, 1 << 20), 12)).collect();
    let sending = async {
        let mut stream = stream(&source.connection, b'B', source.session).await;
        for block in &blocks {
            if stream.write_all(&block.to_bytes()).await.is_err() {
                break;
            }
        }
    };
    let (text, ()) = tokio::join!(source.closed(), sending);
    assert_eq!(text, "the journal is full");
    let group = standby.status_when(|g| g.protection == Protection::JournalFull).await;
    assert_eq!(group.received_sequence, Some(11));

    let (mut source, opened) = Source::open(&standby, 2).await;
    assert_eq!((opened.received, opened.epoch), (Some(position(11)), None));
    // More than the journal holds: history gives way.
    for sequence in 12..60 {
        source.send(&record(sequence, ((sequence - 12) % 20) << 20, 1 << 20)).await;
        source.until_durable(sequence).await;
    }
    let group = standby.status_when(|g| g.protection == Protection::AsyncStreaming).await;
    assert!(group.journal.unwrap().applied_sequence.unwrap() > 11);
    receiver.stop().await;
}

#[tokio::test]
async fn a_journal_damaged_under_an_apply_withdraws_its_points_and_is_sent_again() {
    let mut standby = Standby::new();
    (standby.history, standby.journal_max) = ("1h", "256MiB");
    let receiver = standby.run();
    let mut source = Source::first_sync(&standby, 1).await;
    for sequence in 11..=20 {
        source.send(&record(sequence, 0, BLOCK)).await;
    }
    source.until_durable(20).await;
    // More than is kept in memory, so that those in front have to be read from the disk.
    for sequence in 21..=90 {
        source.send(&record(sequence, (1 + sequence % 19) << 20, 1 << 20)).await;
        source.until_durable(sequence).await;
    }
    let journal = standby.host.dir.path().join("journal").join(GROUP);
    let marker = noise(15, BLOCK)[..64].to_vec();
    let mut damaged = 0;
    for entry in std::fs::read_dir(journal).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(marker.len()).position(|w| w == marker) {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    // The promotion is what reads it.
    let error = standby.promote(false).await.unwrap_err();
    assert!(error.contains("damaged"), "{error}");
    let (mut source, opened) = Source::open(&standby, 2).await;
    assert_eq!((opened.received, opened.lost), (None, Lost::All));
    assert!(standby.promote(true).await.unwrap_err().contains("first sync has not finished"));
    let mut epoch = Epoch::new(3);
    source.send(&epoch.begin()).await;
    source.blocks(&[epoch.block(0, &noise(50, 1 << 20), 100)]).await;
    source.send(&epoch.commit(100)).await;
    source.until_durable(100).await;
    assert_eq!(standby.promote(false).await.unwrap().position.sequence, 100);
    receiver.stop().await;
    assert!(standby.bytes()[..1 << 20] == noise(50, 1 << 20)[..]);
}

#[tokio::test]
async fn a_group_whose_disk_failed_is_opened_again() {
    let mut standby = Standby::new();
    standby.history = "1h";
    let receiver = standby.run();
    let mut source = Source::first_sync(&standby, 1).await;
    source.send(&record(11, 0, 512)).await;
    source.until_durable(11).await;
    // A segment cannot be made where a directory of its name is in the way: as good as a disk that fails.
    let journal = standby.host.dir.path().join("journal").join(GROUP);
    let away = journal.with_extension("away");
    std::fs::rename(&journal, &away).unwrap();
    let mut sequence = 12;
    let closed = source.connection.clone();
    while closed.close_reason().is_none() && sequence < 60 {
        let frame = record(sequence, 0, 1 << 20);
        if source.try_raw(&frame.to_bytes()).await.is_err() {
            break;
        }
        sequence += 1;
    }
    assert!(source.closed().await.contains("journal"), "sequence {sequence}");
    let group = standby.status_when(|g| g.protection == Protection::Failed).await;
    assert!(group.warnings.iter().any(|w| w.id == "standby_failed"), "{:?}", group.warnings);
    std::fs::rename(&away, &journal).unwrap();
    standby.status_when(|g| g.protection == Protection::Disconnected).await;
    let (mut source, opened) = Source::open(&standby, 2).await;
    let next = opened.received.unwrap().sequence.0 + 1;
    source.send(&record(next, 0, 512)).await;
    source.until_durable(next).await;
    receiver.stop().await;
}

#[tokio::test]
async fn a_source_that_does_not_read_its_answers_is_dropped() {
    let standby = Standby::new();
    let receiver = standby.run();
    let mut source = Source::first_sync(&standby, 1).await;
    let closed = source.connection.clone();
    let mut time = 0;
    // Never reads what comes back.
    while closed.close_reason().is_none() {
        time += 1;
        if source.try_ping(time).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(source.closed().await, "the control stream is not read");
    let (_source, opened) = Source::open(&standby, 2).await;
    assert_eq!(opened.received, Some(position(10)));
    receiver.stop().await;
}

#[tokio::test]
async fn a_source_faster_than_the_standby_waits_for_room_in_the_journal() {
    for history in ["0s", "1h"] {
        let mut standby = Standby::new();
        (standby.history, standby.journal_max) = (history, "16MiB");
        let receiver = standby.run();
        let mut source = Source::first_sync(&standby, 1).await;
        for sequence in 11..71 {
            source.send(&record(sequence, (sequence % 20) << 20, 1 << 20)).await;
        }
        source.until_durable(70).await;
        receiver.stop().await;
    }
}
