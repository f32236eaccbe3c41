//! A volume on disk: an image file or a block device, held exclusively, and known to be the one it was last time.
//!
//! Owns opening, locking and identifying it. What is read and written goes through [`Volume::file`].

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::{OFlags, major, minor};
use rustix::io::Errno;

use crate::disk::RealFile;
use crate::identity::{self, Comparison, StableId};
pub use crate::identity::{IdSource, ParseIdentityError, VolumeIdentity, VolumeKind};
use crate::io::File;
use crate::lock;

/// Sizes are whole sectors of this many bytes.
const SECTOR_BYTES: u64 = 512;

/// Why a volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Neither an image file nor a block device.
    #[error("{path:?} is neither a block device nor a regular file")]
    Kind {
        /// The volume.
        path: PathBuf,
    },
    /// A size that no volume can have.
    #[error(
        "{path:?} is {size_bytes} bytes long; a volume has a whole number of {SECTOR_BYTES}-byte sectors, at least one"
    )]
    Size {
        /// The volume.
        path: PathBuf,
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// Someone else may write to it.
    #[error(
        "{path:?} is in use: {by}. Replicating it while something else writes to it would lose those writes"
    )]
    InUse {
        /// The volume.
        path: PathBuf,
        /// What is known of the user.
        by: String,
    },
    /// Another volume than the one that was expected.
    #[error(
        "{path:?} is not the volume that was replicated before: {difference}. Nothing was written to it. Put the right \
         volume back under this name; or, if this one is to take its place, have it accepted as new, which compares \
         every block"
    )]
    WrongVolume {
        /// The volume.
        path: PathBuf,
        /// What was expected.
        expected: Box<VolumeIdentity>,
        /// What was found.
        found: Box<VolumeIdentity>,
        /// What differs.
        difference: String,
    },
    /// The disk said no.
    #[error("cannot {action} the volume {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The volume.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// An open volume.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    file: Arc<Exclusive>,
    identity: VolumeIdentity,
    grown_from: Option<u64>,
}

impl Volume {
    /// Opens the volume at `path` for this process alone. With `expected` it has to be that volume, at least as large
    /// as it was; without, any volume will do.
    ///
    /// A device that is mounted or part of another device is refused, and nobody can mount it while it is open. An
    /// image file is locked with `flock`, which keeps out other processes of Afterimage and whoever else asks.
    ///
    /// What a process that was killed had given to the kernel may be written after it is gone, and would then replace what is written
    /// from now on: a volume to which such a write is under way is [`VolumeError::InUse`].
    pub fn open(path: impl AsRef<Path>, expected: Option<&VolumeIdentity>) -> Result<Self, VolumeError> {
        let path = path.as_ref();
        let io = |action| move |source| VolumeError::Io { action, path: path.to_owned(), source };
        // Looked at before it is opened: opening anything else may block or have effects.
        let kind = fs::metadata(path).map_err(io("find"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(VolumeError::Kind { path: path.to_owned() });
        }
        let file = open_exclusively(path)?;
        let metadata = file.as_std().metadata().map_err(io("look at"))?;
        let (kind, ids) = if file.is_device() {
            (VolumeKind::Device, identity::device_ids(&sysfs_dir(&metadata)))
        } else {
            (VolumeKind::Image, vec![identity::image_id(&metadata)])
        };
        let size_bytes = file.len().map_err(io("measure"))?;
        if !is_valid(size_bytes) {
            return Err(VolumeError::Size { path: path.to_owned(), size_bytes });
        }
        let found = |id: &StableId| VolumeIdentity { kind, size_bytes, id: id.clone() };
        // There is always one: a device has at least its name.
        let identity = ids.first().map(found).ok_or_else(|| VolumeError::Kind { path: path.to_owned() })?;
        let grown_from = match expected.map(|expected| (expected, expected.compare(kind, size_bytes, &ids))) {
            None | Some((_, Comparison::Same)) => None,
            Some((expected, Comparison::Grown)) => Some(expected.size_bytes),
            Some((expected, Comparison::Different(difference))) => {
                return Err(VolumeError::WrongVolume {
                    path: path.to_owned(),
                    expected: Box::new(expected.clone()),
                    found: Box::new(identity),
                    difference,
                });
            }
        };
        let path = path.to_owned();
        Ok(Self {
            path,
            file: Arc::new(Exclusive { file, size_bytes: size_bytes.into() }),
            identity,
            grown_from,
        })
    }

    /// What to store, and expect the next time.
    pub fn identity(&self) -> &VolumeIdentity {
        &self.identity
    }

    /// Size in bytes when it was opened; a multiple of 512.
    pub fn size_bytes(&self) -> u64 {
        self.identity.size_bytes
    }

    /// The size that was expected, if the volume has grown since.
    pub fn grown_from(&self) -> Option<u64> {
        self.grown_from
    }

    /// Size in bytes that it has now, whatever [`Volume::file`] takes it for. One that no volume can have is an error.
    pub fn measure(&self) -> Result<u64, VolumeError> {
        let path = || self.path.clone();
        match self.file.file.len() {
            Ok(size) if is_valid(size) => Ok(size),
            Ok(size_bytes) => Err(VolumeError::Size { path: path(), size_bytes }),
            Err(source) => Err(VolumeError::Io { action: "measure", path: path(), source }),
        }
    }

    /// Has aligned reads and writes go past the page cache from now on, where the file system can do that. Before the file is
    /// shared.
    pub fn open_direct(&mut self) {
        if let Some(file) = Arc::get_mut(&mut self.file) {
            file.file.open_direct();
        }
    }

    /// Has large writes go past the page cache from now on, where the file system can do that: for a volume that is written
    /// and hardly read. Before the file is shared.
    pub fn open_large_direct(&mut self) {
        if let Some(file) = Arc::get_mut(&mut self.file) {
            file.file.open_large_direct();
        }
    }

    /// From now on the file is taken for `size_bytes` long, which it has to be at least (see [`Volume::measure`]). A size
    /// below the present one changes nothing.
    pub fn grow(&self, size_bytes: u64) {
        self.file.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
    }

    /// The bytes. The volume stays locked while any clone of this is there. Nothing is read, written or allocated past the
    /// end, also where an image file would grow: its size changes with [`Volume::grow`] alone.
    pub fn file(&self) -> Arc<dyn File> {
        self.file.clone()
    }
}

/// Whether a volume can have that size.
fn is_valid(size_bytes: u64) -> bool {
    size_bytes > 0 && size_bytes.is_multiple_of(SECTOR_BYTES)
}

/// The bytes of a volume within the size that it is taken for.
#[derive(Debug)]
struct Exclusive {
    file: RealFile,
    size_bytes: AtomicU64,
}

impl Exclusive {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let size_bytes = self.size_bytes();
        if offset.checked_add(len).is_some_and(|end| end <= size_bytes) {
            return Ok(());
        }
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} are past the end of a volume of {size_bytes} bytes"),
        ))
    }
}

impl File for Exclusive {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn read_bytes(&self, len: usize, offset: u64) -> io::Result<Bytes> {
        self.file.read_bytes(len, offset)
    }

    fn will_read(&self, offset: u64, len: u64) {
        self.file.will_read(offset, len);
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.file.write_at(buf, offset)
    }

    fn write_vectored_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        self.check(offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        self.file.write_vectored_at(bufs, offset)
    }

    fn direct(&self, address: *const u8, offset: u64, len: u64) -> Option<BorrowedFd<'_>> {
        self.check(offset, len).ok()?;
        self.file.direct(address, offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.file.forget_cached()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.size_bytes())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.check(0, len)?;
        self.file.allocate(len)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::Error::new(ErrorKind::Unsupported, "a volume that is open keeps its size"))
    }

    fn zero(&self, offset: u64, len: u64, punch: bool) -> io::Result<()> {
        self.check(offset, len)?;
        self.file.zero(offset, len, punch)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let found = self.file.next_data(offset)?;
        let size_bytes = self.size_bytes();
        Ok(found.map(|(start, end)| (start, end.min(size_bytes))).filter(|(start, end)| start < end))
    }
}

fn open_exclusively(path: &Path) -> Result<RealFile, VolumeError> {
    let io = |action| move |source| VolumeError::Io { action, path: path.to_owned(), source };
    let in_use = |by| VolumeError::InUse { path: path.to_owned(), by };
    // O_EXCL without O_CREAT claims a block device, and means nothing for a file.
    let open = || match OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::EXCL.bits() as i32)
        .open(path)
    {
        Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(None),
        opened => opened.map(Some),
    };
    let Some(file) = lock::try_for_a_while(open).map_err(io("open"))? else {
        return Err(in_use(device_user(path)));
    };
    let file = RealFile::new(file).map_err(io("open"))?;
    if !file.is_device() {
        if !lock::lock_file(file.as_std()).map_err(io("lock"))? {
            return Err(in_use("another process has the file locked".to_owned()));
        }
        if let Some(device) = loop_device_on(path) {
            return Err(in_use(format!("the loop device /dev/{device} is attached to the file")));
        }
    }
    if !lock::writes_have_ended(file.as_std()).map_err(io("look for writes under way to"))? {
        return Err(in_use(
            "writes of a process that has ended are still under way; its disk is slow, or hangs".to_owned(),
        ));
    }
    Ok(file)
}

/// Where a device's attributes are; an empty directory name when sysfs does not know it.
fn sysfs_dir(metadata: &fs::Metadata) -> PathBuf {
    let device = metadata.rdev();
    let link = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    // The link leads to the device's own directory, below that of its disk if it is a partition.
    link.canonicalize().unwrap_or(link)
}

/// What can be found out about who holds a device.
fn device_user(path: &Path) -> String {
    let unknown = "another program has it open exclusively".to_owned();
    let Ok(metadata) = fs::metadata(path) else { return unknown };
    let device = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted_at = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == device).then(|| fields.nth(1))?
    });
    if let Some(place) = mounted_at {
        return format!("it is mounted at {place}");
    }
    let holders = fs::read_dir(sysfs_dir(&metadata).join("holders"));
    let holder = holders.ok().and_then(|mut holders| holders.next()?.ok());
    holder.map_or(unknown, |holder| format!("it is part of {}", holder.file_name().to_string_lossy()))
}

/// The loop device that an image file is attached to, if any: that would be a second writer.
fn loop_device_on(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == path)
            .then(|| device.file_name().to_string_lossy().into_owned())
    })
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
