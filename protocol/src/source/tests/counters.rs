//! What is counted for the metrics.

use super::*;

#[test]
fn answers_and_acknowledgements_are_timed() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    assert_eq!(bench.source.counters().read_bytes, SIZE, "the first sync has read it all");
    bench.write();
    let sent = bench.send();
    assert!(bench.source.status().in_flight_bytes > 0);
    bench.now = bench.now.plus_us(1000);
    bench.acknowledge_received(sent);
    let counters = bench.source.counters();
    assert_eq!((counters.answered.count(), counters.answered.sum_us()), (1, 1000));
    assert_eq!(counters.durable.count(), 0);
    assert!(bench.source.status().in_flight_bytes > 0, "not on stable storage yet");
    bench.now = bench.now.plus_us(500);
    bench.acknowledge_durable(sent);
    let counters = bench.source.counters();
    assert_eq!((counters.durable.count(), counters.durable.sum_us()), (1, 1500));
    assert_eq!(counters.written_bytes, [BLOCK_BYTES]);
    assert_eq!(bench.source.status().in_flight_bytes, 0);
}

#[test]
fn what_was_sent_over_a_lost_link_is_not_in_flight() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let has = bench.source.position().sequence;
    bench.write();
    let sent = bench.send();
    bench.connect(Some(has), Some(has), Lost::None);
    assert_eq!(bench.source.status().in_flight_bytes, 0);
    assert_eq!(bench.send(), sent, "it is sent again");
    assert!(bench.source.status().in_flight_bytes > 0);
    bench.acknowledge_durable(sent);
    assert_eq!(bench.source.status().in_flight_bytes, 0);
}
