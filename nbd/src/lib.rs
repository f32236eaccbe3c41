//! The NBD server: fixed newstyle, on unix sockets and TCP, for any backend that implements [`Export`].
//!
//! A client's way through the crate: [`Server`] accepts it on a [`UnixEndpoint`] or [`TcpEndpoint`];
//! `connection` leads it through `handshake` (which asks the pure `negotiation` what to answer) into
//! `transmission`, one task that reads requests (`inbound`), has them checked (`command`), carries them out
//! (`execute`, which calls the [`Export`]) and sends the replies (`outbound`). [`wire`] knows the bytes, `geometry`
//! and `contexts` what there is to agree on, [`Limits`] every bound that an operator can set.
//!
//! Not here: encryption (clients on other hosts come through a tunnel), the extended 64-bit headers, and any
//! notion of order between requests in flight, which is the backend's.

mod command;
mod connection;
mod contexts;
mod execute;
mod export;
mod geometry;
mod handshake;
mod inbound;
mod limits;
mod listener;
mod negotiation;
mod outbound;
mod server;
mod transmission;
pub mod wire;

pub use export::{Context, Errno, Export, ExportInfo, Extent, ZeroFlags};
pub use limits::Limits;
pub use listener::{BindError, TcpEndpoint, UnixEndpoint};
pub use server::Server;
