//! The bitmap of a volume in its mapped file.
//!
//! The bits themselves, and the order of stores that makes them survive a kill, are the protocol crate's
//! [`Bitmap`]; here is the file: its header page, its disk space, and making pages durable. When bits are set, cleared
//! or synced is the caller's business.
//!
//! A volume that grows gets a new file beside the old one, with the volume's new size in its name. Which of the two counts
//! is told by the size that the group's state has: the state is what makes a growth come true, for all volumes at once.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use afterimage_protocol::bitmap::{Bitmap, BitmapView, NO_TAIL, Words};
use afterimage_protocol::blocks_in;
use xxhash_rust::xxh3::xxh3_64;

use crate::io::{Dir, Mapping, Open};
use crate::sealed::{self, Found, Kind, UNFINISHED};

const KIND: Kind = Kind { magic: *b"AIBM", version: 2, max_payload: 16 };
const HEADER_BYTES: u64 = 4096;
const HEADER_WORDS: usize = 512;
/// The header's last word, outside of its checksum: 1 while the summary is being rebuilt.
const SUMMARY_STATE: usize = HEADER_WORDS - 1;
/// The word before it, outside of the checksum too: the first block of the tail.
const TAIL: usize = HEADER_WORDS - 2;
const SUMMARY_WHOLE: u64 = 0;
const SUMMARY_UNFINISHED: u64 = 1;

/// Why a bitmap cannot be opened. In every case but `Io` the file is left as it is, and removing it is safe as long as
/// the bitmap that is made in its place begins with every block dirty.
#[derive(Debug, thiserror::Error)]
pub enum BitmapError {
    /// Not a bitmap, or its header was damaged.
    #[error(
        "the bitmap {name:?} has no readable header: it is damaged or something else. Move it away; the volume is then \
         compared in full"
    )]
    Damaged {
        /// The file.
        name: String,
    },
    /// Written by a version that this program does not know.
    #[error(
        "the bitmap {name:?} has version {found}; this program knows version {known}. Run the version that wrote it, or \
         move the file away; the volume is then compared in full",
        known = KIND.version
    )]
    Version {
        /// The file.
        name: String,
        /// Its version.
        found: u32,
    },
    /// The bitmap of another volume.
    #[error(
        "the bitmap {name:?} was made under another name. Put the files back in place, or move it away; the volume is then \
         compared in full"
    )]
    Name {
        /// The file.
        name: String,
    },
    /// The volume has another size than when the bitmap was made.
    #[error(
        "the bitmap {name:?} covers {found} blocks and the volume has {expected}. If the size of the volume was meant to \
         change, move the file away; the volume is then compared in full"
    )]
    Blocks {
        /// The file.
        name: String,
        /// Blocks of the volume.
        expected: u64,
        /// Blocks of the bitmap.
        found: u64,
    },
    /// The disk said no.
    #[error("cannot {action} the bitmap {name:?}")]
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

/// An open bitmap file.
pub struct BitmapFile {
    /// The bits.
    pub bitmap: Bitmap,
    /// Makes them durable.
    pub sync: BitmapSync,
    /// Whether there was no file before: all bits are clear, which is true of no volume but one that is known to be
    /// equal. The caller sets them all.
    pub created: bool,
}

/// Opens the bitmap `name` of a volume of `blocks` blocks, or makes one with all bits clear. A file that is made has
/// its disk space and is on stable storage when this returns.
///
/// `trust_summary` says that the host was not restarted since the file was last in use, see [`Bitmap::new`].
pub fn open_bitmap(
    dir: &dyn Dir,
    name: &str,
    blocks: u64,
    trust_summary: bool,
) -> Result<BitmapFile, BitmapError> {
    let io = |action| move |source| BitmapError::Io { action, name: name.to_owned(), source };
    let words = HEADER_WORDS + Bitmap::words_needed(blocks);
    let created = !dir.exists(name).map_err(io("look for"))?;
    let mapping = if created {
        create(dir, name, blocks).map_err(io("make"))?
    } else {
        check_header(dir, name, blocks)?;
        dir.map(name, words).map_err(io("map"))?
    };
    let mapped = Mapped(mapping.into());
    let state = &mapped.0.words()[SUMMARY_STATE];
    let trust_summary = trust_summary && state.load(Ordering::Acquire) == SUMMARY_WHOLE;
    // A process that is killed while it rebuilds must not leave the half of a summary to be trusted.
    if !trust_summary {
        state.store(SUMMARY_UNFINISHED, Ordering::SeqCst);
    }
    let bitmap = if trust_summary {
        Bitmap::new(Box::new(mapped.clone()), blocks, true)
    } else {
        let data = words_with_data(dir, name, words).map_err(io("look into"))?;
        Bitmap::rebuild(Box::new(mapped.clone()), blocks, &data)
    };
    state.store(SUMMARY_WHOLE, Ordering::SeqCst);
    Ok(BitmapFile { bitmap, sync: BitmapSync::new(mapped.0, name), created })
}

/// Makes the bitmap that takes the place of `name` once its volume has `size_bytes`: with what `old` holds, which covers
/// `old_blocks`, and every block from `dirty_from` on. On stable storage when this returns; [`adopt_grown`] puts it in
/// its place.
///
/// No bit of `old` may be set meanwhile. One that is cleared may be set in the new bitmap.
pub fn prepare_grown(
    dir: &dyn Dir,
    name: &str,
    size_bytes: u64,
    (old, old_blocks): (&BitmapSync, u64),
    dirty_from: u64,
) -> Result<BitmapFile, BitmapError> {
    let io = |action| move |source| BitmapError::Io { action, name: name.to_owned(), source };
    let blocks = blocks_in(size_bytes);
    let grown = grown_name(name, size_bytes);
    let unfinished = sealed::unfinished(dir, &grown).map_err(io("make room for"))?;
    let mapping = make(dir, &unfinished, name, blocks).map_err(io("make"))?;
    let mapped = Mapped(mapping.into());
    // A new file has no bits yet.
    let mut bitmap = Bitmap::new(Box::new(mapped.clone()), blocks, true);
    // Only looked at, by its summary: the owner may be clearing bits meanwhile.
    let old = BitmapView::new(Box::new(Mapped(old.mapping.clone())), old_blocks);
    let mut at = 0;
    while let Some((first, count)) = old.next_run(at).filter(|(first, _)| *first < old.tail()) {
        bitmap.set(first, count.min(old.tail() - first));
        at = first + count;
    }
    bitmap.set_from(dirty_from.min(old.tail()));
    mapped.0.sync(0..mapped.0.words().len()).map_err(io("sync"))?;
    dir.rename(&unfinished, &grown).and_then(|()| dir.sync()).map_err(io("name"))?;
    Ok(BitmapFile { bitmap, sync: BitmapSync::new(mapped.0, name), created: true })
}

/// Puts the bitmap that was prepared for a volume of `size_bytes` in the place of `name`, if there is one; durable on return.
/// Those that were prepared for another size are removed: their volumes have not grown.
pub fn adopt_grown(dir: &dyn Dir, name: &str, size_bytes: u64) -> Result<(), BitmapError> {
    settle_prepared(dir, name, Some(&grown_name(name, size_bytes)))
}

/// Removes what was prepared to take the place of the bitmap `name`; durable on return.
pub fn forget_prepared(dir: &dyn Dir, name: &str) -> Result<(), BitmapError> {
    settle_prepared(dir, name, None)
}

fn settle_prepared(dir: &dyn Dir, name: &str, adopted: Option<&str>) -> Result<(), BitmapError> {
    let io = |action| move |source| BitmapError::Io { action, name: name.to_owned(), source };
    let prefix = format!("{name}.");
    let mut changed = false;
    for found in dir.list().map_err(io("look for"))? {
        let Some(size) = found.strip_prefix(&prefix) else { continue };
        let size = size.strip_suffix(UNFINISHED).unwrap_or(size);
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        if adopted == Some(&found) {
            dir.rename(&found, name).map_err(io("name"))?;
        } else {
            dir.remove(&found).map_err(io("remove"))?;
        }
        changed = true;
    }
    if changed { dir.sync().map_err(io("name")) } else { Ok(()) }
}

/// Takes back what [`prepare_grown`] has made for a volume of `size_bytes`. Should the name come back after a loss of power,
/// every block is dirty in it.
pub fn forget_grown(dir: &dyn Dir, name: &str, size_bytes: u64, file: BitmapFile) -> Result<(), BitmapError> {
    let io = |action| move |source| BitmapError::Io { action, name: name.to_owned(), source };
    let BitmapFile { mut bitmap, sync, .. } = file;
    bitmap.set_from(0);
    let synced = sync.sync_all();
    dir.remove(&grown_name(name, size_bytes)).and_then(|()| dir.sync()).map_err(io("remove"))?;
    synced.map_err(io("sync"))
}

/// Makes words of a bitmap durable, from any thread, while its owner goes on changing it.
#[derive(Clone)]
pub struct BitmapSync {
    mapping: Arc<dyn Mapping>,
    name: Arc<str>,
    failed: Arc<AtomicBool>,
}

impl BitmapSync {
    fn new(mapping: Arc<dyn Mapping>, name: &str) -> Self {
        Self { mapping, name: name.into(), failed: Arc::default() }
    }

    /// Returns once the words in `range` (as from [`Bitmap::level0_words`]) are on stable storage as they were when
    /// this was called, or newer; the beginning of the tail goes with the first word. Once it failed it fails for good: what the failed pages hold on disk is not known,
    /// and only a new bitmap file can be believed. Words past the end, as of a bitmap that has grown, are left out.
    pub fn sync(&self, range: Range<usize>) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(self.poisoned());
        }
        let words = self.mapping.words().len() - HEADER_WORDS;
        let range = range.start.min(words)..range.end.min(words);
        let first = if range.start == 0 { 0 } else { range.start + HEADER_WORDS };
        let synced = self.mapping.sync(first..range.end + HEADER_WORDS);
        if synced.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        synced?;
        // A sync of the same page by another thread may have failed meanwhile, and left this one nothing to write.
        if self.failed.load(Ordering::Acquire) { Err(self.poisoned()) } else { Ok(()) }
    }

    /// As [`BitmapSync::sync`], for the whole bitmap.
    pub fn sync_all(&self) -> io::Result<()> {
        self.sync(0..self.mapping.words().len() - HEADER_WORDS)
    }

    /// Lets go of the memory that the bitmap takes, as far as the system has it on its disk too: what is needed comes back by
    /// itself.
    pub fn let_go(&self) {
        self.mapping.let_go();
    }

    fn poisoned(&self) -> io::Error {
        io::Error::other(format!(
            "an earlier sync of the bitmap {:?} failed: every block counts as dirty until it is made anew",
            self.name
        ))
    }
}

/// The words after the header page.
#[derive(Clone)]
struct Mapped(Arc<dyn Mapping>);

impl Words for Mapped {
    fn words(&self) -> &[AtomicU64] {
        &self.0.words()[HEADER_WORDS..]
    }

    fn tail(&self) -> &AtomicU64 {
        &self.0.words()[TAIL]
    }
}

/// The words that may be other than zero: what was never written takes no reading, however large the volume is.
fn words_with_data(dir: &dyn Dir, name: &str, words: usize) -> io::Result<Vec<Range<usize>>> {
    let file = dir.open(name, Open::Existing)?;
    let word = |byte: u64| (byte.saturating_sub(HEADER_BYTES) / 8) as usize;
    let mut ranges = Vec::new();
    let mut at = HEADER_BYTES;
    loop {
        match file.next_data(at) {
            Ok(Some((start, end))) => {
                ranges.push(word(start)..word(end.next_multiple_of(8)));
                at = end;
            }
            Ok(None) => return Ok(ranges),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                return Ok(std::iter::once(0..words).collect());
            }
            Err(error) => return Err(error),
        }
    }
}

fn create(dir: &dyn Dir, name: &str, blocks: u64) -> io::Result<Box<dyn Mapping>> {
    let unfinished = sealed::unfinished(dir, name)?;
    let mapping = make(dir, &unfinished, name, blocks)?;
    mapping.sync(0..mapping.words().len())?;
    dir.rename(&unfinished, name)?;
    dir.sync()?;
    Ok(mapping)
}

/// A bitmap without bits in the new file `file`, whose name is to be `name`; not durable.
fn make(dir: &dyn Dir, file: &str, name: &str, blocks: u64) -> io::Result<Box<dyn Mapping>> {
    let mapping = dir.map(file, HEADER_WORDS + Bitmap::words_needed(blocks))?;
    let header = KIND.seal(0, &header_payload(name, blocks));
    for (word, bytes) in mapping.words().iter().zip(header.as_chunks::<8>().0) {
        word.store(u64::from_le_bytes(*bytes), Ordering::Release);
    }
    mapping.words()[TAIL].store(NO_TAIL, Ordering::Release);
    Ok(mapping)
}

/// The name of the bitmap that is prepared for a volume of `size_bytes`.
fn grown_name(name: &str, size_bytes: u64) -> String {
    format!("{name}.{size_bytes}")
}

fn check_header(dir: &dyn Dir, name: &str, blocks: u64) -> Result<(), BitmapError> {
    let io = |action| move |source| BitmapError::Io { action, name: name.to_owned(), source };
    let file = dir.open(name, Open::Existing).map_err(io("open"))?;
    if file.len().map_err(io("measure"))? < HEADER_BYTES {
        return Err(BitmapError::Damaged { name: name.to_owned() });
    }
    let payload = match sealed::read(&KIND, &*file, 0) {
        Found::Valid { payload, .. } => payload,
        Found::Version(found) => return Err(BitmapError::Version { name: name.to_owned(), found }),
        Found::Bad => return Err(BitmapError::Damaged { name: name.to_owned() }),
    };
    let Some((found, name_hash)) = payload.split_first_chunk() else {
        return Err(BitmapError::Damaged { name: name.to_owned() });
    };
    if name_hash != xxh3_64(name.as_bytes()).to_le_bytes() {
        return Err(BitmapError::Name { name: name.to_owned() });
    }
    let found = u64::from_le_bytes(*found);
    if found != blocks {
        return Err(BitmapError::Blocks { name: name.to_owned(), expected: blocks, found });
    }
    // Read here rather than by a fault: the length decides whether the words can be mapped.
    let (have, want) =
        (file.len().map_err(io("measure"))?, HEADER_BYTES + 8 * Bitmap::words_needed(blocks) as u64);
    if have != want {
        return Err(BitmapError::Damaged { name: name.to_owned() });
    }
    Ok(())
}

/// Block count and a hash of the name: 16 bytes.
fn header_payload(name: &str, blocks: u64) -> [u8; 16] {
    let mut payload = [0; 16];
    payload[..8].copy_from_slice(&blocks.to_le_bytes());
    payload[8..].copy_from_slice(&xxh3_64(name.as_bytes()).to_le_bytes());
    payload
}

#[cfg(test)]
#[path = "bitmap_tests.rs"]
mod tests;
