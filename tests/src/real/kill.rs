//! Rounds of `kill -9` under load: the agent of the primary, the receiver of the standby, or both, at random moments.
//!
//! After the rounds the primary is lost in the middle of its writes. The promoted image must be one that the history
//! of the writes allows; in sync mode it must hold every acknowledged write; and what is written after that stays.

use std::collections::BTreeSet;
use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::{Blocks, History, Pair, PairOptions, Prefix, Side, Writer, WriterOptions, check_prefix};
use crate::sim::Rng;

/// Longest wait for anything that has to happen some day.
const LIMIT: Duration = Duration::from_secs(60);
const VOLUMES: [&str; 2] = ["data", "log"];
const VOLUME_BYTES: u64 = 16 << 20;
/// Longest time between two kills, and between a kill and the restart.
const LONGEST_LIFE: Duration = Duration::from_millis(400);
const LONGEST_DEATH: Duration = Duration::from_millis(200);
/// Chance that the pair comes to rest before the next kill; otherwise that meets a catch-up.
const REST_CHANCE: f64 = 0.3;
/// Writes that the promoted host has to take.
const AFTERWARDS: usize = 100;

/// What the rounds did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Kills of the agent alone, of the receiver alone, and of both.
    pub kills: [u32; 3],
    /// Writes that were issued until the primary was lost.
    pub writes: usize,
    /// How many of them were acknowledged.
    pub acknowledged: usize,
    /// How many of the acknowledged writes the promoted image cannot hold. A sync group that is in sync loses none.
    pub lost: usize,
}

impl Summary {
    /// Adds what other rounds did.
    pub fn add(&mut self, other: &Self) {
        self.kills.iter_mut().zip(other.kills).for_each(|(kills, more)| *kills += more);
        self.writes += other.writes;
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [agent, receiver, both] = self.kills;
        write!(
            f,
            "killed agent {agent}, receiver {receiver}, both {both}; {} writes, {} acknowledged, {} lost",
            self.writes, self.acknowledged, self.lost
        )
    }
}

/// Runs `rounds` rounds with a pair of their own. `seed` decides what is killed and when, though not what the
/// programs are doing at that moment.
pub fn kill_rounds(rounds: u32, seed: u64, sync: bool) -> Result<Summary> {
    let mut rng = Rng::new(seed);
    // Where the loss of the link blocks, no write is ever acknowledged that the standby lacks.
    let block = sync && rng.coin();
    let mut options = PairOptions::default();
    for volume in VOLUMES {
        options = options.volume(volume, VOLUME_BYTES);
    }
    if sync {
        options = options.sync().set("sync_timeout", "2s");
        options = options.set("on_link_loss", if block { "block" } else { "degrade" });
    }
    let pair = Pair::start(options)?;
    let mut run = Run {
        pair,
        rng,
        sync,
        block,
        writer: None,
        history: History::new(seed),
        summary: Summary::default(),
    };
    run.rest()?;
    for round in 0..rounds {
        run.round().with_context(|| format!("round {round}"))?;
    }
    run.lose_primary()?;
    Ok(run.summary)
}

struct Run {
    // Before the pair, so that it stops before its servers are gone.
    writer: Option<Writer>,
    pair: Pair,
    rng: Rng,
    sync: bool,
    block: bool,
    /// What the writer goes on with; the writer has it while there is one.
    history: History,
    summary: Summary,
}

impl Run {
    fn round(&mut self) -> Result<()> {
        self.write_on(Side::Alpha);
        self.sleep_below(LONGEST_LIFE);
        let victim = self.rng.index(3);
        self.summary.kills[victim] += 1;
        let (agent, receiver) = (victim != 1, victim != 0);
        if receiver && let Some(mut process) = self.pair.host_mut(Side::Beta).receiver.take() {
            process.kill()?;
        }
        if agent {
            if let Some(mut process) = self.pair.host_mut(Side::Alpha).agent.take() {
                process.kill()?;
            }
            self.stop_writing();
            self.history.server_restarted();
        }
        self.sleep_below(LONGEST_DEATH);
        let agent_first = self.rng.coin();
        if agent && agent_first {
            self.pair.start_agent(Side::Alpha)?;
        }
        if receiver {
            self.pair.start_receiver(Side::Beta)?;
        }
        if agent && !agent_first {
            self.pair.start_agent(Side::Alpha)?;
        }
        if self.rng.chance(REST_CHANCE) {
            self.rest()?;
        }
        self.pair.check_disk()
    }

    /// Loses the primary under load, promotes the standby and checks its image, twice.
    fn lose_primary(&mut self) -> Result<()> {
        self.write_on(Side::Alpha);
        let acknowledged = self.history().acknowledged().len();
        if let Some(writer) = &self.writer {
            writer
                .wait_acknowledged(acknowledged + 50, LIMIT)
                .map_err(|error| anyhow!("{error}\n{}", self.pair.logs()))?;
        }
        self.sleep_below(LONGEST_LIFE);
        let safe = self.safe()?;
        self.pair.host_mut(Side::Alpha).kill()?;
        self.stop_writing();
        self.pair.promote(Side::Beta).with_context(|| self.pair.logs())?;
        self.history.server_replaced();
        let acknowledged = self.history.acknowledged();
        // Where the loss of the link blocks, that holds at any moment, and not only when the status says so.
        let must_contain = if self.block { acknowledged.clone() } else { safe };
        let smallest = self.check(&must_contain).context("the promoted image")?;
        // A write that nothing shows, since another one covers it, is no loss if the image can hold it.
        let prefix = self.check(&acknowledged).unwrap_or(smallest);
        self.summary.writes = self.history.writes().len();
        self.summary.acknowledged = acknowledged.len();
        self.summary.lost = acknowledged.difference(&prefix.writes).count();
        // The group was in sync a moment ago, and clients wait for the standby for longer than that moment.
        if self.sync && self.summary.lost > 0 {
            bail!("{} acknowledged writes are lost in sync mode\n{}", self.summary.lost, self.pair.logs());
        }

        self.history.give_up_all_but(&prefix.writes);
        self.write_on(Side::Beta);
        let acknowledged = self.history().acknowledged().len();
        if let Some(writer) = &self.writer {
            writer
                .wait_acknowledged(acknowledged + AFTERWARDS, LIMIT)
                .map_err(|error| anyhow!("after the promotion: {error}\n{}", self.pair.logs()))?;
        }
        self.stop_writing();
        let must_contain = self.history.acknowledged();
        self.check(&must_contain).context("the image after writing on")?;
        self.pair.check_disk()
    }

    fn check(&self, must_contain: &BTreeSet<u64>) -> Result<Prefix> {
        let connect = |volume| self.pair.connect(Side::Beta, volume, LIMIT);
        let [mut data, mut log] = [connect(VOLUMES[0])?, connect(VOLUMES[1])?];
        let mut images: [&mut dyn Blocks; 2] = [&mut data, &mut log];
        let prefix = check_prefix(&mut images, &self.history, must_contain);
        prefix.map_err(|error| anyhow!("{error}\n{}", self.pair.logs()))
    }

    /// What the standby is sure to have: the writes that were acknowledged before the status said "in sync".
    fn safe(&self) -> Result<BTreeSet<u64>> {
        if !self.sync || self.block {
            return Ok(BTreeSet::new());
        }
        let started = Instant::now();
        loop {
            let acknowledged = self.history().acknowledged();
            let seen = self.pair.wait_protection(Side::Alpha, "in_sync", Duration::ZERO);
            if seen.is_ok() || started.elapsed() > LIMIT {
                return seen.map(|_| acknowledged);
            }
        }
    }

    /// Waits until the standby follows; in sync mode, until the group is in sync.
    fn rest(&self) -> Result<()> {
        let protection = if self.sync { "in_sync" } else { "async_streaming" };
        self.pair.wait_protection(Side::Alpha, protection, LIMIT).map(drop)
    }

    fn history(&self) -> History {
        self.writer.as_ref().map_or_else(|| self.history.clone(), Writer::history)
    }

    /// Starts to write unless somebody does.
    fn write_on(&mut self, side: Side) {
        if self.writer.is_none() {
            let history = std::mem::replace(&mut self.history, History::new(0));
            let options = WriterOptions {
                seed: self.rng.next_u64(),
                in_flight: self.rng.between(1, 16) as usize,
                // Less than what the standby takes: a group that writes more on its own is never in sync again.
                pace: Duration::from_micros(self.rng.between(500, 3000)),
                blocks: 1024,
                ..WriterOptions::default()
            };
            let connect = self.pair.connector(side);
            self.writer = Some(Writer::start(history, VOLUMES.len() as u32, &options, connect));
        }
    }

    fn stop_writing(&mut self) {
        if let Some(writer) = self.writer.take() {
            // How the lanes ended is no matter: their server was killed.
            (self.history, _) = writer.stop();
        }
    }

    fn sleep_below(&mut self, longest: Duration) {
        sleep(Duration::from_micros(self.rng.below(longest.as_micros() as u64)));
    }
}
