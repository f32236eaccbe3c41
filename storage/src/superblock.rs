//! The superblock: a small state in two slots, replaced as a whole.
//!
//! Every write goes to slot A, is made durable, and then goes to slot B, and is made durable there. So at most one
//! slot is ever in doubt, and there is nothing to guess at open:
//!
//! - a write that a power cut tore in A never returned: B has the state before it;
//! - a write that was torn in B is whole in A;
//! - a slot that was damaged later leaves the other one, which holds the same state: never an older one;
//! - with both slots unreadable the file is refused.
//!
//! What the state means is the caller's business.

use std::io;
use std::sync::Arc;

use crate::io::{Dir, File, Open};
use crate::sealed::{self, Found, Kind};

/// Longest state in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;

const KIND: Kind = Kind { magic: *b"AISB", version: 1, max_payload: MAX_PAYLOAD_BYTES };
/// Bytes of a slot: a sealed copy, up to whole pages.
const SLOT_BYTES: u64 = ((sealed::HEADER_BYTES + MAX_PAYLOAD_BYTES) as u64).next_multiple_of(4096);
const SLOTS: [u64; 2] = [0, SLOT_BYTES];

/// Why a superblock cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// Neither slot can be believed.
    #[error(
        "the superblock {name:?} is damaged: {detail}. The role and history of this group are not known here any \
         more; nothing was changed. Put back a copy of the file if the disk lost it, or set this host up again as \
         the standby of its peer"
    )]
    Damaged {
        /// The file.
        name: String,
        /// What was found.
        detail: String,
    },
    /// Written by a version that this program does not know.
    #[error(
        "the superblock {name:?} has version {found}; this program knows version {known}. Run the version that wrote it, \
         or a later one",
        known = KIND.version
    )]
    Version {
        /// The file.
        name: String,
        /// Its version.
        found: u32,
    },
    /// The disk said no.
    #[error("cannot {action} the superblock {name:?}")]
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

/// An open superblock.
pub struct Superblock {
    file: Arc<dyn File>,
    name: String,
    /// Number of the state that both slots hold.
    number: u64,
    poisoned: bool,
}

impl Superblock {
    /// Opens the superblock `name`, or makes one. Returns the last state, `None` when none was ever written; the
    /// state that is returned is on stable storage in both slots, also when it was found in one only.
    pub fn open(dir: &dyn Dir, name: &str) -> Result<(Self, Option<Vec<u8>>), SuperblockError> {
        let io = |action| move |source| SuperblockError::Io { action, name: name.to_owned(), source };
        if !dir.exists(name).map_err(io("look for"))? {
            let copies = SLOTS.map(|offset| (offset, KIND.seal(0, &[])));
            let len = SLOT_BYTES * SLOTS.len() as u64;
            let file = sealed::create(dir, name, len, &copies).map_err(io("make"))?;
            return Ok((Self { file, name: name.to_owned(), number: 0, poisoned: false }, None));
        }
        // Whoever made it, or a file beside it, may have died before its name was on stable storage.
        dir.sync().map_err(io("sync the directory of"))?;
        let file = dir.open(name, Open::Existing).map_err(io("open"))?;
        let found = SLOTS.map(|offset| sealed::read(&KIND, &*file, offset));
        let (number, payload, order) = newest(name, &found)?;
        let copy = KIND.seal(number, &payload);
        for slot in order {
            write_slot(&*file, slot, &copy).map_err(io("write"))?;
        }
        let superblock = Self { file, name: name.to_owned(), number, poisoned: false };
        Ok((superblock, (number > 0).then_some(payload)))
    }

    /// Reads the last state of `name` while another process may own it; changes nothing. What is returned may not be on
    /// stable storage yet. `None` where there is no superblock or no state.
    pub fn peek(dir: &dyn Dir, name: &str) -> Result<Option<Vec<u8>>, SuperblockError> {
        let io = |action| move |source| SuperblockError::Io { action, name: name.to_owned(), source };
        if !dir.exists(name).map_err(io("look for"))? {
            return Ok(None);
        }
        let file = dir.open(name, Open::Existing).map_err(io("open"))?;
        let (number, payload, _) = newest(name, &SLOTS.map(|offset| sealed::read(&KIND, &*file, offset)))?;
        Ok((number > 0).then_some(payload))
    }

    /// Replaces the state. Returns once it is on stable storage in both slots; after an error either state may come
    /// back, and every further write fails until the superblock is opened again.
    ///
    /// A state longer than [`MAX_PAYLOAD_BYTES`] is refused with `InvalidInput` and changes nothing.
    pub fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a state of {} bytes does not fit into the superblock {:?}",
                    payload.len(),
                    self.name
                ),
            ));
        }
        if self.poisoned {
            return Err(io::Error::other(format!(
                "an earlier write of the superblock {:?} failed: what is on disk is not known until it is opened again",
                self.name
            )));
        }
        let copy = KIND.seal(self.number + 1, payload);
        self.poisoned = true;
        for slot in 0..SLOTS.len() {
            write_slot(&*self.file, slot, &copy)?;
        }
        self.number += 1;
        self.poisoned = false;
        Ok(())
    }
}

fn write_slot(file: &dyn File, slot: usize, copy: &[u8]) -> io::Result<()> {
    file.write_at(copy, SLOTS[slot])?;
    file.sync()
}

/// The newest state, and the order in which the slots are to be written again.
///
/// They are because a state may be read from the page cache that never reached the disk: the process was killed, or
/// its sync failed, before the state was durable. A damaged slot comes first, so that the good one is not touched
/// while it is the only one; else the newer one, since the older may be all that the disk has.
fn newest(name: &str, found: &[Found; 2]) -> Result<(u64, Vec<u8>, [usize; 2]), SuperblockError> {
    let damaged =
        |detail: &str| SuperblockError::Damaged { name: name.to_owned(), detail: detail.to_owned() };
    for slot in found {
        if let Found::Version(version) = slot {
            return Err(SuperblockError::Version { name: name.to_owned(), found: *version });
        }
    }
    let (number, payload, order) = match found {
        [Found::Valid { number: a, payload }, Found::Valid { number: b, payload: other }] => {
            if a == b && payload != other {
                return Err(damaged("its two slots have the same number and differ"));
            }
            if a >= b { (a, payload, [0, 1]) } else { (b, other, [1, 0]) }
        }
        [Found::Valid { number, payload }, _] => (number, payload, [1, 0]),
        [_, Found::Valid { number, payload }] => (number, payload, [0, 1]),
        _ => return Err(damaged("neither of its two slots matches its checksum")),
    };
    if matches!(found, [Found::Bad, _] | [_, Found::Bad]) {
        tracing::warn!(file = name, "one slot of the superblock was torn or damaged; it is written again");
    }
    Ok((*number, payload.clone(), order))
}

#[cfg(test)]
#[path = "superblock_tests.rs"]
mod tests;
