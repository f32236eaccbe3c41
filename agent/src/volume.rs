//! A volume as the agent uses it: its bytes, its flushes, and what is known of its abilities.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use afterimage_events::{Event, event};
use afterimage_protocol::frame::{Codec, Content};
use afterimage_protocol::source::{LocalError, Write};
use afterimage_storage::group::{PrimaryVolume, VolumeFile};
use afterimage_storage::ring::Written;
use afterimage_storage::volume::{Volume, VolumeError, VolumeKind};
use bytes::Bytes;
use rustix::fs::{major, minor};

/// With no more than this written since the last flush a flush is short: it is not worth a thread of its own.
const SHORT_FLUSH_BYTES: u64 = 256 << 10;

/// An open volume.
pub(crate) struct LocalVolume {
    pub name: String,
    /// As far as it is replicated, in bytes: the file may have grown since. Changed under the group's lock.
    size_bytes: AtomicU64,
    /// Whether zeroes are faster than writing them out.
    pub zeroes_fast: bool,
    volume: PrimaryVolume,
    opened: Volume,
    /// Bytes that clients have read.
    read_bytes: AtomicU64,
    flushes: Mutex<Flushes>,
}

/// Flushes that wait for the one that is running.
#[derive(Default)]
struct Flushes {
    waiting: Vec<u64>,
    running: bool,
}

impl LocalVolume {
    pub fn new(name: &str, device: &Path, size_bytes: u64, volume: Volume) -> Self {
        Self {
            name: name.to_owned(),
            size_bytes: size_bytes.into(),
            zeroes_fast: volume.identity().kind == VolumeKind::Image || device_zeroes_fast(device),
            volume: PrimaryVolume::new(volume.file()),
            opened: volume,
            read_bytes: AtomicU64::new(0),
            flushes: Mutex::default(),
        }
    }

    /// As far as it is replicated, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// It is replicated up to here from now on: to be called under the group's lock.
    pub fn set_size(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    /// Bytes that clients have read.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// A client has read so much.
    pub fn was_read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Its size in bytes, as far as it is replicated or not.
    pub fn measure(&self) -> Result<u64, VolumeError> {
        self.opened.measure()
    }

    /// Whether there is more of it than is replicated.
    pub fn has_grown(&self) -> bool {
        self.measure().is_ok_and(|size| size > self.size_bytes())
    }

    /// Makes room for `size_bytes`, which the volume has, and that it has them durable. Blocks.
    pub fn make_room(&self, size_bytes: u64) -> std::io::Result<()> {
        self.opened.grow(size_bytes);
        self.volume.flush_all()
    }

    pub fn file(&self) -> &VolumeFile {
        self.volume.file()
    }

    /// Performs a write; with `fua` it is on stable storage on return.
    pub fn write(&self, write: &Write) -> Result<(), LocalError> {
        let result = self.volume.write(write);
        self.tell(write.range.offset, write.range.length, &result);
        result
    }

    /// What a ring needs to perform the write, if it can.
    pub fn for_ring<'a>(&'a self, write: &'a Write) -> Option<(BorrowedFd<'a>, &'a Bytes)> {
        match &write.content {
            Content::Data(payload) if payload.codec == Codec::Raw && !write.fua => {
                let bytes = &payload.encoded;
                let file = self.file().direct(bytes.as_ptr(), write.range.offset, bytes.len() as u64)?;
                Some((file, bytes))
            }
            _ => None,
        }
    }

    /// A ring has performed a write, or as much of it as it could.
    pub fn written<T>(&self, written: Written<T>) -> (T, Result<(), LocalError>) {
        let (offset, length) = (written.offset, written.bytes.len() as u64);
        let (token, result) = written.complete(|rest, at| self.file().write_at(rest, at));
        let result = self.volume.written(length, result);
        self.tell(offset, length, &result);
        (token, result)
    }

    fn tell(&self, offset: u64, length: u64, result: &Result<(), LocalError>) {
        if let Err(error) = result {
            event!(Event::IoFailed, volume = self.name, offset, length, %error, "a write failed");
        }
    }

    /// Whether all that completed before the call is on stable storage. Once it is not, it is never again: the kernel
    /// drops what it could not write, and a second try would succeed without it.
    pub fn flush(&self) -> bool {
        let result = self.volume.flush();
        if let Err(error) = &result {
            event!(
                Event::FlushFailed,
                volume = self.name,
                %error,
                "a flush failed: flushes of this volume fail from now on, until the agent is started again"
            );
        }
        result.is_ok()
    }

    pub fn flush_is_short(&self) -> bool {
        self.volume.unflushed_bytes() <= SHORT_FLUSH_BYTES
    }

    /// Notes a flush that is wanted; whether the caller is to run [`LocalVolume::take_flushes`] for it.
    pub fn want_flush(&self, token: u64) -> bool {
        let mut flushes = self.flushes();
        flushes.waiting.push(token);
        !std::mem::replace(&mut flushes.running, true)
    }

    /// The flushes that one flush started now answers; after none were left, the next one has to be started anew.
    pub fn take_flushes(&self) -> Vec<u64> {
        let mut flushes = self.flushes();
        flushes.running = !flushes.waiting.is_empty();
        std::mem::take(&mut flushes.waiting)
    }

    fn flushes(&self) -> MutexGuard<'_, Flushes> {
        // Replaced as a whole: a panic elsewhere leaves nothing half done.
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a block device says that it can zero a range by itself.
fn device_zeroes_fast(device: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::metadata(device) else { return false };
    let number = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
    // The queue belongs to the disk, one level above its partitions.
    ["queue", "../queue"].iter().any(|queue| {
        let path = format!("/sys/dev/block/{number}/{queue}/write_zeroes_max_bytes");
        std::fs::read_to_string(path).is_ok_and(|bytes| bytes.trim() != "0")
    })
}
