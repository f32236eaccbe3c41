//! What a promotion yielded, held against what the application was told.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::load::{Acknowledged, VOLUME_BYTES, content, place};
use super::nbd::Client;

const BLOCK: u64 = 4096;
const READ_BYTES: usize = 1 << 20;

/// What was found.
pub struct Verdict {
    /// Writes of the application in the promoted image.
    pub kept: u64,
    /// Writes that were acknowledged and are not in it.
    pub lost: u64,
    /// How long before the loss of the primary the first of those was acknowledged.
    pub rpo: Duration,
}

/// Reads the promoted volume through its export, and compares every byte with the image as it was at first and the
/// writes up to the newest one that is there.
pub fn verify(
    socket: &Path,
    first: &[u8],
    acknowledged: &Acknowledged,
    lost_at: Instant,
) -> anyhow::Result<Verdict> {
    let mut client = Client::connect(socket).context("the promoted volume cannot be opened")?;
    let mut image = vec![0; VOLUME_BYTES as usize];
    for (n, chunk) in image.chunks_mut(READ_BYTES).enumerate() {
        client.read((n * READ_BYTES) as u64, chunk).context("the promoted volume cannot be read")?;
    }
    // One more write than was acknowledged may have been under way.
    let issued = acknowledged.len() as u64 + 1;
    let stamp = |number: &u64| {
        let (offset, _) = place(*number);
        let at = offset as usize;
        image.get(at..at + 8).is_some_and(|b| b == number.to_le_bytes())
    };
    let kept = (1..=issued).rev().find(stamp).unwrap_or(0);
    let mut expected = first.to_vec();
    for number in 1..=kept {
        let (offset, length) = place(number);
        let at = offset as usize;
        expected[at..at + length].copy_from_slice(&content(number, length));
    }
    let same = |block: &usize| {
        let at = block * BLOCK as usize;
        image[at..at + BLOCK as usize] == expected[at..at + BLOCK as usize]
    };
    let blocks = (VOLUME_BYTES / BLOCK) as usize;
    if let Some(bad) = (0..blocks).find(|b| !same(b)) {
        bail!("block {bad} of the promoted volume is not what the primary had after write {kept}");
    }
    let lost = (acknowledged.len() as u64).saturating_sub(kept);
    let first_lost = acknowledged.get(kept as usize);
    let rpo = first_lost.map_or(Duration::ZERO, |at| lost_at.saturating_duration_since(*at));
    Ok(Verdict { kept, lost, rpo })
}
