//! A match: fresh files, the contenders started, turns of the client on each in alternation, and a look at the copies.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;
use tempfile::TempDir;

use crate::{
    case::Case,
    contender::{Bed, Contender, Drained, Running, ServerProcess, Side},
    cpu, fio, image, memory,
    wait::Interrupt,
};

const GIB: f64 = (1u64 << 30) as f64;

/// What stays the same for all measurements.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Size of the volume.
    pub volume_bytes: u64,
    /// How long the client writes in a turn.
    pub turn_time: Duration,
    /// Turns of each contender while it runs.
    pub turns: u32,
    /// How often everything is started anew.
    pub rounds: u32,
    /// Where the copies are, if not beside the volumes.
    pub copies: Option<PathBuf>,
}

/// Where a turn belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// [`Case::name`].
    pub case: &'static str,
    /// Who took turns: [`crate::contender::Match::name`].
    #[serde(rename = "match")]
    pub group: &'static str,
    /// From 1: everything is started anew in each.
    pub round: u32,
}

/// What one turn showed.
#[derive(Clone, Debug, Serialize)]
pub struct Turn {
    /// [`Contender::name`].
    pub contender: &'static str,
    /// Where it belongs.
    #[serde(flatten)]
    pub place: Place,
    /// From 1, in its place.
    pub turn: u32,
    /// What the client saw.
    pub client: fio::Outcome,
    /// What the servers took, until the copy was complete.
    pub servers: Vec<ServerUse>,
    /// Processors kept busy by others meanwhile, on average. Work of the kernel that belongs to no process,
    /// such as interrupts, is in here.
    pub others_cpus: f64,
    /// How far the copy was behind.
    pub drained: Drained,
}

/// What one process took.
#[derive(Clone, Debug, Serialize)]
pub struct ServerUse {
    /// [`ServerProcess::name`].
    pub name: &'static str,
    /// At which end it is.
    pub side: Side,
    /// Processor seconds in this turn.
    pub cpu_seconds: f64,
    /// The most memory it has had since it was started.
    pub peak_memory_bytes: u64,
}

/// What a contender came to from start to end.
#[derive(Clone, Debug, Serialize)]
pub struct Life {
    /// [`Contender::name`].
    pub contender: &'static str,
    /// Where it belongs.
    #[serde(flatten)]
    pub place: Place,
    /// Bytes written in all turns.
    pub written_bytes: u64,
    /// Bytes sent to the copy for them.
    pub sent_bytes: Option<u64>,
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

impl Turn {
    /// Processor seconds for each GiB written, of the servers at one end or at both.
    pub fn cpu_per_gib(&self, side: Option<Side>) -> f64 {
        let at_side = |server: &&ServerUse| side.is_none_or(|side| server.side == side);
        let seconds: f64 = self.servers.iter().filter(at_side).map(|server| server.cpu_seconds).sum();
        seconds / (self.client.written_bytes as f64 / GIB)
    }

    /// The most memory that the servers at one end have had, in bytes.
    pub fn peak_memory_bytes(&self, side: Side) -> u64 {
        let at_side = self.servers.iter().filter(|server| server.side == side);
        at_side.map(|server| server.peak_memory_bytes).sum()
    }
}

/// What a match came to.
pub struct Outcome {
    /// In the order they were taken.
    pub turns: Vec<Turn>,
    /// One for each contender.
    pub lives: Vec<Life>,
}

/// Directories below `dir`, one for each contender.
fn numbered(dir: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let directories: Vec<PathBuf> = (0..count).map(|n| dir.join(n.to_string())).collect();
    for directory in &directories {
        fs::create_dir(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    Ok(directories)
}

/// Starts all `contenders` in directories below `dir`, and lets them take turns.
pub fn take(
    contenders: &[Contender],
    case: Case,
    place: Place,
    settings: &Settings,
    dir: &Path,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    // Short, because the path of a Unix socket has at most 107 bytes.
    let own =
        tempfile::Builder::new().prefix("m").tempdir_in(dir).context("make a directory for the match")?;
    let elsewhere = match &settings.copies {
        Some(copies) => {
            Some(TempDir::with_prefix_in("bench-", copies).context("make a directory for the copies")?)
        }
        None => None,
    };
    let directories = numbered(own.path(), contenders.len())?;
    let copies = match &elsewhere {
        Some(elsewhere) => numbered(elsewhere.path(), contenders.len())?,
        None => directories.clone(),
    };
    let beds: Vec<Bed<'_>> = directories
        .iter()
        .zip(&copies)
        .map(|(dir, copies)| Bed {
            dir,
            copies,
            volume_bytes: settings.volume_bytes,
            settings: "",
            interrupt,
        })
        .collect();
    let mut players = Vec::new();
    for (contender, bed) in contenders.iter().zip(&beds) {
        players.push(
            Player::start(*contender, bed, place).with_context(|| format!("start {}", contender.name()))?,
        );
    }
    let mut turns = Vec::new();
    for turn in 1..=settings.turns {
        for player in &mut players {
            let name = player.contender.name();
            let taken = player.turn(case, turn, settings, interrupt).with_context(|| name.to_owned())?;
            eprintln!(
                "  {} round {} turn {turn}, {name}: {:.0} writes/s, others {:.2} CPUs",
                case.name(),
                place.round,
                taken.client.writes_per_second,
                taken.others_cpus
            );
            turns.push(taken);
        }
    }
    let lives = players.into_iter().map(|player| player.end(interrupt)).collect::<Result<_>>()?;
    Ok(Outcome { turns, lives })
}

/// A contender that runs.
struct Player<'a> {
    contender: Contender,
    bed: &'a Bed<'a>,
    place: Place,
    running: Box<dyn Running>,
    sent_before: Option<u64>,
    written_bytes: u64,
}

impl<'a> Player<'a> {
    fn start(contender: Contender, bed: &'a Bed<'a>, place: Place) -> Result<Self> {
        image::create(&bed.volume(), bed.volume_bytes)?;
        let mut running = contender.start(bed)?;
        running.drain(bed.interrupt)?;
        let sent_before = running.sent_bytes(bed.interrupt)?;
        Ok(Self { contender, bed, place, running, sent_before, written_bytes: 0 })
    }

    fn turn(&mut self, case: Case, turn: u32, settings: &Settings, interrupt: &Interrupt) -> Result<Turn> {
        let servers = self.running.servers();
        let before = Usage::now(&servers)?;
        let seed = self.place.round * settings.turns + turn;
        let client = fio::run(
            case,
            &self.running.uri(),
            settings.volume_bytes,
            settings.turn_time,
            seed,
            self.bed.dir,
            interrupt,
        )?;
        let drained = self.running.drain(interrupt)?;
        let used = Usage::now(&servers)?.since(&before);
        self.written_bytes += client.written_bytes;
        self.settle()?;
        Ok(Turn {
            contender: self.contender.name(),
            place: self.place,
            turn,
            // Client and servers are children of this process, but counted in it only once they were waited for:
            // the client has been, the servers have not.
            others_cpus: (used.machine - used.servers.iter().sum::<f64>() - used.own).max(0.0)
                / used.elapsed.as_secs_f64(),
            servers: servers
                .iter()
                .zip(used.servers)
                .map(|(server, cpu_seconds)| {
                    let peak_memory_bytes = memory::peak_of_process(server.pid)?;
                    Ok(ServerUse { name: server.name, side: server.side, cpu_seconds, peak_memory_bytes })
                })
                .collect::<Result<_>>()?,
            client,
            drained,
        })
    }

    /// What is still in the page cache is not to be written while the next one has its turn.
    fn settle(&self) -> Result<()> {
        let mut files = vec![self.bed.volume()];
        if self.contender.has_copy() {
            files.push(self.bed.copy());
        }
        for path in files {
            let file = File::open(&path).and_then(|file| file.sync_all());
            file.with_context(|| format!("sync {}", path.display()))?;
        }
        Ok(())
    }

    fn end(mut self, interrupt: &Interrupt) -> Result<Life> {
        let sent = self.running.sent_bytes(interrupt)?;
        self.running.stop(interrupt)?;
        let copy = if self.contender.has_copy() { compare(self.bed)? } else { Copy::None };
        fs::remove_dir_all(self.bed.dir).context("remove the directory of a contender")?;
        if self.bed.copies != self.bed.dir {
            fs::remove_dir_all(self.bed.copies).context("remove the copy of a contender")?;
        }
        Ok(Life {
            contender: self.contender.name(),
            place: self.place,
            written_bytes: self.written_bytes,
            sent_bytes: sent.zip(self.sent_before).map(|(after, before)| after - before),
            copy,
        })
    }
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
    servers: Vec<f64>,
    own: f64,
}

struct Used {
    elapsed: Duration,
    machine: f64,
    servers: Vec<f64>,
    own: f64,
}

impl Usage {
    fn now(servers: &[ServerProcess]) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            machine: cpu::of_machine()?,
            servers: servers.iter().map(|server| cpu::of_process(server.pid)).collect::<Result<_>>()?,
            own: cpu::of_self()?,
        })
    }

    fn since(&self, before: &Self) -> Used {
        Used {
            elapsed: self.at - before.at,
            machine: self.machine - before.machine,
            servers: self.servers.iter().zip(&before.servers).map(|(now, before)| now - before).collect(),
            own: self.own - before.own,
        }
    }
}
