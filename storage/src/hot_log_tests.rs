//! The hot-extent log under crashes, failed operations and damage.

use super::*;
use crate::test_disk::{Rng, TestDisk};

const NAME: &str = "hot.log";

/// A set that says which write it belongs to.
fn set(number: u64) -> Vec<Extent> {
    if number == 0 {
        return Vec::new();
    }
    (0..1 + number * 37 % 200)
        .map(|i| Extent { volume: VolumeIndex(i as u32 % 3), index: number + i })
        .collect()
}

fn number_of(set: &[Extent]) -> u64 {
    set.first().map_or(0, |extent| extent.index)
}

fn open(disk: &TestDisk) -> (HotLog, Vec<Extent>) {
    HotLog::open(disk, NAME, 1000).unwrap()
}

/// Flips a bit in one copy of a transaction.
fn damage(disk: &TestDisk, mirror: u64, number: u64) {
    disk.damage(NAME, |bytes| bytes[offset(mirror, number % SLOTS) as usize + 33] ^= 4);
}

#[test]
fn the_last_set_comes_back() {
    let disk = TestDisk::default();
    let (mut log, found) = open(&disk);
    assert!(log.created() && found.is_empty());
    for number in 1..6 {
        log.write(&set(number)).unwrap();
        let (again, found) = open(&disk);
        assert!(!again.created());
        assert_eq!(found, set(number));
    }
    log.write(&[]).unwrap();
    assert_eq!(open(&disk).1, []);
}

#[test]
fn one_write_is_one_sync() {
    let disk = TestDisk::default();
    let (mut log, _) = open(&disk);
    let before = disk.operations();
    log.write(&set(1)).unwrap();
    assert_eq!(disk.operations() - before, 3, "two copies and one sync");
}

#[test]
fn a_crash_at_any_operation_leaves_the_last_durable_set_or_the_one_being_written() {
    for seed in 1..400 {
        let mut rng = Rng(seed);
        let disk = TestDisk::default();
        let mut durable = 0;
        for _ in 0..4 {
            disk.fail_after(rng.below(14));
            let mut begun = durable;
            if let Ok((mut log, found)) = HotLog::open(&disk, NAME, 1000) {
                assert!(number_of(&found) >= durable, "seed {seed}");
                (durable, begun) = (number_of(&found), number_of(&found));
                loop {
                    begun += 1;
                    if log.write(&set(begun)).is_err() {
                        disk.repair();
                        assert!(log.write(&set(begun)).is_err(), "a failed write is never forgotten");
                        break;
                    }
                    durable = begun;
                }
            }
            // Starts that fail half way, on a disk that may hold less than the page cache shows.
            for _ in 0..rng.below(3) {
                disk.fail_after(rng.below(4));
                if let Ok((_, found)) = HotLog::open(&disk, NAME, 1000) {
                    durable = number_of(&found);
                }
                disk.repair();
            }
            if rng.below(2) == 0 {
                disk.crash(&mut rng);
            }
            disk.repair();
            let found = open(&disk).1;
            let number = number_of(&found);
            assert!((durable..=begun).contains(&number), "seed {seed}: {number} not in {durable}..={begun}");
            assert_eq!(found, set(number), "seed {seed}");
            durable = number;
            disk.crash(&mut rng);
            assert_eq!(open(&disk).1, found, "seed {seed}: what open returned is durable");
        }
    }
}

#[test]
fn a_damaged_copy_leaves_the_other_and_is_repaired() {
    let disk = TestDisk::default();
    let (mut log, _) = open(&disk);
    log.write(&set(1)).unwrap();
    log.write(&set(2)).unwrap();
    let newest = log.number;
    let whole = disk.bytes(NAME);
    for mirror in 0..MIRRORS {
        damage(&disk, mirror, newest);
        assert_eq!(open(&disk).1, set(2));
        assert_eq!(disk.bytes(NAME), whole);
    }
}

#[test]
fn a_transaction_torn_in_both_copies_was_never_durable() {
    let disk = TestDisk::default();
    let (mut log, _) = open(&disk);
    log.write(&set(1)).unwrap();
    log.write(&set(2)).unwrap();
    let newest = log.number;
    damage(&disk, 0, newest);
    damage(&disk, 1, newest);
    assert_eq!(open(&disk).1, set(1));
    // And the next transaction takes its place.
    let (mut log, _) = open(&disk);
    log.write(&set(3)).unwrap();
    assert_eq!(open(&disk).1, set(3));
}

#[test]
fn a_log_without_a_transaction_is_damaged_not_empty() {
    let disk = TestDisk::default();
    let (log, _) = open(&disk);
    for number in log.number - 1..=log.number {
        damage_all(&disk, number);
    }
    let error = HotLog::open(&disk, NAME, 10).err().unwrap();
    assert!(matches!(error, HotLogError::Damaged { .. }));
    assert!(error.to_string().contains(NAME), "{error}");
    for bytes in [vec![], vec![0; (COPY_BYTES * 4) as usize]] {
        let disk = TestDisk::default();
        disk.open(NAME, Open::New).unwrap().write_at(&bytes, 0).unwrap();
        assert!(matches!(HotLog::open(&disk, NAME, 10), Err(HotLogError::Damaged { .. })));
        HotLog::replace(&disk, NAME, 10).unwrap().write(&set(1)[..1]).unwrap();
        assert_eq!(open(&disk).1.len(), 1);
    }
}

fn damage_all(disk: &TestDisk, number: u64) {
    for mirror in 0..MIRRORS {
        disk.damage(NAME, |bytes| bytes[offset(mirror, number % SLOTS) as usize + 9] ^= 4);
    }
}

#[test]
fn copies_that_contradict_each_other_are_damage() {
    let disk = TestDisk::default();
    let (mut log, _) = open(&disk);
    log.write(&set(1)).unwrap();
    let newest = log.number;
    let put = |number: u64, extents: &[Extent]| {
        let copy = KIND.seal(number, &encode(extents));
        let at = offset(1, number % SLOTS) as usize;
        disk.damage(NAME, |bytes| bytes[at..at + copy.len()].copy_from_slice(&copy));
    };
    put(newest, &set(2));
    assert!(matches!(HotLog::open(&disk, NAME, 10), Err(HotLogError::Damaged { .. })));
    // A transaction was durable and is gone: its slot holds one from long before.
    put(newest + 5, &set(3));
    assert!(matches!(HotLog::open(&disk, NAME, 10), Err(HotLogError::Damaged { .. })));
}

#[test]
fn a_later_version_is_refused_by_number() {
    let disk = TestDisk::default();
    open(&disk);
    let newer = Kind { version: 2, ..KIND }.seal(2, &[]);
    disk.damage(NAME, |bytes| bytes[..newer.len()].copy_from_slice(&newer));
    assert!(matches!(HotLog::open(&disk, NAME, 10), Err(HotLogError::Version { found: 2, .. })));
}

#[test]
fn capacity_is_kept_and_what_was_inherited_fits() {
    let disk = TestDisk::default();
    assert!(matches!(HotLog::open(&disk, NAME, MAX_EXTENTS + 1), Err(HotLogError::Capacity(_))));
    let (mut log, _) = HotLog::open(&disk, NAME, MAX_EXTENTS).unwrap();
    let all: Vec<_> = (0..MAX_EXTENTS as u64).map(|index| Extent { volume: VolumeIndex(0), index }).collect();
    log.write(&all).unwrap();
    let (mut log, found) = HotLog::open(&disk, NAME, 4).unwrap();
    assert_eq!(found, all);
    log.write(&all[1..]).unwrap();
    let (mut log, _) = HotLog::open(&disk, NAME, 4).unwrap();
    assert_eq!(log.write(&all).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    log.write(&all[..4]).unwrap();
    assert_eq!(open(&disk).1, all[..4]);
}
