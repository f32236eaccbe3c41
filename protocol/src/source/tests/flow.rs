//! How much of a catch-up is under way, and how fast it goes.

use super::*;
use crate::frame::{Codec, Payload};

const LARGE_BYTES: u64 = 64 * EXTENT_BYTES;
const WINDOW: u64 = 4 << 20;
const MIB: u64 = 1 << 20;

/// A source in its first sync, whose reads end when the test says so.
struct Flow {
    source: Source,
    now: Time,
    reads: VecDeque<(u64, BlockRange)>,
    writes: VecDeque<Sequence>,
    issued: u64,
}

impl Flow {
    fn new(background: Background) -> Self {
        let volumes = vec![VolumeState { name: "v".into(), size_bytes: LARGE_BYTES, identity: vec![] }];
        let config = Config {
            mode: Mode::Async,
            window_bytes: WINDOW,
            hot_capacity: 64,
            background,
            volumes: vec![VolumeInfo { name: "v".into(), size_bytes: LARGE_BYTES }],
            ..config(Mode::Async, AckLevel::Received)
        };
        let blocks = LARGE_BYTES / BLOCK_BYTES;
        let found = Found {
            bitmaps: vec![Bitmap::new(mem_words(Bitmap::words_needed(blocks)), blocks, true)],
            ..found(GroupState::new(Role::Primary, volumes))
        };
        let mut flow = Self {
            source: Source::start(config, found, Time(1)),
            now: Time(1),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            issued: 0,
        };
        flow.perform();
        flow
    }

    fn connect(&mut self) {
        let open = self.source.open(SessionId(1)).unwrap();
        let opened = Opened {
            session: open.session,
            known_session: open.known_session,
            previous_session: open.known_session,
            received: None,
            durable: None,
            mark: 0,
            epoch: None,
            lost: Lost::None,
        };
        self.source.message(self.now, TargetMessage::Opened(opened));
        self.perform();
    }

    fn perform(&mut self) {
        let now = self.now;
        while let Some(output) = self.source.poll() {
            match output {
                Output::PersistState { version, .. } => self.source.state_persisted(now, version, true),
                Output::SyncBitmap { token, .. } => self.source.bitmap_synced(now, token, true),
                Output::PersistHot { transaction, .. } => self.source.hot_persisted(now, transaction, true),
                Output::Read { read, blocks, .. } => self.reads.push_back((read, blocks)),
                Output::LocalWrite { sequence, .. } => self.writes.push_back(sequence),
                Output::Complete { .. } => {}
                other => panic!("nothing asks for this: {other:?}"),
            }
        }
    }

    fn pass(&mut self, us: u64) {
        self.now = self.now.plus_us(us);
        self.source.timeout(self.now);
        self.perform();
    }

    /// The oldest read ends; whether there was one.
    fn read(&mut self) -> bool {
        let Some((read, blocks)) = self.reads.pop_front() else { return false };
        let bytes = Bytes::from(vec![1; (blocks.count * BLOCK_BYTES).min(MAX_PAYLOAD_BYTES) as usize]);
        self.source.blocks_read(self.now, read, vec![ReadOutcome::Data(bytes, 0)]);
        self.perform();
        true
    }

    /// Takes what is to be sent; its bytes.
    fn send(&mut self) -> u64 {
        let mut sent = 0;
        while let Some(Frame::Block(block)) = self.source.next_block(self.now) {
            sent += block.range.length;
        }
        self.perform();
        sent
    }

    /// The target has frames durably.
    fn stage(&mut self, first: FrameId, count: u64) {
        let epoch = self.source.epoch.as_ref().unwrap().id;
        let staged = TargetMessage::Staged {
            epoch,
            frames: vec![(first, count)],
            records_to: Sequence(0),
            mark: Some(1),
        };
        self.source.message(self.now, staged);
        self.perform();
    }

    /// A client writes a block at the end of the volume, which takes so long.
    fn write(&mut self, took_us: u64) {
        self.issued += 1;
        let raw = Bytes::from(vec![2; BLOCK_BYTES as usize]);
        let payload = Payload { codec: Codec::Raw, raw_bytes: BLOCK_BYTES as u32, checksum: 0, encoded: raw };
        let range = ByteRange::new(VolumeIndex(0), LARGE_BYTES - BLOCK_BYTES, BLOCK_BYTES);
        let write = Write { range, content: Content::Data(payload), fua: false };
        self.source.write(self.now, RequestId(self.issued), write);
        self.perform();
        self.pass(took_us);
        let sequence = self.writes.pop_front().expect("the write is admitted");
        self.source.local_done(self.now, sequence, Ok(()));
        self.perform();
    }
}

#[test]
fn what_is_read_ahead_of_the_link_is_bounded() {
    let mut flow = Flow::new(Background::Balanced);
    flow.connect();
    assert_eq!(flow.reads.len() as u64, 4, "reads of a MiB at once");
    while flow.read() {}
    let waiting = flow.send();
    assert!((WINDOW..WINDOW + 5 * MIB).contains(&waiting), "{waiting}");
}

#[test]
fn a_target_that_syncs_does_not_stop_the_flow_at_once_but_in_the_end() {
    let mut flow = Flow::new(Background::Balanced);
    flow.connect();
    let mut sent = 0;
    while flow.read() {
        sent += flow.send();
    }
    let unsynced = 8 * WINDOW;
    assert!((unsynced - MIB..unsynced + 5 * MIB).contains(&sent), "{sent}");
    // What it has durably makes room.
    flow.stage(FrameId(0), 8);
    let mut more = 0;
    while flow.read() {
        more += flow.send();
    }
    assert!((7 * MIB..=9 * MIB).contains(&more), "{more}");
}

#[test]
fn small_reads_are_many_at_once() {
    let mut flow = Flow::new(Background::Balanced);
    let blocks = LARGE_BYTES / BLOCK_BYTES;
    flow.source.bitmaps[0].clear(0, blocks);
    for n in 0..1000 {
        flow.source.bitmaps[0].set(n * 3, 1);
    }
    flow.connect();
    assert_eq!(flow.reads.len(), 64);
    assert!(flow.reads.iter().is_sorted_by_key(|(_, blocks)| blocks.first), "in order");
}

#[test]
fn a_catch_up_gives_way_to_clients_that_wait_longer_for_it_and_ends_at_full_speed() {
    let mut flow = Flow::new(Background::Gentle);
    for _ in 0..1000 {
        flow.write(300);
        flow.pass(100);
    }
    flow.connect();
    // Each read makes a write take ten times as long.
    let mut slow = 0;
    for _ in 0..2000 {
        let reads = flow.read();
        slow += u64::from(reads);
        flow.write(if reads { 3000 } else { 300 });
        flow.send();
        flow.stage(FrameId(0), u64::MAX);
        flow.pass(100);
    }
    let status = flow.source.status();
    assert!(matches!(status.held_back, Some((_, HeldBy::Clients))), "{:?}", status.held_back);
    assert!(slow < 200, "{slow} of 2000 writes were slow");
    assert!(flow.source.read_again_at().is_some() || !flow.reads.is_empty(), "it goes on");
    // What is put back while clients write is read at once: they are held until it is sent (rule 15).
    let e = flow.source.epoch.as_mut().unwrap();
    e.cursor_done = true;
    e.put_back(BlockRange { volume: VolumeIndex(0), first: 0, count: 1000 });
    flow.pass(1);
    assert!(!flow.reads.is_empty());
    assert_eq!(flow.source.read_again_at(), None);
}

#[test]
fn the_pieces_that_a_read_found_go_in_order_and_what_it_left_is_read_next() {
    let mut flow = Flow::new(Background::Balanced);
    flow.connect();
    let (read, blocks) = flow.reads.pop_front().unwrap();
    let data = |blocks| ReadOutcome::Data(Bytes::from(vec![1; blocks * BLOCK_BYTES as usize]), 0);
    flow.source.blocks_read(flow.now, read, vec![data(2), ReadOutcome::Zeroes { blocks: 3 }, data(1)]);
    flow.perform();
    let sent: Vec<_> = std::iter::from_fn(|| flow.source.next_block(flow.now))
        .map(|frame| match frame {
            Frame::Block(block) => {
                let zeroes = matches!(block.content, Content::Zeroes { .. });
                (block.frame, block.range.offset / BLOCK_BYTES, block.range.length / BLOCK_BYTES, zeroes)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sent, [(FrameId(0), 0, 2, false), (FrameId(1), 2, 3, true), (FrameId(2), 5, 1, false)]);
    // Behind those that were under way.
    let (_, next) = flow.reads[3];
    assert_eq!(next, BlockRange { first: 6, count: blocks.count - 6, ..blocks });
    // More than was asked for is left out.
    let (read, blocks) = flow.reads.pop_back().unwrap();
    flow.source.blocks_read(flow.now, read, vec![ReadOutcome::Zeroes { blocks: 200 }, data(200)]);
    flow.perform();
    let ends = std::iter::from_fn(|| flow.source.next_block(flow.now)).map(|frame| match frame {
        Frame::Block(block) => block.range.end(),
        other => panic!("{other:?}"),
    });
    assert_eq!(ends.last(), Some(blocks.end() * BLOCK_BYTES));
}
