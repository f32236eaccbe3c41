//! Opening a connection to a host whose key is known.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;

use crate::connection::{CloseCode, ConnectionLost};
use crate::fingerprint::Fingerprint;
use crate::identity::Identity;
use crate::options::EndpointOptions;
use crate::tls::{self, Seen, Watch};

/// A connection that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Somebody else's key is there.
    #[error(
        "the host at {address} has the key {seen}, expected {expected}: if its identity was replaced on purpose, \
         pair the hosts again"
    )]
    WrongKey {
        /// Where.
        address: SocketAddr,
        /// The key that was expected.
        expected: Fingerprint,
        /// The key that was shown.
        seen: Fingerprint,
    },
    /// The peer does not let this host in.
    #[error("the host at {address} refuses this host's key {own} ({text}): pair the hosts again")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// This host's key.
        own: Fingerprint,
        /// What the other side says, made safe to show.
        text: String,
    },
    /// The peer speaks another version of the protocol.
    #[error("the host at {address} does not speak {protocol}: use the same release on both hosts")]
    NoCommonProtocol {
        /// Where.
        address: SocketAddr,
        /// What this host speaks.
        protocol: String,
    },
    /// The peer has too many connections.
    #[error("the host at {address} takes no more connections now")]
    Busy {
        /// Where.
        address: SocketAddr,
    },
    /// Nobody answered in time.
    #[error("no answer from {address} within {} ms", timeout.as_millis())]
    NoAnswer {
        /// Where.
        address: SocketAddr,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// It broke off otherwise.
    #[error("cannot connect to {address}")]
    Lost {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: ConnectionLost,
    },
    /// This host could not even try.
    #[error("cannot connect to {address} from here")]
    Local {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: quinn::ConnectError,
    },
}

/// One attempt: whom, where, and for what.
#[derive(Clone, Copy)]
pub(crate) struct Dial<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) options: &'a EndpointOptions,
    pub(crate) protocol: &'static [u8],
    pub(crate) address: SocketAddr,
    pub(crate) expected: Fingerprint,
}

/// The TLS alert `no_application_protocol` (RFC 7301) as a QUIC error code (RFC 9001 section 4.8).
const NO_APPLICATION_PROTOCOL: u64 = 0x100 | 120;
/// QUIC's own CONNECTION_REFUSED (RFC 9000 section 20.1).
const CONNECTION_REFUSED: u64 = 0x02;

impl Dial<'_> {
    /// Connects and hands over to `welcomed`, which waits for the word that this host was let in: TLS tells a client
    /// nothing of that. Both together have the handshake timeout.
    pub(crate) async fn connect<F: Future<Output = Result<(), Unwelcome>>>(
        self,
        endpoint: &quinn::Endpoint,
        welcomed: impl FnOnce(quinn::Connection) -> F,
    ) -> Result<quinn::Connection, ConnectError> {
        let timeout = self.options.handshake_timeout;
        let watch = Arc::new(Watch::default());
        let crypto = tls::client_config(&self.identity.certified_key(), self.protocol, self.expected, &watch);
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(self.options.client_transport()));
        let attempt = async {
            let connecting = endpoint
                .connect_with(config, self.address, tls::SERVER_NAME)
                .map_err(|source| ConnectError::Local { address: self.address, source })?;
            let connection = connecting.await.map_err(|error| self.failed(error, &watch.seen()))?;
            let agreed = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
            if agreed.and_then(|data| data.protocol).as_deref() != Some(self.protocol) {
                return Err(self.no_common_protocol());
            }
            match welcomed(connection.clone()).await {
                Ok(()) => Ok(connection),
                Err(Unwelcome::Lost(error)) => Err(self.failed(error, &watch.seen())),
                Err(Unwelcome::Garbled) => {
                    connection.close(CloseCode::BAD_MESSAGE.0.into(), b"bad welcome");
                    let source = ConnectionLost::Protocol("the first words of the peer are wrong".to_owned());
                    Err(ConnectError::Lost { address: self.address, source })
                }
            }
        };
        let late = ConnectError::NoAnswer { address: self.address, timeout };
        tokio::time::timeout(timeout, attempt).await.unwrap_or(Err(late))
    }

    fn failed(&self, error: quinn::ConnectionError, seen: &Seen) -> ConnectError {
        use quinn::ConnectionError as Quinn;
        let address = self.address;
        if let (Some(seen), Quinn::TransportError(_)) = (seen.key, &error)
            && seen != self.expected
        {
            return ConnectError::WrongKey { address, expected: self.expected, seen };
        }
        let timeout = self.options.handshake_timeout;
        match &error {
            Quinn::VersionMismatch => return self.no_common_protocol(),
            Quinn::TimedOut => return ConnectError::NoAnswer { address, timeout },
            Quinn::ConnectionClosed(close) => match u64::from(close.error_code) {
                NO_APPLICATION_PROTOCOL => return self.no_common_protocol(),
                CONNECTION_REFUSED => return ConnectError::Busy { address },
                _ => {}
            },
            _ => {}
        }
        match ConnectionLost::from(error) {
            ConnectionLost::ClosedByPeer { code: CloseCode::NOT_PINNED | CloseCode::NO_OFFER, text } => {
                ConnectError::Refused { address, own: self.identity.fingerprint(), text }
            }
            ConnectionLost::ClosedByPeer { code: CloseCode::BUSY, .. } => ConnectError::Busy { address },
            source => ConnectError::Lost { address, source },
        }
    }

    fn no_common_protocol(&self) -> ConnectError {
        let protocol = String::from_utf8_lossy(self.protocol).into_owned();
        ConnectError::NoCommonProtocol { address: self.address, protocol }
    }
}

/// Why the word that this host was let in did not come.
pub(crate) enum Unwelcome {
    Lost(quinn::ConnectionError),
    Garbled,
}
