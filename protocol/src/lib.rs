//! The pure core of Afterimage: ids and positions, frames and messages, and the state machines of source and target.
//!
//! Nothing here reads a clock, a file, a socket or a random number: time and randomness are arguments, durability is
//! an event. The shells (agent, receiver, simulator) take an input, call a machine and perform its outputs.
//! `clippy.toml` beside this crate's manifest lists what that forbids.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod bitmap;
pub mod block_set;
pub mod chunk;
pub mod codec;
pub mod effort;
pub mod frame;
pub mod ids;
pub mod intervals;
pub mod latency;
pub mod lineage;
pub mod message;
pub mod pace;
pub mod rules;
pub mod shrink;
pub mod source;
pub mod state;
pub mod target;

pub use ids::*;
