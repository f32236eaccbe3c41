//! A wide-area link on one machine: two network namespaces, and between them a line with delay, loss and
//! a rate, that can be cut and healed while traffic flows.
//!
//! [`Wan::up`] makes the namespaces and starts forwarding; dropping the [`Wan`] removes everything. The
//! decisions about a packet (when does it leave, is it lost) are made by [`Line`], which knows no clock, no
//! socket and no randomness but its seed. The rest is a shell around it: `netns` makes namespaces and TUN
//! devices, `pump` moves packets, `control` reads the commands a person or a script types.
//!
//! Root, `ip` from iproute2 and `/dev/net/tun` are needed. Nothing leaves the two namespaces: they have no
//! route but the one to each other.

mod control;
mod line;
mod netns;
mod profile;
mod pump;
mod wan;

pub use control::{Command, CommandError};
pub use line::{Counters, Line};
pub use profile::{Direction, Profile, ProfileError};
pub use wan::{Wan, WanConfig, WanError};
