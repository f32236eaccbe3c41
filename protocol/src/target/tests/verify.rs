//! Checks of a verification, at the target alone.

use super::*;
use crate::frame::Check;

fn check(id: u64, sequence: u64) -> Frame {
    let range = ByteRange::new(VolumeIndex(0), 0, 8192);
    Frame::Check(Check { id: CheckId(id), position: position(sequence), range, hashes: vec![1; 32].into() })
}

fn answers(bench: &Bench) -> Vec<(u64, u64)> {
    let answer = |m: &TargetMessage| match m {
        TargetMessage::Checked { id, unchecked, .. } => Some((id.0, *unchecked)),
        _ => None,
    };
    bench.sent.iter().filter_map(answer).collect()
}

fn report(bench: &mut Bench) {
    let comparison = bench.comparisons.pop().unwrap();
    let result = |due: &DueCheck| CheckResult { id: due.check.id, differing: Vec::new(), unchecked: 0 };
    bench.target.verified(Time(1), comparison.checks.iter().map(result).collect());
    bench.run();
}

#[test]
fn a_check_is_compared_behind_its_record_and_the_base_waits() {
    let mut bench = Bench::new(Some(10));
    bench.target.config.history_us = 0;
    bench.feed(record(11, 0, 512));
    bench.feed(check(1, 11));
    bench.feed(record(12, 4096, 512));
    bench.run();
    let comparison = bench.comparisons.first().unwrap();
    assert_eq!(comparison.replay_to, Some(Lsn(100)));
    let due = &comparison.checks[0];
    assert_eq!((due.check.id, due.at), (CheckId(1), Lsn(100)));
    // What came later makes its block one to be looked at, too.
    assert_eq!(due.journaled, [BlockRange { volume: VolumeIndex(0), first: 0, count: 1 }]);
    bench.pass(SYNC_DELAY_US);
    assert_eq!(bench.target.durable().unwrap().position, position(12));
    assert!(bench.redone.is_empty(), "the base is left alone while it is compared");
    report(&mut bench);
    assert_eq!(answers(&bench), [(1, 0)]);
    bench.pause();
    assert_eq!(bench.redone.last().unwrap().0, Lsn(200));
}

#[test]
fn a_batch_ends_before_a_check_that_waits() {
    let mut bench = Bench::without_history();
    bench.feed(record(12, 0, 512));
    bench.feed(check(1, 12));
    bench.run();
    bench.feed(record(13, 0, 512));
    bench.feed(check(2, 13));
    bench.feed(record(14, 0, 512));
    bench.run();
    bench.pass(SYNC_DELAY_US);
    let first = bench.comparisons[0].checks.len();
    assert_eq!((first, bench.comparisons.len()), (1, 1), "the second check waits");
    bench.pass(10_000_000);
    assert_eq!(bench.redone.len(), 1);
    report(&mut bench);
    // The one that waits is at 300: no further than that, and it is compared then.
    assert!(bench.redone.iter().all(|(to, _)| *to <= Lsn(300)), "{:?}", bench.redone);
    assert_eq!(bench.comparisons[0].checks[0].at, Lsn(300));
}

#[test]
fn a_check_of_another_sequence_is_not_compared() {
    let mut bench = Bench::new(Some(10));
    bench.feed(record(11, 0, 512));
    bench.run();
    for sequence in [9, 10, 12] {
        bench.feed(check(sequence, sequence));
    }
    bench.run();
    assert_eq!(answers(&bench), [(9, 2), (10, 2), (12, 2)]);
    assert!(bench.comparisons.is_empty());
    bench.feed(begin(EPOCH));
    bench.run();
    bench.feed(check(20, 11));
    bench.run();
    assert_eq!(answers(&bench).last(), Some(&(20, 2)), "nor is one within a catch-up");
}

#[test]
fn a_comparison_of_an_older_session_says_nothing() {
    let mut bench = Bench::new(Some(10));
    bench.feed(check(1, 10));
    bench.run();
    bench.ask(SessionId(10), SESSION);
    report(&mut bench);
    assert_eq!(answers(&bench), []);
}

#[test]
fn the_blocks_of_a_long_journal_are_left_out() {
    let mut bench = Bench::new(Some(10));
    bench.feed(record(11, 0, 512));
    let Some(Output::Append(frame)) = bench.target.poll() else { panic!("no append") };
    bench.journal.push((Lsn(1 << 29), frame.clone()));
    bench.target.appended(Time(1), &frame, Some(Lsn(1 << 29)));
    bench.run();
    bench.feed(check(1, 11));
    bench.run();
    assert_eq!(bench.comparisons[0].replay_to, None);
    assert_eq!(bench.comparisons[0].checks[0].journaled.len(), 1);
}

#[test]
fn checks_that_wait_are_bounded() {
    let mut bench = Bench::new(Some(10));
    bench.feed(check(0, 10));
    bench.run();
    let refused = (1..1000).find(|n| bench.target.frame(Time(1), SESSION, check(*n, 10)).is_err());
    assert!(refused.is_some());
}
