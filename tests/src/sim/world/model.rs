//! What the runs write, and what they should find: a small set of tracked sectors, and the primary's image at every
//! position.

use std::collections::BTreeMap;
use std::rc::Rc;

use afterimage_protocol::*;
use afterimage_storage::io::File;

/// Sectors are 512 bytes; every write fills whole sectors with its number.
pub const SECTOR_BYTES: u64 = 512;
/// Sectors of a block; the short last one is counted with as many.
pub const SECTORS_PER_BLOCK: usize = (BLOCK_BYTES / SECTOR_BYTES) as usize;

/// Sizes of the two volumes: several extents, and a last block that is short.
pub const SIZES: [u64; 2] = [3 * EXTENT_BYTES, EXTENT_BYTES + 512];

/// Sizes of the volumes of a run in which they grow to [`SIZES`]: last blocks that are short, and tracked blocks in the new
/// area, within a block that was short, and before.
pub const SMALL: [u64; 2] = [EXTENT_BYTES + SECTOR_BYTES, 7 * SECTOR_BYTES];

/// The blocks that are written: neighbours within an extent, across extents, and the short last one.
pub const BLOCKS: [(u32, u64); 8] =
    [(0, 0), (0, 1), (0, 2), (0, 1023), (0, 1024), (0, 2048), (1, 0), (1, 1024)];

/// A write of two blocks from here goes over two extents.
pub const LAST_OF_EXTENT: (u32, u64) = BLOCKS[3];
/// The block after it.
pub const NEXT_EXTENT: (u32, u64) = BLOCKS[4];

/// The content of every tracked sector: the number of the write that filled it, 0 for zeroes.
pub type Image = Vec<u64>;

/// Count of tracked sectors.
pub const fn sectors() -> usize {
    BLOCKS.len() * SECTORS_PER_BLOCK
}

/// The tracked sectors of a byte range.
pub fn sectors_in(range: ByteRange) -> impl Iterator<Item = usize> {
    BLOCKS.iter().enumerate().flat_map(move |(n, (volume, block))| {
        let base = block * BLOCK_BYTES;
        (0..SECTORS_PER_BLOCK).filter_map(move |s| {
            let at = base + s as u64 * SECTOR_BYTES;
            (range.volume.0 == *volume && at >= range.offset && at < range.end())
                .then_some(n * SECTORS_PER_BLOCK + s)
        })
    })
}

/// Where a tracked sector begins in its volume.
pub fn sector_offset(index: usize) -> u64 {
    BLOCKS[index / SECTORS_PER_BLOCK].1 * BLOCK_BYTES + (index % SECTORS_PER_BLOCK) as u64 * SECTOR_BYTES
}

/// Whether a tracked sector is within volumes of these sizes.
pub fn is_within(index: usize, sizes: &[u64; 2]) -> bool {
    sector_offset(index) < sizes[BLOCKS[index / SECTORS_PER_BLOCK].0 as usize]
}

/// What fills a sector: the write's number, over and over.
pub fn fill(value: u64, bytes: u64) -> Vec<u8> {
    value.to_le_bytes().iter().copied().cycle().take(bytes as usize).collect()
}

/// Reads the number that fills a sector; a sector that no single write filled gets a number of its own.
fn value_of(sector: &[u8]) -> u64 {
    let Some(first) = sector.first_chunk::<8>() else { return 0 };
    if sector.chunks(8).all(|c| c == first) {
        u64::from_le_bytes(*first)
    } else {
        xxhash_rust::xxh3::xxh3_64(sector) | 1 << 63
    }
}

/// The tracked sectors of one block, from its bytes.
pub fn block_values(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks(SECTOR_BYTES as usize).map(value_of)
}

/// Reads the tracked sectors from volumes.
pub fn read_image(volumes: &[std::sync::Arc<dyn File>]) -> std::io::Result<Image> {
    let mut image = vec![0; sectors()];
    for (n, (volume, block)) in BLOCKS.iter().enumerate() {
        let at = block * BLOCK_BYTES;
        let size = SIZES[*volume as usize];
        let mut bytes = vec![0; BLOCK_BYTES.min(size - at) as usize];
        volumes[*volume as usize].read_at(&mut bytes, at)?;
        for (s, value) in block_values(&bytes).enumerate() {
            image[n * SECTORS_PER_BLOCK + s] = value;
        }
    }
    Ok(image)
}

/// What the tracked sectors hold, whatever faults there are.
pub fn peek_image(disk: &crate::sim::SimDisk) -> Image {
    let mut image = vec![0; sectors()];
    for (n, (volume, block)) in BLOCKS.iter().enumerate() {
        let at = block * BLOCK_BYTES;
        let mut bytes = vec![0; BLOCK_BYTES.min(SIZES[*volume as usize] - at) as usize];
        disk.peek(&format!("{}/v{volume}", crate::sim::disk::VOLUMES), &mut bytes, at);
        for (s, value) in block_values(&bytes).enumerate() {
            image[n * SECTORS_PER_BLOCK + s] = value;
        }
    }
    image
}

/// Puts the bytes of a write into an image.
pub fn put(image: &mut Image, range: ByteRange, raw: Option<&[u8]>) {
    for index in sectors_in(range) {
        let block = BLOCKS[index / SECTORS_PER_BLOCK].1 * BLOCK_BYTES;
        let at = block + (index % SECTORS_PER_BLOCK) as u64 * SECTOR_BYTES - range.offset;
        image[index] = match raw {
            None => 0,
            Some(bytes) => value_of(&bytes[at as usize..(at + SECTOR_BYTES) as usize]),
        };
    }
}

/// The primary's image at every position, and the order of the writes.
#[derive(Default)]
pub struct History {
    images: BTreeMap<Sequence, Rc<Image>>,
    current: Rc<Image>,
    last: Sequence,
    /// The place of each write's number among all writes: a primary that cannot store its state uses sequences that the
    /// next run will use again.
    pub placed: BTreeMap<u64, u64>,
    writes: u64,
    /// Writes since they were last taken, for the log.
    pub news: Vec<(Sequence, ByteRange, u64)>,
    /// Writes that failed locally since they were last taken, for the log.
    pub errors: Vec<Sequence>,
    /// The first position at which the volumes have all of [`SIZES`].
    grown: Option<Sequence>,
}

impl History {
    /// The volumes have grown, at the latest with this sequence.
    pub fn grew(&mut self, sequence: Sequence) {
        self.grown.get_or_insert(sequence);
    }

    /// The sizes of the volumes at a position.
    pub fn sizes_at(&self, sequence: Sequence) -> [u64; 2] {
        if self.grown.is_some_and(|grown| grown <= sequence) { SIZES } else { SMALL }
    }

    /// A run of the source begins: what is on its disk is the image at `sequence`.
    pub fn recovered(&mut self, sequence: Sequence, image: Image) {
        self.current = Rc::new(image);
        self.last = sequence;
        self.images.insert(sequence, self.current.clone());
    }

    /// Another history begins: what was of the old one is nothing to it.
    pub fn forked(&mut self) {
        self.images.clear();
        self.grown = None;
    }

    /// Count of writes so far.
    pub fn count(&self) -> u64 {
        self.writes
    }

    /// Sequences up to `sequence` were taken by something that is not a write.
    pub fn passed(&mut self, sequence: Sequence) {
        while self.last < sequence {
            self.last = self.last.next();
            self.images.insert(self.last, self.current.clone());
        }
    }

    /// The write of `sequence`; returns its place among all writes, from 1 on.
    pub fn wrote(&mut self, sequence: Sequence, range: ByteRange, raw: Option<&[u8]>) -> u64 {
        self.writes += 1;
        self.passed(Sequence(sequence.0 - 1));
        let mut image = Image::clone(&self.current);
        put(&mut image, range, raw);
        for index in sectors_in(range) {
            self.placed.insert(image[index], self.writes);
        }
        self.news.push((sequence, range, sectors_in(range).next().map_or(0, |i| image[i])));
        self.current = Rc::new(image);
        self.last = sequence;
        self.images.insert(sequence, self.current.clone());
        self.writes
    }

    /// A failed write left these sectors as they are now: part of the next sequence.
    pub fn failed(&mut self, range: ByteRange, found: &Image) {
        let mut image = Image::clone(&self.current);
        for index in sectors_in(range) {
            image[index] = found[index];
        }
        self.current = Rc::new(image);
    }

    /// The image at `sequence`.
    pub fn at(&self, sequence: Sequence) -> Option<&Image> {
        self.images.get(&sequence).map(|i| &**i)
    }

    /// The image now.
    pub fn now(&self) -> &Image {
        &self.current
    }
}
