//! The simulated standby: the real target machine and the real files.

use std::collections::BTreeSet;
use std::sync::Arc;

use afterimage_protocol::frame::Frame;
use afterimage_protocol::message::TargetMessage;
use afterimage_protocol::rules::Rules;
use afterimage_protocol::state::{GroupState, Role};
use afterimage_protocol::target::*;
use afterimage_protocol::*;
use afterimage_storage::apply;
use afterimage_storage::group::*;
use afterimage_storage::io::File;
use afterimage_storage::journal::{JournalError, JournalOptions, SyncTicket};
use afterimage_storage::scatter::Scatter;
use afterimage_storage::verify;

use super::Violation;
use super::model::*;
use super::setup::{open_volumes, sizes_in, volume_infos, volume_states};
use super::theme::Shape;
use super::verify::{Flips, unmasked};
use crate::sim::{Rng, SimDisk};

enum Job {
    State(u64, Box<GroupState>),
    Sync(SyncTicket),
    Truncate(Lsn),
    Apply(Lsn, Vec<(Lsn, Lsn)>),
    Verify(Comparison),
    Report(Report),
}

enum Report {
    State(u64, bool),
    Sync(SyncTicket, std::io::Result<()>),
    Truncated(bool),
    BaseSynced(bool),
    Applied(bool),
    Verified(Vec<CheckResult>),
}

pub struct Process {
    pub target: Target,
    pub store: TargetStore,
    pub volumes: Vec<Arc<dyn File>>,
    jobs: Vec<Job>,
    /// Must be started again: its disk failed, or its journal is damaged.
    pub broken: bool,
}

pub struct Standby {
    pub disk: SimDisk,
    pub process: Option<Process>,
    /// Messages for the source, with the session that they belong to.
    pub outbox: Vec<(SessionId, TargetMessage)>,
    pub ended: Vec<SessionId>,
    pub promoted: Option<Result<Promotion, CannotPromote>>,
    /// The source asks it to take over.
    pub handed_over: bool,
    /// Syncs that had failed when it was last started.
    pub failed_syncs: u64,
    shape: Shape,
    patience_us: u64,
    journal_bytes: u64,
    rules: Rules,
}

impl Standby {
    pub fn new(seed: u64, rng: &mut Rng, rules: Rules, shape: Shape) -> Self {
        Self {
            disk: SimDisk::new(seed),
            process: None,
            outbox: Vec::new(),
            ended: Vec::new(),
            promoted: None,
            handed_over: false,
            failed_syncs: 0,
            shape,
            patience_us: *rng.pick(&[0, 0, 10_000, PATIENCE_US]),
            journal_bytes: *rng.pick(&[400_000, 4 << 20]),
            rules,
        }
    }

    /// What is on the disk where volumes that are small have their room: nobody's data.
    pub fn litter(&mut self) {
        let volumes = open_volumes(&self.disk);
        for n in (0..sectors()).filter(|n| is_within(*n, &SIZES) && !is_within(*n, &SMALL)) {
            let volume = &volumes[BLOCKS[n / SECTORS_PER_BLOCK].0 as usize];
            let _ = volume.write_at(&fill(1 << 40 | n as u64, SECTOR_BYTES), sector_offset(n));
        }
        volumes.iter().for_each(|v| drop(v.sync()));
    }

    /// The copy was there before: mostly what the primary has, with some blocks that differ.
    pub fn seed_copy(&mut self, primary: &super::primary::Primary, rng: &mut Rng) {
        let (from, to) = (open_volumes(&primary.disk), open_volumes(&self.disk));
        for (volume, block) in BLOCKS {
            let at = block * BLOCK_BYTES;
            let mut bytes = vec![0; BLOCK_BYTES.min(SIZES[volume as usize] - at) as usize];
            let read = from[volume as usize].read_at(&mut bytes, at);
            if read.is_ok() && rng.chance(0.7) {
                let _ = to[volume as usize].write_at(&bytes, at);
            }
        }
        to.iter().for_each(|v| drop(v.sync()));
    }

    /// Starts the process; whether it did.
    pub fn start(&mut self, now: Time) -> bool {
        let volumes = open_volumes(&self.disk);
        if settle(&volumes).is_err() {
            return false;
        }
        let Ok((group, state)) = GroupStore::open(self.disk.dir("group")) else { return false };
        let state = state.unwrap_or_else(|| GroupState::new(Role::Standby, volume_states(&SIZES)));
        if state.role != Role::Standby {
            return false;
        }
        let config = Config {
            group: "g".into(),
            volumes: volume_infos(&sizes_in(&state)),
            history_us: self.shape.history_us,
            patience_us: self.patience_us,
            journal_bytes: self.journal_bytes,
            rules: self.rules,
        };
        let options = JournalOptions {
            segment_bytes: 96 << 10,
            max_bytes: self.journal_bytes,
            max_unsynced_bytes: 1 << 20,
            // Some have all in memory that is to be applied, some none, and most a part of it.
            recent_bytes: [0, 16 << 10, 1 << 20]
                [usize::from(self.shape.slow_sync) + usize::from(self.shape.narrow)],
            long_write_bytes: 12 << 10,
            salt: 7,
            rules: self.rules,
        };
        let journal = self.disk.dir("journal");
        let Ok((store, mut target)) = TargetStore::open(group, journal, options, config, state, now) else {
            return false;
        };
        target.measured(SIZES.to_vec());
        self.process = Some(Process { target, store, volumes, jobs: Vec::new(), broken: false });
        self.drain(now);
        true
    }

    pub fn jobs(&self) -> usize {
        self.process.as_ref().map_or(0, |p| p.jobs.len())
    }

    /// Takes up what the machine wants done; appends and writes to the base are done at once.
    pub fn drain(&mut self, now: Time) {
        let Some(p) = &mut self.process else { return };
        while let Some(output) = p.target.poll() {
            if self.disk.dead() {
                return;
            }
            match output {
                Output::PersistState { version, state } => p.jobs.push(Job::State(version, state)),
                Output::Append(frame) => p.append(now, &frame),
                Output::SyncJournal { .. } => match p.store.start_sync() {
                    Ok(ticket) => p.jobs.push(Job::Sync(ticket)),
                    Err(_) => p.target.journal_synced(now, None),
                },
                Output::Truncate { at } => p.jobs.push(Job::Truncate(at)),
                Output::WriteBase { range, content } => {
                    let ok = write_base(&p.volumes, range, &content).is_ok();
                    p.target.base_written(now, ok);
                }
                Output::Compare(compare) => {
                    let differing = compare_base(&p.volumes, &compare);
                    p.target.compared(now, &compare, differing);
                }
                Output::SyncBase => {
                    // As old as its start: what is written before it is reported is not covered.
                    let ok = p.volumes.iter().all(|v| v.sync().is_ok());
                    p.jobs.push(Job::Report(Report::BaseSynced(ok)));
                }
                Output::Apply { to, skip } => p.jobs.push(Job::Apply(to, skip)),
                Output::Verify(comparison) => p.jobs.push(Job::Verify(comparison)),
                Output::ForgetDamage => p.broken |= p.store.forget_damage().is_err(),
                Output::Trim { before } => p.broken |= p.store.trim(before).is_err(),
                Output::Send { session, message } => self.outbox.push((session, message)),
                Output::EndSession { session, .. } => self.ended.push(session),
                Output::TakeOver { .. } => self.handed_over = true,
                Output::Search(search) => {
                    let found = search_journal(*search, p.store.read_all());
                    p.broken |= found.is_err();
                    p.target.searched(now, found.ok());
                }
                Output::Promoted(result) => self.promoted = Some(result),
            }
        }
        p.broken |= p.target.failure().is_some();
    }

    /// Performs, or reports, one job.
    pub fn step(&mut self, rng: &mut Rng, now: Time) {
        let Some(p) = &mut self.process else { return };
        if p.jobs.is_empty() {
            return;
        }
        let at = rng.index(p.jobs.len());
        if self.shape.slow_sync && matches!(p.jobs[at], Job::Sync(_)) && !rng.chance(0.05) {
            return;
        }
        let job = p.jobs.swap_remove(at);
        let report = match job {
            Job::Report(report) => {
                self.report(report, now);
                return;
            }
            Job::State(version, state) => Report::State(version, p.store.persist_state(&state)),
            Job::Sync(ticket) => {
                let result = ticket.run();
                Report::Sync(ticket, result)
            }
            Job::Truncate(at) => Report::Truncated(p.store.truncate(at).is_ok()),
            Job::Apply(to, skip) => {
                let skips = |lsn: Lsn| skip.iter().any(|(from, end)| lsn >= *from && lsn < *end);
                // As on a real disk, which has several writes at a time; in one window, or in several with the same blocks.
                let mut order = Rng::new(to.0);
                let budget = *order.pick(&[0, 8 << 10, 64 << 10]);
                let mut scatter = Scatter::held(move |writes| order.index(writes));
                let result = apply::apply(p.store.read_to(to), &skips, &p.volumes, &mut scatter, budget);
                p.broken |= matches!(&result, Err(e) if e.is_damage());
                Report::Applied(result.is_ok())
            }
            Job::Verify(comparison) => {
                let entries = comparison.replay_to.map(|to| p.store.read_to(to));
                Report::Verified(verify::compare(&p.volumes, &comparison, entries))
            }
        };
        if rng.chance(0.6) {
            self.report(report, now);
        } else {
            p.jobs.push(Job::Report(report));
        }
    }

    fn report(&mut self, report: Report, now: Time) {
        let Some(p) = &mut self.process else { return };
        if self.disk.dead() {
            return;
        }
        match report {
            Report::State(version, ok) => p.target.state_persisted(now, version, ok),
            Report::Sync(ticket, result) => {
                let durable = p.store.finish_sync(ticket, result).ok();
                if !self.disk.dead() {
                    p.target.journal_synced(now, durable);
                }
            }
            Report::Truncated(ok) => p.target.truncated(now, ok),
            Report::BaseSynced(ok) => p.target.base_synced(now, ok),
            Report::Applied(ok) => p.target.applied(now, ok),
            Report::Verified(results) => p.target.verified(now, results),
        }
        self.drain(now);
    }

    /// Compares every checkpoint that is offered with the primary's image at its position, but for sectors in which a bit
    /// flipped; returns those that are wrong in the newest one.
    pub fn check(&self, history: &History, flips: &Flips) -> Result<BTreeSet<usize>, Violation> {
        let none = || Ok(BTreeSet::new());
        let Some(p) = &self.process else { return none() };
        if self.disk.dead() || p.broken {
            return none();
        }
        let Some(base) = p.target.state().base else { return none() };
        let mut image = match read_image(&p.volumes) {
            Ok(image) => image,
            Err(_) => return none(),
        };
        let mut masked = flips.in_place(&image);
        let check_point = |image: &Image, masked: &BTreeSet<usize>, position: Position| match history
            .at(position.sequence)
        {
            Some(expected) => check_point(&unmasked(image, masked, expected), position, history),
            None => check_point(image, position, history),
        };
        let skip = p.target.skipped();
        let journal = p.store.journal();
        let (start, end) = (journal.start(), journal.end());
        let mut newest = None;
        if start >= base.lsn {
            check_point(&image, &masked, base.position)?;
            newest = Some(base.position);
        }
        let mut in_epoch = false;
        for entry in journal.read(start, end) {
            let Ok((from, to, frame)) = entry else { return none() };
            let skipped = skip.iter().any(|(a, b)| from >= *a && from < *b);
            if !skipped {
                apply_to(&mut image, &frame);
                for n in frame.written_range().into_iter().flat_map(sectors_in) {
                    masked.remove(&n);
                }
            }
            let position = match &frame {
                Frame::EpochBegin { .. } => {
                    in_epoch = true;
                    None
                }
                Frame::EpochAbort { .. } => {
                    in_epoch = false;
                    None
                }
                Frame::EpochCommit { position, .. } => {
                    in_epoch = false;
                    Some(*position)
                }
                Frame::Record(r) if !in_epoch => Some(r.position),
                _ => None,
            };
            if let Some(position) = position.filter(|_| to >= base.lsn && !skipped) {
                check_point(&image, &masked, position)?;
                newest = Some(position);
            }
        }
        let offered = p.target.newest().map(|n| n.position);
        // While the journal is being cut nothing is offered.
        let promoting = p.target.may_promote() == Err(CannotPromote::UnderWay);
        if offered.is_some() && offered != newest && !promoting {
            return Err(Violation::new("G1", format!("offers {offered:?}, the journal yields {newest:?}")));
        }
        Ok(masked)
    }

    /// The newest checkpoint is not durable, and nothing is under way that makes it so.
    pub fn has_unsynced(&self) -> bool {
        let unsynced = |p: &Process| p.target.newest() != p.target.durable();
        let syncs =
            |p: &Process| p.jobs.iter().any(|j| matches!(j, Job::Sync(_) | Job::Report(Report::Sync(..))));
        self.process.as_ref().is_some_and(|p| unsynced(p) && !syncs(p))
    }

    /// The newest checkpoint that a promotion would yield, if the process is up and can say.
    pub fn newest(&self) -> Option<Position> {
        self.process.as_ref().and_then(|p| p.target.newest()).map(|c| c.position)
    }
}

/// That `image` is the primary's at `position`.
pub fn check_point(image: &Image, position: Position, history: &History) -> Result<(), Violation> {
    match history.at(position.sequence) {
        None => Err(Violation::new("G1", format!("offers {position}, which never was"))),
        Some(expected) => {
            let sizes = history.sizes_at(position.sequence);
            let wrong = (0..sectors()).find(|n| is_within(*n, &sizes) && expected[*n] != image[*n]);
            let Some(n) = wrong else { return Ok(()) };
            let (volume, block) = BLOCKS[n / 8];
            Err(Violation::new(
                "G1",
                format!(
                    "offers {position}: volume {volume} block {block} sector {} has {}, the order says {}",
                    n % 8,
                    image[n],
                    expected[n]
                ),
            ))
        }
    }
}

fn apply_to(image: &mut Image, frame: &Frame) {
    let (range, content) = match frame {
        Frame::Record(r) => (r.range, &r.content),
        Frame::Block(b) => (b.range, &b.content),
        _ => return,
    };
    match content {
        frame::Content::Zeroes { .. } => put(image, range, None),
        frame::Content::Data(payload) => {
            if let Ok(raw) = codec::decode(payload) {
                put(image, range, Some(&raw));
            }
        }
    }
}

impl Process {
    fn append(&mut self, now: Time, frame: &Frame) {
        let mut result = self.store.append(frame);
        if matches!(result, Err(JournalError::Backlog { .. })) {
            let ticket = self.store.start_sync();
            if let Ok(ticket) = ticket {
                let run = ticket.run();
                let _ = self.store.finish_sync(ticket, run);
            }
            result = self.store.append(frame);
        }
        match result {
            Ok(end) => self.target.appended(now, frame, Some(end)),
            Err(error) => {
                if !matches!(error, JournalError::Full { .. }) {
                    self.target.fail("the journal cannot be written");
                }
                self.target.appended(now, frame, None);
            }
        }
    }
}
