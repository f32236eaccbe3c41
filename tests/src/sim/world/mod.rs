//! One simulated pair: a primary, a standby, a network, clients, faults, and the oracle.
//!
//! Every run is decided by its seed. A run takes a number of random steps with its own mix of faults (some are switched off
//! in each run: late bugs only show so), then everything is mended and must come to rest with equal images, and the standby
//! is promoted. The oracle keeps the primary's image at every sequence and compares every checkpoint that the standby
//! offers, by its label.

mod busy;
mod copies;
mod damage;
mod failback;
mod faults;
mod given;
mod model;
mod net;
mod oracle;
mod primary;
mod processes;
mod promotion;
mod rest;
mod rollback;
mod setup;
mod standby;
mod switchover;
mod theme;
mod verify;

use afterimage_protocol::rules::Rules;
use afterimage_protocol::*;

use self::faults::Faults;
pub use self::given::Given;
use self::model::History;
use self::net::Connection;
use self::oracle::Claims;
use self::primary::Primary;
use self::setup::{Setup, source_config};
use self::standby::Standby;
use self::theme::Shape;
pub use self::theme::Theme;
use self::verify::Flips;
use crate::sim::Rng;

/// A guarantee was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which one: G1 … G7, or "rest" when a run does not come to rest.
    pub what: &'static str,
    /// What was seen.
    pub detail: String,
}

impl Violation {
    fn new(what: &'static str, detail: String) -> Self {
        Self { what, detail }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.detail)
    }
}

/// What a run did, for the trace and for statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// A digest of everything that happened.
    pub trace: u64,
    /// Steps taken.
    pub steps: u64,
    /// Writes that got a place in the order.
    pub writes: u64,
    /// Times that either process was started.
    pub starts: u64,
    /// Whether the standby was promoted at the end.
    pub promoted: bool,
    /// Times that the standby said that nothing would be lost, and that it knew since when something may be.
    pub nothing_lost: u64,
    /// See above.
    pub unknown_loss: u64,
}

/// The pair, its network, its clients and its faults.
pub struct World {
    rng: Rng,
    now: Time,
    primary: Primary,
    standby: Standby,
    history: History,
    setup: Setup,
    shape: Shape,
    faults: Faults,
    claims: Claims,
    flips: Flips,
    /// Sessions that both sides agreed on.
    session_count: u64,
    /// How often time makes a leap.
    leaps: f64,
    /// The standby has become a primary: the run is over.
    over: bool,
    /// The image that the standby was promoted with.
    fork: model::Image,
    /// A promotion gave up what the old primary had got to its standby, and does not know to save.
    given_up: bool,
    /// The standby is becoming one, as the primary asked it to.
    taking_over: bool,
    connections: Vec<Connection>,
    /// What goes from source to target, and back.
    link: [bool; 2],
    outcome: Outcome,
    log: Option<Vec<String>>,
}

/// What a run is, beside its seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Random steps, before it has to come to rest.
    pub steps: u64,
    /// The rules in force.
    pub rules: Rules,
    /// A world without the faults that only this rule, which is off too, protects from.
    pub given: Option<Given>,
    /// What the run concentrates on; by chance if there is none.
    pub theme: Option<Theme>,
}

/// Runs one seed. With `log` the events are collected, for a person.
pub fn run(seed: u64, settings: &Settings, log: Option<&mut Vec<String>>) -> Result<Outcome, Violation> {
    let mut world = World::new(seed, settings);
    world.log = log.as_ref().map(|_| Vec::new());
    // A panic is a finding like any other: it must not end a hunt over many seeds.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run(settings)));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
        Err(Violation::new("panic", text.unwrap_or_default()))
    });
    if let (Some(out), Some(log)) = (log, world.log.take()) {
        *out = log;
    }
    result.map(|()| world.outcome())
}

impl World {
    fn new(seed: u64, settings: &Settings) -> Self {
        let rules = settings.given.map_or(settings.rules, |given| given.off(settings.rules));
        let mut rng = Rng::new(seed);
        let theme = rng.chance(0.6).then(|| Theme::choose(&mut rng));
        let theme = settings.theme.or(theme);
        let shape = Shape::new(&mut rng, theme);
        let config = source_config(&mut rng, rules, &shape);
        let setup = Setup { config, compare: rng.chance(0.2) };
        let mut primary = Primary::new(rng.next_u64(), shape);
        primary.format(&mut rng);
        let mut standby = Standby::new(rng.next_u64(), &mut rng, rules, shape);
        if shape.small {
            standby.litter();
        }
        if setup.compare {
            standby.seed_copy(&primary, &mut rng);
        }
        let faults = Faults::new(&mut rng, theme, settings.given);
        let leaps = *rng.pick(&[0.01, 0.01, 0.001]);
        Self {
            rng,
            now: Time(1_000_000),
            primary,
            standby,
            history: History::default(),
            setup,
            shape,
            faults,
            claims: Claims::default(),
            flips: Flips::default(),
            session_count: 0,
            leaps,
            over: false,
            fork: Vec::new(),
            taking_over: false,
            given_up: false,
            connections: Vec::new(),
            link: [true; 2],
            outcome: Outcome::default(),
            log: None,
        }
    }

    fn say(&mut self, event: impl FnOnce() -> String) {
        if self.log.is_some() {
            let line = format!("{:>9} {}", self.now.0 - 1_000_000, event());
            if let Some(log) = &mut self.log {
                log.push(line);
            }
        }
    }

    fn outcome(mut self) -> Outcome {
        let digest = [self.primary.disk.trace(), self.standby.disk.trace(), self.now.0, self.rng.next_u64()];
        let bytes: Vec<u8> = digest.iter().flat_map(|d| d.to_le_bytes()).collect();
        self.outcome.trace = xxhash_rust::xxh3::xxh3_64(&bytes);
        self.outcome.writes = self.history.placed.len() as u64;
        self.outcome
    }

    fn run(&mut self, settings: &Settings) -> Result<(), Violation> {
        self.until_promoted(settings)?;
        // And home again, with the hosts in each other's place.
        let goes_home = matches!(settings.theme, None | Some(Theme::PromoteAt));
        if !goes_home || self.rng.coin() {
            return Ok(());
        }
        let home =
            if self.rng.chance(0.3) { self.split_brain(settings.steps / 4)? } else { self.fail_back()? };
        if home {
            self.say(|| "the hosts have changed places".into());
            self.wander(settings.steps / 2)?;
            if !self.over {
                self.come_to_rest()?;
                self.promote()?;
            }
        }
        Ok(())
    }

    /// Random steps, until a promotion.
    fn wander(&mut self, steps: u64) -> Result<(), Violation> {
        for _ in 0..steps {
            self.outcome.steps += 1;
            self.step()?;
            if self.over {
                break;
            }
        }
        Ok(())
    }

    fn until_promoted(&mut self, settings: &Settings) -> Result<(), Violation> {
        if settings.theme.is_none() && self.rng.chance(0.04) {
            self.busy()?;
        } else {
            if self.shape.first_sync {
                self.first_sync()?;
            }
            self.wander(settings.steps)?;
            if self.over {
                return Ok(());
            }
        }
        self.come_to_rest()?;
        self.promote()
    }

    fn step(&mut self) -> Result<(), Violation> {
        self.now.0 += self.rng.below(2_000);
        if self.rng.chance(self.leaps) {
            self.now.0 += self.rng.below(8_000_000);
        }
        let w = self.faults.weights;
        let total: u32 = w.iter().sum();
        let mut pick = self.rng.below(u64::from(total)) as u32;
        let mut action = 0;
        while pick >= w[action] {
            pick -= w[action];
            action += 1;
        }
        match action {
            0 if self.faults.hush > 0 => {}
            0 => self.primary.client(&mut self.rng, &mut self.history, self.now),
            1 => self.primary.step(&mut self.rng, &mut self.history, self.now),
            2 => self.send(),
            3 => self.deliver()?,
            4 => self.standby.step(&mut self.rng, self.now),
            5 => self.connect(),
            6 => self.start()?,
            7 => self.timeouts(),
            other => self.fault(other - 8)?,
        }
        // What was planned for a standby does not happen to a primary.
        if !self.over {
            self.follow_plan()?;
        }
        self.after_step()
    }

    fn after_step(&mut self) -> Result<(), Violation> {
        for (sequence, range, value) in std::mem::take(&mut self.history.news) {
            self.say(|| {
                format!("write {sequence} {}:{}+{} value {value}", range.volume, range.offset, range.length)
            });
        }
        for sequence in std::mem::take(&mut self.history.errors) {
            self.say(|| format!("local error of write {sequence}"));
        }
        self.notice_deaths();
        self.follow_switchover()?;
        self.collect();
        self.check_claims()?;
        if self.rng.chance(0.15) {
            self.check()?;
        }
        Ok(())
    }

    fn timeouts(&mut self) {
        if let Some(p) = &mut self.primary.process
            && p.source.next_timeout().is_some_and(|t| t <= self.now)
        {
            p.source.timeout(self.now);
            self.primary.drain(&mut self.history);
        }
        if let Some(p) = &mut self.standby.process
            && p.target.next_timeout().is_some_and(|t| t <= self.now)
        {
            p.target.timeout(self.now);
            self.standby.drain(self.now);
        }
    }
}
