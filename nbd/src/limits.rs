//! The bounds that a server keeps to whatever its clients do.

use std::time::Duration;

/// Bounds of a [`Server`](crate::Server). Memory that clients can make it hold is at most about
/// `max_connections` × (`max_in_flight_bytes` + one `max_block` + 512 KiB).
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at one time on all listeners of the server, those in their handshake included. One more is
    /// closed at once. Default 64: a kernel client or a parallel copy uses 4 to 16.
    pub max_connections: usize,
    /// Requests of one connection between their arrival and the last byte of their reply. At the limit the
    /// connection is not read. Default 256: twice the queue of the kernel's client.
    pub max_in_flight_requests: usize,
    /// Bytes of payload, of read data and of block status of those requests together. A single request is
    /// admitted whatever its size. Default 64 MiB: two requests of the largest default block, or the
    /// bandwidth-delay product of 10 Gbit/s and 50 ms.
    pub max_in_flight_bytes: usize,
    /// From the connection to the end of the handshake. Default 10 s: clients on a bad link need a few round
    /// trips.
    pub handshake_timeout: Duration,
    /// How long requests in flight may take after a shutdown was asked for, and how long a client that has
    /// finished may take to read its last replies. Default 30 s: the time a disk may take for one request before
    /// the kernel gives up on it.
    pub drain_timeout: Duration,
    /// A write that is longer than the export's `max_block` gets its payload read and dropped and then an error,
    /// if it is no longer than this; else the connection is closed. Default 256 MiB: eight times the largest
    /// default block; who sends more does not speak this protocol.
    pub max_discard_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 64,
            max_in_flight_requests: 256,
            max_in_flight_bytes: 64 << 20,
            handshake_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            max_discard_bytes: 256 << 20,
        }
    }
}
