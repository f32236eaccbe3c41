//! One file of the journal: its name, its header, and how it comes to be.
//!
//! A segment gets its name only once its header (and any entries it is born with) are on stable storage. So the name
//! can be believed: it says which segment this is and from which lsn on it **supersedes every segment with a lower
//! id**. Rolling over, truncating and rewriting after a failed sync are all the making of one segment.

use std::sync::Arc;

use afterimage_protocol::Lsn;
use afterimage_protocol::frame::{Frame, bind};
use xxhash_rust::xxh3::xxh3_64;

use super::bytes::{get_u32, get_u64, put_u32, put_u64};
use super::entry::{ALIGNMENT, EntryHeader, bond};
use super::error::JournalError;
use crate::io::{Dir, File, Open};

/// Bytes before the first entry of a segment.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 4096;
/// A file with this ending was being made when the process ended; it counts for nothing.
pub(super) const UNFINISHED: &str = ".new";

/// A segment that was trimmed away, to be made a new one of: its bytes have places on the disk already, and a write to them
/// changes nothing else. There is one at most, and what is in it counts for nothing.
pub(super) const SPARE: &str = "spare";

const PREFIX: &str = "segment-";
const MAGIC: u64 = u64::from_le_bytes(*b"AIJRNL\r\n");
/// Version 1 had no frames of version 2, and is read too.
const VERSION: u32 = 2;
const OLDEST_VERSION: u32 = 1;
const HEADER_USED_BYTES: usize = 64;
const AT_VERSION: usize = 8;
const AT_ID: usize = 16;
const AT_BASE: usize = 24;
const AT_DURABLE: usize = 32;
const AT_SALT: usize = 40;
const AT_CHECKSUM: usize = 56;
/// Where the header is a second time: without the salt no entry of the segment could be made out.
const AT_COPY: usize = 2048;

/// No journal gets so far; a name that says more is none.
const MAX_BASE: u64 = 1 << 62;
/// Entries are gathered into writes of about this size when a segment is born with some.
const BIRTH_WRITE_BYTES: usize = 1 << 20;

/// A segment's number; goes up with each segment that is made, and none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentId(pub u64);

impl SegmentId {
    /// The id after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// What a segment's name says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentName {
    pub id: SegmentId,
    pub base: Lsn,
}

impl SegmentName {
    pub fn parse(name: &str) -> Option<Self> {
        let (id, base) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let hex = |s: &str| u64::from_str_radix(s, 16).ok();
        let parsed = Self { id: SegmentId(hex(id)?), base: Lsn(hex(base)?) };
        (parsed.file() == name && parsed.base.0 <= MAX_BASE && parsed.id.0 < u64::MAX).then_some(parsed)
    }

    pub fn file(&self) -> String {
        format!("{PREFIX}{:016x}-{:016x}", self.id.0, self.base.0)
    }
}

/// A segment that is part of the journal.
#[derive(Clone)]
pub(super) struct Segment {
    pub name: SegmentName,
    /// First lsn after its entries, or from which on a later segment supersedes it.
    pub end: Lsn,
    /// What the checksums of its entries' headers are seeded with: nobody who writes to a volume knows it.
    pub salt: u64,
    /// Whether its frames are bound to their places: not in version 1.
    pub binds: bool,
    /// A write or a sync of it has failed.
    pub suspect: bool,
    /// Bytes it takes on the disk.
    pub file_bytes: u64,
    pub file: Arc<dyn File>,
}

impl Segment {
    pub fn base(&self) -> Lsn {
        self.name.base
    }

    /// Where in the file `lsn`, which is not before the base, is.
    pub fn offset(&self, lsn: Lsn) -> u64 {
        (lsn.0 - self.base().0).saturating_add(SEGMENT_HEADER_BYTES)
    }

    /// Bytes of entries that still fit.
    pub fn room(&self) -> u64 {
        self.file_bytes.saturating_sub(self.offset(self.end))
    }

    /// Gives back what was reserved behind `end`. Best effort: a file that stays long costs only space.
    pub fn give_back_room(&mut self, end: Lsn) {
        let used = self.offset(end);
        if used < self.file_bytes && self.file.set_len(used).is_ok() {
            self.file_bytes = used;
        }
    }
}

/// What a segment's header says, if it can be read.
pub(super) enum SegmentHeader {
    /// It is whole; when the segment was made, this much was durable.
    Whole { durable: Lsn, salt: u64, binds: bool },
    /// It is not what was written.
    Damaged,
    /// Another version wrote it.
    Version(u32),
}

impl SegmentHeader {
    /// Reads the header of the segment called `name` from the start of its bytes.
    pub fn decode(bytes: &[u8], name: &SegmentName) -> Self {
        let copy = || Self::try_decode(bytes.get(AT_COPY..)?, name);
        Self::try_decode(bytes, name).or_else(copy).unwrap_or(Self::Damaged)
    }

    fn try_decode(bytes: &[u8], name: &SegmentName) -> Option<Self> {
        let b = bytes.get(..HEADER_USED_BYTES)?;
        if get_u64(b, 0)? != MAGIC || get_u64(b, AT_CHECKSUM)? != xxh3_64(b.get(..AT_CHECKSUM)?) {
            return None;
        }
        let version = get_u32(b, AT_VERSION)?;
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            return Some(Self::Version(version));
        }
        if get_u64(b, AT_ID)? != name.id.0 || get_u64(b, AT_BASE)? != name.base.0 {
            return None;
        }
        let (durable, salt) = (Lsn(get_u64(b, AT_DURABLE)?), get_u64(b, AT_SALT)?);
        Some(Self::Whole { durable, salt, binds: version > OLDEST_VERSION })
    }
}

fn encode_header(name: &SegmentName, durable: Lsn, salt: u64) -> Vec<u8> {
    let mut b = vec![0; SEGMENT_HEADER_BYTES as usize];
    put_u64(&mut b, 0, MAGIC);
    put_u32(&mut b, AT_VERSION, VERSION);
    put_u64(&mut b, AT_ID, name.id.0);
    put_u64(&mut b, AT_BASE, name.base.0);
    put_u64(&mut b, AT_DURABLE, durable.0);
    put_u64(&mut b, AT_SALT, salt);
    let checksum = xxh3_64(&b[..AT_CHECKSUM]);
    put_u64(&mut b, AT_CHECKSUM, checksum);
    b.copy_within(..HEADER_USED_BYTES, AT_COPY);
    b
}

/// A segment to be made.
pub(super) struct Birth {
    pub name: SegmentName,
    /// What is durable once the segment has its name.
    pub durable: Lsn,
    /// Bytes of the entries it is born with. If there are any, all before `name.base` is durable already.
    pub entry_bytes: u64,
    /// Bytes to reserve.
    pub file_bytes: u64,
    /// Whether it may be smaller than `file_bytes` where the disk has no more room.
    pub may_be_small: bool,
    /// What the checksums of its entries' headers are seeded with.
    pub salt: u64,
    /// Whether there is a spare one to be made use of.
    pub spare: bool,
}

/// Why a segment was not made.
pub(super) struct BirthFailed {
    pub error: JournalError,
    /// Whether it may have its name all the same, now or after a crash.
    pub may_exist: bool,
}

impl Birth {
    /// Makes the segment with `entries`, each with the lsn of the next; they, its header and its name are on stable storage on return.
    pub fn make(
        &self,
        dir: &dyn Dir,
        entries: &mut dyn Iterator<Item = Result<(Lsn, Frame), JournalError>>,
    ) -> Result<Segment, BirthFailed> {
        let unfinished = format!("{}{UNFINISHED}", self.name.file());
        let (file, file_bytes) = self.write(dir, &unfinished, entries).map_err(|error| {
            // What stays is ignored and removed when the journal is opened again.
            let _ = dir.remove(&unfinished);
            BirthFailed { error, may_exist: false }
        })?;
        let name = self.name.file();
        dir.rename(&unfinished, &name)
            .map_err(JournalError::io("rename", &name))
            .and_then(|()| dir.sync().map_err(JournalError::io("sync", ".")))
            .map_err(|error| {
                let _ = dir.remove(&name);
                BirthFailed { error, may_exist: true }
            })?;
        let end = Lsn(self.name.base.0 + self.entry_bytes);
        Ok(Segment {
            name: self.name.clone(),
            end,
            salt: self.salt,
            binds: true,
            suspect: false,
            file_bytes,
            file,
        })
    }

    /// The file to be made a segment, and how long it is: what is in it is of no use but for having its place.
    fn open(&self, dir: &dyn Dir, unfinished: &str) -> Result<(Arc<dyn File>, u64), JournalError> {
        if self.spare && dir.rename(SPARE, unfinished).is_ok() {
            let file =
                dir.open_log(unfinished, Open::Existing).map_err(JournalError::io("open", unfinished))?;
            let bytes = file.len().map_err(JournalError::io("measure", unfinished))?;
            if bytes <= self.file_bytes {
                return Ok((file, bytes));
            }
            dir.remove(unfinished).map_err(JournalError::io("remove", unfinished))?;
        }
        let file = dir.open_log(unfinished, Open::New).map_err(JournalError::io("create", unfinished))?;
        Ok((file, 0))
    }

    fn write(
        &self,
        dir: &dyn Dir,
        unfinished: &str,
        entries: &mut dyn Iterator<Item = Result<(Lsn, Frame), JournalError>>,
    ) -> Result<(Arc<dyn File>, u64), JournalError> {
        let (file, has_bytes) = self.open(dir, unfinished)?;
        let needed = SEGMENT_HEADER_BYTES + self.entry_bytes;
        let allocate = |len| file.allocate(len).map_err(JournalError::io("allocate", unfinished));
        let wanted = self.file_bytes.max(needed);
        let file_bytes = match if has_bytes == wanted { Ok(()) } else { allocate(wanted) } {
            Ok(()) => wanted,
            Err(e) if self.may_be_small && e.is_disk_full() => {
                allocate(needed)?;
                needed
            }
            Err(e) => return Err(e),
        };
        let mut out = encode_header(&self.name, self.durable, self.salt);
        let mut at = 0;
        let mut lsn = self.name.base;
        for entry in entries {
            let (end, frame) = entry?;
            let mut header = EntryHeader::new(self.name.id, lsn, self.name.base, &frame);
            header.pad = (end.0 - header.end().0) as u32;
            out.extend_from_slice(&header.encode(self.salt));
            let mut frame_header = frame.header();
            bind(&mut frame_header, bond(self.name.id, self.salt, lsn));
            out.extend_from_slice(&frame_header);
            out.extend_from_slice(&frame.payload());
            out.resize(out.len().next_multiple_of(ALIGNMENT as usize) + header.pad as usize, 0);
            lsn = end;
            if out.len() >= BIRTH_WRITE_BYTES {
                file.write_at(&out, at).map_err(JournalError::io("write", unfinished))?;
                at += out.len() as u64;
                out.clear();
            }
        }
        debug_assert_eq!(lsn.0 - self.name.base.0, self.entry_bytes);
        file.write_at(&out, at).map_err(JournalError::io("write", unfinished))?;
        file.sync().map_err(JournalError::io("sync", unfinished))?;
        Ok((file, file_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> SegmentName {
        SegmentName { id: SegmentId(7), base: Lsn(4096) }
    }

    #[test]
    fn only_exact_names_are_segments() {
        assert_eq!(SegmentName::parse(&name().file()), Some(name()));
        for other in [
            "segment-7-1000",
            "segment-0000000000000007-0000000000001000.new",
            "segment-0000000000000007-+000000000001000",
            "segment-000000000000000G-0000000000001000",
            "segment--",
            "segment-0000000000000007-ffffffffffffff00",
            "durable",
            "",
        ] {
            assert_eq!(SegmentName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_header_of_another_segment_or_version_is_not_this_ones() {
        let good = encode_header(&name(), Lsn(9), 5);
        assert!(matches!(
            SegmentHeader::decode(&good, &name()),
            SegmentHeader::Whole { durable: Lsn(9), salt: 5, binds: true }
        ));
        let other = SegmentName { id: SegmentId(8), base: Lsn(4096) };
        assert!(matches!(SegmentHeader::decode(&good, &other), SegmentHeader::Damaged));
        let mut newer = good.clone();
        put_u32(&mut newer, AT_VERSION, VERSION + 1);
        let checksum = xxh3_64(&newer[..AT_CHECKSUM]);
        put_u64(&mut newer, AT_CHECKSUM, checksum);
        assert!(
            matches!(SegmentHeader::decode(&newer, &name()), SegmentHeader::Version(v) if v == VERSION + 1)
        );
        for bit in 0..HEADER_USED_BYTES * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let found = SegmentHeader::decode(&bad, &name());
            assert!(
                matches!(found, SegmentHeader::Whole { durable: Lsn(9), salt: 5, binds: true }),
                "bit {bit}"
            );
            bad[AT_COPY + bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(SegmentHeader::decode(&bad, &name()), SegmentHeader::Damaged), "bit {bit}");
        }
    }
}
