//! The bitmap of a small volume and of a sparse one of 64 TiB, in mapped files as a source has them.

use std::hint::black_box;

use afterimage_protocol::bitmap::Bitmap;
use afterimage_storage::bitmap::open_bitmap;
use afterimage_storage::disk::RealDir;
use divan::Bencher;

/// Blocks of 1 GiB and of 64 TiB.
const VOLUMES: [u64; 2] = [1 << 18, 1 << 34];
const DIRTY: u64 = 1000;

fn main() {
    divan::main();
}

struct Place {
    bitmap: Bitmap,
    blocks: u64,
    random: u64,
    _dir: tempfile::TempDir,
}

impl Place {
    /// With [`DIRTY`] blocks that are dirty, anywhere.
    fn new(blocks: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let open = RealDir::open(dir.path()).expect("the directory");
        let bitmap = open_bitmap(&open, "bitmap", blocks, true).expect("a bitmap").bitmap;
        let mut place = Self { bitmap, blocks, random: 88_172_645_463_325_252, _dir: dir };
        while place.bitmap.dirty_blocks() < DIRTY {
            let block = place.any();
            place.bitmap.set(block, 1);
        }
        place
    }

    fn any(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % self.blocks
    }
}

#[divan::bench(args = VOLUMES)]
fn find_1000_dirty(bencher: Bencher<'_, '_>, blocks: u64) {
    let place = Place::new(blocks);
    bencher.bench_local(|| {
        let (mut from, mut found) = (0, 0);
        while let Some((first, count)) = place.bitmap.next_run(from, u64::MAX) {
            found += count;
            from = first + count;
        }
        assert_eq!(found, DIRTY);
    });
}

/// Among places that were used before: the first use of a page costs what the file system takes.
#[divan::bench(args = VOLUMES)]
fn set_and_clear(bencher: Bencher<'_, '_>, blocks: u64) {
    let mut place = Place::new(blocks);
    let used: Vec<u64> = (0..DIRTY).map(|_| place.any()).collect();
    let mut turn = used.iter().cycle();
    bencher.bench_local(|| {
        let block = *turn.next().expect("one after the other");
        place.bitmap.set(block, 1);
        place.bitmap.clear(block, 1)
    });
}

#[divan::bench(args = VOLUMES)]
fn set_what_is_dirty(bencher: Bencher<'_, '_>, blocks: u64) {
    let mut place = Place::new(blocks);
    let (first, _) = place.bitmap.next_run(0, 1).expect("a dirty block");
    bencher.bench_local(|| place.bitmap.set(black_box(first), 1));
}

#[divan::bench(args = VOLUMES)]
fn all_dirty_and_clear_again(bencher: Bencher<'_, '_>, blocks: u64) {
    let mut place = Place::new(blocks);
    place.bitmap.clear(0, blocks);
    bencher.bench_local(|| {
        place.bitmap.set_from(0);
        place.bitmap.clear(0, blocks)
    });
}
