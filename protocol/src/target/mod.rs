//! The target: takes frames in order, decides what goes to the journal or the base, what is a checkpoint, what may be
//! acknowledged, applied, trimmed and offered.
//!
//! A pure state machine. The shell performs every [`Output`] in the order in which [`Target::poll`] gives them.
//! [`Output::Append`], [`Output::WriteBase`] and [`Output::Compare`] are performed and reported before the next frame is
//! fed; the others may take their time.
//!
//! | module | noun |
//! |---|---|
//! | `session` | the handshake |
//! | `intake` | frames as they come: order, epochs, what waits for what |
//! | `points` | checkpoints: received, durable, acknowledged |
//! | `apply` | redo from the journal to the base |
//! | `unapplied` | the blocks that the journal holds and the base may lack |
//! | `verify` | checks of a verification |
//! | `lease` | what a promotion loses of what clients were answered |
//! | `promote` | the end of being a target |
//! | `rest` | rests between catch-ups for which the journal has no room |
//! | `choose` | the point that a promotion is wanted at |

mod apply;
mod choose;
mod intake;
mod lease;
mod points;
mod promote;
mod rest;
mod session;
mod unapplied;
mod verify;

use std::collections::VecDeque;

use crate::bitmap::Bitmap;
use crate::block_set::BlockSet;
use crate::frame::{Compare, Content, Frame};
use crate::ids::*;
use crate::message::{TargetMessage, VolumeInfo};
use crate::rules::{Rule, Rules};
use crate::state::{GroupState, LostBlocks, Role};

use apply::Apply;
pub use apply::PATIENCE_US;
pub use choose::{Choice, Discarded, NoSuchPoint, Point, Search, Wanted};
use intake::{EarlyFrames, OpenEpoch};
pub use lease::Loss;
use lease::Pings;
use points::Points;
pub use promote::{CannotPromote, Promotion};
use session::Session;
use unapplied::Unapplied;
use verify::Checks;
pub use verify::{CheckResult, Comparison, DueCheck};

/// A journal is synced this long after an entry came, in microseconds, if nothing asks for it sooner.
const SYNC_DELAY_US: u64 = 5_000;
/// But syncs that nobody waits for take no more than this part of the time: on a disk that is shared, others wait for them.
const SYNC_PART: u64 = 64;
/// However long one takes, the next is put off by no more than this, in microseconds.
const MAX_SYNC_PAUSE_US: u64 = 100_000;
/// Or when this much is not synced.
const SYNC_BYTES: u64 = 4 << 20;
/// Why a target has failed when its journal could not be made durable, not even by writing it again ([`Target::failure`]).
pub const JOURNAL_SYNC_FAILED: &str = "the journal cannot be synced";

/// What does not change while a target runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group's name.
    pub group: String,
    /// Names of the volumes and their sizes as they were last replicated, in the order of their indices. Each session may
    /// change the sizes.
    pub volumes: Vec<VolumeInfo>,
    /// How long the base stays behind, in microseconds.
    pub history_us: u64,
    /// How long a batch waits for a pause in what comes before it is written to the base, in microseconds.
    pub patience_us: u64,
    /// Bound of the journal, in bytes; history is cut short when it is nearly reached.
    pub journal_bytes: u64,
    /// Which rules are in force; all, outside the simulator's own tests.
    pub rules: Rules,
}

/// A place in the journal whose image is a prefix of the write order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// What the image is.
    pub position: Position,
    /// Base and journal up to here make it.
    pub lsn: Lsn,
    /// When it was reached.
    pub time: Time,
}

/// Something that the shell has to do. The outcome is reported with the method named.
#[derive(Clone, Debug)]
pub enum Output {
    /// Write the state to both slots of the superblock: [`Target::state_persisted`].
    PersistState {
        /// To be named in the report.
        version: u64,
        /// What to write.
        state: Box<GroupState>,
    },
    /// Append to the journal: [`Target::appended`].
    Append(Frame),
    /// Make durable all that was appended: [`Target::journal_synced`].
    SyncJournal {
        /// Whether somebody waits for it: a flush, a promotion, or each write. Else it has only become time.
        awaited: bool,
    },
    /// Cut the journal at this place: [`Target::truncated`].
    Truncate {
        /// Everything at and after it goes.
        at: Lsn,
    },
    /// A first sync: write to the base: [`Target::base_written`].
    WriteBase {
        /// Where.
        range: ByteRange,
        /// What.
        content: Content,
    },
    /// Compare with the base: [`Target::compared`].
    Compare(Compare),
    /// Compare with the image at each check's place: [`Target::verified`]. The base is left alone meanwhile.
    Verify(Comparison),
    /// Make the bases of all volumes durable: [`Target::base_synced`].
    SyncBase,
    /// Redo the journal from its start up to `to`: [`Target::applied`].
    Apply {
        /// The end of the batch.
        to: Lsn,
        /// Entries that count for nothing.
        skip: Vec<(Lsn, Lsn)>,
    },
    /// What the journal had lost is noted durably: it may forget the damage; no report.
    ForgetDamage,
    /// Forget the journal before this place; no report.
    Trim {
        /// The place.
        before: Lsn,
    },
    /// Send a control message over this session.
    Send {
        /// The session.
        session: SessionId,
        /// The message.
        message: TargetMessage,
    },
    /// Close the connection of this session.
    EndSession {
        /// The session.
        session: SessionId,
        /// Why, for the log.
        reason: String,
    },
    /// The source hands over at this position, which is the newest checkpoint and durable: [`Target::take_over`], or
    /// [`Target::do_not_take_over`].
    TakeOver {
        /// The position.
        position: Position,
    },
    /// A promotion is wanted at an older point: feed the search with all entries of the journal: [`Target::searched`].
    Search(Box<Search>),
    /// The promotion is done, or failed.
    Promoted(Result<Promotion, CannotPromote>),
}

/// Durable entries that a starting target found damaged.
#[derive(Clone, Debug)]
pub struct FoundDamage {
    /// What they had written.
    pub lost: LostBlocks,
}

/// A target that is being fed with what its journal holds.
pub struct Recovery {
    target: Target,
    first: Option<Lsn>,
}

impl Recovery {
    /// The next entry that the journal still has, in order; its payload does not matter.
    pub fn entry(&mut self, start: Lsn, end: Lsn, frame: &Frame) {
        let first = *self.first.get_or_insert(start);
        if self.target.state.base.is_some() && !self.target.state.keeps_image {
            self.target.found_entry(first, start, end, frame);
        }
    }

    /// The bitmaps of this host's time as a primary: needed when the state counts them as lost.
    pub fn lost_bitmaps(&mut self, bitmaps: Vec<Bitmap>) {
        self.target.lost_bitmaps = bitmaps;
    }

    /// All entries were fed: the journal holds `start..end`, all of it on stable storage (rule 4), less what `damage`
    /// tells.
    pub fn finish(self, start: Lsn, end: Lsn, damage: Option<FoundDamage>, now: Time) -> Target {
        let mut target = self.target;
        let damaged = damage.is_some();
        if let Some(damage) = damage {
            if target.rules.on(Rule::DamageRefetched) {
                match damage.lost {
                    LostBlocks::None => {}
                    LostBlocks::All | LostBlocks::Bitmaps => target.state.lost = LostBlocks::All,
                    LostBlocks::Ranges(ranges) => target.state.lost.add(ranges),
                }
                // The commit of the epoch that is open now may be among what is lost.
                if let Some(open) = &target.epoch {
                    target.state.lost.add(open.discarded());
                }
            }
            target.persist();
        }
        // No frame is taken before this is durable: a session begins with a note in the same state.
        let of_before = target.state.base.is_some() && std::mem::take(&mut target.state.keeps_image);
        if let Some(base) = target.state.base.as_mut().filter(|_| of_before) {
            base.lsn = start;
            target.offer_base();
            target.persist();
        }
        if target.state.base.is_some_and(|b| b.lsn > end) {
            // An apply batch was under way that can no longer be finished: the base is of no position.
            if target.rules.on(Rule::DamageUnderApply) {
                target.state.base = None;
                target.state.lost = LostBlocks::All;
                target.offer_base();
                target.persist();
            } else if let Some(base) = &mut target.state.base {
                base.lsn = end;
                target.offer_base();
            }
        }
        target.journal_start = start;
        target.points.appended(end);
        target.points.all_durable();
        target.damage_pending = damaged;
        if (target.state.base.is_none() || of_before) && start < end {
            // What the journal holds counts for nothing, and must never be redone.
            target.skip.push((start, end));
            target.cut_journal(start);
        }
        target.pump(now);
        target
    }
}

/// The target of one group.
pub struct Target {
    config: Config,
    /// What each volume has room for, in bytes.
    room_bytes: Vec<u64>,
    rules: Rules,
    state: GroupState,
    now: Time,
    session: Session,
    points: Points,
    epoch: Option<OpenEpoch>,
    early: EarlyFrames,
    /// Entries of epochs that were never committed.
    skip: Vec<(Lsn, Lsn)>,
    /// Blocks that the journal holds and the base may lack.
    overlay: Unapplied,
    /// Where the epoch begins whose abort is being appended.
    aborting: Option<Lsn>,
    /// The sequence of the next record, when some are on their way to the journal.
    coming: Option<Sequence>,
    /// The bitmaps of this host's time as a primary, while what they say counts as lost.
    lost_bitmaps: Vec<Bitmap>,
    /// What was lost has been told to the source of this session.
    lost_handed_over: bool,
    /// What was lost has come again with the commit at this sequence.
    lost_until: Option<Sequence>,
    /// Damage was found that the journal still remembers.
    damage_pending: bool,
    /// The journal could not take an entry: history gives way until there is room.
    journal_full: bool,
    rest: rest::Rest,
    /// The journal is being cut here.
    cutting: Option<Lsn>,
    journal_start: Lsn,
    /// Since when a sync of the journal is under way.
    syncing: Option<Time>,
    sync_wanted: bool,
    unsynced_since: Option<Time>,
    /// No sync that nobody waits for begins before.
    next_idle_sync: Time,
    base_syncing: Option<u64>,
    base_writes: u64,
    apply: Apply,
    checks: Checks,
    /// A batch that nobody waits for begins no sooner.
    next_batch: Time,
    /// When the journal was last appended to.
    last_appended: Time,
    /// Up to where the last batch went.
    raised: Option<Checkpoint>,
    promoting: Option<promote::Step>,
    pings: Pings,
    state_version: u64,
    state_persisting: bool,
    state_wanted: bool,
    failed: Option<&'static str>,
    outputs: VecDeque<Output>,
}

impl Target {
    /// Starts a target: what its journal holds is fed with [`Recovery::entry`], then [`Recovery::finish`] gives the
    /// target.
    pub fn recover(config: Config, state: GroupState, now: Time) -> Recovery {
        let mut target = Self {
            points: Points::new(Lsn(0)),
            rules: config.rules,
            room_bytes: config.volumes.iter().map(|v| v.size_bytes).collect(),
            config,
            state,
            now,
            session: Session::None,
            epoch: None,
            early: EarlyFrames::default(),
            skip: Vec::new(),
            overlay: Unapplied::default(),
            aborting: None,
            coming: None,
            lost_bitmaps: Vec::new(),
            lost_handed_over: false,
            lost_until: None,
            damage_pending: false,
            journal_full: false,
            rest: rest::Rest::default(),
            cutting: None,
            journal_start: Lsn(0),
            syncing: None,
            sync_wanted: false,
            unsynced_since: None,
            next_idle_sync: Time(0),
            base_syncing: None,
            base_writes: 0,
            apply: Apply::Idle,
            checks: Checks::default(),
            next_batch: Time(0),
            last_appended: Time(0),
            raised: None,
            promoting: None,
            pings: Pings::default(),
            state_version: 0,
            state_persisting: false,
            state_wanted: false,
            failed: None,
            outputs: VecDeque::new(),
        };
        target.offer_base();
        Recovery { target, first: None }
    }

    /// Points at the base's own checkpoint and at nothing else.
    fn offer_base(&mut self) {
        self.points = Points::new(Lsn(0));
        self.epoch = None;
        self.skip.clear();
        self.overlay.clear();
        if let Some(base) = self.state.base {
            self.points.found(Checkpoint { position: base.position, lsn: base.lsn, time: Time(0) });
        }
    }

    /// The next thing to do; `None` until something else happens. Acknowledgements are given when nothing else is left,
    /// so that one covers many records.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.next_ack())
    }

    /// When [`Target::timeout`] wants to be called, if nothing happens before.
    pub fn next_timeout(&self) -> Option<Time> {
        [self.idle_sync_at(), self.apply_at()].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Time) {
        self.pump(now);
    }

    /// The superblock was written, or not.
    pub fn state_persisted(&mut self, now: Time, version: u64, ok: bool) {
        self.state_persisting = false;
        if ok {
            if std::mem::take(&mut self.damage_pending) {
                self.outputs.push_back(Output::ForgetDamage);
            }
            self.staged_noted(version);
            self.session_noted(version);
            self.apply_noted(version);
            self.promote_noted(version);
        } else {
            self.fail("the state cannot be written");
        }
        self.pump(now);
    }

    /// Nothing can be taken any more; what is there stays. The process has to be started again once the cause is
    /// mended.
    pub fn fail(&mut self, reason: &'static str) {
        if self.failed.is_none() {
            self.failed = Some(reason);
            self.end_session(reason);
        }
    }

    /// Why nothing can be taken, if so.
    pub fn failure(&self) -> Option<&'static str> {
        self.failed
    }

    fn pump(&mut self, now: Time) {
        self.now = self.now.max(now);
        if self.failed.is_some() {
            self.promote_failed();
            return;
        }
        self.pump_epoch();
        self.pump_sync();
        self.retry_apply();
        self.pump_promotion();
        self.pump_apply();
        self.pump_checks();
        self.pump_state();
    }

    fn pump_state(&mut self) {
        if self.state_wanted && !self.state_persisting {
            self.state_wanted = false;
            self.state_persisting = true;
            self.state_version += 1;
            let state = Box::new(self.state.clone());
            self.outputs.push_back(Output::PersistState { version: self.state_version, state });
        }
    }

    /// The version in which a change made now will be durable.
    fn persist(&mut self) -> u64 {
        self.state_wanted = true;
        self.state_version + 1
    }

    fn end_session(&mut self, reason: &str) {
        if let Some(session) = self.session.id() {
            self.outputs.push_back(Output::EndSession { session, reason: reason.to_owned() });
        }
        self.session = Session::None;
        self.coming = None;
        self.early = EarlyFrames::default();
        self.checks.forget_waiting();
        self.lost_handed_over = false;
        if self.epoch.as_ref().is_some_and(|e| e.is_being_noted()) {
            // The end of a first sync is on its way to the superblock: it stands.
            return;
        }
        if let Some(e) = &mut self.epoch {
            e.session_ended();
        }
        if self.epoch.as_ref().is_some_and(|e| e.direct) {
            self.epoch = None;
        }
    }

    /// Cuts the journal; nothing is taken until that is done.
    fn cut_journal(&mut self, at: Lsn) {
        self.cutting = Some(at);
        self.outputs.push_back(Output::Truncate { at });
    }

    fn send(&mut self, message: TargetMessage) {
        if let Some(session) = self.session.id() {
            self.outputs.push_back(Output::Send { session, message });
        }
    }

    /// The durable state as last changed.
    pub fn state(&self) -> &GroupState {
        &self.state
    }

    /// The session under way, opening or open.
    pub fn session(&self) -> Option<SessionId> {
        self.session.id()
    }

    /// The newest checkpoint that a promotion would yield.
    pub fn newest(&self) -> Option<Checkpoint> {
        self.points.newest()
    }

    /// The newest checkpoint on stable storage.
    pub fn durable(&self) -> Option<Checkpoint> {
        self.points.durable_point()
    }

    /// Entries of the journal that belong to no checkpoint.
    pub fn skipped(&self) -> Vec<(Lsn, Lsn)> {
        let open = self.epoch.as_ref().filter(|e| !e.direct).map(|e| (e.begin, self.points.end()));
        self.skip.iter().copied().chain(open).collect()
    }

    /// What is under way, for a log.
    pub fn activity(&self) -> String {
        format!(
            "apply {:?}, promotion {:?}, syncing {}, base sync {:?}, state write {} {}, cut {:?}, epoch {:?}",
            self.apply,
            self.promoting,
            self.syncing.is_some(),
            self.base_syncing,
            self.state_persisting,
            self.state_wanted,
            self.cutting,
            self.epoch.as_ref().map(OpenEpoch::activity),
        )
    }

    /// Count of bytes staged in the open epoch, and whether it is a first sync that goes to the base.
    pub fn staging(&self) -> Option<(u64, bool)> {
        self.epoch.as_ref().map(|e| (e.bytes, e.direct))
    }
}

#[cfg(test)]
mod tests;
