//! Files, directories and mappings on a real file system.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use afterimage_memory::Buffer;
use afterimage_storage::disk::RealDir;
use afterimage_storage::io::{Dir, File, Open};

fn dir() -> (tempfile::TempDir, RealDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = RealDir::open(temp.path()).unwrap();
    (temp, dir)
}

fn read(file: &dyn File, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; len];
    file.read_at(&mut buf, offset).unwrap();
    buf
}

#[test]
fn a_vectored_write_of_any_number_of_buffers() {
    let (_temp, dir) = dir();
    let file = dir.open("f", Open::New).unwrap();
    let parts: Vec<Vec<u8>> = (0..5000usize).map(|i| vec![i as u8; i % 7]).collect();
    let bufs: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    file.write_vectored_at(&bufs, 3).unwrap();
    file.sync().unwrap();
    let whole = parts.concat();
    assert_eq!(read(&*file, 3, whole.len()), whole);
    assert_eq!(file.len().unwrap(), 3 + whole.len() as u64);
    file.write_vectored_at(&[], 0).unwrap();
    assert_eq!(
        file.read_at(&mut [0; 2], file.len().unwrap() - 1).unwrap_err().kind(),
        ErrorKind::UnexpectedEof
    );
}

#[test]
fn zeroes_with_and_without_giving_space_back() {
    let (temp, dir) = dir();
    let file = dir.open("f", Open::New).unwrap();
    let space = || std::fs::metadata(temp.path().join("f")).unwrap().blocks() * 512;
    for punch in [false, true] {
        file.write_at(&[0xAA; 1 << 20], 0).unwrap();
        file.sync().unwrap();
        file.zero(1000, 900_000, punch).unwrap();
        file.zero(0, 0, punch).unwrap();
        file.sync().unwrap();
        assert_eq!(read(&*file, 999, 2), [0xAA, 0]);
        assert!(read(&*file, 1000, 900_000).iter().all(|byte| *byte == 0));
        assert_eq!(read(&*file, 900_999, 2), [0, 0xAA]);
        assert_eq!(space() >= 1 << 20, !punch, "punch: {punch}, space: {}", space());
    }
    file.zero((1 << 20) - 10, 20, true).unwrap();
    assert_eq!(file.len().unwrap(), (1 << 20) + 10);
    assert_eq!(file.zero(u64::MAX, 2, true).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn runs_of_data_between_holes() {
    let (_temp, dir) = dir();
    let file = dir.open("f", Open::New).unwrap();
    file.set_len(1 << 24).unwrap();
    assert_eq!(file.next_data(0).unwrap(), None);
    file.write_at(&[1; 4096], 1 << 20).unwrap();
    file.write_at(&[1; 8192], 1 << 22).unwrap();
    file.sync().unwrap();
    let (start, end) = file.next_data(0).unwrap().unwrap();
    assert!(start <= 1 << 20 && ((1 << 20) + 4096..1 << 22).contains(&end));
    let (start, end) = file.next_data(end).unwrap().unwrap();
    assert!(start <= 1 << 22 && ((1 << 22) + 8192..1 << 24).contains(&end));
    assert_eq!(file.next_data(end).unwrap(), None);
    assert_eq!(file.next_data(1 << 30).unwrap(), None);
}

#[test]
fn allocated_space_is_there_and_keeps_what_was_written() {
    let (temp, dir) = dir();
    let file = dir.open("f", Open::New).unwrap();
    file.write_at(b"kept", 100).unwrap();
    file.allocate(1 << 20).unwrap();
    file.allocate(10).unwrap();
    file.allocate(0).unwrap();
    file.sync().unwrap();
    assert_eq!(file.len().unwrap(), 1 << 20);
    assert!(std::fs::metadata(temp.path().join("f")).unwrap().blocks() * 512 >= 1 << 20);
    assert_eq!(read(&*file, 99, 6), b"\0kept\0");
}

#[test]
fn names_in_a_directory() {
    let (_temp, dir) = dir();
    assert_eq!(dir.open("a", Open::Existing).err().unwrap().kind(), ErrorKind::NotFound);
    dir.open("a", Open::New).unwrap().write_at(b"a", 0).unwrap();
    assert_eq!(dir.open("a", Open::New).err().unwrap().kind(), ErrorKind::AlreadyExists);
    dir.open("b", Open::Any).unwrap();
    dir.open("b", Open::Any).unwrap();
    dir.rename("a", "b").unwrap();
    dir.sync().unwrap();
    assert_eq!(dir.list().unwrap(), ["b"]);
    assert_eq!(read(&*dir.open("b", Open::Existing).unwrap(), 0, 1), b"a");
    assert!(dir.exists("b").unwrap() && !dir.exists("a").unwrap());
    dir.remove("b").unwrap();
    assert!(dir.list().unwrap().is_empty());
    for name in ["", ".", "..", "../x", "a/b", "a\0b"] {
        assert_eq!(dir.open(name, Open::Any).err().unwrap().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_mapping_is_the_file() {
    let (_temp, dir) = dir();
    let mapping = dir.map("m", 1000).unwrap();
    assert!(mapping.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
    mapping.words()[999].store(0x0102_0304_0506_0708, Ordering::Release);
    let file = dir.open("m", Open::Existing).unwrap();
    assert_eq!(read(&*file, 999 * 8, 8), [8, 7, 6, 5, 4, 3, 2, 1]);
    mapping.sync(999..1000).unwrap();
    mapping.sync(0..1000).unwrap();
    mapping.sync(5..5).unwrap();
    assert_eq!(mapping.sync(0..1001).unwrap_err().kind(), ErrorKind::InvalidInput);
    drop(mapping);
    assert_eq!(dir.map("m", 1000).unwrap().words()[999].load(Ordering::Relaxed), 0x0102_0304_0506_0708);
    assert_eq!(dir.map("m", 999).err().unwrap().kind(), ErrorKind::InvalidData);
}

/// A file system of 1 MiB.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    fn mount() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(temp.path()).status();
        assert!(mounted.unwrap().success(), "these tests mount file systems: run them as root");
        Self(temp)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_disk_is_an_error_of_map_and_not_a_fault_later() {
    let small = SmallFileSystem::mount();
    let dir = RealDir::open(PathBuf::from(small.path())).unwrap();
    assert_eq!(dir.map("m", (4 << 20) / 8).err().unwrap().kind(), ErrorKind::StorageFull);
    assert!(dir.list().unwrap().is_empty(), "nothing is left behind");
    // A sparse file from elsewhere that cannot be filled.
    dir.open("m", Open::New).unwrap().set_len(4 << 20).unwrap();
    assert_eq!(dir.map("m", (4 << 20) / 8).err().unwrap().kind(), ErrorKind::StorageFull);
    assert_eq!(
        dir.open("f", Open::New).unwrap().allocate(4 << 20).unwrap_err().kind(),
        ErrorKind::StorageFull
    );
    dir.remove("f").unwrap();
    dir.map("n", 1024).unwrap();
}

/// Large writes may go past the page cache, and small ones do not: whoever reads sees both.
#[test]
fn large_writes_and_small_ones_see_each_other() {
    const LEN: usize = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let log = RealDir::open(dir.path()).unwrap().open_log("log", Open::New).unwrap();
    log.allocate(LEN as u64).unwrap();
    let mut expected = vec![0_u8; LEN];
    let mut at = 0;
    for (n, length) in
        [100, 70_000, 4096, 1 << 20, 3, 64 << 10, (1 << 20) + 4095, 8, 512 << 10].into_iter().enumerate()
    {
        let bytes: Vec<u8> = (0..length).map(|i| (i * 31 + n * 7 + 1) as u8).collect();
        let (front, back) = bytes.split_at(length / 3);
        log.write_vectored_at(&[front, &[], back], at as u64).unwrap();
        expected[at..at + length].copy_from_slice(&bytes);
        at += length;
        // Over the middle of what was written last.
        let patch = [n as u8 + 100; 10];
        log.write_at(&patch, (at - length / 2) as u64).unwrap();
        expected[at - length / 2..][..10].copy_from_slice(&patch);
    }
    let mut found = vec![0; LEN];
    log.read_at(&mut found, 0).unwrap();
    assert!(found == expected);
    // Before anything is synced, and with an end that no block ends at.
    let mut aligned = Buffer::with_len(LEN - 100);
    log.read_once(&mut aligned, 0).unwrap();
    assert!(*aligned == expected[..LEN - 100]);
    for (at, length) in [(0, LEN), (0, LEN - 100), (4096, 1 << 20), (4096 + 7, 1 << 20), (4096, 1000)] {
        assert!(log.read_bytes(length, at as u64).unwrap() == expected[at..at + length], "{length} at {at}");
    }
    assert!(log.read_bytes(LEN, 512).is_err(), "past the end");
    log.read_once(&mut aligned[..1 << 20], 4096 + 7).unwrap();
    assert!(aligned[..1 << 20] == expected[4096 + 7..][..1 << 20]);
    log.sync().unwrap();
    log.forget_cached().unwrap();
    log.read_at(&mut found, 0).unwrap();
    assert!(found == expected);
}
