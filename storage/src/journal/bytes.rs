//! Little-endian fields in byte slices, and a window for reading a file front to back.

use std::io;
use std::sync::Arc;

use afterimage_memory::Buffer;

use crate::io::File;

/// Bytes read at first: what looks at one entry reads little more than that.
const FIRST_READ_BYTES: u64 = 64 << 10;
/// Bytes read at once by what reads on and on: past the page cache, where a disk is as fast as it gets.
const MAX_READ_BYTES: u64 = 4 << 20;
/// A read begins and ends at a multiple of this, as one past the page cache has to.
const READ_ALIGN: u64 = 4096;

pub(super) fn put_u32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

pub(super) fn put_u64(b: &mut [u8], at: usize, v: u64) {
    b[at..at + 8].copy_from_slice(&v.to_le_bytes());
}

pub(super) fn get_u32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(super) fn get_u64(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// A file read front to back, up to a limit; the further it is read, the more at once.
pub(super) struct Window {
    file: Arc<dyn File>,
    limit: u64,
    /// Where in the file the buffer begins.
    start: u64,
    /// How many of its bytes are those of the file.
    held: usize,
    buffer: Buffer,
    read_bytes: u64,
}

impl Window {
    /// A window onto the first `limit` bytes of `file`, which has at least as many.
    pub fn new(file: Arc<dyn File>, limit: u64) -> Self {
        Self { file, limit, start: 0, held: 0, buffer: Buffer::new(0), read_bytes: 0 }
    }

    /// Gives back the memory; what is asked for next is read again.
    pub fn forget(&mut self) {
        (self.held, self.buffer, self.read_bytes) = (0, Buffer::new(0), 0);
    }

    /// As many bytes from `offset` on as are at hand, at least `least` of them unless the limit is nearer.
    pub fn rest(&mut self, offset: u64, least: u64) -> io::Result<&[u8]> {
        if self.get(offset, least)?.is_none() {
            return Ok(&[]);
        }
        Ok(self.buffer.get((offset - self.start) as usize..self.held).unwrap_or_default())
    }

    /// `len` bytes from `offset`; `None` past the limit.
    pub fn get(&mut self, offset: u64, len: u64) -> io::Result<Option<&[u8]>> {
        let Some(end) = offset.checked_add(len).filter(|end| *end <= self.limit) else {
            return Ok(None);
        };
        if offset < self.start || end > self.start + self.held as u64 {
            self.read_on(offset, end)?;
        }
        let from = (offset - self.start) as usize;
        Ok(self.buffer.get(from..from + len as usize))
    }

    /// Has the buffer hold the file from `offset` to `end` and further. What it holds of that is not read again.
    fn read_on(&mut self, offset: u64, end: u64) -> io::Result<()> {
        let held_until = self.start + self.held as u64;
        let start = offset / READ_ALIGN * READ_ALIGN;
        let goes_on = self.held > 0 && (self.start..=held_until).contains(&start);
        let kept = if goes_on { (held_until - start) as usize } else { 0 };
        self.read_bytes = if goes_on { (2 * self.read_bytes).min(MAX_READ_BYTES) } else { FIRST_READ_BYTES };
        let wanted = (end - start).max(kept as u64 + self.read_bytes).next_multiple_of(READ_ALIGN);
        let wanted = wanted.min(self.limit - start) as usize;

        let from = self.held - kept;
        if self.buffer.len() < wanted {
            let mut larger = Buffer::with_len(wanted);
            larger[..kept].copy_from_slice(&self.buffer[from..self.held]);
            self.buffer = larger;
        } else {
            self.buffer.copy_within(from..self.held, 0);
        }
        (self.start, self.held) = (start, kept);
        self.file.read_once(&mut self.buffer[kept..wanted], start + kept as u64)?;
        self.held = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::{Mutex, PoisonError};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A file of so many bytes, what was read of it, and how many of the next reads fail.
    struct Read {
        len: u64,
        ranges: Mutex<Vec<Range<u64>>>,
        failing: Mutex<u32>,
    }

    fn byte(at: u64) -> u8 {
        (at % 251) as u8
    }

    impl Read {
        fn new(len: u64) -> Arc<Self> {
            Arc::new(Self { len, ranges: Mutex::default(), failing: Mutex::default() })
        }

        fn take(&self) -> Vec<Range<u64>> {
            std::mem::take(&mut self.ranges.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    impl File for Read {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            let end = offset + buf.len() as u64;
            if end > self.len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut failing = self.failing.lock().unwrap();
            if *failing > 0 {
                *failing -= 1;
                return Err(io::ErrorKind::Other.into());
            }
            self.ranges.lock().unwrap().push(offset..end);
            buf.iter_mut().zip(offset..).for_each(|(to, at)| *to = byte(at));
            Ok(())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn forget_cached(&self) -> io::Result<()> {
            Ok(())
        }

        fn len(&self) -> io::Result<u64> {
            Ok(self.len)
        }

        fn allocate(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
            Ok(Some((offset, self.len)))
        }
    }

    fn assert_got(window: &mut Window, offset: u64, len: u64) {
        let got = window.get(offset, len).unwrap().expect("before the limit");
        assert!(got.iter().copied().eq((offset..offset + len).map(byte)), "{len} bytes at {offset}");
    }

    #[test]
    fn what_is_read_on_and_on_is_read_once_and_more_at_a_time() {
        let (file, limit) = (Read::new(64 * MIB), 64 * MIB - 100);
        let mut window = Window::new(file.clone(), limit);
        let mut at = 4096;
        for length in [64, MIB + 5, 64, 300, 9, 2 * MIB, 100_000, 64].iter().cycle() {
            if at + length > limit {
                break;
            }
            assert_got(&mut window, at, *length);
            at += length;
        }
        assert_got(&mut window, at, limit - at);
        assert_eq!(window.get(at, limit - at + 1).unwrap(), None);
        let ranges = file.take();
        assert_eq!(ranges[0], 4096..4096 + FIRST_READ_BYTES);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "{ranges:?}");
        assert!(ranges.iter().all(|r| r.start.is_multiple_of(READ_ALIGN)), "{ranges:?}");
        let (last, others) = ranges.split_last().unwrap();
        assert!(others.iter().all(|r| r.end.is_multiple_of(READ_ALIGN)), "{ranges:?}");
        assert_eq!(last.end, limit);
        assert!(ranges.len() < 24, "{} reads", ranges.len());
    }

    #[test]
    fn elsewhere_a_little_is_read_again() {
        let file = Read::new(64 * MIB);
        let mut window = Window::new(file.clone(), 64 * MIB);
        for start in [9 * MIB, 30 * MIB + 4096, MIB, 9 * MIB] {
            (0..200).for_each(|n| assert_got(&mut window, start + n * 4096, 4000));
            assert_eq!(file.take()[0], start..start + FIRST_READ_BYTES);
        }
        window.forget();
        assert!(window.buffer.is_empty());
        assert_got(&mut window, 9 * MIB + 800, 8);
        assert_eq!(file.take()[0], 9 * MIB..9 * MIB + FIRST_READ_BYTES);
    }

    #[test]
    fn the_rest_is_what_is_at_hand() {
        let mut window = Window::new(Read::new(MIB), MIB - 1);
        assert_eq!(window.rest(10, 8).unwrap().len() as u64, FIRST_READ_BYTES - 10);
        assert_eq!(window.rest(MIB - 9, 8).unwrap(), (MIB - 9..MIB - 1).map(byte).collect::<Vec<_>>());
        assert_eq!(window.rest(MIB - 9, 9).unwrap(), [0; 0]);
    }

    #[test]
    fn after_a_read_that_failed_nothing_is_at_hand_that_was_not_read() {
        let file = Read::new(8 * MIB);
        let mut window = Window::new(file.clone(), 8 * MIB);
        assert_got(&mut window, 0, 100);
        *file.failing.lock().unwrap() = 2;
        window.get(FIRST_READ_BYTES - 8, 16).unwrap_err();
        window.get(5 * MIB, MIB).unwrap_err();
        for at in [FIRST_READ_BYTES - 8, 5 * MIB, 0] {
            assert_got(&mut window, at, MIB);
        }
    }
}
