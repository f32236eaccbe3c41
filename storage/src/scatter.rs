//! Short writes here and there in the volumes of a group, past the page cache, a few under way at a time.
//!
//! What goes through the page cache comes to the disk all at once, with the next sync, and fills its queue for so long that
//! others' requests wait for milliseconds. Written like this, a disk that is shared hardly notices.
//!
//! Owns the writes until they are done. Leaves to the caller that no two of them overlap, and the sync.

use std::io;
use std::sync::Arc;

use afterimage_memory::Buffer;
use afterimage_protocol::{BLOCK_BYTES, Lsn, VolumeIndex};
use bytes::{BufMut, Bytes};

use crate::io::File;
use crate::ring::Ring;

/// Writes under way at most: with more, others wait longer; with fewer, each costs a system call.
const DEPTH: usize = 4;
/// Longer writes are not taken: they fill a disk's queue by themselves.
const MAX_BYTES: u64 = 128 << 10;

/// The writes that are under way.
pub struct Scatter(Way);

enum Way {
    /// Nothing is taken.
    None,
    Ring(Box<Ring<Token>>),
    Held(Held),
}

/// Writes that are done when they are waited for, in an order that somebody else picks: what a disk may do with those that it has
/// at the same time.
struct Held {
    writes: Vec<Write>,
    /// Which of so many is next.
    pick: Box<dyn FnMut(usize) -> usize + Send>,
}

struct Write {
    token: Token,
    offset: u64,
    bytes: Bytes,
}

/// By what a write is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The journal entry that it comes from.
    pub lsn: Lsn,
    /// The volume.
    pub volume: VolumeIndex,
}

/// A write that could not be done.
#[derive(Debug)]
pub struct Failed {
    /// What it is known by.
    pub token: Token,
    /// Where it began, in bytes.
    pub offset: u64,
    /// What the system said.
    pub source: io::Error,
}

impl Default for Scatter {
    fn default() -> Self {
        Self(match Ring::new() {
            Ok(ring) => Way::Ring(Box::new(ring)),
            Err(error) => {
                tracing::info!(%error, "no io_uring: what is applied goes through the page cache");
                Way::None
            }
        })
    }
}

impl Scatter {
    /// For simulated disks: writes are held back until they are waited for, and then done by [`File::write_at`], one after the
    /// other; `pick` says which of so many is next.
    pub fn held(pick: impl FnMut(usize) -> usize + Send + 'static) -> Self {
        Self(Way::Held(Held { writes: Vec::new(), pick: Box::new(pick) }))
    }

    /// Takes `parts`, one behind the other at `offset` of a volume, if they are short and make whole blocks; whether it has.
    /// Waits while too many are under way.
    ///
    /// # Errors
    /// An earlier write has failed; this one was not taken.
    pub fn take(
        &mut self,
        volumes: &[Arc<dyn File>],
        token: Token,
        offset: u64,
        parts: &[&Bytes],
    ) -> Result<bool, Failed> {
        let Some(file) = volumes.get(token.volume.0 as usize) else { return Ok(false) };
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        // Whole blocks: what is written beside them through the page cache is in other pages.
        if length == 0 || length > MAX_BYTES || !(offset | length).is_multiple_of(BLOCK_BYTES) {
            return Ok(false);
        }
        if self.under_way() >= DEPTH {
            self.wait(volumes, DEPTH / 2)?;
        }
        match &mut self.0 {
            Way::None => return Ok(false),
            Way::Ring(ring) => {
                let direct = |bytes: Bytes| Some((file.direct(bytes.as_ptr(), offset, length)?, bytes));
                let as_it_is = match parts {
                    [one] => direct(Bytes::clone(one)),
                    _ => None,
                };
                let Some((descriptor, bytes)) = as_it_is.or_else(|| direct(joined(parts, length))) else {
                    return Ok(false);
                };
                ring.push(descriptor, offset, bytes, token);
            }
            Way::Held(held) => held.writes.push(Write { token, offset, bytes: joined(parts, length) }),
        }
        Ok(true)
    }

    /// Whether no write is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way() == 0
    }

    fn under_way(&self) -> usize {
        match &self.0 {
            Way::None => 0,
            Way::Ring(ring) => ring.under_way(),
            Way::Held(held) => held.writes.len(),
        }
    }

    /// Returns once no write is under way.
    ///
    /// # Errors
    /// The first that has failed.
    pub fn finish(&mut self, volumes: &[Arc<dyn File>]) -> Result<(), Failed> {
        let mut result = Ok(());
        while self.under_way() > 0 {
            let ended = self.wait(volumes, self.under_way());
            result = result.and(ended);
        }
        result
    }

    /// Waits until at least `count` writes have ended.
    fn wait(&mut self, volumes: &[Arc<dyn File>], count: usize) -> Result<(), Failed> {
        let write_at = |volume: VolumeIndex, bytes: &[u8], at| {
            volumes.get(volume.0 as usize).map_or(Ok(()), |file| file.write_at(bytes, at))
        };
        let mut failed = None;
        let mut ended = |token, offset, result: io::Result<()>| {
            if let Err(source) = result {
                failed.get_or_insert(Failed { token, offset, source });
            }
        };
        match &mut self.0 {
            Way::None => {}
            Way::Ring(ring) => {
                for written in ring.wait(count) {
                    let (offset, volume) = (written.offset, written.token.volume);
                    let (token, done) = written.complete(|rest, at| write_at(volume, rest, at));
                    ended(token, offset, done);
                }
            }
            Way::Held(held) => {
                for _ in 0..count.min(held.writes.len()) {
                    let next = (held.pick)(held.writes.len());
                    let Write { token, offset, bytes } = held.writes.swap_remove(next);
                    ended(token, offset, write_at(token.volume, &bytes, offset));
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The parts in memory that can be written past the page cache.
fn joined(parts: &[&Bytes], length: u64) -> Bytes {
    let mut buffer = Buffer::new(length as usize);
    parts.iter().for_each(|part| buffer.put_slice(part));
    buffer.freeze()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::fs::FileExt;
    use std::sync::Mutex;

    use super::*;

    /// A file that is written by way of another descriptor of it.
    struct Beside {
        file: fs::File,
        direct: fs::File,
        through: Mutex<Vec<(u64, usize)>>,
    }

    impl Beside {
        fn new(direct: fs::OpenOptions) -> (tempfile::NamedTempFile, Arc<Self>) {
            let temp = tempfile::NamedTempFile::new().unwrap();
            let file = temp.as_file().try_clone().unwrap();
            let direct = direct.open(temp.path()).unwrap();
            (temp, Arc::new(Self { file, direct, through: Mutex::default() }))
        }
    }

    impl File for Beside {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.file.read_exact_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.through.lock().unwrap().push((offset, buf.len()));
            self.file.write_all_at(buf, offset)
        }
        fn direct(&self, _: *const u8, _: u64, _: u64) -> Option<BorrowedFd<'_>> {
            Some(self.direct.as_fd())
        }
        fn sync(&self) -> io::Result<()> {
            self.file.sync_data()
        }
        fn forget_cached(&self) -> io::Result<()> {
            Ok(())
        }
        fn len(&self) -> io::Result<u64> {
            Ok(self.file.metadata()?.len())
        }
        fn allocate(&self, _: u64) -> io::Result<()> {
            Err(ErrorKind::Unsupported.into())
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(ErrorKind::Unsupported.into())
        }
        fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Err(ErrorKind::Unsupported.into())
        }
        fn next_data(&self, _: u64) -> io::Result<Option<(u64, u64)>> {
            Err(ErrorKind::Unsupported.into())
        }
    }

    fn token(lsn: u64) -> Token {
        Token { lsn: Lsn(lsn), volume: VolumeIndex(0) }
    }

    fn block(fill: u8) -> Bytes {
        Bytes::from(vec![fill; BLOCK_BYTES as usize])
    }

    #[test]
    fn whole_blocks_are_taken_and_nothing_else_is() {
        let mut options = fs::OpenOptions::new();
        options.write(true);
        let (temp, file) = Beside::new(options);
        let volumes: Vec<Arc<dyn File>> = vec![file.clone()];
        let mut scatter = Scatter::default();
        for n in 0..200 {
            let parts = [&block(n as u8), &block(n as u8 + 1)];
            let parts = if n % 2 == 0 { &parts[..1] } else { &parts[..] };
            assert!(scatter.take(&volumes, token(n), 2 * n * BLOCK_BYTES, parts).unwrap());
            assert!(scatter.under_way() <= DEPTH);
        }
        scatter.finish(&volumes).unwrap();
        assert!(scatter.is_idle());
        let written = fs::read(temp.path()).unwrap();
        for n in 0..200 {
            let at = |block: usize| written.get(block * BLOCK_BYTES as usize).copied().unwrap_or_default();
            let second = if n % 2 == 0 { 0 } else { n as u8 + 1 };
            assert_eq!((at(2 * n), at(2 * n + 1)), (n as u8, second));
        }

        let long = Bytes::from(vec![1; MAX_BYTES as usize + BLOCK_BYTES as usize]);
        let short = block(1).slice(1..);
        for (offset, parts) in [(0, vec![]), (0, vec![&short]), (512, vec![&block(1)]), (0, vec![&long])] {
            assert!(!scatter.take(&volumes, token(0), offset, &parts).unwrap(), "{offset} {}", parts.len());
        }
        assert!(!Scatter(Way::None).take(&volumes, token(0), 0, &[&block(1)]).unwrap());
        assert!(file.through.lock().unwrap().is_empty());
    }

    #[test]
    fn a_write_that_fails_is_named_and_none_stays_under_way() {
        let mut options = fs::OpenOptions::new();
        options.read(true);
        let (_temp, file) = Beside::new(options);
        let volumes: Vec<Arc<dyn File>> = vec![file];
        let mut scatter = Scatter::default();
        assert!(matches!(scatter.0, Way::Ring(_)), "no io_uring");
        let mut failed = None;
        for n in 1..=2 * DEPTH as u64 {
            match scatter.take(&volumes, token(n), n * BLOCK_BYTES, &[&block(1)]) {
                Ok(taken) => assert!(taken),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let failed = failed.unwrap();
        assert_eq!(failed.offset, failed.token.lsn.0 * BLOCK_BYTES);
        assert!(failed.token.lsn.0 <= DEPTH as u64, "one of those that were under way");
        // Those beside it may have ended with it.
        let _ = scatter.finish(&volumes);
        assert!(scatter.is_idle());
        scatter.finish(&volumes).unwrap();
        scatter.take(&volumes, token(9), 0, &[&block(1)]).unwrap();
        assert_eq!(scatter.finish(&volumes).unwrap_err().token, token(9));
    }
}
