//! The source alone, with a target played by hand: what the simulator meets rarely or cannot name.

mod clearing;
mod counters;
mod flow;
mod gather;
mod growth;
mod hot;
mod lease;
mod rollback;
mod room;
mod scale;
mod tune;
mod verify;

use super::*;
use crate::bitmap::mem_words;
use crate::message::{Lost, Opened, TargetMessage, VolumeInfo};
use crate::state::{Role, VolumeState};

const GENERATION: Generation = Generation(7);
const SIZE: u64 = 4 * EXTENT_BYTES;
const HOT_CAPACITY: usize = 2;
const BLOCKS: u64 = SIZE / BLOCK_BYTES;
const SYNC_TIMEOUT_US: u64 = 1_000_000;
const STEP_US: u64 = 1_000;
/// More than any input may lead to.
const MAX_OUTPUTS: usize = 10_000;

/// A sync source whose disks answer at once, and a target that says what the test wants.
struct Bench {
    source: Source,
    now: Time,
    session: SessionId,
    /// Records and commits that were sent and not yet acknowledged by [`Bench::step`], with the time of sending.
    sent: VecDeque<(Time, Sequence)>,
    /// After how long the target acknowledges; `None`: never.
    answers_after_us: Option<u64>,
    issued: u64,
    completed: Vec<RequestId>,
    failed: Vec<RequestId>,
    /// The last change of roles that did not come about.
    roles_stay: Option<RolesStay>,
    /// The source may end its session, and whether it wanted to.
    may_hang_up: bool,
    hung_up: bool,
    /// The target was asked to take over here.
    asked: Option<Position>,
    /// Flushes of the volume fail.
    flush_fails: bool,
    /// The hot-extent log cannot be written.
    hot_log_fails: bool,
    /// Writes of the state wait.
    states_wait: bool,
    waiting_states: Vec<u64>,
    /// Reports of verifications, as they were noted.
    notes: Vec<Verification>,
    /// Bitmaps of volumes that grow cannot be made; or wait to be.
    growth_fails: bool,
    growth_waits: bool,
    prepared: Vec<Vec<Growth>>,
    forgotten: usize,
    grown: Option<Result<Vec<Growth>, CannotGrow>>,
}

fn config(mode: Mode, ack: AckLevel) -> Config {
    Config {
        group: "g".into(),
        mode,
        ack,
        on_link_loss: OnLinkLoss::Degrade,
        sync_timeout_us: SYNC_TIMEOUT_US,
        queue_bytes: 1 << 20,
        window_bytes: 1 << 20,
        hot_capacity: HOT_CAPACITY,
        max_rate: None,
        background: Default::default(),
        volumes: vec![VolumeInfo { name: "v".into(), size_bytes: SIZE }],
        rules: Rules::default(),
    }
}

/// Of a primary that has never run.
fn new_state() -> GroupState {
    let volumes = vec![VolumeState { name: "v".into(), size_bytes: SIZE, identity: vec![] }];
    GroupState::new(Role::Primary, volumes)
}

/// What a source finds: `state`, and a bitmap without bits.
fn found(state: GroupState) -> Found {
    Found {
        state,
        bitmaps: vec![Bitmap::new(mem_words(Bitmap::words_needed(BLOCKS)), BLOCKS, true)],
        hot: Some(vec![]),
        settled: true,
        boot_id: [1; 16],
        fresh_generation: GENERATION,
    }
}

impl Bench {
    /// After its first sync, and in sync.
    fn in_sync(ack: AckLevel) -> Self {
        let (mut bench, commit) = Self::committing(ack);
        bench.acknowledge_durable(commit);
        assert!(bench.source.status().in_sync);
        bench
    }

    /// The commit of its first sync was received, and is not durable.
    fn first_sync_received(ack: AckLevel) -> Self {
        let (mut bench, commit) = Self::committing(ack);
        bench.acknowledge_received(commit);
        bench
    }

    fn committing(ack: AckLevel) -> (Self, Sequence) {
        let mut bench = Self::blank(ack);
        bench.connect(None, None, Lost::None);
        let commit = bench.send();
        (bench, commit)
    }

    /// Before its first session.
    fn blank(ack: AckLevel) -> Self {
        let now = Time(1);
        let mut bench = Self {
            source: Source::start(config(Mode::Sync, ack), found(new_state()), now),
            now,
            session: SessionId(0),
            sent: VecDeque::new(),
            answers_after_us: None,
            issued: 0,
            completed: Vec::new(),
            failed: Vec::new(),
            roles_stay: None,
            may_hang_up: false,
            hung_up: false,
            asked: None,
            flush_fails: false,
            hot_log_fails: false,
            states_wait: false,
            waiting_states: Vec::new(),
            notes: Vec::new(),
            growth_fails: false,
            growth_waits: false,
            prepared: Vec::new(),
            forgotten: 0,
            grown: None,
        };
        bench.run();
        bench
    }

    /// The process is killed and comes back.
    fn restart(&mut self) {
        let found = found(self.source.state().clone());
        self.source = Source::start(self.source.config.clone(), found, self.now);
        self.run();
    }

    /// A new session in which the target reports these checkpoints and losses.
    fn connect(&mut self, received: Option<Sequence>, durable: Option<Sequence>, lost: Lost) {
        self.source.disconnected(self.now);
        let answer = self.ask(received, durable, lost);
        self.source.message(self.now, answer);
        self.run();
    }

    /// Asks for a new session; what the target answers.
    fn ask(&mut self, received: Option<Sequence>, durable: Option<Sequence>, lost: Lost) -> TargetMessage {
        let before = self.session;
        self.session = SessionId(before.0 + 1);
        let open = self.source.open(self.session).expect("the source is ready");
        self.sent.clear();
        let at = |sequence| Position::new(GENERATION, sequence);
        TargetMessage::Opened(Opened {
            session: self.session,
            known_session: before,
            previous_session: open.known_session,
            received: received.map(at),
            durable: durable.map(at),
            mark: self.source.state().mark,
            epoch: None,
            lost,
        })
    }

    fn run(&mut self) {
        let now = self.now;
        for outputs in 0.. {
            assert!(outputs < MAX_OUTPUTS, "it does not come to rest: {}", self.source.activity());
            let Some(output) = self.source.poll() else { break };
            match output {
                Output::PersistState { version, .. } if self.states_wait => self.waiting_states.push(version),
                Output::PersistState { version, .. } => self.source.state_persisted(now, version, true),
                Output::PersistHot { transaction, .. } => {
                    self.source.hot_persisted(now, transaction, !self.hot_log_fails);
                }
                Output::SyncBitmap { token, .. } => self.source.bitmap_synced(now, token, true),
                Output::LocalWrite { sequence, write } => {
                    let fails = write.fua && self.flush_fails;
                    let result = if fails { Err(LocalError::Flush) } else { Ok(()) };
                    self.source.local_done(now, sequence, result);
                }
                Output::LocalFlush { token, .. } => self.source.local_flushed(now, token, !self.flush_fails),
                Output::Read { read, blocks, .. } => {
                    self.source.blocks_read(now, read, vec![ReadOutcome::Zeroes { blocks: blocks.count }]);
                }
                Output::Complete { request, result: Ok(()) } => self.completed.push(request),
                Output::Complete { request, result } => {
                    assert_eq!(result, Err(LocalError::Flush));
                    self.failed.push(request);
                }
                Output::NoteVerification(report) => {
                    self.notes.push(*report);
                    self.source.verification_noted(now);
                }
                Output::Disconnect { .. } if self.may_hang_up => self.hung_up = true,
                Output::Disconnect { reason } => panic!("{reason}"),
                Output::RolesStay(why) => self.roles_stay = Some(why),
                Output::RolledBack(outcome) => panic!("{outcome:?}"),
                Output::PrepareGrowth(growth) if self.growth_waits => self.prepared.push(growth),
                Output::PrepareGrowth(_) if self.growth_fails => self.source.growth_prepared(now, None),
                Output::PrepareGrowth(growth) => self.prepare(&growth),
                Output::ForgetGrowth(Unused(bitmaps)) => self.forgotten += bitmaps.len(),
                Output::Grown(growth) => self.grown = Some(Ok(growth)),
                Output::NotGrown(why) => self.grown = Some(Err(why)),
            }
        }
    }

    /// Sends all there is; the last checkpoint among it.
    fn send(&mut self) -> Sequence {
        loop {
            while self.source.next_block(self.now).is_some() {}
            let Some(frame) = self.source.next_frame(self.now) else { break };
            match frame {
                Frame::Record(r) => self.sent.push_back((self.now, r.position.sequence)),
                Frame::TakeOver { position } => self.asked = Some(position),
                Frame::EpochCommit { position, .. } => self.sent.push_back((self.now, position.sequence)),
                _ => {}
            }
            self.run();
        }
        self.run();
        self.sent.back().map_or(Sequence(0), |(_, sequence)| *sequence)
    }

    fn acknowledge_received(&mut self, sequence: Sequence) {
        self.source.message(self.now, TargetMessage::Received { sequence });
        self.run();
    }

    fn acknowledge_durable(&mut self, sequence: Sequence) {
        self.source.message(self.now, TargetMessage::Durable { sequence });
        self.run();
    }

    fn write(&mut self) -> RequestId {
        let request = self.issue((self.issued + 1) % BLOCKS * BLOCK_BYTES, BLOCK_BYTES);
        self.run();
        request
    }

    /// Asks for a write, and lets nothing else happen yet.
    fn issue(&mut self, offset: u64, length: u64) -> RequestId {
        self.issue_with(offset, length, false)
    }

    fn issue_fua(&mut self, offset: u64, length: u64) -> RequestId {
        self.issue_with(offset, length, true)
    }

    fn issue_with(&mut self, offset: u64, length: u64, fua: bool) -> RequestId {
        self.issued += 1;
        let request = RequestId(self.issued);
        let range = ByteRange::new(VolumeIndex(0), offset, length);
        let write = Write { range, content: Content::Zeroes { punch: false }, fua };
        self.source.write(self.now, request, write);
        request
    }

    /// A client that has one write under way all the time goes on for one step.
    fn step(&mut self) {
        self.now = self.now.plus_us(STEP_US);
        self.source.timeout(self.now);
        self.run();
        let answered = |(sent, _): &(Time, Sequence)| {
            self.answers_after_us.is_some_and(|us| self.now >= sent.plus_us(us))
        };
        let count = self.sent.iter().take_while(|sent| answered(sent)).count();
        let acknowledged: Vec<_> = self.sent.drain(..count).collect();
        if let Some((_, sequence)) = acknowledged.last() {
            self.acknowledge_received(*sequence);
        }
        if self.completed.len() as u64 == self.issued {
            self.write();
        }
        if self.source.session.is_active() {
            self.send();
        }
    }

    /// Steps until `wanted` holds; how long that took, in microseconds.
    fn step_until(&mut self, wanted: impl Fn(&Source) -> bool) -> u64 {
        let from = self.now;
        while !wanted(&self.source) {
            self.step();
            assert!(self.now < from.plus_us(100 * SYNC_TIMEOUT_US), "it never comes");
        }
        self.now.since_us(from)
    }

    /// A degraded group whose target is back, and has all but what was written since it was lost.
    fn degraded_and_back(answers_after_us: u64) -> Self {
        let mut bench = Self::in_sync(AckLevel::Received);
        let has = bench.source.position().sequence;
        bench.source.disconnected(bench.now);
        bench.step_until(|source| !source.in_sync);
        bench.answers_after_us = Some(answers_after_us);
        bench.connect(Some(has), Some(has), Lost::None);
        assert_eq!(bench.source.phase, Phase::Streaming, "it resumes from the queue");
        bench
    }
}

#[test]
fn a_handshake_sets_the_durable_position_downwards_too() {
    let mut bench = Bench::in_sync(AckLevel::Durable);
    let first = bench.source.position().sequence;
    let request = bench.write();
    let written = bench.send();
    bench.acknowledge_durable(written);
    assert_eq!(bench.completed, [request]);
    // The target's journal was damaged: it is back at the checkpoint before, and says what it lost.
    let lost = BlockRange { volume: VolumeIndex(0), first: 1, count: 1 };
    bench.connect(Some(first), Some(first), Lost::Ranges(vec![lost]));
    assert_eq!(bench.source.status().durable, first);
    let commit = bench.send();
    assert!(commit > written);
    bench.acknowledge_received(commit);
    assert!(!bench.source.status().in_sync, "the target has the acknowledged write in its page cache only");
    bench.acknowledge_durable(commit);
    assert!(bench.source.status().in_sync);
}

#[test]
fn a_degraded_group_regains_sync_under_an_unbroken_load() {
    // Clients are answered at once, so the target is always behind the last answer.
    let mut bench = Bench::degraded_and_back(5 * STEP_US);
    bench.step();
    assert!(!bench.source.in_sync && bench.source.acknowledged > bench.source.received);
    let issued = bench.issued;
    // Clients had waited for one timeout, so they are left alone for one before the target is asked.
    let took_us = bench.step_until(|source| source.in_sync);
    assert!(took_us.abs_diff(SYNC_TIMEOUT_US) <= 30 * STEP_US, "{took_us}");
    assert!(bench.issued > issued, "the load was broken");
    assert!(bench.source.received >= bench.source.acknowledged);
    // And stays so, with every write waiting for the target.
    for _ in 0..100 {
        bench.step();
        assert!(bench.source.in_sync && bench.source.received >= bench.source.acknowledged);
    }
}

#[test]
fn an_approach_to_a_target_that_is_too_slow_leaves_the_clients_alone_for_longer_each_time() {
    let mut bench = Bench::degraded_and_back(5 * STEP_US);
    let mut rests_us = Vec::new();
    for _ in 0..4 {
        bench.step_until(|source| source.approach.is_closing());
        // The target was close, and hangs now: clients wait for as long as the operator said, and no longer.
        bench.answers_after_us = None;
        let waited_us = bench.step_until(|source| !source.approach.is_closing());
        assert!(!bench.source.in_sync);
        assert!(waited_us.abs_diff(SYNC_TIMEOUT_US) <= 10 * STEP_US, "{waited_us}");
        let issued = bench.issued;
        for _ in 0..10 {
            bench.step();
        }
        assert_eq!(bench.issued, issued + 10, "a write did not go through at once");
        bench.answers_after_us = Some(5 * STEP_US);
        let rest_us = bench.step_until(|source| source.approach.is_closing());
        rests_us.push(rest_us);
    }
    for (n, rest_us) in rests_us.iter().enumerate() {
        // The loss of the link was the first time.
        let wanted_us = SYNC_TIMEOUT_US << (n + 1);
        assert!(rest_us.abs_diff(wanted_us) <= 30 * STEP_US, "{rests_us:?}");
    }
}

#[test]
fn writes_over_two_extents_take_turns_in_a_log_that_holds_two() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    for _ in 0..10 {
        for edge in 1..4 {
            bench.issue(edge * EXTENT_BYTES - BLOCK_BYTES, 2 * BLOCK_BYTES);
        }
        bench.run();
        let written = bench.send();
        bench.acknowledge_durable(written);
    }
    assert_eq!(bench.completed.len() as u64, bench.issued, "{}", bench.source.activity());
}

#[test]
fn after_a_failed_flush_every_block_counts_as_dirty_and_nothing_is_promised() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.write();
    let written = bench.send();
    bench.acknowledge_durable(written);
    bench.flush_fails = true;
    bench.source.flush(bench.now, RequestId(1_000), VolumeIndex(0));
    bench.run();
    assert_eq!(bench.failed, [RequestId(1_000)]);
    assert!(bench.source.state().compare_all, "what a power cut takes now, the target would keep");
    assert!((0..BLOCKS).all(|b| bench.source.is_dirty(VolumeIndex(0), b)));
    // A later flush that succeeds has nothing to do with what was lost.
    bench.flush_fails = false;
    bench.source.flush(bench.now, RequestId(1_001), VolumeIndex(0));
    bench.issue_fua(0, BLOCK_BYTES);
    bench.run();
    assert_eq!(bench.failed.len(), 3);
    // The group goes on, and its target follows; but nothing clears any more.
    let request = bench.write();
    let commit = bench.send();
    bench.acknowledge_durable(commit);
    assert!(bench.completed.contains(&request));
    bench.now = bench.now.plus_us(SYNC_TIMEOUT_US);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(bench.source.state().compare_all && !bench.source.is_clean());
}

#[test]
fn a_write_that_cannot_be_made_durable_is_a_failed_flush() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.flush_fails = true;
    let request = bench.issue_fua(0, BLOCK_BYTES);
    bench.run();
    assert_eq!(bench.failed, [request]);
    assert!(bench.source.status().tracking_lost && bench.source.state().compare_all);
}

#[test]
fn without_a_hot_extent_log_a_write_waits_until_it_is_noted_that_all_is_dirty() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    (bench.hot_log_fails, bench.states_wait) = (true, true);
    let request = bench.issue(0, BLOCK_BYTES);
    bench.run();
    assert!(bench.source.status().tracking_lost);
    assert!(bench.source.in_flight.is_empty(), "a power cut now would leave no trace of the write");
    bench.states_wait = false;
    for version in std::mem::take(&mut bench.waiting_states) {
        bench.source.state_persisted(bench.now, version, true);
    }
    bench.run();
    assert!(bench.completed.contains(&request), "{}", bench.source.activity());
}

#[test]
fn a_flush_after_a_restart_covers_what_was_acknowledged_before() {
    let mut bench = Bench::first_sync_received(AckLevel::Received);
    assert!(bench.source.status().in_sync);
    let flush = RequestId(1_000);
    bench.source.flush(bench.now, flush, VolumeIndex(0));
    bench.run();
    assert!(
        !bench.completed.contains(&flush),
        "the standby has the image of the start in its page cache only"
    );
    let commit = bench.source.position().sequence;
    bench.acknowledge_durable(commit);
    assert!(bench.completed.contains(&flush));
}

#[test]
fn a_write_without_a_session_waits_until_it_is_noted_that_this_host_goes_on_alone() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.source.disconnected(bench.now);
    bench.step_until(|source| !source.in_sync);
    // That was noted with the write that waited for the link. Back, and away again.
    let has = bench.source.position().sequence;
    bench.connect(Some(has), Some(has), Lost::None);
    bench.acknowledge_durable(has);
    assert!(!bench.source.state().alone);
    bench.source.disconnected(bench.now);
    bench.states_wait = true;
    let request = bench.issue(0, BLOCK_BYTES);
    bench.run();
    assert!(bench.source.state().alone && bench.source.in_flight.is_empty());
    assert_eq!(bench.source.alone_until, Some(has));
    bench.states_wait = false;
    for version in std::mem::take(&mut bench.waiting_states) {
        bench.source.state_persisted(bench.now, version, true);
    }
    bench.run();
    bench.now = bench.now.plus_us(SYNC_TIMEOUT_US);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(bench.completed.contains(&request), "{}", bench.source.activity());
}

/// A group in sync whose target has been asked to take over, with a client's write waiting.
fn handed_over() -> (Bench, RequestId) {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.write();
    let written = bench.send();
    bench.acknowledge_received(written);
    bench.source.hand_over(bench.now, SYNC_TIMEOUT_US);
    let request = bench.write();
    bench.send();
    assert_eq!(bench.asked, None, "what was answered is not durable at the target");
    bench.acknowledge_durable(written);
    bench.send();
    assert_eq!(bench.asked.map(|p| p.sequence), Some(written));
    assert!(bench.source.in_flight.is_empty() && !bench.completed.contains(&request));
    (bench, request)
}

#[test]
fn a_source_that_hands_over_admits_nothing_and_becomes_the_standby_at_the_last_write() {
    let (bench, request) = handed_over();
    let mut state = bench.source.state().clone();
    let at = bench.source.position();
    state.replaced(Some((Generation(77), at.sequence)));
    assert_eq!((state.role, state.base.map(|b| b.position)), (Role::Standby, Some(at)));
    assert!(state.lost.is_none(), "the peer has all that this host has");
    // A promotion anywhere else is none that was asked for.
    let mut state = bench.source.state().clone();
    state.replaced(Some((Generation(77), Sequence(at.sequence.0 - 1))));
    assert_eq!(state.role, Role::Fenced);
    assert!(!bench.completed.contains(&request));
}

#[test]
fn a_target_that_does_not_take_over_leaves_the_source_as_it_was() {
    let (mut bench, request) = handed_over();
    bench.states_wait = true;
    bench.source.message(bench.now, TargetMessage::NotTaken { text: "no".into() });
    bench.run();
    assert!(bench.source.in_flight.is_empty(), "after a crash the target would be asked who serves");
    bench.states_wait = false;
    for version in std::mem::take(&mut bench.waiting_states) {
        bench.source.state_persisted(bench.now, version, true);
    }
    bench.run();
    let written = bench.send();
    bench.acknowledge_durable(written);
    assert!(bench.completed.contains(&request));
    assert_eq!(bench.roles_stay, Some(RolesStay::NotTaken("no".into())));
    assert_eq!(bench.source.state().handing_over, None);
}

#[test]
fn a_session_that_begins_says_that_the_target_did_not_take_over() {
    let (mut bench, request) = handed_over();
    let has = bench.source.position().sequence;
    bench.source.disconnected(bench.now);
    bench.now = bench.now.plus_us(100 * SYNC_TIMEOUT_US);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(bench.source.in_flight.is_empty(), "only the target knows who serves");
    bench.connect(Some(has), Some(has), Lost::None);
    let written = bench.send();
    bench.acknowledge_durable(written);
    assert!(bench.completed.contains(&request), "{}", bench.source.activity());
}

#[test]
fn before_the_target_is_asked_the_source_gives_up_by_itself() {
    for (lost, why) in [(false, RolesStay::TooSlow), (true, RolesStay::ConnectionLost)] {
        let mut bench = Bench::in_sync(AckLevel::Received);
        bench.write();
        let written = bench.send();
        bench.acknowledge_received(written);
        bench.source.hand_over(bench.now, SYNC_TIMEOUT_US / 2);
        let request = bench.write();
        if lost {
            bench.source.disconnected(bench.now);
        } else {
            bench.now = bench.now.plus_us(SYNC_TIMEOUT_US / 2);
            bench.source.timeout(bench.now);
        }
        bench.run();
        assert_eq!(bench.roles_stay, Some(why));
        assert_eq!(bench.source.in_flight.len(), 1, "clients are held no more");
        assert!(bench.asked.is_none() && !bench.completed.contains(&request));
    }
}

#[test]
fn a_volume_that_cannot_be_flushed_is_not_handed_over() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.flush_fails = true;
    bench.source.hand_over(bench.now, SYNC_TIMEOUT_US);
    bench.run();
    assert_eq!(bench.roles_stay, Some(RolesStay::Failed));
    assert_eq!(bench.source.state().handing_over, None);
}

#[test]
fn after_a_flush_that_was_answered_alone_the_group_is_in_sync_once_that_is_durable_at_the_target() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.write();
    let written = bench.send();
    bench.acknowledge_received(written);
    let flush = RequestId(1_000);
    bench.source.flush(bench.now, flush, VolumeIndex(0));
    bench.run();
    assert!(bench.source.in_sync && !bench.completed.contains(&flush));
    // The target does not come to make it durable: the client is answered all the same.
    bench.now = bench.now.plus_us(SYNC_TIMEOUT_US);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(bench.completed.contains(&flush) && !bench.source.in_sync);
    bench.source.timeout(bench.now.plus_us(STEP_US));
    assert!(!bench.source.in_sync, "a promise is kept by this host alone");
    bench.acknowledge_durable(written);
    assert!(bench.source.in_sync);
}

/// The frames that ask the target to make durable what it has.
fn asks_for_durable(bench: &mut Bench) -> usize {
    let mut asks = 0;
    while let Some(frame) = bench.source.next_frame(bench.now) {
        asks += usize::from(matches!(frame, Frame::Mark { sync: true, .. }));
        bench.run();
    }
    asks
}

#[test]
fn a_client_that_flushes_after_each_write_has_the_target_asked_before_the_flush() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let mut flush = 10_000;
    for round in 0..6 {
        bench.write();
        let early = asks_for_durable(&mut bench);
        assert_eq!(early, usize::from(round >= 3), "round {round}");
        let written = bench.source.position().sequence;
        bench.acknowledge_received(written);
        flush += 1;
        bench.source.flush(bench.now, RequestId(flush), VolumeIndex(0));
        bench.run();
        assert_eq!(asks_for_durable(&mut bench), 1 - early, "it is asked once");
        assert!(!bench.completed.contains(&RequestId(flush)));
        bench.acknowledge_durable(written);
        assert!(bench.completed.contains(&RequestId(flush)));
    }
    // One that writes on without a flush has it asked no more.
    bench.write();
    assert_eq!(asks_for_durable(&mut bench), 1);
    bench.write();
    bench.write();
    assert_eq!(asks_for_durable(&mut bench), 0);
}

#[test]
fn what_a_lost_session_was_asked_is_asked_again() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let has = bench.source.position().sequence;
    bench.write();
    let written = bench.send();
    bench.acknowledge_received(written);
    bench.source.flush(bench.now, RequestId(10_000), VolumeIndex(0));
    bench.run();
    assert_eq!(asks_for_durable(&mut bench), 1);
    bench.connect(Some(written), Some(has), Lost::None);
    assert_eq!(asks_for_durable(&mut bench), 1);
}

#[test]
fn what_gathered_without_a_session_is_to_be_durable_as_soon_as_it_is_there() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.source.config.mode = Mode::Async;
    let has = bench.source.position().sequence;
    bench.write();
    assert_eq!(asks_for_durable(&mut bench), 0);
    let received = bench.source.position().sequence;
    bench.source.disconnected(bench.now);
    bench.write();
    bench.connect(Some(received), Some(has), Lost::None);
    let written = bench.source.position().sequence;
    assert!(bench.source.frames_are_due());
    let sent = std::iter::from_fn(|| bench.source.next_frame(bench.now));
    let sent: Vec<Option<Sequence>> = sent
        .map(|frame| match frame {
            Frame::Record(_) => None,
            Frame::Mark { sequence, sync: true } => Some(sequence),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sent, [None, Some(written)], "the target is asked behind the last of it");
    // So is what it has received and not made durable.
    bench.connect(Some(written), Some(has), Lost::None);
    assert_eq!(asks_for_durable(&mut bench), 1);
    // It is not asked for what it has.
    bench.connect(Some(written), Some(written), Lost::None);
    assert_eq!(asks_for_durable(&mut bench), 0);
}

#[test]
fn after_a_standstill_nothing_is_admitted_before_the_peer_was_heard_of() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let before = bench.now;
    bench.now = bench.now.plus_us(100 * SYNC_TIMEOUT_US);
    bench.source.doubt(bench.now);
    let request = bench.write();
    assert!(bench.source.in_flight.is_empty());
    let pong = |time| TargetMessage::Pong { time, applied: Sequence(0), clock: Time(0) };
    // What was on its way all the time says nothing, and neither does an answer to no ping.
    for time in [before, Time(u64::MAX)] {
        bench.source.message(bench.now, pong(time));
        bench.run();
        assert!(bench.source.in_flight.is_empty());
    }
    bench.source.message(bench.now, pong(bench.now));
    bench.run();
    let written = bench.send();
    bench.acknowledge_received(written);
    assert!(bench.completed.contains(&request));
}

#[test]
fn after_a_standstill_a_new_session_or_a_lost_peer_ends_the_doubt() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let has = bench.source.position().sequence;
    bench.source.doubt(bench.now);
    bench.connect(Some(has), Some(has), Lost::None);
    assert!(!bench.source.is_in_doubt());
    bench.source.doubt(bench.now);
    let request = bench.write();
    bench.source.disconnected(bench.now);
    bench.run();
    assert!(bench.source.is_in_doubt() && bench.source.in_flight.is_empty());
    let at = bench.source.next_timeout().expect("it does not wait for ever");
    bench.now = at;
    bench.source.timeout(at);
    bench.run();
    assert!(!bench.source.is_in_doubt());
    bench.now = bench.now.plus_us(SYNC_TIMEOUT_US);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(bench.completed.contains(&request), "{}", bench.source.activity());
}

#[test]
fn after_a_standstill_an_answer_that_lay_there_opens_no_session_and_no_timer_answers_clients() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let has = bench.source.position().sequence;
    let request = bench.write();
    bench.source.disconnected(bench.now);
    bench.run();
    let answer = bench.ask(Some(has), Some(has), Lost::None);
    bench.now = bench.now.plus_us(100 * SYNC_TIMEOUT_US);
    bench.may_hang_up = true;
    bench.source.doubt(bench.now);
    bench.run();
    bench.source.message(bench.now, answer);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(bench.hung_up && bench.source.is_in_doubt() && !bench.completed.contains(&request));
    // The peer does not come back: it counts as lost, as at any other time.
    while !bench.completed.contains(&request) {
        bench.now = bench.source.next_timeout().expect("it does not wait for ever");
        bench.source.timeout(bench.now);
        bench.run();
    }
    assert!(!bench.source.is_in_doubt());
}

#[test]
fn a_group_that_blocks_without_its_peer_is_never_alone() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let has = bench.source.position().sequence;
    bench.source.config.on_link_loss = OnLinkLoss::Block;
    bench.source.disconnected(bench.now);
    let request = bench.write();
    assert!(!bench.source.in_flight.is_empty() && !bench.source.state().alone);
    bench.now = bench.now.plus_us(100 * SYNC_TIMEOUT_US);
    bench.source.timeout(bench.now);
    bench.run();
    assert!(!bench.completed.contains(&request), "nobody is answered, so nothing parts the histories");
    bench.connect(Some(has), Some(has), Lost::None);
    let written = bench.send();
    bench.acknowledge_received(written);
    assert!(bench.completed.contains(&request));
}

#[test]
fn a_question_to_the_target_that_was_given_up_with_the_queue_is_settled_by_a_new_session() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let has = bench.source.position().sequence;
    bench.source.hand_over(bench.now, SYNC_TIMEOUT_US);
    bench.run();
    let request = bench.write();
    assert!(bench.source.is_handed_over() && bench.asked.is_none());
    bench.may_hang_up = true;
    bench.source.lose_tracking();
    bench.run();
    assert!(bench.hung_up, "the target would never hear that it is asked, and clients wait for ever");
    bench.connect(Some(has), Some(has), Lost::None);
    let commit = bench.send();
    bench.acknowledge_durable(commit);
    assert!(bench.completed.contains(&request), "{}", bench.source.activity());
}
