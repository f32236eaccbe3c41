//! Real processes on this machine: starting and killing them, and an oracle for the images that they leave.
//!
//! [`process`], [`program`], [`scratch`] and [`ports`] are what any test of a program needs. [`writer`] writes
//! through the NBD export by way of [`nbd`] and keeps the [`history`]; [`oracle`] says whether an image is one that
//! the history allows.

pub mod history;
pub mod nbd;
pub mod oracle;
pub mod ports;
pub mod process;
pub mod program;
pub mod scratch;
pub mod stamp;
pub mod writer;

pub use history::{History, Write};
pub use oracle::{Blocks, Prefix, check_prefix};
pub use process::{Process, run};
pub use program::{find_program, product_program};
pub use scratch::Scratch;
pub use writer::{Writer, WriterOptions};
