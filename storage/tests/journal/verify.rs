//! Comparisons against the plainest model: the image after every entry, in an array.

use afterimage_protocol::frame::Check;
use afterimage_protocol::source::ReadOutcome;
use afterimage_protocol::target::{Comparison, DueCheck};
use afterimage_protocol::*;
use afterimage_storage::group::read_run;
use afterimage_storage::verify::compare;
use bytes::Bytes;

use crate::apply::{VOLUME_BYTES, draw, model_write};
use crate::disk::Disk;
use crate::frames::*;

const ENTRIES: usize = 40;
const BLOCKS: u64 = VOLUME_BYTES / BLOCK_BYTES;

/// Any prefix of the journal may be in the volume already, and checks are of any place behind it: also of one block at
/// several places (seed 108172 of the simulator).
#[test]
fn each_check_is_compared_with_the_image_at_its_place() {
    let (mut equal, mut different) = (0, 0);
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let disk = Disk::default();
        let (mut journal, ..) = open(disk.dir(), OPTIONS).unwrap();
        let mut images = vec![vec![vec![0; VOLUME_BYTES as usize]]];
        let mut ends = vec![journal.end()];
        let mut skip = Vec::new();
        for _ in 0..ENTRIES {
            let frame = draw(&mut random, 1);
            let start = journal.end();
            journal.append(&frame).unwrap();
            sync(&mut journal).unwrap();
            let mut image = images.last().unwrap().clone();
            match random.below(6) {
                0 => skip.push((start, journal.end())),
                _ => model_write(&mut image, &frame),
            }
            images.push(image);
            ends.push(journal.end());
        }
        let applied = random.below(ENTRIES as u64 / 2) as usize;
        let volume = disk.volume(VOLUME_BYTES);
        volume.write_at(&images[applied][0], 0).unwrap();
        let mut checks = Vec::new();
        let mut wanted = Vec::new();
        for id in 1..12 {
            let place = applied + random.below((ENTRIES - applied) as u64 + 1) as usize;
            let first = random.below(BLOCKS - 4);
            let mut image = images[place][0].clone();
            let flipped = (random.below(3) == 0).then(|| first + random.below(4));
            if let Some(block) = flipped {
                image[(block * BLOCK_BYTES) as usize] ^= 1;
            }
            let source = disk.volume(VOLUME_BYTES);
            source.write_at(&image, 0).unwrap();
            let asked = BlockRange { volume: VolumeIndex(0), first, count: 4 };
            let (count, hashes) = match read_run(&source, VOLUME_BYTES, asked, true).remove(0) {
                ReadOutcome::Hashes { hashes, blocks } => (blocks, hashes),
                ReadOutcome::Zeroes { blocks } => (blocks, Bytes::new()),
                other => panic!("{other:?}"),
            };
            let blocks = BlockRange { count, ..asked };
            let position = Position::new(Generation(1), Sequence(place as u64));
            let check = Check { id: CheckId(id), position, range: blocks.bytes(VOLUME_BYTES), hashes };
            checks.push(DueCheck { check, at: ends[place], journaled: vec![blocks] });
            wanted.push(flipped.filter(|block| *block < blocks.end()));
        }
        let replay_to = ends.last().copied();
        let comparison = Comparison { checks, replay_to, skip };
        let entries = journal.read(journal.start(), journal.end());
        let results = compare(&[volume], &comparison, Some(entries));
        for (result, wanted) in results.iter().zip(wanted) {
            let found: Vec<u64> = result.differing.iter().flat_map(|r| r.iter()).collect();
            assert_eq!(found, wanted.into_iter().collect::<Vec<_>>(), "seed {seed} check {}", result.id);
            assert_eq!(result.unchecked, 0);
            *if found.is_empty() { &mut equal } else { &mut different } += 1;
        }
        let unread = compare(&[], &Comparison { replay_to: None, ..comparison }, None);
        assert!(
            unread.iter().all(|r| r.differing.is_empty() && r.unchecked > 0),
            "what cannot be read is no difference"
        );
    }
    assert!(equal > 100 && different > 50, "{equal} {different}");
}
