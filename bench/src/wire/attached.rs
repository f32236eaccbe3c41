//! A file system of the kernel's on an export: NBD, FUSE, a loop device, ext4.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    process::{self, Server},
    wait::Interrupt,
};

const LIMIT: Duration = Duration::from_secs(120);
const SECTOR_BYTES: u64 = 512;
/// Where the count of sectors written is among the fields of a block device's `stat`, from 0: Documentation/block/stat.rst.
const SECTORS_WRITTEN: usize = 6;

/// An export as a mounted ext4. All of it is undone when dropped.
pub struct Attached {
    dir: PathBuf,
    device: Option<String>,
    is_mounted: bool,
    server: Server,
}

impl Attached {
    /// Makes a file system on the export at `socket` and mounts it somewhere in `dir`.
    pub fn mount(socket: &Path, export: &str, dir: &Path, interrupt: &Interrupt) -> Result<Self> {
        for name in ["fuse", "mnt"] {
            let path = dir.join(name);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let file = dir.join("fuse/volume");
        let mut nbdfuse = Command::new("nbdfuse");
        nbdfuse.arg(&file).arg(format!("nbd+unix:///{export}?socket={}", socket.display()));
        let server = Server::spawn("nbdfuse", nbdfuse, dir)?;
        let mut attached = Self { dir: dir.to_owned(), device: None, is_mounted: false, server };
        attached.server.wait_ready(interrupt, || Ok(file.exists()))?;
        let file = file.display().to_string();
        let losetup = attached.tool("losetup", &["--find", "--show", "--direct-io=on", &file], interrupt)?;
        let device = losetup.trim().to_owned();
        attached.device = Some(device.clone());
        attached.tool("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0", &device], interrupt)?;
        let mnt = attached.directory().display().to_string();
        attached.tool("mount", &["-t", "ext4", &device, &mnt], interrupt)?;
        attached.is_mounted = true;
        Ok(attached)
    }

    /// Where it is mounted.
    pub fn directory(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// What was written to the device so far.
    pub fn written_bytes(&self) -> Result<u64> {
        let device =
            self.device.as_deref().and_then(|d| d.strip_prefix("/dev/")).context("no loop device")?;
        let path = format!("/sys/block/{device}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let sectors = text.split_ascii_whitespace().nth(SECTORS_WRITTEN).and_then(|n| n.parse::<u64>().ok());
        Ok(sectors.with_context(|| format!("{path} has no count of sectors written"))? * SECTOR_BYTES)
    }

    /// Has everything written to the device.
    pub fn sync(&self, interrupt: &Interrupt) -> Result<()> {
        self.tool("sync", &["-f", &self.directory().display().to_string()], interrupt).map(drop)
    }

    /// Unmounts it.
    pub fn unmount(&mut self, interrupt: &Interrupt) -> Result<()> {
        self.tool("umount", &[&self.directory().display().to_string()], interrupt)?;
        self.is_mounted = false;
        Ok(())
    }

    fn tool(&self, name: &str, args: &[&str], interrupt: &Interrupt) -> Result<String> {
        let mut command = Command::new(name);
        command.args(args);
        process::capture(name, command, &self.dir, LIMIT, interrupt)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Each may fail since one before it did; the next still has to be tried.
        let undo = |name: &str, args: &[&str]| {
            let _ = Command::new(name).args(args).status();
        };
        if self.is_mounted {
            undo("umount", &["-l", &self.directory().display().to_string()]);
        }
        if let Some(device) = &self.device {
            undo("losetup", &["-d", device]);
        }
        undo("fusermount3", &["-u", "-z", &self.dir.join("fuse").display().to_string()]);
    }
}
