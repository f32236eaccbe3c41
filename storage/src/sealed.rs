//! A sealed copy: a numbered payload with a magic, a version and a checksum over all of it, as the superblock, the
//! hot-extent log and the bitmap's header page store it (docs/formats.md, "Sealed copy"); and files made of such
//! copies, which come into being whole or not at all.

use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::io::{Dir, File, Open};

/// What follows the name of a file that is being made.
pub const UNFINISHED: &str = ".new";
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 32;

const AT_VERSION: usize = 4;
const AT_NUMBER: usize = 8;
const AT_LENGTH: usize = 16;
const AT_CHECKSUM: usize = 24;

/// What kind of file a copy belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// First bytes of every copy.
    pub magic: [u8; 4],
    /// The version that this program writes.
    pub version: u32,
    /// Longest payload in bytes.
    pub max_payload: usize,
}

/// A copy as it was found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Whole.
    Valid {
        /// Its number.
        number: u64,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// Whole, but of a version that this program does not know.
    Version(u32),
    /// Torn, damaged or never written.
    Bad,
}

impl Kind {
    /// The copy as it goes to disk.
    pub fn seal(&self, number: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        let sum = checksum(&bytes, payload);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Length of the copy that begins with `header`; `None` when that is no header.
    pub fn sealed_len(&self, header: &[u8]) -> Option<usize> {
        let length = usize::try_from(u64_at(header, AT_LENGTH)?).ok()?;
        (header.starts_with(&self.magic) && length <= self.max_payload).then(|| HEADER_BYTES + length)
    }

    /// Reads the copy at the start of `bytes`.
    pub fn unseal(&self, bytes: &[u8]) -> Found {
        self.try_unseal(bytes).unwrap_or(Found::Bad)
    }

    fn try_unseal(&self, bytes: &[u8]) -> Option<Found> {
        let payload = bytes.get(HEADER_BYTES..self.sealed_len(bytes)?)?;
        if u64_at(bytes, AT_CHECKSUM)? != checksum(bytes.get(..AT_CHECKSUM)?, payload) {
            return None;
        }
        let version = u32::from_le_bytes(bytes.get(AT_VERSION..AT_NUMBER)?.try_into().ok()?);
        if version != self.version {
            return Some(Found::Version(version));
        }
        Some(Found::Valid { number: u64_at(bytes, AT_NUMBER)?, payload: payload.to_vec() })
    }
}

/// Reads the copy at `offset`. What cannot be read is [`Found::Bad`], like what does not match its checksum: the
/// other copies count.
pub fn read(kind: &Kind, file: &dyn File, offset: u64) -> Found {
    let mut bytes = vec![0; HEADER_BYTES];
    if let Err(e) = file.read_at(&mut bytes, offset) {
        tracing::warn!(offset, error = %e, "a stored copy cannot be read; using the others");
        return Found::Bad;
    }
    let Some(len) = kind.sealed_len(&bytes) else { return Found::Bad };
    bytes.resize(len, 0);
    if let Err(e) = file.read_at(&mut bytes, offset) {
        tracing::warn!(offset, error = %e, "a stored copy cannot be read; using the others");
        return Found::Bad;
    }
    kind.unseal(&bytes)
}

/// Makes the file `name` of `len` bytes with `copies` at their offsets, in place of what had that name. Returns once
/// all of it and the name are on stable storage; until then the name is what it was.
pub fn create(dir: &dyn Dir, name: &str, len: u64, copies: &[(u64, Vec<u8>)]) -> io::Result<Arc<dyn File>> {
    let unfinished = unfinished(dir, name)?;
    let file = dir.open(&unfinished, Open::New)?;
    file.allocate(len)?;
    for (offset, bytes) in copies {
        file.write_at(bytes, *offset)?;
    }
    file.sync()?;
    dir.rename(&unfinished, name)?;
    dir.sync()?;
    Ok(file)
}

/// The name under which `name` is made; what an earlier attempt left there is removed.
pub fn unfinished(dir: &dyn Dir, name: &str) -> io::Result<String> {
    let unfinished = format!("{name}{UNFINISHED}");
    if dir.exists(&unfinished)? {
        dir.remove(&unfinished)?;
    }
    Ok(unfinished)
}

fn checksum(header: &[u8], payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(header);
    hash.update(payload);
    hash.digest()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { magic: *b"TEST", version: 3, max_payload: 100 };

    #[test]
    fn what_was_sealed_comes_back() {
        let bytes = KIND.seal(7, b"hello");
        assert_eq!(KIND.sealed_len(&bytes), Some(bytes.len()));
        assert_eq!(KIND.unseal(&bytes), Found::Valid { number: 7, payload: b"hello".to_vec() });
        assert_eq!(KIND.unseal(&KIND.seal(0, b"")), Found::Valid { number: 0, payload: vec![] });
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let whole = KIND.seal(7, b"hello");
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(KIND.unseal(&bytes), Found::Bad);
        }
        for len in 0..whole.len() {
            assert_eq!(KIND.unseal(&whole[..len]), Found::Bad);
        }
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let newer = Kind { version: 4, ..KIND };
        assert_eq!(KIND.unseal(&newer.seal(1, b"x")), Found::Version(4));
    }
}
