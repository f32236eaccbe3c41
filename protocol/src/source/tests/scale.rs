//! A large volume costs what is in it and what changes in it: looks at the words of its bitmap are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::*;
use crate::bitmap::{NO_TAIL, Words};

/// 1 TiB: a bitmap of 32 MiB, which a walk over blocks or words would show in.
const LARGE_BYTES: u64 = 1 << 40;
const LARGE_BLOCKS: u64 = LARGE_BYTES / BLOCK_BYTES;
const ZERO_FRAMES: u64 = LARGE_BYTES / MAX_ZERO_BYTES;

/// Words that outlive their bitmap and count the looks at them.
#[derive(Clone)]
struct Counted {
    words: Arc<[AtomicU64]>,
    tail: Arc<AtomicU64>,
    looks: Arc<AtomicUsize>,
}

impl Words for Counted {
    fn words(&self) -> &[AtomicU64] {
        self.looks.fetch_add(1, Ordering::Relaxed);
        &self.words
    }

    fn tail(&self) -> &AtomicU64 {
        &self.tail
    }
}

impl Counted {
    fn new() -> Self {
        let words = (0..Bitmap::words_needed(LARGE_BLOCKS)).map(|_| AtomicU64::new(0)).collect();
        Self { words, tail: Arc::new(AtomicU64::new(NO_TAIL)), looks: Arc::default() }
    }

    fn open(&self) -> Bitmap {
        Bitmap::new(Box::new(self.clone()), LARGE_BLOCKS, true)
    }

    fn looks(&self) -> usize {
        self.looks.swap(0, Ordering::Relaxed)
    }
}

/// A source of one large volume that is all hole, and a target that takes everything.
struct Large {
    source: Source,
    words: Counted,
    now: Time,
    mark: u64,
    frames: u64,
    /// Frames to be staged before the target is gone.
    frames_left: u64,
}

impl Large {
    fn new(words: Counted, state: GroupState, generation: Generation) -> Self {
        let config = Config {
            group: "g".into(),
            mode: Mode::Async,
            ack: AckLevel::Received,
            on_link_loss: OnLinkLoss::Degrade,
            sync_timeout_us: SYNC_TIMEOUT_US,
            queue_bytes: 1 << 20,
            window_bytes: 1 << 20,
            hot_capacity: 64,
            max_rate: None,
            background: Default::default(),
            volumes: vec![VolumeInfo { name: "v".into(), size_bytes: LARGE_BYTES }],
            rules: Rules::default(),
        };
        let found = Found {
            state,
            bitmaps: vec![words.open()],
            hot: Some(vec![]),
            settled: true,
            boot_id: [1; 16],
            fresh_generation: generation,
        };
        let source = Source::start(config, found, Time(1));
        let mut large = Self { source, words, now: Time(1), mark: 0, frames: 0, frames_left: u64::MAX };
        large.perform();
        large
    }

    fn first() -> Self {
        let volumes = vec![VolumeState { name: "v".into(), size_bytes: LARGE_BYTES, identity: vec![] }];
        Self::new(Counted::new(), GroupState::new(Role::Primary, volumes), GENERATION)
    }

    /// Runs a session until nothing is left to send, or the target has gone.
    fn connect(&mut self) {
        let open = self.source.open(SessionId(self.now.0)).unwrap();
        let opened = Opened {
            session: open.session,
            known_session: open.known_session,
            previous_session: open.known_session,
            received: None,
            durable: None,
            mark: self.mark,
            epoch: None,
            lost: Lost::None,
        };
        self.source.message(self.now, TargetMessage::Opened(opened));
        self.perform();
        while self.frames_left > 0 {
            self.now = self.now.plus_us(STEP_US);
            let before = self.frames;
            while let Some(Frame::Block(block)) = self.source.next_block(self.now) {
                assert!(matches!(block.content, Content::Zeroes { .. }));
                self.frames += 1;
                self.frames_left -= 1;
                self.mark += 1;
                self.source.message(
                    self.now,
                    TargetMessage::Staged {
                        epoch: block.epoch,
                        frames: vec![(block.frame, 1)],
                        records_to: Sequence(0),
                        mark: Some(self.mark),
                    },
                );
                self.perform();
                if self.frames_left == 0 {
                    return;
                }
            }
            let mut commit = None;
            while let Some(frame) = self.source.next_frame(self.now) {
                if let Frame::EpochCommit { position, .. } = frame {
                    commit = Some(position.sequence);
                }
            }
            if let Some(sequence) = commit {
                self.source.message(self.now, TargetMessage::Durable { sequence });
                self.perform();
                return;
            }
            self.perform();
            assert!(self.frames > before, "nothing comes: {}", self.source.activity());
        }
    }

    fn perform(&mut self) {
        let now = self.now;
        while let Some(output) = self.source.poll() {
            match output {
                Output::PersistState { version, .. } => self.source.state_persisted(now, version, true),
                Output::SyncBitmap { token, .. } => self.source.bitmap_synced(now, token, true),
                Output::PersistHot { transaction, .. } => self.source.hot_persisted(now, transaction, true),
                Output::Read { read, blocks, .. } => {
                    self.source.blocks_read(now, read, vec![ReadOutcome::Zeroes { blocks: blocks.count }]);
                }
                other => panic!("nothing asks for this: {other:?}"),
            }
        }
    }
}

#[test]
fn a_first_sync_of_a_hole_costs_frames_and_not_blocks() {
    let mut large = Large::first();
    assert_eq!(large.source.status().dirty_blocks, [LARGE_BLOCKS]);
    large.connect();
    assert!(large.source.status().streaming);
    assert!(large.source.is_clean());
    assert!(large.frames <= ZERO_FRAMES + 64, "{} frames", large.frames);
    let looks = large.words.looks() as u64;
    assert!(looks <= large.frames * 60, "{looks} looks at words for {} frames", large.frames);
    assert_eq!(large.words.open().dirty_blocks(), 0);
    assert!(large.words.looks() < 50);
}

#[test]
fn a_first_sync_that_was_cut_short_goes_on_where_it_was() {
    let mut large = Large::first();
    large.frames_left = ZERO_FRAMES / 2;
    large.connect();
    let left = large.source.status().dirty_blocks[0];
    assert!(left < LARGE_BLOCKS * 11 / 20, "{left} blocks are left of {LARGE_BLOCKS}");
    let (words, state, mark) = (large.words.clone(), large.source.state().clone(), large.mark);
    words.looks();
    let mut again = Large::new(words, state, GENERATION);
    again.mark = mark;
    let found = again.source.status().dirty_blocks[0];
    assert!(found <= left + 8 * MAX_ZERO_BYTES / BLOCK_BYTES, "{found} blocks are dirty after a restart");
    assert!(again.words.looks() < 100);
    again.connect();
    assert!(again.source.is_clean());
    assert!(again.frames < ZERO_FRAMES * 11 / 20 + 64);
}

#[test]
fn zeroes_over_a_large_range_cost_no_more_than_their_words() {
    let mut large = Large::first();
    large.connect();
    large.words.looks();
    let range = ByteRange::new(VolumeIndex(0), 0, MAX_ZERO_BYTES);
    let write = Write { range, content: Content::Zeroes { punch: true }, fua: false };
    large.source.write(large.now, RequestId(1), write);
    let mut sequence = None;
    while let Some(output) = large.source.poll() {
        match output {
            Output::PersistHot { transaction, .. } => {
                large.source.hot_persisted(large.now, transaction, true);
            }
            Output::LocalWrite { sequence: at, .. } => sequence = Some(at),
            Output::PersistState { version, .. } => large.source.state_persisted(large.now, version, true),
            other => panic!("nothing asks for this: {other:?}"),
        }
    }
    let sequence = sequence.unwrap();
    assert_eq!(large.source.recent.len(), 1, "one entry for the range, not one for each block");
    large.source.local_done(large.now, sequence, Ok(()));
    assert!(matches!(large.source.poll(), Some(Output::Complete { result: Ok(()), .. })));
    while large.source.next_frame(large.now).is_some() {}
    large.now = large.now.plus_us(1_000_000);
    large.source.message(large.now, TargetMessage::Durable { sequence });
    large.perform();
    assert!(large.source.is_clean());
    let words = (MAX_ZERO_BYTES / BLOCK_BYTES / 64) as usize;
    let looks = large.words.looks();
    assert!(looks <= 12 * words, "{looks} looks for {words} words");
}
