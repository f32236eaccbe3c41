//! Real processes on this machine: starting and killing them, a pair of hosts, and an oracle for their images.
//!
//! [`process`], [`program`], [`scratch`] and [`ports`] are what any test of a program needs. [`pair`] runs the two
//! hosts of a group, and [`manager`] is their service manager; a [`container`] is a host that boots with a real
//! one, and a [`wire`] joins two of them. [`writer`] writes through the NBD export by way of [`nbd`] and keeps the [`history`];
//! [`oracle`] says whether an image is one that the history allows, and [`image`] handles whole images.
//! [`walkthrough`] types a page of the documentation on two hosts.

pub mod container;
pub mod filesystem;
pub mod history;
pub mod image;
pub mod kill;
pub mod manager;
pub mod nbd;
pub mod oracle;
pub mod pair;
pub mod ports;
pub mod process;
pub mod program;
pub mod scratch;
pub mod stamp;
pub mod walkthrough;
pub mod wire;
pub mod writer;

pub use container::{Beneath, Container, Loop};
pub use filesystem::Attached;
pub use history::{History, Write};
pub use image::{ensure_same, filler, read_image};
pub use kill::{Summary, kill_rounds};
pub use manager::Notified;
pub use oracle::{Blocks, Prefix, check_prefix};
pub use pair::{Host, Pair, PairOptions, Side};
pub use process::{Finished, Process, run};
pub use program::{find_program, product_program};
pub use scratch::Scratch;
pub use wire::Wire;
pub use writer::{Writer, WriterOptions};
