//! A file system of the kernel's on an NBD export: NBD, FUSE, a loop device, ext4. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::process::POLL;
use super::{Process, find_program, run};

/// How long a step may take; a mount replays a journal.
const LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to undo a step when the export may be gone.
const UNDO_LIMIT: Duration = Duration::from_secs(20);

/// An export as a loop device, perhaps mounted. All of it is undone when dropped, whatever became of the export.
#[derive(Debug)]
pub struct Attached {
    fuse_dir: PathBuf,
    mount_dir: PathBuf,
    mounted: bool,
    device: Option<String>,
    server: Process,
}

impl Attached {
    /// Makes a loop device of the export at `socket`. Directories and a log named after `dir` are made for it.
    pub fn attach(socket: &Path, export: &str, dir: &Path) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "loop devices belong to root: run this test as root");
        let (fuse_dir, mount_dir) = (dir.join("fuse"), dir.join("mnt"));
        for dir in [&fuse_dir, &mount_dir] {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let file = fuse_dir.join("volume");
        let mut nbdfuse = Command::new(find_program("nbdfuse")?);
        nbdfuse.arg(&file).arg(format!("nbd+unix:///{export}?socket={}", socket.display()));
        let server = Process::spawn(&mut nbdfuse, &dir.join("nbdfuse.log"))?;
        let mut attached = Self { fuse_dir, mount_dir, mounted: false, device: None, server };
        let started = Instant::now();
        while !file.exists() {
            attached.server.ensure_running()?;
            ensure!(started.elapsed() < LIMIT, "nbdfuse shows no file: {}", attached.server.log_tail());
            sleep(POLL);
        }
        let device = tool("losetup", &["--find", "--show", "--direct-io=on", &text(&file)])?;
        attached.device = Some(device.trim().to_owned());
        Ok(attached)
    }

    /// The loop device.
    pub fn device(&self) -> Result<&str> {
        self.device.as_deref().context("there is no loop device")
    }

    /// Makes an ext4 on it.
    pub fn make_ext4(&self) -> Result<()> {
        tool("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0", self.device()?]).map(drop)
    }

    /// Mounts it; the directory.
    pub fn mount(&mut self) -> Result<PathBuf> {
        tool("mount", &["-t", "ext4", self.device()?, &text(&self.mount_dir)])?;
        self.mounted = true;
        Ok(self.mount_dir.clone())
    }

    /// Unmounts it.
    pub fn unmount(&mut self) -> Result<()> {
        tool("umount", &[&text(&self.mount_dir)])?;
        self.mounted = false;
        Ok(())
    }

    /// Fails unless the file system, which is not mounted, is in order. Changes nothing.
    pub fn check_ext4(&self) -> Result<()> {
        tool("e2fsck", &["-f", "-n", self.device()?]).map(drop)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Each step may fail since the export is gone; the next one still has to be tried.
        if self.mounted {
            let mount_dir = text(&self.mount_dir);
            if undo("umount", &[&mount_dir]).is_err() {
                let _ = undo("umount", &["-l", &mount_dir]);
            }
        }
        if let Some(device) = self.device.take() {
            let _ = undo("losetup", &["-d", &device]);
        }
        let fuse_dir = text(&self.fuse_dir);
        // The loop device lets go of its file a moment later.
        let started = Instant::now();
        while undo("fusermount3", &["-u", &fuse_dir]).is_err() && started.elapsed() < UNDO_LIMIT / 4 {
            if !self.server.is_running() && !is_mounted(&self.fuse_dir) {
                break;
            }
            sleep(10 * POLL);
        }
        if is_mounted(&self.fuse_dir) {
            let _ = undo("fusermount3", &["-u", "-z", &fuse_dir]);
        }
        let _ = self.server.wait(UNDO_LIMIT / 4);
    }
}

fn is_mounted(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(&text(dir)))
}

fn tool(name: &str, args: &[&str]) -> Result<String> {
    let finished = run(Command::new(find_program(name)?).args(args), LIMIT)?;
    finished.success().with_context(|| format!("{name} {}", args.join(" ")))
}

fn undo(name: &str, args: &[&str]) -> Result<String> {
    run(Command::new(find_program(name)?).args(args), UNDO_LIMIT)?.success()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
