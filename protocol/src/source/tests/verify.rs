//! Verifications, at the source alone.

use super::*;
use crate::frame::Check;

const OPTIONS: VerifyOptions = VerifyOptions { repair: true, rate: 0 };

fn block(first: u64) -> BlockRange {
    BlockRange { volume: VolumeIndex(0), first, count: 1 }
}

/// Sends all there is; the checks among it.
fn checks(bench: &mut Bench) -> Vec<Check> {
    let mut checks = Vec::new();
    while let Some(frame) = bench.source.next_frame(bench.now) {
        if let Frame::Check(check) = frame {
            checks.push(check);
        }
        bench.run();
    }
    checks
}

fn answer(bench: &mut Bench, check: &Check, differing: Vec<BlockRange>) {
    let message = TargetMessage::Checked { id: check.id, differing, unchecked: 0 };
    bench.source.message(bench.now, message);
    bench.run();
}

/// Answers that nothing differs until all was looked at.
fn finish(bench: &mut Bench) -> Verification {
    for _ in 0..100 {
        for check in checks(bench) {
            answer(bench, &check, Vec::new());
        }
    }
    let report = bench.source.verification().unwrap();
    assert_eq!((report.state, report.passed_blocks), (VerifyState::Finished, BLOCKS));
    report.clone()
}

fn clean() -> Bench {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let last = bench.source.position().sequence;
    bench.acknowledge_durable(last);
    bench
}

#[test]
fn a_check_stands_between_what_its_read_has_seen_and_what_it_has_not() {
    let mut bench = clean();
    bench.write();
    bench.source.verify(bench.now, OPTIONS);
    bench.run();
    bench.write();
    let mut newest = bench.source.received;
    let mut found = 0;
    while let Some(frame) = bench.source.next_frame(bench.now) {
        match frame {
            Frame::Record(r) => newest = r.position.sequence,
            Frame::Check(check) => {
                assert_eq!(check.position.sequence, newest);
                found += 1;
            }
            _ => {}
        }
    }
    assert!(found > 1);
}

#[test]
fn a_block_is_not_read_while_it_is_written() {
    let mut bench = clean();
    bench.issue(0, BLOCK_BYTES);
    let mut write = None;
    while let Some(output) = bench.source.poll() {
        match output {
            Output::LocalWrite { sequence, .. } => write = Some(sequence),
            Output::PersistHot { transaction, .. } => {
                bench.source.hot_persisted(bench.now, transaction, true)
            }
            _ => {}
        }
    }
    bench.source.verify(bench.now, OPTIONS);
    let reads = |source: &mut Source| {
        std::iter::from_fn(|| source.poll()).any(|output| matches!(output, Output::Read { .. }))
    };
    assert!(!reads(&mut bench.source));
    bench.source.local_done(bench.now, write.expect("the write starts"), Ok(()));
    assert!(reads(&mut bench.source));
}

#[test]
fn what_was_not_answered_is_asked_again() {
    let mut bench = clean();
    bench.source.verify(bench.now, OPTIONS);
    bench.run();
    let asked = checks(&mut bench);
    answer(&mut bench, &asked[0], Vec::new());
    // An answer out of order counts with those before it.
    answer(&mut bench, &asked[2], Vec::new());
    let first = asked[0].range.blocks().count;
    assert_eq!(bench.source.verification().unwrap().passed_blocks, first);
    let has = Some(bench.source.position().sequence);
    bench.connect(has, has, Lost::None);
    let again = checks(&mut bench);
    assert_eq!(again[0].range.blocks().first, first);
    // What was asked before is nothing any more.
    answer(&mut bench, &asked[1], vec![asked[1].range.blocks()]);
    for check in again {
        answer(&mut bench, &check, Vec::new());
    }
    assert_eq!(finish(&mut bench).mismatched_blocks, 0);
}

#[test]
fn what_differs_goes_with_a_catch_up_and_counts_once_it_is_durable() {
    let mut bench = clean();
    bench.source.verify(bench.now, OPTIONS);
    bench.run();
    for check in checks(&mut bench) {
        let differing = if check.range.offset == 0 { vec![block(3), block(BLOCKS + 7)] } else { Vec::new() };
        answer(&mut bench, &check, differing);
    }
    assert!(bench.source.is_dirty(VolumeIndex(0), 3));
    assert_eq!(bench.notes.last().unwrap().mending, [block(3)]);
    let commit = bench.send();
    let report = bench.source.verification().unwrap();
    assert_eq!(
        (report.mismatched_blocks, report.repaired_blocks),
        (1, 0),
        "a peer names only what it was asked"
    );
    bench.acknowledge_durable(commit);
    let report = finish(&mut bench);
    assert_eq!((report.mismatched_blocks, report.repaired_blocks), (1, 1));
    assert_eq!(report.differing, [block(3)]);
    assert!(bench.source.is_clean());
}

#[test]
fn without_repair_nothing_is_sent() {
    let mut bench = clean();
    bench.source.verify(bench.now, VerifyOptions { repair: false, ..OPTIONS });
    bench.run();
    let asked = checks(&mut bench);
    answer(&mut bench, &asked[0], vec![block(3)]);
    for check in &asked[1..] {
        answer(&mut bench, check, Vec::new());
    }
    let report = finish(&mut bench);
    assert_eq!((report.mismatched_blocks, report.repaired_blocks), (1, 0));
    assert!(bench.source.is_clean() && bench.source.status().in_sync);
}

#[test]
fn a_restarted_source_goes_on_with_what_it_noted() {
    let mut bench = clean();
    bench.source.verify(bench.now, OPTIONS);
    bench.run();
    for check in checks(&mut bench) {
        let differing = if check.range.offset == 0 { vec![block(3)] } else { Vec::new() };
        answer(&mut bench, &check, differing);
    }
    let note = Verification::decode(&bench.notes.last().unwrap().encode()).unwrap();
    let mut restarted = clean();
    restarted.source.resume_verification(restarted.now, note.clone());
    assert!(restarted.source.is_dirty(VolumeIndex(0), 3), "the power may have taken the bit");
    let report = restarted.source.verification().unwrap();
    assert_eq!((report.started, report.cursor), (note.started, note.cursor));
    let other = Verification { generation: Generation(99), ..note };
    let mut replaced = clean();
    replaced.source.resume_verification(replaced.now, other);
    assert_eq!(replaced.source.verification(), None, "another history is another one's");
}

#[test]
fn the_rate_is_kept() {
    let mut bench = clean();
    let rate = 1 << 20;
    bench.source.verify(bench.now, VerifyOptions { rate, ..OPTIONS });
    bench.run();
    let from = bench.now;
    let mut read = 0;
    while bench.source.verification().unwrap().state == VerifyState::UnderWay {
        for check in checks(&mut bench) {
            // A hole costs next to nothing.
            read += if check.range.length <= 64 * BLOCK_BYTES { check.range.length } else { BLOCK_BYTES };
            answer(&mut bench, &check, Vec::new());
        }
        let at = bench.source.next_timeout().unwrap_or(bench.now);
        bench.now = at.max(bench.now.plus_us(1));
        bench.source.timeout(bench.now);
        bench.run();
    }
    let seconds = bench.now.since_us(from) as f64 / 1e6;
    let expected = read as f64 / rate as f64;
    assert!(seconds > expected * 0.5 && seconds < expected * 2.0, "{seconds} s, expected {expected}");
}
