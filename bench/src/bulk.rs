//! How fast bytes go the whole way (read, frame, journal) beside what the bare transport carries in the same run.
//!
//! The pair's first sync reads the volume and writes the copy where it belongs; its catch-up, after the whole volume was
//! written while the link was cut, goes through the journal. The reference is quinn as it comes, without disks.

pub mod bare;

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};

use self::bare::Packets;
use crate::{
    bare::disk,
    contender::{Bed, Running},
    cpu, fio, image,
    ours::{self, Mode, Place},
    trials::{Trial, Trials},
    wait::Interrupt,
    wan::create_noise,
};

/// The one case, in the outcome.
pub const CASE: &str = "bulk";
/// Bare streams.
pub const QUINN: &str = "quinn";
/// The same with packets as large as this product's.
pub const QUINN_LARGE: &str = "quinn, packets as ours";
/// From disk to disk, with no line between.
pub const DISK: &str = "disk to disk";
/// Of a new copy.
pub const FIRST_SYNC: &str = "pair, first sync";
/// Through the journal.
pub const CATCH_UP: &str = "pair, catch-up";

/// `rounds` of each, with `bytes` bytes that do not compress.
pub fn measure(bytes: u64, rounds: u32, base: &Path, interrupt: &Interrupt) -> Result<Trials> {
    ours::build_if_missing()?;
    let mut trials = Trials::new(rounds, 0)?;
    for round in 1..=rounds {
        let own = tempfile::Builder::new().prefix("bulk-").tempdir_in(base).context("make a directory")?;
        let bed = Bed { dir: own.path(), copies: own.path(), volume_bytes: bytes, settings: "", interrupt };
        create_noise(&bed.volume(), bytes)?;
        image::create_empty(&bed.copy(), bytes)?;
        let mut add = |contender, watch: Watch| {
            let trial = watch.trial(CASE, contender, round, bytes)?;
            let cores = trial.core_ms_per_mib.unwrap_or_default();
            eprintln!("  bulk round {round}, {contender}: {:.0} MiB/s, {cores:.2} core-ms/MiB", trial.value);
            trials.add(trial);
            anyhow::Ok(())
        };

        for (contender, packets) in [(QUINN, Packets::Usual), (QUINN_LARGE, Packets::AsOurs)] {
            let transfer = bare::Transfer::prepare(packets)?;
            let watch = Watch::start(Vec::new())?;
            transfer.run(bytes)?;
            add(contender, watch)?;
        }

        let other = own.path().join("other.img");
        image::create_empty(&other, bytes)?;
        let watch = Watch::start(Vec::new())?;
        disk::copy(&bed.volume(), &other, bytes)?;
        add(DISK, watch)?;
        std::fs::remove_file(&other).context("remove a copy")?;

        let places = [Place::LOOPBACK, Place::LOOPBACK];
        let mut pair = ours::prepare_pair(&bed, Mode::Async, places, [&bed.volume(), &bed.copy()])?;
        pair.start_standby(interrupt)?;
        let others = pair.servers().iter().map(|server| server.pid).collect();
        let mut watch = Watch::start(others)?;
        pair.spawn_agent()?;
        pair.wait_first_sync(interrupt)?;
        pair.wait_durable(interrupt)?;
        watch.joined_by(pair.busy()?[0]);
        add(FIRST_SYNC, watch)?;

        pair.drain(interrupt)?;
        pair.cut()?;
        fio::overwrite(&pair.uri(), bytes, own.path(), interrupt)?;
        let watch = Watch::start(pair.servers().iter().map(|server| server.pid).collect())?;
        pair.heal()?;
        pair.wait_durable(interrupt)?;
        add(CATCH_UP, watch)?;
        pair.drain(interrupt)?;
        Box::new(pair).stop(interrupt)?;
        let difference = image::first_difference(&bed.volume(), &bed.copy())?;
        ensure!(difference.is_none(), "the copy differs at byte {difference:?}");
    }
    Ok(trials)
}

/// Time, and processor time of some processes and of this one.
pub struct Watch {
    start: Instant,
    machine: f64,
    own: f64,
    servers: Vec<(rustix::process::Pid, f64)>,
    counts_own: bool,
}

impl Watch {
    /// Begins to count.
    pub fn start(servers: Vec<rustix::process::Pid>) -> Result<Self> {
        let counts_own = servers.is_empty();
        let servers =
            servers.into_iter().map(|pid| Ok((pid, cpu::of_process(pid)?))).collect::<Result<_>>()?;
        Ok(Self {
            start: Instant::now(),
            machine: cpu::of_machine()?,
            own: cpu::of_self()?,
            servers,
            counts_own,
        })
    }

    /// Counts one more, from its start.
    pub fn joined_by(&mut self, pid: rustix::process::Pid) {
        self.servers.push((pid, 0.0));
    }

    /// Counts this process and what it waits for, too, which is only so without servers.
    pub fn with_own(&mut self) {
        self.counts_own = true;
    }

    /// Processors that were busy since it began, with everything.
    pub fn busy_cpus(&self) -> Result<f64> {
        Ok((cpu::of_machine()? - self.machine) / self.seconds())
    }

    /// Seconds since it began.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// MiB per second of `bytes` bytes, as a trial.
    pub fn trial(self, case: &str, contender: &'static str, round: u32, bytes: u64) -> Result<Trial> {
        let seconds = self.seconds();
        let mib = bytes as f64 / f64::from(1 << 20);
        let mut used = 0.0;
        for (pid, before) in &self.servers {
            used += cpu::of_process(*pid)? - before;
        }
        if self.counts_own {
            used += cpu::of_self()? - self.own;
        }
        let busy = self.busy_cpus()?;
        let mut trial = Trial::new(case.to_owned(), contender, round, mib / seconds, "MiB/s", busy);
        trial.core_ms_per_mib = Some(used * 1000.0 / mib);
        Ok(trial)
    }
}
