//! Random schedules of appends, syncs, truncations and trims, ended at any operation by a kill or a power cut, over
//! and over on the same disk, against a model of what must be there.

use afterimage_protocol::Lsn;
use afterimage_protocol::frame::Frame;
use afterimage_storage::journal::{Journal, JournalError, SyncTicket};

use crate::disk::{Disk, Fault};
use crate::frames::*;

/// What the journal must hold, and what it may hold because an operation on it failed.
struct Model {
    entries: Vec<Held>,
    start: Lsn,
    end: Lsn,
    durable: Lsn,
    /// Frames whose append failed: a crash may show a part of one of these behind the end.
    attempted: Vec<Vec<Frame>>,
    /// Where a truncation that failed may have cut.
    cut: Option<Lsn>,
    /// The start after a trim that failed may be anywhere up to here.
    latest_start: Lsn,
}

impl Model {
    fn new() -> Self {
        Self {
            entries: Vec::new(),
            start: Lsn(0),
            end: Lsn(0),
            durable: Lsn(0),
            attempted: Vec::new(),
            cut: None,
            latest_start: Lsn(0),
        }
    }

    fn truncate(&mut self, at: Lsn) {
        self.entries.retain(|e| e.0 < at);
        self.end = at;
        self.durable = self.durable.min(at);
        self.attempted.clear();
    }

    fn forget(&mut self, start: Lsn) {
        self.entries.retain(|e| e.0 >= start);
        self.start = start;
        self.latest_start = self.latest_start.max(start);
    }

    /// Checks what is there after a crash, and takes it over.
    fn check_recovered(&mut self, start: Lsn, end: Lsn, found: Vec<Held>, killed: bool) {
        assert!(self.start <= start && start <= self.latest_start.max(self.start), "start {start}");
        let least = if killed { self.end } else { self.durable };
        let least = least.min(self.cut.unwrap_or(least)).max(start);
        assert!(end >= least, "ends at {end}, but {least} was there");
        let mut at = start;
        let kept: Vec<_> = self.entries.iter().filter(|e| e.0 >= start).collect();
        for (i, entry) in found.iter().enumerate() {
            assert_eq!(entry.0, at, "a gap");
            at = entry.1;
            if let Some(known) = kept.get(i) {
                assert_eq!(&entry, known, "other bytes than were appended");
            }
        }
        assert_eq!(at, end);
        if end > self.end {
            let more: Vec<_> = found.iter().filter(|e| e.0 >= self.end).map(|e| &e.2).collect();
            let shown = self
                .attempted
                .iter()
                .any(|a| a.len() >= more.len() && a.iter().zip(&more).all(|(a, b)| a == *b));
            assert!(shown, "{} entries behind the end that nobody appended last", more.len());
        }
        self.entries = found;
        (self.start, self.end, self.durable) = (start, end, end);
        self.attempted.clear();
        self.cut = None;
        self.latest_start = start;
    }

    fn check_open(&self, journal: &Journal) {
        assert_eq!((journal.start(), journal.end()), (self.start, self.end));
        assert!(journal.durable() <= journal.end());
        assert_eq!(held(journal), self.entries);
    }
}

/// Does one random thing; an error is an expected one.
fn step(
    random: &mut Random,
    journal: &mut Journal,
    model: &mut Model,
    ticket: &mut Option<SyncTicket>,
    sequence: &mut u64,
) -> Result<(), JournalError> {
    match random.below(100) {
        0..50 => {
            let frames: Vec<_> = (0..1 + random.below(4))
                .map(|_| {
                    *sequence += 1;
                    any_frame(random, *sequence)
                })
                .collect();
            let mut at = model.end;
            // Noted before, because a crash may show what was being written.
            model.attempted.push(frames.clone());
            let ends = journal.append_batch(&frames)?;
            for (frame, end) in frames.into_iter().zip(ends) {
                let bytes = (64 + frame.encoded_len() as u64).next_multiple_of(8);
                // A long batch ends at a block: see `a_long_batch_ends_at_a_block`.
                assert!(at.0 + bytes <= end.0 && end.0 < at.0 + bytes + 4096);
                model.entries.push((at, end, frame));
                at = end;
            }
            assert_eq!(at, journal.end());
            model.end = at;
            model.attempted.clear();
        }
        50..70 => {
            if ticket.is_none() {
                *ticket = Some(journal.start_sync()?);
            }
        }
        70..90 => {
            if let Some(ticket) = ticket.take() {
                let result = ticket.run();
                model.durable = journal.finish_sync(ticket, result)?;
                assert!(model.durable <= model.end);
            }
        }
        90..94 => {
            let at = match random.below(3) {
                0 => model.end,
                _ if model.entries.is_empty() => model.end,
                _ => model.entries[random.below(model.entries.len() as u64) as usize].0,
            };
            model.cut = Some(at);
            journal.truncate(at)?;
            model.cut = None;
            model.truncate(at);
        }
        94..98 => {
            let before = match random.below(3) {
                0 => model.durable,
                _ if model.entries.is_empty() => model.end,
                _ => model.entries[random.below(model.entries.len() as u64) as usize].0,
            };
            model.latest_start = model.latest_start.max(before.min(model.durable));
            let outcome = journal.trim(before);
            assert!(journal.start() <= before.max(model.start));
            model.forget(journal.start());
            outcome?;
        }
        98 => {
            model.latest_start = model.end;
            journal.reset()?;
            model.forget(model.end);
            model.durable = model.end;
            assert_eq!(journal.durable(), model.end);
        }
        _ => model.check_open(journal),
    }
    Ok(())
}

fn schedule(seed: u64, rounds: u64) {
    let mut random = Random::new(seed);
    let disk = Disk::default();
    let mut model = Model::new();
    let mut sequence = 0;
    for _ in 0..rounds {
        // Some rounds die while they open.
        if random.below(4) == 0 {
            disk.fail(Fault::From(random.below(30)));
            let _ = open(disk.dir(), OPTIONS);
            disk.fail(Fault::None);
        }
        let mut killed = true;
        if random.below(3) > 0 {
            let keep = [0, 20, 50, 90, 100][random.below(5) as usize];
            disk.power_cut(&mut random, keep);
            killed = false;
        }
        let mut journal = reopen(&disk, &mut model, killed);
        match random.below(3) {
            0 => disk.fail(Fault::From(random.below(120))),
            1 => disk.fail(Fault::Sync(random.below(12))),
            _ => {
                let kind =
                    [std::io::ErrorKind::StorageFull, std::io::ErrorKind::Other][random.below(2) as usize];
                disk.fail(Fault::Once(random.below(60), kind));
            }
        }
        let mut ticket = None;
        let mut failures = 0;
        for _ in 0..random.below(120) {
            if let Err(error) = step(&mut random, &mut journal, &mut model, &mut ticket, &mut sequence) {
                failures += 1;
                if matches!(error, JournalError::Poisoned { .. }) || failures > 3 {
                    break;
                }
            }
        }
        drop(journal);
        disk.fail(Fault::None);
    }
}

fn reopen(disk: &Disk, model: &mut Model, killed: bool) -> Journal {
    let (journal, recovered, found) = open(disk.dir(), OPTIONS).unwrap();
    assert_eq!(recovered.damage, None, "a crash is not damage");
    model.check_recovered(recovered.start, recovered.end, found, killed);
    model.check_open(&journal);
    assert_eq!(journal.durable(), journal.end());
    assert!(disk.names().iter().all(|n| !n.ends_with(".new") && !n.starts_with("quarantine")));
    journal
}

fn run(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| schedule(seed, 12));
        assert!(outcome.is_ok(), "seed {seed} failed");
    }
}

#[test]
fn whatever_the_crash_the_durable_part_is_there_and_the_rest_a_prefix() {
    let count = std::env::var("JOURNAL_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150);
    run(0..count);
}
