//! The source's handshakes, fed by hand: what the simulator met rarely.

use super::*;
use crate::bitmap::mem_words;
use crate::message::{Lost, Opened, TargetMessage, VolumeInfo};
use crate::state::{Role, VolumeState};

const VOLUME: VolumeIndex = VolumeIndex(0);
const GENERATION: Generation = Generation(7);
const EXTENTS: u64 = 3;
const SIZE: u64 = EXTENTS * EXTENT_BYTES;
/// No test needs as many outputs; more of them never end.
const MAX_OUTPUTS: usize = 1000;

/// A source whose disks are quick; reads wait to be answered.
struct Bench {
    source: Source,
    reads: VecDeque<(u64, BlockRange)>,
    done: Vec<RequestId>,
}

impl Bench {
    /// A source that was there before and has no dirty block.
    fn new(hot_capacity: usize) -> Self {
        let mut state = GroupState::new(
            Role::Primary,
            vec![VolumeState { name: "v".into(), size_bytes: SIZE, identity: vec![] }],
        );
        state.lineage = Lineage::new(GENERATION);
        state.bitmaps_of = GENERATION;
        let blocks = EXTENTS * BLOCKS_PER_EXTENT;
        let words = mem_words(Bitmap::words_needed(blocks));
        let found = Found {
            bitmaps: vec![Bitmap::new(words, blocks, true)],
            hot: Some(vec![]),
            settled: true,
            boot_id: state.boot_id,
            fresh_generation: Generation(8),
            state,
        };
        let source = Source::start(config(hot_capacity), found, Time(1));
        let mut bench = Self { source, reads: VecDeque::new(), done: vec![] };
        bench.run();
        bench
    }

    fn write(&mut self, request: u64, offset: u64, length: u64) {
        let content = Content::Zeroes { punch: false };
        let range = ByteRange::new(VOLUME, offset, length);
        self.source.write(Time(1), RequestId(request), Write { range, content, fua: false });
        self.run();
    }

    fn open(&mut self, session: u64, received: Sequence) {
        self.agree(session, received);
        self.run();
    }

    /// The session is agreed on and not noted yet.
    fn agree(&mut self, session: u64, received: Sequence) {
        let known = self.source.state().session;
        self.source.open(SessionId(session)).unwrap();
        let position = Some(Position::new(GENERATION, received));
        let opened = Opened {
            session: SessionId(session),
            known_session: known,
            previous_session: SessionId(0),
            received: position,
            durable: position,
            mark: 0,
            epoch: None,
            lost: Lost::None,
        };
        self.source.message(Time(1), TargetMessage::Opened(opened));
    }

    fn answer_read(&mut self) -> bool {
        let Some((read, blocks)) = self.reads.pop_front() else { return false };
        self.source.blocks_read(Time(1), read, vec![ReadOutcome::Zeroes { blocks: blocks.count }]);
        self.run();
        true
    }

    /// Everything that is to be sent.
    fn frames(&mut self) -> Vec<Frame> {
        while self.source.next_block(Time(1)).is_some() {}
        let frames = std::iter::from_fn(|| self.source.next_frame(Time(1))).collect();
        self.run();
        frames
    }

    fn run(&mut self) {
        let now = Time(1);
        for _ in 0..MAX_OUTPUTS {
            let Some(output) = self.source.poll() else { return };
            match output {
                Output::PersistState { version, .. } => self.source.state_persisted(now, version, true),
                Output::PersistHot { transaction, .. } => self.source.hot_persisted(now, transaction, true),
                Output::SyncBitmap { token, .. } => self.source.bitmap_synced(now, token, true),
                Output::LocalWrite { sequence, .. } => self.source.local_done(now, sequence, Ok(())),
                Output::LocalFlush { token, .. } => self.source.local_flushed(now, token, true),
                Output::Read { read, blocks, .. } => self.reads.push_back((read, blocks)),
                Output::Complete { request, .. } => self.done.push(request),
                Output::NoteVerification(_) => self.source.verification_noted(now),
                Output::Disconnect { reason } => panic!("{reason}"),
                Output::RolesStay(why) => panic!("{why}"),
                Output::RolledBack(outcome) => panic!("{outcome:?}"),
                Output::PrepareGrowth(_)
                | Output::ForgetGrowth(_)
                | Output::Grown(_)
                | Output::NotGrown(_) => panic!("nothing was to grow"),
            }
        }
        panic!("the source does not come to rest");
    }
}

fn config(hot_capacity: usize) -> Config {
    Config {
        group: "g".into(),
        mode: Mode::Async,
        ack: AckLevel::Received,
        on_link_loss: OnLinkLoss::Degrade,
        sync_timeout_us: 1_000_000,
        queue_bytes: 1 << 20,
        window_bytes: 1 << 20,
        hot_capacity,
        max_rate: None,
        background: Default::default(),
        volumes: vec![VolumeInfo { name: "v".into(), size_bytes: SIZE }],
        rules: Rules::default(),
    }
}

#[test]
fn a_stream_is_not_resumed_before_the_commit_of_its_epoch() {
    let mut b = Bench::new(8);
    b.open(1, Sequence(0));
    b.frames();
    let begun = b.source.position().sequence;
    b.source.message(Time(1), TargetMessage::Durable { sequence: begun });
    b.run();

    // An epoch that begins where the target is: no write, but the hot-extent log has failed.
    b.source.lose_tracking();
    b.source.pump(Time(1));
    b.run();
    assert!(b.answer_read());
    b.write(1, 0, BLOCK_BYTES);
    b.write(2, 2 * EXTENT_BYTES, BLOCK_BYTES);
    while !b.frames().iter().any(|f| matches!(f, Frame::EpochCommit { .. })) {
        assert!(b.answer_read());
    }

    // The target never saw it. Of the two writes only the first has a record.
    b.source.disconnected(Time(1));
    b.open(2, begun);
    let first = b.frames().into_iter().next();
    assert!(matches!(first, Some(Frame::EpochBegin { .. })), "{first:?}");
}

#[test]
fn an_acknowledgement_counts_before_the_session_is_noted() {
    let mut b = Bench::new(8);
    let sequence = b.source.position().sequence;
    b.agree(1, Sequence(0));
    b.source.message(Time(1), TargetMessage::Durable { sequence });
    b.run();
    assert_eq!(b.source.status().durable, sequence);
}
