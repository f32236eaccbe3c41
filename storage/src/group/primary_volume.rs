//! The volume of a primary: what clients write to it, and whether that can be made durable.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use afterimage_protocol::source::{LocalError, Write};

use super::{VolumeFile, write_content};

/// An open volume of a source. May be used from any thread.
pub struct PrimaryVolume {
    file: VolumeFile,
    /// A flush failed: what was written before is lost or not, and no later flush can tell.
    failed: AtomicBool,
    /// Written since the last flush began, in bytes; counted after the write and before it is answered.
    unflushed_bytes: AtomicU64,
    /// One flush at a time: the error of a sync is not told to another that runs beside it.
    flushing: Mutex<()>,
}

impl PrimaryVolume {
    /// A volume that has not failed yet.
    pub fn new(file: VolumeFile) -> Self {
        Self {
            file,
            failed: AtomicBool::new(false),
            // Whoever had the volume before may not have flushed.
            unflushed_bytes: AtomicU64::new(u64::MAX / 2),
            flushing: Mutex::default(),
        }
    }

    /// The volume's bytes, to be read.
    pub fn file(&self) -> &VolumeFile {
        &self.file
    }

    /// Performs a write; with `fua` it is on stable storage on return. Fails with [`LocalError::Flush`] if it cannot be made
    /// durable, or a flush has failed before.
    pub fn write(&self, write: &Write) -> Result<(), LocalError> {
        if write.fua && self.flush_failed() {
            return Err(LocalError::Flush);
        }
        self.written(write.range.length, write_content(&self.file, write.range, &write.content))?;
        if write.fua {
            self.flush().map_err(|_| LocalError::Flush)?;
        }
        Ok(())
    }

    /// A write of `length` bytes has ended, wherever it was performed: to be called before it is answered.
    pub fn written(&self, length: u64, result: io::Result<()>) -> Result<(), LocalError> {
        // Not before the write: a flush that begins in between would not cover it, and leave nothing to do for the next.
        self.unflushed_bytes.fetch_add(length, Ordering::AcqRel);
        result.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LocalError::NoSpace,
            _ => LocalError::Io,
        })
    }

    /// Returns once all that completed before the call is on stable storage. Once that has failed it fails for ever: the
    /// system drops what it could not write, and a second try would succeed without it.
    ///
    /// One flush runs at a time: what the one before covers needs no other.
    pub fn flush(&self) -> io::Result<()> {
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.flush_failed() {
            return Err(io::Error::other("an earlier flush failed"));
        }
        if self.unflushed_bytes.swap(0, Ordering::AcqRel) == 0 {
            return Ok(());
        }
        let result = self.file.sync();
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    /// As [`PrimaryVolume::flush`], also if nothing was written: the volume itself has changed.
    pub fn flush_all(&self) -> io::Result<()> {
        self.unflushed_bytes.fetch_add(1, Ordering::AcqRel);
        self.flush()
    }

    /// Bytes written since the last flush began; a very large number before the first one.
    pub fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes.load(Ordering::Relaxed)
    }

    /// Whether a flush has failed.
    pub fn flush_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use afterimage_protocol::frame::Content;
    use afterimage_protocol::{ByteRange, VolumeIndex};

    use super::*;
    use crate::io::{Dir, Open};
    use crate::test_disk::TestDisk;

    fn volume() -> (TestDisk, PrimaryVolume) {
        let disk = TestDisk::default();
        let file = disk.open("volume", Open::New).unwrap();
        file.write_at(&[0; 8192], 0).unwrap();
        (disk, PrimaryVolume::new(file))
    }

    fn zeroes(fua: bool) -> Write {
        let range = ByteRange::new(VolumeIndex(0), 0, 4096);
        Write { range, content: Content::Zeroes { punch: false }, fua }
    }

    #[test]
    fn a_flush_syncs_what_was_written_since_the_one_before_and_nothing_twice() {
        let (disk, volume) = volume();
        let steps = |work: &dyn Fn()| {
            let before = disk.operations();
            work();
            disk.operations() - before
        };
        assert_eq!(steps(&|| volume.flush().unwrap()), 1, "whoever had it before may not have flushed");
        assert_eq!(steps(&|| volume.flush().unwrap()), 0);
        assert_eq!(steps(&|| volume.write(&zeroes(false)).unwrap()), 1);
        assert_eq!(volume.unflushed_bytes(), 4096);
        assert_eq!(steps(&|| volume.flush().unwrap()), 1);
        assert_eq!(steps(&|| volume.write(&zeroes(true)).unwrap()), 2);
        assert_eq!(steps(&|| volume.flush().unwrap()), 0);
    }

    #[test]
    fn a_volume_that_could_not_be_flushed_never_can() {
        for by_flush in [true, false] {
            let (disk, volume) = volume();
            volume.write(&zeroes(false)).unwrap();
            if by_flush {
                disk.fail_after(0);
                volume.flush().unwrap_err();
            } else {
                disk.fail_after(1);
                assert_eq!(volume.write(&zeroes(true)), Err(LocalError::Flush));
            }
            disk.repair();
            volume.flush().unwrap_err();
            assert_eq!(volume.write(&zeroes(true)), Err(LocalError::Flush));
            assert_eq!(volume.write(&zeroes(false)), Ok(()), "what promises nothing goes on");
            assert!(volume.flush_failed());
        }
    }

    #[test]
    fn a_write_that_fails_is_no_failed_flush() {
        let (disk, volume) = volume();
        disk.fail_after(0);
        assert_eq!(volume.write(&zeroes(true)), Err(LocalError::Io));
        disk.repair();
        volume.flush().unwrap();
    }

    #[test]
    fn flushes_beside_each_other_share_one_sync() {
        let (disk, volume) = volume();
        let volume = Arc::new(volume);
        volume.write(&zeroes(false)).unwrap();
        let before = disk.operations();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| volume.flush().unwrap());
            }
        });
        assert_eq!(disk.operations() - before, 1);
    }
}
