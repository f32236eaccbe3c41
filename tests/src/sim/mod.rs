//! The deterministic simulator: one seed decides everything, so that a failure is replayed by its seed.
//!
//! [`rng`] is where chance comes from.

pub mod rng;

pub use rng::Rng;
