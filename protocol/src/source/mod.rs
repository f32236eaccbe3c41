//! The source: admits writes, remembers what the target lacks, and decides what is sent, in what order, and when a
//! client hears that its write is done.
//!
//! A pure state machine. The shell feeds it with what happened ([`Source::write`], [`Source::local_done`], …), performs
//! every [`Output`] that [`Source::poll`] gives, in order, and reports the outcome. Frames for the peer are pulled with
//! [`Source::next_frame`] (the ordered stream) and [`Source::next_block`] (any of the block streams).
//!
//! | module | noun |
//! |---|---|
//! | `admission` | a write on its way in: range lock, hot extents, sequence, record or no record |
//! | `lock` | the range lock |
//! | `hot` | the hot extents and their log |
//! | `queue` | the ordered, bounded queue |
//! | `room` | whether a write waits for room in it |
//! | `epoch` | catch-up: cursor, requeued blocks, outstanding frames, commit |
//! | `session` | the handshake and what the target says afterwards |
//! | `clearing` | when bits clear and what is noted before |
//! | `completion` | when a client is answered |
//! | `counters` | what has happened, for metrics |
//! | `handover` | the planned change of roles |
//! | `growth` | volumes that grow |
//! | `lease` | what the target may promise when it is promoted |
//! | `rollback` | a promotion that nothing was written after, taken back |
//! | `doubt` | whether this host is still the primary, after a standstill |
//! | `verify` | the comparison of both copies |
//! | `tune` | what can be changed while it runs, and whether it can be left |

mod admission;
mod clearing;
mod completion;
mod counters;
mod doubt;
mod epoch;
mod growth;
mod handover;
mod hot;
mod lease;
mod lock;
mod queue;
mod rollback;
mod room;
mod session;
mod tune;
mod verify;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::bitmap::{Bitmap, set_all, set_blocks};
use crate::frame::{Content, Frame};
use crate::ids::*;
use crate::intervals::Intervals;
use crate::lineage::{Lineage, Standing};
use crate::pace::{Background, HeldBy, Pace, Request, Waits};
use crate::rules::{Rule, Rules};
use crate::state::{CannotRollBack, GroupState, LostBlocks, Role};

use admission::Waiting;
use clearing::Clearing;
use completion::{Approach, FlushHabit, InFlight, PendingFlush};
pub use counters::Counters;
use epoch::Epoch;
use growth::Growing;
pub use growth::{CannotGrow, Growth};
use handover::Handover;
use hot::HotSet;
use lock::RangeLocks;
use queue::Queue;
use room::Room;
use session::Session;
use verify::Verifier;
pub use verify::{Verification, VerifyOptions, VerifyState};

pub use handover::RolesStay;

/// Sequences reserved ahead in one durable note: a million writes a superblock write.
const RESERVE_STEP: u64 = 1 << 20;
/// Reserve again when fewer are left than this, so that admission never waits for the note in practice.
const RESERVE_LOW: u64 = RESERVE_STEP / 4;
/// How often the target is asked for an answer, at most and at least, in microseconds.
const PING_INTERVAL_US: u64 = 1_000_000;
const PING_INTERVAL_MIN_US: u64 = 50_000;
/// Writes that may wait for admission. A front end bounds its own requests below this; beyond it is a bug of the shell.
const MAX_WAITING: usize = 1 << 16;

/// How a group replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A write is done when the local volume has it.
    Async,
    /// And the target has it.
    Sync,
}

/// What "the target has it" means in sync mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckLevel {
    /// In the journal's page cache: survives the receiver process.
    Received,
    /// On stable storage.
    Durable,
}

/// What a sync group does when the target does not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLinkLoss {
    /// Goes on alone, and says so.
    Degrade,
    /// Holds writes until the target is back.
    Block,
}

/// What does not change while a source runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group's name.
    pub group: String,
    /// Sync or async.
    pub mode: Mode,
    /// The acknowledgement that sync mode waits for.
    pub ack: AckLevel,
    /// What happens without it.
    pub on_link_loss: OnLinkLoss,
    /// After how long, in microseconds.
    pub sync_timeout_us: u64,
    /// Bound of the queue, payload and overhead, in bytes.
    pub queue_bytes: u64,
    /// Bound of what a catch-up has read and not sent, in bytes; of what the target has not staged durably, a multiple.
    pub window_bytes: u64,
    /// Extents that may be hot at once.
    pub hot_capacity: usize,
    /// Bound of the catch-up's reading, in bytes a second; `None` for as fast as it goes.
    pub max_rate: Option<u64>,
    /// What catch-up and verification leave to clients.
    pub background: Background,
    /// Names and sizes of the volumes, in the order of their indices.
    pub volumes: Vec<crate::message::VolumeInfo>,
    /// Which rules are in force; all, outside the simulator's own tests.
    pub rules: Rules,
}

/// A client's request, named by the shell; unique while it is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A write as a client asked for it, at most [`MAX_PAYLOAD_BYTES`] of data or [`MAX_ZERO_BYTES`] of zeroes long.
#[derive(Clone, Debug)]
pub struct Write {
    /// Where.
    pub range: ByteRange,
    /// What: data (raw, with the checksum taken on arrival) or zeroes.
    pub content: Content,
    /// Whether it must be on stable storage, at both ends in sync mode, before it is done.
    pub fua: bool,
}

/// Bitmaps that were made and are not needed.
pub struct Unused(pub Vec<Bitmap>);

impl std::fmt::Debug for Unused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bitmaps", self.0.len())
    }
}

/// Something that the shell has to do. The outcome is reported with the method named.
#[derive(Debug)]
pub enum Output {
    /// Write the state to both slots of the superblock: [`Source::state_persisted`].
    PersistState {
        /// To be named in the report.
        version: u64,
        /// What to write.
        state: Box<GroupState>,
    },
    /// Make this the durable set of hot extents: [`Source::hot_persisted`].
    PersistHot {
        /// To be named in the report.
        transaction: u64,
        /// The whole set.
        extents: Vec<Extent>,
    },
    /// Sync the bitmap's pages for these blocks: [`Source::bitmap_synced`].
    SyncBitmap {
        /// To be named in the report.
        token: u64,
        /// The words of each bitmap's level 0, as indices into its words.
        words: Vec<(VolumeIndex, std::ops::Range<usize>)>,
    },
    /// Write to the local volume, and sync it if `fua`: [`Source::local_done`].
    LocalWrite {
        /// The write's place.
        sequence: Sequence,
        /// The write.
        write: Write,
    },
    /// Flush the local volume: [`Source::local_flushed`].
    LocalFlush {
        /// To be named in the report.
        token: u64,
        /// The volume.
        volume: VolumeIndex,
    },
    /// Read blocks for the catch-up, under the range lock: [`Source::blocks_read`].
    Read {
        /// To be named in the report.
        read: u64,
        /// The blocks. A prefix may be returned: all of the zeroes at the start, or up to [`MAX_PAYLOAD_BYTES`] of data.
        blocks: BlockRange,
        /// Whether hashes of the data are wanted in its place.
        hash: bool,
    },
    /// Answer the client.
    Complete {
        /// The request.
        request: RequestId,
        /// Whether it succeeded.
        result: Result<(), LocalError>,
    },
    /// A change of roles that was asked for did not come about, and clients are held no more.
    RolesStay(RolesStay),
    /// The promotion of this host was rolled back, or not. If it was, or that cannot be told because the disk failed, nothing is
    /// served here any more.
    RolledBack(Result<Position, CannotRollBack>),
    /// Make the bitmaps for these volumes, as large as they will be, with the bits of those in use and all of the new area:
    /// [`Source::growth_prepared`].
    PrepareGrowth(Vec<Growth>),
    /// These volumes have their new sizes, durably: the bitmaps that were prepared take the place of the old ones; no
    /// report. What is asked for after this counts with the new sizes.
    Grown(Vec<Growth>),
    /// The bitmaps that were prepared are not needed; no report.
    ForgetGrowth(Unused),
    /// The volumes keep their sizes.
    NotGrown(CannotGrow),
    /// Store the report of a verification in place of the last one, whole or not at all: [`Source::verification_noted`].
    NoteVerification(Box<Verification>),
    /// End the session with the peer.
    Disconnect {
        /// Why, for the log.
        reason: &'static str,
    },
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// An I/O error.
    #[error("the local volume failed")]
    Io,
    /// No space.
    #[error("the local volume is full")]
    NoSpace,
    /// What was written cannot be made durable: not this write, and perhaps none since the last flush.
    #[error("the local volume cannot be flushed")]
    Flush,
    /// This host serves the group no more.
    #[error("the group is not served here any more")]
    Ended,
}

/// What a read for the catch-up found in the next blocks of its range.
#[derive(Clone, Debug)]
pub enum ReadOutcome {
    /// These bytes (whole blocks, but for the end of a volume), with their content checksum.
    Data(Bytes, u64),
    /// Their hashes: [`crate::frame::HASH_BYTES`] each, for `blocks` blocks.
    Hashes {
        /// The hashes.
        hashes: Bytes,
        /// Count of blocks.
        blocks: u64,
    },
    /// So many blocks are zero.
    Zeroes {
        /// Count of blocks.
        blocks: u64,
    },
    /// They cannot be read.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Every write is a record in the queue.
    Streaming,
    /// Blocks are, or will be, sent from the bitmap.
    CatchUp,
}

/// The source of one group.
pub struct Source {
    config: Config,
    rules: Rules,
    state: GroupState,
    bitmaps: Vec<Bitmap>,
    now: Time,
    phase: Phase,
    session: Session,
    /// The last admitted sequence.
    sequence: Sequence,
    /// The sequence of this run's recovery: earlier images are of another run.
    recovery: Sequence,
    /// The last sequence acknowledged to a client.
    acknowledged: Sequence,
    /// The last one that a client was told is on stable storage.
    promised: Sequence,
    received: Sequence,
    durable: Sequence,
    /// The target was last asked to make this durable, in the present session.
    asked_durable: Sequence,
    flush_habit: FlushHabit,
    in_sync: bool,
    approach: Approach,
    disconnected_since: Time,
    /// The last write that was admitted without a session, while the target may lack it.
    alone_until: Option<Sequence>,
    /// The version of the state that says durably that there is one, while it is not.
    alone_noted_by: Option<u64>,
    /// The state of this version notes that the target may have a checkpoint.
    checkpoint_noted_by: Option<u64>,
    waiting: VecDeque<Waiting>,
    locks: RangeLocks,
    hot: HotSet,
    in_flight: BTreeMap<Sequence, InFlight>,
    flushes: Vec<PendingFlush>,
    last_acked: Vec<Sequence>,
    queue: Queue,
    epoch: Option<Epoch>,
    next_epoch: u64,
    /// The last sequence that wrote a block, for blocks with a record since streaming began.
    recent: Intervals,
    clearing: Clearing,
    unreadable: crate::block_set::BlockSet,
    reads: BTreeMap<u64, epoch::Read>,
    next_token: u64,
    hold_until: Time,
    room: Room,
    pace: Pace,
    next_repair: Time,
    repairing: bool,
    state_version: u64,
    state_persisting: bool,
    state_wanted: bool,
    state_failed: bool,
    /// The hot-extent log or a flush failed: every block counts as dirty.
    tracking_lost: bool,
    /// The version of the state that makes this durable, while it is not.
    loss_noted_by: Option<u64>,
    ready: bool,
    applied: Sequence,
    /// The sync of the bitmaps that has to end before the first state is written.
    first_bits: Option<u64>,
    handover: Option<Handover>,
    /// The version of the state that says durably that the generation is real, while it is not.
    real_noted_by: Option<u64>,
    /// The rollback under way: the version of the state that makes it durable, and where it leads to.
    rolling_back: Option<(u64, Position)>,
    growing: Option<Growing>,
    /// This host stood still until then, and has not heard since whether the peer was promoted.
    doubted_since: Option<Time>,
    /// No source has run in this generation before.
    first_run: bool,
    /// Before this time nobody is answered without the target.
    leased_until: Time,
    /// The target's clock, as it last told in this session.
    peer_clock: Option<Time>,
    /// Per volume: a flush has failed, and what was to be flushed may be lost. No later flush can tell.
    flush_failed: Vec<bool>,
    verifier: Verifier,
    counters: Counters,
    outputs: VecDeque<Output>,
}

/// How the source was found at its start.
///
/// If `settled`, what the volumes hold besides writes in the hot extents has to be on stable storage, and they have to read
/// as they are there: a power cut would take the rest without a trace in the bitmaps.
pub struct Found {
    /// The stored state.
    pub state: GroupState,
    /// The bitmap of each volume.
    pub bitmaps: Vec<Bitmap>,
    /// What the hot-extent log holds; `None` when it, or a bitmap, is missing or damaged.
    pub hot: Option<Vec<Extent>>,
    /// `false`: the volumes could not be synced, and count as after a failed flush.
    pub settled: bool,
    /// The boot this is.
    pub boot_id: [u8; 16],
    /// A random generation, used if the group has none yet or its state was lost.
    pub fresh_generation: Generation,
}

impl Source {
    /// Starts a source on what was found. Recovery is a write (rule 9): the image as found is the image at a fresh,
    /// reserved sequence. Nothing is admitted before the first state is persisted.
    pub fn start(config: Config, found: Found, now: Time) -> Self {
        let rules = config.rules;
        let Found { mut state, mut bitmaps, hot, settled, boot_id, fresh_generation } = found;
        let power_lost = state.boot_id != boot_id;
        let first = state.generation() == Generation::NONE;
        if first {
            state.lineage = Lineage::new(fresh_generation);
            set_all(&mut bitmaps);
        }
        let first_run = state.bitmaps_of != state.generation();
        state.bitmaps_of = state.generation();
        let damaged = hot.is_none() && !first;
        let mut hot = hot.unwrap_or_default();
        if power_lost && rules.on(Rule::HotIntoBitmap) {
            for extent in &hot {
                set_blocks(&mut bitmaps, extent.blocks());
            }
        }
        if !power_lost && !rules.on(Rule::HotInherited) {
            hot.clear();
        }
        if damaged {
            state.compare_all = true;
        }
        if state.compare_all {
            set_all(&mut bitmaps);
        }
        // Kept in the state until an epoch has carried them: the bits alone may be lost with the power.
        match &state.lost {
            LostBlocks::None => {}
            // The bitmaps that are meant are of an earlier time as a primary.
            LostBlocks::All | LostBlocks::Bitmaps => set_all(&mut bitmaps),
            LostBlocks::Ranges(ranges) => ranges.iter().for_each(|r| set_blocks(&mut bitmaps, *r)),
        }
        state.boot_id = boot_id;
        state.incarnation = Incarnation(state.incarnation.0 + 1);
        let sequence =
            if rules.on(Rule::ReserveSequence) { state.reserved.next() } else { state.noted.next() };
        state.reserved = Sequence(sequence.0.max(state.reserved.0) + RESERVE_STEP);
        let volumes = bitmaps.len();
        let pace = Pace::new(config.background, config.max_rate, now);
        let phase = if rules.on(Rule::EpochFirst) { Phase::CatchUp } else { Phase::Streaming };
        let mut source = Self {
            hot: HotSet::new(config.hot_capacity, hot, volumes),
            queue: Queue::default(),
            rules,
            config,
            state,
            bitmaps,
            now,
            phase,
            session: Session::None,
            sequence,
            recovery: sequence,
            acknowledged: Sequence(0),
            promised: Sequence(0),
            received: Sequence(0),
            durable: Sequence(0),
            asked_durable: Sequence(0),
            flush_habit: FlushHabit::default(),
            in_sync: false,
            approach: Approach::default(),
            disconnected_since: now,
            alone_until: None,
            alone_noted_by: None,
            checkpoint_noted_by: None,
            waiting: VecDeque::new(),
            locks: RangeLocks::default(),
            in_flight: BTreeMap::new(),
            flushes: Vec::new(),
            // A flush covers what an earlier run has acknowledged too: all of that is at or below the recovery.
            last_acked: vec![sequence; volumes],
            epoch: None,
            next_epoch: 0,
            recent: Intervals::default(),
            clearing: Clearing::default(),
            unreadable: Default::default(),
            reads: BTreeMap::new(),
            next_token: 0,
            hold_until: Time(0),
            room: Room::default(),
            pace,
            next_repair: Time(0),
            repairing: false,
            state_version: 0,
            state_persisting: false,
            state_wanted: true,
            state_failed: false,
            tracking_lost: false,
            loss_noted_by: None,
            ready: false,
            applied: Sequence(0),
            first_bits: None,
            handover: None,
            real_noted_by: None,
            rolling_back: None,
            growing: None,
            doubted_since: None,
            first_run: false,
            leased_until: Time(0),
            peer_clock: None,
            flush_failed: vec![!settled; volumes],
            verifier: Verifier::default(),
            counters: Counters::new(volumes),
            outputs: VecDeque::new(),
        };
        source.next_epoch = source.state.incarnation.0 << 32;
        source.handover = Handover::found(&source.state, now);
        source.first_run = first_run;
        source.lease_of_before();
        source.alone_until = source.state.alone.then_some(source.recovery);
        if first {
            // That every block is dirty must be durable before the generation is: nothing else remembers it.
            let token = source.token();
            let words = source.words_of(&source.all_blocks());
            source.outputs.push_back(Output::SyncBitmap { token, words });
            source.first_bits = Some(token);
        }
        if !settled {
            source.lose_tracking();
        }
        source.pump(now);
        source
    }

    /// The next thing to do; `None` until something else happens.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Source::timeout`] wants to be called, if nothing happens before.
    pub fn next_timeout(&self) -> Option<Time> {
        let ends = [
            self.degrade_at(),
            self.hold_ends_at(),
            self.room_wait_ends_at(),
            self.clearing_at(),
            self.handover_ends_at(),
            self.growth_ends_at(),
            self.doubt_ends_at(),
            self.lease_ends_at(),
            // What is due waits for the sender alone.
            self.gathers_until().filter(|until| *until > self.now),
        ];
        let reads = [self.read_again_at(), self.repair_at(), self.verify_at()];
        ends.into_iter().chain(reads).flatten().min()
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Time) {
        self.degrade_if_late(now);
        self.pump(now);
    }

    /// The superblock was written, or not.
    pub fn state_persisted(&mut self, now: Time, version: u64, ok: bool) {
        debug_assert!(version <= self.state_version);
        self.state_persisting = false;
        if ok {
            self.ready = true;
            self.loss_noted_by.take_if(|noting| *noting <= version);
            self.alone_noted_by.take_if(|noting| *noting <= version);
            self.checkpoint_noted_by.take_if(|noting| *noting <= version);
            self.real_noted_by.take_if(|noting| *noting <= version);
            self.state_noted(version);
            self.session_noted(version);
            self.handover_noted(version);
            self.rollback_noted(version);
            self.growth_noted(version);
        } else if !self.state_failed {
            self.state_failed = true;
            self.ready = true;
            self.rollback_failed();
            self.growth_not_noted();
            self.outputs.push_back(Output::Disconnect { reason: "the state cannot be written" });
        }
        self.pump(now);
    }

    /// Everything that may have become possible, is done.
    fn pump(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.degrade_if_late(now);
        self.pace.look(self.now, self.has_clients(), self.works_in_background());
        self.regain_sync();
        self.end_alone();
        self.end_doubt();
        self.reserve();
        self.admit_waiting();
        self.pump_hot();
        self.pump_epoch();
        self.pump_repair();
        self.pump_verify();
        self.pump_clearing();
        self.complete_ready();
        let handed_over = self.pump_handover();
        if self.pump_growth() || handed_over {
            // Nothing else may happen that would have them looked at.
            self.admit_waiting();
            self.pump_hot();
        }
        self.pump_state();
    }

    /// Whether clients wait for something.
    fn has_clients(&self) -> bool {
        !self.in_flight.is_empty() || !self.waiting.is_empty() || !self.flushes.is_empty()
    }

    /// Whether blocks are read in the background, or would be.
    fn works_in_background(&self) -> bool {
        self.is_catching_up() || self.is_verifying()
    }

    /// Clients have read, which took them so long.
    pub fn clients_read(&mut self, now: Time, waits: &Waits) {
        self.pace.all_waited(now, Request::Read, waits);
        self.now = self.now.max(now);
        self.pace.look(self.now, self.has_clients(), self.works_in_background());
    }

    fn reserve(&mut self) {
        if self.state.reserved.0.saturating_sub(self.sequence.0) < RESERVE_LOW {
            self.state.reserved = Sequence(self.sequence.0 + RESERVE_STEP);
            self.state_wanted = true;
        }
    }

    fn pump_state(&mut self) {
        let possible = !self.state_persisting && !self.state_failed && self.first_bits.is_none();
        if self.state_wanted && possible {
            self.state_wanted = false;
            self.state_persisting = true;
            self.state_version += 1;
            self.outputs.push_back(Output::PersistState {
                version: self.state_version,
                state: Box::new(self.state.clone()),
            });
        }
    }

    /// The version in which a change made now will be durable.
    fn persist(&mut self) -> u64 {
        self.state_wanted = true;
        self.state_version + 1
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn all_blocks(&self) -> Vec<BlockRange> {
        let range = |(v, b): (usize, &Bitmap)| BlockRange {
            volume: VolumeIndex(v as u32),
            first: 0,
            count: b.blocks(),
        };
        self.bitmaps.iter().enumerate().map(range).collect()
    }

    fn words_of(&self, blocks: &[BlockRange]) -> Vec<(VolumeIndex, std::ops::Range<usize>)> {
        let words = |r: &BlockRange| {
            let bitmap = self.bitmaps.get(r.volume.0 as usize)?;
            Some((r.volume, bitmap.level0_words(r.first, r.count)))
        };
        blocks.iter().filter_map(words).collect()
    }

    fn size_bytes(&self, volume: VolumeIndex) -> u64 {
        self.config.volumes.get(volume.0 as usize).map_or(0, |v| v.size_bytes)
    }

    fn set_bits(&mut self, range: BlockRange) {
        set_blocks(&mut self.bitmaps, range);
    }

    /// Gives up the queue: what it held will be read from the volume.
    fn fall_to_catch_up(&mut self) {
        self.phase = Phase::CatchUp;
        self.epoch = None;
        self.queue.clear();
        self.recent.clear();
        self.clearing.forget_records();
        self.in_sync = false;
        self.asked_durable = Sequence(0);
        self.question_lost();
    }
}

/// What an operator may want to know of a source.
#[derive(Clone, Debug)]
pub struct Status {
    /// The current position.
    pub position: Position,
    /// Whether a session is active.
    pub connected: bool,
    /// Whether records stream in order (else blocks are, or will be, sent from the bitmap).
    pub streaming: bool,
    /// Whether acknowledged writes are at the target.
    pub in_sync: bool,
    /// When a sync group has waited for its target for the sync timeout; `None` while it waits for nothing.
    pub late_at: Option<Time>,
    /// Newest checkpoint that the target received.
    pub received: Sequence,
    /// Newest checkpoint that the target has on stable storage.
    pub durable: Sequence,
    /// Newest position that the target has applied to its base, as it last said.
    pub applied: Sequence,
    /// Set bits of each volume, in blocks.
    pub dirty_blocks: Vec<u64>,
    /// Blocks that could not be read for the catch-up.
    pub unreadable_blocks: u64,
    /// Bytes in the queue, sent or not.
    pub queued_bytes: u64,
    /// Bytes of records and blocks that were sent and that the target does not have on stable storage yet.
    pub in_flight_bytes: u64,
    /// When the oldest write that is not durable at the target was admitted; `None` when all are, or it is not known.
    pub oldest_unsafe: Option<Time>,
    /// Whether it is known what the target lacks.
    pub lag_known: bool,
    /// The catch-up under way: bytes sent and bytes still to send.
    pub catch_up: Option<(u64, u64)>,
    /// What holds the catch-up or the verification under way back: bytes a second, and who says so; `None` where nothing does.
    pub held_back: Option<(u64, HeldBy)>,
    /// Whether the target is not known to have any checkpoint.
    pub first_sync: bool,
    /// The state cannot be written.
    pub state_failed: bool,
    /// The hot-extent log or a flush failed: every block counts as dirty.
    pub tracking_lost: bool,
    /// Of each volume: a flush has failed, and writes that were acknowledged may be lost.
    pub flush_failed: Vec<bool>,
}

impl Source {
    /// Whether the target is not known to have any checkpoint.
    fn is_first_sync(&self) -> bool {
        self.state.noted == Sequence(0)
    }

    /// The present state, for status and metrics.
    pub fn status(&self) -> Status {
        let dirty_blocks: Vec<u64> = self.bitmaps.iter().map(|b| b.dirty_blocks()).collect();
        let catch_up = self.epoch.as_ref().filter(|e| e.committed.is_none()).map(|e| {
            let left = self.remaining_blocks(e) * BLOCK_BYTES;
            (e.sent_bytes, left)
        });
        Status {
            position: self.position(),
            connected: self.session.is_active(),
            streaming: self.phase == Phase::Streaming,
            in_sync: self.in_sync,
            late_at: self.late_at(),
            received: self.received,
            durable: self.durable,
            applied: self.applied,
            dirty_blocks,
            unreadable_blocks: self.unreadable.len(),
            queued_bytes: self.queue.bytes(),
            in_flight_bytes: self.queue.sent_bytes()
                + self.epoch.as_ref().map_or(0, |epoch| epoch.outstanding_bytes),
            oldest_unsafe: self.queue.oldest(),
            lag_known: self.phase == Phase::Streaming && self.received >= self.recovery,
            catch_up,
            held_back: self.pace.held_back().filter(|_| self.works_in_background()),
            first_sync: self.is_first_sync(),
            state_failed: self.state_failed,
            tracking_lost: self.tracking_lost,
            flush_failed: self.flush_failed.clone(),
        }
    }

    /// What the machine waits for, for a person who looks into why it does.
    pub fn activity(&self) -> String {
        format!(
            "{} writes wait, for room {:?}, {} in flight, {} flushes, {} reads, hot {}, hold until {}, reserved {}, state write {} {}, handover {:?}, growing {:?}",
            self.waiting.len(),
            self.room,
            self.in_flight.len(),
            self.flushes.len(),
            self.reads.len(),
            self.hot.activity(),
            self.hold_until.0,
            self.state.reserved,
            self.state_wanted,
            self.state_persisting,
            self.handover,
            self.growing,
        )
    }

    /// Whether the peer may have been promoted without this host knowing, so that it has to be asked before anything is
    /// served. In the first run of a generation it cannot: this host was promoted last.
    pub fn may_be_replaced(&self) -> bool {
        (self.state.peer_has_checkpoint && !self.first_run) || self.is_handed_over()
    }

    /// The latest time that it was told.
    pub fn now(&self) -> Time {
        self.now
    }

    /// What the source says of its image.
    pub fn standing(&self) -> Standing {
        self.state.standing(self.sequence)
    }

    /// The position of the primary's image.
    pub fn position(&self) -> Position {
        Position::new(self.state.generation(), self.sequence)
    }

    /// The state as last changed; durable once the last [`Output::PersistState`] is reported.
    pub fn state(&self) -> &GroupState {
        &self.state
    }

    /// Whether every bit is clear.
    pub fn is_clean(&self) -> bool {
        self.bitmaps.iter().all(|b| b.dirty_blocks() == 0)
    }

    /// Whether a block's bit is set.
    pub fn is_dirty(&self, volume: VolumeIndex, block: u64) -> bool {
        self.bitmaps.get(volume.0 as usize).is_some_and(|b| b.test(block))
    }

    /// Runs of dirty blocks of `volume` from block `from`: `(first, count)`, for clients that read the map.
    pub fn next_dirty(&self, volume: VolumeIndex, from: u64, max: u64) -> Option<(u64, u64)> {
        self.bitmaps.get(volume.0 as usize)?.next_run(from, max)
    }

    /// The next frame of the ordered stream, if there is one.
    pub fn next_frame(&mut self, now: Time) -> Option<Frame> {
        if !self.session.is_active() {
            return None;
        }
        let floor = self.epoch.as_ref().map_or(self.sequence, |e| e.floor(self.sequence));
        let frame = self.queue.take_next(floor)?;
        self.pump(now);
        Some(frame)
    }

    /// The next frame for a block stream, if there is one. Frames may overtake each other.
    pub fn next_block(&mut self, now: Time) -> Option<Frame> {
        if !self.session.is_active() {
            return None;
        }
        let frame = self.epoch.as_mut()?.take_block()?;
        self.pump(now);
        Some(frame)
    }

    /// Whether [`Source::next_frame`] has one.
    pub fn has_frame(&self) -> bool {
        self.session.is_active() && self.queue.has_unsent()
    }

    /// Whether a sender is to take what [`Source::next_frame`] has, as of the last input. In async mode records wait for others for
    /// a moment ([`Source::next_timeout`] says until when).
    pub fn frames_are_due(&self) -> bool {
        self.has_frame() && self.gathers_until().is_none_or(|until| until <= self.now)
    }

    fn gathers_until(&self) -> Option<Time> {
        let gathers =
            self.config.mode == Mode::Async && self.phase == Phase::Streaming && self.session.is_active();
        let gathers = gathers && self.room.wait_ends().is_none();
        gathers.then(|| self.queue.gathers_until()).flatten()
    }

    /// Whether [`Source::next_block`] has one.
    pub fn has_block(&self) -> bool {
        self.session.is_active() && self.epoch.as_ref().is_some_and(Epoch::has_block)
    }
}

#[cfg(test)]
mod handshake_tests;
#[cfg(test)]
mod tests;
