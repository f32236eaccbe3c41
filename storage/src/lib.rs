//! What touches disks: volumes, the mapped bitmap, the hot-extent log, the superblock, the journal, and a group's files
//! put together from them.

pub mod apply;
pub mod bitmap;
pub mod disk;
mod gather;
pub mod group;
pub mod hot_log;
mod identity;
pub mod io;
pub mod journal;
pub mod lock;
pub mod ring;
pub mod salvage;
pub mod scatter;
mod sealed;
pub mod superblock;
#[cfg(test)]
mod test_disk;
pub mod verify;
pub mod volume;
