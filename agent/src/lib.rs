//! The agent: serves the volumes of the groups whose primary is this host over NBD, and keeps their standby up to date.
//!
//! A thin shell around [`afterimage_protocol::source::Source`], which makes every decision. A write enters in `export`,
//! is given to the source in `group`, is written to the volume in `perform`, and leaves for the peer in `link`.
//!
//! | module | noun |
//! |---|---|
//! | `arguments` | what can be typed |
//! | `node` | the agent of a host: identity, groups, runtimes; [`run`] |
//! | `supervisor` | the life of one group: looked for, served, given up |
//! | `open` | a group's state and volumes on this host |
//! | `group` | a group that is served: the source and its lock |
//! | `perform` | what the source wants done on disks |
//! | `locals` | local writes on their way to the volume |
//! | `volume`, `waiters` | a local volume; clients' requests that wait |
//! | `export`, `serve` | a volume as NBD clients see it; the NBD servers of a group |
//! | `link` | the session with the peer |
//! | `lanes` | the threads that clients and the link live on |
//! | `admin`, `status`, `verify`, `divergence`, `resize` | what the operator asks and is told |
//! | `numbers` | what the metrics count beside the status |
//! | `admitted` | when writes were admitted, to tell how far behind the standby's base is |
//! | `watcher`, `alarm` | what is seen of a group from time to time, and what of that the hooks are told |
//! | `rest` | memory of a group that has come to rest |

mod admin;
mod admitted;
mod alarm;
mod arguments;
mod clock;
mod divergence;
mod export;
mod group;
mod lanes;
mod link;
mod locals;
mod node;
mod numbers;
mod open;
mod perform;
mod random;
mod reinstate;
mod resize;
mod rest;
mod serve;
mod status;
mod supervisor;
mod verify;
mod volume;
mod waiters;
mod watcher;

pub use arguments::Arguments;
pub use node::{Options, run, run_with};
