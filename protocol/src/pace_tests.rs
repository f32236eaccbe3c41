use super::*;

const MIB: u64 = 1 << 20;
const STEP_US: u64 = 500;

/// A disk that clients and background work share.
struct World {
    pace: Pace,
    now: Time,
    /// What clients wait without background work, in microseconds; `None` without clients.
    usual_us: Option<u64>,
    /// Bytes a second of the disk.
    disk: u64,
    /// How many times longer clients wait while the disk does nothing but read for the background.
    harm: f64,
    reading_until: Option<Time>,
    /// Share of the disk that was read lately, of 1.
    share: f64,
}

/// What came of some time.
struct Seen {
    /// Bytes a second that were read.
    rate: u64,
    /// What clients waited on average, in microseconds.
    waited_us: f64,
    /// The longest time between two reads' ends, in microseconds.
    longest_pause_us: u64,
}

impl World {
    fn new(setting: Background) -> Self {
        Self {
            pace: Pace::new(setting, None, Time(1_000_000)),
            now: Time(1_000_000),
            usual_us: Some(400),
            disk: 1000 * MIB,
            harm: 20.0,
            reading_until: None,
            share: 0.0,
        }
    }

    fn run(&mut self, seconds: u64, working: bool) -> Seen {
        let steps = seconds * 1_000_000 / STEP_US;
        let (mut read, mut waited, mut requests) = (0, 0, 0);
        let (mut last_read, mut longest) = (self.now, 0);
        for step in 0..steps {
            self.now = self.now.plus_us(STEP_US);
            if self.reading_until.take_if(|until| *until <= self.now).is_some() {
                self.pace.read(self.now, MIB, MIB);
                read += MIB;
                longest = longest.max(self.now.since_us(last_read));
                last_read = self.now;
            }
            if working && self.reading_until.is_none() && self.pace.may_read(self.now, 0, false) {
                self.pace.started();
                self.reading_until = Some(self.now.plus_us(MIB * 1_000_000 / self.disk));
            }
            let busy = f64::from(u8::from(self.reading_until.is_some()));
            self.share += (busy - self.share) * 0.05;
            if let Some(usual) = self.usual_us {
                // Some take longer anyway.
                let noise = if step % 20 == 0 { 5.0 } else { 0.8 + (step % 7) as f64 * 0.06 };
                let us = usual as f64 * noise * (1.0 + self.harm * self.share);
                self.pace.waited(self.now, Request::Write, us as u64);
                waited += us as u64;
                requests += 1;
            }
            self.pace.look(self.now, false, working);
        }
        Seen {
            rate: read / seconds,
            waited_us: waited as f64 / f64::from(requests.max(1)),
            longest_pause_us: longest,
        }
    }
}

#[test]
fn without_clients_nothing_is_held_back() {
    let mut world = World { usual_us: None, ..World::new(Background::Gentle) };
    assert!(world.run(5, true).rate > 400 * MIB);
    assert_eq!(world.pace.held_back(), None);
}

#[test]
fn what_is_fast_asks_nobody() {
    let mut world = World::new(Background::Fast);
    assert!(world.run(5, true).rate > 400 * MIB);
    assert_eq!(world.pace.held_back(), None);
}

#[test]
fn clients_are_given_way_to_as_much_as_was_asked_for() {
    let mut waited = Vec::new();
    for setting in [Background::Gentle, Background::Balanced, Background::Fast] {
        let mut world = World::new(setting);
        world.run(3, false);
        world.run(5, true);
        let seen = world.run(30, true);
        waited.push((setting, seen.waited_us, seen.rate));
        if setting != Background::Fast {
            assert!(seen.waited_us < setting.allows_us(400.0) * 1.6, "{waited:?}");
            assert!(seen.rate >= setting.floor_bytes_per_s() * 8 / 10, "{waited:?}");
        }
    }
    assert!(waited.is_sorted_by(|a, b| a.1 < b.1 && a.2 < b.2), "{waited:?}");
    assert!(waited[2].1 > 3.0 * waited[1].1, "{waited:?}");
}

#[test]
fn work_that_nobody_notices_goes_as_fast_as_it_can() {
    let mut world = World { harm: 0.2, ..World::new(Background::Balanced) };
    world.run(3, false);
    assert!(world.run(30, true).rate > 400 * MIB);
}

#[test]
fn it_never_stands_still_however_bad_it_gets() {
    for (setting, mib) in [(Background::Gentle, 3), (Background::Balanced, 13)] {
        let mut world = World { harm: 100_000.0, ..World::new(setting) };
        world.run(3, false);
        world.run(5, true);
        let seen = world.run(60, true);
        assert!(seen.rate >= mib * MIB, "{setting:?}: {}", seen.rate);
        assert!(seen.longest_pause_us < 1_000_000, "{setting:?}: {}", seen.longest_pause_us);
    }
}

#[test]
fn clients_that_wait_longer_for_another_reason_are_no_reason() {
    let mut world = World { harm: 0.1, ..World::new(Background::Balanced) };
    world.run(3, false);
    world.run(10, true);
    // They ask for something else, or the disk has become slow.
    world.usual_us = Some(20_000);
    world.run(15, true);
    assert!(world.run(10, true).rate > 300 * MIB);
}

#[test]
fn what_clients_wait_without_it_is_found_out_on_the_way_too() {
    // The work begins with the process: there was no time without.
    let mut world = World::new(Background::Balanced);
    world.run(5, true);
    let seen = world.run(20, true);
    assert!(seen.waited_us < 2500.0, "{}", seen.waited_us);
    assert!(matches!(world.pace.held_back(), Some((_, HeldBy::Clients))));
}

#[test]
fn another_setting_counts_at_once() {
    let mut world = World::new(Background::Gentle);
    world.run(20, true);
    assert!(world.pace.held_back().is_some_and(|(_, by)| by == HeldBy::Clients));
    world.pace.follow(Background::Fast, Some(900 * MIB), world.now);
    assert_eq!(world.pace.held_back(), Some((900 * MIB, HeldBy::MaxRate)));
    let held = world.run(5, true).rate;
    assert!((800 * MIB..=910 * MIB).contains(&held), "{held}");
}

#[test]
fn once_clients_are_gone_nothing_is_held_back() {
    let mut world = World::new(Background::Gentle);
    world.run(3, false);
    world.run(10, true);
    assert!(world.pace.held_back().is_some());
    world.usual_us = None;
    world.run(2, true);
    assert_eq!(world.pace.held_back(), None);
    assert!(world.run(2, true).rate > 400 * MIB);
}

#[test]
fn a_client_that_waits_for_long_is_there_all_the_time() {
    let mut world = World::new(Background::Gentle);
    world.run(3, false);
    world.run(10, true);
    let mut look = |busy, seconds: u64| {
        for _ in 0..seconds * 4 {
            world.now = world.now.plus_us(250_000);
            world.pace.look(world.now, busy, true);
        }
        world.pace.held_back()
    };
    assert!(look(true, 5).is_some());
    assert_eq!(look(false, 2), None);
}

#[test]
fn what_closes_a_catch_up_waits_for_no_client_and_for_the_bound_all_the_same() {
    let mut world = World { harm: 1000.0, ..World::new(Background::Gentle) };
    world.run(3, false);
    world.run(10, true);
    let now = world.now;
    world.pace.read(now, 16 * MIB, 16 * MIB);
    assert!(!world.pace.may_read(now, 0, false));
    assert!(world.pace.may_read(now, 64 * MIB, true));

    let mut bound = Pace::new(Background::Balanced, Some(MIB), Time(0));
    bound.read(Time(1_000_000), MIB, MIB);
    assert_eq!(bound.held_back(), Some((MIB, HeldBy::MaxRate)));
    assert!(!bound.may_read(Time(1_900_000), 0, true));
    assert!(bound.may_read(Time(2_000_000), 0, true));
}

#[test]
fn zeroes_that_are_read_count_for_clients_and_not_for_the_bound() {
    let mut bound = Pace::new(Background::Balanced, Some(MIB), Time(0));
    bound.read(Time(1_000_000), 16 * MIB, 0);
    assert!(bound.may_read(Time(1_000_000), 0, false));
}

#[test]
fn nine_in_ten_are_found_within_a_tenth() {
    for us in [4u64, 5, 100, 1000, 123_456, 60_000_000] {
        let mut waits = Waits::default();
        assert!(waits.is_empty() && waits.nine_in_ten_us().is_none());
        (0..90).for_each(|_| waits.add(us));
        let mut longer = Waits::default();
        (0..10).for_each(|_| longer.add(us * 100));
        waits.join(&longer);
        let found = waits.nine_in_ten_us().unwrap();
        assert!((found / us as f64 - 1.0).abs() < 0.13, "{us}: {found}");
    }
    let mut waits = Waits::default();
    waits.add(0);
    waits.add(u64::MAX);
    assert!(waits.nine_in_ten_us().unwrap() > 1e8);
}
