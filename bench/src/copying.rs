//! Making a copy, and bringing one up to date, beside the programs that people use for it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, fadvise};

use crate::{
    bare::disk,
    bulk::Watch,
    contender::{Bed, Running},
    fio, image,
    ours::{self, Mode, Place},
    process, qsd,
    trials::{Trial, Trials},
    wait::Interrupt,
};

/// The case of a first copy, in the outcome.
pub const FIRST_SYNC: &str = "first sync";
/// The case of an old copy.
pub const CATCH_UP: &str = "catch-up after 1 % changed";
/// nbdcopy to `qemu-storage-daemon` over TCP on the loopback, not encrypted.
pub const NBDCOPY: &str = "nbdcopy";
/// From disk to disk, with no line between.
pub const DISK: &str = "disk to disk";
/// rsync with deltas, from file to file.
pub const RSYNC: &str = "rsync";
/// Both nodes: until a promotion would show every byte, which is when the standby has them on stable storage.
pub const PAIR: &str = "pair";
/// Until they are in the file of the copy, too.
pub const PAIR_APPLIED: &str = "pair, applied";

const PIECE_BYTES: u64 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(300);

/// Copies a file of `bytes` bytes, half of them zero, `rounds` times with each.
pub fn first_sync(bytes: u64, rounds: u32, base: &Path, interrupt: &Interrupt) -> Result<Trials> {
    ours::build_if_missing()?;
    let mut trials = Trials::new(rounds, 0)?;
    let own = temporary(base)?;
    let source = own.path().join("source.img");
    image::create(&source, bytes)?;
    for round in 1..=rounds {
        let mut add = |contender, watch: Watch| {
            let trial = watch.trial(FIRST_SYNC, contender, round, bytes)?;
            eprintln!("  first sync round {round}, {contender}: {:.0} MiB/s", trial.value);
            trials.add(trial);
            anyhow::Ok(())
        };
        let check = |bed: &Bed<'_>| {
            let difference = image::first_difference(&source, &bed.copy())?;
            ensure!(difference.is_none(), "the copy differs at byte {difference:?}");
            anyhow::Ok(())
        };
        let dir = temporary(own.path())?;
        let bed = Bed { dir: dir.path(), copies: dir.path(), volume_bytes: bytes, settings: "", interrupt };
        image::create_empty(&bed.copy(), bytes)?;
        let (server, uri) = qsd::start_copy_server(&bed)?;
        forget(&source)?;
        let mut watch = Watch::start(vec![server.pid()])?;
        watch.with_own();
        let mut command = Command::new("nbdcopy");
        command.arg("--flush").arg(&source).arg(uri);
        process::capture("nbdcopy", command, bed.dir, LIMIT, interrupt)?;
        add(NBDCOPY, watch)?;
        server.stop()?;
        check(&bed)?;

        let dir = temporary(own.path())?;
        let bed = Bed { dir: dir.path(), copies: dir.path(), volume_bytes: bytes, settings: "", interrupt };
        image::create_empty(&bed.copy(), bytes)?;
        forget(&source)?;
        let watch = Watch::start(Vec::new())?;
        disk::copy(&source, &bed.copy(), bytes)?;
        add(DISK, watch)?;
        check(&bed)?;

        let dir = temporary(own.path())?;
        let bed = Bed { dir: dir.path(), copies: dir.path(), volume_bytes: bytes, settings: "", interrupt };
        image::create_empty(&bed.copy(), bytes)?;
        let places = [Place::LOOPBACK, Place::LOOPBACK];
        let mut pair = ours::prepare_pair(&bed, Mode::Async, places, [&source, &bed.copy()])?;
        pair.start_standby(interrupt)?;
        forget(&source)?;
        let mut watch = Watch::start(pair.servers().iter().map(|server| server.pid).collect())?;
        pair.spawn_agent()?;
        pair.wait_first_sync(interrupt)?;
        pair.wait_durable(interrupt)?;
        watch.joined_by(pair.busy()?[0]);
        add(PAIR, watch)?;
        Box::new(pair).stop(interrupt)?;
        check(&bed)?;
    }
    Ok(trials)
}

/// Changes 1 % of the pieces of a volume of `bytes` bytes and brings its copies up to date, `rounds` times.
pub fn catch_up(bytes: u64, rounds: u32, base: &Path, interrupt: &Interrupt) -> Result<Trials> {
    let mut trials = Trials::new(rounds, 0)?;
    let own = temporary(base)?;
    let bed = Bed { dir: own.path(), copies: own.path(), volume_bytes: bytes, settings: "", interrupt };
    ours::build_if_missing()?;
    image::create(&bed.volume(), bytes)?;
    let other = own.path().join("rsync.img");
    image::create(&other, bytes)?;
    let mut pair = ours::start_pair(&bed, Mode::Async)?;
    for round in 1..=rounds {
        let mut add = |contender, watch: &Watch| {
            let seconds = watch.seconds();
            eprintln!("  catch-up round {round}, {contender}: {seconds:.3} s");
            trials.add(Trial::new(CATCH_UP.to_owned(), contender, round, seconds, "s", watch.busy_cpus()?));
            anyhow::Ok(())
        };
        pair.drain(interrupt)?;
        pair.cut()?;
        let pieces = bytes / PIECE_BYTES / 100;
        fio::change(&pair.uri(), bytes, [PIECE_BYTES, pieces], round, own.path(), interrupt)?;
        sync(&bed.volume())?;

        let watch = Watch::start(Vec::new())?;
        let mut command = Command::new("rsync");
        command.args(["--inplace", "--no-whole-file", "--ignore-times"]).args([bed.volume(), other.clone()]);
        process::capture("rsync", command, bed.dir, LIMIT, interrupt)?;
        sync(&other)?;
        add(RSYNC, &watch)?;

        let watch = Watch::start(Vec::new())?;
        pair.heal()?;
        pair.wait_durable(interrupt)?;
        add(PAIR, &watch)?;
        pair.drain(interrupt)?;
        add(PAIR_APPLIED, &watch)?;
    }
    Box::new(pair).stop(interrupt)?;
    for copy in [bed.copy(), other] {
        let difference = image::first_difference(&bed.volume(), &copy)?;
        ensure!(difference.is_none(), "{} differs at byte {difference:?}", copy.display());
    }
    Ok(trials)
}

fn sync(path: &PathBuf) -> Result<()> {
    let file = File::open(path).and_then(|file| file.sync_all());
    file.with_context(|| format!("sync {}", path.display()))
}

/// Lets the page cache forget a file that is on disk.
fn forget(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    fadvise(&file, 0, None, Advice::DontNeed).with_context(|| format!("forget {}", path.display()))
}

fn temporary(base: &Path) -> Result<tempfile::TempDir> {
    // Short, because the path of a Unix socket has at most 107 bytes.
    let made = tempfile::Builder::new().prefix("c").tempdir_in(base);
    made.with_context(|| format!("make a directory in {}", base.display()))
}
