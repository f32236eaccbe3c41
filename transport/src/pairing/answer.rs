//! The issuer's side of the exchange: in the daemon that owns the UDP port.

use std::net::SocketAddr;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;

use super::offer::{Claim as Outcome, OfferStore};
use super::proof::Session;
use super::token::Secret;
use super::{Claim, EXCHANGE_TIMEOUT, Grant, MESSAGE_CAP_BYTES, PAIRED, PINNED, Paired};
use crate::connection::{CloseCode, ConnectionLost};
use crate::fingerprint::Fingerprint;
use crate::message::{MessageError, read_message, write_message};
use crate::node_name::NodeName;
use crate::options::UnixClock;
use crate::pins::{PinError, PinStore, PinnedPeer};
use crate::state_file::StateFileError;

/// A connection from somebody who wants to pair while an offer is open. It can do nothing but that.
#[derive(Debug)]
pub struct PairingConnection {
    quic: quinn::Connection,
    issuer: Fingerprint,
    joiner: Fingerprint,
    offers: OfferStore,
    clock: UnixClock,
    _place: OwnedSemaphorePermit,
}

/// A pairing that did not come about on the issuer's side. Nothing was pinned.
#[derive(Debug, thiserror::Error)]
pub enum PairingError {
    /// The proof is wrong.
    #[error("the host with the key {joiner} does not know the token's secret")]
    WrongProof {
        /// Who tried.
        joiner: Fingerprint,
    },
    /// The offer is not open any more: used, expired, void or replaced.
    #[error("there is no open offer any more for the host with the key {joiner}")]
    NoOffer {
        /// Who tried.
        joiner: Fingerprint,
    },
    /// Both hosts have the same name.
    #[error("both hosts are named {0}: give them different names")]
    SameName(NodeName),
    /// The other side broke the protocol.
    #[error("bad pairing message: {0}")]
    BadMessage(String),
    /// The connection failed.
    #[error("the pairing connection broke off")]
    Lost(#[source] ConnectionLost),
    /// The other side was too slow.
    #[error("the pairing was not finished within {} s", EXCHANGE_TIMEOUT.as_secs())]
    TimedOut,
    /// The offer could not be read or written.
    #[error(transparent)]
    Offer(#[from] StateFileError),
    /// The peer could not be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// This host failed otherwise.
    #[error("cannot pair: {0}")]
    Local(&'static str),
}

impl PairingConnection {
    pub(crate) fn new(
        quic: quinn::Connection,
        issuer: Fingerprint,
        joiner: Fingerprint,
        offers: OfferStore,
        clock: UnixClock,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { quic, issuer, joiner, offers, clock, _place: place }
    }

    /// The key at the other end. Not trusted yet.
    pub fn joiner(&self) -> Fingerprint {
        self.joiner
    }

    /// Where the other end is.
    pub fn remote_address(&self) -> SocketAddr {
        let address = self.quic.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// Pairs with the joiner if it proves the secret of the open offer; returns once its pin is on stable storage and
    /// the offer is used up. A wrong proof is counted, on stable storage.
    pub async fn answer(self, node_name: &NodeName) -> Result<Paired, PairingError> {
        let outcome = self.exchange(node_name).await;
        if let Err(error) = &outcome {
            let (code, text) = error.close();
            self.quic.close(code.0.into(), text);
        }
        outcome
    }

    async fn exchange(&self, node_name: &NodeName) -> Result<Paired, PairingError> {
        let proved = tokio::time::timeout(EXCHANGE_TIMEOUT, self.prove(node_name)).await;
        let (peer, secret, send) = proved.unwrap_or(Err(PairingError::TimedOut))?;

        let (offers, pinned) = (self.offers.clone(), peer.clone());
        // Not under the time limit: what is half done must not be reported as not done.
        let replaced = on_disk(move || {
            if !offers.is_claimed(pinned.fingerprint, &secret)? {
                return Err(PairingError::NoOffer { joiner: pinned.fingerprint });
            }
            // Pinned first: if the power goes in between, the joiner can still come again with its token.
            let replaced = PinStore::new(offers.dir()).pin(pinned)?;
            offers.consume(&secret)?;
            Ok(replaced)
        });
        let replaced = replaced.await??;
        tell_paired(send).await;
        Ok(Paired { peer, replaced })
    }

    /// Has the secret proved, proves it, and waits until the joiner has pinned this host. The peer is the joiner as it
    /// may now be pinned.
    async fn prove(&self, node_name: &NodeName) -> Result<(PinnedPeer, Secret, SendStream), PairingError> {
        let joiner = self.joiner;
        let session = Session::of(&self.quic, self.issuer, joiner)
            .ok_or(PairingError::Local("the TLS session exports no keying material"))?;
        let (mut send, mut receive) = self.quic.accept_bi().await.map_err(lost)?;

        let claim = expect_message(&mut receive).await?;
        let claim: Claim =
            serde_json::from_slice(&claim).map_err(|error| PairingError::BadMessage(error.to_string()))?;
        if claim.address.as_deref().is_some_and(|text| !super::is_address(text)) {
            return Err(PairingError::BadMessage("not an address".to_owned()));
        }
        let (offers, now_unix) = (self.offers.clone(), self.clock.now_unix());
        let (checked, name, address) = (session.clone(), claim.name.clone(), claim.address.clone());
        let outcome = on_disk(move || {
            offers.claim(joiner, now_unix, |secret| {
                checked.is_joiner_proof(secret, &name, address.as_deref(), &claim.proof)
            })
        });
        let secret = match outcome.await?? {
            Outcome::Granted(secret) => secret,
            Outcome::WrongProof => return Err(PairingError::WrongProof { joiner }),
            Outcome::NoOffer => return Err(PairingError::NoOffer { joiner }),
        };
        if claim.name == *node_name {
            return Err(PairingError::SameName(claim.name));
        }

        let proof = session.issuer_proof(&secret, node_name, &claim.name);
        let grant = serde_json::to_vec(&Grant { name: node_name.clone(), proof })
            .map_err(|_| PairingError::Local("the answer cannot be encoded"))?;
        write_message(&mut send, &grant, MESSAGE_CAP_BYTES).await?;
        if expect_message(&mut receive).await? != PINNED {
            return Err(PairingError::BadMessage("no word that the joiner has pinned this host".to_owned()));
        }
        let peer = PinnedPeer {
            name: claim.name,
            fingerprint: joiner,
            address: claim.address,
            paired_at_unix: self.clock.now_unix(),
        };
        Ok((peer, secret, send))
    }
}

/// Both hosts trust each other by now: a word that does not arrive leaves the joiner in doubt, nothing more.
async fn tell_paired(mut send: SendStream) {
    let told = async {
        if write_message(&mut send, PAIRED, MESSAGE_CAP_BYTES).await.is_ok() && send.finish().is_ok() {
            // Until the joiner has it or is gone; closing now could overtake it.
            let _ = send.stopped().await;
        }
    };
    let _ = tokio::time::timeout(EXCHANGE_TIMEOUT, told).await;
}

impl PairingError {
    fn close(&self) -> (CloseCode, &'static [u8]) {
        match self {
            Self::WrongProof { .. } => (CloseCode::WRONG_PROOF, b"wrong proof"),
            Self::NoOffer { .. } => (CloseCode::NO_OFFER, b"no open pairing offer"),
            Self::BadMessage(_) => (CloseCode::BAD_MESSAGE, b"bad pairing message"),
            Self::SameName(_) => (CloseCode::PAIRING_FAILED, b"both hosts have the same name"),
            Self::TimedOut => (CloseCode::PAIRING_FAILED, b"too slow"),
            Self::Lost(_) => (CloseCode::PAIRING_FAILED, b""),
            Self::Offer(_) | Self::Pin(_) | Self::Local(_) => {
                (CloseCode::PAIRING_FAILED, b"the other host failed; its log says why")
            }
        }
    }
}

impl From<MessageError> for PairingError {
    fn from(error: MessageError) -> Self {
        use quinn::{ReadError, WriteError};
        match error {
            MessageError::Read(ReadError::ConnectionLost(error))
            | MessageError::Write(WriteError::ConnectionLost(error)) => lost(error),
            other => Self::BadMessage(other.to_string()),
        }
    }
}

fn lost(error: quinn::ConnectionError) -> PairingError {
    PairingError::Lost(error.into())
}

async fn expect_message(receive: &mut RecvStream) -> Result<Bytes, PairingError> {
    read_message(receive, MESSAGE_CAP_BYTES).await?.ok_or(PairingError::BadMessage("no message".to_owned()))
}

/// Files are read and synced off the network's thread.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PairingError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| PairingError::Local("the work on the state files was lost"))
}
