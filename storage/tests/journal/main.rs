//! The journal and the applier over a disk that loses, tears and reorders what was not synced, fails where it is told
//! to, and flips bits.

mod apply;
mod basics;
mod crash;
mod damage;
mod disk;
mod faults;
mod frames;
mod golden;
mod verify;
