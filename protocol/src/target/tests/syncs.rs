//! Syncs of the journal, awaited and not.

use super::*;

impl Bench {
    /// A record comes at `at_us`; the sync that begins at `begins_us`, and whether somebody waits for it.
    fn syncs(&mut self, sequence: u64, at_us: u64, begins_us: u64) -> Option<bool> {
        self.target.frame(Time(at_us), SESSION, record(sequence, 0, 512)).unwrap();
        assert_eq!(self.begun(at_us), None);
        self.begun(begins_us)
    }

    fn begun(&mut self, at_us: u64) -> Option<bool> {
        self.target.timeout(Time(at_us));
        let mut begun = None;
        while let Some(output) = self.target.poll() {
            match output {
                Output::Append(frame) => {
                    let end = Lsn(self.end().0 + 100);
                    self.journal.push((end, frame.clone()));
                    self.target.appended(self.target.now, &frame, Some(end));
                }
                Output::SyncJournal { awaited } => begun = Some(awaited),
                _ => {}
            }
        }
        begun
    }

    fn synced(&mut self, at_us: u64) {
        self.target.journal_synced(Time(at_us), Some(self.end()));
    }
}

#[test]
fn syncs_that_nobody_waits_for_take_a_small_part_of_the_time() {
    let mut bench = Bench::new(Some(10));
    // The first comes soon.
    assert_eq!(bench.syncs(11, 1_000, 5_999), None);
    assert_eq!(bench.target.idle_sync_at(), Some(Time(1_000 + SYNC_DELAY_US)));
    assert_eq!(bench.begun(6_000), Some(false));
    // One that took half a millisecond, and what comes right behind it.
    bench.synced(6_500);
    assert_eq!(bench.syncs(12, 7_000, 6_500 + 500 * SYNC_PART - 1), None);
    assert_eq!(bench.begun(6_500 + 500 * SYNC_PART), Some(false));
    // One that took very long does not put the next off for ever.
    bench.synced(5_000_000);
    assert_eq!(bench.syncs(13, 5_000_001, 5_000_000 + MAX_SYNC_PAUSE_US - 1), None);
    assert_eq!(bench.begun(5_000_000 + MAX_SYNC_PAUSE_US), Some(false));
    bench.synced(5_200_000);
    // Who waits does not wait for that.
    assert_eq!(bench.syncs(14, 5_200_001, 5_200_001), None);
    bench.target.frame(Time(5_200_002), SESSION, Frame::Mark { sequence: Sequence(14), sync: true }).unwrap();
    assert_eq!(bench.begun(5_200_003), Some(true));
    // Nor does what has come to more than memory should hold.
    bench.synced(5_300_000);
    let many = (15..).take(SYNC_BYTES.div_ceil(100) as usize).map(|sequence| record(sequence, 0, 512));
    many.for_each(|record| bench.target.frame(Time(5_300_001), SESSION, record).unwrap());
    assert_eq!(bench.begun(5_300_002), Some(false));
}
