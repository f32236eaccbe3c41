//! What a promotion says that it loses.

use super::*;
use crate::message::{Lease, Ping};

const LEASE_US: u64 = 1_000_000;

impl Bench {
    fn ping(&mut self, time: u64, sequence: u64, lease: Option<Lease>) {
        let now = self.target.now;
        self.target.ping(now, SESSION, Ping { time: Time(time), sequence: Sequence(sequence), lease });
        self.run();
    }

    /// A lease that was lent after what this target says now was heard.
    fn lease(&self) -> Option<Lease> {
        Some(Lease { heard: self.target.now, us: LEASE_US })
    }

    fn loss(&mut self) -> Loss {
        let now = self.target.now;
        self.target.loss(now)
    }
}

#[test]
fn nothing_is_lost_while_a_lease_runs_and_all_that_it_speaks_of_is_here() {
    let mut bench = Bench::new(Some(10));
    assert_eq!(bench.loss(), Loss::Unknown { since: None });
    bench.ping(500, 11, bench.lease());
    assert_eq!(bench.loss(), Loss::Unknown { since: None }, "write 11 is not here");
    bench.feed(record(11, 0, 512));
    bench.run();
    assert_eq!(bench.loss(), Loss::Nothing);
    // Two clocks do not run alike.
    bench.pass(LEASE_US - LEASE_US / 100);
    assert_eq!(bench.loss(), Loss::Unknown { since: Some(Time(500 + LEASE_US)) });
}

#[test]
fn without_a_lease_what_was_answered_before_a_ping_is_here() {
    let mut bench = Bench::new(Some(10));
    bench.ping(500, 10, None);
    bench.ping(700, 12, None);
    assert_eq!(bench.loss(), Loss::Unknown { since: Some(Time(500)) });
    bench.feed(record(11, 0, 512));
    bench.feed(record(12, 0, 512));
    bench.run();
    assert_eq!(bench.loss(), Loss::Unknown { since: Some(Time(700)) });
}

#[test]
fn a_new_session_ends_every_lease_and_another_history_all_that_is_known() {
    let mut bench = Bench::new(Some(10));
    bench.ping(500, 10, bench.lease());
    assert_eq!(bench.loss(), Loss::Nothing);
    bench.ask(SessionId(SESSION.0 + 1), SESSION);
    assert_eq!(bench.loss(), Loss::Unknown { since: Some(Time(500)) });
    // What still comes of the session before counts for nothing.
    bench.ping(900, 10, bench.lease());
    assert_eq!(bench.loss(), Loss::Unknown { since: Some(Time(500)) });
}

#[test]
fn a_lease_that_nobody_can_have_lent_is_none() {
    let mut bench = Bench::new(Some(10));
    let later = bench.target.now.plus_us(1);
    bench.ping(500, 10, Some(Lease { heard: later, us: LEASE_US }));
    bench.ping(501, 10, Some(Lease { heard: bench.target.now, us: u64::MAX }));
    assert_eq!(bench.loss(), Loss::Unknown { since: Some(Time(501)) });
}

#[test]
fn what_is_remembered_is_bounded_and_still_true() {
    let mut bench = Bench::new(Some(10));
    for n in 0..10_000 {
        bench.ping(1_000 + n, 11 + n, None);
    }
    assert!(bench.target.pings.len() <= 64);
    assert_eq!(bench.loss(), Loss::Unknown { since: None });
    bench.feed(record(11, 0, 512));
    bench.run();
    assert_eq!(bench.loss(), Loss::Unknown { since: Some(Time(1_000)) });
    // Of an idle source the last one says it all.
    let mut bench = Bench::new(Some(10));
    for n in 0..100 {
        bench.ping(1_000 + n, 10, None);
    }
    assert_eq!(bench.target.pings.len(), 2);
    assert_eq!(bench.loss(), Loss::Unknown { since: Some(Time(1_099)) });
}

#[test]
fn a_promotion_says_at_its_end_what_is_lost() {
    let mut bench = Bench::new(Some(10));
    bench.ping(500, 10, bench.lease());
    let now = bench.target.now;
    bench.target.promote(now, Generation(8));
    let mut outcome = None;
    while let Some(output) = bench.target.poll() {
        match output {
            Output::PersistState { version, .. } => {
                bench.target.state_persisted(now.plus_us(2 * LEASE_US), version, true);
            }
            Output::Promoted(promoted) => outcome = Some(promoted.unwrap()),
            _ => {}
        }
    }
    // The primary may live, and have given up on this host meanwhile.
    assert_eq!(outcome.unwrap().loss, Loss::Unknown { since: Some(Time(500 + LEASE_US)) });
}
