//! What is known of which parts of a volume shrink, so that no time is spent on what does not.
//!
//! Encrypted and compressed files stay what they are, and lie together. A region whose payloads did not shrink is tried
//! seldom; one that nothing is known of goes by what the volumes showed of late.

use crate::ids::ByteRange;

/// Bytes of a region: a large file has one of its own, and a volume has not too many.
const REGION_BYTES: u64 = 16 << 20;
/// Regions that are told apart, by their hash: two that share a place are one. A power of two; a byte each.
const REGIONS: usize = 4096;
/// So many failures in a row end the trying of each.
const PATIENCE: u8 = 4;
/// Then one in this many is tried.
const INTERVAL: u8 = 32;

/// What is remembered of one region, or of all: failures in a row up to [`PATIENCE`], and from there on how many payloads
/// are passed over until the next try.
#[derive(Clone, Copy, Debug, Default)]
struct Record(u8);

impl Record {
    fn wants_to_try(&mut self) -> bool {
        if self.0 <= PATIENCE {
            return true;
        }
        self.0 -= 1;
        false
    }

    fn tried(&mut self, shrank: bool) {
        self.0 = match shrank {
            // Not what nothing is known of.
            true => 1,
            false if self.0.max(1) >= PATIENCE => PATIENCE + INTERVAL - 1,
            false => self.0.max(1) + 1,
        };
    }

    fn is_unknown(self) -> bool {
        self.0 == 0
    }
}

/// What is known of the volumes of a group.
#[derive(Debug)]
pub struct Shrinks {
    regions: Box<[Record; REGIONS]>,
    all: Record,
}

impl Default for Shrinks {
    fn default() -> Self {
        Self { regions: Box::new([Record::default(); REGIONS]), all: Record::default() }
    }
}

impl Shrinks {
    fn place(range: &ByteRange) -> usize {
        let region = (range.offset / REGION_BYTES) ^ u64::from(range.volume.0) << 48;
        // Fibonacci hashing: regions side by side never share a place.
        (region.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - REGIONS.ilog2())) as usize % REGIONS
    }

    /// Whether a payload for this range is worth trying to make smaller.
    pub fn wants_to_try(&mut self, range: &ByteRange) -> bool {
        let region = &mut self.regions[Self::place(range)];
        if region.is_unknown() { self.all.wants_to_try() } else { region.wants_to_try() }
    }

    /// What became of a try.
    pub fn tried(&mut self, range: &ByteRange, shrank: bool) {
        self.regions[Self::place(range)].tried(shrank);
        self.all.tried(shrank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VolumeIndex;

    fn at(mib: u64) -> ByteRange {
        ByteRange::new(VolumeIndex(0), mib << 20, 4096)
    }

    /// How often one of `count` is tried in a place where it comes out as `shrank`.
    fn tries(shrinks: &mut Shrinks, range: &ByteRange, shrank: bool, count: usize) -> usize {
        (0..count)
            .filter(|_| {
                let wants = shrinks.wants_to_try(range);
                if wants {
                    shrinks.tried(range, shrank);
                }
                wants
            })
            .count()
    }

    #[test]
    fn what_does_not_shrink_is_seldom_tried_and_what_does_is_tried_again() {
        let mut shrinks = Shrinks::default();
        let count = tries(&mut shrinks, &at(0), false, 1000);
        assert!((30..60).contains(&count), "{count}");
        // Once one shrinks, all are tried.
        while !shrinks.wants_to_try(&at(0)) {}
        shrinks.tried(&at(0), true);
        assert_eq!(tries(&mut shrinks, &at(0), true, 100), 100);
    }

    #[test]
    fn a_region_that_shrinks_is_tried_beside_one_that_does_not() {
        let mut shrinks = Shrinks::default();
        tries(&mut shrinks, &at(0), true, 10);
        for _ in 0..100 {
            assert_eq!(tries(&mut shrinks, &at(0), true, 10), 10);
            tries(&mut shrinks, &at(64), false, 10);
        }
        assert!(tries(&mut shrinks, &at(64), false, 1000) < 60);
    }

    #[test]
    fn a_long_file_that_does_not_shrink_is_not_tried_again_in_each_region() {
        let mut shrinks = Shrinks::default();
        let count: usize = (0..4000).map(|mib| tries(&mut shrinks, &at(mib), false, 1)).sum();
        assert!(count < 600, "{count}");
    }
}
