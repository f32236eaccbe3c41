//! Files of every version, byte for byte: what an older program wrote is read, and this one writes the same.
//!
//! `AFTERIMAGE_WRITE_FIXTURES=1 cargo test -p afterimage-storage --test fixtures` writes those of the current version;
//! those of an older one are never written again.

use std::path::{Path, PathBuf};

use afterimage_protocol::{Extent, VolumeIndex};
use afterimage_storage::bitmap::open_bitmap;
use afterimage_storage::disk::RealDir;
use afterimage_storage::hot_log::HotLog;
use afterimage_storage::superblock::Superblock;

const BITMAP_BLOCKS: u64 = 5000;

fn extents() -> [Extent; 3] {
    [(0, 7), (1, 4_000_000), (63, 0)].map(|(volume, index)| Extent { volume: VolumeIndex(volume), index })
}

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/storage").join(file)
}

/// Lets `write` make the file `name` and compares it with the fixture; then lets `read` read the fixture.
fn check(fixture_file: &str, name: &str, write: impl Fn(&RealDir), read: impl Fn(&RealDir)) {
    let path = fixture(fixture_file);
    let temp = tempfile::tempdir().unwrap();
    write(&RealDir::open(temp.path()).unwrap());
    let written = std::fs::read(temp.path().join(name)).unwrap();
    if std::env::var_os("AFTERIMAGE_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &written).unwrap();
    }
    let stored = std::fs::read(&path).unwrap();
    let differs = stored.iter().zip(&written).position(|(a, b)| a != b);
    assert_eq!((differs, stored.len()), (None, written.len()), "{fixture_file} is written differently now");
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join(name), stored).unwrap();
    read(&RealDir::open(temp.path()).unwrap());
}

#[test]
fn superblock() {
    let write = |dir: &RealDir| {
        let (mut superblock, _) = Superblock::open(dir, "superblock").unwrap();
        superblock.write(b"the state before").unwrap();
        superblock.write(b"the state").unwrap();
    };
    let read = |dir: &RealDir| {
        let (_, state) = Superblock::open(dir, "superblock").unwrap();
        assert_eq!(state.unwrap(), b"the state");
    };
    check("superblock.v1.bin", "superblock", write, read);
}

#[test]
fn hot_log() {
    let write = |dir: &RealDir| {
        let (mut log, _) = HotLog::open(dir, "hot.log", 16).unwrap();
        log.write(&extents()[..1]).unwrap();
        log.write(&extents()).unwrap();
    };
    let read = |dir: &RealDir| assert_eq!(HotLog::open(dir, "hot.log", 16).unwrap().1, extents());
    check("hot_log.v1.bin", "hot.log", write, read);
}

#[test]
fn bitmap() {
    let write = |dir: &RealDir| {
        let mut file = open_bitmap(dir, "pgdata.bitmap", BITMAP_BLOCKS, true).unwrap();
        file.bitmap.set(3, 2);
        file.bitmap.set(4000, 200);
        file.bitmap.set(4999, 1);
        file.bitmap.clear(4100, 1);
        file.bitmap.set_from(4990);
        file.bitmap.clear(4990, 5);
        file.sync.sync_all().unwrap();
    };
    let read = |dir: &RealDir| {
        let file = open_bitmap(dir, "pgdata.bitmap", BITMAP_BLOCKS, false).unwrap();
        assert_eq!(file.bitmap.dirty_blocks(), 2 + 199 + 5);
        assert_eq!(file.bitmap.next_run(5, 1000), Some((4000, 100)));
        assert_eq!(file.bitmap.next_run(4101, 1000), Some((4101, 99)));
        assert_eq!(file.bitmap.next_run(4200, 1000), Some((4995, 5)));
    };
    check("bitmap.v2.bin", "pgdata.bitmap", write, read);
}
