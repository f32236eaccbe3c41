//! Exclusive locks: on a group's state directory, which one process at a time owns, and on image files; and what tells that writes of
//! a process that has ended are still under way.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

const LOCK_FILE: &str = "lock";
/// How long a lock that is held is tried again. A child that was just forked holds what its parent had open until it
/// executes its program, and udev claims a device while it looks at it: neither is worth failing a start.
const PATIENCE: Duration = Duration::from_millis(500);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// The byte of a volume whose lock says that writes may be under way: behind all that a volume can have, and no other program's.
const WRITES_AT: libc::off_t = libc::off_t::MAX - 1;

/// Why a directory cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{path:?} is in use by {holder}; only one process may own a group's state. Stop it first",
        holder = holder(*pid)
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// The process, if it left its id.
        pid: Option<u32>,
    },
    /// The disk said no.
    #[error("cannot lock the directory {path:?}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A held lock; it ends when this is dropped or the process ends, however that happens.
#[derive(Debug)]
pub struct DirLock {
    /// Closing it is what unlocks.
    _file: File,
}

impl DirLock {
    /// Takes the lock of the directory `path`; waits for it no longer than half a second.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(io)?;
        if !lock_file(&file).map_err(io)? {
            return Err(LockError::Held { path: path.to_owned(), pid: read_pid(&file) });
        }
        // For the message above, in another process; the lock does not depend on it.
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
        Ok(Self { _file: file })
    }
}

/// Locks a file with `flock`, until it is closed; `false` when another holder keeps it.
pub(crate) fn lock_file(file: &File) -> io::Result<bool> {
    let try_once = || match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(())),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
        Err(e) => Err(e.into()),
    };
    Ok(try_for_a_while(try_once)?.is_some())
}

/// Has [`writes_have_ended`] wait for the writes that go by way of `file`. The lock is that of the open file, not of the process: a
/// write that the kernel was given keeps it, also if the process is killed.
pub(crate) fn note_writes(file: &File) -> io::Result<()> {
    lock_writes(file, libc::F_OFD_SETLK, libc::F_RDLCK).map(drop)
}

/// Waits until nothing is open that was noted by [`note_writes`]; `false` when patience ends. `file` is not such a one.
pub(crate) fn writes_have_ended(file: &File) -> io::Result<bool> {
    let look = || lock_writes(file, libc::F_OFD_GETLK, libc::F_WRLCK);
    let is_free = |kind| kind == libc::F_UNLCK as libc::c_short;
    Ok(try_for_a_while(|| Ok(is_free(look()?).then_some(())))?.is_some())
}

/// Takes the lock on [`WRITES_AT`], or looks whether it could be taken; what is in its way.
fn lock_writes(file: &File, command: libc::c_int, kind: libc::c_int) -> io::Result<libc::c_short> {
    // SAFETY: it is made of numbers, and 0 is good for all of them.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = (WRITES_AT, 1);
    loop {
        // SAFETY: the file is open, and these commands read and write nothing but `lock`.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } != -1 {
            return Ok(lock.l_type);
        }
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Calls `try_once` until it has something or fails, or patience ends.
pub(crate) fn try_for_a_while<T>(
    mut try_once: impl FnMut() -> io::Result<Option<T>>,
) -> io::Result<Option<T>> {
    let started = Instant::now();
    loop {
        match try_once()? {
            None if started.elapsed() < PATIENCE => thread::sleep(RETRY_INTERVAL),
            result => return Ok(result),
        }
    }
}

fn read_pid(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        let error = DirLock::take(dir.path()).unwrap_err();
        assert!(matches!(error, LockError::Held { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        DirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_file_without_a_pid_still_locks() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = DirLock::take(dir.path()).unwrap();
        std::fs::write(dir.path().join(LOCK_FILE), b"\xff garbage").unwrap();
        let error = DirLock::take(dir.path()).unwrap_err();
        assert!(matches!(error, LockError::Held { pid: None, .. }));
        assert!(error.to_string().contains("another process"), "{error}");
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = DirLock::take(&dir.path().join("gone")).unwrap_err();
        assert!(matches!(error, LockError::Io { .. }));
        assert!(error.to_string().contains("gone"), "{error}");
    }
}
