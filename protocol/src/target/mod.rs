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
//! | `promote` | the end of being a target |

mod apply;
mod intake;
mod points;
mod promote;
mod session;

use std::collections::VecDeque;

use crate::block_set::BlockSet;
use crate::frame::{Compare, Content, Frame};
use crate::ids::*;
use crate::message::{TargetMessage, VolumeInfo};
use crate::rules::{Rule, Rules};
use crate::state::{GroupState, LostBlocks, Role};

use apply::Apply;
use intake::OpenEpoch;
use points::Points;
pub use promote::{CannotPromote, Promotion};
use session::Session;

/// A journal is synced at the latest this long after an entry came, in microseconds, if nothing asks for it sooner.
const SYNC_DELAY_US: u64 = 5_000;
/// Or when this much is not synced.
const SYNC_BYTES: u64 = 4 << 20;

/// What does not change while a target runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group's name.
    pub group: String,
    /// Names and sizes of the volumes, in the order of their indices.
    pub volumes: Vec<VolumeInfo>,
    /// How long the base stays behind, in microseconds.
    pub history_us: u64,
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
    SyncJournal,
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
    /// Make the bases of all volumes durable: [`Target::base_synced`].
    SyncBase,
    /// Redo the journal from its start up to `to`: [`Target::applied`].
    Apply {
        /// The end of the batch.
        to: Lsn,
        /// Entries that count for nothing.
        skip: Vec<(Lsn, Lsn)>,
    },
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
    /// The promotion is done, or failed.
    Promoted(Result<Promotion, CannotPromote>),
}

/// What a starting target finds in its journal.
#[derive(Clone, Debug)]
pub struct FoundEntry {
    /// Where the entry begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// The entry; its payload does not matter.
    pub frame: Frame,
}

/// Durable entries that a starting target found damaged.
#[derive(Clone, Debug)]
pub struct FoundDamage {
    /// Where they begin; the journal was cut there.
    pub at: Lsn,
    /// What they had written.
    pub lost: LostBlocks,
}

/// The target of one group.
pub struct Target {
    config: Config,
    rules: Rules,
    state: GroupState,
    now: Time,
    session: Session,
    points: Points,
    epoch: Option<OpenEpoch>,
    /// Entries of epochs that were never committed.
    skip: Vec<(Lsn, Lsn)>,
    /// Blocks that the journal holds and the base may lack.
    overlay: BlockSet,
    /// Where the epoch begins whose abort is being appended.
    aborting: Option<Lsn>,
    /// The sequence of the next record, when some are on their way to the journal.
    coming: Option<Sequence>,
    /// What was lost has been told to the source of this session.
    lost_handed_over: bool,
    /// What was lost has come again with the commit at this sequence.
    lost_until: Option<Sequence>,
    /// The journal is being cut here.
    cutting: Option<Lsn>,
    journal_start: Lsn,
    syncing: bool,
    sync_wanted: bool,
    unsynced_since: Option<Time>,
    base_syncing: Option<u64>,
    base_writes: u64,
    apply: Apply,
    promoting: Option<promote::Step>,
    state_version: u64,
    state_persisting: bool,
    state_wanted: bool,
    failed: Option<&'static str>,
    outputs: VecDeque<Output>,
}

impl Target {
    /// Starts a target on what was found. All of the journal that was found must be on stable storage (rule 4).
    pub fn start(
        config: Config,
        mut state: GroupState,
        journal_start: Lsn,
        journal_end: Lsn,
        entries: impl IntoIterator<Item = FoundEntry>,
        damage: Option<FoundDamage>,
        now: Time,
    ) -> Self {
        let rules = config.rules;
        let mut changed = false;
        let cut = damage.as_ref().map_or(journal_end, |d| d.at);
        let torn_base = state.base.is_some_and(|b| b.lsn > cut);
        if let Some(damage) = damage {
            changed = true;
            if rules.on(Rule::DamageRefetched) {
                match damage.lost {
                    LostBlocks::None => {}
                    LostBlocks::All => state.lost = LostBlocks::All,
                    LostBlocks::Ranges(ranges) => state.lost.add(ranges),
                }
            }
        }
        if torn_base && rules.on(Rule::DamageUnderApply) {
            // An apply batch was under way that can no longer be finished: the base is of no position.
            state.base = None;
            state.lost = LostBlocks::All;
            changed = true;
        }
        let mut target = Self {
            points: Points::new(journal_end),
            rules,
            config,
            state,
            now,
            session: Session::None,
            epoch: None,
            skip: Vec::new(),
            overlay: BlockSet::default(),
            aborting: None,
            coming: None,
            lost_handed_over: false,
            lost_until: None,
            cutting: None,
            journal_start,
            syncing: false,
            sync_wanted: false,
            unsynced_since: None,
            base_syncing: None,
            base_writes: 0,
            apply: Apply::Idle,
            promoting: None,
            state_version: 0,
            state_persisting: false,
            state_wanted: changed,
            failed: None,
            outputs: VecDeque::new(),
        };
        if let Some(base) = target.state.base {
            target.points.found(Checkpoint { position: base.position, lsn: base.lsn, time: Time(0) });
        }
        if target.state.base.is_some() {
            for entry in entries {
                target.found_entry(entry);
            }
        } else if journal_start < journal_end {
            // Without a checkpoint what the journal holds counts for nothing, and must never be redone.
            target.cut_journal(journal_start);
        }
        target.points.all_durable();
        target.clear_lost_if_committed();
        target.pump(now);
        target
    }

    /// The next thing to do; `None` until something else happens. Acknowledgements are given when nothing else is left,
    /// so that one covers many records.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.next_ack())
    }

    /// When [`Target::timeout`] wants to be called, if nothing happens before.
    pub fn next_timeout(&self) -> Option<Time> {
        let sync = self.unsynced_since.filter(|_| !self.syncing).map(|t| t.plus_us(SYNC_DELAY_US));
        [sync, self.apply_at()].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Time) {
        self.pump(now);
    }

    /// The superblock was written, or not.
    pub fn state_persisted(&mut self, now: Time, version: u64, ok: bool) {
        self.state_persisting = false;
        if ok {
            self.session_noted(version);
            self.staged_noted(version);
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
        self.pump_promotion();
        self.pump_apply();
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
        self.lost_handed_over = false;
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

    /// Count of bytes staged in the open epoch, and whether it is a first sync that goes to the base.
    pub fn staging(&self) -> Option<(u64, bool)> {
        self.epoch.as_ref().map(|e| (e.bytes, e.direct))
    }
}
