//! Memory for bytes on their way to and from disks.
//!
//! What goes past the page cache has to be aligned, and is cut where it is in more pieces of memory than the device takes at
//! once: 1 MiB in pages of 4 KiB is 256 of them, and often one more than that. So a long [`Buffer`] lies in a huge page, where the
//! system has such, and in one that was used before, which is not cleared again.

mod arena;
mod buffer;

pub use arena::release_unused;
pub use buffer::{ALIGN_BYTES, Buffer, aligned, copied};
