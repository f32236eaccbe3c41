//! Bytes on the wire for each byte written: a pair of hosts, a file system of the kernel's on the volume, and something that
//! writes to it.
//!
//! `attached` mounts the export, `load` writes. What is counted comes from the agent's status and from the kernel's count of
//! what was written to the loop device; for each setting of `compression` everything is set up anew.

mod attached;
mod load;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use self::{
    attached::Attached,
    load::{Load, Work},
};
use crate::{
    compare::default_save_dir,
    contender::{Bed, Running},
    cpu, image, ours,
    report::table::{headings, markdown},
    wait::Interrupt,
};

const VOLUME_BYTES: u64 = 2 << 30;

/// A setting of `compression` in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Setting {
    None,
    Lz4,
    Zstd,
    Auto,
}

impl Setting {
    const ALL: [Self; 4] = [Self::None, Self::Lz4, Self::Zstd, Self::Auto];

    fn key(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Auto => "auto",
        }
    }
}

/// Needs root, nbdfuse, PostgreSQL with pgbench for one of the loads, and 5 GiB of disk. Only the loopback is used: to
/// `auto` it is a very fast link.
#[derive(Args)]
pub struct Options {
    /// pgbench for 15 s, 64 MiB of files, unless told otherwise
    #[arg(long)]
    quick: bool,
    /// Only these settings
    #[arg(long, value_name = "SETTING", value_delimiter = ',')]
    compression: Vec<Setting>,
    /// Only this load; may be given several times
    #[arg(long, value_name = "LOAD")]
    load: Vec<Load>,
    /// Seconds of each load that does not end by itself [default: 60, quick: 15]
    #[arg(long)]
    seconds: Option<u32>,
    /// Where the volumes are made, and removed again [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the results are saved [default: bench-results beside this program]
    #[arg(long)]
    save: Option<PathBuf>,
}

/// What one run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    load: &'static str,
    compression: Setting,
    seconds: f64,
    /// Written to the file system's device.
    written_bytes: u64,
    /// Written to QUIC streams for it.
    stream_bytes: u64,
    /// UDP payload that carried it.
    packet_bytes: u64,
    /// What the standby made of it: each write by itself with LZ4, if it came coded.
    stored_bytes: u64,
    coding_seconds: f64,
    agent_cpu_seconds: f64,
    receiver_cpu_seconds: f64,
    /// What the load says of itself.
    note: String,
}

impl Outcome {
    fn per_written(&self, bytes: u64) -> f64 {
        bytes as f64 / self.written_bytes.max(1) as f64
    }

    fn per_gib(&self, seconds: f64) -> f64 {
        seconds / (self.written_bytes.max(1) as f64 / f64::from(1 << 30))
    }
}

/// What it needs that is not of this product, and the packages that have it.
pub const PROGRAMS: [(&str, &str); 5] = [
    ("nbdfuse", "libnbd-bin"),
    ("losetup", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("pgbench", "postgresql"),
    ("initdb", "postgresql, and put its programs on the PATH"),
];

/// Runs the loads with each setting, prints and saves what came of it.
pub fn run(options: &Options) -> Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let base = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let loads: &[Load] = if options.load.is_empty() { &Load::ALL } else { &options.load };
    let settings: &[Setting] =
        if options.compression.is_empty() { &Setting::ALL } else { &options.compression };
    let seconds = options.seconds.unwrap_or(if options.quick { 15 } else { 60 });
    let work = Work { seconds, files_bytes: if options.quick { 64 << 20 } else { 256 << 20 } };
    let outcomes = measure_all(loads, settings, &work, &base, &interrupt)?;
    let table = markdown(&rows(&outcomes));
    println!("{table}");
    let save = options.save.clone().map_or_else(default_save_dir, Ok)?;
    std::fs::create_dir_all(&save).with_context(|| format!("make {}", save.display()))?;
    let write = |name: &str, text: String| {
        let path = save.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("wire.md", table)?;
    write("wire.json", serde_json::to_string_pretty(&outcomes).context("write the results as JSON")?)?;
    println!("saved in {}", save.display());
    Ok(ExitCode::SUCCESS)
}

/// Both loads as the goals ask, the files in a short form.
pub fn measure_shortly(seconds: u32, base: &Path, interrupt: &Interrupt) -> Result<Vec<Outcome>> {
    let work = Work { seconds, files_bytes: 64 << 20 };
    measure_all(&Load::ALL, &[Setting::Lz4, Setting::Zstd], &work, base, interrupt)
}

/// Bytes on streams for each byte written, of one load with one setting.
pub fn sent_per_written(outcomes: &[Outcome], load: &str, compression: &str) -> Option<f64> {
    let found = outcomes.iter().find(|o| o.load == load && o.compression.key() == compression)?;
    Some(found.per_written(found.stream_bytes))
}

/// Bytes on streams against those of the same writes if each is coded by itself with LZ4, of one load with one setting.
pub fn sent_per_stored(outcomes: &[Outcome], load: &str, compression: &str) -> Option<f64> {
    let found = outcomes.iter().find(|o| o.load == load && o.compression.key() == compression)?;
    Some(found.stream_bytes as f64 / found.stored_bytes.max(1) as f64)
}

fn measure_all(
    loads: &[Load],
    settings: &[Setting],
    work: &Work,
    base: &Path,
    interrupt: &Interrupt,
) -> Result<Vec<Outcome>> {
    ensure!(rustix::process::geteuid().is_root(), "loop devices and mounts belong to root: run this as root");
    ours::build_if_missing()?;
    let mut outcomes = Vec::new();
    for &load in loads {
        for &setting in settings {
            let dir = tempfile::Builder::new()
                .prefix("bench-wire-")
                .tempdir_in(base)
                .with_context(|| format!("make a directory in {}", base.display()))?;
            eprint!("{} {}: ", load.name(), setting.key());
            let outcome = measure(load, setting, work, dir.path(), interrupt)
                .with_context(|| format!("{}, {}", load.name(), setting.key()))?;
            eprintln!("{:.4}", outcome.per_written(outcome.stream_bytes));
            outcomes.push(outcome);
        }
    }
    Ok(outcomes)
}

fn measure(load: Load, setting: Setting, work: &Work, dir: &Path, interrupt: &Interrupt) -> Result<Outcome> {
    let settings = format!("compression = \"{}\"\n", setting.key());
    let bed = Bed { dir, copies: dir, volume_bytes: VOLUME_BYTES, settings: &settings, interrupt };
    image::create_empty(&bed.volume(), VOLUME_BYTES)?;
    let mut pair = ours::start_pair(&bed, ours::Mode::Async)?;
    let (socket, export) = pair.export();
    let mut attached = Attached::mount(&socket, export, dir, interrupt)?;
    let mut running = load.prepare(attached.directory(), dir, interrupt)?;
    attached.sync(interrupt)?;
    pair.drain(interrupt)?;
    // The count of packets is a second old.
    std::thread::sleep(Duration::from_secs(2));

    let sent = pair.compression()?;
    let received = pair.received_bytes()?;
    let cpus = pair.busy()?.map(cpu::of_process);
    let written = attached.written_bytes()?;
    let began = Instant::now();
    let note = running.run(work, interrupt)?;
    attached.sync(interrupt)?;
    let seconds = began.elapsed().as_secs_f64();
    pair.drain(interrupt)?;
    let written_bytes = attached.written_bytes()? - written;
    let [agent, receiver] = pair.busy()?.map(cpu::of_process);
    let [agent_before, receiver_before] = cpus;
    std::thread::sleep(Duration::from_secs(2));
    let now = pair.compression()?;
    let stored_bytes = pair.received_bytes()? - received;
    running.stop(interrupt)?;
    attached.unmount(interrupt)?;
    pair.drain(interrupt)?;
    Box::new(pair).stop(interrupt)?;
    let differs = image::first_difference(&bed.volume(), &bed.copy())?;
    ensure!(differs.is_none(), "the copy differs from byte {} on", differs.unwrap_or_default());
    Ok(Outcome {
        load: load.name(),
        compression: setting,
        seconds,
        written_bytes,
        stream_bytes: now.wire_bytes - sent.wire_bytes,
        packet_bytes: now.packet_bytes - sent.packet_bytes,
        stored_bytes,
        coding_seconds: (now.coding_us - sent.coding_us) as f64 / 1e6,
        agent_cpu_seconds: agent? - agent_before?,
        receiver_cpu_seconds: receiver? - receiver_before?,
        note,
    })
}

/// The table, its headings first.
pub fn rows(outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let names = [
        "load",
        "compression",
        "MiB written",
        "stream",
        "packets",
        "stored, each by itself",
        "coding s/GiB",
        "agent CPU s/GiB",
        "receiver CPU s/GiB",
        "",
    ];
    let row = |o: &Outcome| {
        vec![
            o.load.to_owned(),
            o.compression.key().to_owned(),
            (o.written_bytes >> 20).to_string(),
            format!("{:.4}", o.per_written(o.stream_bytes)),
            format!("{:.4}", o.per_written(o.packet_bytes)),
            format!("{:.4}", o.per_written(o.stored_bytes)),
            format!("{:.2}", o.per_gib(o.coding_seconds)),
            format!("{:.2}", o.per_gib(o.agent_cpu_seconds)),
            format!("{:.2}", o.per_gib(o.receiver_cpu_seconds)),
            o.note.clone(),
        ]
    };
    std::iter::once(headings(names)).chain(outcomes.iter().map(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_was_sent_for_each_byte() {
        let outcome = Outcome {
            load: "pgbench",
            compression: Setting::Zstd,
            seconds: 60.0,
            written_bytes: 1 << 30,
            stream_bytes: 45 << 20,
            packet_bytes: 50 << 20,
            stored_bytes: 200 << 20,
            coding_seconds: 0.8,
            agent_cpu_seconds: 3.0,
            receiver_cpu_seconds: 2.0,
            note: "1900 tps".to_owned(),
        };
        let text = markdown(&rows(&[outcome]));
        let row = "| pgbench | zstd | 1024 | 0.0439 | 0.0488 | 0.1953 | 0.80 | 3.00 | 2.00 | 1900 tps |";
        assert!(text.lines().any(|line| line == row), "{text}");
    }
}
