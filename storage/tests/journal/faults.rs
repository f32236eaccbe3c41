//! A disk that fails: syncs, full disks, and every single operation in turn.

use std::io::ErrorKind;

use afterimage_protocol::Lsn;
use afterimage_storage::journal::{Journal, JournalError, JournalOptions};

use crate::disk::{Disk, Fault};
use crate::frames::*;

fn fill(journal: &mut Journal, random: &mut Random, count: u64) -> Vec<Held> {
    let append = |i| {
        let frame = write(random, i, i * 4096, 700);
        (journal.end(), journal.append(&frame).unwrap(), frame)
    };
    (0..count).map(append).collect()
}

#[test]
fn after_a_failed_sync_everything_is_written_again_and_then_durable() {
    for synced in [0, 3, 20] {
        for keep in [0, 50, 100] {
            let disk = Disk::default();
            let mut random = Random::new(keep);
            let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
            let mut all = fill(&mut journal, &mut random, synced);
            sync(&mut journal).unwrap();
            all.extend(fill(&mut journal, &mut random, 20));
            disk.fail(Fault::Sync(0));
            let ticket = journal.start_sync().unwrap();
            // Appended while the sync runs: in the same pages, so lost with them.
            all.extend(fill(&mut journal, &mut random, 3));
            let result = ticket.run();
            assert!(result.is_err());
            assert_eq!(journal.finish_sync(ticket, result).unwrap(), journal.end());
            assert_eq!((journal.durable(), journal.rewrites()), (journal.end(), 1));
            assert_eq!(held(&journal), all);
            drop(journal);
            disk.power_cut(&mut random, keep);
            assert_eq!(open(disk.dir(), OPTIONS).unwrap().2, all);
        }
    }
}

#[test]
fn a_process_that_died_after_a_failed_sync_leaves_no_tail_that_is_only_in_the_cache() {
    let disk = Disk::default();
    let mut random = Random::new(3);
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let all = fill(&mut journal, &mut random, 10);
    disk.fail(Fault::Sync(0));
    assert!(journal.start_sync().unwrap().run().is_err());
    drop(journal);
    let (journal, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
    assert_eq!((found, recovered.end), (all.clone(), journal.end()));
    drop(journal);
    disk.power_cut(&mut random, 0);
    assert_eq!(open(disk.dir(), OPTIONS).unwrap().2, all);
}

#[test]
fn a_rewrite_that_fails_poisons_the_journal() {
    let disk = Disk::default();
    let mut random = Random::new(3);
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let durable = fill(&mut journal, &mut random, 4);
    sync(&mut journal).unwrap();
    let frame = fill(&mut journal, &mut random, 1).remove(0).2;
    disk.fail(Fault::From(0));
    let ticket = journal.start_sync().unwrap();
    let result = ticket.run();
    let error = journal.finish_sync(ticket, result).unwrap_err();
    assert!(matches!(error, JournalError::Poisoned { .. }));
    assert_eq!(journal.durable(), durable[3].1);
    disk.fail(Fault::None);
    let poisoned = |e: JournalError| assert!(matches!(e, JournalError::Poisoned { .. }), "{e}");
    poisoned(journal.append(&frame).unwrap_err());
    poisoned(journal.start_sync().map(|_| ()).unwrap_err());
    poisoned(journal.truncate(Lsn(0)).unwrap_err());
    poisoned(journal.trim(Lsn(0)).unwrap_err());
    poisoned(journal.reset().unwrap_err());
    poisoned(journal.acknowledge_damage().unwrap_err());
    poisoned(journal.read(Lsn(0), journal.end()).next().unwrap().unwrap_err());
    drop(journal);
    assert_eq!(open(disk.dir(), OPTIONS).unwrap().2.len(), 5);
}

#[test]
fn a_sync_from_before_a_truncation_says_nothing_about_what_came_after() {
    let disk = Disk::default();
    let mut random = Random::new(3);
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    let all = fill(&mut journal, &mut random, 6);
    let ticket = journal.start_sync().unwrap();
    let result = ticket.run();
    journal.truncate(all[2].0).unwrap();
    fill(&mut journal, &mut random, 6);
    assert_eq!(journal.finish_sync(ticket, result).unwrap(), Lsn(0));
    drop(journal);
    disk.power_cut(&mut random, 0);
    let (_, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
    // Nothing was acknowledged; what the sync had reached is there, and nothing that was cut.
    assert_eq!((found, recovered.damage), (all[..2].to_vec(), None));
}

#[test]
fn a_full_disk_is_said_and_nothing_is_half_there() {
    let disk = Disk::default();
    let mut random = Random::new(3);
    let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
    disk.limit(Some(60 << 10));
    let mut all = Vec::new();
    let full = loop {
        let frame = write(&mut random, 1, 0, 700);
        let start = journal.end();
        match journal.append(&frame) {
            Ok(end) => all.push((start, end, frame)),
            Err(e) => break e,
        }
        sync(&mut journal).unwrap();
    };
    let JournalError::Full { used, source: Some(source), .. } = full else { panic!("{full}") };
    assert_eq!(source.kind(), ErrorKind::StorageFull);
    assert_eq!(used, journal.bytes());
    assert_eq!(held(&journal), all);
    // A restart and a trim work on a full disk, and make room.
    drop(journal);
    let (mut journal, _, found) = open(disk.dir(), OPTIONS).unwrap();
    assert_eq!(found, all);
    journal.trim(journal.end()).unwrap();
    let end = journal.end();
    assert!(journal.append(&all[0].2).unwrap() > end);
}

#[test]
fn a_write_that_failed_is_not_there_and_may_be_tried_again() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        let disk = Disk::default();
        let mut random = Random::new(3);
        let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        let mut all = fill(&mut journal, &mut random, 3);
        let batch: Vec<_> = (0..4).map(|i| write(&mut random, i, 0, 700)).collect();
        disk.fail(Fault::Once(0, kind));
        let error = journal.append_batch(&batch).unwrap_err();
        match error {
            JournalError::Full { .. } => assert_eq!(kind, ErrorKind::StorageFull),
            JournalError::Io { op: "write", source, .. } => assert_eq!(source.kind(), kind),
            other => panic!("{other}"),
        }
        assert_eq!(held(&journal), all);
        // Another one of the same length, so that the rest of the failed batch would fit behind it.
        let frame = write(&mut random, 9, 0, 700);
        all.push((journal.end(), journal.append(&frame).unwrap(), frame));
        assert_eq!(held(&journal), all);
        drop(journal);
        assert_eq!(open(disk.dir(), OPTIONS).unwrap().2, all);
    }
}

#[test]
fn every_operation_may_fail_and_the_journal_goes_on_or_says_so() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        for n in 0..400 {
            let disk = Disk::default();
            let mut random = Random::new(n);
            let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
            disk.fail(Fault::Once(n, kind));
            let mut all = Vec::new();
            for i in 0..60 {
                let frame = write(&mut random, i, i * 4096, 700);
                let start = journal.end();
                let end = journal.append(&frame).or_else(|_| journal.append(&frame)).unwrap();
                all.push((start, end, frame));
                if i % 8 == 7 {
                    match sync(&mut journal) {
                        Ok(durable) => assert_eq!(durable, journal.end()),
                        Err(e) => panic!("one failure is made good: {e}"),
                    }
                }
            }
            let at = all[40].0;
            match journal.truncate(at) {
                Ok(()) => all.truncate(40),
                Err(JournalError::Poisoned { .. }) => {
                    disk.fail(Fault::None);
                    drop(journal);
                    let (reopened, _, found) = open(disk.dir(), OPTIONS).unwrap();
                    assert!(found == all || found == all[..40], "{}", found.len());
                    journal = reopened;
                    all = found;
                }
                Err(_) => {}
            }
            assert_eq!(held(&journal), all);
            let _ = journal.trim(all[20].0);
            all.retain(|e| e.0 >= journal.start());
            assert_eq!(held(&journal), all);
            drop(journal);
            disk.fail(Fault::None);
            let (_, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
            assert!(all.ends_with(&found) && found.len() > 19 && recovered.damage.is_none());
        }
    }
}

#[test]
fn a_segment_that_only_shows_after_a_power_cut_does_not_cut_what_was_synced_since() {
    for seed in 0..60 {
        let disk = Disk::default();
        let mut random = Random::new(seed);
        let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        let mut all = fill(&mut journal, &mut random, 5);
        // The sync of the directory fails, so it is not known whether the segment for the large frame has its name.
        disk.fail(Fault::Sync(1));
        journal.append(&write(&mut random, 1, 0, 8000)).unwrap_err();
        all.extend(fill(&mut journal, &mut random, 1));
        let ticket = journal.start_sync().unwrap();
        let result = ticket.run();
        journal.finish_sync(ticket, result).unwrap();
        drop(journal);
        disk.power_cut(&mut random, 50);
        assert_eq!(open(disk.dir(), OPTIONS).unwrap().2, all, "seed {seed}");
    }
}

#[test]
fn a_truncation_that_may_show_after_a_power_cut_ends_the_use_of_the_journal() {
    for seed in 0..60 {
        let disk = Disk::default();
        let mut random = Random::new(seed);
        let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        let all = fill(&mut journal, &mut random, 5);
        sync(&mut journal).unwrap();
        disk.fail(Fault::Sync(1));
        assert!(matches!(journal.truncate(all[2].0), Err(JournalError::Poisoned { .. })));
        assert!(matches!(journal.append(&all[0].2), Err(JournalError::Poisoned { .. })));
        drop(journal);
        disk.power_cut(&mut random, 50);
        let found = open(disk.dir(), OPTIONS).unwrap().2;
        assert!(found == all || found == all[..2], "seed {seed}: {}", found.len());
    }
}

#[test]
fn a_start_that_was_seen_but_is_not_durable_vouches_for_nothing() {
    // Found by the random schedules (seed 1157): a reset whose note of the start fails to sync, a kill, a start of the
    // process that dies, and a power cut.
    for n in 0..40 {
        for seed in 0..8 {
            let disk = Disk::default();
            let mut random = Random::new(seed);
            let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
            let all = fill(&mut journal, &mut random, 5);
            disk.fail(Fault::Sync(2));
            journal.reset().unwrap_err();
            drop(journal);
            disk.fail(Fault::From(n));
            let _ = open(disk.dir(), OPTIONS);
            disk.power_cut(&mut random, 50);
            let (_, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
            assert_eq!(recovered.damage, None, "operation {n}, seed {seed}");
            assert!(all.starts_with(&found), "operation {n}, seed {seed}");
        }
    }
}

#[test]
fn an_error_names_the_operation_and_the_file() {
    let disk = Disk::default();
    disk.fail(Fault::Once(0, ErrorKind::PermissionDenied));
    let error = open(disk.dir(), JournalOptions::default()).map(|_| ()).unwrap_err();
    let JournalError::Io { op, source, .. } = &error else { panic!("{error}") };
    assert_eq!((*op, source.kind()), ("list", ErrorKind::PermissionDenied));
}
