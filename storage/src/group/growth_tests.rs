//! Every step of a growth cut short: by an error, a kill, or a loss of power. What is found has a state and bitmaps that fit
//! together, and no block is clean that was dirty, or is new.

use std::sync::Arc;

use afterimage_protocol::state::{GroupState, Role, VolumeState};
use afterimage_protocol::{BLOCK_BYTES, Generation, Incarnation};

use super::*;
use crate::group::{GroupStore, SourceFiles, VolumeFile};
use crate::io::{Dir, Open};
use crate::test_disk::{Rng, TestDisk};

const BOOT: [u8; 16] = [1; 16];
/// The second volume's last block is short, and stays the last one.
const SMALL: [u64; 2] = [300 * BLOCK_BYTES, 5 * BLOCK_BYTES + 512];
const LARGE: [u64; 2] = [5000 * BLOCK_BYTES + 512, 5 * BLOCK_BYTES + 1024];
/// Blocks of the first volume that are dirty before.
const DIRTY: [u64; 3] = [0, 70, 299];
/// More steps than a growth has.
const MAX_STEPS: u64 = 60;

struct Host {
    disk: TestDisk,
    store: SourceStore,
    state: GroupState,
    bitmaps: Vec<Bitmap>,
    known: bool,
}

fn volumes() -> Vec<VolumeFile> {
    let disk = TestDisk::default();
    let file = disk.open("volume", Open::New).unwrap();
    vec![file.clone(), file]
}

fn open(disk: &TestDisk, boot: [u8; 16]) -> Host {
    let (group, state) = GroupStore::open(Arc::new(disk.clone())).unwrap();
    let mut state = state.unwrap_or_else(|| {
        let volume = |(n, size): (usize, &u64)| VolumeState {
            name: format!("v{n}"),
            size_bytes: *size,
            identity: Vec::new(),
        };
        GroupState::new(Role::Primary, SMALL.iter().enumerate().map(volume).collect())
    });
    let (store, files) = SourceStore::open(group, &mut state, boot, 4, &volumes()).unwrap();
    let SourceFiles { bitmaps, hot, .. } = files;
    Host { disk: disk.clone(), store, state, bitmaps, known: hot.is_some() }
}

/// A primary at work, with a few dirty blocks on stable storage.
fn at_work() -> Host {
    let disk = TestDisk::default();
    let mut host = open(&disk, BOOT);
    host.state.lineage = afterimage_protocol::lineage::Lineage::new(Generation(7));
    host.state.bitmaps_of = Generation(7);
    host.state.incarnation = Incarnation(1);
    host.state.boot_id = BOOT;
    assert!(host.store.persist_state(&host.state));
    for block in DIRTY {
        host.bitmaps[0].set(block, 1);
    }
    host.store.bitmap_syncs().sync_all().unwrap();
    host
}

impl Host {
    fn growth() -> Vec<Growth> {
        let growth = |volume: u32| Growth {
            volume: VolumeIndex(volume),
            from_bytes: SMALL[volume as usize],
            to_bytes: LARGE[volume as usize],
        };
        vec![growth(0), growth(1)]
    }

    /// As the source has it done; whether it came through.
    fn grow(&mut self) -> bool {
        let Ok(bitmaps) = self.store.prepare_growth(&Self::growth()) else { return false };
        let mut state = self.state.clone();
        state.volumes.iter_mut().zip(LARGE).for_each(|(volume, size)| volume.size_bytes = size);
        if !self.store.persist_state(&state) {
            // One file fails: with two, what must be remembered has no place left.
            self.disk.repair();
            self.store.forget_growth(bitmaps);
            return false;
        }
        self.state = state;
        self.bitmaps = bitmaps;
        self.store.growth_noted();
        true
    }

    /// The sizes are the old ones or the new ones, and the bits are those of before, and of the new area.
    fn check(&self, what: &str) -> [u64; 2] {
        let sizes = [0, 1].map(|n| self.state.volumes[n].size_bytes);
        assert!(sizes == SMALL || sizes == LARGE, "{what}: {sizes:?}");
        for (bitmap, size) in self.bitmaps.iter().zip(sizes) {
            assert_eq!(bitmap.blocks(), blocks_in(size), "{what}");
        }
        if self.state.compare_all {
            // The source sets them all.
            return sizes;
        }
        assert!(DIRTY.iter().all(|block| self.bitmaps[0].test(*block)), "{what}: a dirty block is clean");
        if sizes == LARGE {
            let old = SMALL.map(|size| size / BLOCK_BYTES);
            let new = blocks_in(LARGE[0]) - old[0];
            assert_eq!(self.bitmaps[0].next_run(old[0] - 1, u64::MAX), Some((299, new + 1)), "{what}");
            assert!(self.bitmaps[1].test(old[1]), "{what}: what a short block has got is clean");
        }
        sizes
    }

    /// Nothing is left that a later growth could take for its own.
    fn check_names(&self, what: &str) {
        let left = self.disk.list().unwrap().into_iter().filter(|name| name.starts_with("bitmap-"));
        let mut left: Vec<String> = left.collect();
        left.sort();
        assert_eq!(left, ["bitmap-0", "bitmap-1"], "{what}");
    }
}

#[test]
fn a_volume_that_grows_keeps_its_bits_and_gets_those_of_the_new_area() {
    let mut host = at_work();
    assert!(host.grow());
    assert_eq!(host.check("grown"), LARGE);
    assert_eq!(host.bitmaps[0].dirty_blocks(), 3 + 4701);
    assert_eq!(host.bitmaps[1].dirty_blocks(), 1);
    host.check_names("grown");
    host.bitmaps[0].clear(0, 1);
    let host = open(&host.disk.clone(), BOOT);
    assert!(host.known);
    assert_eq!(host.bitmaps[0].dirty_blocks(), 2 + 4701);
}

#[test]
fn killed_after_any_step_both_sizes_are_whole() {
    let (mut smaller, mut larger) = (0, 0);
    for step in 0..MAX_STEPS {
        let mut host = at_work();
        // The process does nothing more from there on.
        host.disk.fail_after(step);
        let disk = host.disk.clone();
        let done = host.grow_until_killed();
        disk.repair();
        let host = open(&disk, BOOT);
        let what = format!("killed after {step} steps");
        let sizes = host.check(&what);
        host.check_names(&what);
        assert!(host.known && !host.state.compare_all, "{what}: all is compared");
        *if sizes == SMALL { &mut smaller } else { &mut larger } += 1;
        if done {
            assert!(smaller > 5 && larger > 3, "{smaller} {larger}");
            return;
        }
    }
    panic!("it does not end");
}

impl Host {
    /// Grows, and does nothing more after the first error: as if killed there. Whether there was none.
    fn grow_until_killed(&mut self) -> bool {
        let Ok(_bitmaps) = self.store.prepare_growth(&Self::growth()) else { return false };
        self.state.volumes.iter_mut().zip(LARGE).for_each(|(volume, size)| volume.size_bytes = size);
        if !self.store.persist_state(&self.state) {
            return false;
        }
        let before = self.disk.operations();
        self.store.growth_noted();
        let fine = self.disk.sync().is_ok();
        assert!(self.disk.operations() > before);
        fine
    }
}

#[test]
fn without_power_after_any_step_both_sizes_are_whole() {
    for step in 0..MAX_STEPS {
        let mut done = false;
        for seed in 1..60 {
            let mut host = at_work();
            host.disk.fail_after(step);
            done = host.grow_until_killed();
            let disk = host.disk.clone();
            drop(host);
            disk.crash(&mut Rng(seed));
            let host = open(&disk, [2; 16]);
            let what = format!("without power after {step} steps, seed {seed}");
            // A superblock that failed to be written may hold either state.
            host.check(&what);
            host.check_names(&what);
            assert!(host.known, "{what}");
        }
        if done {
            return;
        }
    }
    panic!("it does not end");
}

#[test]
fn a_growth_that_failed_leaves_nothing_that_counts_later() {
    for step in 0..MAX_STEPS {
        for seed in 1..40 {
            let mut host = at_work();
            host.disk.fail_after(step);
            let done = host.grow();
            host.disk.repair();
            if done {
                return;
            }
            assert_eq!(host.check("in use"), SMALL);
            // The source goes on: this bit is in no bitmap that was prepared.
            host.bitmaps[0].set(200, 1);
            let _ = host.store.bitmap_syncs().sync_all();
            let disk = host.disk.clone();
            drop(host);
            if seed % 2 == 0 {
                disk.crash(&mut Rng(seed));
            }
            let host = open(&disk, BOOT);
            let what = format!("failed after {step} steps, seed {seed}");
            host.check(&what);
            assert!(host.bitmaps[0].test(200) || host.state.compare_all, "{what}: a bit is lost");
        }
    }
    panic!("it does not end");
}

#[test]
fn both_files_are_synced_until_it_is_known_which_counts() {
    for (grown, seed) in [false, true].into_iter().flat_map(|grown| (1..20).map(move |seed| (grown, seed))) {
        let mut host = at_work();
        let mut bitmaps = host.store.prepare_growth(&Host::growth()).unwrap();
        host.bitmaps[0].set(150, 1);
        bitmaps[0].set(150, 1);
        host.store.bitmap_syncs().sync(VolumeIndex(0), host.bitmaps[0].level0_words(150, 1)).unwrap();
        if grown {
            host.state.volumes.iter_mut().zip(LARGE).for_each(|(volume, size)| volume.size_bytes = size);
            assert!(host.store.persist_state(&host.state));
        }
        let disk = host.disk.clone();
        drop(host);
        disk.crash(&mut Rng(seed));
        let host = open(&disk, [2; 16]);
        assert_eq!(host.check("synced"), if grown { LARGE } else { SMALL });
        assert!(host.bitmaps[0].test(150), "grown {grown}, seed {seed}");
    }
}
