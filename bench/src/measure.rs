//! One measurement: fresh files, a fresh contender, one run of the client, and a look at the copy.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::Pid;
use serde::Serialize;

use crate::{
    case::Case,
    contender::{Bed, Contender, Drained},
    cpu, fio, image,
    wait::Interrupt,
};

/// What stays the same for all measurements.
pub struct Settings {
    /// Size of the volume.
    pub volume_bytes: u64,
    /// How long the client writes.
    pub run_time: Duration,
}

/// What one run showed.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// [`Contender::name`].
    pub contender: &'static str,
    /// [`Case::name`].
    pub case: &'static str,
    /// From 1.
    pub round: u32,
    /// What the client saw.
    pub client: fio::Outcome,
    /// Processor seconds of all servers, until the copy was complete.
    pub server_cpu_seconds: f64,
    /// Processors kept busy by others meanwhile, on average. Work of the kernel that belongs to no process,
    /// such as interrupts, is in here.
    pub others_cpus: f64,
    /// How far the copy was behind.
    pub drained: Drained,
    /// Whether the copy is one.
    pub copy: Copy,
}

/// What the comparison of all bytes said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Copy {
    /// There is none.
    None,
    /// Every byte is the same.
    Equal,
    /// The first byte that is not.
    DiffersAt(u64),
}

impl Measurement {
    /// Processor seconds of the servers for each GiB written.
    pub fn server_cpu_per_gib(&self) -> f64 {
        self.server_cpu_seconds / (self.client.written_bytes as f64 / (1u64 << 30) as f64)
    }
}

/// Takes one measurement in a directory of its own below `dir`.
pub fn take(
    contender: Contender,
    case: Case,
    round: u32,
    settings: &Settings,
    dir: &Path,
    interrupt: &Interrupt,
) -> Result<Measurement> {
    // Short, because the path of a Unix socket has at most 107 bytes.
    let own = tempfile::Builder::new().prefix("m").tempdir_in(dir).context("make a directory for the run")?;
    let bed = Bed { dir: own.path(), volume_bytes: settings.volume_bytes, settings: "", interrupt };
    image::create(&bed.volume(), settings.volume_bytes)?;
    let mut running = contender.start(&bed)?;

    let servers = running.servers();
    let before = Usage::now(&servers)?;
    let client = fio::run(
        case,
        &running.uri(),
        settings.volume_bytes,
        settings.run_time,
        round,
        own.path(),
        interrupt,
    )?;
    let drained = running.drain(interrupt)?;
    let used = Usage::now(&servers)?.since(&before);

    running.stop()?;
    let copy = if contender.has_copy() { compare(&bed)? } else { Copy::None };
    fs::remove_dir_all(own.path()).context("remove the directory of the run")?;
    Ok(Measurement {
        contender: contender.name(),
        case: case.name(),
        round,
        server_cpu_seconds: used.servers,
        // Client and servers are children of this process, but counted in it only once they were waited for:
        // the client has been, the servers have not.
        others_cpus: (used.machine - used.servers - used.own).max(0.0) / used.elapsed.as_secs_f64(),
        client,
        drained,
        copy,
    })
}

fn compare(bed: &Bed<'_>) -> Result<Copy> {
    Ok(match image::first_difference(&bed.volume(), &bed.copy())? {
        None => Copy::Equal,
        Some(offset) => Copy::DiffersAt(offset),
    })
}

/// Processor seconds used until a moment.
struct Usage {
    at: Instant,
    machine: f64,
    servers: f64,
    own: f64,
}

struct Used {
    elapsed: Duration,
    machine: f64,
    servers: f64,
    own: f64,
}

impl Usage {
    fn now(servers: &[Pid]) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            machine: cpu::of_machine()?,
            servers: servers.iter().map(|pid| cpu::of_process(*pid)).sum::<Result<f64>>()?,
            own: cpu::of_self()?,
        })
    }

    fn since(&self, before: &Self) -> Used {
        Used {
            elapsed: self.at - before.at,
            machine: self.machine - before.machine,
            servers: self.servers - before.servers,
            own: self.own - before.own,
        }
    }
}
