//! What the disk promises to the simulator: each fault does what it says, and nothing else is lost.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use afterimage_storage::io::Open;

use super::*;

const SECTOR: usize = 512;

fn read(file: &dyn File, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    file.read_at(&mut buf, offset).unwrap();
    buf
}

fn peek(disk: &SimDisk, path: &str, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    assert!(disk.peek(path, &mut buf, offset), "{path} exists");
    buf
}

/// How often each outcome of `run` comes up over seeds.
fn outcomes<T: Ord>(run: impl Fn(u64) -> T) -> BTreeMap<T, usize> {
    let mut seen = BTreeMap::new();
    for seed in 0..400 {
        *seen.entry(run(seed)).or_default() += 1;
    }
    seen
}

#[test]
fn a_write_is_seen_at_once_and_a_kill_loses_nothing() {
    let disk = SimDisk::new(1);
    let file = disk.dir("state").open("log", Open::New).unwrap();
    file.write_vectored_at(&[b"ab", b"cd"], 4094).unwrap();
    assert_eq!(file.len().unwrap(), 4098);
    assert_eq!(read(&*file, 4090, 8), b"\0\0\0\0abcd");
    disk.kill();
    let again = disk.dir("state").open("log", Open::Existing).unwrap();
    assert_eq!(read(&*again, 4094, 4), b"abcd");
    assert_eq!(again.read_at(&mut [0; 5], 4094).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn open_and_names_follow_the_contract() {
    let disk = SimDisk::new(1);
    let dir = disk.dir("state");
    let kind = |how, name| dir.open(name, how).map(drop).map_err(|error| error.kind());
    assert_eq!(kind(Open::Existing, "a"), Err(io::ErrorKind::NotFound));
    assert_eq!(kind(Open::New, "a"), Ok(()));
    assert_eq!(kind(Open::New, "a"), Err(io::ErrorKind::AlreadyExists));
    assert_eq!(kind(Open::Any, "a"), Ok(()));
    assert_eq!(kind(Open::New, "b/c"), Err(io::ErrorKind::InvalidInput));
    dir.open("b", Open::Any).unwrap().write_at(b"b", 0).unwrap();
    dir.rename("b", "a").unwrap();
    assert_eq!(dir.list().unwrap(), ["a"]);
    assert!(!dir.exists("b").unwrap());
    assert_eq!(read(&*dir.open("a", Open::Existing).unwrap(), 0, 1), b"b");
    dir.remove("a").unwrap();
    assert_eq!(dir.remove("a").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.files(), Vec::<String>::new());
}

#[test]
fn a_removed_file_stays_for_those_who_have_it_open() {
    let disk = SimDisk::new(1);
    let dir = disk.dir("state");
    let file = dir.open("a", Open::New).unwrap();
    dir.remove("a").unwrap();
    dir.sync().unwrap();
    file.write_at(b"x", 0).unwrap();
    assert_eq!(read(&*file, 0, 1), b"x");
}

#[test]
fn old_handles_fail_and_change_nothing() {
    let disk = SimDisk::new(1);
    let other = disk.process(1);
    let dir = disk.dir("state");
    let file = dir.open("log", Open::New).unwrap();
    let map = dir.map("bitmap", 16).unwrap();
    let volume = other.volume("v", 8192);
    map.words()[3].store(7, Ordering::Relaxed);
    disk.kill();
    map.words()[3].store(8, Ordering::Relaxed);
    for error in [
        file.write_at(b"x", 0).unwrap_err(),
        file.sync().unwrap_err(),
        file.len().unwrap_err(),
        map.sync(0..16).unwrap_err(),
        dir.remove("log").unwrap_err(),
        dir.list().unwrap_err(),
        dir.open("log", Open::New).map(drop).unwrap_err(),
        dir.open("log", Open::Existing).map(drop).unwrap_err(),
    ] {
        assert!(is_dead(&error), "{error}");
    }
    volume.write_at(b"the other process lives on", 0).unwrap();
    let dir = disk.dir("state");
    assert_eq!(dir.open("log", Open::Existing).unwrap().len().unwrap(), 0);
    assert_eq!(dir.map("bitmap", 16).unwrap().words()[3].load(Ordering::Relaxed), 7);
    disk.power_cut(&mut Rng::new(1));
    assert!(is_dead(&volume.len().unwrap_err()));
}

#[test]
fn synced_data_survive_10_000_random_sequences() {
    for seed in 0..10_000 {
        Sequence::run(seed);
    }
}

/// A file under random operations, and a plain model of what each of its sectors may be after a cut.
struct Sequence {
    /// Versions of each sector that a cut may leave, the newest last.
    sectors: Vec<Vec<[u8; SECTOR]>>,
    lengths: Vec<u64>,
}

impl Sequence {
    const SECTORS: usize = 24;

    fn run(seed: u64) {
        let mut rng = Rng::new(seed);
        let disk = SimDisk::new(rng.next_u64());
        let mut this = Self { sectors: vec![vec![[0; SECTOR]]; Self::SECTORS], lengths: vec![0] };
        disk.dir("d").open("f", Open::New).unwrap();
        disk.dir("d").sync().unwrap();
        for _ in 0..rng.between(1, 3) {
            let file = disk.dir("d").open("f", Open::Existing).unwrap();
            for _ in 0..rng.below(12) {
                this.step(&*file, &mut rng);
                this.check(&disk, seed, false);
            }
            if rng.coin() {
                disk.kill();
                this.check(&disk, seed, false);
            }
            disk.power_cut(&mut rng);
            this.check(&disk, seed, true);
            this.settle(&disk);
        }
    }

    fn step(&mut self, file: &dyn File, rng: &mut Rng) {
        let from = rng.index(Self::SECTORS);
        let to = from + 1 + rng.index(Self::SECTORS - from);
        match rng.below(10) {
            0..=4 => {
                let bytes: Vec<u8> = (from..to).flat_map(|_| [rng.next_u64() as u8 | 1; SECTOR]).collect();
                file.write_at(&bytes, (from * SECTOR) as u64).unwrap();
                for (sector, bytes) in (from..to).zip(bytes.chunks(SECTOR)) {
                    self.sectors[sector].push(bytes.try_into().unwrap());
                }
                self.grow((to * SECTOR) as u64);
            }
            5 => {
                let punch = rng.coin();
                file.zero((from * SECTOR) as u64, ((to - from) * SECTOR) as u64, punch).unwrap();
                let end = to.min(self.len().div_ceil(SECTOR as u64) as usize);
                for sector in from..end.max(from) {
                    self.sectors[sector].push([0; SECTOR]);
                }
            }
            6 => {
                file.set_len((to * SECTOR) as u64).unwrap();
                for sector in to..Self::SECTORS {
                    self.sectors[sector].push([0; SECTOR]);
                }
                self.lengths.push((to * SECTOR) as u64);
            }
            7 => {
                file.allocate((to * SECTOR) as u64).unwrap();
                self.grow((to * SECTOR) as u64);
            }
            _ => {
                file.sync().unwrap();
                for versions in &mut self.sectors {
                    versions.drain(..versions.len() - 1);
                }
                self.lengths.drain(..self.lengths.len() - 1);
            }
        }
    }

    fn len(&self) -> u64 {
        *self.lengths.last().unwrap()
    }

    fn grow(&mut self, len: u64) {
        if len > self.len() {
            self.lengths.push(len);
        }
    }

    fn check(&self, disk: &SimDisk, seed: u64, cut: bool) {
        let len = disk.file_len("d/f").unwrap();
        let (low, high) = (self.lengths.iter().min().unwrap(), self.lengths.iter().max().unwrap());
        if cut {
            assert!((low..=high).contains(&&len), "seed {seed}: length {len} of {:?}", self.lengths);
        } else {
            assert_eq!(len, self.len(), "seed {seed}");
        }
        let content = peek(disk, "d/f", 0, Self::SECTORS * SECTOR);
        for (index, (versions, got)) in self.sectors.iter().zip(content.chunks(SECTOR)).enumerate() {
            let start = (index * SECTOR) as u64;
            let shown = (len.saturating_sub(start) as usize).min(SECTOR);
            let allowed = if cut { &versions[..] } else { &versions[versions.len() - 1..] };
            let whole = allowed.iter().any(|version| version[..shown] == got[..shown]);
            assert!(whole, "seed {seed}: sector {index} holds {} (cut: {cut})", got[0]);
            assert!(got[shown..].iter().all(|&byte| byte == 0), "seed {seed}: bytes past the end");
        }
    }

    fn settle(&mut self, disk: &SimDisk) {
        let content = peek(disk, "d/f", 0, Self::SECTORS * SECTOR);
        for (versions, got) in self.sectors.iter_mut().zip(content.chunks(SECTOR)) {
            *versions = vec![got.try_into().unwrap()];
        }
        self.lengths = vec![disk.file_len("d/f").unwrap()];
    }
}

#[test]
fn unsynced_data_may_be_lost_kept_old_or_torn() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", 16384);
        volume.write_at(&[1; 4096], 4096).unwrap();
        volume.sync().unwrap();
        volume.write_at(&[2; 4096], 4096).unwrap();
        volume.write_at(&[3; 4096], 4096).unwrap();
        disk.power_cut(&mut Rng::new(seed));
        let mut values = peek(&disk, "volumes/v", 4096, 4096);
        values.dedup();
        if values.len() == 1 { values[0] } else { 9 }
    });
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 9]);
}

#[test]
fn blocks_are_lost_independently_of_their_order() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", 16384);
        volume.write_at(&[1; 4096], 0).unwrap();
        volume.write_at(&[1; 4096], 8192).unwrap();
        disk.power_cut(&mut Rng::new(seed));
        // Whole pages only: a torn one is a mixture anyway.
        [0, 8192].map(|page| {
            let page = peek(&disk, "volumes/v", page, 4096);
            page.iter().all(|&byte| byte == page[0]).then_some(page[0])
        })
    });
    for old_or_new in [[0, 0], [0, 1], [1, 0], [1, 1]] {
        assert!(seen.contains_key(&old_or_new.map(Some)), "{seen:?}");
    }
}

#[test]
fn a_sector_is_never_torn() {
    for seed in 0..400 {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", 4096);
        for value in 1..20 {
            volume.write_at(&[value; 4096], 0).unwrap();
        }
        disk.power_cut(&mut Rng::new(seed));
        for sector in peek(&disk, "volumes/v", 0, 4096).chunks(SECTOR) {
            assert!(sector.iter().all(|&byte| byte == sector[0]));
        }
    }
}

#[test]
fn mapped_pages_are_lost_one_by_one_and_synced_ones_survive() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let dir = disk.dir("state");
        let map = dir.map("bitmap", 1536).unwrap();
        map.sync(0..1536).unwrap();
        dir.sync().unwrap();
        for page in 0..3 {
            map.words()[page * 512 + 5].store(u64::MAX, Ordering::Relaxed);
        }
        map.sync(512..513).unwrap();
        disk.power_cut(&mut Rng::new(seed));
        map.words()[5].store(42, Ordering::Relaxed);
        let map = disk.dir("state").map("bitmap", 1536).unwrap();
        let word = |page: usize| map.words()[page * 512 + 5].load(Ordering::Relaxed);
        (word(0), word(1), word(2))
    });
    let old_or_new = [0, u64::MAX];
    let expected: Vec<_> =
        old_or_new.into_iter().flat_map(|a| old_or_new.map(|b| (a, u64::MAX, b))).collect();
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), expected);
}

#[test]
fn a_cut_may_leave_what_a_mapping_held_in_between() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let dir = disk.dir("state");
        let map = dir.map("bitmap", 512).unwrap();
        map.sync(0..512).unwrap();
        dir.sync().unwrap();
        for value in [1, 0] {
            map.words()[0].store(value, Ordering::Relaxed);
            disk.volume("v", 4096).write_at(&[1; 512], 0).unwrap();
        }
        disk.power_cut(&mut Rng::new(seed));
        disk.dir("state").map("bitmap", 512).unwrap().words()[0].load(Ordering::Relaxed)
    });
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_mapped_file_is_the_same_bytes_as_a_file() {
    let disk = SimDisk::new(1);
    let dir = disk.dir("state");
    let map = dir.map("bitmap", 1024).unwrap();
    let file = dir.open("bitmap", Open::Existing).unwrap();
    map.words()[1].store(0x0102, Ordering::Relaxed);
    assert_eq!(read(&*file, 8, 3), [2, 1, 0]);
    file.write_at(&[9], 4096).unwrap();
    assert_eq!(map.words()[512].load(Ordering::Relaxed), 9);
    let error = dir.map("bitmap", 512).map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    disk.kill();
    let file = disk.dir("state").open("bitmap", Open::Existing).unwrap();
    assert_eq!(read(&*file, 8, 1), [2]);
}

#[test]
fn names_are_durable_after_a_sync_of_the_directory_only() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let dir = disk.dir("state");
        let old = dir.open("slot", Open::New).unwrap();
        old.write_at(b"old", 0).unwrap();
        old.sync().unwrap();
        dir.sync().unwrap();
        let new = dir.open("tmp", Open::New).unwrap();
        new.write_at(b"new", 0).unwrap();
        new.sync().unwrap();
        dir.rename("tmp", "slot").unwrap();
        disk.power_cut(&mut Rng::new(seed));
        let names = disk.dir("state").list().unwrap();
        (names, peek(&disk, "state/slot", 0, 3))
    });
    let both = vec!["slot".to_owned(), "tmp".to_owned()];
    let one = vec!["slot".to_owned()];
    let expected = vec![(one.clone(), b"new".to_vec()), (one, b"old".to_vec()), (both, b"old".to_vec())];
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), expected);
}

#[test]
fn a_lost_rename_holds_back_what_came_after_it() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let dir = disk.dir("state");
        for name in ["log", "tmp", "slot"] {
            let file = dir.open(name, Open::New).unwrap();
            file.write_at(name.as_bytes(), 0).unwrap();
            file.sync().unwrap();
        }
        dir.sync().unwrap();
        dir.rename("log", "log.old").unwrap();
        dir.open("log", Open::New).unwrap();
        dir.rename("tmp", "slot").unwrap();
        dir.remove("slot").unwrap();
        disk.power_cut(&mut Rng::new(seed));
        let (mut logs, mut slots) = (Vec::new(), Vec::new());
        for path in disk.files() {
            let held = String::from_utf8(peek(&disk, &path, 0, 4)).unwrap();
            let name = path.trim_start_matches("state/").to_owned();
            (if name.starts_with("log") { &mut logs } else { &mut slots }).push((name, held));
        }
        (logs, slots)
    });
    let named = |files: &[(&str, &str)]| -> Vec<(String, String)> {
        files.iter().map(|&(name, held)| (name.to_owned(), held.to_owned())).collect()
    };
    let logs = [
        named(&[("log", "\0\0\0\0"), ("log.old", "log\0")]),
        named(&[("log", "log\0")]),
        named(&[("log.old", "log\0")]),
    ];
    let slots = [named(&[]), named(&[("slot", "slot"), ("tmp", "tmp\0")]), named(&[("slot", "tmp\0")])];
    let expected: std::collections::BTreeSet<_> =
        logs.iter().flat_map(|logs| slots.iter().map(move |slots| (logs.clone(), slots.clone()))).collect();
    assert_eq!(seen.into_keys().collect::<std::collections::BTreeSet<_>>(), expected);
}

#[test]
fn a_new_file_that_was_not_synced_may_be_empty_after_a_cut() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let dir = disk.dir("state");
        dir.open("f", Open::New).unwrap().write_at(b"data", 0).unwrap();
        dir.sync().unwrap();
        disk.power_cut(&mut Rng::new(seed));
        disk.file_len("state/f").unwrap()
    });
    assert!(seen.contains_key(&0) && seen.contains_key(&4));
}

#[test]
fn faults_strike_the_files_and_operations_that_they_name() {
    let disk = SimDisk::new(1);
    let dir = disk.dir("journal");
    let segment = dir.open("segment-1", Open::New).unwrap();
    segment.write_at(&[1; 8192], 0).unwrap();
    disk.fail("journal/segment-*", On::Read, Failure::Io, Times::Count(2));
    for _ in 0..2 {
        assert_eq!(segment.read_at(&mut [0; 4], 0).unwrap_err().raw_os_error(), Some(5));
    }
    assert_eq!(read(&*segment, 0, 1), [1]);

    disk.fail_range("journal/*", On::Read, 4096..4100, Failure::Io, Times::UntilCleared);
    assert_eq!(read(&*segment, 0, 4096).len(), 4096);
    segment.read_at(&mut [0; 2], 4099).unwrap_err();
    segment.write_at(&[1], 4099).unwrap();
    disk.clear_faults();
    read(&*segment, 4099, 2);

    let id = disk.fail("journal/", On::Sync, Failure::ReadOnly, Times::UntilCleared);
    segment.sync().unwrap();
    assert_eq!(dir.sync().unwrap_err().raw_os_error(), Some(30));
    disk.clear_fault(id);
    dir.sync().unwrap();
    disk.fail("*", On::Name, Failure::NoSpace, Times::ONCE);
    assert_eq!(dir.open("segment-2", Open::New).map(drop).unwrap_err().raw_os_error(), Some(28));
    assert!(!dir.exists("segment-2").unwrap());
}

#[test]
fn a_write_that_fails_changes_a_part_of_its_range_at_most() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", 8192);
        disk.fail("volumes/v", On::Write, Failure::Io, Times::ONCE);
        volume.write_at(&[1; 1024], 3584).unwrap_err();
        let all = peek(&disk, "volumes/v", 0, 8192);
        assert!(all[..3584].iter().chain(&all[4608..]).all(|&byte| byte == 0));
        (all[3584], all[4095], all[4096], all[4607])
    });
    let expected = [(0, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 1)];
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), expected);
}

#[test]
fn after_a_failed_sync_a_second_one_may_succeed_without_the_data() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", 8192);
        volume.write_at(&[1; 4096], 0).unwrap();
        disk.fail("*", On::Sync, Failure::Io, Times::ONCE);
        volume.sync().unwrap_err();
        assert_eq!(read(&*volume, 0, 1), [1]);
        volume.sync().unwrap();
        disk.power_cut(&mut Rng::new(seed));
        peek(&disk, "volumes/v", 0, 1)[0]
    });
    assert!(seen[&0] > 50 && seen[&1] > 50, "{seen:?}");
}

#[test]
fn once_forgotten_what_a_failed_sync_dropped_reads_as_it_is_on_stable_storage() {
    let seen = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", 8192);
        volume.write_at(&[1; 4096], 0).unwrap();
        disk.fail("*", On::Sync, Failure::Io, Times::ONCE);
        volume.sync().unwrap_err();
        // What was written since is not on stable storage either, but not lost: it stays.
        volume.write_at(&[2; 4096], 4096).unwrap();
        volume.forget_cached().unwrap();
        assert_eq!(read(&*volume, 4096, 1), [2]);
        let forgotten = read(&*volume, 0, 4096);
        volume.sync().unwrap();
        disk.power_cut(&mut Rng::new(seed));
        assert_eq!(peek(&disk, "volumes/v", 0, 4096), forgotten);
        forgotten[0]
    });
    assert!(seen[&0] > 50 && seen[&1] > 50, "{seen:?}");
}

#[test]
fn a_page_written_again_after_a_failed_sync_is_durable_after_the_next() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", 8192);
        volume.write_at(&[1; 4096], 0).unwrap();
        disk.fail("*", On::Sync, Failure::Io, Times::ONCE);
        volume.sync().unwrap_err();
        volume.write_at(&[2; 512], 0).unwrap();
        volume.sync().unwrap();
        disk.power_cut(&mut Rng::new(seed));
        let page = peek(&disk, "volumes/v", 0, 4096);
        assert_eq!((page[0], page[4095]), (2, 1));
    }
}

#[test]
fn zeroes_written_again_after_a_failed_sync_are_durable_after_the_next() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", 8192);
        volume.write_at(&[1; 4096], 0).unwrap();
        volume.sync().unwrap();
        volume.zero(0, 4096, true).unwrap();
        disk.fail("*", On::Sync, Failure::Io, Times::ONCE);
        volume.sync().unwrap_err();
        volume.zero(0, 4096, true).unwrap();
        volume.sync().unwrap();
        disk.power_cut(&mut Rng::new(seed));
        assert_eq!(peek(&disk, "volumes/v", 0, 1), [0]);
    }
}

#[test]
fn the_free_space_is_shared_and_comes_back() {
    let disk = SimDisk::new(1);
    let dir = disk.dir("journal");
    let (a, b) = (dir.open("a", Open::New).unwrap(), dir.open("b", Open::New).unwrap());
    a.allocate(8192).unwrap();
    disk.set_free(Some(3 * 4096));
    a.write_at(&[1; 8192], 0).unwrap();
    assert_eq!(disk.free(), Some(3 * 4096));
    b.allocate(8192).unwrap();
    assert_eq!(a.allocate(4 * 4096).unwrap_err().raw_os_error(), Some(28));
    assert_eq!(a.write_at(&[1; 8192], 8192).unwrap_err().raw_os_error(), Some(28));
    assert_eq!(a.len().unwrap(), 12288, "what fits is written");
    assert_eq!(dir.map("bitmap", 513).map(drop).unwrap_err().raw_os_error(), Some(28));
    assert!(!dir.exists("bitmap").unwrap());
    a.zero(0, 4096, true).unwrap();
    assert_eq!(disk.free(), Some(4096));
    a.zero(0, 4096, false).unwrap();
    assert_eq!(disk.free(), Some(0));
    dir.remove("b").unwrap();
    assert_eq!(disk.free(), Some(8192));
    a.set_len(100).unwrap();
    assert_eq!(disk.free(), Some(8192 + 8192));
    disk.volume("v", 1 << 30).write_at(&[1; 4096], 1 << 20).unwrap();
    assert_eq!(disk.free(), Some(8192 + 8192));
    disk.fail("journal/a", On::Space, Failure::NoSpace, Times::UntilCleared);
    a.write_at(&[2], 50).unwrap();
    assert_eq!(a.write_at(&[2], 4096).unwrap_err().raw_os_error(), Some(28));
}

#[test]
fn a_device_keeps_its_length() {
    let disk = SimDisk::new(1);
    let volume = disk.volume("v", 10_000);
    assert_eq!(volume.write_at(&[1; 2], 9_999).unwrap_err().raw_os_error(), Some(28));
    assert_eq!(volume.set_len(5).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    volume.write_at(&[1; 2], 9_998).unwrap();
    assert_eq!(volume.next_data(0).unwrap(), Some((8192, 10_000)));
    assert_eq!(disk.volume("v", 20_000).len().unwrap(), 20_000);
}

#[test]
fn data_runs_are_found() {
    let disk = SimDisk::new(1);
    let volume = disk.volume("v", 12 << 20);
    assert_eq!(volume.next_data(0).unwrap(), None);
    volume.write_at(&[1; 8192], 4096).unwrap();
    volume.write_at(&[1; 1], 1 << 20).unwrap();
    assert_eq!(volume.next_data(0).unwrap(), Some((4096, 12288)));
    assert_eq!(volume.next_data(5000).unwrap(), Some((5000, 12288)));
    assert_eq!(volume.next_data(12288).unwrap(), Some((1 << 20, (1 << 20) + 4096)));
    assert_eq!(disk.file_data("volumes/v"), [4096..12288, 1 << 20..(1 << 20) + 4096]);
    volume.zero(4096, 4096, true).unwrap();
    assert_eq!(volume.next_data(0).unwrap(), Some((8192, 12288)));
}

#[test]
fn a_fuse_kills_at_the_change_that_it_counts() {
    let partly = outcomes(|seed| {
        let disk = SimDisk::new(seed);
        let dir = disk.dir("state");
        let file = dir.open("log", Open::New).unwrap();
        let map = dir.map("bitmap", 8).unwrap();
        assert_eq!(disk.changes(), 2);
        disk.set_fuse(Some(1));
        file.write_at(&[1; 512], 0).unwrap();
        read(&*file, 0, 512);
        map.words()[0].store(1, Ordering::Relaxed);
        assert!(!disk.dead());
        assert!(is_dead(&file.write_at(&[2; 1024], 0).unwrap_err()));
        assert!(disk.dead());
        map.words()[0].store(2, Ordering::Relaxed);
        assert!(is_dead(&file.read_at(&mut [0; 1], 0).unwrap_err()));
        assert!(is_dead(&disk.dir("state").list().unwrap_err()));
        disk.process(1).volume("v", 4096).write_at(&[1], 0).unwrap();
        disk.kill();
        assert!(!disk.dead());
        assert_eq!(disk.dir("state").map("bitmap", 8).unwrap().words()[0].load(Ordering::Relaxed), 1);
        let content = peek(&disk, "state/log", 0, 1024);
        (content[0], content[511], content[512], content[1023])
    });
    assert_eq!(partly.into_keys().collect::<Vec<_>>(), [(1, 1, 0, 0), (2, 2, 0, 0), (2, 2, 2, 2)]);
}

#[test]
fn a_flipped_bit_is_on_the_disk() {
    let disk = SimDisk::new(1);
    let volume = disk.volume("v", 8192);
    volume.write_at(&[0b1000], 5000).unwrap();
    assert!(disk.flip("volumes/v", 5000, 0));
    assert!(!disk.flip("volumes/v", 8192, 0));
    assert!(!disk.flip("volumes/w", 0, 0));
    assert_eq!(read(&*volume, 5000, 1), [0b1001]);
    volume.sync().unwrap();
    assert!(disk.flip("volumes/v", 5000, 3));
    disk.power_cut(&mut Rng::new(1));
    assert_eq!(peek(&disk, "volumes/v", 5000, 1), [0b0001]);
}

#[test]
fn injected_loss_is_durable() {
    let disk = SimDisk::new(1);
    let dir = disk.dir("journal");
    for name in ["a", "b"] {
        let file = dir.open(name, Open::New).unwrap();
        file.write_at(&[7; 5000], 0).unwrap();
        file.sync().unwrap();
    }
    dir.sync().unwrap();
    assert!(disk.truncate("journal/a", 4099));
    disk.lose("*/b");
    disk.power_cut(&mut Rng::new(1));
    assert_eq!(disk.files(), ["journal/a"]);
    assert_eq!(disk.file_len("journal/a"), Some(4099));
    assert_eq!(peek(&disk, "journal/a", 4096, 8), [7, 7, 7, 0, 0, 0, 0, 0]);
    disk.volume("v", 4096).write_at(&[1], 0).unwrap();
    disk.volume("w", 8192);
    disk.swap_volumes("v", "w");
    assert_eq!(disk.file_len("volumes/v"), Some(8192));
    assert_eq!(peek(&disk, "volumes/w", 0, 1), [1]);
}

#[test]
fn a_snapshot_brings_everything_or_a_part_back() {
    let disk = SimDisk::new(1);
    let dir = disk.dir("state");
    dir.open("log", Open::New).unwrap().write_at(b"old", 0).unwrap();
    let map = dir.map("bitmap", 8).unwrap();
    map.words()[0].store(1, Ordering::Relaxed);
    let volume = disk.volume("v", 4096);
    volume.write_at(b"old", 0).unwrap();
    let snapshot = disk.snapshot();
    dir.open("log", Open::Existing).unwrap().write_at(b"new", 0).unwrap();
    dir.open("later", Open::New).unwrap();
    map.words()[0].store(2, Ordering::Relaxed);
    volume.write_at(b"new", 0).unwrap();
    disk.restore(&snapshot, "state/*");
    assert!(is_dead(&volume.len().unwrap_err()));
    assert_eq!(disk.files(), ["state/bitmap", "state/log", "volumes/v"]);
    assert_eq!(peek(&disk, "state/log", 0, 3), b"old");
    assert_eq!(peek(&disk, "state/bitmap", 0, 1), [1]);
    assert_eq!(peek(&disk, "volumes/v", 0, 3), b"new");
    assert!(disk.unsynced_pages("state/log") > 0);
    disk.restore(&snapshot, "*");
    assert_eq!(peek(&disk, "volumes/v", 0, 3), b"old");
}

#[test]
fn the_trace_repeats_and_tells_runs_apart() {
    let run = |seed: u64, last: u8| {
        let mut rng = Rng::new(seed);
        let disk = SimDisk::new(seed);
        for round in 0..5u64 {
            let dir = disk.dir("state");
            let file = dir.open("log", Open::Any).unwrap();
            let map = dir.map(&format!("bitmap-{round}"), 512).unwrap();
            disk.fail("*", On::Sync, Failure::Io, Times::ONCE);
            for _ in 0..20 {
                let offset = rng.below(40_000);
                file.write_at(&offset.to_le_bytes(), offset).unwrap();
                map.words()[rng.index(512)].store(offset, Ordering::Relaxed);
                drop(file.sync());
            }
            map.sync(0..512).unwrap();
            dir.sync().unwrap();
            disk.power_cut(&mut rng);
        }
        disk.volume("v", 4096).write_at(&[last], 0).unwrap();
        let len = disk.file_len("state/log").unwrap_or(0);
        let content = disk.peek("state/log", &mut vec![0; len as usize], 0);
        (disk.trace(), disk.files(), len, content)
    };
    assert_eq!(run(5, 1), run(5, 1));
    assert_ne!(run(5, 1).0, run(5, 2).0);
    assert_ne!(run(5, 1).0, run(6, 1).0);
}

#[test]
fn short_runs_are_cheap() {
    let started = Instant::now();
    for seed in 0..1000 {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", 12 << 20);
        let file = disk.dir("journal").open("segment", Open::New).unwrap();
        file.allocate(16 << 20).unwrap();
        for block in 0..8 {
            volume.write_at(&[1; 4096], block * 4096 * 97).unwrap();
            file.write_at(&[1; 4200], block * 4200).unwrap();
            file.sync().unwrap();
        }
        let snapshot = disk.snapshot();
        disk.power_cut(&mut Rng::new(seed));
        disk.restore(&snapshot, "*");
    }
    // About 20 ms when optimized; the bound only catches a whole file being copied.
    assert!(started.elapsed().as_secs() < 10, "{:?} for 1000 runs", started.elapsed());
}
