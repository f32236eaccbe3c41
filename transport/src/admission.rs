//! Who may come in, and as what: the one place where that is decided.

use std::sync::Arc;

use crate::connection::CloseCode;
use crate::fingerprint::Fingerprint;
use crate::options::UnixClock;
use crate::pairing::OfferStore;
use crate::pins::Pins;
use crate::tls::{ALPN_PAIRING, ALPN_PEER};

/// As what a connection comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// A pinned peer, for everything.
    Peer(Fingerprint),
    /// Somebody, to pair and nothing else.
    Pairing(Fingerprint),
}

/// Why a connection does not come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("its key is not pinned here; if it is the peer, pair the hosts again")]
    NotPinned,
    #[error("there is no open pairing offer for it; `afterimage pair --new` makes one")]
    NoOffer,
    #[error("it asks for a protocol that is not spoken here")]
    UnknownProtocol,
    #[error("it shows no certificate that can be read")]
    NoKey,
    #[error("it did not prove to hold the key of the certificate it shows")]
    KeyNotProved,
    #[error("it does not trust the key of this host; if it is the peer, pair the hosts again")]
    DoesNotTrustThisHost,
    #[error("the pinned peers cannot be read: {0}")]
    PinsUnreadable(String),
    #[error("the pairing offer cannot be read: {0}")]
    OfferUnreadable(String),
}

impl Refusal {
    /// What the other side is told: no more than it can find out anyway.
    pub(crate) fn close(&self) -> (CloseCode, &'static [u8]) {
        match self {
            Self::NotPinned
            | Self::PinsUnreadable(_)
            | Self::NoKey
            | Self::KeyNotProved
            | Self::DoesNotTrustThisHost => (CloseCode::NOT_PINNED, b"your key is not pinned here"),
            Self::NoOffer | Self::OfferUnreadable(_) => (CloseCode::NO_OFFER, b"no open pairing offer"),
            Self::UnknownProtocol => (CloseCode::BAD_MESSAGE, b"unknown protocol"),
        }
    }
}

/// Asked twice of every connection: during the handshake, so that a stranger gets nothing but an alert, and after it
/// with what was really agreed, before a stream is allowed.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) pins: Arc<Pins>,
    pub(crate) offers: Option<OfferStore>,
    pub(crate) clock: UnixClock,
}

impl Gate {
    pub(crate) fn admit(
        &self,
        protocol: Option<&[u8]>,
        key: Option<Fingerprint>,
    ) -> Result<Admission, Refusal> {
        let key = key.ok_or(Refusal::NoKey)?;
        match protocol {
            Some(ALPN_PEER) => match self.pins.by_fingerprint(key) {
                Ok(Some(_)) => Ok(Admission::Peer(key)),
                Ok(None) => Err(Refusal::NotPinned),
                Err(error) => Err(Refusal::PinsUnreadable(error.to_string())),
            },
            Some(ALPN_PAIRING) => {
                let offers = self.offers.as_ref().ok_or(Refusal::NoOffer)?;
                match offers.is_open_to(key, self.clock.now_unix()) {
                    Ok(true) => Ok(Admission::Pairing(key)),
                    Ok(false) => Err(Refusal::NoOffer),
                    Err(error) => Err(Refusal::OfferUnreadable(error.to_string())),
                }
            }
            _ => Err(Refusal::UnknownProtocol),
        }
    }
}

pub(crate) fn is_known_protocol(protocol: &[u8]) -> bool {
    [ALPN_PEER, ALPN_PAIRING].contains(&protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pins::{PINS_FILE, PinnedPeer};
    use crate::{Identity, create_offer};

    const NOW: u64 = 1_800_000_000;
    const PINNED: Fingerprint = Fingerprint([1; 32]);
    const STRANGER: Fingerprint = Fingerprint([2; 32]);

    fn gate(dir: &std::path::Path, offers: bool) -> Gate {
        let pins = Arc::new(Pins::fixed([PinnedPeer {
            name: "beta".parse().unwrap(),
            fingerprint: PINNED,
            address: None,
            paired_at_unix: NOW,
        }]));
        let own = Identity::load_or_create(dir).unwrap().fingerprint();
        Gate { pins, offers: offers.then(|| OfferStore::new(dir, own)), clock: UnixClock::from_fn(|| NOW) }
    }

    #[test]
    fn the_table() {
        let dir = tempfile::tempdir().unwrap();
        let own = Identity::load_or_create(dir.path()).unwrap();
        let gate_without = gate(dir.path(), false);
        let gate = gate(dir.path(), true);
        for open in [false, true] {
            if open {
                create_offer(dir.path(), &own, None, NOW).unwrap();
            }
            let pairing = |key| if open { Ok(Admission::Pairing(key)) } else { Err(Refusal::NoOffer) };
            for (protocol, key, expected) in [
                (Some(ALPN_PEER), Some(PINNED), Ok(Admission::Peer(PINNED))),
                (Some(ALPN_PEER), Some(STRANGER), Err(Refusal::NotPinned)),
                (Some(ALPN_PEER), None, Err(Refusal::NoKey)),
                (Some(ALPN_PAIRING), Some(PINNED), pairing(PINNED)),
                (Some(ALPN_PAIRING), Some(STRANGER), pairing(STRANGER)),
                (Some(ALPN_PAIRING), Some(own.fingerprint()), Err(Refusal::NoOffer)),
                (Some(ALPN_PAIRING), None, Err(Refusal::NoKey)),
                (Some(b"afterimage/99"), Some(PINNED), Err(Refusal::UnknownProtocol)),
                (Some(b""), Some(PINNED), Err(Refusal::UnknownProtocol)),
                (None, Some(PINNED), Err(Refusal::UnknownProtocol)),
            ] {
                assert_eq!(gate.admit(protocol, key), expected, "{protocol:?} {key:?} open={open}");
            }
            assert_eq!(gate_without.admit(Some(ALPN_PAIRING), Some(STRANGER)), Err(Refusal::NoOffer));
        }
    }

    #[test]
    fn files_that_cannot_be_read_let_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let mut gate = gate(dir.path(), true);
        gate.pins = Arc::new(Pins::open(dir.path()).unwrap());
        std::fs::write(dir.path().join(PINS_FILE), b"garbage").unwrap();
        std::fs::write(dir.path().join(crate::pairing::OFFER_FILE), b"garbage").unwrap();
        assert!(matches!(gate.admit(Some(ALPN_PEER), Some(PINNED)), Err(Refusal::PinsUnreadable(_))));
        assert!(matches!(gate.admit(Some(ALPN_PAIRING), Some(PINNED)), Err(Refusal::OfferUnreadable(_))));
    }
}
