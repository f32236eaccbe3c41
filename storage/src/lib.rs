//! What touches disks: volumes, the mapped bitmap, the hot-extent log, the superblock and the journal.

pub mod bitmap;
pub mod disk;
pub mod hot_log;
mod identity;
pub mod io;
pub mod lock;
mod sealed;
pub mod superblock;
#[cfg(test)]
mod test_disk;
pub mod volume;
