//! What is found on a disk: the state of a group, the files around it, and the journal. The files lie on the
//! simulator's disk, under the same code that runs on a real one.

use std::sync::Arc;

use afterimage_protocol::frame::Frame;
use afterimage_protocol::state::{GroupState, Role};
use afterimage_protocol::{Lsn, Sequence};
use afterimage_storage::bitmap::open_bitmap;
use afterimage_storage::group::GroupStore;
use afterimage_storage::hot_log::HotLog;
use afterimage_storage::io::{Dir, Open};
use afterimage_storage::journal::{Damage, Journal, JournalOptions};
use afterimage_storage::superblock::Superblock;

use super::{Parts, mend};
use crate::sim::SimDisk;

/// The state of a group: the payload of its superblock.
pub fn group_state(bytes: &[u8]) -> bool {
    let Ok(state) = GroupState::decode(bytes) else { return false };
    assert_eq!(GroupState::decode(&state.encode()).as_ref(), Ok(&state));
    true
}

/// A superblock with a group's state in it. Parts: the bytes of a slot; its place is 0 for A and anything else for B.
pub fn superblock(bytes: &[u8]) -> bool {
    let accepted = open_superblock(bytes, |_| {});
    open_superblock(bytes, mend::sealed);
    accepted
}

const SLOT_BYTES: u64 = 69_632;

fn open_superblock(bytes: &[u8], prepare: fn(&mut [u8])) -> bool {
    let place = |_, place| if place == 0 { 0 } else { SLOT_BYTES };
    let dir = files(bytes, |_| "superblock".to_owned(), place, |_, bytes| prepare(bytes));
    set_len(&*dir, "superblock", 2 * SLOT_BYTES);
    if let Ok((_, payload)) = Superblock::open(&*dir, "superblock") {
        let again = Superblock::open(&*dir, "superblock").expect("what was opened opens again").1;
        assert_eq!(again, payload);
        assert_eq!(Superblock::peek(&*dir, "superblock").expect("what was opened can be looked at"), payload);
    }
    let Ok((mut store, state)) = GroupStore::open(dir.clone()) else { return false };
    let written = state.clone().unwrap_or_else(|| GroupState::new(Role::Standby, Vec::new()));
    store.write(&written).expect("a state that was read can be written");
    assert_eq!(GroupStore::peek(&*dir).expect("the state is there"), Some(written));
    state.is_some()
}

/// A hot-extent log. Parts: the bytes of a copy; its place is 2 × mirror + slot.
pub fn hot_log(bytes: &[u8]) -> bool {
    let accepted = open_hot_log(bytes, |_| {});
    open_hot_log(bytes, mend::sealed);
    accepted
}

const COPY_BYTES: u64 = 790_528;

fn open_hot_log(bytes: &[u8], prepare: fn(&mut [u8])) -> bool {
    let name = "hot-extents";
    let dir = files(bytes, |_| name.to_owned(), |_, copy| copy % 4 * COPY_BYTES, |_, bytes| prepare(bytes));
    set_len(&*dir, name, 4 * COPY_BYTES);
    let Ok((log, extents)) = HotLog::open(&*dir, name, 64) else { return false };
    assert!(log.capacity() >= extents.len());
    drop(log);
    let (mut log, again) = HotLog::open(&*dir, name, 64).expect("what was opened opens again");
    assert!(again == extents, "{} extents, then {}", extents.len(), again.len());
    log.write(&extents).expect("what was read can be written");
    true
}

/// A bitmap of [`BITMAP_BLOCKS`] blocks called [`BITMAP_NAME`]: its file, extended with zeroes to the right length.
pub fn bitmap(bytes: &[u8]) -> bool {
    let accepted = open_bitmap_file(bytes, false);
    open_bitmap_file(bytes, true);
    let mut mended = bytes.to_vec();
    mend::sealed(&mut mended);
    open_bitmap_file(&mended, false);
    accepted
}

/// Blocks of the volume of the bitmap.
pub const BITMAP_BLOCKS: u64 = 5000;
/// The file's name.
pub const BITMAP_NAME: &str = "bitmap-0";

fn open_bitmap_file(bytes: &[u8], trust_summary: bool) -> bool {
    let dir = SimDisk::new(0).dir("group");
    let file = dir.open(BITMAP_NAME, Open::New).expect("the simulated disk makes a file");
    file.write_at(bytes, 0).expect("the simulated disk writes");
    // 79 words for the blocks, 2 and 1 above them. A longer file stays longer.
    set_len(&*dir, BITMAP_NAME, (bytes.len() as u64).max(4096 + 8 * (79 + 2 + 1)));
    let Ok(mut found) = open_bitmap(&*dir, BITMAP_NAME, BITMAP_BLOCKS, trust_summary) else { return false };
    // What is trusted may leave blocks out; nothing may name blocks that there are not.
    let (mut at, mut dirty) = (0, 0);
    while let Some((first, count)) = found.bitmap.next_run(at, 1000) {
        assert!(first >= at && count > 0 && first + count <= BITMAP_BLOCKS, "{count} blocks from {first}");
        at = first + count;
        dirty += count;
    }
    if !trust_summary {
        assert_eq!(found.bitmap.dirty_blocks(), dirty);
        assert_eq!(found.bitmap.set(0, BITMAP_BLOCKS), BITMAP_BLOCKS - dirty);
        assert_eq!(found.bitmap.clear(0, u64::MAX), BITMAP_BLOCKS);
    }
    found.sync.sync_all().expect("the simulated disk syncs");
    true
}

/// A journal's directory. Parts: a file, by its tag: 0 `start`, 1 `durable`, 2 `damage`, and from 3 on the segment with
/// the id tag − 2, whose base is the part's place.
pub fn journal(bytes: &[u8]) -> bool {
    let accepted = open_journal(bytes, |_, _| {});
    open_journal(bytes, |tag, bytes| match tag {
        0 | 1 => mend::mark(bytes),
        2 => mend::damage(bytes),
        _ => mend::segment(bytes),
    });
    accepted
}

/// What a journal holds.
#[derive(Debug, PartialEq)]
struct Held {
    start: Lsn,
    entries: Vec<(Lsn, Frame)>,
    damage: Option<Damage>,
}

fn open_journal(bytes: &[u8], prepare: fn(u8, &mut [u8])) -> bool {
    let name = |(tag, place)| match tag {
        0 => "start".to_owned(),
        1 => "durable".to_owned(),
        2 => "damage".to_owned(),
        tag => format!("segment-{:016x}-{place:016x}", tag - 2),
    };
    let dir = files(bytes, name, |_, _| 0, prepare);
    let Ok((journal, held)) = read_journal(&dir) else { return false };
    drop(journal);
    let (mut journal, again) = read_journal(&dir).expect("what was opened opens again");
    assert!(again == held, "the second open found something else");
    let mark = Frame::Mark { sequence: Sequence(7), sync: false };
    let at = journal.end();
    journal.append(&mark).expect("a journal that was opened can be written");
    drop(journal);
    let (_, longer) = read_journal(&dir).expect("what was written opens again");
    assert_eq!(longer.entries.len(), held.entries.len() + 1);
    assert_eq!(longer.entries.last(), Some(&(at, mark)));
    // Bytes that stand for nothing are no journal: only then is an empty one the right answer.
    !held.entries.is_empty() && held.damage.is_none()
}

fn read_journal(dir: &Arc<dyn Dir>) -> Result<(Journal, Held), afterimage_storage::journal::JournalError> {
    let options = JournalOptions { segment_bytes: 64 << 10, ..JournalOptions::default() };
    let mut entries = Vec::new();
    let (journal, found) = Journal::open(Arc::clone(dir), options, &mut |entry| {
        entries.push((entry.start, entry.frame.clone()))
    })?;
    assert!(found.start <= found.end, "{found:?}");
    let at_end = entries.last().map(|(at, frame)| at.0 + Journal::entry_bytes(frame));
    assert_eq!(at_end.unwrap_or(found.start.0), found.end.0, "the last entry ends where the journal does");
    Ok((journal, Held { start: found.start, entries, damage: found.damage }))
}

/// Gives a file the length that it is made with: what is short of that in an input is zeroes.
fn set_len(dir: &dyn Dir, name: &str, length: u64) {
    let file = dir.open(name, Open::Any).expect("the simulated disk opens a file");
    file.set_len(length).expect("the simulated disk changes a length");
}

/// A directory with what the parts of `input` say: each is written to the file of its `name` at its `offset`, after
/// `prepare`.
fn files(
    input: &[u8],
    name: impl Fn((u8, u64)) -> String,
    offset: impl Fn(u8, u64) -> u64,
    prepare: impl Fn(u8, &mut [u8]),
) -> Arc<dyn Dir> {
    let dir = SimDisk::new(0).dir("group");
    for (tag, place, bytes) in Parts::new(input) {
        let mut bytes = bytes.to_vec();
        prepare(tag, &mut bytes);
        let file = dir.open(&name((tag, place)), Open::Any).expect("the simulated disk opens a file");
        file.write_at(&bytes, offset(tag, place)).expect("the simulated disk writes");
    }
    dir
}
