//! What touches disks: volumes, the mapped bitmap, the hot-extent log, the superblock and the journal.

pub mod apply;
pub mod io;
pub mod journal;
