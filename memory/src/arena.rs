//! Room for long buffers: slots in a row, in mappings of some huge pages each.

use std::ops::{Deref, DerefMut};
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Advice, MmapMut, MmapRaw};

/// Bytes of a slot: as long as most payloads get.
pub(crate) const SLOT_BYTES: usize = 1 << 20;
/// Slots of an arena: what a stream of long payloads has under way.
const SLOTS: u32 = 8;
/// The longest room, in bytes.
pub(crate) const ARENA_BYTES: usize = SLOTS as usize * SLOT_BYTES;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The arenas that have a slot in use, and at most one more's worth of slots that have none.
static ARENAS: Mutex<Arenas> = Mutex::new(Arenas(Vec::new()));

/// Gives back to the system what no buffer is in. The next long one is in memory that has to be got and cleared.
pub fn release_unused() {
    ARENAS.lock().unwrap_or_else(PoisonError::into_inner).release_unused();
}

struct Arenas(Vec<Arena>);

struct Arena {
    mapping: Arc<Mapping>,
    /// Slots that nobody has.
    free: Slots,
}

/// Some slots of an arena, a bit for each.
type Slots = u32;
const ALL: Slots = (1 << SLOTS) - 1;

impl Arena {
    /// The first `count` free slots in a row.
    fn row(&self, count: u32) -> Option<Slots> {
        let rows = (0..=SLOTS - count).map(|first| (ALL >> (SLOTS - count)) << first);
        rows.into_iter().find(|row| self.free & row == *row)
    }
}

impl Arenas {
    /// From the oldest arena that has as many slots in a row, so that the youngest become empty; `None` if the system has no
    /// memory to give, or that is more than an arena has.
    fn take(&mut self, bytes: usize) -> Option<Room> {
        let count = u32::try_from(bytes.div_ceil(SLOT_BYTES)).ok().filter(|count| *count <= SLOTS)?;
        if self.0.iter().all(|arena| arena.row(count).is_none()) {
            self.0.push(Arena { mapping: Arc::new(Mapping::new()?), free: ALL });
        }
        let (arena, row) = self.0.iter_mut().find_map(|arena| arena.row(count).map(|row| (arena, row)))?;
        arena.free &= !row;
        Some(Room { mapping: arena.mapping.clone(), row })
    }

    fn give_back(&mut self, room: &Room) {
        let Some(at) = self.0.iter().position(|arena| Arc::ptr_eq(&arena.mapping, &room.mapping)) else {
            return;
        };
        self.0[at].free |= room.row;
        let free: u32 = self.0.iter().map(|arena| arena.free.count_ones()).sum();
        if self.0[at].free == ALL && free >= 2 * SLOTS {
            self.0.remove(at);
        }
    }

    fn release_unused(&mut self) {
        self.0.retain(|arena| arena.free != ALL);
    }
}

/// Memory of the system, all zeroes at first, and where in it the slots begin.
struct Mapping {
    map: MmapRaw,
    start: usize,
}

impl Mapping {
    /// `None` if the system has no memory to give.
    fn new() -> Option<Self> {
        let map = MmapMut::map_anon(ARENA_BYTES + HUGE_PAGE_BYTES).ok()?;
        // Without it the pages are small.
        let _ = map.advise(Advice::HugePage);
        let start = map.as_ptr().align_offset(HUGE_PAGE_BYTES);
        (start <= HUGE_PAGE_BYTES).then(|| Self { map: map.into(), start })
    }
}

/// Bytes that nobody else has; what they are at first is of no meaning. Goes back with the drop.
pub(crate) struct Room {
    mapping: Arc<Mapping>,
    row: Slots,
}

impl Room {
    /// Room for so many bytes, at least one; `None` if the system has no memory to give, or for more than [`ARENA_BYTES`].
    pub(crate) fn take(bytes: usize) -> Option<Self> {
        ARENAS.lock().unwrap_or_else(PoisonError::into_inner).take(bytes)
    }

    fn start(&self) -> *mut u8 {
        let first = self.row.trailing_zeros() as usize;
        self.mapping.map.as_mut_ptr().wrapping_add(self.mapping.start + first * SLOT_BYTES)
    }

    fn bytes(&self) -> usize {
        self.row.count_ones() as usize * SLOT_BYTES
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        ARENAS.lock().unwrap_or_else(PoisonError::into_inner).give_back(self);
    }
}

impl Deref for Room {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as the room, has its slots from the place where the first begins, and was initialized
        // by the system. Only this room leads to them: nobody else is given a slot that is not free.
        unsafe { slice::from_raw_parts(self.start(), self.bytes()) }
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.start(), self.bytes()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arenas() -> Arenas {
        Arenas(Vec::new())
    }

    fn take(arenas: &mut Arenas, count: u32) -> Vec<Room> {
        (0..count).map(|_| arenas.take(1).unwrap()).collect()
    }

    fn give_back(arenas: &mut Arenas, rooms: impl IntoIterator<Item = Room>) {
        rooms.into_iter().for_each(|room| arenas.give_back(&room));
    }

    #[test]
    fn rooms_are_apart_and_begin_at_slots() {
        let mut arenas = arenas();
        let lengths = [1, SLOT_BYTES, SLOT_BYTES + 1, ARENA_BYTES, 3 * SLOT_BYTES, 5 * SLOT_BYTES, 1, 1, 1];
        let mut rooms: Vec<Room> = lengths.iter().map(|bytes| arenas.take(*bytes).unwrap()).collect();
        for ((room, bytes), value) in rooms.iter_mut().zip(lengths).zip(1..) {
            assert!((room.as_ptr() as usize).is_multiple_of(SLOT_BYTES));
            assert_eq!(room.len(), bytes.next_multiple_of(SLOT_BYTES));
            room.fill(value);
        }
        for (room, value) in rooms.iter().zip(1..) {
            assert!(room.iter().all(|byte| *byte == value));
        }
        // 1, 1, 2, 3 and 1 slots; 8; 5, 1 and 1.
        assert_eq!(arenas.0.iter().map(|arena| arena.free.count_ones()).collect::<Vec<_>>(), [0, 0, 1]);
        assert!(arenas.take(ARENA_BYTES + 1).is_none());
    }

    #[test]
    fn what_was_given_back_is_used_again() {
        let mut arenas = arenas();
        let mut rooms = take(&mut arenas, 3 * SLOTS);
        let place = rooms[5].as_ptr();
        give_back(&mut arenas, [rooms.remove(5)]);
        assert_eq!(arenas.take(1).unwrap().as_ptr(), place);
        assert_eq!(arenas.0.len(), 3);
    }

    #[test]
    fn one_arena_stays_until_it_is_asked_back() {
        let mut arenas = arenas();
        let mut rooms = take(&mut arenas, 3 * SLOTS);
        let of_each: Vec<Room> =
            [2 * SLOTS, SLOTS, 0].into_iter().map(|at| rooms.remove(at as usize)).collect();
        give_back(&mut arenas, rooms);
        assert_eq!(arenas.0.len(), 3);
        give_back(&mut arenas, of_each);
        assert_eq!((arenas.0.len(), arenas.0[0].free), (1, ALL));
        let room = arenas.take(ARENA_BYTES);
        give_back(&mut arenas, room);
        assert_eq!((arenas.0.len(), arenas.0[0].free), (1, ALL));

        let rooms = take(&mut arenas, SLOTS + 1);
        arenas.release_unused();
        assert_eq!(arenas.0.len(), 2);
        give_back(&mut arenas, rooms);
        arenas.release_unused();
        assert!(arenas.0.is_empty());
    }
}
