//! The hot-extent log: which extents may hold writes that a power cut undoes, and so count as dirty after one (the
//! idea is that of DRBD's activity log).
//!
//! Each write is one transaction with the whole set. Transaction `n` goes to ring slot `n mod 2`, in two mirrored
//! copies and with one sync, so the transaction before it is untouched until this one is durable. At open the highest
//! transaction with a whole copy counts:
//!
//! - the newest was torn in both copies: it never returned, and the one before it counts;
//! - one copy was damaged: the other counts;
//! - nothing can be read, or what can be read does not fit together: [`HotLogError::Damaged`], and the caller has to
//!   take every block for dirty.
//!
//! When an extent may leave the set is decided by the caller (RULES 6 to 8 of the design).

use std::io;
use std::sync::Arc;

use afterimage_protocol::{Extent, VolumeIndex};

use crate::io::{Dir, File, Open};
use crate::sealed::{self, Found, Kind};

/// Most extents in a log: 256 GiB of hot data, and a transaction of less than 1 MiB.
pub const MAX_EXTENTS: usize = 65536;

const EXTENT_BYTES: usize = 12;
const KIND: Kind = Kind { magic: *b"AIHL", version: 1, max_payload: MAX_EXTENTS * EXTENT_BYTES };
/// Bytes between copies; the same for every capacity, so that a change of it does not move them.
const COPY_BYTES: u64 = ((sealed::HEADER_BYTES + KIND.max_payload) as u64).next_multiple_of(4096);
const SLOTS: u64 = 2;
const MIRRORS: u64 = 2;

/// Why a hot-extent log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum HotLogError {
    /// Which extents were hot is not known.
    #[error(
        "the hot-extent log {name:?} is damaged: {detail}. Which blocks a crash may have changed is not known, so every \
         block of the group has to count as dirty; then a new log can be made"
    )]
    Damaged {
        /// The file.
        name: String,
        /// What was found.
        detail: String,
    },
    /// Written by a version that this program does not know.
    #[error(
        "the hot-extent log {name:?} has version {found}; this program knows version {known}. Run the version that \
         wrote it, or a later one",
        known = KIND.version
    )]
    Version {
        /// The file.
        name: String,
        /// Its version.
        found: u32,
    },
    /// More than a log can hold.
    #[error("a hot-extent log holds at most {MAX_EXTENTS} extents, not {0}")]
    Capacity(usize),
    /// The disk said no.
    #[error("cannot {action} the hot-extent log {name:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// An open hot-extent log.
pub struct HotLog {
    file: Arc<dyn File>,
    name: String,
    capacity: usize,
    /// Number of the last durable transaction.
    number: u64,
    created: bool,
    poisoned: bool,
}

impl HotLog {
    /// Opens the log `name`, or makes an empty one ([`HotLog::created`]). Returns the set of the last durable
    /// transaction; it is on stable storage, also when it was not yet when the last process ended.
    pub fn open(dir: &dyn Dir, name: &str, capacity: usize) -> Result<(Self, Vec<Extent>), HotLogError> {
        let io = |action| move |source| HotLogError::Io { action, name: name.to_owned(), source };
        if !dir.exists(name).map_err(io("look for"))? {
            return Ok((Self::replace(dir, name, capacity)?, Vec::new()));
        }
        check_capacity(capacity)?;
        let file = dir.open(name, Open::Existing).map_err(io("open"))?;
        let found = read_copies(&*file, name)?;
        let newest =
            newest(&found).map_err(|detail| HotLogError::Damaged { name: name.to_owned(), detail })?;
        // What was read may be in the page cache only: the last process was killed, or its sync failed, before the
        // transaction was durable. A copy that is not whole comes first: the other one is not touched meanwhile.
        let copy = KIND.seal(newest.number, &encode(&newest.extents));
        let mut mirrors: Vec<u64> = (0..MIRRORS).collect();
        mirrors.sort_by_key(|mirror| newest.mirrors.contains(mirror));
        for mirror in mirrors {
            file.write_at(&copy, offset(mirror, newest.number % SLOTS)).map_err(io("write"))?;
            file.sync().map_err(io("write"))?;
        }
        let log = Self {
            file,
            name: name.to_owned(),
            // The caller has to be able to shrink what it inherits.
            capacity: capacity.max(newest.extents.len()),
            number: newest.number,
            created: false,
            poisoned: false,
        };
        Ok((log, newest.extents))
    }

    /// Makes an empty log in place of whatever has the name. After [`HotLogError::Damaged`] only once every block is
    /// durably marked dirty.
    pub fn replace(dir: &dyn Dir, name: &str, capacity: usize) -> Result<Self, HotLogError> {
        check_capacity(capacity)?;
        // Both slots of both mirrors are written, so in a whole log a copy that cannot be read means something.
        let copies: Vec<_> = (0..MIRRORS)
            .flat_map(|mirror| (0..SLOTS).map(move |number| (offset(mirror, number), KIND.seal(number, &[]))))
            .collect();
        let file = sealed::create(dir, name, COPY_BYTES * SLOTS * MIRRORS, &copies)
            .map_err(|source| HotLogError::Io { action: "make", name: name.to_owned(), source })?;
        Ok(Self { file, name: name.to_owned(), capacity, number: SLOTS - 1, created: true, poisoned: false })
    }

    /// Whether there was no log before. In a group that was used, that is a loss, and every block counts as dirty.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Most extents that a transaction may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Replaces the set. Returns once it is on stable storage; after an error either set may come back, and every
    /// further write fails until the log is opened again.
    ///
    /// More extents than [`HotLog::capacity`] are refused with `InvalidInput` and change nothing.
    pub fn write(&mut self, extents: &[Extent]) -> io::Result<()> {
        if extents.len() > self.capacity {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the hot-extent log {:?} holds {} extents, not {}",
                    self.name,
                    self.capacity,
                    extents.len()
                ),
            ));
        }
        if self.poisoned {
            return Err(io::Error::other(format!(
                "an earlier write of the hot-extent log {:?} failed: what is on disk is not known until it is opened \
                 again",
                self.name
            )));
        }
        let number = self.number + 1;
        let copy = KIND.seal(number, &encode(extents));
        self.poisoned = true;
        for mirror in 0..MIRRORS {
            self.file.write_at(&copy, offset(mirror, number % SLOTS))?;
        }
        self.file.sync()?;
        self.number = number;
        self.poisoned = false;
        Ok(())
    }
}

/// A whole copy.
struct Copy {
    mirror: u64,
    number: u64,
    extents: Vec<Extent>,
}

/// The transaction that counts, and the mirrors that hold it.
#[derive(Debug)]
struct Newest {
    number: u64,
    extents: Vec<Extent>,
    mirrors: Vec<u64>,
}

fn offset(mirror: u64, slot: u64) -> u64 {
    (mirror * SLOTS + slot) * COPY_BYTES
}

fn check_capacity(capacity: usize) -> Result<(), HotLogError> {
    if capacity > MAX_EXTENTS { Err(HotLogError::Capacity(capacity)) } else { Ok(()) }
}

fn read_copies(file: &dyn File, name: &str) -> Result<Vec<Copy>, HotLogError> {
    let mut copies = Vec::new();
    for mirror in 0..MIRRORS {
        for slot in 0..SLOTS {
            match sealed::read(&KIND, file, offset(mirror, slot)) {
                Found::Version(found) => {
                    return Err(HotLogError::Version { name: name.to_owned(), found });
                }
                // A copy in the wrong place was misdirected by the disk.
                Found::Valid { number, payload } if number % SLOTS == slot => match decode(&payload) {
                    Some(extents) => copies.push(Copy { mirror, number, extents }),
                    None => tracing::warn!(
                        file = name,
                        mirror,
                        slot,
                        "a copy of the hot-extent log has no meaning"
                    ),
                },
                Found::Valid { .. } | Found::Bad => {
                    tracing::warn!(
                        file = name,
                        mirror,
                        slot,
                        "a copy of the hot-extent log was torn or damaged"
                    );
                }
            }
        }
    }
    Ok(copies)
}

/// The transaction that counts, or what does not fit together.
fn newest(copies: &[Copy]) -> Result<Newest, String> {
    let Some(first) = copies.iter().max_by_key(|copy| copy.number) else {
        return Err("no transaction in it matches its checksum".to_owned());
    };
    let number = first.number;
    for copy in copies {
        if copy.number == number && copy.extents != first.extents {
            return Err(format!("the two copies of transaction {number} differ"));
        }
        // Next to `number` there can be the one before it, and in its own slot what it replaces: anything older
        // means that the disk lost a transaction that it had said was durable.
        if number - copy.number > SLOTS {
            return Err(format!("it holds transaction {} next to {number}", copy.number));
        }
    }
    Ok(Newest {
        number,
        extents: first.extents.clone(),
        mirrors: copies.iter().filter(|copy| copy.number == number).map(|copy| copy.mirror).collect(),
    })
}

fn encode(extents: &[Extent]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(extents.len() * EXTENT_BYTES);
    for extent in extents {
        bytes.extend_from_slice(&extent.volume.0.to_le_bytes());
        bytes.extend_from_slice(&extent.index.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<Vec<Extent>> {
    let (extents, []) = bytes.as_chunks::<EXTENT_BYTES>() else { return None };
    extents
        .iter()
        .map(|extent| {
            let (volume, index) = extent.split_first_chunk()?;
            Some(Extent {
                volume: VolumeIndex(u32::from_le_bytes(*volume)),
                index: u64::from_le_bytes(*index.first_chunk()?),
            })
        })
        .collect()
}

#[cfg(test)]
#[path = "hot_log_tests.rs"]
mod tests;
