//! Small files of two checksummed slots, each a claim about the journal: `durable` and `start`.
//!
//! A claim names the newest segment at the time it was made and counts only up to where later segments begin
//! ([`Mark::within`]), so that a claim made before a truncation never vouches for bytes appended after it.

use afterimage_protocol::Lsn;
use xxhash_rust::xxh3::xxh3_64;

use super::bytes::{get_u64, put_u64};
use super::error::JournalError;
use super::segment::{SegmentId, SegmentName};
use crate::io::{Dir, File, Open};

/// Bytes from one slot to the next: no write to one can tear the other.
const SLOT_STEP_BYTES: u64 = 4096;
const SLOT_BYTES: usize = 40;
const SLOTS: u64 = 2;
const MAGIC: u64 = u64::from_le_bytes(*b"AIJMARK1");
const AT_SEGMENT: usize = 8;
const AT_LSN: usize = 16;
const AT_CHECKSUM: usize = 32;

/// "When `segment` was the newest, `lsn` was reached."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub segment: SegmentId,
    pub lsn: Lsn,
}

impl Mark {
    /// What the claim still says given the `segments` that there are.
    pub fn within<'a>(&self, segments: impl IntoIterator<Item = &'a SegmentName>) -> Lsn {
        let later = segments.into_iter().filter(|s| s.id > self.segment).map(|s| s.base);
        later.fold(self.lsn, Lsn::min)
    }

    fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut b = [0; SLOT_BYTES];
        put_u64(&mut b, 0, MAGIC);
        put_u64(&mut b, AT_SEGMENT, self.segment.0);
        put_u64(&mut b, AT_LSN, self.lsn.0);
        let checksum = xxh3_64(&b[..AT_CHECKSUM]);
        put_u64(&mut b, AT_CHECKSUM, checksum);
        b
    }

    fn decode(b: &[u8]) -> Option<Self> {
        if get_u64(b, 0)? != MAGIC || get_u64(b, AT_CHECKSUM)? != xxh3_64(b.get(..AT_CHECKSUM)?) {
            return None;
        }
        Some(Self { segment: SegmentId(get_u64(b, AT_SEGMENT)?), lsn: Lsn(get_u64(b, AT_LSN)?) })
    }
}

/// Whether the file called `name` is there, and the claims in it that can be read.
pub(super) fn load(dir: &dyn Dir, name: &str) -> Result<(bool, Vec<Mark>), JournalError> {
    if !dir.exists(name).map_err(JournalError::io("look for", name))? {
        return Ok((false, Vec::new()));
    }
    let file = dir.open(name, Open::Existing).map_err(JournalError::io("open", name))?;
    let mut marks = Vec::new();
    for slot in 0..SLOTS {
        let mut b = [0; SLOT_BYTES];
        match file.read_at(&mut b, slot * SLOT_STEP_BYTES) {
            Ok(()) => marks.extend(Mark::decode(&b)),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(JournalError::io("read", name)(e)),
        }
    }
    Ok((true, marks))
}

/// Writes `mark` to a slot of the file: visible on return, durable whenever the system likes.
pub(super) fn hint(file: &dyn File, mark: Mark, slot: u64) -> std::io::Result<()> {
    file.write_at(&mark.encode(), (slot % SLOTS) * SLOT_STEP_BYTES)
}

/// Writes `mark` to both slots of the file called `name`, one after the other; durable on return.
pub(super) fn store(dir: &dyn Dir, name: &str, mark: Mark) -> Result<(), JournalError> {
    let file = dir.open(name, Open::Any).map_err(JournalError::io("open", name))?;
    for slot in 0..SLOTS {
        file.write_at(&mark.encode(), slot * SLOT_STEP_BYTES).map_err(JournalError::io("write", name))?;
        file.sync().map_err(JournalError::io("sync", name))?;
    }
    dir.sync().map_err(JournalError::io("sync", "."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_ends_where_a_later_segment_begins() {
        let mark = Mark { segment: SegmentId(5), lsn: Lsn(1000) };
        let segment = |id, base| SegmentName { id: SegmentId(id), base: Lsn(base) };
        assert_eq!(mark.within([&segment(4, 100), &segment(5, 200)]), Lsn(1000));
        assert_eq!(mark.within([&segment(5, 200), &segment(6, 600), &segment(7, 2000)]), Lsn(600));
    }

    #[test]
    fn a_torn_slot_is_no_claim() {
        let good = Mark { segment: SegmentId(5), lsn: Lsn(1000) }.encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(&bad), None, "bit {bit}");
        }
        assert_eq!(Mark::decode(&[0; SLOT_BYTES]), None);
        assert_eq!(Mark::decode(&good[..30]), None);
    }
}
