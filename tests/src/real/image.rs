//! Whole images: read through an export, filled with something, compared.

use std::io;

use anyhow::{Result, bail};

use super::nbd::Client;
use super::stamp::BLOCK_BYTES;
use crate::sim::Rng;

/// Bytes that are asked for at once.
const READ_BYTES: u64 = 1 << 20;

/// The whole of an export.
pub fn read_image(client: &mut Client) -> io::Result<Vec<u8>> {
    let mut image = Vec::new();
    while (image.len() as u64) < client.size_bytes() {
        let at = image.len() as u64;
        let length = READ_BYTES.min(client.size_bytes() - at);
        image.extend(client.read(at, length as u32)?);
    }
    Ok(image)
}

/// `len` bytes that depend on `seed` alone; half of each 64 KiB repeats, so that compression has something to do.
pub fn filler(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![seed as u8; len];
    for piece in bytes.chunks_mut(64 << 10) {
        let half = piece.len().div_ceil(2);
        rng.fill(&mut piece[..half]);
    }
    bytes
}

/// Fails unless both are the same bytes; says where they differ.
pub fn ensure_same(what: &str, expected: &[u8], found: &[u8]) -> Result<()> {
    if expected.len() != found.len() {
        bail!("{what}: {} bytes instead of {}", found.len(), expected.len());
    }
    let pairs = expected.chunks(BLOCK_BYTES).zip(found.chunks(BLOCK_BYTES));
    let differing: Vec<usize> = pairs
        .enumerate()
        .filter(|(_, (expected, found))| expected != found)
        .map(|(block, _)| block)
        .collect();
    if let Some(first) = differing.first() {
        let zero = found[first * BLOCK_BYTES..].iter().take(BLOCK_BYTES).all(|&byte| byte == 0);
        let note = if zero { ", which is zero there" } else { "" };
        bail!("{what}: {} blocks differ, the first is block {first}{note}", differing.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_and_placed() {
        let image = filler(1, 5 * BLOCK_BYTES + 100);
        ensure_same("it", &image, &image).unwrap();
        assert_ne!(image, filler(2, image.len()));
        let mut other = image.clone();
        other[5 * BLOCK_BYTES + 99] ^= 1;
        let error = ensure_same("it", &image, &other).unwrap_err().to_string();
        assert_eq!(error, "it: 1 blocks differ, the first is block 5");
        assert!(ensure_same("it", &image, &other[1..]).is_err());
    }
}
