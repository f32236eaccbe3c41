//! The receiver: keeps the standby's copy of each group whose standby this host is.
//!
//! A thin shell around [`afterimage_protocol::target::Target`]. Sessions (`session`, `streams`) read frames and messages
//! off the network and hand them to their group (`group`), which calls the state machine under one lock and performs what it
//! asks for. `admin` answers the operator. What is decided is decided in the state machine.
//!
//! | module | noun |
//! |---|---|
//! | `arguments` | what can be typed |
//! | `node` | this host: its groups, its UDP port, its administration socket |
//! | `session` | one connection of a source: the control stream |
//! | `streams` | its frames |
//! | `decoder` | out of chunks, too |
//! | `link` | a session as the group's thread sees it |
//! | `group` | a group: inputs, state machine, files, its thread and the helper threads |
//! | `admin`, `status` | what the operator asks for and sees |
//! | `numbers` | what the metrics count beside the status |
//! | `hooks` | what the operator's programs are told around a promotion |

mod admin;
mod arguments;
mod clock;
mod decoder;
mod group;
mod hooks;
mod link;
mod node;
mod numbers;
mod session;
mod status;
mod streams;

pub use arguments::Arguments;
pub use node::{run, run_with};
