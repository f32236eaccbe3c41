//! What a source finds on its volumes when an earlier process could not flush them.

use afterimage_protocol::lineage::Lineage;
use afterimage_protocol::state::{GroupState, Role, VolumeState};
use afterimage_protocol::{Generation, Incarnation};
use afterimage_storage::group::{GroupStore, SourceFiles, SourceStore, VolumeFile};
use tests::sim::{Failure, On, Rng, SimDisk, Times};

const SIZE: u64 = 64 << 10;
const BOOT: [u8; 16] = [1; 16];
const SEEDS: u64 = 100;

/// The disk of a group whose source has run, and which has written to its volume what a sync failed to make durable: that
/// is readable, and chance has it whether it is on stable storage.
struct Found {
    disk: SimDisk,
    volume: VolumeFile,
    state: GroupState,
}

impl Found {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        let volume = disk.volume("v", SIZE);
        let volumes = vec![VolumeState { name: "v".into(), size_bytes: SIZE, identity: vec![] }];
        let mut found = Self { disk, volume, state: GroupState::new(Role::Primary, volumes) };
        found.open();
        found.state.lineage = Lineage::new(Generation(7));
        (found.state.bitmaps_of, found.state.incarnation) = (Generation(7), Incarnation(1));
        found.state.boot_id = BOOT;
        found.group().write(&found.state).unwrap();
        found.volume.write_at(&[1; 4096], 0).unwrap();
        found.fail_sync();
        found.volume.sync().unwrap_err();
        found
    }

    fn group(&self) -> GroupStore {
        GroupStore::open(self.disk.dir("group")).unwrap().0
    }

    fn fail_sync(&self) {
        self.disk.fail("volumes/v", On::Sync, Failure::Io, Times::ONCE);
    }

    fn open(&mut self) -> SourceFiles {
        let volumes = std::slice::from_ref(&self.volume);
        SourceStore::open(self.group(), &mut self.state, BOOT, 8, volumes).unwrap().1
    }

    fn first_byte(&self) -> u8 {
        let mut byte = [0];
        self.volume.read_at(&mut byte, 0).unwrap();
        byte[0]
    }

    /// The first byte, and whether a power cut changes it.
    fn read_and_cut(mut self, seed: u64) -> (u8, bool) {
        let before = self.first_byte();
        self.disk.power_cut(&mut Rng::new(seed));
        self.volume = self.disk.volume("v", SIZE);
        (before, self.first_byte() != before)
    }
}

/// Opens after `change`, with many seeds: how many found the write on the volume, and of how many a power cut took it.
fn opened_after(change: impl Fn(&mut Found)) -> (u64, u64) {
    let mut counts = (0, 0);
    for seed in 0..SEEDS {
        let mut found = Found::new(seed);
        change(&mut found);
        assert!(found.open().settled);
        let (byte, taken) = found.read_and_cut(seed);
        counts.0 += u64::from(byte);
        counts.1 += u64::from(taken);
    }
    counts
}

#[test]
fn volumes_of_which_every_block_counts_as_dirty_read_as_they_are_on_stable_storage() {
    let noted = opened_after(|found| found.state.compare_all = true);
    // The process was killed before it could note it.
    let killed = opened_after(|found| {
        let mut files = found.open();
        files.bitmaps[0].set(0, SIZE / 4096);
    });
    // It had not come to its first state either.
    let new = opened_after(|found| found.state.lineage = Lineage::default());
    for (found, taken) in [noted, killed, new] {
        assert!(0 < found && found < SEEDS && taken == 0, "{found} found, {taken} taken");
    }
}

#[test]
fn a_source_that_knows_what_is_dirty_starts_on_what_the_page_cache_has() {
    let (found, taken) = opened_after(|_| {});
    assert!(found == SEEDS && taken > 0, "{found} found, {taken} taken");
}

#[test]
fn volumes_that_cannot_be_synced_are_opened_and_noted() {
    let mut found = Found::new(1);
    let mut files = found.open();
    files.bitmaps[0].set(0, SIZE / 4096);
    drop(files);
    found.fail_sync();
    assert!(!found.open().settled);
    assert!(GroupStore::open(found.disk.dir("group")).unwrap().1.unwrap().compare_all);
}
