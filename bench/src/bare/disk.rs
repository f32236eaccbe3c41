//! The least that a copy asks of a disk, with nothing on the way: all is read once, what is not zero is written once, and one sync.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use afterimage_memory::Buffer;
use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;

/// Pieces under way at a time, each read and then written.
const THREADS: usize = 4;
const PIECE_BYTES: u64 = 1 << 20;

/// Copies `bytes` bytes from a file to another, past the page cache. What is zero is left as it is there.
pub fn copy(from: &Path, to: &Path, bytes: u64) -> Result<()> {
    ensure!(bytes.is_multiple_of(PIECE_BYTES), "a volume is a whole number of MiB");
    let (from, to) = (open(from)?, open(to)?);
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|_| scope.spawn(|| pieces(&from, &to, bytes, &next))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    to.sync_data().context("sync the copy")
}

/// Past the page cache.
pub(super) fn open(path: &Path) -> Result<File> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    let opened = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path);
    opened.with_context(|| format!("open {}", path.display()))
}

/// One piece after the other of those that nobody has taken.
fn pieces(from: &File, to: &File, bytes: u64, next: &AtomicU64) -> Result<()> {
    let mut buffer = Buffer::with_len(PIECE_BYTES as usize);
    loop {
        let at = next.fetch_add(PIECE_BYTES, Ordering::Relaxed);
        if at >= bytes {
            return Ok(());
        }
        from.read_exact_at(&mut buffer, at).context("read the volume")?;
        if buffer.iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer, at).context("write the copy")?;
        }
    }
}
