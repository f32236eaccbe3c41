//! The target alone, fed by hand: what the simulator meets rarely or not at all.

mod choose;
mod lags;
mod lease;
mod rest;
mod sizes;
mod syncs;
mod verify;

use bytes::Bytes;

use super::apply::{LARGE_BYTES, PAUSE_US};
use super::*;
use crate::codec::content_checksum;
use crate::frame::{Block, Codec, Payload, Record, frame_digest};
use crate::lineage::{Lineage, Standing};
use crate::message::{Open, Refusal};
use crate::state::{BasePoint, VolumeState};

const GENERATION: Generation = Generation(7);
const SESSION: SessionId = SessionId(9);
const EPOCH: EpochId = EpochId(3);
const SIZE: u64 = 1 << 20;

/// A target with its journal as a list; appends fail once it holds `room` entries.
struct Bench {
    target: Target,
    journal: Vec<(Lsn, Frame)>,
    room: usize,
    sent: Vec<TargetMessage>,
    ended: Vec<String>,
    redone: Vec<(Lsn, Vec<(Lsn, Lsn)>)>,
    /// Checks to be compared, which the tests report.
    comparisons: Vec<Comparison>,
    promoted: Option<Result<Promotion, CannotPromote>>,
}

impl Bench {
    /// A target whose base is of sequence `base`, in a session.
    fn new(base: Option<u64>) -> Self {
        let mut state = GroupState::new(
            Role::Standby,
            vec![VolumeState { name: "v".into(), size_bytes: SIZE, identity: vec![] }],
        );
        state.lineage = Lineage::new(GENERATION);
        state.base = base.map(|s| BasePoint { position: position(s), lsn: Lsn(0) });
        let target = Target::recover(config(), state, Time(1)).finish(Lsn(0), Lsn(0), None, Time(1));
        let mut bench = Self {
            target,
            journal: Vec::new(),
            room: usize::MAX,
            sent: Vec::new(),
            ended: Vec::new(),
            redone: Vec::new(),
            comparisons: Vec::new(),
            promoted: None,
        };
        bench.open();
        bench
    }

    fn open(&mut self) {
        self.ask(SESSION, SessionId(0));
    }

    fn ask(&mut self, session: SessionId, known_session: SessionId) {
        self.target.open(Time(1), open(session, known_session)).unwrap();
        self.run();
    }

    fn end(&self) -> Lsn {
        self.journal.last().map_or(Lsn(0), |(end, _)| *end)
    }

    fn feed(&mut self, frame: Frame) {
        self.target.frame(Time(1), SESSION, frame).unwrap();
    }

    fn run(&mut self) {
        while let Some(output) = self.target.poll() {
            match output {
                Output::Append(frame) => {
                    let end = (self.journal.len() < self.room).then(|| Lsn(self.end().0 + 100));
                    self.journal.extend(end.map(|end| (end, frame.clone())));
                    self.target.appended(Time(1), &frame, end);
                }
                Output::PersistState { version, .. } => self.target.state_persisted(Time(1), version, true),
                Output::SyncJournal { .. } => self.target.journal_synced(Time(1), Some(self.end())),
                Output::SyncBase => self.target.base_synced(Time(1), true),
                Output::Truncate { at } => {
                    self.journal.retain(|(end, _)| *end <= at);
                    self.target.truncated(Time(1), true);
                }
                Output::Apply { to, skip } => {
                    self.redone.push((to, skip));
                    self.target.applied(Time(1), true);
                }
                Output::Verify(comparison) => self.comparisons.push(comparison),
                Output::Search(search) => self.target.searched(Time(1), Some(self.fed(*search))),
                Output::Promoted(outcome) => self.promoted = Some(outcome),
                Output::WriteBase { .. } => self.target.base_written(Time(1), true),
                Output::Send { message, .. } => self.sent.push(message),
                Output::EndSession { reason, .. } => self.ended.push(reason),
                _ => {}
            }
        }
    }

    /// What a search of the journal finds.
    fn fed(&self, mut search: Search) -> Result<Choice, NoSuchPoint> {
        for (end, frame) in &self.journal {
            search.entry(Lsn(end.0 - 100), *end, frame);
        }
        search.finish()
    }

    fn records(&self) -> Vec<u64> {
        let sequence = |f: &Frame| match f {
            Frame::Record(r) => Some(r.position.sequence.0),
            _ => None,
        };
        self.journal.iter().filter_map(|(_, f)| sequence(f)).collect()
    }
}

impl Bench {
    /// A target that keeps no history, with a first batch just applied.
    fn without_history() -> Self {
        let mut bench = Self::new(Some(10));
        bench.target.config.history_us = 0;
        bench.feed(record(11, 0, 512));
        bench.run();
        bench.pause();
        assert_eq!(bench.redone.len(), 1);
        bench
    }

    /// Nothing comes, until what is there is durable and a batch may begin.
    fn pause(&mut self) {
        self.pass(SYNC_DELAY_US);
        self.pass(PAUSE_US);
    }

    fn pass(&mut self, us: u64) {
        let now = self.target.now.plus_us(us);
        self.target.timeout(now);
        self.run();
    }
}

fn config() -> Config {
    Config {
        group: "g".into(),
        volumes: vec![VolumeInfo { name: "v".into(), size_bytes: SIZE }],
        history_us: 1 << 40,
        patience_us: PATIENCE_US,
        journal_bytes: 1 << 30,
        rules: Rules::default(),
    }
}

/// How a source asks for a session.
fn open(session: SessionId, known_session: SessionId) -> Open {
    Open {
        group: "g".into(),
        session,
        known_session,
        incarnation: Incarnation(1),
        standing: Standing {
            role: Role::Primary,
            lineage: Lineage::new(GENERATION),
            sequence: Sequence(100),
            alone: false,
            parted: Time(0),
        },
        durable_acks: false,
        pending: false,
        volumes: config().volumes,
    }
}

fn position(sequence: u64) -> Position {
    Position::new(GENERATION, Sequence(sequence))
}

fn content(byte: u8, length: u64) -> Content {
    let raw = Bytes::from(vec![byte; length as usize]);
    let (raw_bytes, checksum) = (raw.len() as u32, content_checksum(&raw));
    Content::Data(Payload { codec: Codec::Raw, raw_bytes, checksum, encoded: raw })
}

fn record(sequence: u64, offset: u64, length: u64) -> Frame {
    Frame::Record(Record {
        position: position(sequence),
        range: ByteRange::new(VolumeIndex(0), offset, length),
        time: Time(1),
        content: content(sequence as u8, length),
        floor: Sequence(0),
    })
}

fn begin(epoch: EpochId) -> Frame {
    Frame::EpochBegin { epoch, generation: GENERATION, incarnation: Incarnation(1) }
}

fn block(epoch: EpochId, frame: u64, read_at: u64, after: u64) -> Frame {
    Frame::Block(Block {
        epoch,
        frame: FrameId(frame),
        range: ByteRange::new(VolumeIndex(0), frame * 8192, 8192),
        read_at: Sequence(read_at),
        after: Sequence(after),
        content: content(0xbb, 8192),
    })
}

fn commit(epoch: EpochId, sequence: u64, frames: &[(u64, u64)]) -> Frame {
    let digest = frames.iter().map(|(f, at)| frame_digest(FrameId(*f), Sequence(*at)));
    Frame::EpochCommit {
        epoch,
        position: position(sequence),
        time: Time(1),
        frames: frames.len() as u64,
        digest: digest.fold(0, u64::wrapping_add),
    }
}

#[test]
fn what_is_left_of_a_block_beside_a_newer_record_can_be_stored() {
    let mut bench = Bench::new(Some(10));
    bench.feed(begin(EPOCH));
    bench.run();
    bench.feed(record(12, 512, 512));
    bench.feed(block(EPOCH, 0, 11, 0));
    bench.run();
    let parts: Vec<_> = bench.journal.iter().filter(|(_, f)| matches!(f, Frame::Block(_))).collect();
    assert_eq!(parts.len(), 2);
    for (_, frame) in &bench.journal {
        assert_eq!(&Frame::decode(&frame.to_bytes()).unwrap().0, frame);
    }
    let Frame::Block(mut unaligned) = block(EPOCH, 1, 11, 0) else { unreachable!() };
    unaligned.range.offset += 512;
    assert!(bench.target.frame(Time(1), SESSION, Frame::Block(unaligned)).is_err());
}

#[test]
fn nothing_is_appended_behind_a_record_that_found_no_room() {
    let mut bench = Bench::new(Some(10));
    (11..15).for_each(|s| bench.feed(record(s, 0, 512)));
    let mut appends = 0;
    while let Some(output) = bench.target.poll() {
        let Output::Append(frame) = output else { continue };
        appends += 1;
        // Only the second finds none: what comes after it may be smaller.
        let end = (appends != 2).then(|| Lsn(bench.end().0 + 100));
        bench.journal.extend(end.map(|end| (end, frame.clone())));
        bench.target.appended(Time(1), &frame, end);
    }
    assert_eq!(bench.records(), [11]);
    assert_eq!(bench.target.newest().unwrap().position, position(11));
}

#[test]
fn an_epoch_whose_abort_finds_no_room_is_cut() {
    for again in [false, true] {
        let mut bench = Bench::new(Some(10));
        bench.feed(begin(EPOCH));
        bench.feed(block(EPOCH, 0, 10, 0));
        bench.run();
        bench.room = bench.journal.len();
        bench.feed(if again { begin(EpochId(4)) } else { Frame::EpochAbort { epoch: EPOCH } });
        bench.run();
        assert_eq!(bench.ended, ["the journal is full"]);
        assert!(bench.journal.is_empty());
        assert_eq!(bench.target.skipped(), []);
        bench.room = usize::MAX;
        bench.open();
        bench.feed(record(11, 0, 512));
        bench.run();
        assert_eq!(bench.target.newest().unwrap().position, position(11));
    }
}

#[test]
fn blocks_that_overtake_the_beginning_of_their_epoch_are_kept() {
    for base in [None, Some(10)] {
        let mut bench = Bench::new(base);
        let frames = [(0, 10), (1, 11)];
        for (frame, read_at) in frames {
            bench.feed(block(EPOCH, frame, read_at, 0));
            bench.run();
        }
        assert!(bench.journal.is_empty());
        bench.feed(begin(EPOCH));
        bench.run();
        bench.feed(commit(EPOCH, 11, &frames));
        bench.run();
        assert_eq!(bench.target.newest().unwrap().position, position(11), "{base:?}");
        // Late frames of an epoch that is over are not kept for the next.
        bench.feed(block(EPOCH, 2, 11, 0));
        bench.feed(begin(EpochId(4)));
        bench.feed(commit(EpochId(4), 12, &[]));
        bench.run();
        assert_eq!(bench.target.newest().unwrap().position, position(12), "{base:?}");
    }
}

#[test]
fn a_commit_that_waits_for_a_write_to_the_base_goes_on_when_that_is_reported() {
    let mut bench = Bench::new(None);
    bench.feed(begin(EPOCH));
    bench.feed(commit(EPOCH, 11, &[(0, 10)]));
    bench.feed(block(EPOCH, 0, 10, 0));
    bench.run();
    assert_eq!(bench.target.newest().unwrap().position, position(11));
}

#[test]
fn an_aborted_epoch_whose_beginning_was_trimmed_is_not_redone() {
    let mut state = GroupState::new(Role::Standby, vec![]);
    state.lineage = Lineage::new(GENERATION);
    state.base = Some(BasePoint { position: position(12), lsn: Lsn(400) });
    let mut recovery = Target::recover(config(), state, Time(1));
    let abort = Frame::EpochAbort { epoch: EPOCH };
    let entries = [block(EPOCH, 0, 10, 0), abort, record(12, 0, 512), record(13, 0, 512)];
    for (n, frame) in entries.iter().enumerate() {
        let start = 100 + n as u64 * 100;
        recovery.entry(Lsn(start), Lsn(start + 100), frame);
    }
    let mut target = recovery.finish(Lsn(100), Lsn(500), None, Time(1));
    assert_eq!(target.newest().unwrap().position, position(13));
    let redo = std::iter::from_fn(|| target.poll()).find_map(|o| match o {
        Output::Apply { to, skip } => Some((to, skip)),
        _ => None,
    });
    assert_eq!(redo, Some((Lsn(400), vec![(Lsn(100), Lsn(300))])));
}

#[test]
fn history_gives_way_when_the_journal_refuses_an_entry() {
    let mut bench = Bench::new(Some(10));
    (11..15).for_each(|s| bench.feed(record(s, 0, 512)));
    bench.run();
    assert!(bench.redone.is_empty(), "the history is long, and the journal nearly empty by its bytes");
    // Its last segment is full all the same.
    bench.room = bench.journal.len();
    bench.feed(record(15, 0, 512));
    bench.run();
    assert_eq!(bench.ended, ["the journal is full"]);
    bench.target.timeout(Time(1 + SYNC_DELAY_US));
    bench.run();
    assert_eq!(bench.redone.last(), Some(&(bench.end(), vec![])), "what it holds is applied to make room");
    assert_eq!(bench.target.applied_to(), Some(position(14)));
    // From then on the history is as long as was asked for again.
    bench.room = usize::MAX;
    bench.redone.clear();
    bench.open();
    bench.feed(record(15, 0, 512));
    bench.run();
    assert_eq!(bench.target.newest().unwrap().position, position(15));
    assert!(bench.redone.is_empty());
}

#[test]
fn batches_that_nobody_waits_for_are_some_time_apart() {
    let mut bench = Bench::without_history();
    for s in 12..17 {
        bench.feed(record(s, 0, 512));
        bench.run();
        bench.pause();
    }
    assert_eq!(bench.target.durable().unwrap().position, position(16));
    assert_eq!(bench.redone.len(), 1, "five pauses are no five batches");
    let at = bench.target.next_timeout().expect("what is left is applied without a further write");
    bench.target.timeout(at);
    bench.run();
    assert_eq!(bench.redone.len(), 2);
    assert_eq!(bench.target.applied_to(), Some(position(16)));
    assert_eq!(bench.target.next_timeout(), None);
}

#[test]
fn a_batch_waits_for_a_pause_but_not_for_ever() {
    let mut bench = Bench::without_history();
    bench.pass(10_000_000);
    let begun = bench.target.now;
    let mut sequence = 12;
    while bench.redone.len() == 1 {
        bench.feed(record(sequence, 0, 512));
        bench.run();
        bench.pass(PAUSE_US / 4);
        sequence += 1;
    }
    let waited_us = bench.target.now.since_us(begun);
    assert!((PATIENCE_US..PATIENCE_US + PAUSE_US).contains(&waited_us), "{waited_us}");
    // The next one finds a pause.
    bench.pass(10_000_000);
    bench.pass(10_000_000);
    bench.feed(record(sequence, 0, 512));
    bench.run();
    bench.pass(SYNC_DELAY_US);
    let at = bench.target.next_timeout().expect("it is to be applied");
    assert_eq!(at, bench.target.last_appended.plus_us(PAUSE_US));
}

#[test]
fn a_large_batch_waits_for_nothing() {
    let mut bench = Bench::without_history();
    bench.feed(record(12, 0, 512));
    let Some(Output::Append(frame)) = bench.target.poll() else { panic!("no append") };
    let end = Lsn(bench.end().0 + LARGE_BYTES);
    bench.journal.push((end, frame.clone()));
    bench.target.appended(Time(1), &frame, Some(end));
    bench.run();
    bench.pass(SYNC_DELAY_US);
    assert_eq!(bench.target.applied_to(), Some(position(12)));
}

#[test]
fn a_promotion_and_a_full_journal_do_not_wait_for_the_next_batch() {
    let mut bench = Bench::without_history();
    bench.feed(record(12, 0, 512));
    bench.run();
    bench.target.promote(Time(1), Generation(8));
    bench.run();
    assert_eq!(bench.target.applied_to(), Some(position(12)));

    let mut bench = Bench::without_history();
    bench.feed(record(12, 0, 512));
    bench.run();
    bench.room = bench.journal.len();
    bench.feed(record(13, 0, 512));
    bench.run();
    bench.pass(SYNC_DELAY_US);
    assert_eq!(bench.target.applied_to(), Some(position(12)));

    let mut bench = Bench::without_history();
    bench.target.config.journal_bytes = 200;
    bench.feed(record(12, 0, 512));
    bench.feed(record(13, 0, 512));
    bench.run();
    bench.pass(SYNC_DELAY_US);
    assert_eq!(bench.target.applied_to(), Some(position(13)));
}

#[test]
fn blocks_of_an_epoch_whose_commit_may_be_lost_are_lost_too() {
    let mut state = GroupState::new(Role::Standby, vec![]);
    state.lineage = Lineage::new(GENERATION);
    state.base = Some(BasePoint { position: position(9), lsn: Lsn(100) });
    let mut recovery = Target::recover(config(), state, Time(1));
    recovery.entry(Lsn(100), Lsn(200), &begin(EPOCH));
    recovery.entry(Lsn(200), Lsn(300), &block(EPOCH, 0, 10, 0));
    let damage = FoundDamage { lost: LostBlocks::None };
    let target = recovery.finish(Lsn(100), Lsn(300), Some(damage), Time(1));
    let Frame::Block(staged) = block(EPOCH, 0, 10, 0) else { unreachable!() };
    assert_eq!(target.state().lost, LostBlocks::Ranges(vec![staged.range.blocks()]));
}

#[test]
fn a_session_that_was_never_known_here_does_not_look_known_after_a_lost_answer() {
    let known = |bench: &Bench| match bench.sent.last() {
        Some(TargetMessage::Opened(o)) => [o.known_session, o.previous_session],
        other => panic!("{other:?}"),
    };
    let mut bench = Bench::new(Some(1));
    // Answers that are lost: the source still knows the session before.
    bench.ask(SessionId(10), SESSION);
    assert_eq!(known(&bench)[0], SESSION);
    for lost in 11..14 {
        bench.ask(SessionId(lost), SESSION);
        assert_eq!(known(&bench), [SessionId(lost - 1), SESSION]);
    }
    // The source has had sessions that this copy of the state has not.
    for session in 30..33 {
        bench.ask(SessionId(session), SessionId(20));
        assert!(!known(&bench).contains(&SessionId(20)));
    }
}

/// How a target refuses a source of `role` whose generation can be rolled back or not.
fn asked(bench: &mut Bench, role: Role, pending: bool) -> Option<TargetMessage> {
    let mut open = Open { pending, ..open(SessionId(77), SESSION) };
    open.standing.role = role;
    bench.target.open(Time(1), open).err()
}

#[test]
fn nobody_follows_a_generation_that_can_be_rolled_back() {
    let mut bench = Bench::new(Some(10));
    let before = bench.target.state().clone();
    let refused = asked(&mut bench, Role::Primary, true).unwrap();
    assert!(matches!(refused, TargetMessage::Refused { code: Refusal::Pending, .. }), "{refused:?}");
    assert_eq!(*bench.target.state(), before);
    assert_eq!(asked(&mut bench, Role::Primary, false), None);
}

#[test]
fn a_fenced_host_is_told_what_was_rolled_back_and_streams_nothing() {
    let mut bench = Bench::new(Some(10));
    bench.target.state.rolled_back = vec![Generation(5)];
    let before = bench.target.state().clone();
    let told = asked(&mut bench, Role::Fenced, false).unwrap();
    assert_eq!(told, TargetMessage::RolledBack { generations: vec![Generation(5)] });
    assert_eq!(*bench.target.state(), before);
}

#[test]
fn a_promotion_can_be_rolled_back_and_a_take_over_cannot() {
    for pending in [true, false] {
        let mut bench = Bench::new(Some(10));
        bench.feed(record(11, 0, 512));
        bench.run();
        if pending {
            bench.target.promote(Time(1), Generation(8));
        } else {
            bench.target.take_over(Time(1), Generation(8));
        }
        bench.run();
        let state = bench.target.state();
        assert_eq!((state.role, state.pending), (Role::Primary, pending));
        assert_eq!(state.may_roll_back().is_ok(), pending);
        assert_eq!(state.parent(), Some(position(11)));
    }
}
