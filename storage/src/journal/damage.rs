//! What is known about durable entries that can no longer be read, kept in a file until it has been dealt with.
//!
//! The file is written before the journal is cut, so that a crash between the cut and the caller's reaction cannot
//! make the loss a silent one.

use std::collections::BTreeMap;

use afterimage_protocol::{ByteRange, Lsn, VolumeIndex};
use xxhash_rust::xxh3::xxh3_64;

use super::bytes::{get_u32, get_u64};
use super::error::JournalError;
use super::segment::UNFINISHED;
use crate::io::{Dir, Open};

const FILE: &str = "damage";
const MAGIC: u64 = u64::from_le_bytes(*b"AIJDMG01");
const FIXED_BYTES: usize = 40;
const RANGE_BYTES: usize = 24;
const KIND_RANGES: u64 = 1;
const KIND_UNKNOWN: u64 = 2;
/// More ranges than this, joined where they touch, count as [`Lost::Unknown`]: it bounds the file to 6 MiB.
const MAX_RANGES: usize = 1 << 18;

/// Entries that were durable cannot be read; the journal was cut in front of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where the journal was cut.
    pub at: Lsn,
    /// Up to where the journal was durable, as far as is known.
    pub durable_end: Lsn,
    /// What the entries behind the cut wrote.
    pub lost: Lost,
}

/// What lost entries wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// At most these ranges, in ascending order; known from headers that are intact.
    Ranges(Vec<ByteRange>),
    /// Anything: something between the cut and the durable end cannot be accounted for.
    Unknown,
}

impl Lost {
    /// The union of both.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Lost::Ranges(mut a), Lost::Ranges(b)) => {
                a.extend(b);
                Self::ranges(a)
            }
            _ => Lost::Unknown,
        }
    }

    /// `ranges`, sorted and joined.
    fn ranges(ranges: Vec<ByteRange>) -> Self {
        let mut joined = JoinedRanges::default();
        ranges.into_iter().for_each(|r| joined.add(r));
        joined.finish()
    }
}

impl Damage {
    /// Both at once: found now, and found earlier and not dealt with yet.
    fn and(self, other: Self) -> Self {
        Self {
            at: self.at.min(other.at),
            durable_end: self.durable_end.max(other.durable_end),
            lost: self.lost.and(other.lost),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let (kind, ranges) = match &self.lost {
            Lost::Ranges(ranges) => (KIND_RANGES, ranges.as_slice()),
            Lost::Unknown => (KIND_UNKNOWN, &[][..]),
        };
        let mut b = Vec::with_capacity(FIXED_BYTES + ranges.len() * RANGE_BYTES + 8);
        for field in [MAGIC, kind, self.at.0, self.durable_end.0, ranges.len() as u64] {
            b.extend_from_slice(&field.to_le_bytes());
        }
        for range in ranges {
            b.extend_from_slice(&u64::from(range.volume.0).to_le_bytes());
            b.extend_from_slice(&range.offset.to_le_bytes());
            b.extend_from_slice(&range.length.to_le_bytes());
        }
        b.extend_from_slice(&xxh3_64(&b).to_le_bytes());
        b
    }

    fn decode(b: &[u8]) -> Option<Self> {
        let end = b.len().checked_sub(8)?;
        if get_u64(b, 0)? != MAGIC || get_u64(b, end)? != xxh3_64(b.get(..end)?) {
            return None;
        }
        let (at, durable_end) = (Lsn(get_u64(b, 16)?), Lsn(get_u64(b, 24)?));
        let lost = match get_u64(b, 8)? {
            KIND_UNKNOWN => Lost::Unknown,
            KIND_RANGES => {
                let ranges = b.get(FIXED_BYTES..end)?.chunks_exact(RANGE_BYTES).map(|r| {
                    let volume = VolumeIndex(get_u32(r, 0)?);
                    Some(ByteRange::new(volume, get_u64(r, 8)?, get_u64(r, 16)?))
                });
                Lost::Ranges(ranges.collect::<Option<_>>()?)
            }
            _ => return None,
        };
        Some(Self { at, durable_end, lost })
    }
}

/// Ranges being gathered, joined where they touch, bounded in number.
#[derive(Default)]
pub(super) struct JoinedRanges {
    /// Volume and first byte, to the first byte after.
    ranges: BTreeMap<(VolumeIndex, u64), u64>,
    overflowed: bool,
}

impl JoinedRanges {
    pub fn add(&mut self, range: ByteRange) {
        let (mut start, mut end) = (range.offset, range.end());
        while let Some((&(volume, at), &until)) = self.ranges.range(..=(range.volume, end)).next_back() {
            if volume != range.volume || until < start {
                break;
            }
            self.ranges.remove(&(volume, at));
            start = start.min(at);
            end = end.max(until);
        }
        if self.ranges.len() >= MAX_RANGES {
            self.overflowed = true;
            return;
        }
        self.ranges.insert((range.volume, start), end);
    }

    pub fn finish(self) -> Lost {
        if self.overflowed {
            return Lost::Unknown;
        }
        let range =
            |((volume, start), end): ((VolumeIndex, u64), u64)| ByteRange::new(volume, start, end - start);
        Lost::Ranges(self.ranges.into_iter().map(range).collect())
    }
}

/// The damage that was found earlier and not dealt with yet. A damaged file says that anything may be lost.
pub(super) fn load(dir: &dyn Dir, end: Lsn) -> Result<Option<Damage>, JournalError> {
    if !dir.exists(FILE).map_err(JournalError::io("look for", FILE))? {
        return Ok(None);
    }
    let file = dir.open(FILE, Open::Existing).map_err(JournalError::io("open", FILE))?;
    let longest = (FIXED_BYTES + MAX_RANGES * RANGE_BYTES + 8) as u64;
    let len = file.len().map_err(JournalError::io("measure", FILE))?;
    let mut b = vec![0; len.min(longest) as usize];
    file.read_at(&mut b, 0).map_err(JournalError::io("read", FILE))?;
    let unreadable = Damage { at: end, durable_end: end, lost: Lost::Unknown };
    Ok(Some(Damage::decode(&b).unwrap_or(unreadable)))
}

/// Adds `damage` to what was found `earlier` and notes both; durable on return.
pub(super) fn store(dir: &dyn Dir, damage: Damage, earlier: Option<Damage>) -> Result<Damage, JournalError> {
    let damage = match earlier {
        Some(earlier) => damage.and(earlier),
        None => damage,
    };
    let unfinished = format!("{FILE}{UNFINISHED}");
    let file = dir.open(&unfinished, Open::New).map_err(JournalError::io("create", &unfinished))?;
    file.write_at(&damage.encode(), 0).map_err(JournalError::io("write", &unfinished))?;
    file.sync().map_err(JournalError::io("sync", &unfinished))?;
    dir.rename(&unfinished, FILE).map_err(JournalError::io("rename", FILE))?;
    dir.sync().map_err(JournalError::io("sync", "."))?;
    Ok(damage)
}

/// Forgets the damage; durable on return.
pub(super) fn clear(dir: &dyn Dir) -> Result<(), JournalError> {
    if dir.exists(FILE).map_err(JournalError::io("look for", FILE))? {
        dir.remove(FILE).map_err(JournalError::io("remove", FILE))?;
    }
    dir.sync().map_err(JournalError::io("sync", "."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(volume: u32, offset: u64, length: u64) -> ByteRange {
        ByteRange::new(VolumeIndex(volume), offset, length)
    }

    #[test]
    fn ranges_that_touch_are_joined() {
        let ranges = vec![range(1, 0, 8), range(0, 16, 8), range(0, 0, 8), range(0, 8, 8), range(0, 40, 1)];
        let joined = vec![range(0, 0, 24), range(0, 40, 1), range(1, 0, 8)];
        assert_eq!(Lost::ranges(ranges), Lost::Ranges(joined));
    }

    #[test]
    fn damage_survives_the_disk_and_its_own_damage_is_noticed() {
        for lost in [Lost::Unknown, Lost::Ranges(vec![]), Lost::Ranges(vec![range(1, 2, 3), range(4, 5, 6)])]
        {
            let damage = Damage { at: Lsn(8), durable_end: Lsn(80), lost };
            let good = damage.encode();
            assert_eq!(Damage::decode(&good), Some(damage));
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Damage::decode(&bad), None, "bit {bit}");
            }
            for len in 0..good.len() {
                assert_eq!(Damage::decode(&good[..len]), None);
            }
        }
    }

    #[test]
    fn unknown_swallows_what_is_known() {
        let known = Damage { at: Lsn(8), durable_end: Lsn(80), lost: Lost::Ranges(vec![range(0, 0, 1)]) };
        let unknown = Damage { at: Lsn(16), durable_end: Lsn(160), lost: Lost::Unknown };
        let both = Damage { at: Lsn(8), durable_end: Lsn(160), lost: Lost::Unknown };
        assert_eq!(known.and(unknown), both);
    }
}
