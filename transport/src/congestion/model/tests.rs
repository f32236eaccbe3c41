use super::super::simulation::{Flow, Link, Reno, Simulation};
use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn mbit(mbit: u64) -> u64 {
    mbit * 125_000
}

/// One bulk flow over a link: the share of the rate that it delivered in the last `over`, after `warm_up`.
fn alone(link: Link, warm_up: Duration, over: Duration) -> (f64, Simulation) {
    let mut simulation = Simulation::new(link, vec![Flow::ours()]);
    simulation.run(warm_up);
    simulation.forget_counts();
    simulation.run(over);
    let share = simulation.delivered(0) as f64 / (link.rate as f64 * over.as_secs_f64());
    (share, simulation)
}

#[test]
fn links_without_loss_are_filled_and_their_queues_stay_short() {
    for (rate, rtt, time) in [
        (mbit(200), 20 * MS, 3 * SECOND),
        (mbit(1000), 10 * MS, SECOND),
        (mbit(100), 80 * MS, 3 * SECOND),
        (mbit(10), 200 * MS, 20 * SECOND),
    ] {
        let link = Link { rate, delay: rtt / 2, ..Link::default() };
        let (share, simulation) = alone(link, time, time);
        let waited = simulation.mean_wait();
        assert!(share > 0.985, "{rate} B/s, {rtt:?}: {share}");
        assert!(waited < 6 * MS + rtt / 10, "{rate} B/s, {rtt:?}: {waited:?} in the queue");
    }
}

#[test]
fn random_loss_costs_no_more_than_what_is_lost() {
    for (rate, rtt, loss) in [
        (mbit(200), 20 * MS, 0.001),
        (mbit(100), 80 * MS, 0.01),
        (mbit(50), 200 * MS, 0.01),
        (mbit(100), 80 * MS, 0.05),
    ] {
        let link = Link { rate, delay: rtt / 2, loss, ..Link::default() };
        let (share, _) = alone(link, 3 * SECOND, 5 * SECOND);
        assert!(share > 0.97 - loss, "{rate} B/s, {rtt:?}, loss {loss}: {share}");
    }
}

#[test]
fn the_start_takes_few_round_trips() {
    let link = Link { rate: mbit(200), delay: 10 * MS, ..Link::default() };
    let mut simulation = Simulation::new(link, vec![Flow::ours()]);
    simulation.run(300 * MS);
    simulation.forget_counts();
    simulation.run(100 * MS);
    let share = simulation.delivered(0) as f64 / (link.rate as f64 / 10.0);
    assert!(share > 0.9, "{share}");
}

#[test]
fn a_link_that_becomes_faster_or_slower_is_followed() {
    let mut simulation =
        Simulation::new(Link { rate: mbit(20), delay: 10 * MS, ..Link::default() }, vec![Flow::ours()]);
    simulation.run(5 * SECOND);
    for rate in [mbit(160), mbit(12), mbit(24)] {
        simulation.link.rate = rate;
        // A slower link first has to carry what was meant for the faster one.
        simulation.run(6 * SECOND);
        simulation.forget_counts();
        simulation.run(2 * SECOND);
        let share = simulation.delivered(0) as f64 / (rate as f64 * 2.0);
        assert!(share > 0.95, "{rate} B/s: {share}");
        assert!(simulation.mean_wait() < 15 * MS, "{rate} B/s: {:?}", simulation.mean_wait());
    }
}

#[test]
fn a_path_that_becomes_longer_is_learnt() {
    let mut simulation =
        Simulation::new(Link { rate: mbit(20), delay: 10 * MS, ..Link::default() }, vec![Flow::ours()]);
    simulation.run(5 * SECOND);
    simulation.link.delay = 40 * MS;
    simulation.run(45 * SECOND);
    simulation.forget_counts();
    simulation.run(10 * SECOND);
    let share = simulation.delivered(0) as f64 / (mbit(20) as f64 * 10.0);
    assert!(share > 0.97, "{share}");
}

#[test]
fn a_shallow_queue_is_used_without_flooding_it() {
    for packets in [10, 20, 50] {
        let link = Link { rate: mbit(100), delay: 20 * MS, queue_bytes: packets * 1500, ..Link::default() };
        let (share, simulation) = alone(link, 3 * SECOND, 10 * SECOND);
        let lost = simulation.overflowed();
        assert!(share > 0.7, "{packets} packets: {share}");
        assert!(lost < 0.04, "{packets} packets: {lost} lost");
    }
}

#[test]
fn two_flows_share() {
    let link = Link { rate: mbit(50), delay: 10 * MS, ..Link::default() };
    let mut simulation = Simulation::new(link, vec![Flow::ours(), Flow::ours().after(5 * SECOND)]);
    simulation.run(25 * SECOND);
    simulation.forget_counts();
    simulation.run(30 * SECOND);
    let (one, other) = (simulation.delivered(0) as f64, simulation.delivered(1) as f64);
    assert!((0.25..0.75).contains(&(one / (one + other))), "{one} {other}");
    assert!(one + other > 0.95 * link.rate as f64 * 30.0);
}

/// Beside a flow that halves its window for each loss, with a queue of half a round trip, of one, and of five.
#[test]
fn beside_a_classic_flow_neither_starves() {
    for queue_ms in [10, 20, 100] {
        let rate = mbit(20);
        let link = Link { rate, delay: 10 * MS, queue_bytes: rate * queue_ms / 1000, ..Link::default() };
        let mut simulation = Simulation::new(link, vec![Flow::ours(), Flow::new(Box::new(Reno::default()))]);
        simulation.run(20 * SECOND);
        simulation.forget_counts();
        simulation.run(60 * SECOND);
        let (ours, other) = (simulation.delivered(0) as f64, simulation.delivered(1) as f64);
        let share = ours / (ours + other);
        assert!((0.1..0.9).contains(&share), "{queue_ms} ms of queue: {share}");
    }
}

#[test]
fn a_pause_of_the_application_does_not_lose_what_is_known() {
    let link = Link { rate: mbit(50), delay: 10 * MS, ..Link::default() };
    let mut simulation = Simulation::new(link, vec![Flow::ours()]);
    simulation.run(2 * SECOND);
    // One packet at a time, for longer than any filter remembers.
    simulation.flows[0].at_most = Some(1500);
    simulation.run(30 * SECOND);
    simulation.flows[0].at_most = None;
    simulation.run(100 * MS);
    simulation.forget_counts();
    simulation.run(SECOND);
    let share = simulation.delivered(0) as f64 / link.rate as f64;
    assert!(share > 0.95, "{share}");
}

#[test]
fn collected_acknowledgements_do_not_leave_the_link_idle() {
    let link = Link { rate: mbit(200), delay: 10 * MS, ack_every: 5 * MS, ..Link::default() };
    let (share, _) = alone(link, 2 * SECOND, 3 * SECOND);
    assert!(share > 0.97, "{share}");
}

#[test]
fn a_silent_path_begins_anew() {
    let now = Instant::now();
    let mut model = Model::new(now, 1200);
    assert_eq!((model.window(), model.phase()), (12_000, Phase::Startup));
    model.on_loss(12_000, true);
    assert_eq!(model.window(), 4800);
    let mut at = now;
    for _ in 0..40 {
        model.on_sent(at, model.window());
        model.on_ack(at, model.window());
        at += 10 * MS;
        model.on_acks_end(at, 0, false, 10 * MS);
    }
    assert!(model.window() > 100_000, "{}", model.window());
}

/// Whatever comes, the window stays within its bounds and nothing overflows.
#[test]
fn nothing_breaks_it() {
    let mut random = super::super::simulation::Random(7);
    for _ in 0..50 {
        let mut now = Instant::now();
        let mut model = Model::new(now, 1200);
        let mut sent = Vec::new();
        for _ in 0..2000 {
            match random.below(8) {
                0..=2 => {
                    let bytes = random.below(200_000);
                    model.on_sent(now, bytes);
                    sent.push((now, bytes));
                }
                3 | 4 if !sent.is_empty() => {
                    let (at, bytes) = sent.swap_remove(random.below(sent.len() as u64) as usize);
                    model.on_ack(at, bytes);
                    let in_flight = sent.iter().map(|&(_, bytes)| bytes).sum();
                    model.on_acks_end(
                        now,
                        in_flight,
                        random.below(4) == 0,
                        Duration::from_micros(random.below(90_000)),
                    );
                }
                5 => model.on_loss(random.below(50_000), random.below(50) == 0),
                6 => model.set_packet_bytes(1200 + random.below(273)),
                _ => now += Duration::from_micros(random.below(5_000)),
            }
            let window = model.window();
            assert!((4 * 1200..=MAX_WINDOW).contains(&window), "{window}");
        }
    }
}
