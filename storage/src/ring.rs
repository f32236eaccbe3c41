//! Many writes on their way to a disk at once, without a thread for each: an io_uring.
//!
//! Owns what the kernel was given until it gives it back. Leaves to the caller what is written where, and when results are
//! taken: the ring's descriptor is readable once there are any.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use bytes::Bytes;
use io_uring::{IoUring, opcode, types};

/// Writes that the kernel is given at once; more wait here.
const ENTRIES: u32 = 256;
/// A kernel that takes nothing is asked again after this long.
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// Writes under way, each with a `T` by which the caller knows it.
pub struct Ring<T> {
    uring: IoUring,
    /// Of each write that the kernel has, by its number; the others are free.
    writes: Vec<Option<Write<T>>>,
    free: Vec<usize>,
    waiting: VecDeque<(RawFd, Write<T>)>,
}

struct Write<T> {
    token: T,
    /// Read by the kernel until it is done.
    bytes: Bytes,
    offset: u64,
}

/// A write that has ended.
#[derive(Debug)]
pub struct Written<T> {
    /// What it is known by.
    pub token: T,
    /// What was to be written.
    pub bytes: Bytes,
    /// Where, in bytes.
    pub offset: u64,
    /// How many bytes of it were; fewer than all of them is rare and no error.
    pub result: io::Result<usize>,
}

impl<T> Written<T> {
    /// Has `write` do what the kernel has left undone; what the write is known by, and how it ended as a whole.
    pub fn complete(self, write: impl FnOnce(&[u8], u64) -> io::Result<()>) -> (T, io::Result<()>) {
        let Self { token, bytes, offset, result } = self;
        let done = match result {
            // The kernel may not have begun with it.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            result => result,
        };
        let ended = done.and_then(|done| match bytes.get(done..) {
            Some(rest) if !rest.is_empty() => write(rest, offset + done as u64),
            _ => Ok(()),
        });
        (token, ended)
    }
}

impl<T> Ring<T> {
    /// A ring with nothing under way.
    ///
    /// # Errors
    /// If the system has no io_uring, or does not allow it.
    pub fn new() -> io::Result<Self> {
        let uring = IoUring::new(ENTRIES)?;
        let free = (0..ENTRIES as usize).rev().collect();
        let writes = (0..ENTRIES).map(|_| None).collect();
        Ok(Self { uring, writes, free, waiting: VecDeque::new() })
    }

    /// Readable when [`Ring::take`] has something.
    ///
    /// # Errors
    /// If the system gives no more file descriptors.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the ring is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }.try_clone_to_owned()
    }

    /// Writes that have not been taken, here or with the kernel.
    pub fn under_way(&self) -> usize {
        self.waiting.len() + self.writes.len() - self.free.len()
    }

    /// Puts a write behind the others; [`Ring::submit`] gives it to the kernel. `file` has to stay open until the write is
    /// taken.
    pub fn push(&mut self, file: BorrowedFd<'_>, offset: u64, bytes: Bytes, token: T) {
        self.waiting.push_back((file.as_raw_fd(), Write { token, bytes, offset }));
    }

    /// Gives what waits to the kernel, as far as it has room. From the thread that will be there longest: the kernel gives up
    /// the writes of one that ends.
    ///
    /// # Errors
    /// The kernel takes nothing now. What it has was not lost, and what it has not is given to it the next time.
    pub fn submit(&mut self) -> io::Result<()> {
        self.fill();
        if self.uring.submission().is_empty() {
            return Ok(());
        }
        self.uring.submit().map(drop)
    }

    /// Puts what waits where the kernel finds it when it is called, as far as there is room.
    fn fill(&mut self) {
        while !self.waiting.is_empty() && !self.free.is_empty() {
            let Some((file, write)) = self.waiting.pop_front() else { break };
            let Some(place) = self.free.pop() else { break };
            // At most MAX_PAYLOAD_BYTES.
            let length = write.bytes.len() as u32;
            let entry = opcode::Write::new(types::Fd(file), write.bytes.as_ptr(), length)
                .offset(write.offset)
                .build()
                .user_data(place as u64);
            self.writes[place] = Some(write);
            // SAFETY: the bytes are kept in `writes`, where nothing moves or changes them, until the kernel is done with them;
            // `drop` waits for that too. The caller keeps the file open.
            let pushed = unsafe { self.uring.submission().push(&entry) };
            // There are as many entries as places.
            debug_assert!(pushed.is_ok());
        }
    }

    /// As [`Ring::take`], but waits for `count` writes, or for all that are under way. A kernel that takes no more now is asked
    /// again.
    pub fn wait(&mut self, count: usize) -> Vec<Written<T>> {
        let mut taken = Vec::new();
        while taken.len() < count && self.under_way() > 0 {
            self.fill();
            // Once for all of them: each return takes a processor.
            let awaited = (count - taken.len()).min(self.writes.len() - self.free.len());
            // What could not be given to it, or not be waited for, is still here.
            if self.uring.submit_and_wait(awaited).is_err() {
                std::thread::sleep(TRY_AGAIN);
            }
            taken.extend(self.take());
        }
        taken
    }

    /// The writes that have ended since the last call.
    pub fn take(&mut self) -> Vec<Written<T>> {
        let mut taken = Vec::new();
        for entry in self.uring.completion() {
            let place = entry.user_data() as usize;
            let Some(Write { token, bytes, offset }) = self.writes.get_mut(place).and_then(Option::take)
            else {
                continue;
            };
            self.free.push(place);
            let result = match entry.result() {
                error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                written => Ok(written as usize),
            };
            taken.push(Written { token, bytes, offset, result });
        }
        taken
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        self.waiting.clear();
        // The kernel reads the bytes of what it was given.
        while self.under_way() > 0 {
            match self.uring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    // It can neither be waited for nor be given up.
                    std::mem::forget(std::mem::take(&mut self.writes));
                    return;
                }
            }
            drop(self.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn wait_for<T>(ring: &mut Ring<T>, count: usize) -> Vec<Written<T>> {
        let mut taken = Vec::new();
        while taken.len() < count {
            ring.submit().unwrap();
            taken.extend(ring.take());
            std::thread::yield_now();
        }
        taken
    }

    #[test]
    fn more_writes_than_the_kernel_takes_at_once_all_arrive() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = Ring::new().unwrap();
        let count = ENTRIES as u64 * 3;
        for n in 0..count {
            ring.push(file.as_fd(), n * 8, Bytes::from((n + 1).to_le_bytes().to_vec()), n);
        }
        assert_eq!(ring.under_way() as u64, count);
        let mut tokens: Vec<u64> = wait_for(&mut ring, count as usize)
            .into_iter()
            .map(|written| {
                assert_eq!((written.result.unwrap(), written.offset), (8, written.token * 8));
                written.token
            })
            .collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..count).collect::<Vec<_>>());
        assert_eq!(ring.under_way(), 0);
        let mut found = vec![0; count as usize * 8];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0).unwrap();
        for (n, word) in found.as_chunks::<8>().0.iter().enumerate() {
            assert_eq!(u64::from_le_bytes(*word), n as u64 + 1);
        }
    }

    #[test]
    fn a_write_that_fails_is_told_from_others() {
        let (dir, file) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
        let path = dir.path().join("read-only");
        std::fs::write(&path, b"").unwrap();
        let read_only = std::fs::File::open(path).unwrap();
        let mut ring = Ring::new().unwrap();
        ring.push(read_only.as_fd(), 0, Bytes::from_static(b"no"), "no");
        ring.push(file.as_fd(), 0, Bytes::from_static(b"yes"), "yes");
        for written in wait_for(&mut ring, 2) {
            assert_eq!(written.result.is_ok(), written.token == "yes");
        }
    }

    #[test]
    fn what_is_under_way_is_waited_for() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = Ring::new().unwrap();
        for n in 0..64 {
            ring.push(file.as_fd(), n << 20, Bytes::from(vec![7; 1 << 20]), ());
        }
        ring.submit().unwrap();
        drop(ring);
        assert_eq!(file.metadata().unwrap().len(), 64 << 20);
    }

    #[test]
    fn what_the_kernel_leaves_undone_is_written() {
        let mut rests = Vec::new();
        let mut complete = |result| {
            let written =
                Written { token: 7, bytes: Bytes::from_static(b"0123456789"), offset: 1000, result };
            let write = |rest: &[u8], at| {
                rests.push((at, rest.len()));
                Ok(())
            };
            let (token, ended) = written.complete(write);
            assert_eq!(token, 7);
            ended
        };
        complete(Ok(4)).unwrap();
        complete(Err(ErrorKind::WouldBlock.into())).unwrap();
        complete(Ok(10)).unwrap();
        assert_eq!(complete(Err(ErrorKind::StorageFull.into())).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(rests, [(1004, 6), (1000, 10)]);
    }
}
