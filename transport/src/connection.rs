//! A connection to a pinned peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use crate::fingerprint::Fingerprint;
use crate::lane::InCrowd;
use crate::text::shown;

/// Why a connection was closed, as a number the peer understands. Below 256 the transport's own, from 256 the
/// application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u32);

impl CloseCode {
    /// Closed in good order.
    pub const DONE: Self = Self(0);
    /// The other side's key is not pinned here.
    pub const NOT_PINNED: Self = Self(1);
    /// There is no open pairing offer for the other side.
    pub const NO_OFFER: Self = Self(2);
    /// The other side broke the protocol of the transport.
    pub const BAD_MESSAGE: Self = Self(3);
    /// Too many connections.
    pub const BUSY: Self = Self(4);
    /// The proof of the pairing secret is wrong.
    pub const WRONG_PROOF: Self = Self(5);
    /// Pairing was given up for a reason of the closing host's own.
    pub const PAIRING_FAILED: Self = Self(6);
    /// The first number that is the application's.
    pub const FIRST_APPLICATION: Self = Self(256);
}

/// Why a connection is no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionLost {
    /// The peer closed it.
    #[error("closed by the peer (code {}): {text}", code.0)]
    ClosedByPeer {
        /// The peer's reason; [`CloseCode`] of `u32::MAX` if it sent a larger number.
        code: CloseCode,
        /// The peer's words, made safe to show.
        text: String,
    },
    /// This side closed it.
    #[error("closed by this host")]
    ClosedHere,
    /// The peer was not heard for the idle timeout.
    #[error("the peer was not heard any more")]
    TimedOut,
    /// The peer knows nothing of this connection: it was restarted.
    #[error("the peer has forgotten the connection, it was probably restarted")]
    Reset,
    /// One side broke QUIC or TLS.
    #[error("protocol failure: {0}")]
    Protocol(String),
}

/// The longest text of a peer that is shown, in bytes.
const MAX_SHOWN_BYTES: usize = 256;

/// TLS alerts about a certificate, from `bad_certificate` to `access_denied` and `certificate_required` (RFC 8446
/// section 6.2), as QUIC error codes (RFC 9001 section 4.8): what a host gets whose key was refused during the
/// handshake.
const CERTIFICATE_ALERTS: [std::ops::RangeInclusive<u64>; 2] = [0x12a..=0x131, 0x174..=0x174];

impl From<quinn::ConnectionError> for ConnectionLost {
    fn from(error: quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as Quinn;
        match error {
            Quinn::ApplicationClosed(close) => Self::ClosedByPeer {
                code: CloseCode(u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX)),
                text: shown(&close.reason, MAX_SHOWN_BYTES),
            },
            Quinn::ConnectionClosed(close)
                if CERTIFICATE_ALERTS.iter().any(|alerts| alerts.contains(&u64::from(close.error_code))) =>
            {
                let text = "no trust in this host's certificate".to_owned();
                Self::ClosedByPeer { code: CloseCode::NOT_PINNED, text }
            }
            Quinn::LocallyClosed => Self::ClosedHere,
            Quinn::TimedOut => Self::TimedOut,
            Quinn::Reset => Self::Reset,
            Quinn::VersionMismatch
            | Quinn::TransportError(_)
            | Quinn::ConnectionClosed(_)
            | Quinn::CidsExhausted => Self::Protocol(shown(error.to_string().as_bytes(), MAX_SHOWN_BYTES)),
        }
    }
}

/// What went over a connection so far. Bytes are UDP payload, with headers and retransmissions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets sent that were found lost.
    pub lost_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// The congestion window now, in bytes.
    pub congestion_window_bytes: u64,
    /// The largest UDP payload the path is known to carry, in bytes.
    pub mtu_bytes: u16,
}

/// An open connection whose peer has proved that it holds the pinned key. Cheap to clone; it is closed
/// when the last clone and the last of its streams are dropped.
#[derive(Debug, Clone)]
pub struct Connection {
    quic: quinn::Connection,
    peer: Fingerprint,
    /// What it takes of the endpoint; free again with the last clone.
    places: Arc<Places>,
}

/// What a connection takes of its endpoint.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Among the connections that are allowed.
    pub(crate) _allowed: Option<OwnedSemaphorePermit>,
    /// The thread it is on, if that is one of the endpoint's, and who else is.
    pub(crate) lane: Option<(Handle, InCrowd)>,
}

impl Connection {
    pub(crate) fn new(quic: quinn::Connection, peer: Fingerprint, places: Places) -> Self {
        Self { quic, peer, places: Arc::new(places) }
    }

    /// The runtime of the thread that drives it, where its tasks belong; `None` if that is none of the endpoint's own.
    pub fn runtime(&self) -> Option<&Handle> {
        self.places.lane.as_ref().map(|(runtime, _)| runtime)
    }

    /// Whether a task of it that waits holds up no other connection.
    pub fn is_alone(&self) -> bool {
        self.places.lane.as_ref().is_some_and(|(_, crowd)| crowd.is_alone())
    }

    /// Opens a stream in both directions; waits while the peer allows no more. The peer learns of it with the first
    /// byte written.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionLost> {
        Ok(self.quic.open_bi().await?)
    }

    /// Opens a stream to the peer; waits while the peer allows no more. The peer learns of it with the first byte.
    pub async fn open_uni(&self) -> Result<SendStream, ConnectionLost> {
        Ok(self.quic.open_uni().await?)
    }

    /// The next stream in both directions that the peer opened. Cancel safe.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionLost> {
        Ok(self.quic.accept_bi().await?)
    }

    /// The next stream from the peer. Cancel safe.
    pub async fn accept_uni(&self) -> Result<RecvStream, ConnectionLost> {
        Ok(self.quic.accept_uni().await?)
    }

    /// Closes at once; what has not arrived is lost. The peer sees code and text, as much of it as fits a packet.
    pub fn close(&self, code: CloseCode, text: &str) {
        self.quic.close(code.0.into(), text.as_bytes());
    }

    /// Waits until the connection is closed, by whomever.
    pub async fn closed(&self) -> ConnectionLost {
        self.quic.closed().await.into()
    }

    /// Why the connection is closed, or `None` while it is open.
    pub fn close_reason(&self) -> Option<ConnectionLost> {
        self.quic.close_reason().map(ConnectionLost::from)
    }

    /// The best estimate of the round trip time.
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// What went over it so far.
    pub fn stats(&self) -> ConnectionStats {
        let stats = self.quic.stats();
        ConnectionStats {
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            lost_packets: stats.path.lost_packets,
            sent_packets: stats.path.sent_packets,
            congestion_window_bytes: stats.path.cwnd,
            mtu_bytes: stats.path.current_mtu,
        }
    }

    /// The peer's key: the one that was pinned when the connection was made.
    pub fn peer_fingerprint(&self) -> Fingerprint {
        self.peer
    }

    /// Where the peer is now; it may move.
    pub fn remote_address(&self) -> SocketAddr {
        let address = self.quic.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }
}
