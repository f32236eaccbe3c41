//! What the size of a volume costs: a sparse one of 64 TiB beside one of 1 GiB.
//!
//! Two figures have goals: the time to find 1,000 dirty blocks, against that in 1 GiB; and what the agent has resident while
//! nothing happens. The rest is told beside them: how long it takes to open the volume, to copy it for the first time, to
//! mark blocks in it, and to be one again after either side was killed.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use afterimage_protocol::bitmap::Bitmap;
use afterimage_storage::{bitmap::open_bitmap, disk::RealDir};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
    process::Pid,
};
use serde::Serialize;

use crate::{
    compare::default_save_dir,
    contender::{Bed, Running},
    memory,
    ours::{self, Mode, Place},
    report::table::{headings, markdown},
    stats::median,
    wait::Interrupt,
};

const BLOCK_BYTES: u64 = 4096;
const SMALL_BYTES: u64 = 1 << 30;
const DIRTY: u64 = 1000;
const PIECE_BYTES: u64 = 16 << 20;
/// Passes over both bitmaps; each round begins with new dirty blocks.
const PASSES: usize = 101;
/// What a process takes is looked at when nothing has happened for this long.
const IDLE: Duration = Duration::from_secs(5);
/// A file system in memory, which knows larger files than most on a disk do.
const MEMORY_DIR: &str = "/dev/shm";

/// A sparse volume of 64 TiB with some data, two hosts, and what they take for it.
#[derive(Args)]
pub struct Options {
    /// Size of the volume in TiB
    #[arg(long, default_value_t = 64)]
    tib: u64,
    /// Data in the volume, in MiB, spread evenly in pieces of 16 MiB
    #[arg(long, default_value_t = 1024)]
    data_mib: u64,
    /// Rounds of the search for dirty blocks
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Where the volumes are made, and removed again; a file there has to be able to be that large [default: the system's
    /// temporary directory if that is so there, else /dev/shm]
    #[arg(long)]
    volumes: Option<PathBuf>,
    /// Where state and bitmaps are kept, and removed again [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the results are saved [default: bench-results beside this program]
    #[arg(long)]
    save: Option<PathBuf>,
}

/// Takes the figures, prints and saves them.
pub fn run(options: &Options) -> Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let outcome = measure(options, &interrupt)?;
    println!("{}", outcome.to_markdown());
    let save = options.save.clone().map_or_else(default_save_dir, Ok)?;
    outcome.save(&save)?;
    println!("saved in {}", save.display());
    Ok(ExitCode::SUCCESS)
}

/// A volume of 64 TiB with little in it.
pub fn measure_shortly(base: &Path, interrupt: &Interrupt) -> Result<Outcome> {
    let dir = Some(base.to_owned());
    measure(&Options { tib: 64, data_mib: 256, rounds: 5, volumes: None, dir, save: None }, interrupt)
}

fn measure(options: &Options, interrupt: &Interrupt) -> Result<Outcome> {
    ours::build_if_missing()?;
    let base = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = temporary(&base)?;
    let size_bytes = options.tib << 40;
    let volumes = match &options.volumes {
        Some(volumes) => temporary(volumes)?,
        None => roomy(&[base.clone(), MEMORY_DIR.into()], size_bytes)?,
    };
    let search = search(dir.path(), size_bytes, options.rounds, interrupt)?;
    let data_bytes = options.data_mib << 20;
    let mut outcome = Outcome { size_bytes, data_bytes, search, alone: vec![], pair: None, failure: None };
    match measure_pair(dir.path(), volumes.path(), &mut outcome, interrupt) {
        Ok(pair) => outcome.pair = Some(pair),
        Err(error) => {
            interrupt.check()?;
            outcome.failure = Some(format!("{error:#}"));
        }
    }
    Ok(outcome)
}

/// Everything that was measured.
#[derive(Serialize)]
pub struct Outcome {
    size_bytes: u64,
    data_bytes: u64,
    search: Search,
    /// What the agent has before its peer was ever there.
    alone: Vec<Resident>,
    pair: Option<PairOutcome>,
    /// Why there are no figures of the pair.
    failure: Option<String>,
}

/// Microseconds to find [`DIRTY`] blocks, the median of each round.
#[derive(Serialize)]
struct Search {
    small_us: Vec<f64>,
    large_us: Vec<f64>,
    ratio: f64,
    set_large_us: Vec<f64>,
}

#[derive(Serialize)]
struct PairOutcome {
    open_seconds: f64,
    first_sync_seconds: f64,
    idle: Vec<Resident>,
    mark_seconds: f64,
    after_marking: Vec<Resident>,
    standby_back_seconds: f64,
    agent_open_again_seconds: f64,
    agent_back_seconds: f64,
    after_all: Vec<Resident>,
}

/// What a process has in memory, in KiB.
#[derive(Clone, Serialize)]
struct Resident {
    process: String,
    rss_kib: u64,
    of_files_kib: u64,
    threads: u64,
}

fn search(dir: &Path, size_bytes: u64, rounds: u32, interrupt: &Interrupt) -> Result<Search> {
    let dir = RealDir::open(dir).context("open the directory")?;
    let open = |name: &str, bytes: u64| -> Result<Bitmap> {
        Ok(open_bitmap(&dir, name, bytes / BLOCK_BYTES, true).context("make a bitmap")?.bitmap)
    };
    let (mut small, mut large) = (open("small", SMALL_BYTES)?, open("large", size_bytes)?);
    let mut found = Search { small_us: vec![], large_us: vec![], ratio: 0.0, set_large_us: vec![] };
    let mut ratios = Vec::new();
    let mut random = 88_172_645_463_325_252;
    for _ in 0..rounds {
        interrupt.check()?;
        for bitmap in [&mut small, &mut large] {
            bitmap.clear(0, bitmap.blocks());
        }
        scatter(&mut small, &mut random);
        let start = Instant::now();
        scatter(&mut large, &mut random);
        found.set_large_us.push(start.elapsed().as_secs_f64() * 1e6);
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..PASSES {
            for (bitmap, times) in [&small, &large].into_iter().zip(&mut times) {
                times.push(time_of_search(bitmap)?);
            }
        }
        let [small_us, large_us] = times.map(|times| median(times).unwrap_or_default());
        ratios.push(large_us / small_us);
        found.small_us.push(small_us);
        found.large_us.push(large_us);
    }
    found.ratio = median(ratios).context("no round was asked for")?;
    Ok(found)
}

/// Sets [`DIRTY`] blocks, anywhere.
fn scatter(bitmap: &mut Bitmap, random: &mut u64) {
    while bitmap.dirty_blocks() < DIRTY {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        bitmap.set(*random % bitmap.blocks(), 1);
    }
}

fn time_of_search(bitmap: &Bitmap) -> Result<f64> {
    let start = Instant::now();
    let (mut from, mut found) = (0, 0);
    while let Some((first, count)) = bitmap.next_run(from, u64::MAX) {
        found += count;
        from = first + count;
    }
    let time = start.elapsed().as_secs_f64() * 1e6;
    ensure!(found == DIRTY, "{found} dirty blocks were found, not {DIRTY}");
    Ok(time)
}

fn measure_pair(
    dir: &Path,
    volumes: &Path,
    outcome: &mut Outcome,
    interrupt: &Interrupt,
) -> Result<PairOutcome> {
    let (size_bytes, data_bytes) = (outcome.size_bytes, outcome.data_bytes);
    let bed = Bed { dir, copies: dir, volume_bytes: size_bytes, settings: "", interrupt };
    let (volume, copy) = (volumes.join("volume.img"), volumes.join("copy.img"));
    fill(&volume, size_bytes, data_bytes)?;
    File::create(&copy)?.set_len(size_bytes)?;
    let mut pair =
        ours::prepare_pair(&bed, Mode::Async, [Place::LOOPBACK, Place::LOOPBACK], [&volume, &copy])?;
    let start = Instant::now();
    pair.start_agent(interrupt)?;
    let open_seconds = start.elapsed().as_secs_f64();
    outcome.alone = at_rest(&pair)?;
    let start = Instant::now();
    pair.start_standby(interrupt)?;
    pair.wait_first_sync(interrupt)?;
    let first_sync_seconds = start.elapsed().as_secs_f64();
    let idle = at_rest(&pair)?;
    let start = Instant::now();
    write_anywhere(&pair.uri(), size_bytes, 1)?;
    let mark_seconds = start.elapsed().as_secs_f64();
    pair.drain(interrupt)?;
    let after_marking = at_rest(&pair)?;

    pair.kill_standby();
    write_anywhere(&pair.uri(), size_bytes, 2)?;
    let start = Instant::now();
    pair.start_standby(interrupt)?;
    pair.drain(interrupt)?;
    let standby_back_seconds = start.elapsed().as_secs_f64();

    pair.kill_standby();
    write_anywhere(&pair.uri(), size_bytes, 3)?;
    pair.kill_agent();
    pair.start_standby(interrupt)?;
    let start = Instant::now();
    pair.start_agent(interrupt)?;
    let agent_open_again_seconds = start.elapsed().as_secs_f64();
    pair.wait_first_sync(interrupt)?;
    pair.drain(interrupt)?;
    let agent_back_seconds = start.elapsed().as_secs_f64();
    let after_all = at_rest(&pair)?;
    Box::new(pair).stop(interrupt)?;
    if let Some(offset) = first_difference(&volume, &copy)? {
        bail!("the copy differs at byte {offset}");
    }
    Ok(PairOutcome {
        open_seconds,
        first_sync_seconds,
        idle,
        mark_seconds,
        after_marking,
        standby_back_seconds,
        agent_open_again_seconds,
        agent_back_seconds,
        after_all,
    })
}

/// A sparse file with data in pieces that lie evenly in it.
fn fill(path: &Path, size_bytes: u64, data_bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(size_bytes).with_context(|| format!("make {} that large", path.display()))?;
    let mut random: u64 = 88_172_645_463_325_252;
    let mut piece = vec![0; PIECE_BYTES as usize];
    let pieces = data_bytes.div_ceil(PIECE_BYTES);
    for n in 0..pieces {
        for word in piece.chunks_exact_mut(8) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            word.copy_from_slice(&random.to_le_bytes());
        }
        let offset = size_bytes / pieces * n / BLOCK_BYTES * BLOCK_BYTES;
        file.write_all_at(&piece, offset).with_context(|| format!("write {}", path.display()))?;
    }
    file.sync_all().with_context(|| format!("sync {}", path.display()))
}

/// 1,000 writes of 4 KiB, anywhere in the volume.
fn write_anywhere(uri: &str, size_bytes: u64, seed: u32) -> Result<()> {
    let output = Command::new("fio")
        .args(["--name=mark", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--thread"])
        .args(["--norandommap", "--random_generator=tausworthe64", "--end_fsync=1"])
        .args([format!("--uri={uri}"), format!("--size={size_bytes}"), format!("--number_ios={DIRTY}")])
        .arg(format!("--randseed={seed}"))
        .stdin(Stdio::null())
        .output()
        .context("start fio")?;
    ensure!(output.status.success(), "fio failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn at_rest(pair: &ours::Pair) -> Result<Vec<Resident>> {
    std::thread::sleep(IDLE);
    pair.servers().into_iter().map(|server| resident(server.name, server.pid)).collect()
}

fn resident(name: &str, pid: Pid) -> Result<Resident> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = |key: &str| memory::field_kib(&text, key).with_context(|| format!("find {key} in {path}"));
    Ok(Resident {
        process: name.to_owned(),
        rss_kib: value("VmRSS")?,
        of_files_kib: value("RssFile")?,
        threads: value("Threads")?,
    })
}

/// Where two sparse files of one length differ first; holes of both are not read.
fn first_difference(left: &Path, right: &Path) -> Result<Option<u64>> {
    let open = |path: &Path| {
        OpenOptions::new().read(true).open(path).with_context(|| format!("open {}", path.display()))
    };
    let (left, right) = (open(left)?, open(right)?);
    let size = left.metadata()?.size();
    if size != right.metadata()?.size() {
        return Ok(Some(size.min(right.metadata()?.size())));
    }
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let next = [next_data(&left, at)?, next_data(&right, at)?].into_iter().flatten().min();
        let Some(start) = next else { return Ok(None) };
        let length = (size - start).min(one.len() as u64) as usize;
        left.read_exact_at(&mut one[..length], start).context("read the volume")?;
        right.read_exact_at(&mut other[..length], start).context("read the copy")?;
        if let Some(place) = one[..length].iter().zip(&other[..length]).position(|(a, b)| a != b) {
            return Ok(Some(start + place as u64));
        }
        at = start + length as u64;
    }
}

fn next_data(file: &File, from: u64) -> Result<Option<u64>> {
    match seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error).context("look for data"),
    }
}

fn temporary(base: &Path) -> Result<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix("bench-").tempdir_in(base);
    made.with_context(|| format!("make a directory in {}", base.display()))
}

/// A directory in the first of `bases` in which a file can be that large.
fn roomy(bases: &[PathBuf], size_bytes: u64) -> Result<tempfile::TempDir> {
    for base in bases {
        let Ok(dir) = temporary(base) else { continue };
        let file = File::create(dir.path().join("probe")).context("create a file")?;
        if file.set_len(size_bytes).is_ok() {
            return Ok(dir);
        }
    }
    bail!("no file can be {size_bytes} bytes long in {bases:?}: name another directory with --volumes");
}

impl Outcome {
    /// How much longer it takes to find dirty blocks than in 1 GiB.
    pub fn search_ratio(&self) -> f64 {
        self.search.ratio
    }

    /// What the agent has resident while nothing happens, in MiB, at most; none if it was not seen with a copy.
    pub fn idle_mib(&self) -> Option<f64> {
        let pair = self.pair.as_ref()?;
        let residents = [&self.alone, &pair.idle, &pair.after_marking, &pair.after_all];
        let agents = residents.into_iter().flatten().filter(|resident| resident.process == "agent");
        agents.map(|resident| resident.rss_kib).max().map(|kib| kib as f64 / 1024.0)
    }

    fn to_markdown(&self) -> String {
        let (size, data) = (self.size_bytes >> 40, self.data_bytes >> 20);
        format!("volume {size} TiB, sparse, with {data} MiB of data\n\n{}", markdown(&self.rows()))
    }

    /// Why there are no figures of the pair, if there are none.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The table, its headings first.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let search = &self.search;
        let middle = |times: &[f64]| median(times.iter().copied()).unwrap_or_default();
        let mut rows = vec![headings(["figure", ""])];
        let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
        row(
            "finding 1,000 dirty blocks, against 1 GiB",
            format!(
                "{:.2} × ({:.1} / {:.1} µs)",
                search.ratio,
                middle(&search.large_us),
                middle(&search.small_us)
            ),
        );
        row("marking 1,000 blocks that were never marked", format!("{:.0} µs", middle(&search.set_large_us)));
        let mut idle = vec![("idle before the peer was there", &self.alone)];
        if let Some(pair) = &self.pair {
            idle.extend([
                ("idle after the first sync", &pair.idle),
                ("idle after 1,000 writes anywhere", &pair.after_marking),
                ("idle after the agent was killed and came back", &pair.after_all),
            ]);
        }
        for (when, residents) in idle {
            for r in residents {
                let (mib, files) = (r.rss_kib as f64 / 1024.0, r.of_files_kib as f64 / 1024.0);
                row(
                    &format!("{} resident, {when}", r.process),
                    format!("{mib:.1} MiB, {files:.1} of it files; {} threads", r.threads),
                );
            }
        }
        let Some(pair) = &self.pair else { return rows };
        row("from the start of the agent until it serves, first time", seconds(pair.open_seconds));
        row(
            "from the start of the standby until the first sync is complete",
            seconds(pair.first_sync_seconds),
        );
        row("1,000 writes anywhere and a flush", seconds(pair.mark_seconds));
        row("standby killed, 1,000 writes: until it has them", seconds(pair.standby_back_seconds));
        row("agent killed: until it serves again", seconds(pair.agent_open_again_seconds));
        row("until the standby has 1,000 writes of before", seconds(pair.agent_back_seconds));
        rows
    }

    fn save(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let json = serde_json::to_string_pretty(self).context("encode the figures")?;
        for (name, content) in [("scale.json", json), ("scale.md", self.to_markdown())] {
            let path = dir.join(name);
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

fn seconds(value: f64) -> String {
    format!("{value:.2} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_files_are_compared_by_what_they_hold() {
        let dir = tempfile::tempdir().expect("a directory");
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        fill(&left, 1 << 40, 2 * PIECE_BYTES).expect("a file");
        fill(&right, 1 << 40, 2 * PIECE_BYTES).expect("a file");
        assert_eq!(first_difference(&left, &right).expect("both"), None);
        let at = (1 << 39) + 12345;
        OpenOptions::new()
            .write(true)
            .open(&right)
            .expect("it")
            .write_all_at(b"x", at + (1 << 30))
            .expect("room");
        assert_eq!(first_difference(&left, &right).expect("both"), Some(at + (1 << 30)));
    }

    #[test]
    fn this_process_is_resident() {
        let found = resident("this", rustix::process::getpid()).expect("itself");
        assert!(found.rss_kib > 0 && found.threads > 0);
    }
}
