//! An open group whose standby this host is: its state machine, its files, and the performing of what the machine asks for.
//! How frames come into the journal is in `append`.

mod append;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use afterimage_events::{Event, event};
use afterimage_protocol::frame::{Frame, Record};
use afterimage_protocol::message::TargetMessage;
use afterimage_protocol::target::{CannotPromote, Choice, NoSuchPoint, Output, Promotion, Search, Target};
use afterimage_protocol::{Position, SessionId, Time};
use afterimage_storage::apply::ApplyError;
use afterimage_storage::group::{TargetStore, VolumeFile, compare_base, write_base};
use afterimage_storage::journal::JournalError;
use afterimage_storage::volume::Volume;
use tracing::info;

use super::jobs::{Done, Jobs};
use super::snapshot::{Details, Numbers};
use crate::clock;
use crate::link::{Link, SESSION_ENDED};

/// Frames go to the journal together up to this many bytes: what a disk writes in one piece, and far below the journal's
/// smallest segment.
const APPEND_BYTES: usize = 1 << 20;

/// The ordered stream waits for the applier when the journal is this full, in eighths: later than history gives way.
const NEARLY_FULL_EIGHTHS: u64 = 7;

/// Up to here a journal has room enough that no append waits for it, in eighths.
const QUICK_EIGHTHS: u64 = 6;
/// With more than this not synced the disk is behind, in bytes.
const QUICK_UNSYNCED_BYTES: u64 = 16 << 20;

/// A sync of no more than this is short, in bytes, if it takes no longer than this.
const SHORT_SYNC_BYTES: u64 = 256 << 10;
const SHORT_SYNC: Duration = Duration::from_millis(4);
/// After one that took longer, so many are left to the helper thread.
const SLOW_SYNCS: u32 = 16;

/// Called with what was found, or why the journal cannot be read.
pub type Look = Box<dyn FnOnce(Result<Result<Choice, NoSuchPoint>, String>) + Send>;

/// An open group.
pub struct Standby {
    group: String,
    pub target: Target,
    store: TargetStore,
    volumes: Vec<VolumeFile>,
    opened: Vec<Volume>,
    /// What each volume has room for.
    room_bytes: Vec<u64>,
    /// Holds the lock of the group's state.
    jobs: Jobs,
    /// Frames that the machine has given to the journal and that were not written yet.
    appends: Vec<Frame>,
    append_bytes: usize,
    /// What the machine asked for while an append waited for room.
    deferred: VecDeque<Output>,
    wrote_base: bool,
    /// What the metrics count.
    details: Details,
    /// When the batch under way was begun.
    apply_began: Option<Instant>,
    /// Whoever is at work may wait for a short sync of the journal.
    pub may_sync_here: bool,
    /// A sync of the journal is due that nobody has started.
    pub sync_due: bool,
    /// So many short syncs are left to the helper thread before one is tried elsewhere.
    slow_syncs: u32,
    /// No new job is started.
    closing: bool,
    journal_limit: u64,
    journal_full: bool,
    /// When it last had none.
    journal_full_at: Option<Time>,
    /// The last position that came, and when the source reached it.
    came: Option<(Position, Time)>,
    newest_time: Option<(Position, Time)>,
    /// Why the session ended, until it is asked for.
    pub ended: Option<String>,
    /// The outcome of a promotion, until it is asked for.
    pub promoted: Option<Result<Promotion, CannotPromote>>,
    /// Searches of the journal under way, in order: those of the machine, and those for somebody who asked.
    searches: VecDeque<Option<Look>>,
    /// The source hands over, until that is dealt with.
    pub handed_over: bool,
    /// What the disk said when the machine was told of a failure.
    pub trouble: Option<String>,
    /// The journal cannot be read: the group must be opened again.
    pub damaged: bool,
}

impl Standby {
    /// Puts together what was opened.
    pub fn new(
        group: &str,
        store: TargetStore,
        target: Target,
        volumes: Vec<Volume>,
        jobs: Jobs,
        journal_limit: u64,
    ) -> Self {
        Self {
            group: group.to_owned(),
            target,
            store,
            room_bytes: volumes.iter().map(Volume::size_bytes).collect(),
            volumes: volumes.iter().map(|v| v.file() as VolumeFile).collect(),
            opened: volumes,
            jobs,
            appends: Vec::new(),
            append_bytes: 0,
            deferred: VecDeque::new(),
            wrote_base: false,
            details: Details::default(),
            apply_began: None,
            may_sync_here: false,
            sync_due: false,
            slow_syncs: 0,
            closing: false,
            journal_limit,
            journal_full: false,
            journal_full_at: None,
            came: None,
            newest_time: None,
            ended: None,
            promoted: None,
            searches: VecDeque::new(),
            handed_over: false,
            trouble: None,
            damaged: false,
        }
    }

    /// Sizes of the volumes as they are replicated.
    pub fn volume_bytes(&self) -> Vec<u64> {
        self.target.state().volumes.iter().map(|v| v.size_bytes).collect()
    }

    /// Looks how large the volumes are now, and makes use of what they have grown by; what they have room for.
    pub fn measure(&mut self) -> Vec<u64> {
        for index in 0..self.opened.len() {
            let (volume, room) = (&self.opened[index], self.room_bytes[index]);
            let grown = match volume.measure() {
                Ok(size) if size > room => size,
                Ok(_) => continue,
                Err(error) => {
                    event!(Event::IoFailed, group = self.group, %error, "a volume cannot be measured");
                    continue;
                }
            };
            // After a loss of power it must not be smaller than what the source was told.
            if let Err(error) = volume.file().sync() {
                self.fail("the size of a volume cannot be made durable", &error);
                break;
            }
            volume.grow(grown);
            self.room_bytes[index] = grown;
        }
        self.target.measured(self.room_bytes.clone());
        self.room_bytes.clone()
    }

    /// A frame of the session came.
    pub fn frame(&mut self, session: SessionId, frame: Frame) {
        self.details.received_bytes += frame.encoded_len() as u64;
        match &frame {
            Frame::Record(Record { position, time, .. }) | Frame::EpochCommit { position, time, .. } => {
                self.came = Some((*position, *time));
            }
            _ => {}
        }
        if let Err(violation) = self.target.frame(clock::now(), session, frame) {
            event!(
                Event::ProtocolViolated,
                group = self.group,
                session = session.0,
                %violation,
                "the source broke the protocol"
            );
        }
    }

    /// Takes the results of the helper threads.
    pub fn jobs_done(&mut self) {
        while let Some(done) = self.jobs.try_done() {
            self.done(done);
        }
    }

    /// Performs what the machine asks for until it asks for nothing.
    pub fn settle(&mut self, link: &mut Option<Arc<Link>>) {
        loop {
            match self.deferred.pop_front().or_else(|| self.target.poll()) {
                Some(Output::Append(frame)) => {
                    self.append_bytes += frame.encoded_len();
                    self.appends.push(frame);
                    if self.append_bytes >= APPEND_BYTES {
                        self.append();
                    }
                }
                Some(output) => {
                    self.append();
                    self.perform(output, link);
                }
                None if !self.appends.is_empty() => self.append(),
                // Nothing is reported for a write by itself, but what waits for it has to be looked at again.
                None if std::mem::take(&mut self.wrote_base) => self.target.base_written(clock::now(), true),
                None => break,
            }
        }
        if let Some((position, _)) = self.came
            && self.target.newest().is_some_and(|p| p.position == position)
        {
            self.newest_time = self.came;
        }
        if let Some(link) = link {
            link.set_takes_ordered(self.target.takes_ordered() && !self.waits_for_room());
        }
    }

    /// Whether the journal is nearly full and what is being applied will give room: reading on would only end the session.
    fn waits_for_room(&self) -> bool {
        let (bytes, limit) = (self.store.journal_bytes(), self.journal_limit);
        self.jobs.base_is_busy() && bytes > limit / 8 * NEARLY_FULL_EIGHTHS
    }

    /// Whether frames can be taken without waiting for the disk for long: there is room, and what is not synced is little.
    pub fn is_quick(&self) -> bool {
        let idle = self.appends.is_empty() && self.deferred.is_empty() && !self.closing;
        let (bytes, limit) = (self.store.journal_bytes(), self.journal_limit);
        idle && bytes <= limit / 8 * QUICK_EIGHTHS && self.store.unsynced_bytes() <= QUICK_UNSYNCED_BYTES
    }

    /// Starts nothing new, waits for the helper threads, and makes the journal durable.
    pub fn close(&mut self, link: &mut Option<Arc<Link>>) {
        self.closing = true;
        self.settle(link);
        while let Some(done) = self.jobs.wait() {
            self.done(done);
            self.settle(link);
        }
        if let Err(error) = self.sync_journal() {
            event!(Event::JournalFailed, group = self.group, error = %chain(&error), "the journal cannot be synced");
        }
    }

    /// Waits for the helper threads.
    pub fn finish_jobs(&mut self) {
        while let Some(done) = self.jobs.wait() {
            self.done(done);
        }
    }

    /// Looks for a point that a promotion may be wanted at, beside all else but the applier.
    pub fn look(&mut self, search: Search, then: Look) {
        self.search(search, Some(then));
    }

    fn search(&mut self, search: Search, then: Option<Look>) {
        self.searches.push_back(then);
        self.jobs.search(search, self.store.read_all());
    }

    /// What the status shows.
    pub fn numbers(&self) -> Numbers {
        let state = self.target.state();
        let newest = self.target.newest().map(|p| p.position);
        let unapplied = self.target.unapplied();
        Numbers {
            generation: state.generation(),
            parent: state.parent(),
            newest,
            newest_time: self.newest_time(),
            durable: self.target.durable().map(|p| p.position),
            oldest: state.base.map(|b| b.position),
            applied: self.target.applied_to().map(|p| p.sequence),
            unapplied: (unapplied.start.0, unapplied.end.0 - unapplied.start.0),
            journal_bytes: self.store.journal_bytes(),
            staging: self.target.staging(),
            journal_full: self.journal_full || self.target.rests_for_room(clock::now()),
            journal_full_at: self.journal_full_at,
        }
    }

    /// Whether the journal is so full that less than the configured history is kept.
    pub fn cuts_history(&self) -> bool {
        self.target.cuts_history()
    }

    /// What the metrics show.
    pub fn details(&self) -> Details {
        Details {
            promotable: self.target.may_promote().is_ok(),
            covered_until: self.target.covered_until(),
            newest_time: self.target.newest().map(|point| point.time),
            durable_time: self.target.durable().map(|point| point.time),
            oldest_time: self.target.oldest_time(),
            unapplied_since: self.target.unapplied_since(),
            ..self.details
        }
    }

    fn batch_applied(&mut self, bytes: u64) {
        self.details.applied_bytes += bytes;
        if let Some(began) = self.apply_began.take() {
            self.details.applied.note(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// When the source reached the newest checkpoint, by its clock.
    pub fn newest_time(&self) -> Option<Time> {
        let newest = self.target.newest()?.position;
        self.newest_time.filter(|(position, _)| *position == newest).map(|(_, time)| time)
    }

    fn perform(&mut self, output: Output, link: &mut Option<Arc<Link>>) {
        match output {
            Output::Append(_) => {}
            Output::PersistState { version, state } => {
                self.jobs.persist_state(self.store.state_writer(), version, state);
            }
            Output::WriteBase { range, content } => match write_base(&self.volumes, range, &content) {
                Ok(()) => self.wrote_base = true,
                Err(error) => {
                    self.note("cannot write a volume", &error);
                    self.target.base_written(clock::now(), false);
                }
            },
            Output::Compare(compare) => {
                let differing = compare_base(&self.volumes, &compare);
                self.target.compared(clock::now(), &compare, differing);
            }
            Output::SyncJournal { .. } | Output::SyncBase | Output::Apply { .. } | Output::Verify(_)
                if self.closing => {}
            Output::SyncJournal { awaited } => {
                self.sync_due = true;
                // What comes meanwhile does not wait for a sync that nobody waits for.
                if !awaited || !self.syncs_here() {
                    self.sync_elsewhere();
                }
            }
            Output::SyncBase => self.jobs.sync_base(self.volumes.clone()),
            Output::Apply { to, skip } => {
                self.apply_began = Some(Instant::now());
                self.jobs.apply(self.store.read_to(to), skip, self.volumes.clone());
            }
            Output::Verify(comparison) => {
                let entries = comparison.replay_to.map(|to| self.store.read_to(to));
                self.jobs.verify(comparison, entries, self.volumes.clone());
            }
            Output::Truncate { at } => {
                let cut = self.store.truncate(at);
                if let Err(error) = &cut {
                    self.note("cannot cut the journal", error);
                }
                self.target.truncated(clock::now(), cut.is_ok());
            }
            Output::Trim { before } => match self.store.trim(before) {
                Ok(()) => self.journal_full = false,
                Err(error) => self.fail("the journal cannot be trimmed", &error),
            },
            Output::ForgetDamage => {
                if let Err(error) = self.store.forget_damage() {
                    self.fail("the journal's damage cannot be noted", &error);
                }
            }
            Output::Send { session, message } => self.send(session, message, link.as_deref()),
            Output::EndSession { session, reason } => self.end_session(session, reason, link),
            Output::TakeOver { position } => {
                info!(group = self.group, %position, "the source hands over");
                self.handed_over = true;
            }
            Output::Search(search) => self.search(*search, None),
            Output::Promoted(outcome) => self.promoted = Some(outcome),
        }
    }

    /// Whether a sync is left to whoever is at work ([`Standby::sync_now`]).
    fn syncs_here(&mut self) -> bool {
        let short = self.may_sync_here && self.store.unsynced_bytes() <= SHORT_SYNC_BYTES;
        let slow = self.slow_syncs > 0;
        self.slow_syncs -= u32::from(short && slow);
        short && !slow
    }

    /// Starts a sync of the journal that is due on its helper thread.
    pub fn sync_elsewhere(&mut self) {
        if !std::mem::take(&mut self.sync_due) {
            return;
        }
        match self.store.start_sync() {
            Ok(ticket) => self.jobs.sync_journal(ticket),
            // One that was started before a cut: its result is this one's too.
            Err(JournalError::SyncUnderWay) => {}
            Err(error) => self.fail("the journal cannot be synced", &error),
        }
    }

    /// Syncs the journal, if that is due. Blocks; a disk that is slow at it is left to the helper thread for a while.
    pub fn sync_now(&mut self) {
        if !std::mem::take(&mut self.sync_due) {
            return;
        }
        match self.store.start_sync() {
            Ok(ticket) => {
                let began = Instant::now();
                let result = ticket.run();
                if began.elapsed() > SHORT_SYNC {
                    self.slow_syncs = SLOW_SYNCS;
                }
                self.done(Done::Journal(ticket, result));
            }
            Err(JournalError::SyncUnderWay) => {}
            Err(error) => self.fail("the journal cannot be synced", &error),
        }
    }

    fn send(&self, session: SessionId, message: TargetMessage, link: Option<&Link>) {
        let Some(link) = link.filter(|l| l.session == session) else { return };
        if let TargetMessage::Opened(opened) = &message {
            event!(
                Event::LinkUp,
                group = self.group,
                session = session.0,
                address = %link.address(),
                key = %link.fingerprint(),
                received = opened.received.map(|p| p.sequence.0),
                durable = opened.durable.map(|p| p.sequence.0),
                "session begins"
            );
        }
        link.send(message);
    }

    fn end_session(&mut self, session: SessionId, reason: String, link: &mut Option<Arc<Link>>) {
        if let Some(link) = link.take_if(|l| l.session == session) {
            event!(Event::LinkDown, group = self.group, session = session.0, reason, "session ends");
            link.close(SESSION_ENDED, &reason);
            self.ended = Some(reason);
        }
    }

    fn done(&mut self, done: Done) {
        let now = clock::now();
        match done {
            Done::Journal(ticket, result) => match self.store.finish_sync(ticket, result) {
                Ok(durable) => self.target.journal_synced(now, Some(durable)),
                Err(error) => {
                    self.note("cannot sync the journal", &error);
                    self.target.journal_synced(now, None);
                }
            },
            Done::Search(found) => self.searched(found),
            Done::State(version, ok) => self.target.state_persisted(now, version, ok),
            Done::Apply(Ok(stats)) => {
                self.batch_applied(stats.written_bytes);
                self.target.applied(now, true);
            }
            Done::Apply(Err(error)) => {
                self.damaged |= matches!(&error, ApplyError::Journal(JournalError::Damaged { .. }));
                self.note("cannot apply the journal", &error);
                self.target.applied(now, false);
            }
            Done::Verify(results) => self.target.verified(now, results),
            Done::Base(result) => {
                if let Err(error) = &result {
                    self.note("cannot sync a volume", error);
                }
                self.target.base_synced(now, result.is_ok());
            }
        }
    }

    /// They end in the order in which they began.
    fn searched(&mut self, found: Result<Result<Choice, NoSuchPoint>, JournalError>) {
        if let Err(error) = &found {
            self.damaged |= matches!(error, JournalError::Damaged { .. });
            self.note("cannot read the journal", error);
        }
        match self.searches.pop_front().flatten() {
            Some(look) => look(found.map_err(|error| chain(&error))),
            None => self.target.searched(clock::now(), found.ok()),
        }
    }

    /// Notes what the disk said, for the log and the status.
    fn note(&mut self, what: &str, error: &dyn std::error::Error) {
        let text = format!("{what}: {}", chain(error));
        event!(Event::IoFailed, group = self.group, "{text}");
        self.trouble = Some(text);
    }

    fn fail(&mut self, reason: &'static str, error: &dyn std::error::Error) {
        self.note(reason, error);
        self.target.fail(reason);
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
