//! Temporary directories that take a bounded part of the disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{find_program, run};

const MOUNT_LIMIT: Duration = Duration::from_secs(20);

/// A directory that is removed when dropped, with everything in it.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
    cap_bytes: u64,
    mounted: bool,
}

impl Scratch {
    /// A directory in which a test promises to use at most `cap_bytes`: fails at once where less than that is free,
    /// and [`Scratch::check`] holds the test to it.
    pub fn new(cap_bytes: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("afterimage-").tempdir().context("make a directory")?;
        let space = rustix::fs::statvfs(dir.path()).context("look at the free space")?;
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        if free_bytes < cap_bytes {
            let dir = dir.path().display();
            bail!("{dir} has {free_bytes} bytes free of {cap_bytes} needed; set TMPDIR to a larger disk");
        }
        Ok(Self { dir, cap_bytes, mounted: false })
    }

    /// A file system of its own in memory that is full after `cap_bytes`, for tests of a full disk. Needs root.
    pub fn mounted(cap_bytes: u64) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("a file system of its own can only be mounted by root");
        }
        let mut scratch = Self::new(0)?;
        let mut mount = Command::new(find_program("mount")?);
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={cap_bytes},mode=0700"), "tmpfs"])
            .arg(scratch.path());
        run(&mut mount, MOUNT_LIMIT)?.success().context("mount a file system in memory")?;
        scratch.cap_bytes = cap_bytes;
        scratch.mounted = true;
        Ok(scratch)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes of disk that everything in it takes; holes take none.
    pub fn used_bytes(&self) -> Result<u64> {
        used_bytes(self.path())
    }

    /// Fails if more than the cap is used.
    pub fn check(&self) -> Result<()> {
        let (used, cap) = (self.used_bytes()?, self.cap_bytes);
        if used > cap {
            bail!("{} takes {used} bytes; the test said {cap} at most", self.path().display());
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.mounted
            && let Ok(umount) = find_program("umount")
        {
            // Lazily, since a process under test may still hold a file; there is nobody to tell of a failure.
            let _ = run(Command::new(umount).arg("-l").arg(self.path()), MOUNT_LIMIT);
        }
    }
}

fn used_bytes(dir: &Path) -> Result<u64> {
    let mut used = 0;
    let mut left: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            // What is gone by now takes no space.
            let Ok(entry) = entry else { continue };
            let Ok(meta) = entry.metadata() else { continue };
            // st_blocks counts 512 bytes, whatever the file system's block size (stat(2)).
            used += meta.blocks() * 512;
            if meta.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_counted_and_checked() {
        let scratch = Scratch::new(1 << 20).unwrap();
        let path = scratch.path().to_owned();
        fs::create_dir(path.join("sub")).unwrap();
        fs::File::create(path.join("sub/sparse")).unwrap().set_len(1 << 30).unwrap();
        scratch.check().unwrap();
        fs::write(path.join("sub/full"), vec![1; 2 << 20]).unwrap();
        assert!(scratch.check().unwrap_err().to_string().contains("1048576 at most"));
        drop(scratch);
        assert!(!path.exists());
        assert!(Scratch::new(u64::MAX).unwrap_err().to_string().contains("TMPDIR"));
    }

    #[test]
    fn a_mounted_one_is_full_at_its_cap() {
        // Containers may forbid mounting to root too.
        let Ok(scratch) = Scratch::mounted(1 << 20) else { return };
        let path = scratch.path().to_owned();
        let error = fs::write(path.join("file"), vec![1; 2 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        drop(scratch);
        assert!(!path.exists());
    }
}
