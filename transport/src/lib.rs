//! What touches the network: QUIC with TLS 1.3 both ways between hosts that have pinned each other's keys.
//!
//! [`Identity`] is this host's key, [`PinStore`] and [`Pins`] are the keys it trusts, [`create_offer`], [`Joiner`] and
//! [`PairingConnection`] are how two hosts come to trust each other, and [`Endpoint`] is the UDP port that lets in
//! nobody else and hands out [`Connection`]s. What goes over the streams is not known here, beyond the length in
//! front of a control message ([`read_message`], [`write_message`]).

mod admission;
mod congestion;
mod connection;
mod dial;
mod endpoint;
mod fingerprint;
mod identity;
mod intake;
mod lane;
mod message;
mod node_name;
mod options;
mod pairing;
mod pins;
mod refusals;
mod reset;
pub mod socket;
mod state_file;
mod text;
mod tls;

pub use connection::{CloseCode, Connection, ConnectionLost, ConnectionStats};
pub use dial::ConnectError;
pub use endpoint::{Accepted, BindError, Endpoint};
pub use fingerprint::{Fingerprint, FingerprintError};
pub use identity::{IDENTITY_FILE, Identity, IdentityError};
pub use lane::Lane;
pub use message::{MessageError, read_message, write_message};
pub use node_name::{NodeName, NodeNameError};
pub use options::{Congestion, EndpointOptions, UnixClock};
pub use pairing::{
    JoinError, Joiner, MAX_WRONG_PROOFS, OFFER_FILE, OFFER_LIFETIME_SECS, OfferError, Paired,
    PairingConnection, PairingError, Token, TokenError, create_offer,
};
pub use pins::{MAX_PEERS, PINS_FILE, PinError, PinStore, PinnedPeer, Pins};
pub use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};
pub use refusals::{RefusedKey, RefusedKeys};
pub use state_file::StateFileError;
pub use tls::{ALPN_PAIRING, ALPN_PEER};
