//! Two hosts that learn to trust each other, by way of an operator who carries a token.
//!
//! The token binds the issuer's key, so the joiner talks to nobody else; the joiner's key is bound by a proof of the
//! token's secret over both keys and this very TLS session. Each side pins the other only after both proofs. Owns the
//! token, the offer file and the exchange; leaves who may connect for it to the admission, and the pins to
//! [`crate::pins`].

mod answer;
mod join;
mod offer;
mod proof;
mod token;

pub use answer::{PairingConnection, PairingError};
pub use join::{JoinError, Joiner};
pub(crate) use offer::OfferStore;
pub use offer::{MAX_WRONG_PROOFS, OFFER_FILE, OFFER_LIFETIME_SECS, OfferError, create_offer};
pub use token::{Token, TokenError};

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::node_name::NodeName;
use crate::pins::{MAX_ADDRESS_BYTES, PinnedPeer};

/// Two hosts that trust each other now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paired {
    /// The other host as it is pinned.
    pub peer: PinnedPeer,
    /// What was pinned under its name or key before, and is no more.
    pub replaced: Vec<PinnedPeer>,
}

/// The whole exchange takes four messages and a few fsyncs.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest message of the exchange, in bytes: a claim is below 600.
const MESSAGE_CAP_BYTES: u32 = 2048;

/// First message, from the joiner.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    name: NodeName,
    /// Where the joiner listens.
    address: Option<String>,
    proof: String,
}

/// Second message, from the issuer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    name: NodeName,
    proof: String,
}

/// Third message: the joiner has pinned the issuer, on stable storage.
const PINNED: &[u8] = b"pinned";

/// Fourth message: the issuer has pinned the joiner, on stable storage, and the token is used up.
const PAIRED: &[u8] = b"paired";

/// `host:port` of an acceptable length, in characters that can be shown as they are.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-:%[]".contains(&b);
    text.len() <= MAX_ADDRESS_BYTES
        && !host.is_empty()
        && host.bytes().all(plain)
        && port.bytes().all(|b| b.is_ascii_digit())
        && port.parse::<u16>().is_ok()
}
