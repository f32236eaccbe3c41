//! The joiner's side of the exchange: in the operator's `pair TOKEN`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};

use super::proof::Session;
use super::token::Token;
use super::{Claim, EXCHANGE_TIMEOUT, Grant, MESSAGE_CAP_BYTES, PAIRED, PINNED, Paired};
use crate::connection::{CloseCode, ConnectionLost};
use crate::dial::{ConnectError, Dial};
use crate::endpoint::{endpoint_config, open_on, open_socket};
use crate::identity::Identity;
use crate::message::{MessageError, read_message, write_message};
use crate::node_name::NodeName;
use crate::options::EndpointOptions;
use crate::pins::{PinError, PinStore, PinnedPeer};
use crate::tls::ALPN_PAIRING;

/// Kept up at most, after the end, to answer what still arrives.
const LINGER: Duration = Duration::from_secs(1);

/// The host that was given a token.
#[derive(Debug, Clone, Copy)]
pub struct Joiner<'a> {
    /// Its identity.
    pub identity: &'a Identity,
    /// Where its pins are.
    pub state_dir: &'a Path,
    /// Its name.
    pub node_name: &'a NodeName,
    /// Where it listens, `host:port`, for the issuer to know.
    pub listens_at: Option<&'a str>,
    /// What time it is, in seconds since 1970.
    pub now_unix: u64,
}

/// A pairing that did not come about, or may not have, on the joiner's side. Nothing was pinned here, except with
/// [`JoinError::Unconfirmed`].
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token was made on this very host.
    #[error("this token was made on this host: use it on the other one")]
    OwnToken,
    /// Nobody said where the issuer is.
    #[error("the token does not say where the other host is: give its address, host:port")]
    NoAddress,
    /// The address cannot be used.
    #[error("cannot find {address:?}; expected host:port")]
    Resolve {
        /// The address as given.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// This host's own address cannot be told to the issuer.
    #[error("not an address: {0:?}; expected host:port")]
    OwnAddress(String),
    /// No UDP socket could be had.
    #[error("cannot open a UDP socket")]
    Socket(#[source] io::Error),
    /// No connection to the issuer.
    #[error(transparent)]
    Connect(ConnectError),
    /// The issuer has no open offer for this host.
    #[error("the other host has no open offer for this token: it was used, has expired{}, or was replaced by a newer \
             one; make a new one with `afterimage pair --new`", expired_by_clock(*expired))]
    NoOffer {
        /// Whether the token has expired by this host's clock.
        expired: bool,
    },
    /// The issuer says that the secret is wrong.
    #[error("the other host refuses the token's secret: it was made for another offer")]
    WrongProof,
    /// Who answers holds the right key but does not know the secret.
    #[error("the other host does not know the token's secret: nothing was pinned")]
    IssuerUnproved,
    /// Both hosts have the same name.
    #[error("both hosts are named {0}: give them different names")]
    SameName(NodeName),
    /// The other side broke the protocol.
    #[error("bad pairing message: {0}")]
    BadMessage(String),
    /// The connection failed.
    #[error("the pairing connection broke off")]
    Lost(#[source] ConnectionLost),
    /// The issuer was too slow.
    #[error("the pairing was not finished within {} s", EXCHANGE_TIMEOUT.as_secs())]
    TimedOut,
    /// The work on the pin file was lost.
    #[error("cannot pin the other host")]
    Task(#[source] tokio::task::JoinError),
    /// The issuer could not be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The issuer is pinned here, but did not say that it has pinned this host.
    #[error(
        "{} is pinned here, but did not confirm that it has pinned this host: run the same command again; \
         if the token is refused as used, both hosts are paired", peer.name
    )]
    Unconfirmed {
        /// The issuer as it is pinned.
        peer: Box<PinnedPeer>,
        /// Why the word did not come.
        source: Box<JoinError>,
    },
}

fn expired_by_clock(expired: bool) -> &'static str {
    if expired { " (it has, by this host's clock)" } else { "" }
}

impl Joiner<'_> {
    /// Pairs with the issuer of `token`, found at `address` or where the token says; returns once both hosts have
    /// pinned each other on stable storage.
    pub async fn join(self, token: &Token, address: Option<&str>) -> Result<Paired, JoinError> {
        if token.issuer == self.identity.fingerprint() {
            return Err(JoinError::OwnToken);
        }
        if let Some(bad) = self.listens_at.filter(|text| !super::is_address(text)) {
            return Err(JoinError::OwnAddress(bad.to_owned()));
        }
        let address = address.or(token.address()).ok_or(JoinError::NoAddress)?;
        let (endpoint, connection) = self.connect(token, address).await?;
        let outcome = self.exchange(&connection, token, address).await;
        let (code, text): (_, &[u8]) = match &outcome {
            Ok(_) => (CloseCode::DONE, b""),
            Err(_) => (CloseCode::PAIRING_FAILED, b"the joining host gave up"),
        };
        connection.close(code.0.into(), text);
        // The last packet goes out at once; how long a closed connection lingers depends on the round trip.
        let _ = tokio::time::timeout(LINGER, endpoint.wait_idle()).await;
        outcome.map_err(|error| self.explained(error, token))
    }

    /// Tries the addresses of the name in turn, as long as nobody answers.
    async fn connect(
        &self,
        token: &Token,
        address: &str,
    ) -> Result<(quinn::Endpoint, quinn::Connection), JoinError> {
        let options = EndpointOptions::default();
        let unresolved = |source| JoinError::Resolve { address: address.to_owned(), source };
        let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(unresolved)?.collect();
        let mut failed = unresolved(io::ErrorKind::NotFound.into());
        for address in found {
            let any: SocketAddr = match address {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = open_socket(any, options.socket_buffer_bytes, false).map_err(JoinError::Socket)?;
            let endpoint = open_on(socket, endpoint_config(), None).map_err(JoinError::Socket)?;
            let dial = Dial {
                identity: self.identity,
                options: &options,
                protocol: ALPN_PAIRING,
                address,
                expected: token.issuer,
            };
            match dial.connect(&endpoint, |_| async { Ok(()) }).await {
                Ok(connection) => return Ok((endpoint, connection)),
                Err(error @ (ConnectError::NoAnswer { .. } | ConnectError::Local { .. })) => {
                    failed = JoinError::Connect(error);
                }
                Err(error) => return Err(self.explained(JoinError::Connect(error), token)),
            }
        }
        Err(failed)
    }

    async fn exchange(
        &self,
        connection: &quinn::Connection,
        token: &Token,
        address: &str,
    ) -> Result<Paired, JoinError> {
        let (peer, mut streams) = in_time(self.prove(connection, token, address)).await?;
        let (store, pinned) = (PinStore::new(self.state_dir), peer.clone());
        // Not under a time limit: what is half done must not be reported as not done.
        let replaced =
            tokio::task::spawn_blocking(move || store.pin(pinned)).await.map_err(JoinError::Task)??;
        match in_time(streams.confirm()).await {
            Ok(()) => Ok(Paired { peer, replaced }),
            Err(source) => Err(JoinError::Unconfirmed { peer: Box::new(peer), source: Box::new(source) }),
        }
    }

    /// Proves the secret to the issuer and has it proved; the peer is the issuer as it may now be pinned.
    async fn prove(
        &self,
        connection: &quinn::Connection,
        token: &Token,
        address: &str,
    ) -> Result<(PinnedPeer, Streams), JoinError> {
        let session = Session::of(connection, token.issuer, self.identity.fingerprint())
            .ok_or_else(|| JoinError::BadMessage("the TLS session exports no keying material".to_owned()))?;
        let (send, receive) = connection.open_bi().await.map_err(lost)?;
        let mut streams = Streams { send, receive };
        let claim = Claim {
            name: self.node_name.clone(),
            address: self.listens_at.map(str::to_owned),
            proof: session.joiner_proof(&token.secret, self.node_name, self.listens_at),
        };
        let claim = serde_json::to_vec(&claim).map_err(|error| JoinError::BadMessage(error.to_string()))?;
        streams.write(&claim).await?;
        let grant: Grant = serde_json::from_slice(&streams.read().await?)
            .map_err(|error| JoinError::BadMessage(error.to_string()))?;
        if !session.is_issuer_proof(&token.secret, &grant.name, self.node_name, &grant.proof) {
            return Err(JoinError::IssuerUnproved);
        }
        if grant.name == *self.node_name {
            return Err(JoinError::SameName(grant.name));
        }
        let peer = PinnedPeer {
            name: grant.name,
            fingerprint: token.issuer,
            address: super::is_address(address).then(|| address.to_owned()),
            paired_at_unix: self.now_unix,
        };
        Ok((peer, streams))
    }

    /// The words for the operator, where the transport only knows a code.
    fn explained(&self, error: JoinError, token: &Token) -> JoinError {
        let no_offer = JoinError::NoOffer { expired: token.expires_at_unix <= self.now_unix };
        match error {
            JoinError::Connect(ConnectError::Refused { .. }) => no_offer,
            JoinError::Lost(ConnectionLost::ClosedByPeer {
                code: CloseCode::NO_OFFER | CloseCode::NOT_PINNED,
                ..
            }) => no_offer,
            JoinError::Lost(ConnectionLost::ClosedByPeer { code: CloseCode::WRONG_PROOF, .. }) => {
                JoinError::WrongProof
            }
            other => other,
        }
    }
}

impl From<MessageError> for JoinError {
    fn from(error: MessageError) -> Self {
        use quinn::{ReadError, WriteError};
        match error {
            MessageError::Read(ReadError::ConnectionLost(error))
            | MessageError::Write(WriteError::ConnectionLost(error)) => lost(error),
            other => Self::BadMessage(other.to_string()),
        }
    }
}

fn lost(error: quinn::ConnectionError) -> JoinError {
    JoinError::Lost(error.into())
}

async fn in_time<T>(work: impl Future<Output = Result<T, JoinError>>) -> Result<T, JoinError> {
    tokio::time::timeout(EXCHANGE_TIMEOUT, work).await.unwrap_or(Err(JoinError::TimedOut))
}

/// The one stream of a pairing connection.
struct Streams {
    send: SendStream,
    receive: RecvStream,
}

impl Streams {
    async fn confirm(&mut self) -> Result<(), JoinError> {
        self.write(PINNED).await?;
        match self.read().await? {
            word if word == PAIRED => Ok(()),
            _ => Err(JoinError::BadMessage("no word that the issuer has pinned this host".to_owned())),
        }
    }

    async fn write(&mut self, message: &[u8]) -> Result<(), JoinError> {
        Ok(write_message(&mut self.send, message, MESSAGE_CAP_BYTES).await?)
    }

    async fn read(&mut self) -> Result<Bytes, JoinError> {
        let message = read_message(&mut self.receive, MESSAGE_CAP_BYTES).await?;
        message.ok_or_else(|| JoinError::BadMessage("no message".to_owned()))
    }
}
