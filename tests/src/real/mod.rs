//! Real processes on this machine: starting and killing them.
//!
//! [`process`], [`program`], [`scratch`] and [`ports`] are what any test of a program needs.

pub mod ports;
pub mod process;
pub mod program;
pub mod scratch;

pub use process::{Process, run};
pub use program::{find_program, product_program};
pub use scratch::Scratch;
