//! How long nobody is answered without the target, and what the target is told of it.

use super::*;
use crate::message::MAX_LEASE_US;

const TARGET_CLOCK: Time = Time(77);

impl Bench {
    fn pong(&mut self) {
        let pong = TargetMessage::Pong { time: self.now, applied: Sequence(0), clock: TARGET_CLOCK };
        self.source.message(self.now, pong);
    }
}

#[test]
fn while_a_lease_runs_nobody_is_answered_alone() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    assert_eq!(bench.source.ping(bench.now).lease, None, "the target has said nothing yet");
    bench.pong();
    let ping = bench.source.ping(bench.now);
    let lease = ping.lease.expect("it is in sync");
    assert_eq!(
        (lease.heard, lease.us, ping.sequence),
        (TARGET_CLOCK, SYNC_TIMEOUT_US / 2, bench.source.sequence)
    );
    // Sync ends at once, for whatever reason.
    bench.source.lose_tracking();
    let request = bench.write();
    assert!(!bench.source.in_sync && !bench.completed.contains(&request));
    let ends = bench.now.plus_us(lease.us);
    assert_eq!(bench.source.next_timeout(), Some(ends));
    bench.now = ends;
    bench.source.timeout(ends);
    bench.run();
    assert!(bench.completed.contains(&request), "{}", bench.source.activity());
}

#[test]
fn no_lease_is_lent_that_would_outlast_what_clients_wait_for() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.pong();
    let request = bench.write();
    bench.now = bench.now.plus_us(SYNC_TIMEOUT_US / 2 - 1);
    assert!(bench.source.ping(bench.now).lease.is_some());
    bench.now = bench.now.plus_us(1);
    assert_eq!(bench.source.ping(bench.now).lease, None, "the target is late with a write");
    bench.now = bench.now.plus_us(SYNC_TIMEOUT_US / 2);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(bench.completed.contains(&request), "the lease held a client for longer than the timeout");
}

#[test]
fn after_a_start_nobody_is_answered_alone_while_an_earlier_run_may_have_lent_a_lease() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.restart();
    let request = bench.write();
    bench.now = bench.now.plus_us(MAX_LEASE_US - 1);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(!bench.completed.contains(&request));
    bench.now = bench.now.plus_us(SYNC_TIMEOUT_US);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(bench.completed.contains(&request), "{}", bench.source.activity());
    // The target lets go of every lease with the session.
    bench.restart();
    let request = bench.write();
    bench.connect(None, None, Lost::None);
    assert!(bench.completed.contains(&request), "{}", bench.source.activity());
}

#[test]
fn the_first_commit_waits_until_it_is_noted_that_the_target_may_be_promoted() {
    let mut bench = Bench::blank(AckLevel::Received);
    bench.connect(None, None, Lost::None);
    bench.states_wait = true;
    assert_eq!(bench.send(), Sequence(0), "no commit");
    assert!(bench.source.state().peer_has_checkpoint && !bench.waiting_states.is_empty());
    bench.states_wait = false;
    let version = bench.waiting_states.pop().unwrap();
    bench.source.state_persisted(bench.now, version, true);
    bench.run();
    assert!(bench.send() > Sequence(0), "{}", bench.source.activity());
}
