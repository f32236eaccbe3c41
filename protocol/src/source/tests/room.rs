//! A queue of an async group that is full, or a quarter full: on a fast link writes wait for room, on any other the volume goes on
//! without the link.

use super::*;
use crate::frame::{Codec, Payload};

const PIECE: u64 = 256 << 10;
/// What a queue of 1 MiB may take to be sent on a link that is called fast, in microseconds; and a quarter of it.
const FAST_US: u64 = 6_250;
const NEAR_US: u64 = FAST_US / 4 + 1;

fn streaming(queue_bytes: u64) -> Bench {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.source.config.mode = Mode::Async;
    bench.source.config.queue_bytes = queue_bytes;
    bench.sent.clear();
    bench
}

fn write(bench: &mut Bench, bytes: u64) -> RequestId {
    write_at(bench, 0, bytes)
}

fn write_at(bench: &mut Bench, offset: u64, bytes: u64) -> RequestId {
    bench.issued += 1;
    let raw = Bytes::from_static(&[7; 1 << 20]).slice(..bytes as usize);
    let payload = Payload { codec: Codec::Raw, raw_bytes: bytes as u32, checksum: 0, encoded: raw };
    let range = ByteRange::new(VolumeIndex(0), offset, bytes);
    let request = RequestId(bench.issued);
    bench.source.write(bench.now, request, Write { range, content: Content::Data(payload), fua: false });
    bench.run();
    request
}

fn pass(bench: &mut Bench, us: u64) {
    bench.now = bench.now.plus_us(us);
    bench.source.timeout(bench.now);
    bench.run();
}

/// Writes until one waits, and sends all before it; the one that waits, and what was sent.
fn until_one_waits(bench: &mut Bench, bytes: u64) -> (RequestId, Vec<Sequence>) {
    loop {
        let request = write(bench, bytes);
        bench.send();
        if !bench.completed.contains(&request) {
            return (request, bench.sent.drain(..).map(|(_, sequence)| sequence).collect());
        }
        assert_eq!(bench.source.phase, Phase::Streaming, "nothing waited");
    }
}

/// The link has not kept up, and nobody waits for it any more before the queue is full.
fn is_not_near(bench: &mut Bench) {
    let (waits, sent) = until_one_waits(bench, 128 << 10);
    pass(bench, NEAR_US);
    assert!(bench.completed.contains(&waits));
    bench.send();
    bench.sent.clear();
    let last = Sequence(sent.last().expect("what filled it").0 + 1);
    bench.acknowledge_durable(last);
    assert_eq!((bench.source.queue.bytes(), bench.source.phase), (0, Phase::Streaming));
}

/// As [`until_one_waits`], once the queue is full.
fn full(bench: &mut Bench, bytes: u64) -> (RequestId, Vec<Sequence>) {
    is_not_near(bench);
    until_one_waits(bench, bytes)
}

#[test]
fn on_a_fast_link_the_standby_lacks_no_more_than_that_needs() {
    let mut bench = streaming(1 << 20);
    let piece = 64 << 10;
    let (mut waits, mut sent) = until_one_waits(&mut bench, piece);
    assert_eq!(sent.len(), 3);
    for _ in 0..20 {
        pass(&mut bench, NEAR_US / 4);
        assert!(!bench.completed.contains(&waits));
        bench.acknowledge_durable(sent.remove(0));
        assert!(bench.completed.contains(&waits), "there is room");
        bench.send();
        sent.extend(bench.sent.drain(..).map(|(_, sequence)| sequence));
        waits = write(&mut bench, piece);
    }
    assert_eq!(bench.source.phase, Phase::Streaming);
}

#[test]
fn on_a_link_that_is_not_fast_nobody_waits_before_the_queue_is_full() {
    let mut bench = streaming(1 << 20);
    let (waits, _) = until_one_waits(&mut bench, PIECE / 2);
    let ends = bench.now.plus_us(NEAR_US);
    assert!(bench.source.next_timeout().is_some_and(|at| at <= ends));
    pass(&mut bench, NEAR_US - 2);
    assert!(!bench.completed.contains(&waits));
    pass(&mut bench, 2);
    assert!(bench.completed.contains(&waits));
    // It has the rest of the queue, and the patience for that is another.
    let (waits, sent) = until_one_waits(&mut bench, PIECE / 2);
    assert_eq!((sent.len(), bench.source.phase), (6, Phase::Streaming));
    pass(&mut bench, FAST_US - NEAR_US);
    assert!(bench.completed.contains(&waits));
    assert_eq!(bench.source.phase, Phase::CatchUp);
}

#[test]
fn what_the_target_takes_makes_room_and_the_group_stays_in_order() {
    let mut bench = streaming(1 << 20);
    let (waits, sent) = full(&mut bench, PIECE);
    assert_eq!(sent.len(), 3);
    pass(&mut bench, FAST_US / 2);
    assert!(!bench.completed.contains(&waits));
    bench.acknowledge_durable(sent[0]);
    assert!(bench.completed.contains(&waits), "there is room");
    bench.acknowledge_durable(sent[2]);
    pass(&mut bench, FAST_US);
    assert_eq!(bench.source.phase, Phase::Streaming);
}

#[test]
fn a_link_that_is_not_fast_leaves_the_volume_alone() {
    let mut bench = streaming(1 << 20);
    let (waits, _) = full(&mut bench, PIECE);
    let ends = bench.now.plus_us(FAST_US);
    assert!(bench.source.next_timeout().is_some_and(|at| at <= ends));
    pass(&mut bench, FAST_US - 1);
    assert!(!bench.completed.contains(&waits));
    assert_eq!(bench.source.phase, Phase::Streaming);
    pass(&mut bench, 1);
    assert!(bench.completed.contains(&waits));
    assert_eq!(bench.source.phase, Phase::CatchUp);
    // Nobody waits for room in a queue that is given up.
    for _ in 0..8 {
        let next = write(&mut bench, PIECE);
        assert!(bench.completed.contains(&next));
    }
}

#[test]
fn what_waits_is_the_oldest_write_and_not_the_one_that_finds_no_room() {
    // The link takes something all the time, and less than a fast one does.
    let mut bench = streaming(1 << 20);
    let (mut waits, mut sent) = full(&mut bench, PIECE);
    for _ in 0..2 {
        pass(&mut bench, FAST_US / 2);
        let first = sent.remove(0);
        bench.acknowledge_durable(first);
        if bench.source.phase == Phase::CatchUp {
            return;
        }
        assert!(bench.completed.contains(&waits));
        bench.send();
        sent.extend(bench.sent.drain(..).map(|(_, sequence)| sequence));
        waits = write(&mut bench, PIECE);
    }
    assert_eq!(bench.source.phase, Phase::CatchUp, "clients are held to a slow link");
}

#[test]
fn without_a_session_and_while_catching_up_nobody_waits() {
    let mut bench = streaming(1 << 20);
    bench.source.disconnected(bench.now);
    for _ in 0..8 {
        let next = write(&mut bench, PIECE);
        assert!(bench.completed.contains(&next));
    }
    assert_eq!(bench.source.phase, Phase::CatchUp);
    let has = bench.source.position().sequence;
    bench.connect(Some(has), Some(has), Lost::None);
    for _ in 0..8 {
        let next = write(&mut bench, PIECE);
        assert!(bench.completed.contains(&next));
    }
}

#[test]
fn however_large_the_queue_is_the_wait_has_a_bound() {
    let mut bench = streaming(1 << 30);
    let (waits, _) = until_one_waits(&mut bench, PIECE);
    pass(&mut bench, 999_999);
    assert!(!bench.completed.contains(&waits));
    pass(&mut bench, 1);
    assert!(bench.completed.contains(&waits));
}

#[test]
fn a_large_write_finds_the_room_that_small_ones_after_it_would_take() {
    let mut bench = streaming(1 << 20);
    is_not_near(&mut bench);
    let small = 64 << 10;
    for _ in 0..15 {
        write(&mut bench, small);
    }
    bench.send();
    let sent: Vec<Sequence> = bench.sent.drain(..).map(|(_, sequence)| sequence).collect();
    let large = write(&mut bench, 512 << 10);
    let later: Vec<RequestId> = (0..4).map(|n| write_at(&mut bench, (1 << 20) + n * small, small)).collect();
    assert!(later.iter().all(|request| !bench.completed.contains(request)));
    bench.acknowledge_durable(sent[3]);
    assert!(!bench.completed.contains(&later[0]) && !bench.completed.contains(&large));
    bench.acknowledge_durable(sent[7]);
    assert!(bench.completed.contains(&large));
    bench.acknowledge_durable(sent[14]);
    assert!(later.iter().all(|request| bench.completed.contains(request)));
    assert_eq!(bench.source.phase, Phase::Streaming);
}

#[test]
fn what_was_waited_for_room_says_nothing_of_the_disk() {
    let mut bench = streaming(1 << 20);
    let (_, sent) = full(&mut bench, PIECE);
    let arrived = bench.now;
    pass(&mut bench, 1000);
    pass(&mut bench, 1000);
    bench.source.message(bench.now, TargetMessage::Durable { sequence: sent[0] });
    let admitted = bench.source.in_flight.values().next().expect("the write that waited");
    assert_eq!((admitted.arrived, admitted.since), (arrived, bench.now));
    bench.run();
}

#[test]
fn what_others_wait_for_is_not_gathered() {
    let mut bench = streaming(1 << 20);
    is_not_near(&mut bench);
    for _ in 0..3 {
        write(&mut bench, PIECE);
    }
    bench.send();
    write(&mut bench, 4096);
    assert!(!bench.source.frames_are_due());
    write(&mut bench, PIECE);
    assert!(bench.source.frames_are_due());
}

#[test]
fn a_write_as_large_as_the_queue_is_sent_like_others() {
    let mut bench = streaming(1 << 20);
    write(&mut bench, 1 << 20);
    assert_eq!(bench.source.phase, Phase::Streaming);
    assert_eq!(bench.send(), bench.source.position().sequence);
}
