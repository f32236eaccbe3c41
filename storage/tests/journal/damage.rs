//! Bytes that change on the disk: below what was durable it is damage and said so, above it a torn tail and cut.

use afterimage_protocol::*;
use afterimage_storage::journal::{Damage, Journal, JournalError, Lost, Recovered};

use crate::disk::Disk;
use crate::frames::*;

const SEGMENT_HEADER: u64 = 4096;

/// A journal of `durable` entries that are synced and `more` that are not, closed by a kill.
fn filled(durable: u64, more: u64) -> (Disk, Vec<Held>, Lsn) {
    let disk = Disk::default();
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let mut random = Random::new(11);
    let mut all = Vec::new();
    let mut push = |journal: &mut Journal, i: u64| {
        let start = journal.end();
        let frame = write(&mut random, i, i * 4096, 1000);
        all.push((start, journal.append(&frame).unwrap(), frame));
    };
    for i in 0..durable {
        push(&mut journal, i);
        if i % 4 == 3 {
            sync(&mut journal).unwrap();
        }
    }
    sync(&mut journal).unwrap();
    (0..more).for_each(|i| push(&mut journal, durable + i));
    let end = journal.durable();
    (disk, all, end)
}

/// The file that holds `lsn`, and where in it.
fn place(disk: &Disk, lsn: Lsn) -> (String, usize) {
    let base = |name: &str| u64::from_str_radix(name.rsplit('-').next().unwrap(), 16).unwrap();
    let names = disk.names_with("segment-");
    let name = names.iter().rfind(|n| base(n) <= lsn.0).unwrap();
    (name.clone(), (lsn.0 - base(name) + SEGMENT_HEADER) as usize)
}

fn ranges(entries: &[Held]) -> Vec<ByteRange> {
    entries.iter().map(|e| e.2.written_range().unwrap()).collect()
}

fn reopen(disk: &Disk) -> (Recovered, Vec<Held>) {
    let (_, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
    (recovered, found)
}

#[test]
fn a_flipped_bit_in_any_durable_entry_is_damage_and_what_is_lost_is_known() {
    let (good, all, durable) = filled(30, 2);
    for (i, entry) in all[..30].iter().enumerate() {
        let disk = good.copy();
        let (name, at) = place(&disk, entry.0);
        let before = disk.bytes_of(&name);
        disk.flip(&name, at + 64 + 112 + 500, 0x10);
        let (recovered, found) = reopen(&disk);
        assert_eq!(found, all[..i]);
        assert_eq!((recovered.start, recovered.end), (Lsn(0), entry.0));
        let lost = Lost::Ranges(ranges(&all[i..]));
        assert_eq!(recovered.damage, Some(Damage { at: entry.0, durable_end: durable, lost }));
        let kept = disk.names_with(&format!("quarantine-{:016x}", entry.0.0));
        let copy = disk.bytes_of(&kept[0]);
        assert_eq!(copy[at + 64 + 112 + 500], before[at + 64 + 112 + 500] ^ 0x10);
        assert_eq!(copy[..at], before[..at]);
    }
}

#[test]
fn every_byte_of_a_durable_entry_and_of_its_segments_header_counts() {
    let (good, all, durable) = filled(6, 0);
    let (name, at) = place(&good, all[3].0);
    let mut random = Random::new(1);
    let header = (0..64).map(|offset| (offset, all[0].0, true));
    let padded = 64 + all[3].2.encoded_len();
    let entry = (at..at + padded).map(|offset| (offset, all[3].0, false));
    for (offset, cut, has_copy) in header.chain(entry) {
        let disk = good.copy();
        let bit = 1 << random.below(8);
        disk.flip(&name, offset, bit);
        if has_copy {
            let (recovered, found) = reopen(&disk.copy());
            assert_eq!((recovered.damage, found), (None, all.clone()), "offset {offset}");
            disk.flip(&name, 2048 + offset, bit);
        }
        let (recovered, found) = reopen(&disk);
        let damage = recovered.damage.unwrap_or_else(|| panic!("offset {offset} went unnoticed"));
        assert_eq!((damage.at, damage.durable_end, recovered.end), (cut, durable, cut), "offset {offset}");
        assert!(found.iter().all(|e| e.1 <= cut));
    }
}

#[test]
fn without_its_header_a_segment_is_damaged_whatever_is_known_of_it() {
    let (disk, all, _) = filled(6, 0);
    let (name, _) = place(&disk, all[3].0);
    for at in [20, 2048 + 20] {
        disk.flip(&name, at, 1);
    }
    disk.lose("durable");
    let (recovered, found) = reopen(&disk);
    assert_eq!(found, []);
    assert_eq!(recovered.damage.map(|damage| damage.lost), Some(Lost::Unknown));
}

#[test]
fn a_header_that_cannot_be_read_leaves_unknown_what_is_lost() {
    let (disk, all, durable) = filled(30, 0);
    let (name, at) = place(&disk, all[12].0);
    disk.flip(&name, at + 20, 1);
    let (recovered, found) = reopen(&disk);
    assert_eq!(found, all[..12]);
    assert_eq!(recovered.damage, Some(Damage { at: all[12].0, durable_end: durable, lost: Lost::Unknown }));
}

#[test]
fn a_flipped_bit_above_what_was_durable_is_cut() {
    let (good, all, durable) = filled(8, 6);
    for (i, entry) in all.iter().enumerate().skip(8) {
        for offset in [3, 40, 70, 700] {
            let disk = good.copy();
            let (name, at) = place(&disk, entry.0);
            disk.flip(&name, at + offset, 4);
            let (recovered, found) = reopen(&disk);
            assert_eq!(recovered.damage, None);
            assert!(recovered.end >= durable);
            assert_eq!(found, all[..i], "also the whole ones behind it are cut");
            assert!(disk.names_with("quarantine-").is_empty());
        }
    }
}

#[test]
fn the_mark_file_is_what_tells_damage_of_the_last_synced_entries() {
    let (disk, all, durable) = filled(8, 0);
    let (name, at) = place(&disk, all[7].0);
    disk.flip(&name, at + 100, 4);
    let (recovered, _) = reopen(&disk.copy());
    assert_eq!(recovered.damage.map(|d| d.durable_end), Some(durable));
    disk.lose("durable");
    assert_eq!(reopen(&disk).0.damage, None);
}

#[test]
fn without_the_mark_file_later_entries_and_segments_vouch_for_earlier_ones() {
    for (durable, more) in [(4, 1), (8, 0)] {
        let (disk, all, _) = filled(durable, more);
        disk.lose("durable");
        let (name, at) = place(&disk, all[2].0);
        disk.flip(&name, at + 100, 4);
        let damage = reopen(&disk).0.damage.unwrap();
        assert_eq!((damage.at, damage.durable_end), (all[2].0, all[4].0));
    }
}

#[test]
fn what_a_start_found_is_durable_without_the_mark_file() {
    let (disk, all, _) = filled(0, 5);
    reopen(&disk);
    disk.lose("durable");
    let (name, at) = place(&disk, all[4].0);
    disk.flip(&name, at + 100, 4);
    assert_eq!(reopen(&disk).0.damage.map(|d| d.durable_end), Some(all[4].1));
}

#[test]
fn a_mark_about_a_lost_segment_says_nothing_about_those_made_later() {
    let (disk, all, _) = filled(30, 0);
    disk.lose(disk.names_with("segment-").last().unwrap());
    let (mut journal, recovered, kept) = open(disk.dir(), OPTIONS).unwrap();
    assert!(recovered.damage.is_some());
    journal.acknowledge_damage().unwrap();
    all[kept.len()..].iter().for_each(|e| assert!(journal.append(&e.2).unwrap() == e.1));
    drop(journal);
    // Below what the one slot that is left from then says.
    let (name, at) = place(&disk, all[26].0);
    disk.flip(&name, at + 100, 4);
    assert_eq!(reopen(&disk).0.damage, None);
}

#[test]
fn a_lost_start_file_is_made_again_and_a_trim_survives_a_power_cut() {
    for seed in 0..50 {
        let (disk, all, _) = filled(60, 0);
        disk.lose("start");
        let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        journal.trim(all[50].0).unwrap();
        let start = journal.start();
        drop(journal);
        disk.power_cut(&mut Random::new(seed), 50);
        let (recovered, _) = reopen(&disk);
        assert_eq!((recovered.start, recovered.damage), (start, None));
    }
}

#[test]
fn a_torn_mark_is_ignored() {
    let (good, all, durable) = filled(8, 2);
    for offset in (0..40).chain(4096..4136) {
        let disk = good.copy();
        disk.flip("durable", offset, 0x80);
        let (recovered, found) = reopen(&disk);
        assert_eq!((recovered.damage, found.len()), (None, all.len()));
        assert!(recovered.end > durable);
    }
}

#[test]
fn damage_is_reported_until_it_was_dealt_with() {
    let (disk, all, durable) = filled(30, 0);
    let (name, at) = place(&disk, all[20].0);
    disk.flip(&name, at + 300, 1);
    let first = reopen(&disk).0.damage.unwrap();
    assert_eq!(reopen(&disk).0.damage.as_ref(), Some(&first));
    // More damage before that: both are reported as one.
    let (name, at) = place(&disk, all[4].0);
    disk.flip(&name, at + 300, 1);
    let (recovered, found) = reopen(&disk);
    assert_eq!(found, all[..4]);
    let both = Damage { at: all[4].0, durable_end: durable, lost: Lost::Ranges(ranges(&all[4..])) };
    assert_eq!(recovered.damage, Some(both));
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    journal.append(&all[0].2).unwrap();
    journal.acknowledge_damage().unwrap();
    drop(journal);
    assert_eq!(reopen(&disk).0.damage, None);
}

#[test]
fn a_note_of_damage_that_is_damaged_says_that_anything_may_be_lost() {
    let (disk, all, _) = filled(30, 0);
    let (name, at) = place(&disk, all[20].0);
    disk.flip(&name, at + 300, 1);
    reopen(&disk);
    disk.flip("damage", 17, 1);
    assert_eq!(reopen(&disk).0.damage.unwrap().lost, Lost::Unknown);
}

#[test]
fn a_lost_file_is_damage() {
    let (good, all, durable) = filled(60, 0);
    let names = good.names_with("segment-");
    assert!(names.len() > 4);
    for name in &names {
        let disk = good.copy();
        disk.lose(name);
        let damage = reopen(&disk).0.damage.unwrap_or_else(|| panic!("{name} was not missed"));
        assert_eq!((damage.durable_end, damage.lost), (durable, Lost::Unknown));
    }
    let disk = good.copy();
    names.iter().for_each(|n| disk.lose(n));
    assert_eq!(reopen(&disk).0.damage.map(|d| (d.at, d.lost)), Some((Lsn(0), Lost::Unknown)));
    let disk = good.copy();
    disk.lose("start");
    assert_eq!(reopen(&disk).1, all);
}

#[test]
fn what_was_trimmed_is_not_missed_and_what_was_not_is() {
    let (disk, all, _) = filled(60, 0);
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    journal.trim(all[30].0).unwrap();
    let start = journal.start();
    drop(journal);
    assert_eq!(reopen(&disk).0.damage, None);
    disk.lose(&disk.names_with("segment-")[0]);
    let damage = reopen(&disk).0.damage.unwrap();
    assert_eq!((damage.at, damage.lost), (start, Lost::Unknown));
}

#[test]
fn a_mark_from_before_a_truncation_does_not_vouch_for_what_came_after() {
    let (disk, all, _) = filled(20, 0);
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    journal.truncate(all[10].0).unwrap();
    let mut random = Random::new(5);
    for i in 0..10 {
        journal.append(&write(&mut random, i, 0, 1000)).unwrap();
    }
    drop(journal);
    let (name, at) = place(&disk, all[12].0);
    disk.flip(&name, at + 200, 1);
    let (recovered, found) = reopen(&disk);
    assert_eq!((recovered.damage, found.len()), (None, 12));
}

#[test]
fn the_entries_of_an_older_history_do_not_come_back() {
    // Equal lengths, so that the old entries behind the cut would fit the new ones in front of it.
    for keep in [0, 50, 100] {
        let (disk, all, _) = filled(8, 0);
        let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        journal.truncate(all[2].0).unwrap();
        let mut random = Random::new(keep);
        journal.append(&write(&mut random, 77, 0, 1000)).unwrap();
        drop(journal);
        disk.power_cut(&mut random, keep);
        let (_, found) = reopen(&disk);
        assert_eq!(found[..2], all[..2]);
        assert!(found.len() <= 3, "{} entries", found.len());
    }
}

#[test]
fn a_segment_of_a_newer_version_is_refused_and_left_alone() {
    use xxhash_rust::xxh3::xxh3_64;
    let (disk, ..) = filled(8, 0);
    let (name, _) = place(&disk, Lsn(0));
    let mut header = disk.bytes_of(&name)[..64].to_vec();
    header[8] = 3;
    let sum = xxh3_64(&header[..56]).to_le_bytes();
    let old = disk.bytes_of(&name);
    disk.flip(&name, 8, old[8] ^ 3);
    (0..8).for_each(|i| disk.flip(&name, 56 + i, old[56 + i] ^ sum[i]));
    let before = disk.names();
    let refused = open(disk.dir(), OPTIONS).map(|_| ()).unwrap_err();
    assert!(matches!(refused, JournalError::Version { version: 3, .. }), "{refused}");
    assert_eq!(disk.names(), before);
}

#[test]
fn no_bytes_make_it_panic() {
    let (good, ..) = filled(20, 3);
    let names = good.names();
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let disk = good.copy();
        for _ in 0..1 + random.below(40) {
            let name = &names[random.below(names.len() as u64) as usize];
            let len = disk.bytes_of(name).len() as u64;
            if len > 0 {
                disk.flip(name, random.below(len) as usize, random.next() as u8);
            }
        }
        if let Ok((mut journal, ..)) = open(disk.dir(), OPTIONS) {
            held(&journal);
            journal.append(&write(&mut random, 1, 0, 100)).unwrap();
            sync(&mut journal).unwrap();
            let kept = held(&journal);
            drop(journal);
            assert_eq!(reopen(&disk).1, kept);
        }
    }
}

#[test]
fn a_reader_says_where_the_damage_is() {
    let (disk, all, _) = filled(10, 0);
    let (journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let (name, at) = place(&disk, all[4].0);
    disk.flip(&name, at + 300, 1);
    let mut reader = journal.read(Lsn(0), journal.end());
    assert_eq!(reader.by_ref().take(4).filter(Result::is_ok).count(), 4);
    assert!(matches!(reader.next(), Some(Err(JournalError::Damaged { lsn, .. })) if lsn == all[4].0));
    assert!(reader.next().is_none());
}
