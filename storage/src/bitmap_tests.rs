//! The bitmap's file: header, disk space, sharing and syncs. The bits are tested in the protocol crate.

use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;
use crate::disk::RealDir;

const NAME: &str = "pgdata.bitmap";

struct Place {
    temp: tempfile::TempDir,
    dir: RealDir,
}

impl Place {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = RealDir::open(temp.path()).unwrap();
        Self { temp, dir }
    }

    fn open(&self, blocks: u64, trust_summary: bool) -> Result<BitmapFile, BitmapError> {
        open_bitmap(&self.dir, NAME, blocks, trust_summary)
    }

    fn edit(&self, change: impl FnOnce(&std::fs::File)) {
        let path = self.temp.path().join(NAME);
        change(&std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap());
    }
}

#[test]
fn bits_survive_the_process() {
    let place = Place::new();
    let mut file = place.open(1_000_000, true).unwrap();
    assert!(file.created);
    assert_eq!(file.bitmap.dirty_blocks(), 0);
    file.bitmap.set(5, 10);
    file.bitmap.set(999_999, 1);
    file.sync.sync(file.bitmap.level0_words(5, 10)).unwrap();
    file.sync.sync_all().unwrap();
    drop(file);
    for trust_summary in [true, false] {
        let file = place.open(1_000_000, trust_summary).unwrap();
        assert!(!file.created);
        assert_eq!(file.bitmap.dirty_blocks(), 11);
        assert_eq!(file.bitmap.next_run(15, 100), Some((999_999, 1)));
    }
}

#[test]
fn the_file_has_its_disk_space_from_the_start() {
    let place = Place::new();
    place.open(1 << 20, true).unwrap();
    let path = place.temp.path().join(NAME);
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 4096 + 8 * Bitmap::words_needed(1 << 20) as u64);
    assert!(metadata.blocks() * 512 >= metadata.len());
}

#[test]
fn a_header_that_does_not_match_is_refused_with_what_to_do() {
    let place = Place::new();
    place.open(1000, true).unwrap();
    let error = place.open(2000, true).err().unwrap();
    assert!(matches!(error, BitmapError::Blocks { expected: 2000, found: 1000, .. }));
    assert!(error.to_string().contains("move the file away"), "{error}");

    std::fs::copy(place.temp.path().join(NAME), place.temp.path().join("other.bitmap")).unwrap();
    assert!(matches!(open_bitmap(&place.dir, "other.bitmap", 1000, true), Err(BitmapError::Name { .. })));

    let newer = Kind { version: 7, ..KIND }.seal(0, &header_payload(NAME, 1000));
    place.edit(|file| file.write_all_at(&newer, 0).unwrap());
    assert!(matches!(place.open(1000, true), Err(BitmapError::Version { found: 7, .. })));

    place.edit(|file| file.write_all_at(&[0; 4096], 0).unwrap());
    assert!(matches!(place.open(1000, true), Err(BitmapError::Damaged { .. })));
    place.edit(|file| file.set_len(100).unwrap());
    assert!(matches!(place.open(1000, true), Err(BitmapError::Damaged { .. })));
}

#[test]
fn a_cut_file_is_refused_and_not_mapped() {
    let place = Place::new();
    place.open(1 << 20, true).unwrap();
    place.edit(|file| file.set_len(8192).unwrap());
    assert!(matches!(place.open(1 << 20, true), Err(BitmapError::Damaged { .. })));
}

#[test]
fn a_rebuild_that_was_killed_is_done_again() {
    let place = Place::new();
    let blocks = 1 << 16;
    let mut file = place.open(blocks, true).unwrap();
    file.bitmap.set(40_000, 1);
    drop(file);
    // As a kill in the middle of a rebuild leaves it: marked, and the summary wiped.
    let level1 = 4096 + 8 * (blocks / 64);
    place.edit(|file| {
        file.write_all_at(&SUMMARY_UNFINISHED.to_le_bytes(), 4096 - 8).unwrap();
        file.write_all_at(&vec![0; (file.metadata().unwrap().len() - level1) as usize], level1).unwrap();
    });
    assert_eq!(place.open(blocks, true).unwrap().bitmap.next_run(0, 1), Some((40_000, 1)));
    assert_eq!(place.open(blocks, true).unwrap().bitmap.next_run(0, 1), Some((40_000, 1)));
}

#[test]
fn what_an_interrupted_creation_left_is_not_used() {
    let place = Place::new();
    std::fs::write(place.temp.path().join(format!("{NAME}.new")), vec![0xff; 12345]).unwrap();
    let file = place.open(1000, true).unwrap();
    assert!(file.created);
    assert_eq!(file.bitmap.dirty_blocks(), 0);
    assert_eq!(place.dir.list().unwrap(), [NAME]);
}

#[test]
fn a_sync_from_another_thread_while_bits_change() {
    let place = Place::new();
    let BitmapFile { mut bitmap, sync, .. } = place.open(1 << 20, true).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..50 {
                sync.sync_all().unwrap();
            }
        });
        for block in 0..100_000 {
            bitmap.set(block * 7, 3);
            bitmap.clear(block * 5, 1);
        }
    });
    let dirty = bitmap.dirty_blocks();
    drop(bitmap);
    assert_eq!(place.open(1 << 20, true).unwrap().bitmap.dirty_blocks(), dirty);
}

/// A mapping whose first sync fails.
struct Failing {
    words: Vec<AtomicU64>,
    failed: AtomicBool,
}

impl Mapping for Failing {
    fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    fn sync(&self, _: Range<usize>) -> io::Result<()> {
        if self.failed.swap(true, Ordering::SeqCst) { Ok(()) } else { Err(io::Error::other("injected")) }
    }
}

#[test]
fn a_failed_sync_is_never_taken_back() {
    let words = (0..HEADER_WORDS + 1).map(|_| AtomicU64::new(0)).collect();
    let mapping = Arc::new(Failing { words, failed: AtomicBool::new(false) });
    let sync = BitmapSync { mapping, name: NAME.into(), failed: Arc::default() };
    let other = sync.clone();
    assert!(sync.sync(0..1).is_err());
    assert!(sync.sync(0..1).is_err());
    let error = other.sync_all().unwrap_err();
    assert!(error.to_string().contains(NAME), "{error}");
}

#[test]
fn a_16_tib_volume_costs_what_is_dirty() {
    let place = Place::new();
    let blocks = 1 << 32;
    let mut file = place.open(blocks, true).unwrap();
    for i in 0..1000 {
        file.bitmap.set(i * 4_294_967, 1);
    }
    drop(file);
    let started = std::time::Instant::now();
    let file = place.open(blocks, true).unwrap();
    assert_eq!(file.bitmap.dirty_blocks(), 1000);
    let (mut at, mut runs) = (0, 0);
    while let Some((first, count)) = file.bitmap.next_run(at, 256) {
        at = first + count;
        runs += 1;
    }
    assert_eq!(runs, 1000);
    // A scan would read 512 MiB; generous, since machines are busy.
    assert!(started.elapsed() < std::time::Duration::from_secs(2));
}
