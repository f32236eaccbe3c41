//! What the source costs for each write at steady state: `write`, `local_done`, the frame, the acknowledgement.
//!
//! Nothing is written or sent: the disks and the target answer at once. Allocations are counted beside the time.

use afterimage_protocol::bitmap::{Bitmap, mem_words};
use afterimage_protocol::codec::content_checksum;
use afterimage_protocol::frame::{Codec, Content, Frame, Payload};
use afterimage_protocol::message::{Lost, Opened, TargetMessage, VolumeInfo};
use afterimage_protocol::rules::Rules;
use afterimage_protocol::source::*;
use afterimage_protocol::state::{GroupState, Role, VolumeState};
use afterimage_protocol::*;
use bytes::Bytes;
use divan::Bencher;

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

const SIZE_BYTES: u64 = 1 << 30;
const BLOCKS: u64 = SIZE_BYTES / BLOCK_BYTES;
/// Writes of one measurement: many notes of what is durable fall into it.
const WRITES: u32 = 4096;
const STEP_US: u64 = 10;

fn main() {
    divan::main();
}

/// A write at a time, acknowledged one by one.
#[divan::bench(args = ["async", "sync"])]
fn one_in_flight(bencher: Bencher<'_, '_>, mode: &str) {
    measure(bencher, mode, 1);
}

/// Many writes under way, acknowledged together.
#[divan::bench(args = ["async", "sync"])]
fn thirty_two_in_flight(bencher: Bencher<'_, '_>, mode: &str) {
    measure(bencher, mode, 32);
}

fn measure(bencher: Bencher<'_, '_>, mode: &str, depth: u32) {
    let mode = if mode == "sync" { Mode::Sync } else { Mode::Async };
    let mut rig = Rig::streaming(mode);
    rig.write_many(8 * WRITES, depth);
    bencher.counter(divan::counter::ItemsCount::new(WRITES)).bench_local(|| rig.write_many(WRITES, depth));
}

struct Rig {
    source: Source,
    now: Time,
    requests: u64,
    completed: u64,
    sent: Sequence,
    local: Vec<Sequence>,
    random: u64,
    payload: Payload,
}

impl Rig {
    /// A source whose first sync is over.
    fn streaming(mode: Mode) -> Self {
        let volumes = vec![VolumeState { name: "v".into(), size_bytes: SIZE_BYTES, identity: vec![] }];
        let config = Config {
            group: "g".into(),
            mode,
            ack: AckLevel::Received,
            on_link_loss: OnLinkLoss::Degrade,
            sync_timeout_us: 5_000_000,
            queue_bytes: 64 << 20,
            window_bytes: 64 << 20,
            hot_capacity: 1024,
            max_rate: None,
            background: Default::default(),
            volumes: vec![VolumeInfo { name: "v".into(), size_bytes: SIZE_BYTES }],
            rules: Rules::default(),
        };
        let found = Found {
            state: GroupState::new(Role::Primary, volumes),
            bitmaps: vec![Bitmap::new(mem_words(Bitmap::words_needed(BLOCKS)), BLOCKS, true)],
            hot: Some(vec![]),
            settled: true,
            boot_id: [1; 16],
            fresh_generation: Generation(7),
        };
        let bytes = Bytes::from(vec![7; BLOCK_BYTES as usize]);
        let checksum = content_checksum(&bytes);
        let payload = Payload { codec: Codec::Raw, raw_bytes: BLOCK_BYTES as u32, checksum, encoded: bytes };
        let mut rig = Self {
            source: Source::start(config, found, Time(1)),
            now: Time(1),
            requests: 0,
            completed: 0,
            sent: Sequence(0),
            local: Vec::new(),
            random: 88_172_645_463_325_252,
            payload,
        };
        rig.perform();
        let open = rig.source.open(SessionId(1)).expect("a source that is ready");
        rig.hear(TargetMessage::Opened(Opened {
            session: open.session,
            known_session: SessionId(0),
            previous_session: SessionId(0),
            received: None,
            durable: None,
            mark: 0,
            epoch: None,
            lost: Lost::None,
        }));
        while !rig.source.status().streaming || rig.source.has_frame() {
            rig.send();
        }
        let commit = rig.sent;
        rig.hear(TargetMessage::Durable { sequence: commit });
        let status = rig.source.status();
        assert!(status.streaming && (mode == Mode::Async || status.in_sync), "{status:?}");
        rig
    }

    fn write_many(&mut self, count: u32, depth: u32) {
        for _ in 0..count / depth {
            for _ in 0..depth {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                let range = ByteRange::new(VolumeIndex(0), self.random % BLOCKS * BLOCK_BYTES, BLOCK_BYTES);
                let content = Content::Data(self.payload.clone());
                self.requests += 1;
                self.now = self.now.plus_us(STEP_US);
                self.source.write(self.now, RequestId(self.requests), Write { range, content, fua: false });
                self.perform();
            }
            while let Some(sequence) = self.local.pop() {
                self.source.local_done(self.now, sequence, Ok(()));
                self.perform();
            }
            self.send();
            let sequence = self.sent;
            self.hear(TargetMessage::Received { sequence });
            self.hear(TargetMessage::Durable { sequence });
        }
        assert_eq!(self.completed, self.requests);
    }

    fn send(&mut self) {
        while let Some(frame) = self.source.next_frame(self.now) {
            match frame {
                Frame::Record(record) => self.sent = record.position.sequence,
                Frame::EpochCommit { position, .. } => self.sent = position.sequence,
                _ => {}
            }
        }
        while self.source.next_block(self.now).is_some() {}
        self.perform();
    }

    fn hear(&mut self, message: TargetMessage) {
        self.source.message(self.now, message);
        self.perform();
    }

    fn perform(&mut self) {
        let now = self.now;
        while let Some(output) = self.source.poll() {
            match output {
                Output::LocalWrite { sequence, .. } => self.local.push(sequence),
                Output::Complete { result, .. } => {
                    result.expect("a write");
                    self.completed += 1;
                }
                Output::PersistState { version, .. } => self.source.state_persisted(now, version, true),
                Output::PersistHot { transaction, .. } => self.source.hot_persisted(now, transaction, true),
                Output::SyncBitmap { token, .. } => self.source.bitmap_synced(now, token, true),
                Output::LocalFlush { token, .. } => self.source.local_flushed(now, token, true),
                Output::Read { read, blocks, .. } => {
                    self.source.blocks_read(now, read, vec![ReadOutcome::Zeroes { blocks: blocks.count }]);
                }
                other => panic!("nothing asks for this: {other:?}"),
            }
        }
    }
}
