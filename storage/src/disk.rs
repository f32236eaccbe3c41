//! The traits of [`crate::io`] on a real disk: regular files, block devices, mapped files and directories.
//!
//! What is written is visible to every reader at once and survives the process; `sync` is what makes it survive the host. All goes
//! through the page cache, but for aligned reads and writes of a file with [`RealFile::open_direct`], and, of one with that or
//! [`RealFile::open_large_direct`], for large writes and large reads of what is read once.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use afterimage_memory::{ALIGN_BYTES, Buffer};
use bytes::Bytes;
use memmap2::{Advice, MmapRaw, UncheckedAdvice};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::gather::{self, Gather};
use crate::io::{Dir, File, Mapping, Open};
use crate::lock;

/// Bytes written at once where the system cannot zero a range by itself.
const ZERO_CHUNK_BYTES: u64 = 1 << 20;
/// Alignment at which every block device can zero a range by itself.
const ZERO_ALIGN_BYTES: u64 = 4096;
/// Most buffers in one vectored write (`IOV_MAX`).
const MAX_BUFFERS: usize = 1024;
/// The largest logical block of a device, in bytes.
const DIRECT_ALIGN_MAX: u64 = 4096;
/// From here on a write is copied to aligned memory and goes past the page cache, where that was asked for, in bytes: a page
/// that is made, filled, written and dropped costs more than the copy. Below it the wait for the disk costs more. So it is with
/// what is read once.
const LARGE_BYTES: u64 = 512 << 10;
const WORD_BYTES: usize = size_of::<u64>();

#[cfg(target_endian = "big")]
compile_error!("mapped words are little-endian on disk and used in place");

#[repr(align(4096))]
struct Aligned([u8; 2 * DIRECT_ALIGN_MAX as usize]);

/// A regular file or a block device.
#[derive(Debug)]
pub struct RealFile {
    file: fs::File,
    is_device: bool,
    /// Whether the length may have changed since the last sync.
    resized: AtomicBool,
    /// The same file, opened past the page cache.
    direct: Option<Direct>,
    /// The same for what is large alone, opened with the first of that; none where that was not asked for.
    large: Option<OnceLock<Option<Direct>>>,
}

/// A file opened past the page cache.
#[derive(Debug)]
struct Direct {
    file: fs::File,
    /// What offsets and lengths have to be multiples of, in bytes.
    align: u64,
}

impl Direct {
    fn open(file: &fs::File) -> Option<Self> {
        // By its descriptor: the name may be another file's by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::DIRECT.bits() as i32;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok()?;
        // Some of what is written by it goes on when the process ends.
        lock::note_writes(&opened).ok()?;
        Self::new(opened)
    }

    /// `None` where the file system wants memory aligned to more than [`ALIGN_BYTES`].
    fn new(file: fs::File) -> Option<Self> {
        let mut memory = Aligned([0; 2 * DIRECT_ALIGN_MAX as usize]);
        // Aligned to that and no more.
        let memory = &mut memory.0[ALIGN_BYTES..];
        let align = [ALIGN_BYTES as u64, DIRECT_ALIGN_MAX].into_iter().find(|align| {
            let length = *align as usize;
            matches!(file.read_at(&mut memory[..length], *align), Ok(count) if count == length)
        })?;
        Some(Self { file, align })
    }

    fn takes_all(&self, bufs: &[&[u8]], offset: u64) -> bool {
        offset.is_multiple_of(self.align)
            && bufs.iter().all(|buf| self.takes(buf.as_ptr(), 0, buf.len() as u64))
    }

    fn takes(&self, address: *const u8, offset: u64, len: u64) -> bool {
        (offset | len).is_multiple_of(self.align) && (address as usize).is_multiple_of(ALIGN_BYTES)
    }
}

impl RealFile {
    /// Takes over a file that was opened for reading and writing; anything but a regular file or a block device is
    /// refused.
    pub fn new(file: fs::File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "neither a regular file nor a block device"));
        }
        Ok(Self {
            file,
            is_device: kind.is_block_device(),
            resized: AtomicBool::new(false),
            direct: None,
            large: None,
        })
    }

    /// Has aligned reads and writes go past the page cache, if the file system can do that. Others go through it: the system
    /// keeps both in step.
    pub fn open_direct(&mut self) {
        self.direct = Direct::open(&self.file);
    }

    /// Has large writes go past the page cache, if the file system can do that, wherever their bytes are in memory, and so large
    /// aligned reads of what is read once.
    pub fn open_large_direct(&mut self) {
        self.large = Some(OnceLock::new());
    }

    /// Where the larger part of a write of `length` bytes goes past the page cache.
    fn direct_for_large(&self, length: u64) -> Option<&Direct> {
        if length < LARGE_BYTES {
            return None;
        }
        self.direct.as_ref().or_else(|| self.large())
    }

    fn large(&self) -> Option<&Direct> {
        self.large.as_ref()?.get_or_init(|| Direct::open(&self.file)).as_ref()
    }

    /// Writes `bufs`, whole blocks by way of aligned memory and past the page cache, what sticks out on either side through it.
    fn write_gathered(&self, bufs: &[&[u8]], offset: u64, length: u64, direct: &Direct) -> io::Result<()> {
        let end = offset + length;
        let inner = offset.next_multiple_of(direct.align)..end / direct.align * direct.align;
        gather::with_buffer(|buffer| {
            let mut bytes = Gather::new(bufs);
            let mut at = offset;
            while at < end {
                let (file, until) = match inner.contains(&at) {
                    true => (&direct.file, inner.end),
                    false => (&self.file, if at < inner.start { inner.start } else { end }),
                };
                let part = &mut buffer[..(until - at).min(gather::BUFFER_BYTES as u64) as usize];
                bytes.fill(part);
                file.write_all_at(part, at)?;
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    fn direct_for(&self, address: *const u8, offset: u64, len: u64) -> Option<&fs::File> {
        self.direct.as_ref().filter(|direct| direct.takes(address, offset, len)).map(|direct| &direct.file)
    }

    /// The file itself, for locks and queries.
    pub fn as_std(&self) -> &fs::File {
        &self.file
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// By way of the page cache.
    fn read_vec(&self, len: usize, offset: u64) -> io::Result<Vec<u8>> {
        // Not zeroed before it is read into.
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Lets the system zero the range; `Unsupported` where it cannot.
    fn fallocate_zero(&self, offset: u64, len: u64, punch: bool) -> io::Result<()> {
        // On a block device neither of them is a discard: the kernel promises zeroes for both, by unmapping only
        // where the device guarantees that, else by writing.
        let punched = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zeroed = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if punch {
            match self.fallocate(punched, offset, len) {
                Err(e) if e.kind() == ErrorKind::Unsupported => {}
                done => return done,
            }
        }
        self.fallocate(zeroed, offset, len)
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        loop {
            return match rustix::fs::fallocate(&self.file, flags, offset, len) {
                Ok(()) => Ok(()),
                Err(Errno::INTR) => continue,
                // EBUSY: another opener holds the device exclusively; EINVAL: a mode or alignment it does not know;
                // EPERM and ENODEV come from sealed files and old file systems.
                Err(
                    e @ (Errno::OPNOTSUPP
                    | Errno::NOSYS
                    | Errno::BUSY
                    | Errno::INVAL
                    | Errno::PERM
                    | Errno::NODEV),
                ) => Err(io::Error::new(ErrorKind::Unsupported, e)),
                Err(e) => Err(e.into()),
            };
        }
    }

    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let zeroes = vec![0; range.end.saturating_sub(range.start).min(ZERO_CHUNK_BYTES) as usize];
        let mut at = range.start;
        while at < range.end {
            let count = (range.end - at).min(ZERO_CHUNK_BYTES);
            self.file.write_all_at(&zeroes[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }

    /// The first place at or after `offset` of the kind that `seek` asks for; `None` when there is none.
    fn seek(&self, seek: rustix::fs::SeekFrom) -> io::Result<Option<u64>> {
        // The file's own position is used for nothing else.
        match rustix::fs::seek(&self.file, seek) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Err(ErrorKind::Unsupported.into()),
            Err(e) => Err(e.into()),
        }
    }
}

impl File for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let direct = self.direct_for(buf.as_ptr(), offset, buf.len() as u64);
        direct.unwrap_or(&self.file).read_exact_at(buf, offset)
    }

    fn read_once(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(direct) = self.direct_for_large(buf.len() as u64) else {
            return self.read_at(buf, offset);
        };
        let whole = buf.len() as u64 / direct.align * direct.align;
        if !direct.takes(buf.as_ptr(), offset, whole) {
            return self.read_at(buf, offset);
        }
        let (blocks, rest) = buf.split_at_mut(whole as usize);
        direct.file.read_exact_at(blocks, offset)?;
        self.file.read_exact_at(rest, offset + whole)
    }

    fn read_bytes(&self, len: usize, offset: u64) -> io::Result<Bytes> {
        if let Some(direct) = self.direct_for_large(len as u64)
            && (offset | len as u64).is_multiple_of(direct.align)
        {
            let mut bytes = Buffer::with_len(len);
            direct.file.read_exact_at(&mut bytes, offset)?;
            return Ok(bytes.freeze());
        }
        self.read_vec(len, offset).map(Bytes::from)
    }

    fn will_read(&self, offset: u64, len: u64) {
        // Reads do without the advice.
        let _ = rustix::fs::fadvise(&self.file, offset, NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let length = buf.len() as u64;
        if let Some(direct) = self.direct_for(buf.as_ptr(), offset, length) {
            return direct.write_all_at(buf, offset);
        }
        match self.direct_for_large(length) {
            Some(direct) if direct.takes(buf.as_ptr(), offset, length) => {
                direct.file.write_all_at(buf, offset)
            }
            Some(direct) => self.write_gathered(&[buf], offset, length, direct),
            None => self.file.write_all_at(buf, offset),
        }
    }

    fn direct(&self, address: *const u8, offset: u64, len: u64) -> Option<BorrowedFd<'_>> {
        let direct = self.direct.as_ref().or_else(|| self.large());
        direct.filter(|direct| direct.takes(address, offset, len)).map(|direct| direct.file.as_fd())
    }

    fn write_vectored_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        let length = bufs.iter().map(|buf| buf.len() as u64).sum();
        match self.direct_for_large(length) {
            Some(direct) if direct.takes_all(bufs, offset) => write_vectored(&direct.file, bufs, offset),
            Some(direct) => self.write_gathered(bufs, offset, length, direct),
            None => write_vectored(&self.file, bufs, offset),
        }
    }

    fn sync(&self) -> io::Result<()> {
        // Cleared before the call: a change of length that comes meanwhile is for the next sync. After an error
        // nobody may sync again and believe it, so nothing is lost by not setting it again.
        if self.resized.swap(false, Ordering::AcqRel) { self.file.sync_all() } else { self.file.sync_data() }
    }

    fn forget_cached(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    fn len(&self) -> io::Result<u64> {
        if self.is_device {
            // Asks the device, as BLKGETSIZE64 does: the inode of a device has no length.
            return (&self.file).seek(SeekFrom::End(0));
        }
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.is_device {
            return match self.len()? {
                have if have >= len => Ok(()),
                have => Err(io::Error::new(
                    ErrorKind::StorageFull,
                    format!("the device has {have} bytes; {len} are needed"),
                )),
            };
        }
        if len == 0 {
            return Ok(());
        }
        self.resized.store(true, Ordering::Release);
        match self.fallocate(FallocateFlags::empty(), 0, len) {
            Err(e) if e.kind() == ErrorKind::Unsupported => self.write_zeroes(self.len()?..len),
            done => done,
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.resized.store(true, Ordering::Release);
        self.file.set_len(len)
    }

    fn zero(&self, offset: u64, len: u64, punch: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let end = offset.checked_add(len).ok_or(ErrorKind::InvalidInput)?;
        let size = self.len()?;
        if end > size {
            if self.is_device {
                return Err(io::Error::new(ErrorKind::InvalidInput, "a range past the end of the device"));
            }
            self.set_len(end)?;
        }
        // A device zeroes whole logical blocks only; what sticks out on either side is written.
        let inner = if self.is_device {
            offset.next_multiple_of(ZERO_ALIGN_BYTES)..end / ZERO_ALIGN_BYTES * ZERO_ALIGN_BYTES
        } else {
            offset..end
        };
        if inner.start >= inner.end {
            return self.write_zeroes(offset..end);
        }
        match self.fallocate_zero(inner.start, inner.end - inner.start, punch) {
            Err(e) if e.kind() == ErrorKind::Unsupported => return self.write_zeroes(offset..end),
            done => done?,
        }
        self.write_zeroes(offset..inner.start)?;
        self.write_zeroes(inner.end..end)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let size = self.len()?;
        if offset >= size {
            return Ok(None);
        }
        match self.seek(rustix::fs::SeekFrom::Data(offset)) {
            Ok(None) => Ok(None),
            Ok(Some(start)) => {
                // A hole that ends the file is always found; its absence means that the file shrank meanwhile.
                let end = self.seek(rustix::fs::SeekFrom::Hole(start))?.unwrap_or(size);
                Ok(Some((start, end)))
            }
            Err(e) if e.kind() == ErrorKind::Unsupported => Ok(Some((offset, size))),
            Err(e) => Err(e),
        }
    }
}

fn write_vectored(file: &fs::File, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        bufs.iter().filter(|buf| !buf.is_empty()).map(|buf| IoSlice::new(buf)).collect();
    let (mut left, mut at) = (&mut slices[..], offset);
    while !left.is_empty() {
        match rustix::io::pwritev(file, &left[..left.len().min(MAX_BUFFERS)], at) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut left, written);
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A file mapped whole.
#[derive(Debug)]
pub struct RealMapping {
    map: MmapRaw,
    words: usize,
}

impl RealMapping {
    /// Maps `file`, which has to be `words` words long with disk space behind all of them.
    fn new(file: &fs::File, words: usize) -> io::Result<Self> {
        let map = MmapRaw::map_raw(file)?;
        if map.len() != words * WORD_BYTES {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "the file's length changed while it was mapped",
            ));
        }
        // Neighbours of a word are of no use: read ahead, they would take time and memory for each word far from others.
        map.advise(Advice::Random)?;
        Ok(Self { map, words })
    }
}

impl Mapping for RealMapping {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `words * 8` bytes long (checked when it was made), aligned to a page and readable
        // and writable for as long as `self` lives. The memory is only ever accessed through these atomics, so
        // other threads, or another process that maps the file, cannot cause a data race; every bit pattern is a
        // valid AtomicU64.
        unsafe { std::slice::from_raw_parts(self.map.as_mut_ptr().cast::<AtomicU64>(), self.words) }
    }

    fn sync(&self, range: Range<usize>) -> io::Result<()> {
        if range.start > range.end || range.end > self.words {
            return Err(io::Error::new(ErrorKind::InvalidInput, "a range past the end of the mapping"));
        }
        if range.is_empty() {
            return Ok(());
        }
        // msync(MS_SYNC), widened to whole pages.
        self.map.flush_range(range.start * WORD_BYTES, range.len() * WORD_BYTES)
    }

    fn let_go(&self) {
        // SAFETY: the mapping is of a file and shared (`map_raw`): its pages stay in the page cache, changes included, and
        // come back from there at the next access, so that every reference to the words stays valid and sees the same.
        let advised = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        if let Err(error) = advised {
            tracing::debug!(%error, "the memory of a mapped file is kept");
        }
    }
}

/// A directory.
#[derive(Debug)]
pub struct RealDir {
    path: PathBuf,
    handle: fs::File,
}

impl RealDir {
    /// Opens a directory, which has to exist.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let handle = fs::File::open(&path)?;
        if !handle.metadata()?.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        Ok(Self { path, handle })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a name, which may not lead out of the directory.
    fn child(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(io::Error::new(ErrorKind::InvalidInput, format!("{name:?} is not a file name")));
        }
        Ok(self.path.join(name))
    }

    fn open_std(&self, name: &str, how: Open) -> io::Result<fs::File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(how == Open::Any)
            .create_new(how == Open::New)
            .mode(0o600)
            .open(self.child(name)?)
    }
}

impl Dir for RealDir {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile::new(self.open_std(name, how)?)?))
    }

    fn open_log(&self, name: &str, how: Open) -> io::Result<Arc<dyn File>> {
        let mut file = RealFile::new(self.open_std(name, how)?)?;
        file.open_large_direct();
        Ok(Arc::new(file))
    }

    fn map(&self, name: &str, words: usize) -> io::Result<Box<dyn Mapping>> {
        let file = RealFile::new(self.open_std(name, Open::Any)?)?;
        let (have, want) = (file.len()?, (words * WORD_BYTES) as u64);
        if have != 0 && have != want {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("the file is {have} bytes long, not {want}"),
            ));
        }
        // Also for a file that exists: a hole in it would be a fault when the disk is full.
        if let Err(e) = file.allocate(want).and_then(|()| file.sync()) {
            if have == 0 {
                // Leave no half of a file behind; the error that counts is the first one.
                let _ = self.remove(name);
            }
            return Err(e);
        }
        Ok(Box::new(RealMapping::new(file.as_std(), words)?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?
            .map(|entry| {
                entry?.file_name().into_string().map_err(|name| {
                    io::Error::new(ErrorKind::InvalidData, format!("the file name {name:?} is not UTF-8"))
                })
            })
            .collect()
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.child(name)?.try_exists()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.child(name)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.child(from)?, self.child(to)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}
