//! A file system of the kernel's on a replicated volume, which outlives its host.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::real::{Attached, Pair, PairOptions, Side, filler, find_program, run};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 96 << 20;
/// What is copied from the system's documentation, about: it differs from host to host.
const COPIED_BYTES: u64 = 8 << 20;
/// Synced files that are written before the host is lost.
const SYNCED_FILES: usize = 60;
const SYNCED_BYTES: usize = 20_000;

/// Every file below a directory: its path there and its content.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

fn read_tree(top: &Path) -> Result<Tree> {
    let (mut tree, mut left) = (Tree::new(), vec![top.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let place = path.strip_prefix(top)?.to_owned();
            if kind.is_dir() {
                left.push(path);
            } else if kind.is_symlink() {
                tree.insert(place, fs::read_link(&path)?.into_os_string().into_encoded_bytes());
            } else {
                let mut content = Vec::new();
                let read = File::open(&path).and_then(|mut file| file.read_to_end(&mut content));
                read.with_context(|| format!("read {}", path.display()))?;
                tree.insert(place, content);
            }
        }
    }
    Ok(tree)
}

fn ensure_same_tree(expected: &Tree, found: &Tree) -> Result<()> {
    for (path, content) in expected {
        match found.get(path) {
            None => bail!("{} is gone", path.display()),
            Some(found) => ensure!(found == content, "{} has another content", path.display()),
        }
    }
    let more: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    ensure!(more.is_empty(), "there are more files: {more:?}");
    Ok(())
}

/// Directories of the system's documentation, of a few MiB together.
fn documentation() -> Result<Vec<PathBuf>> {
    let top = Path::new("/usr/share/doc");
    let mut dirs: Vec<PathBuf> = fs::read_dir(top)
        .with_context(|| format!("list {}", top.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect();
    dirs.sort();
    let mut bytes = 0;
    let mut few = Vec::new();
    for dir in dirs {
        let size: u64 = read_tree(&dir)?.values().map(|content| content.len() as u64).sum();
        if bytes + size <= COPIED_BYTES && few.len() < 200 {
            bytes += size;
            few.push(dir);
        }
    }
    ensure!(!few.is_empty(), "{} has nothing to copy", top.display());
    Ok(few)
}

fn copy(from: &[PathBuf], to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    run(Command::new(find_program("cp")?).arg("-a").args(from).arg(to), LIMIT)?.success().map(drop)
}

fn synced_content(number: usize) -> Vec<u8> {
    filler(number as u64, SYNCED_BYTES)
}

/// Writes files and syncs each, until told to stop or something fails; how many are synced.
fn write_synced(dir: &Path, stop: &AtomicBool, done: &std::sync::atomic::AtomicUsize) {
    for number in 0..100 * SYNCED_FILES {
        let written = File::create(dir.join(format!("{number}"))).and_then(|mut file| {
            file.write_all(&synced_content(number))?;
            file.sync_all()
        });
        if written.is_err() || stop.load(Ordering::SeqCst) {
            return;
        }
        done.store(number + 1, Ordering::SeqCst);
        // Few enough that the volume does not fill up.
        let old = number.checked_sub(2 * SYNCED_FILES);
        if let Some(old) = old {
            let _ = fs::remove_file(dir.join(format!("{old}")));
        }
    }
}

/// Writes a file system through alpha, loses alpha in the middle of that, and looks at what beta has.
fn outlive(options: PairOptions, protection: &str, keeps_all: bool) -> Result<()> {
    let mut pair = Pair::start(options.volume("disk", SIZE).journal_max_bytes(256 << 20))?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    pair.connect(Side::Alpha, "disk", LIMIT)?.disconnect()?;
    let alpha = pair.host(Side::Alpha);
    let mut attached = Attached::attach(&alpha.export("disk"), "disk", &alpha.dir)?;
    attached.make_ext4()?;
    let top = attached.mount()?;

    let documents = documentation()?;
    let kept = top.join("kept");
    copy(&documents, &kept)?;
    copy(&documents, &top.join("removed"))?;
    fs::remove_dir_all(top.join("removed"))?;
    for (index, entry) in fs::read_dir(&kept)?.collect::<Vec<_>>().into_iter().enumerate() {
        let path = entry?.path();
        match index % 4 {
            0 => fs::remove_dir_all(&path)?,
            1 => fs::rename(&path, kept.join(format!("renamed-{index}")))?,
            _ => {}
        }
    }
    File::create(kept.join("sparse"))?.set_len(10 << 20)?;
    let expected = read_tree(&kept)?;
    run(Command::new(find_program("sync")?).arg("-f").arg(&top), LIMIT)?.success()?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;

    // Alpha is lost while files are written, synced, removed and copied.
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let synced = top.join("synced");
    fs::create_dir(&synced)?;
    let writing = spawn({
        let (stop, done) = (stop.clone(), done.clone());
        move || write_synced(&synced, &stop, &done)
    });
    let copying = spawn({
        let (documents, top, stop) = (documents.clone(), top.clone(), stop.clone());
        move || {
            for round in 0.. {
                let to = top.join(format!("copy-{round}"));
                if stop.load(Ordering::SeqCst)
                    || copy(&documents, &to).is_err()
                    || fs::remove_dir_all(to).is_err()
                {
                    return;
                }
            }
        }
    });
    let started = Instant::now();
    while done.load(Ordering::SeqCst) < SYNCED_FILES && started.elapsed() < LIMIT && !writing.is_finished() {
        sleep(Duration::from_millis(5));
    }
    let synced = done.load(Ordering::SeqCst);
    pair.host_mut(Side::Alpha).kill()?;
    stop.store(true, Ordering::SeqCst);
    ensure!(writing.join().is_ok() && copying.join().is_ok(), "a thread panicked");
    drop(attached);
    ensure!(synced >= SYNCED_FILES, "only {synced} files were synced\n{}", pair.logs());

    pair.promote(Side::Beta)?;
    pair.connect(Side::Beta, "disk", LIMIT)?.disconnect()?;
    let beta = pair.host(Side::Beta);
    let mut attached = Attached::attach(&beta.export("disk"), "disk", &beta.dir)?;
    let top = attached.mount().context("mount the promoted volume")?;
    ensure_same_tree(&expected, &read_tree(&top.join("kept"))?)?;
    if keeps_all {
        for number in synced.saturating_sub(SYNCED_FILES)..synced {
            let found = fs::read(top.join("synced").join(format!("{number}")));
            let found = found.with_context(|| format!("synced file {number} of {synced}"))?;
            ensure!(found == synced_content(number), "synced file {number} of {synced} has another content");
        }
    }
    fs::write(top.join("afterwards"), b"written on the new primary")?;
    attached.unmount()?;
    attached.check_ext4()?;
    drop(attached);
    pair.check_disk()
}

#[test]
fn ext4_outlives_its_host_in_sync_mode_with_all_that_was_synced() -> Result<()> {
    outlive(PairOptions::default().sync(), "in_sync", true)
}

#[test]
fn ext4_outlives_its_host_in_async_mode() -> Result<()> {
    outlive(PairOptions::default(), "async_streaming", false)
}
