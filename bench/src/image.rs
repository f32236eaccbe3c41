//! The files of the volumes: making them alike every time, and comparing two.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};

const PIECE_BYTES: usize = 1 << 20;

/// Writes `bytes` bytes, every second MiB random and the others zero, all of it allocated and on disk. Always
/// the same content.
pub fn create(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut random = Xorshift(0x2545_F491_4F6C_DD1D);
    let mut noise = vec![0; PIECE_BYTES];
    let zeroes = vec![0; PIECE_BYTES];
    ensure!(bytes.is_multiple_of(PIECE_BYTES as u64), "a volume is a whole number of MiB");
    for number in 0..bytes / PIECE_BYTES as u64 {
        let piece = if number % 2 == 0 {
            random.fill(&mut noise);
            &noise
        } else {
            &zeroes
        };
        file.write_all(piece).with_context(|| format!("write {}", path.display()))?;
    }
    file.sync_all().with_context(|| format!("sync {}", path.display()))
}

/// An allocated file that reads as zeroes.
pub fn create_empty(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes)
        .with_context(|| format!("allocate {bytes} bytes for {}", path.display()))?;
    file.sync_all().with_context(|| format!("sync {}", path.display()))
}

/// Where two files differ first; none if they are equal, to the last byte.
pub fn first_difference(left: &Path, right: &Path) -> Result<Option<u64>> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (left, right) = (open(left)?, open(right)?);
    first_difference_of(left, right).context("compare the two copies")
}

fn first_difference_of(mut left: impl Read, mut right: impl Read) -> Result<Option<u64>> {
    let (mut one, mut other) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut offset = 0;
    loop {
        let (one_length, other_length) =
            (read_full(&mut left, &mut one)?, read_full(&mut right, &mut other)?);
        let (one, other) = (&one[..one_length], &other[..other_length]);
        if one != other {
            let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
            return Ok(Some(offset + same as u64));
        }
        if one.is_empty() {
            return Ok(None);
        }
        offset += one.len() as u64;
    }
}

fn read_full(file: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}

/// Marsaglia, "Xorshift RNGs", 2003: plenty for bytes that must not compress.
struct Xorshift(u64);

impl Xorshift {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_alike_and_allocated() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        create(&one, 4 << 20).expect("create");
        create(&other, 4 << 20).expect("create");
        assert_eq!(first_difference(&one, &other).expect("compare"), None);
        create_empty(&other, 4 << 20).expect("create");
        assert_eq!(first_difference(&one, &other).expect("compare"), Some(0));
        assert!(create(&one, 1000).is_err());
    }

    #[test]
    fn a_difference_is_found_where_it_is() {
        let mut left = vec![7; 3 * PIECE_BYTES + 100];
        let right = left.clone();
        assert_eq!(first_difference_of(&left[..], &right[..]).expect("compare"), None);
        assert_eq!(
            first_difference_of(&left[..], &right[..right.len() - 1]).expect("compare"),
            Some(left.len() as u64 - 1),
            "a shorter file differs at its end"
        );
        left[2 * PIECE_BYTES + 5] ^= 1;
        assert_eq!(
            first_difference_of(&left[..], &right[..]).expect("compare"),
            Some(2 * PIECE_BYTES as u64 + 5)
        );
    }
}
