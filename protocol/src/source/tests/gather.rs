//! Records of an async group go together; whatever somebody waits for goes at once.

use super::*;
use crate::codec;
use crate::frame::Codec;
use crate::source::queue::GATHER_US;

/// A group that streams and has sent everything.
fn streaming(mode: Mode) -> Bench {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.source.config.mode = mode;
    bench.source.timeout(bench.now);
    bench.run();
    assert!(!bench.source.has_frame());
    bench
}

fn write(bench: &mut Bench, offset: u64, length: usize) {
    let data = vec![7; length].into();
    let payload = codec::encode(Codec::Raw, &data, codec::content_checksum(&data));
    let range = ByteRange::new(VolumeIndex(0), offset, length as u64);
    bench.issued += 1;
    let write = Write { range, content: Content::Data(payload), fua: false };
    bench.source.write(bench.now, RequestId(bench.issued), write);
    bench.run();
}

fn pass(bench: &mut Bench, us: u64) {
    bench.now = bench.now.plus_us(us);
    bench.source.timeout(bench.now);
}

#[test]
fn a_record_that_nobody_waits_for_waits_for_others_and_not_longer() {
    let mut bench = streaming(Mode::Async);
    write(&mut bench, 0, 4096);
    let until = bench.now.plus_us(GATHER_US);
    assert!(bench.source.has_frame() && !bench.source.frames_are_due());
    assert!(bench.source.next_timeout().is_some_and(|at| at <= until));
    pass(&mut bench, GATHER_US - 1);
    // A later one does not make the first wait longer.
    write(&mut bench, 4096, 4096);
    assert!(!bench.source.frames_are_due());
    pass(&mut bench, 1);
    assert!(bench.source.frames_are_due());
    let soon = bench.now.plus_us(GATHER_US);
    assert!(
        bench.source.next_timeout().is_none_or(|at| at > soon),
        "a link that takes nothing keeps no timer busy"
    );
    assert!(matches!(bench.source.next_frame(bench.now), Some(Frame::Record(_))));
}

#[test]
fn what_is_much_does_not_wait() {
    let mut bench = streaming(Mode::Async);
    write(&mut bench, 0, 128 << 10);
    assert!(!bench.source.frames_are_due());
    write(&mut bench, 128 << 10, 128 << 10);
    assert!(bench.source.frames_are_due());
}

#[test]
fn in_sync_mode_nothing_waits() {
    let mut bench = streaming(Mode::Sync);
    write(&mut bench, 0, 4096);
    assert!(bench.source.frames_are_due());
}

#[test]
fn a_handover_waits_for_no_records() {
    let mut bench = streaming(Mode::Async);
    write(&mut bench, 0, 4096);
    assert!(!bench.source.frames_are_due());
    bench.source.hand_over(bench.now, 1_000_000);
    bench.run();
    assert!(bench.source.frames_are_due());
}

#[test]
fn without_a_session_nothing_is_due() {
    let mut bench = streaming(Mode::Async);
    write(&mut bench, 0, 4096);
    bench.source.disconnected(bench.now);
    pass(&mut bench, GATHER_US);
    assert!(!bench.source.frames_are_due());
}

#[test]
fn a_catch_up_waits_for_no_records() {
    let mut bench = Bench::blank(AckLevel::Received);
    bench.source.config.mode = Mode::Async;
    bench.connect(None, None, Lost::None);
    // Its blocks are not taken, so it does not end.
    while bench.source.next_frame(bench.now).is_some() {}
    assert_eq!(bench.source.phase, Phase::CatchUp);
    write(&mut bench, 0, 4096);
    assert!(bench.source.frames_are_due());
}
