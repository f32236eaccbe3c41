//! One simulated pair: a primary, a standby, a network, clients, faults, and the oracle.
//!
//! Every run is decided by its seed. A run takes a number of random steps with its own mix of faults (some are switched off
//! in each run: late bugs only show so), then everything is mended and must come to rest with equal images, and the standby
//! is promoted. The oracle keeps the primary's image at every sequence and compares every checkpoint that the standby
//! offers, by its label.

mod busy;
mod faults;
mod model;
mod net;
mod oracle;
mod primary;
mod promotion;
mod standby;

use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Codec, Content, Frame, Record};
use afterimage_protocol::message::{self, SourceMessage, TargetMessage};
use afterimage_protocol::rules::{Rule, Rules};
use afterimage_protocol::*;

use self::faults::{Copies, Faults};
use self::model::{History, read_image};
use self::net::{BLOCK_STREAMS, Connection};
use self::oracle::Claims;
use self::primary::{Primary, Setup, source_config};
use self::standby::Standby;
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
    /// Checkpoints of epochs seen.
    pub promoted: bool,
}

/// A rule that is off beside the one that is looked at, and what is left out of the world for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// No full comparison of a peer that is behind; no old copies.
    StalePeer,
    /// The same; old copies are those of older sessions.
    StalePeerSessions,
}

impl Given {
    /// What masks `rule` in a world with all the others, if anything does.
    pub fn masks(rule: Rule) -> Option<Self> {
        match rule {
            Rule::JoinBits | Rule::JoinTakesSequence | Rule::TargetKeepsBits | Rule::DamageRefetched => {
                Some(Given::StalePeer)
            }
            Rule::StaleSession => Some(Given::StalePeerSessions),
            _ => None,
        }
    }

    /// The rule that is off.
    pub fn rule(self) -> Rule {
        Rule::StalePeer
    }

    fn copies(self) -> Copies {
        match self {
            Given::StalePeer => Copies::None,
            Given::StalePeerSessions => Copies::OtherSessions,
        }
    }
}

/// Rounds that are given to a first sync without faults.
const FIRST_SYNC_ROUNDS: u64 = 2_000;
/// Steps that a run may take to come to rest.
const REST_STEPS: u64 = 20_000;

/// The pair, its network, its clients and its faults.
pub struct World {
    rng: Rng,
    now: Time,
    primary: Primary,
    standby: Standby,
    history: History,
    setup: Setup,
    faults: Faults,
    claims: Claims,
    /// Sessions that both sides agreed on.
    session_count: u64,
    /// How often time makes a leap.
    leaps: f64,
    /// The standby has become a primary: the run is over.
    over: bool,
    connections: Vec<Connection>,
    /// What goes from source to target, and back.
    link: [bool; 2],
    outcome: Outcome,
    log: Option<Vec<String>>,
}

/// Runs one seed for `steps` steps. With `log` the events are collected, for a person.
pub fn run(seed: u64, steps: u64, rules: Rules, log: Option<&mut Vec<String>>) -> Result<Outcome, Violation> {
    run_given(seed, steps, rules, None, log)
}

/// Like [`run`], in a world without the faults that only the rule `given`, which is off, protects from. So the rules that
/// it covers for can be shown to be needed.
pub fn run_given(
    seed: u64,
    steps: u64,
    rules: Rules,
    given: Option<Given>,
    log: Option<&mut Vec<String>>,
) -> Result<Outcome, Violation> {
    let rules = given.map_or(rules, |given| rules.and_without(given.rule()));
    let mut world = World::new(seed, rules, given);
    world.log = log.as_ref().map(|_| Vec::new());
    // A panic is a finding like any other: it must not end a hunt over many seeds.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run(steps)));
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
    fn new(seed: u64, rules: Rules, given: Option<Given>) -> Self {
        let mut rng = Rng::new(seed);
        let config = source_config(&mut rng, rules);
        let setup = Setup { config, compare: rng.chance(0.2) };
        let mut primary = Primary::new(rng.next_u64());
        primary.format(&mut rng);
        primary.slow_writes = rng.chance(0.3);
        let mut standby = Standby::new(rng.next_u64(), &mut rng, rules);
        if setup.compare {
            standby.seed_copy(&primary, &mut rng);
        }
        let faults = Faults::new(&mut rng, given.map_or(Copies::Any, Given::copies));
        let leaps = *rng.pick(&[0.01, 0.01, 0.001]);
        Self {
            rng,
            now: Time(1_000_000),
            primary,
            standby,
            history: History::default(),
            setup,
            faults,
            claims: Claims::default(),
            session_count: 0,
            leaps,
            over: false,
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

    fn run(&mut self, steps: u64) -> Result<(), Violation> {
        if self.rng.chance(0.04) {
            self.busy()?;
        } else {
            if self.rng.chance(0.75) {
                self.first_sync()?;
            }
            for _ in 0..steps {
                self.outcome.steps += 1;
                self.step()?;
                if self.over {
                    return Ok(());
                }
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
        self.follow_plan()?;
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
        self.collect();
        self.check_claims()?;
        if self.rng.chance(0.15) {
            self.check()?;
        }
        Ok(())
    }

    /// A process whose disk said that it is dead is dead.
    fn notice_deaths(&mut self) {
        if self.primary.disk.dead() {
            self.kill_primary();
        }
        let broken = self.standby.process.as_ref().is_some_and(|p| p.broken);
        if self.standby.disk.dead() || broken {
            let failure = self.standby.process.as_ref().and_then(|p| p.target.failure());
            if let Some(failure) = failure {
                self.say(|| format!("standby has failed: {failure}"));
                if failure == target::JOURNAL_SYNC_FAILED {
                    self.forget_received();
                }
            }
            self.kill_standby();
        }
    }

    fn kill_primary(&mut self) {
        self.say(|| "primary is killed".into());
        self.primary.disk.kill();
        self.primary.ended();
        for c in &mut self.connections {
            c.source_gone = true;
        }
    }

    fn kill_standby(&mut self) {
        self.say(|| "standby is killed".into());
        self.standby.disk.kill();
        self.standby.process = None;
        self.standby.outbox.clear();
        self.standby.ended.clear();
        for c in &mut self.connections {
            c.target_gone = true;
            c.to_source.clear();
        }
    }

    fn start(&mut self) -> Result<(), Violation> {
        if self.primary.process.is_none() && !self.primary.fenced && self.rng.coin() {
            self.start_primary()?;
        }
        if self.standby.process.is_none() && self.rng.coin() {
            self.start_standby()?;
        }
        Ok(())
    }

    fn start_primary(&mut self) -> Result<(), Violation> {
        if self.primary.process.is_some() {
            return Ok(());
        }
        let generation = Generation(self.rng.next_u64() | 1);
        let cut = self.faults.primary_power_cut;
        let up = self.primary.start(&self.setup, &mut self.history, generation, self.now, cut)?;
        self.say(|| format!("primary starts: {up}"));
        if up {
            self.outcome.starts += 1;
            self.faults.primary_power_cut = false;
            let position = self.primary.process.as_ref().map(|p| p.source.position());
            self.say(|| format!("  recovery at {position:?}"));
        } else {
            self.primary.disk.kill();
        }
        Ok(())
    }

    fn start_standby(&mut self) -> Result<(), Violation> {
        if self.standby.process.is_some() {
            return Ok(());
        }
        let up = self.standby.start(self.now);
        self.say(|| format!("standby starts: {up}"));
        if !up {
            self.standby.disk.kill();
            return Ok(());
        }
        self.outcome.starts += 1;
        let newest = self.standby.newest();
        self.say(|| format!("  newest {newest:?}"));
        self.check()
    }

    fn connect(&mut self) {
        let Some(p) = &mut self.primary.process else { return };
        if p.disconnect {
            p.disconnect = false;
            self.source_disconnects();
            return;
        }
        let busy = self.connections.iter().any(|c| !c.source_gone);
        if busy || !self.link[0] || !self.link[1] || self.standby.process.is_none() {
            return;
        }
        let session = SessionId(self.rng.next_u64() | 1);
        if let Some(open) = p.source.open(session) {
            self.say(|| format!("source asks for session {session}"));
            let mut c = Connection::new(session);
            c.to_target.push_back(message::encode(&SourceMessage::Open(open)));
            self.connections.push(c);
        }
    }

    fn source_disconnects(&mut self) {
        self.say(|| "source lets the connection go".into());
        for c in &mut self.connections {
            c.source_gone = true;
        }
        if let Some(p) = &mut self.primary.process {
            p.source.disconnected(self.now);
        }
        self.primary.drain(&mut self.history);
    }

    /// The source gives frames to the connection.
    fn send(&mut self) {
        let Some(p) = &mut self.primary.process else { return };
        let Some(c) = self.connections.iter_mut().find(|c| !c.source_gone) else { return };
        let lz4 = self.rng.coin();
        let mut said = Vec::new();
        for _ in 0..1 + self.rng.below(4) {
            if let Some(frame) = p.source.next_frame(self.now) {
                said.push(brief(&frame));
                c.ordered.push_back(encode(frame, lz4));
            }
            if let Some(frame) = p.source.next_block(self.now) {
                said.push(brief(&frame));
                let stream = self.rng.index(BLOCK_STREAMS);
                c.blocks[stream].push_back(encode(frame, lz4));
            }
        }
        for line in said {
            self.say(|| format!("source sends {line}"));
        }
        self.primary.drain(&mut self.history);
    }

    /// Something arrives somewhere.
    fn deliver(&mut self) -> Result<(), Violation> {
        if self.connections.is_empty() {
            return Ok(());
        }
        let at = self.rng.index(self.connections.len());
        let stream = self.rng.below(3 + BLOCK_STREAMS as u64);
        let now = self.now;
        let c = &mut self.connections[at];
        let session = c.session;
        if stream == 0 {
            // To the source.
            if !self.link[1] || c.source_gone {
                return Ok(());
            }
            let (Some(bytes), Some(p)) = (c.to_source.pop_front(), &mut self.primary.process) else {
                return Ok(());
            };
            if let Ok(message) = message::decode::<TargetMessage>(&bytes) {
                p.source.message(now, message.clone());
                if matches!(message, TargetMessage::Opened(_)) {
                    self.session_count += 1;
                    self.primary.unaware = false;
                }
                self.say(|| format!("source gets {message:?}"));
            }
            self.primary.drain(&mut self.history);
            return Ok(());
        }
        if !self.link[0] || c.target_gone {
            return Ok(());
        }
        let Some(p) = &mut self.standby.process else { return Ok(()) };
        if stream == 1 {
            let Some(bytes) = c.to_target.pop_front() else { return Ok(()) };
            if let Ok(SourceMessage::Open(open)) = message::decode(&bytes) {
                if let Err(refused) = p.target.open(now, open) {
                    c.to_source.push_back(message::encode(&refused));
                    c.target_gone = true;
                }
                self.say(|| format!("target is asked for session {session}"));
            }
        } else {
            if stream == 2 && !p.target.takes_ordered() {
                return Ok(());
            }
            let queue = if stream == 2 { &mut c.ordered } else { &mut c.blocks[stream as usize - 3] };
            let Some(bytes) = queue.pop_front() else { return Ok(()) };
            match Frame::decode(&bytes) {
                Ok((Frame::Record(_), _)) if self.faults.lose_record && p.target.staging().is_none() => {
                    self.faults.lose_record = false;
                    c.lossy = true;
                    self.say(|| "  a record is lost on its way".into());
                }
                Ok((frame, _)) => {
                    let line = brief(&frame);
                    let result = p.target.frame(now, session, frame);
                    self.say(|| format!("target gets {line} of {session}: {result:?}"));
                }
                Err(error) => {
                    return Err(Violation::new("G4", format!("a frame did not survive the wire: {error}")));
                }
            }
        }
        self.standby.drain(now);
        Ok(())
    }

    /// Moves what the target said onto the wire.
    fn collect(&mut self) {
        for (session, m) in std::mem::take(&mut self.standby.outbox) {
            let c = self.connections.iter_mut().find(|c| c.session == session && !c.target_gone);
            if let Some(c) = c {
                c.to_source.push_back(message::encode(&m));
            }
        }
        for session in std::mem::take(&mut self.standby.ended) {
            for c in self.connections.iter_mut().filter(|c| c.session == session) {
                c.target_gone = true;
            }
        }
        // The peer's end of a connection is noticed, sooner or later.
        if self.rng.chance(0.1) {
            let gone: Vec<_> =
                self.connections.iter().map(|c| (c.session, c.source_gone, c.target_gone)).collect();
            for (session, source_gone, target_gone) in gone {
                if target_gone && !source_gone && (self.link[1] || self.rng.chance(0.05)) {
                    self.source_disconnects();
                }
                if source_gone
                    && !target_gone
                    && (self.link[0] || self.rng.chance(0.05))
                    && self.rng.chance(0.3)
                {
                    if let Some(c) = self.connections.iter_mut().find(|c| c.session == session) {
                        c.target_gone = true;
                    }
                    if let Some(p) = &mut self.standby.process {
                        p.target.disconnected(self.now, session);
                    }
                    self.standby.drain(self.now);
                }
            }
        }
        self.connections.retain(|c| !c.is_over());
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

    /// A round in which everything that can go on does.
    fn round(&mut self) -> Result<(), Violation> {
        self.start()?;
        self.connect();
        for _ in 0..4 {
            self.primary.step(&mut self.rng, &mut self.history, self.now);
            self.standby.step(&mut self.rng, self.now);
            self.send();
            for _ in 0..4 {
                self.deliver()?;
                self.collect();
            }
        }
        self.timeouts();
        self.after_step()?;
        Ok(())
    }

    /// The first sync, before the faults begin: most of the rules are about what comes after it.
    fn first_sync(&mut self) -> Result<(), Violation> {
        for _ in 0..FIRST_SYNC_ROUNDS {
            self.now.0 += 500;
            self.primary.client(&mut self.rng, &mut self.history, self.now);
            self.round()?;
            if self.standby.newest().is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Everything is mended; the pair must come to rest.
    fn come_to_rest(&mut self) -> Result<(), Violation> {
        self.say(|| "everything is mended".into());
        self.mend();
        let clients_until = if self.rng.chance(0.3) { 400 } else { 0 };
        for step in 0..REST_STEPS {
            self.now.0 += 500;
            if step < clients_until {
                self.primary.client(&mut self.rng, &mut self.history, self.now);
            }
            if step % 100 == 0 {
                self.restart_failed();
            }
            self.round()?;
            if step >= clients_until && self.at_rest() {
                return self.check_rest();
            }
        }
        let detail = format!(
            "no rest: {}; {}; {:?}; target newest {:?}, jobs {} and {}, {} requests",
            self.standby.process.as_ref().map(|p| p.target.activity()).unwrap_or_default(),
            self.primary.process.as_ref().map(|p| p.source.activity()).unwrap_or_default(),
            self.primary.process.as_ref().map(|p| p.source.status()),
            self.standby.newest(),
            self.primary.jobs(),
            self.standby.jobs(),
            self.primary.requests()
        );
        Err(Violation::new("rest", detail))
    }

    fn at_rest(&self) -> bool {
        let (Some(p), Some(t)) = (&self.primary.process, &self.standby.process) else { return false };
        let status = p.source.status();
        let sync = self.setup.config.mode == source::Mode::Async || status.in_sync;
        status.streaming
            && sync
            && p.source.is_clean()
            && self.primary.requests() == 0
            && t.target.newest().is_some_and(|c| c.position == p.source.position())
            && t.target.durable() == t.target.newest()
    }

    fn check_rest(&mut self) -> Result<(), Violation> {
        self.check()?;
        let Some(p) = &self.primary.process else { return Ok(()) };
        let image = read_image(&p.volumes)
            .map_err(|e| Violation::new("rest", format!("the primary cannot be read: {e}")))?;
        if image != *self.history.now() {
            return Err(Violation::new("G4", "the primary's disk is not what its order says".into()));
        }
        Ok(())
    }
}

fn encode(frame: Frame, lz4: bool) -> bytes::Bytes {
    let squeeze = |content: Content| match content {
        Content::Data(p) if lz4 => Content::Data(codec::encode(Codec::Lz4, &p.encoded, p.checksum)),
        other => other,
    };
    let frame = match frame {
        Frame::Record(r) => Frame::Record(Record { content: squeeze(r.content), ..r }),
        Frame::Block(b) => Frame::Block(Block { content: squeeze(b.content), ..b }),
        other => other,
    };
    frame.to_bytes()
}

fn brief(frame: &Frame) -> String {
    let range = |r: &ByteRange| format!("{}:{}+{}", r.volume, r.offset, r.length);
    match frame {
        Frame::Record(r) => format!("record {} {}", r.position.sequence, range(&r.range)),
        Frame::Block(b) => {
            format!(
                "block {} of epoch {} {} read at {} after {}",
                b.frame,
                b.epoch,
                range(&b.range),
                b.read_at,
                b.after
            )
        }
        Frame::Compare(c) => format!("compare {} of epoch {} {}", c.frame, c.epoch, range(&c.range)),
        other => format!("{other:?}"),
    }
}
