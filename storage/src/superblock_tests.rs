//! The superblock under crashes, failed operations and damage.

use super::*;
use crate::test_disk::{Rng, TestDisk};

const NAME: &str = "superblock";

fn state(number: u64) -> Vec<u8> {
    let mut bytes = vec![number as u8; 1 + (number as usize * 517) % 3000];
    bytes[0] = !number as u8;
    bytes
}

fn open(disk: &TestDisk) -> (Superblock, Option<Vec<u8>>) {
    Superblock::open(disk, NAME).unwrap()
}

#[test]
fn the_last_state_comes_back() {
    let disk = TestDisk::default();
    let (mut superblock, found) = open(&disk);
    assert_eq!(found, None);
    assert_eq!(open(&disk).1, None);
    for number in 1..5 {
        superblock.write(&state(number)).unwrap();
        assert_eq!(open(&disk).1, Some(state(number)));
    }
    superblock.write(&[]).unwrap();
    assert_eq!(open(&disk).1, Some(vec![]));
}

#[test]
fn a_peek_sees_the_last_state_and_changes_nothing() {
    let disk = TestDisk::default();
    assert_eq!(Superblock::peek(&disk, NAME).unwrap(), None);
    let (mut superblock, _) = open(&disk);
    assert_eq!(Superblock::peek(&disk, NAME).unwrap(), None);
    superblock.write(&state(1)).unwrap();
    let before = disk.operations();
    assert_eq!(Superblock::peek(&disk, NAME).unwrap(), Some(state(1)));
    assert_eq!(disk.operations(), before);
}

#[test]
fn a_crash_at_any_operation_leaves_the_last_durable_state_or_the_one_being_written() {
    for seed in 1..1500 {
        let mut rng = Rng(seed);
        let disk = TestDisk::default();
        let mut durable = 0;
        for _ in 0..4 {
            disk.fail_after(rng.below(14));
            let mut begun = durable;
            if let Ok((mut superblock, found)) = Superblock::open(&disk, NAME) {
                let found = found.map_or(0, |bytes| u64::from(!bytes[0]));
                assert!(found >= durable, "seed {seed}");
                durable = found;
                begun = found;
                loop {
                    begun += 1;
                    if superblock.write(&state(begun)).is_err() {
                        disk.repair();
                        assert!(
                            superblock.write(&state(begun)).is_err(),
                            "a failed write is never forgotten"
                        );
                        break;
                    }
                    durable = begun;
                }
            }
            // Starts that fail half way, on a disk that may hold less than the page cache shows.
            for _ in 0..rng.below(3) {
                disk.fail_after(rng.below(4));
                if let Ok((_, found)) = Superblock::open(&disk, NAME) {
                    durable = found.map_or(0, |bytes| u64::from(!bytes[0]));
                }
                disk.repair();
            }
            if rng.below(2) == 0 {
                disk.crash(&mut rng);
            }
            disk.repair();
            // A process that dies leaves the page cache; a crash does not.
            let (_, found) = open(&disk);
            let number = found.as_ref().map_or(0, |bytes| u64::from(!bytes[0]));
            assert!((durable..=begun).contains(&number), "seed {seed}: {number} not in {durable}..={begun}");
            assert!(number == 0 || found == Some(state(number)), "seed {seed}");
            durable = number;
            // What open returned is durable.
            disk.crash(&mut rng);
            let again = open(&disk).1.map_or(0, |bytes| u64::from(!bytes[0]));
            assert_eq!(again, number, "seed {seed}");
        }
    }
}

#[test]
fn a_name_that_its_maker_did_not_sync_survives_the_power_all_the_same() {
    for seed in 1..200 {
        let mut rng = Rng(seed);
        let disk = TestDisk::default();
        for cut_short in 0.. {
            disk.fail_after(cut_short);
            let made = Superblock::open(&disk, NAME).is_ok();
            disk.repair();
            if made || disk.exists(NAME).unwrap() {
                break;
            }
        }
        let (mut superblock, _) = open(&disk);
        superblock.write(&state(1)).unwrap();
        disk.crash(&mut rng);
        assert_eq!(open(&disk).1, Some(state(1)), "seed {seed}");
    }
}

#[test]
fn a_damaged_slot_never_brings_back_an_older_state() {
    for slot in SLOTS {
        let disk = TestDisk::default();
        let (mut superblock, _) = open(&disk);
        superblock.write(&state(1)).unwrap();
        superblock.write(&state(2)).unwrap();
        for at in [0, 4, 8, 16, 24, 32, 900] {
            disk.damage(NAME, |bytes| bytes[slot as usize + at] ^= 0x10);
            assert_eq!(open(&disk).1, Some(state(2)));
            // It was repaired: the other slot may be lost now.
            let other = SLOT_BYTES - slot;
            let whole = disk.bytes(NAME);
            disk.damage(NAME, |bytes| bytes[other as usize] ^= 1);
            assert_eq!(open(&disk).1, Some(state(2)));
            assert_eq!(disk.bytes(NAME), whole);
        }
    }
}

#[test]
fn the_newer_slot_counts_whichever_it_is() {
    for slot in SLOTS {
        let disk = TestDisk::default();
        open(&disk).0.write(b"one").unwrap();
        let newer = KIND.seal(2, b"two");
        disk.damage(NAME, |bytes| bytes[slot as usize..slot as usize + newer.len()].copy_from_slice(&newer));
        let (mut superblock, found) = open(&disk);
        assert_eq!(found.as_deref(), Some(&b"two"[..]));
        superblock.write(b"three").unwrap();
        assert_eq!(open(&disk).1.as_deref(), Some(&b"three"[..]));
    }
}

#[test]
fn damage_of_both_slots_is_refused_by_name() {
    let disk = TestDisk::default();
    open(&disk).0.write(&state(1)).unwrap();
    disk.damage(NAME, |bytes| {
        bytes[40] ^= 1;
        bytes[SLOT_BYTES as usize + 50] ^= 1;
    });
    let before = disk.bytes(NAME);
    let error = Superblock::open(&disk, NAME).err().unwrap();
    assert!(matches!(error, SuperblockError::Damaged { .. }));
    assert!(error.to_string().contains(NAME), "{error}");
    assert_eq!(disk.bytes(NAME), before, "a refused file is not touched");
}

#[test]
fn slots_that_contradict_each_other_are_refused() {
    let disk = TestDisk::default();
    open(&disk).0.write(b"one").unwrap();
    let other = KIND.seal(1, b"two");
    disk.damage(NAME, |bytes| bytes[..other.len()].copy_from_slice(&other));
    assert!(matches!(Superblock::open(&disk, NAME), Err(SuperblockError::Damaged { .. })));
}

#[test]
fn a_later_version_is_refused_by_number() {
    let disk = TestDisk::default();
    open(&disk).0.write(b"one").unwrap();
    let newer = Kind { version: 9, ..KIND }.seal(2, b"new");
    disk.damage(NAME, |bytes| bytes[..newer.len()].copy_from_slice(&newer));
    assert!(matches!(Superblock::open(&disk, NAME), Err(SuperblockError::Version { found: 9, .. })));
}

#[test]
fn a_short_file_and_foreign_bytes_are_damage() {
    for bytes in [vec![], vec![0; 10], vec![0; SLOT_BYTES as usize * 2], vec![0xff; 100_000]] {
        let disk = TestDisk::default();
        let file = disk.open(NAME, Open::New).unwrap();
        file.write_at(&bytes, 0).unwrap();
        assert!(matches!(Superblock::open(&disk, NAME), Err(SuperblockError::Damaged { .. })));
    }
}

#[test]
fn a_state_that_is_too_long_changes_nothing() {
    let disk = TestDisk::default();
    let (mut superblock, _) = open(&disk);
    superblock.write(&vec![1; MAX_PAYLOAD_BYTES]).unwrap();
    let error = superblock.write(&vec![2; MAX_PAYLOAD_BYTES + 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(open(&disk).1, Some(vec![1; MAX_PAYLOAD_BYTES]));
    superblock.write(b"small").unwrap();
    assert_eq!(open(&disk).1, Some(b"small".to_vec()));
}
