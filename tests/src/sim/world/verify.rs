//! Bits that flip in the standby's base, and verifications that have to find each of them and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use afterimage_protocol::source::{VerifyOptions, VerifyState};
use afterimage_protocol::*;

use super::model::*;
use super::setup::sizes_in;
use super::{Violation, World};

/// Rounds that a verification may take when nothing keeps it.
const ROUNDS: u64 = 30_000;

/// The tracked sectors of the standby's base in which a bit flipped.
#[derive(Default)]
pub struct Flips {
    /// What each has since.
    values: BTreeMap<usize, u64>,
    /// The blocks that were ever hit: only they may differ.
    ever: BTreeSet<(u32, u64)>,
}

impl Flips {
    /// What has not been overwritten, as the base is now.
    pub fn in_place(&self, base: &Image) -> BTreeSet<usize> {
        self.values.iter().filter(|(n, value)| base[**n] == **value).map(|(n, _)| *n).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// A new pair of disks.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    fn settle(&mut self, base: &Image) {
        self.values.retain(|n, value| base[*n] == *value);
    }
}

/// Sets what the sectors of `masked` should have.
pub fn unmasked(image: &Image, masked: &BTreeSet<usize>, expected: &Image) -> Image {
    let mut image = image.clone();
    masked.iter().for_each(|n| image[*n] = expected[*n]);
    image
}

impl World {
    /// The operator, or a timer, asks for a verification; or gives one up.
    pub(super) fn begin_verification(&mut self) {
        let options =
            VerifyOptions { repair: self.rng.coin(), rate: *self.rng.pick(&[0, 0, 64 << 20, 16 << 20]) };
        let gives_up = self.rng.chance(0.05);
        let Some(p) = &mut self.primary.process else { return };
        if gives_up {
            p.source.cancel_verification(self.now);
        } else if p.source.verify(self.now, options) {
            self.say(|| format!("a verification begins: {options:?}"));
        }
        self.primary.drain(&mut self.history);
    }

    /// A bit flips in a tracked block of the base that the journal holds nothing of.
    pub(super) fn flip_base(&mut self) {
        if self.switches_over() {
            // What the roles change with is the truth from then on.
            return;
        }
        self.settle_flips();
        let Some(p) = &self.standby.process else { return };
        let direct = p.target.staging().is_some_and(|(_, direct)| direct);
        let offered = p.target.newest().is_some() && p.target.state().base.is_some() && !direct;
        if !offered || self.standby.disk.dead() || p.broken || self.faults.old_copy.is_some() {
            return;
        }
        let sizes = sizes_in(p.target.state());
        let journal = p.store.journal();
        let mut journaled = BTreeSet::new();
        for entry in journal.read(journal.start(), journal.end()) {
            let Ok((_, _, frame)) = entry else { return };
            journaled.extend(
                frame.written_range().into_iter().flat_map(sectors_in).map(|n| n / SECTORS_PER_BLOCK),
            );
        }
        let free: Vec<usize> = (0..BLOCKS.len())
            .filter(|n| !journaled.contains(n) && is_within(n * SECTORS_PER_BLOCK, &sizes))
            .filter(|n| !self.flips.values.keys().any(|sector| sector / SECTORS_PER_BLOCK == *n))
            .collect();
        if free.is_empty() {
            return;
        }
        let (volume, block) = BLOCKS[*self.rng.pick(&free)];
        let at = block * BLOCK_BYTES;
        let byte = at + self.rng.below(BLOCK_BYTES.min(sizes[volume as usize] - at));
        let bit = self.rng.below(8) as u8;
        if !self.standby.disk.flip(&format!("{}/v{volume}", crate::sim::disk::VOLUMES), byte, bit) {
            return;
        }
        self.say(|| format!("  a bit flips in block {block} of the standby's volume {volume}"));
        let range = ByteRange::new(VolumeIndex(volume), byte / SECTOR_BYTES * SECTOR_BYTES, SECTOR_BYTES);
        let base = peek_image(&self.standby.disk);
        self.flips.values.extend(sectors_in(range).map(|n| (n, base[n])));
        self.flips.ever.insert((volume, block));
    }

    /// Forgets the flips that were overwritten.
    pub(super) fn settle_flips(&mut self) {
        if !self.flips.is_empty() {
            self.flips.settle(&peek_image(&self.standby.disk));
        }
    }

    /// What the target found to differ did.
    pub(super) fn check_alarm(&self, differing: &[BlockRange]) -> Result<(), Violation> {
        for (volume, block) in differing.iter().flat_map(|r| r.iter().map(|b| (r.volume.0, b))) {
            if !self.flips.ever.contains(&(volume, block)) {
                let detail = format!("a false alarm: block {block} of volume {volume} was found to differ");
                return Err(Violation::new("G4", detail));
            }
        }
        Ok(())
    }

    /// The pair rests: a verification with repair finds exactly the blocks that differ, and then none does.
    pub(super) fn verify_all(&mut self) -> Result<(), Violation> {
        self.settle_flips();
        let wrong: BTreeSet<usize> =
            self.standby.check(&self.history, &self.flips)?.iter().map(|n| n / SECTORS_PER_BLOCK).collect();
        let wrong: BTreeSet<(u32, u64)> = wrong.into_iter().map(|n| BLOCKS[n]).collect();
        if self.switches_over() {
            // Whoever is the primary in the end was not asked for it.
            return Ok(());
        }
        let Some(p) = &mut self.primary.process else { return Ok(()) };
        p.source.cancel_verification(self.now);
        p.source.verify(self.now, VerifyOptions { repair: true, rate: 0 });
        self.primary.drain(&mut self.history);
        self.say(|| format!("all is verified, {wrong:?} differ"));
        for _ in 0..ROUNDS {
            self.now.0 += 500;
            self.round()?;
            let report = self.primary.process.as_ref().and_then(|p| p.source.verification());
            if report.is_some_and(|r| r.state == VerifyState::Finished) {
                break;
            }
        }
        let report = self.primary.process.as_ref().and_then(|p| p.source.verification()).cloned();
        let Some(report) = report.filter(|r| r.state == VerifyState::Finished) else {
            let activity = self.standby.process.as_ref().map(|p| p.target.activity());
            return Err(Violation::new("rest", format!("a verification does not end: {activity:?}")));
        };
        let found: BTreeSet<(u32, u64)> =
            report.differing.iter().flat_map(|r| r.iter().map(|b| (r.volume.0, b))).collect();
        let count = wrong.len() as u64;
        let exact = found == wrong && report.mismatched_blocks == count && report.repaired_blocks == count;
        if !exact || report.unchecked_blocks > 0 {
            return Err(Violation::new("G4", format!("{wrong:?} differ, a verification says {report:?}")));
        }
        let left = self.standby.check(&self.history, &self.flips)?;
        if !left.is_empty() {
            return Err(Violation::new("G4", format!("sectors {left:?} differ after their repair")));
        }
        Ok(())
    }
}
