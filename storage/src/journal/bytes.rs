//! Little-endian fields in byte slices, and a window for reading a file front to back.

use std::io;
use std::sync::Arc;

use crate::io::File;

/// Bytes read ahead at once: a few entries of the usual size, small beside every other buffer.
const READ_AHEAD_BYTES: u64 = 256 << 10;

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

/// A file read front to back, up to a limit.
pub(super) struct Window {
    file: Arc<dyn File>,
    limit: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// A window onto the first `limit` bytes of `file`, which has at least as many.
    pub fn new(file: Arc<dyn File>, limit: u64) -> Self {
        Self { file, limit, start: 0, bytes: Vec::new() }
    }

    /// As many bytes from `offset` on as are at hand, at least `least` of them unless the limit is nearer.
    pub fn rest(&mut self, offset: u64, least: u64) -> io::Result<&[u8]> {
        if self.get(offset, least)?.is_none() {
            return Ok(&[]);
        }
        Ok(self.bytes.get((offset - self.start) as usize..).unwrap_or_default())
    }

    /// `len` bytes from `offset`; `None` past the limit.
    pub fn get(&mut self, offset: u64, len: u64) -> io::Result<Option<&[u8]>> {
        let Some(end) = offset.checked_add(len).filter(|end| *end <= self.limit) else {
            return Ok(None);
        };
        if offset < self.start || end > self.start + self.bytes.len() as u64 {
            let wanted = len.max(READ_AHEAD_BYTES).min(self.limit - offset);
            self.start = offset;
            self.bytes.resize(wanted as usize, 0);
            if let Err(e) = self.file.read_at(&mut self.bytes, offset) {
                self.bytes.clear();
                return Err(e);
            }
        }
        let from = (offset - self.start) as usize;
        Ok(self.bytes.get(from..from + len as usize))
    }
}
