//! The few things that storage asks of a disk, behind small traits, so that the simulator can put a lossy disk under
//! the same code that runs on a real one.
//!
//! Semantics are those of a POSIX file system: a write is visible to every reader at once and survives the process;
//! only [`File::sync`] (for bytes) and [`Dir::sync`] (for names) make it survive the host. After a `sync` returned an
//! error nothing since the last good one may be called durable, and it is never tried again on the same data.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;

/// A file or block device, addressed by byte.
pub trait File: Send + Sync {
    /// Fills `buf` from `offset`; `UnexpectedEof` past the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// The same for what is not read again soon: the system need not keep it in memory.
    fn read_once(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_at(buf, offset)
    }
    /// The `len` bytes at `offset`, which are not read again soon either; `UnexpectedEof` past the end.
    fn read_bytes(&self, len: usize, offset: u64) -> io::Result<Bytes> {
        let mut bytes = vec![0; len];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }
    /// Says that these bytes are read soon, so that the system can have several such reads under way.
    fn will_read(&self, _offset: u64, _len: u64) {}
    /// Writes all of `buf` at `offset`; visible at once, durable after [`File::sync`].
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Writes the buffers one behind the other, as one call where the system can.
    fn write_vectored_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for buf in bufs {
            self.write_at(buf, at)?;
            at += buf.len() as u64;
        }
        Ok(())
    }
    /// The file opened past the page cache, if `len` bytes of memory at `address` may be written to it at `offset` that way. A
    /// write through it has the effects of [`File::write_at`].
    fn direct(&self, _address: *const u8, _offset: u64, _len: u64) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Returns once every byte written before the call is on stable storage.
    fn sync(&self) -> io::Result<()>;
    /// Drops what is cached of the file and clean, so that it reads as it is on stable storage. After a failed sync what
    /// is cached may be newer than that, and count as clean.
    fn forget_cached(&self) -> io::Result<()>;
    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reserves space so that the file is at least `len` bytes long and writing them needs no more; new bytes are 0.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts or extends (with a hole) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes a range read as zeroes; with `punch` the space may be given back, without it stays allocated.
    fn zero(&self, offset: u64, len: u64, punch: bool) -> io::Result<()>;
    /// The first run of data at or after `offset` as `(start, end)`, `None` when only holes follow. A device that
    /// cannot tell says that all is data.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>>;
}

/// A file mapped into memory as little-endian words.
pub trait Mapping: Send + Sync {
    /// The words; a change is visible at once, survives the process, and is durable after [`Mapping::sync`].
    fn words(&self) -> &[AtomicU64];
    /// Returns once the words in `range` (indices into [`Mapping::words`]) are on stable storage; may sync more.
    fn sync(&self, range: std::ops::Range<usize>) -> io::Result<()>;
    /// Lets go of the memory that the words take, where they are kept elsewhere too: they are the same afterwards.
    fn let_go(&self) {}
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must exist.
    Existing,
    /// It must not exist.
    New,
    /// Either.
    Any,
}

/// A directory that holds the state of one group.
pub trait Dir: Send + Sync {
    /// Opens `name` for reading and writing.
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn File>>;
    /// The same for a file that is written once, in long runs, and read rarely if ever: its large writes may go past the page
    /// cache. What a write means is the same.
    fn open_log(&self, name: &str, how: Open) -> io::Result<Arc<dyn File>> {
        self.open(name, how)
    }
    /// Opens or makes `name` with `words` words, all of them backed by disk space (a full disk is an error here,
    /// never a fault later), and maps it. An existing file keeps its words; one of another length is an
    /// `InvalidData` error.
    fn map(&self, name: &str, words: usize) -> io::Result<Box<dyn Mapping>>;
    /// Names in the directory, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Whether `name` exists.
    fn exists(&self, name: &str) -> io::Result<bool>;
    /// Removes `name`.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames, replacing what `to` names.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Returns once the names themselves are on stable storage.
    fn sync(&self) -> io::Result<()>;
}
