//! What is changed while the source runs.

use super::*;

#[test]
fn another_timeout_counts_for_the_clients_that_wait_already() {
    for (timeout_us, waits_us) in
        [(SYNC_TIMEOUT_US / 4, SYNC_TIMEOUT_US / 4), (3 * SYNC_TIMEOUT_US, 3 * SYNC_TIMEOUT_US)]
    {
        let mut bench = Bench::in_sync(AckLevel::Received);
        // The target answers nothing any more.
        bench.step();
        assert!(bench.completed.is_empty());
        bench.source.set_sync_timeout(bench.now, timeout_us);
        let waited_us = bench.step_until(|source| !source.in_sync);
        assert!(waited_us.abs_diff(waits_us) <= 10 * STEP_US, "{waited_us}");
        bench.run();
        assert!(!bench.completed.is_empty(), "the client is answered");
    }
}

#[test]
fn a_lease_is_kept_to_its_end_when_the_timeout_is_made_shorter() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.source.answered(bench.now, bench.now);
    let lease = bench.source.ping(bench.now).lease.expect("the group is in sync");
    let lent = bench.now;
    bench.source.set_sync_timeout(bench.now, lease.us / 10);
    let request = bench.write();
    while !bench.completed.contains(&request) {
        bench.now = bench.now.plus_us(STEP_US);
        bench.source.timeout(bench.now);
        bench.run();
        assert!(bench.now < lent.plus_us(10 * SYNC_TIMEOUT_US), "it is never answered");
    }
    assert!(bench.now >= lent.plus_us(lease.us), "answered within the lease");
}

#[test]
fn a_bound_that_is_lifted_holds_nothing_up_any_more() {
    let mut bench = Bench::blank(AckLevel::Received);
    bench.source.set_pace(bench.now, Background::Balanced, Some(1));
    // What was read last was large.
    bench.source.pace.read(bench.now, 1 << 20, 1 << 20);
    bench.answers_after_us = Some(0);
    bench.connect(None, None, Lost::None);
    for _ in 0..100 {
        bench.step();
        assert!(bench.source.status().first_sync);
    }
    bench.source.set_pace(bench.now, Background::Balanced, None);
    bench.step_until(|source| source.in_sync);
}
