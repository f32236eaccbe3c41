//! When it is noted what the target has, before bits clear.

use super::*;

const TENTH_US: u64 = 100_000;

impl Bench {
    /// A write that is durable at the target at once.
    fn written_durably(&mut self, length: u64) {
        self.issue(0, length);
        self.run();
        let sequence = self.send();
        self.acknowledge_durable(sequence);
    }

    fn pass(&mut self, us: u64) {
        self.now = self.now.plus_us(us);
        self.source.timeout(self.now);
        self.run();
    }

    fn is_dirty(&self) -> bool {
        !self.source.is_clean()
    }
}

/// After a note at a time when nothing waits.
fn noted() -> Bench {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.pass(10 * TENTH_US);
    bench.written_durably(BLOCK_BYTES);
    assert!(!bench.is_dirty(), "a note is made at once when the last is long ago");
    bench
}

#[test]
fn while_clients_write_there_is_one_note_a_second() {
    let mut bench = noted();
    for _ in 0..3 {
        assert_eq!(notes_in_a_second(&mut bench), 1);
    }
}

/// How many notes there are in a second in which little is written.
fn notes_in_a_second(bench: &mut Bench) -> u64 {
    let before = bench.source.state_version;
    for _ in 0..100 {
        bench.pass(TENTH_US / 10);
        bench.written_durably(BLOCK_BYTES);
    }
    bench.source.state_version - before
}

#[test]
fn once_clients_rest_a_note_is_soon_made() {
    let mut bench = noted();
    bench.pass(TENTH_US / 2);
    bench.written_durably(BLOCK_BYTES);
    let due = bench.now.plus_us(TENTH_US);
    assert!(bench.source.next_timeout().is_some_and(|at| at <= due));
    bench.pass(TENTH_US - 1);
    assert!(bench.is_dirty());
    bench.pass(1);
    assert!(!bench.is_dirty());
}

#[test]
fn much_that_waits_is_noted_soon_but_not_all_the_time() {
    let mut bench = noted();
    let before = bench.source.state_version;
    // Without a rest, and in each tenth of a second more than should be sent again after a crash.
    for _ in 0..9 * 20 {
        bench.pass(TENTH_US / 20);
        bench.written_durably(2 * EXTENT_BYTES);
    }
    assert_eq!(bench.source.state_version - before, 9);
    bench.pass(10 * TENTH_US);
    assert_eq!(notes_in_a_second(&mut bench), 1, "it waits no more");
}

#[test]
fn what_was_given_up_with_the_queue_waits_for_no_note() {
    let mut bench = noted();
    let has = bench.source.position().sequence;
    for _ in 0..10 {
        bench.issue(0, 2 * EXTENT_BYTES);
        bench.run();
        let written = bench.send();
        bench.acknowledge_received(written);
    }
    bench.connect(None, Some(has), Lost::None);
    let commit = bench.send();
    bench.acknowledge_durable(commit);
    assert!(bench.source.in_sync && !bench.is_dirty());
    bench.pass(10 * TENTH_US);
    assert_eq!(notes_in_a_second(&mut bench), 1);
}
