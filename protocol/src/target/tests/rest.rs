//! Catch-ups that do not fit into the journal.

use super::*;

const SECOND_US: u64 = 1_000_000;

impl Bench {
    fn asks(&mut self, at_s: u64) -> Result<(), String> {
        match self.target.open(Time(at_s * SECOND_US), open(SESSION, SessionId(0))) {
            Ok(()) => Ok(()),
            Err(TargetMessage::Refused { code: Refusal::NotReady, text, .. }) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// A catch-up from one second to another, with room for so many entries.
    fn catch_up(&mut self, from_s: u64, to_s: u64, room: usize) {
        self.room = self.journal.len() + room;
        self.asks(from_s).unwrap();
        self.run();
        let mut feed = |at_s: u64, frame| {
            self.target.frame(Time(at_s * SECOND_US), SESSION, frame).unwrap();
            self.run();
        };
        feed(from_s, begin(EPOCH));
        feed(to_s, block(EPOCH, 0, 10, 0));
        feed(to_s, commit(EPOCH, 11, &[(0, 10)]));
        self.target.timeout(Time(to_s * SECOND_US));
        self.run();
    }

    /// How often the journal was full.
    fn fulls(&self) -> usize {
        self.ended.iter().filter(|reason| *reason == "the journal is full").count()
    }

    /// The last second at which it rests.
    fn rests_until(&mut self, from_s: u64) -> u64 {
        (from_s..).take_while(|at_s| self.target.rests_for_room(Time(at_s * SECOND_US))).last().unwrap_or(0)
    }
}

#[test]
fn the_line_is_left_alone_longer_and_longer() {
    let mut bench = Bench::new(Some(10));
    bench.catch_up(10, 14, 1);
    assert_eq!(bench.fulls(), 1);
    assert_eq!(bench.rests_until(14), 0, "history has given way, and the next may fit");
    bench.catch_up(20, 24, 1);
    assert_eq!(bench.rests_until(24), 27, "as long as it took");
    let text = bench.asks(27).unwrap_err();
    assert!(text.contains("the journal is full: 2 catch-ups in a row"), "{text}");
    assert_eq!(bench.asks(25).unwrap_err(), text, "it is logged once");
    let asks = Open { pending: true, ..open(SESSION, SessionId(0)) };
    let Err(TargetMessage::Refused { code, .. }) = bench.target.open(Time(25 * SECOND_US), asks) else {
        panic!("taken while it rests");
    };
    assert_eq!(code, Refusal::Pending, "what else there is to say comes first");
    bench.catch_up(28, 32, 1);
    assert_eq!(bench.rests_until(32), 39);
    for n in 0..40 {
        let at_s = 1000 * (n + 1);
        bench.catch_up(at_s, at_s + 4, 1);
    }
    assert_eq!(bench.rests_until(40_004), 40_004 + 15 * 60 - 1);
}

#[test]
fn one_that_fits_ends_it() {
    let mut bench = Bench::new(Some(10));
    bench.catch_up(10, 14, 1);
    bench.catch_up(20, 24, 1);
    bench.catch_up(30, 34, 3);
    assert_eq!(bench.target.newest().unwrap().position, position(11));
    assert_eq!(bench.fulls(), 2);
    bench.catch_up(40, 44, 1);
    assert_eq!(bench.rests_until(44), 0, "the first in a row");
}

#[test]
fn a_record_that_finds_no_room_is_no_reason_to_rest() {
    let mut bench = Bench::new(Some(10));
    for at_s in [10, 20, 30] {
        bench.room = bench.journal.len();
        bench.asks(at_s).unwrap();
        bench.run();
        bench.feed(record(11, 0, 512));
        bench.run();
        assert_eq!(bench.rests_until(at_s), 0);
    }
    assert_eq!(bench.fulls(), 3);
}
