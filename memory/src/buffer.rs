//! A buffer that a disk takes as it is.

use std::ops::{Deref, DerefMut};

use bytes::buf::UninitSlice;
use bytes::{BufMut, Bytes, BytesMut};

use crate::arena::{ARENA_BYTES, Room, SLOT_BYTES};

/// What memory has to be aligned to on the way past the page cache, in bytes.
pub const ALIGN_BYTES: usize = 512;
/// From here on a buffer has room of its own, of which it fills a half at least; shorter ones are in few pieces anyway.
const LONG_BYTES: usize = SLOT_BYTES / 2;

/// An empty buffer for `length` bytes that can go past the page cache as it is.
pub fn aligned(length: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(length + ALIGN_BYTES - 1);
    let pad = buffer.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES - 1);
    buffer.resize(pad, 0);
    buffer.split_off(pad)
}

/// The same bytes in memory of their own, that can go past the page cache as they are if they are [`ALIGN_BYTES`] or more.
pub fn copied(bytes: &[u8]) -> Bytes {
    let mut own = Buffer::new(bytes.len());
    own.put_slice(bytes);
    own.freeze()
}

/// Bytes up to a bound that was given, that can go past the page cache as they are if that is [`ALIGN_BYTES`] or more.
pub struct Buffer {
    memory: Memory,
    length: usize,
    bound: usize,
}

enum Memory {
    /// Its length is the buffer's.
    Heap(BytesMut),
    Room(Room),
}

impl Buffer {
    /// An empty buffer for `bound` bytes.
    pub fn new(bound: usize) -> Self {
        let memory = match bound {
            LONG_BYTES..=ARENA_BYTES => Room::take(bound).map(Memory::Room),
            _ => None,
        };
        let heap = || match bound {
            // No disk takes so little as it is.
            0..ALIGN_BYTES => BytesMut::with_capacity(bound),
            _ => aligned(bound),
        };
        Self { memory: memory.unwrap_or_else(|| Memory::Heap(heap())), length: 0, bound }
    }

    /// A buffer of `length` bytes. What they are is of no meaning.
    pub fn with_len(length: usize) -> Self {
        let mut buffer = Self::new(length);
        if let Memory::Heap(bytes) = &mut buffer.memory {
            bytes.resize(length, 0);
        }
        buffer.length = length;
        buffer
    }

    /// These bytes, which nothing changes any more. The memory is used again when the last clone is gone.
    pub fn freeze(self) -> Bytes {
        match self.memory {
            Memory::Heap(bytes) => bytes.freeze(),
            Memory::Room(_) => Bytes::from_owner(self),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(bytes) => bytes,
            Memory::Room(room) => &room[..self.length],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(bytes) => bytes,
            Memory::Room(room) => &mut room[..self.length],
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

// SAFETY: what `chunk_mut` gives is within the memory and behind what is filled, no longer than `remaining_mut` says, and the same
// place until `advance_mut`.
unsafe impl BufMut for Buffer {
    fn remaining_mut(&self) -> usize {
        self.bound - self.length
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        let (length, bound) = (self.length, self.bound);
        match &mut self.memory {
            // Its capacity is the bound or more: nothing moves while there is room.
            Memory::Heap(bytes) => &mut bytes.chunk_mut()[..bound - length],
            Memory::Room(room) => UninitSlice::new(&mut room[length..bound]),
        }
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        assert!(count <= self.remaining_mut(), "more was filled than there was room for");
        if let Memory::Heap(bytes) = &mut self.memory {
            // SAFETY: the caller has filled so many bytes of the chunk, which was this one's.
            unsafe { bytes.advance_mut(count) };
        }
        self.length += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind, and at the bounds between them.
    const LENGTHS: [usize; 9] =
        [0, 1, 4096, LONG_BYTES - 1, LONG_BYTES, SLOT_BYTES, SLOT_BYTES + 1, ARENA_BYTES, ARENA_BYTES + 1];

    fn byte(at: usize) -> u8 {
        (at % 251) as u8
    }

    #[test]
    fn bytes_come_back_as_they_were_put_in() {
        for length in LENGTHS {
            for step in [1 << 10, 70_000, SLOT_BYTES] {
                let bytes: Vec<u8> = (0..length).map(byte).collect();
                let mut buffer = Buffer::new(length);
                assert!(buffer.is_empty());
                for part in bytes.chunks(step) {
                    buffer.put_slice(part);
                }
                assert_eq!((buffer.len(), buffer.remaining_mut()), (length, 0));
                assert!(length < ALIGN_BYTES || (buffer.as_ptr() as usize).is_multiple_of(ALIGN_BYTES));
                assert!(*buffer == bytes[..]);
                assert!(buffer.freeze() == bytes, "{length}");
                assert!(copied(&bytes) == bytes, "{length}");
            }
        }
    }

    #[test]
    fn what_is_not_filled_is_not_shown() {
        for length in LENGTHS.into_iter().filter(|length| *length > 2) {
            let mut buffer = Buffer::new(length);
            buffer.put_slice(&[7; 2]);
            assert_eq!((&*buffer, buffer.remaining_mut()), (&[7; 2][..], length - 2));
            buffer[1] = 8;
            assert_eq!(*buffer.freeze(), [7, 8]);
        }
    }

    #[test]
    fn a_buffer_may_be_filled_where_it_lies() {
        for length in LENGTHS {
            let mut buffer = Buffer::with_len(length);
            assert_eq!((buffer.len(), buffer.remaining_mut()), (length, 0));
            buffer.iter_mut().zip(0..).for_each(|(to, at)| *to = byte(at));
            let frozen = buffer.freeze();
            assert!(frozen.iter().zip(0..).all(|(b, at)| *b == byte(at)), "{length}");
        }
    }

    #[test]
    fn what_is_held_is_not_used_again() {
        let filled = |value| {
            let mut buffer = Buffer::with_len(SLOT_BYTES);
            buffer.fill(value);
            buffer.freeze()
        };
        let held = filled(1).slice(5..10);
        let others: Vec<Bytes> = (2..50).map(filled).collect();
        assert_eq!(*held, [1; 5]);
        drop(others);
        assert_eq!(*held, [1; 5]);
    }

    #[test]
    #[should_panic(expected = "advance out of bounds")]
    fn no_more_goes_in_than_there_is_room_for() {
        Buffer::new(LONG_BYTES).put_slice(&[0; SLOT_BYTES]);
    }
}
