//! Bytes from many places of memory, copied one behind the other into memory that is aligned as the way past the page cache
//! asks for: one buffer for each thread that writes so.

use std::cell::RefCell;

use afterimage_memory::Buffer;

/// Bytes of the buffer: what a disk takes in one piece, and little enough to stay in a processor's cache.
pub(crate) const BUFFER_BYTES: usize = 1 << 20;

thread_local! {
    /// Made with the first use, and never moved.
    static BUFFER: RefCell<Option<Buffer>> = const { RefCell::new(None) };
}

/// Calls `write` with this thread's buffer of [`BUFFER_BYTES`]. What is in it is of no meaning.
pub(crate) fn with_buffer<R>(write: impl FnOnce(&mut [u8]) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| write(buffer.get_or_insert_with(|| Buffer::with_len(BUFFER_BYTES))))
}

/// Buffers, to be copied out in order.
pub(crate) struct Gather<'a> {
    bufs: std::slice::Iter<'a, &'a [u8]>,
    left: &'a [u8],
}

impl<'a> Gather<'a> {
    /// From the first byte of the first one.
    pub(crate) fn new(bufs: &'a [&'a [u8]]) -> Self {
        Self { bufs: bufs.iter(), left: &[] }
    }

    /// Fills `out`, which is no longer than what is left.
    pub(crate) fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            while self.left.is_empty() {
                self.left = self.bufs.next().expect("no more is asked for than there is");
            }
            let count = out.len().min(self.left.len());
            let (now, later) = self.left.split_at(count);
            let (filled, rest) = out.split_at_mut(count);
            filled.copy_from_slice(now);
            (self.left, out) = (later, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use afterimage_memory::ALIGN_BYTES;

    use super::*;

    #[test]
    fn bytes_come_in_order_whatever_the_pieces() {
        let bytes: Vec<u8> = (0..1000u32).map(|n| (n % 251) as u8).collect();
        let bufs = [&bytes[..3], &[], &bytes[3..500], &bytes[500..]];
        for step in [1, 7, 64, 999, 1000] {
            let mut gather = Gather::new(&bufs);
            let mut out = vec![0; 1000];
            out.chunks_mut(step).for_each(|part| gather.fill(part));
            assert_eq!(out, bytes, "{step}");
        }
    }

    #[test]
    fn the_buffer_is_aligned_and_stays_where_it_is() {
        let place = || with_buffer(|buffer| (buffer.as_ptr() as usize, buffer.len()));
        let (at, length) = place();
        assert_eq!((at % ALIGN_BYTES, length), (0, BUFFER_BYTES));
        assert_eq!(place().0, at);
    }
}
