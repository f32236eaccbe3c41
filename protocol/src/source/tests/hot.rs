//! The extents that come with one that is written to.

use super::*;

const CAPACITY: usize = 64;
/// Extents of the volume; the last one is short.
const EXTENTS: u64 = 60;
const BYTES: u64 = (EXTENTS - 1) * EXTENT_BYTES + 9 * BLOCK_BYTES;

/// A source whose hot-extent log is written when the test says so.
struct Hot {
    source: Source,
    issued: u64,
    /// The transaction that is being written, and the extents in it.
    writing: Option<(u64, Vec<u64>)>,
    logged: Vec<u64>,
    transactions: usize,
    started: usize,
}

impl Hot {
    fn new() -> Self {
        let volumes = vec![VolumeInfo { name: "v".into(), size_bytes: BYTES }];
        let config = Config { hot_capacity: CAPACITY, volumes, ..config(Mode::Async, AckLevel::Received) };
        let volumes = vec![VolumeState { name: "v".into(), size_bytes: BYTES, identity: vec![] }];
        let blocks = BYTES / BLOCK_BYTES;
        let bitmap = Bitmap::new(mem_words(Bitmap::words_needed(blocks)), blocks, true);
        let found = Found { bitmaps: vec![bitmap], ..found(GroupState::new(Role::Primary, volumes)) };
        let source = Source::start(config, found, Time(1));
        let mut hot =
            Self { source, issued: 0, writing: None, logged: Vec::new(), transactions: 0, started: 0 };
        hot.run();
        hot
    }

    fn run(&mut self) {
        while let Some(output) = self.source.poll() {
            match output {
                Output::PersistState { version, .. } => self.source.state_persisted(Time(1), version, true),
                Output::SyncBitmap { token, .. } => self.source.bitmap_synced(Time(1), token, true),
                Output::LocalFlush { token, .. } => self.source.local_flushed(Time(1), token, true),
                Output::PersistHot { transaction, extents } => {
                    self.transactions += 1;
                    self.writing = Some((transaction, extents.iter().map(|extent| extent.index).collect()));
                }
                Output::LocalWrite { sequence, .. } => {
                    self.started += 1;
                    self.source.local_done(Time(1), sequence, Ok(()));
                }
                _ => {}
            }
        }
    }

    /// Asks for a write to an extent; whether it has started.
    fn write(&mut self, extent: u64) -> bool {
        self.issued += 1;
        let range = ByteRange::new(VolumeIndex(0), extent * EXTENT_BYTES + BLOCK_BYTES, BLOCK_BYTES);
        let write = Write { range, content: Content::Zeroes { punch: false }, fua: false };
        self.source.write(Time(1), RequestId(self.issued), write);
        self.run();
        self.started as u64 == self.issued
    }

    /// The log is written as far as it is to be.
    fn log(&mut self) {
        while let Some((transaction, extents)) = self.writing.take() {
            self.logged = extents;
            self.source.hot_persisted(Time(1), transaction, true);
            self.run();
        }
    }

    fn write_and_log(&mut self, extent: u64) {
        self.write(extent);
        self.log();
        assert_eq!(self.started as u64, self.issued);
    }
}

#[test]
fn a_client_that_goes_on_behind_it_does_not_wait_for_the_log() {
    let mut hot = Hot::new();
    assert!(!hot.write(3) && !hot.write(4), "they are durable first");
    hot.log();
    assert_eq!((hot.started, &hot.logged), (2, &(3..=11).collect()));
    for extent in 4..24 {
        assert!(hot.write(extent), "{extent}");
        hot.log();
    }
    assert!(hot.transactions <= 6, "and it is not written for each of them");
}

#[test]
fn none_comes_from_beyond_the_volume() {
    let mut hot = Hot::new();
    hot.write_and_log(EXTENTS - 2);
    assert_eq!(hot.logged, [EXTENTS - 2, EXTENTS - 1]);
    assert!(hot.write(EXTENTS - 1));
    assert_eq!(hot.transactions, 1);
}

#[test]
fn half_of_the_room_is_for_what_is_written() {
    let mut hot = Hot::new();
    let mut most = 0;
    for extent in (0..EXTENTS).step_by(9) {
        hot.write_and_log(extent);
        most = most.max(hot.logged.len());
    }
    assert!((CAPACITY / 2 - 9..=CAPACITY / 2 + 4).contains(&most), "{most}");
    for extent in (0..EXTENTS).rev() {
        hot.write_and_log(extent);
        assert!(hot.logged.len() <= CAPACITY);
    }
}

#[test]
fn what_was_never_written_is_the_first_to_leave() {
    let mut hot = Hot::new();
    hot.write_and_log(0);
    // Backwards, so that none comes along; and with something used later than all of what leaves.
    for extent in (9..EXTENTS).rev() {
        hot.write_and_log(extent);
        hot.write_and_log(0);
    }
    let left = (1..9).filter(|extent| !hot.logged.contains(extent));
    assert_eq!((left.count(), hot.logged[0]), (8, 0), "{:?}", hot.logged);
}
