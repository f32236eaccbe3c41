//! How far the standby is behind, and how far back it goes.

use super::*;
use crate::message::Ping;

impl Bench {
    fn heartbeat(&mut self, time: u64, sequence: u64) {
        let now = self.target.now;
        self.target.ping(now, SESSION, Ping { time: Time(time), sequence: Sequence(sequence), lease: None });
        self.run();
    }
}

#[test]
fn pings_say_until_when_all_is_here_also_when_nobody_writes() {
    let mut bench = Bench::new(Some(10));
    assert_eq!(bench.target.covered_until(), None);
    bench.heartbeat(500, 10);
    bench.heartbeat(600, 10);
    assert_eq!(bench.target.covered_until(), Some(Time(600)));
    bench.heartbeat(700, 11);
    assert_eq!(bench.target.covered_until(), Some(Time(600)), "write 11 is not here");
    bench.feed(record(11, 0, 512));
    bench.run();
    assert_eq!(bench.target.covered_until(), Some(Time(700)));
}

#[test]
fn what_waits_for_the_base_is_known_since_when() {
    let mut bench = Bench::new(Some(10));
    assert_eq!((bench.target.unapplied_since(), bench.target.oldest_time()), (None, None));
    bench.feed(record(11, 0, 512));
    bench.run();
    let came = bench.target.now;
    bench.pass(SYNC_DELAY_US);
    assert_eq!(bench.target.unapplied_since(), Some(came), "history keeps it back");
    let bench = Bench::without_history();
    assert_eq!(bench.target.unapplied_since(), None);
    assert_eq!(bench.target.oldest_time(), Some(came));
}

#[test]
fn history_is_cut_when_the_journal_is_full() {
    let mut bench = Bench::new(Some(10));
    assert!(!bench.target.cuts_history());
    bench.room = 0;
    bench.feed(record(11, 0, 512));
    bench.run();
    assert!(bench.target.cuts_history());
    bench.target.config.history_us = 0;
    assert!(!bench.target.cuts_history(), "there is none to be cut");
}
