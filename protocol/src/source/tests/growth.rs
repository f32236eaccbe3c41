//! Volumes that grow.

use super::*;

/// Not a whole number of blocks, as the size before.
const SHORT: u64 = SIZE - 3584;
const LARGER: u64 = SIZE + 6 * BLOCK_BYTES + 512;

impl Bench {
    /// Makes the bitmaps as storage does: with the bits there are, and the new area.
    pub(super) fn prepare(&mut self, growth: &[Growth]) {
        let bitmaps = growth.iter().map(|g| {
            let blocks = blocks_in(g.to_bytes);
            let mut bitmap = Bitmap::new(mem_words(Bitmap::words_needed(blocks)), blocks, true);
            let mut from = 0;
            while let Some((first, count)) = self.source.next_dirty(g.volume, from, u64::MAX) {
                bitmap.set(first, count);
                from = first + count;
            }
            bitmap.set(g.from_bytes / BLOCK_BYTES, blocks);
            bitmap
        });
        let bitmaps = bitmaps.collect();
        self.source.growth_prepared(self.now, Some(bitmaps));
    }

    fn grow(&mut self) {
        self.may_hang_up = true;
        self.source.grow(self.now, &[Some(LARGER)], &[LARGER]).unwrap();
        self.run();
        assert!(self.hung_up, "the session has to end");
    }

    fn size(&mut self) -> u64 {
        self.source.config.volumes[0].size_bytes
    }

    fn stored_size(&self) -> u64 {
        self.source.state().volumes[0].size_bytes
    }

    fn growth(&self) -> Growth {
        Growth { volume: VolumeIndex(0), from_bytes: SIZE, to_bytes: LARGER }
    }
}

#[test]
fn the_new_area_counts_as_dirty_and_a_catch_up_carries_it() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    assert!(bench.source.is_clean());
    let before = bench.source.position().sequence;
    bench.grow();
    assert_eq!(bench.size(), SIZE, "not while there may be a session with the old size");
    bench.source.disconnected(bench.now);
    bench.run();
    assert_eq!(bench.grown, Some(Ok(vec![bench.growth()])));
    assert_eq!((bench.size(), bench.stored_size()), (LARGER, LARGER));
    assert!(bench.source.position().sequence > before);
    assert_eq!(bench.source.status().dirty_blocks, [7]);
    let answer = bench.ask(Some(before), Some(before), Lost::None);
    bench.source.message(bench.now, answer);
    bench.run();
    let commit = bench.send();
    assert!(commit > before, "what the target had is not all of it");
    bench.acknowledge_durable(commit);
    assert!(bench.source.is_clean());
    assert!(bench.source.status().in_sync);
}

#[test]
fn a_block_that_was_short_counts_as_dirty() {
    let growth = Growth { volume: VolumeIndex(0), from_bytes: SHORT, to_bytes: SIZE };
    let mut bench = Bench::in_sync(AckLevel::Received);
    // Of the same number of blocks: nothing but the last block tells.
    bench.source.config.volumes[0].size_bytes = SHORT;
    bench.may_hang_up = true;
    bench.source.grow(bench.now, &[Some(SIZE)], &[SIZE]).unwrap();
    bench.source.disconnected(bench.now);
    bench.run();
    assert_eq!(bench.grown, Some(Ok(vec![growth])));
    assert!(bench.source.is_dirty(VolumeIndex(0), BLOCKS - 1));
    assert_eq!(bench.source.status().dirty_blocks, [1]);
}

#[test]
fn clients_are_held_and_answered_once_it_is_done() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.growth_waits = true;
    bench.grow();
    bench.source.disconnected(bench.now);
    bench.run();
    bench.write();
    assert!(bench.source.open(SessionId(99)).is_none(), "no session with a size that is about to change");
    assert!(bench.completed.is_empty());
    let growth = bench.prepared.remove(0);
    bench.prepare(&growth);
    bench.run();
    assert!(bench.completed.is_empty(), "the session is not back");
    bench.now = bench.source.next_timeout().unwrap();
    while bench.completed.is_empty() {
        let next = bench.source.next_timeout().expect("a time at which it goes on");
        assert!(next.since_us(Time(1)) < 10_000_000, "{}", bench.source.activity());
        bench.now = bench.now.max(next);
        bench.source.timeout(bench.now);
        bench.run();
    }
    assert_eq!(bench.size(), LARGER);
}

#[test]
fn what_is_written_to_the_new_area_is_taken_afterwards() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let range = ByteRange::new(VolumeIndex(0), SIZE, BLOCK_BYTES);
    let write = || Write { range, content: Content::Zeroes { punch: false }, fua: false };
    bench.source.write(bench.now, RequestId(500), write());
    let refused = std::iter::from_fn(|| bench.source.poll())
        .any(|o| matches!(o, Output::Complete { request: RequestId(500), result: Err(LocalError::Io) }));
    assert!(refused);
    bench.grow();
    bench.source.disconnected(bench.now);
    bench.run();
    let sequence = bench.source.position().sequence;
    bench.connect(Some(sequence), Some(sequence), Lost::None);
    bench.source.write(bench.now, RequestId(501), write());
    bench.run();
    assert!(bench.source.is_dirty(VolumeIndex(0), BLOCKS));
}

#[test]
fn a_growth_that_cannot_be_made_changes_nothing() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.growth_fails = true;
    bench.grow();
    bench.source.disconnected(bench.now);
    bench.run();
    assert_eq!(bench.grown, Some(Err(CannotGrow::NoBitmaps)));
    assert_eq!((bench.size(), bench.stored_size()), (SIZE, SIZE));
    bench.grown = None;
    bench.growth_fails = false;
    let sequence = bench.source.position().sequence;
    bench.connect(Some(Sequence(1)), Some(Sequence(1)), Lost::None);
    assert!(bench.source.position().sequence >= sequence);
    bench.grow();
    bench.source.disconnected(bench.now);
    bench.run();
    assert_eq!(bench.grown, Some(Ok(vec![bench.growth()])));
}

#[test]
fn bitmaps_that_come_too_late_are_forgotten() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.growth_waits = true;
    bench.grow();
    bench.source.disconnected(bench.now);
    bench.run();
    while bench.grown.is_none() {
        bench.now = bench.now.max(bench.source.next_timeout().unwrap());
        bench.source.timeout(bench.now);
        bench.run();
    }
    assert_eq!(bench.grown.take(), Some(Err(CannotGrow::TooSlow)));
    bench.connect(Some(Sequence(1)), Some(Sequence(1)), Lost::None);
    bench.write();
    let sizes = [Some(LARGER)];
    assert_eq!(bench.source.may_grow(&sizes, None), Err(CannotGrow::UnderWay), "they are still being made");
    let growth = bench.prepared.remove(0);
    bench.prepare(&growth);
    bench.run();
    assert_eq!((bench.forgotten, bench.grown.take()), (1, None));
    assert_eq!(bench.size(), SIZE);
    assert!(bench.source.may_grow(&sizes, None).is_ok());
}

#[test]
fn a_state_that_cannot_be_written_leaves_the_old_size() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.states_wait = true;
    bench.grow();
    bench.source.disconnected(bench.now);
    bench.run();
    let version = bench.waiting_states.pop().expect("the new size is being noted");
    assert_eq!((bench.size(), bench.stored_size()), (SIZE, LARGER));
    bench.source.state_persisted(bench.now, version, false);
    bench.run();
    assert_eq!((bench.forgotten, bench.grown.take()), (1, Some(Err(CannotGrow::Failed))));
    assert_eq!((bench.size(), bench.stored_size()), (SIZE, SIZE));
}

#[test]
fn lost_tracking_marks_all_of_the_new_bitmap() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.states_wait = true;
    bench.grow();
    bench.source.disconnected(bench.now);
    bench.run();
    bench.flush_fails = true;
    bench.source.flush(bench.now, RequestId(77), VolumeIndex(0));
    bench.run();
    assert!(bench.source.status().tracking_lost);
    bench.states_wait = false;
    for version in std::mem::take(&mut bench.waiting_states) {
        bench.source.state_persisted(bench.now, version, true);
    }
    bench.run();
    assert_eq!(bench.source.status().dirty_blocks, [blocks_in(LARGER)]);
}

#[test]
fn it_is_refused_where_it_would_be_unsafe() {
    let mut bench = Bench::in_sync(AckLevel::Received);
    let may = |bench: &Bench, size, room| bench.source.may_grow(&[Some(size)], Some(&[room])).unwrap_err();
    assert_eq!(may(&bench, SIZE, SIZE), CannotGrow::NothingGrew);
    assert_eq!(bench.source.may_grow(&[None], None), Err(CannotGrow::NothingGrew));
    let shrank = CannotGrow::Shrank { name: "v".into(), had_bytes: SIZE, has_bytes: SIZE - 512 };
    assert_eq!(may(&bench, SIZE - 512, SIZE), shrank);
    let small =
        CannotGrow::TargetTooSmall { name: "v".into(), wanted_bytes: LARGER, has_bytes: LARGER - 512 };
    assert_eq!(may(&bench, LARGER, LARGER - 512), small);
    assert!(bench.source.may_grow(&[Some(LARGER)], Some(&[])).is_err(), "the target said nothing");
    bench.source.hand_over(bench.now, 1_000_000);
    assert_eq!(may(&bench, LARGER, LARGER), CannotGrow::ChangingRoles);

    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.grow();
    assert_eq!(may(&bench, LARGER, LARGER), CannotGrow::UnderWay);
    assert_eq!(bench.source.may_hand_over(), Err(RolesStay::Resizing));

    let mut bench = Bench::in_sync(AckLevel::Received);
    bench.source.disconnected(bench.now);
    assert_eq!(may(&bench, LARGER, LARGER), CannotGrow::NotConnected);

    let bench = Bench::first_sync_received(AckLevel::Received);
    assert_eq!(may(&bench, LARGER, LARGER), CannotGrow::FirstSync);
}
