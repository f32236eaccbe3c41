//! The deterministic simulator: one seed decides everything, so that a failure is replayed by its seed.
//!
//! [`rng`] is where chance comes from, [`disk`] is the disk of one host, [`world`] the pair, and [`cases`] tells how each
//! rule, switched off, is caught.

pub mod cases;
pub mod disk;
pub mod rng;
pub mod world;

pub use disk::{Failure, On, SimDisk, Snapshot, Times};
pub use rng::Rng;
