//! What a host that comes home says that it lacks, and saves.

use std::sync::Arc;

use afterimage_protocol::lineage::Lineage;
use afterimage_protocol::state::VolumeState;

use super::*;
use crate::io::Open;
use crate::salvage::Salvage;
use crate::test_disk::TestDisk;

const BLOCKS: u64 = 16;
const BOOT: [u8; 16] = [1; 16];

/// A fenced host whose bitmap is clear, after its source had started in its generation.
fn fenced(disk: &TestDisk, lost: LostBlocks) -> (GroupState, Vec<VolumeFile>) {
    let file = disk.open("volume", Open::New).unwrap();
    file.write_at(&vec![7; (BLOCKS * BLOCK_BYTES) as usize], 0).unwrap();
    let volume = VolumeState { name: "v".into(), size_bytes: BLOCKS * BLOCK_BYTES, identity: Vec::new() };
    let mut state = GroupState::new(Role::Primary, vec![volume]);
    state.lineage = Lineage::new(Generation(7));
    let (group, _) = GroupStore::open(Arc::new(disk.clone())).unwrap();
    let (store, files) = SourceStore::open(group, &mut state, BOOT, 4, std::slice::from_ref(&file)).unwrap();
    drop((store, files));
    state.boot_id = BOOT;
    state.bitmaps_of = Generation(7);
    state.replaced(Some((Generation(9), Sequence(5))));
    state.lost = lost;
    (state, vec![file])
}

fn come_home(lost: LostBlocks) -> (Reinstated, Vec<BlockRange>) {
    let disk = TestDisk::default();
    let (state, volumes) = fenced(&disk, lost);
    let (group, _) = GroupStore::open(Arc::new(disk.clone())).unwrap();
    let done = reinstate(group, state, &disk, &volumes, BOOT, Time(1)).unwrap();
    let saved = done.saved.name.iter().flat_map(|name| {
        let pieces = Salvage::open(&disk, name).unwrap();
        pieces.map(|piece| piece.unwrap().range.blocks()).collect::<Vec<_>>()
    });
    let saved = saved.collect();
    (done, saved)
}

#[test]
fn what_was_lost_at_a_promotion_comes_from_the_peer_whatever_the_bitmaps_say() {
    let range = BlockRange { volume: VolumeIndex(0), first: 3, count: 2 };
    let (done, saved) = come_home(LostBlocks::Ranges(vec![range]));
    assert_eq!((done.blocks, done.all, saved), (2, false, vec![range]));
    let (done, saved) = come_home(LostBlocks::None);
    assert_eq!((done.blocks, done.all, saved), (0, false, vec![]));
}

#[test]
fn where_it_is_not_known_what_was_lost_everything_counts() {
    let (done, _) = come_home(LostBlocks::All);
    assert_eq!((done.blocks, done.all), (BLOCKS, true));
}
