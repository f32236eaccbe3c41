//! The simulated primary: the real source machine and the real files, with a shell that takes its time.

mod client;

use std::collections::BTreeMap;

use afterimage_protocol::bitmap::Bitmap;
use afterimage_protocol::frame::Content;
use afterimage_protocol::source::*;
use afterimage_protocol::state::{CannotRollBack, GroupState, Role};
use afterimage_protocol::*;
use afterimage_storage::group::*;

use super::Violation;
use super::model::*;
use super::setup::*;
use super::theme::Shape;
use crate::sim::{Failure, On, Rng, SimDisk, Times};

/// The hot-extent log, also while it is new.
pub const HOT_LOG: &str = "group/hot-extents*";
enum Job {
    State(u64, Box<GroupState>),
    Hot(u64, Vec<Extent>),
    Bitmap(u64, Vec<(VolumeIndex, std::ops::Range<usize>)>),
    Write(Sequence, Write),
    Flush(u64, VolumeIndex),
    Read(u64, BlockRange, bool),
    Note(Box<Verification>),
    PrepareGrowth(Vec<Growth>),
    GrowthNoted,
    ForgetGrowth(Vec<Bitmap>),
    Report(Report),
}

enum Report {
    State(u64, bool),
    Hot(u64, bool),
    Bitmap(u64, bool),
    Write(Sequence, Result<(), LocalError>),
    Flush(u64, bool),
    Read(u64, Vec<ReadOutcome>),
    Noted,
    GrowthPrepared(Option<Vec<Bitmap>>),
    Nothing,
}

/// What a client asked for.
enum Request {
    Write { range: ByteRange, fua: bool },
    Flush { covers: BTreeMap<usize, u64>, need: Sequence },
}

pub struct Process {
    pub source: Source,
    store: SourceStore,
    pub volumes: Vec<PrimaryVolume>,
    jobs: Vec<Job>,
    /// Each with its sequence and its place among all writes, once it has them.
    requests: BTreeMap<RequestId, (Request, Option<(Sequence, u64)>)>,
    pub disconnect: bool,
    /// Count of extents in the hot-extent log.
    hot: usize,
    /// Of the volumes, as clients and catch-ups see them.
    pub sizes: [u64; 2],
}

pub struct Primary {
    pub disk: SimDisk,
    pub process: Option<Process>,
    pub boot: u64,
    pub fenced: bool,
    shape: Shape,
    next_request: u64,
    next_value: u64,
    /// The last write acknowledged while in sync, and the last one that was acknowledged as durable.
    pub must: Sequence,
    pub must_durable: Sequence,
    /// For each sector: the place of the last acknowledged write, and of the last one whose flush was acknowledged.
    acked: BTreeMap<usize, u64>,
    flushed: BTreeMap<usize, u64>,
    pub acked_last: [Sequence; 2],
    /// The last write that this run of the process has acknowledged.
    pub acknowledged: Sequence,
    /// The last write that was acknowledged at all since this host is the primary, and when it was at that.
    answered: Vec<(Time, Sequence)>,
    /// The hot-extent log fails when next an extent leaves it and no client waits.
    pub fail_cooling: bool,
    /// Whether no other run of its generation was before, when it was last started.
    pub first_run: bool,
    /// The standby was set back, and no handshake has told so yet.
    pub unaware: bool,
    /// What became of a rollback that was asked for.
    pub rolled_back: Option<Result<Position, CannotRollBack>>,
}

impl Primary {
    pub fn new(seed: u64, shape: Shape) -> Self {
        Self {
            disk: SimDisk::new(seed),
            process: None,
            boot: 1,
            fenced: false,
            shape,
            next_request: 0,
            next_value: 0,
            must: Sequence(0),
            must_durable: Sequence(0),
            acked: BTreeMap::new(),
            flushed: BTreeMap::new(),
            acked_last: [Sequence(0); 2],
            acknowledged: Sequence(0),
            answered: Vec::new(),
            fail_cooling: false,
            first_run: false,
            unaware: false,
            rolled_back: None,
        }
    }

    /// Fills some tracked blocks before replication begins.
    pub fn format(&mut self, rng: &mut Rng) {
        let volumes = open_volumes(&self.disk);
        for (volume, block) in BLOCKS {
            if rng.coin() && SIZES[volume as usize] >= (block + 1) * BLOCK_BYTES {
                self.next_value += 1;
                let _ = volumes[volume as usize]
                    .write_at(&fill(self.next_value, BLOCK_BYTES), block * BLOCK_BYTES);
            }
        }
        volumes.iter().for_each(|v| drop(v.sync()));
    }

    /// Starts the process. An error of the disk is not a violation: it stays down.
    pub fn start(
        &mut self,
        setup: &Setup,
        history: &mut History,
        generation: Generation,
        now: Time,
        power_cut: bool,
    ) -> Result<bool, Violation> {
        let volumes = open_volumes(&self.disk);
        let Ok((group, state)) = GroupStore::open(self.disk.dir("group")) else { return Ok(false) };
        let mut state = state.unwrap_or_else(|| {
            let sizes = if self.shape.small { SMALL } else { SIZES };
            let mut state = GroupState::new(Role::Primary, volume_states(&sizes));
            state.compare_all = setup.compare;
            state
        });
        if state.role != Role::Primary {
            self.fenced = true;
            return Ok(false);
        }
        let mut boot_id = [0; 16];
        boot_id[..8].copy_from_slice(&self.boot.to_le_bytes());
        let capacity = setup.config.hot_capacity;
        let Ok((store, files)) = SourceStore::open(group, &mut state, boot_id, capacity, &volumes) else {
            return Ok(false);
        };
        let Ok(image) = read_image(&volumes) else { return Ok(false) };
        if power_cut {
            self.check_flushed(&image, history)?;
        }
        let first_run = state.bitmaps_of != state.generation() || state.generation() == Generation::NONE;
        let found = Found {
            state,
            bitmaps: files.bitmaps,
            hot: files.hot,
            settled: files.settled,
            boot_id,
            fresh_generation: generation,
        };
        let sizes = sizes_in(&found.state);
        let config = Config { volumes: volume_infos(&sizes), ..setup.config.clone() };
        let mut source = Source::start(config, found, now);
        if let Some(report) = store.verification() {
            source.resume_verification(now, report);
        }
        let sequence = source.position().sequence;
        // A run that could not write its state has used sequences that this one uses again; what it had answered is here.
        self.answered.iter_mut().for_each(|(_, answered)| *answered = sequence.min(*answered));
        history.recovered(sequence, image);
        self.first_run = first_run;
        if sizes == SIZES {
            history.grew(sequence);
        } else if history.sizes_at(sequence) == SIZES {
            return Err(Violation::new("G1", format!("the volumes had grown and are {sizes:?} again")));
        }
        self.process = Some(Process {
            source,
            store,
            volumes: volumes.into_iter().map(PrimaryVolume::new).collect(),
            jobs: Vec::new(),
            requests: BTreeMap::new(),
            disconnect: false,
            hot: 0,
            sizes,
        });
        self.drain(history);
        Ok(true)
    }

    /// The process did not start. It may have failed to sync the volumes, and is not there to fail their flushes: only
    /// the log tells.
    pub fn failed_to_start(&mut self) {
        self.acked = self.flushed.clone();
    }

    /// After a power cut, what a flush covered is there.
    fn check_flushed(&self, image: &Image, history: &History) -> Result<(), Violation> {
        for (sector, need) in &self.flushed {
            let found = image[*sector];
            let place = history.placed.get(&found).copied().unwrap_or_default();
            if place < *need && found != 0 {
                return Err(Violation::new(
                    "G2",
                    format!(
                        "sector {sector}: the flush of the {need}th write was acknowledged, the disk has {found}, the {place}th"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Clients are with another host now, which has what was promoted.
    pub fn server_replaced(&mut self) {
        self.acked.clear();
        self.flushed.clear();
        self.acked_last = [Sequence(0); 2];
        self.answered.clear();
        self.fenced = false;
    }

    /// The last write that was acknowledged before `until`; of all times if there is no end.
    pub fn answered_before(&self, until: Option<Time>) -> Sequence {
        let before = |(at, _): &&(Time, Sequence)| until.is_none_or(|until| *at < until);
        self.answered.iter().rev().find(before).map_or(Sequence(0), |(_, sequence)| *sequence)
    }

    pub fn ended(&mut self) {
        if let Some(p) = self.process.take() {
            // Clients were told, and lose what no flush had covered.
            let told = p.source.status().flush_failed;
            let failed = |sector: usize| {
                let volume = BLOCKS[sector / 8].0 as usize;
                told[volume] || p.volumes[volume].flush_failed()
            };
            let flushed = |sector: &usize| self.flushed.get(sector).copied().unwrap_or_default();
            let acked = self.acked.iter_mut().filter(|(sector, _)| failed(**sector));
            acked.for_each(|(sector, place)| *place = flushed(sector));
        }
        self.acknowledged = Sequence(0);
    }

    pub fn jobs(&self) -> usize {
        self.process.as_ref().map_or(0, |p| p.jobs.len())
    }

    /// Performs, or reports, one job.
    pub fn step(&mut self, rng: &mut Rng, history: &mut History, now: Time) {
        let Some(p) = &mut self.process else { return };
        if p.jobs.is_empty() {
            return;
        }
        let at = rng.index(p.jobs.len());
        let slow = match p.jobs[at] {
            Job::Write(..) => self.shape.slow_writes,
            Job::Report(Report::Flush(..)) => self.shape.slow_flush,
            Job::State(..) => self.shape.slow_state,
            Job::Report(Report::GrowthPrepared(_)) => self.shape.slow_growth,
            _ => false,
        };
        if slow && !rng.chance(0.1) {
            return;
        }
        let job = p.jobs.swap_remove(at);
        if let Job::Hot(_, extents) = &job {
            let leaves = extents.len() < std::mem::replace(&mut p.hot, extents.len());
            if self.fail_cooling && leaves && p.requests.is_empty() {
                self.fail_cooling = false;
                self.disk.fail(HOT_LOG, On::Write, Failure::Io, Times::Count(1));
            }
        }
        let report = match job {
            Job::Report(report) => {
                self.report(report, history, now);
                return;
            }
            other => p.perform(other),
        };
        if rng.chance(0.6) || is_failed_flush(&report) {
            self.report(report, history, now);
        } else if let Some(p) = &mut self.process {
            p.jobs.push(Job::Report(report));
        }
    }

    fn report(&mut self, report: Report, history: &mut History, now: Time) {
        let Some(p) = &mut self.process else { return };
        if self.disk.dead() {
            return;
        }
        match report {
            Report::State(version, ok) => p.source.state_persisted(now, version, ok),
            Report::Hot(transaction, ok) => p.source.hot_persisted(now, transaction, ok),
            Report::Bitmap(token, ok) => p.source.bitmap_synced(now, token, ok),
            Report::Write(sequence, result) => {
                if result.is_err() {
                    history.errors.push(sequence);
                    let range = p.requests.values().find_map(|(r, s)| match r {
                        Request::Write { range, .. } if s.is_some_and(|(s, _)| s == sequence) => Some(*range),
                        _ => None,
                    });
                    if let Some(range) = range {
                        history.failed(range, &peek_image(&self.disk));
                    }
                }
                p.source.local_done(now, sequence, result);
            }
            Report::Flush(token, ok) => p.source.local_flushed(now, token, ok),
            Report::Read(read, found) => p.source.blocks_read(now, read, found),
            Report::Noted => p.source.verification_noted(now),
            Report::GrowthPrepared(bitmaps) => p.source.growth_prepared(now, bitmaps),
            Report::Nothing => {}
        }
        self.drain(history);
    }

    /// Takes up what the machine wants done.
    pub fn drain(&mut self, history: &mut History) {
        let Some(p) = &mut self.process else { return };
        let mut completed = Vec::new();
        while let Some(output) = p.source.poll() {
            match output {
                Output::PersistState { version, state } => p.jobs.push(Job::State(version, state)),
                Output::PersistHot { transaction, extents } => p.jobs.push(Job::Hot(transaction, extents)),
                Output::SyncBitmap { token, words } => p.jobs.push(Job::Bitmap(token, words)),
                Output::LocalWrite { sequence, write } => {
                    let raw = match &write.content {
                        Content::Data(payload) => Some(payload.encoded.clone()),
                        Content::Zeroes { .. } => None,
                    };
                    let place = history.wrote(sequence, write.range, raw.as_deref());
                    let unplaced = p.requests.values_mut().find(|(r, s)| {
                        s.is_none() && matches!(r, Request::Write { range, .. } if *range == write.range)
                    });
                    if let Some((_, s)) = unplaced {
                        *s = Some((sequence, place));
                    }
                    p.jobs.push(Job::Write(sequence, write));
                }
                Output::LocalFlush { token, volume } => {
                    // A flush may be as old as its start: what is written before it is reported is not covered.
                    let started = p.perform(Job::Flush(token, volume));
                    if is_failed_flush(&started) {
                        // The machine keeps the latest time that it was told.
                        p.source.local_flushed(Time(0), token, false);
                    } else {
                        p.jobs.push(Job::Report(started));
                    }
                }
                Output::Read { read, blocks, hash } => p.jobs.push(Job::Read(read, blocks, hash)),
                Output::NoteVerification(report) => p.jobs.push(Job::Note(report)),
                Output::Complete { request, result } => completed.push((request, result)),
                Output::Disconnect { .. } => p.disconnect = true,
                Output::RolledBack(outcome) => self.rolled_back = Some(outcome),
                Output::PrepareGrowth(growth) => p.jobs.push(Job::PrepareGrowth(growth)),
                Output::ForgetGrowth(Unused(bitmaps)) => p.jobs.push(Job::ForgetGrowth(bitmaps)),
                Output::Grown(growth) => {
                    growth.iter().for_each(|g| p.sizes[g.volume.0 as usize] = g.to_bytes);
                    history.grew(p.source.position().sequence);
                    p.jobs.push(Job::GrowthNoted);
                }
                Output::NotGrown(_) | Output::RolesStay(_) => {}
            }
        }
        history.passed(p.source.position().sequence);
        // What a peer that has been set back since had acknowledged before, cannot count.
        let in_sync = p.source.status().in_sync && !self.unaware;
        for (request, result) in completed {
            let Some((what, sequence)) = p.requests.remove(&request) else { continue };
            if result.is_err() {
                continue;
            }
            match (what, sequence) {
                (Request::Write { range, fua }, Some((sequence, place))) => {
                    for sector in sectors_in(range) {
                        let last = self.acked.entry(sector).or_default();
                        *last = (*last).max(place);
                        if fua {
                            let last = self.flushed.entry(sector).or_default();
                            *last = (*last).max(place);
                        }
                    }
                    self.acknowledged = self.acknowledged.max(sequence);
                    let last = self.answered.last().map_or(Sequence(0), |(_, last)| *last);
                    if sequence > last {
                        self.answered.push((p.source.now(), sequence));
                    }
                    let last = &mut self.acked_last[range.volume.0 as usize];
                    *last = (*last).max(sequence);
                    if in_sync {
                        self.must = self.must.max(sequence);
                        if fua {
                            self.must_durable = self.must_durable.max(sequence);
                        }
                    }
                }
                (Request::Flush { covers, need }, _) => {
                    for (sector, place) in covers {
                        let last = self.flushed.entry(sector).or_default();
                        *last = (*last).max(place);
                    }
                    if in_sync {
                        self.must_durable = self.must_durable.max(need);
                    }
                }
                _ => {}
            }
        }
    }

    pub fn requests(&self) -> usize {
        self.process.as_ref().map_or(0, |p| p.requests.len())
    }

    /// The peer was promoted as `by` says, where this host had handed over.
    pub fn demote(&mut self, by: (Generation, Sequence)) -> Result<GroupState, Violation> {
        let Some(p) = &mut self.process else {
            return Err(Violation::new("rest", "the old primary is down".into()));
        };
        let mut state = p.source.state().clone();
        state.replaced(Some(by));
        if state.role != Role::Standby {
            return Err(Violation::new("G5", format!("not handed over at {by:?}: {:?}", p.source.state())));
        }
        let flushed = p.volumes.iter().all(|v| v.flush().is_ok());
        let synced = p.store.bitmap_syncs().sync_all().is_ok();
        if !synced || !p.store.persist_state(&state) || (!flushed && state.base.is_some()) {
            return Err(Violation::new("rest", "the demotion cannot be made durable".into()));
        }
        Ok(state)
    }

    /// The operator has the volumes replicated as far as they go.
    pub fn grow(&mut self, history: &mut History, now: Time) -> Result<(), CannotGrow> {
        let Some(p) = &mut self.process else { return Ok(()) };
        let grown = p.source.grow(now, &SIZES.map(Some), &SIZES);
        self.drain(history);
        grown
    }

    /// The old volume was replaced by time: after a power cut what was only acknowledged may be gone.
    pub fn power_lost(&mut self) {
        self.acked = self.flushed.clone();
        self.acked_last = [Sequence(0); 2];
    }
}

/// The machine is told at once. Nothing on the disk tells of it before the machine has set its bits, and what happens in
/// between, in the few instructions that this takes, is not shown to be safe.
fn is_failed_flush(report: &Report) -> bool {
    matches!(report, Report::Flush(_, false) | Report::Write(_, Err(LocalError::Flush)))
}

impl Process {
    fn perform(&mut self, job: Job) -> Report {
        match job {
            Job::State(version, state) => Report::State(version, self.store.persist_state(&state)),
            Job::Hot(transaction, extents) => Report::Hot(transaction, self.store.persist_hot(&extents)),
            Job::Bitmap(token, words) => Report::Bitmap(token, self.store.sync_bitmap(&words)),
            Job::Write(sequence, write) => {
                let volume = &self.volumes[write.range.volume.0 as usize];
                Report::Write(sequence, volume.write(&write))
            }
            Job::Flush(token, volume) => {
                Report::Flush(token, self.volumes[volume.0 as usize].flush().is_ok())
            }
            Job::Read(read, blocks, hash) => {
                let volume = &self.volumes[blocks.volume.0 as usize];
                let size = self.sizes[blocks.volume.0 as usize];
                Report::Read(read, read_run(volume.file(), size, blocks, hash))
            }
            Job::Note(report) => {
                self.store.note_verification(&report);
                Report::Noted
            }
            Job::PrepareGrowth(growth) => Report::GrowthPrepared(self.store.prepare_growth(&growth).ok()),
            Job::GrowthNoted => {
                self.store.growth_noted();
                Report::Nothing
            }
            Job::ForgetGrowth(bitmaps) => {
                self.store.forget_growth(bitmaps);
                Report::Nothing
            }
            Job::Report(report) => report,
        }
    }
}
