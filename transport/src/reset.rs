//! What lets a restarted process end the connections of the one before it.
//!
//! A process that was killed says nothing, and its peer would wait for the idle timeout. The next process on the same
//! address does not know the connection, and answers its packets with a stateless reset (RFC 9000 section 10.3). The peer
//! believes it because of a token, so the key that the tokens are made with must be the same after a restart. So must
//! the key of the connection ids, or the packets would be taken for noise and not answered.
//!
//! A client has no way to give its first token (RFC 9000 section 18.2), so this works for the side that accepts. A client
//! that was restarted connects anew, and its new session takes the place of the old one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::EndpointConfig;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// Names the purpose and the version of the derivation; the keys are never stored.
const SALT: &[u8] = b"afterimage stateless reset 1";

/// The secret of one identity that the keys of its endpoints come from. Its `Debug` shows nothing of it.
#[derive(Debug, Clone)]
pub(crate) struct ResetSecret(Prk);

impl ResetSecret {
    /// Derived from the private key (RFC 5869), so that it lives as long as that and is as secret.
    pub(crate) fn of(private_key: &[u8]) -> Self {
        Self(Salt::new(HKDF_SHA256, SALT).extract(private_key))
    }

    /// Sets the keys of the endpoint that is bound to `address`.
    ///
    /// Each address has its own: the daemons of a host share an identity, and an endpoint that does not know a connection
    /// of the other must not be brought to tell its token.
    pub(crate) fn apply(&self, address: SocketAddr, config: &mut EndpointConfig) {
        let address = address.to_string();
        let mut ids = [0; 32];
        self.derive(&[b"connection ids", address.as_bytes()], &mut ids);
        let mut reset = [0; 32];
        self.derive(&[b"reset tokens", address.as_bytes()], &mut reset);
        config
            .reset_key(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)))
            .cid_generator(move || Box::new(Ids::new(&ids)));
    }

    fn derive(&self, info: &[&[u8]], key: &mut [u8]) {
        let filled = self.0.expand(info, Length(key.len())).and_then(|material| material.fill(key));
        filled.expect("a key is far below the 8160 bytes that HKDF-SHA-256 gives");
    }
}

/// Connection ids of four bytes, which each packet carries: enough for as many connections as an endpoint has. The one half is
/// random, the other follows from it and the key, so that noise is not answered.
struct Ids(hmac::Key);

impl Ids {
    const RANDOM_BYTES: usize = 2;
    const TAG_BYTES: usize = 2;

    fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    fn of(&self, random: [u8; Self::RANDOM_BYTES]) -> ConnectionId {
        let tag = hmac::sign(&self.0, &random);
        ConnectionId::new(&[&random[..], &tag.as_ref()[..Self::TAG_BYTES]].concat())
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut random = [0; Self::RANDOM_BYTES];
        SystemRandom::new().fill(&mut random).expect("the system has random bytes");
        self.of(random)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.first_chunk() {
            Some(random) if self.of(*random) == *id => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        Self::RANDOM_BYTES + Self::TAG_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derived(secret: &ResetSecret, info: &[&[u8]]) -> [u8; 32] {
        let mut key = [0; 32];
        secret.derive(info, &mut key);
        key
    }

    #[test]
    fn a_restarted_process_knows_its_connection_ids_from_noise() {
        let mut ids = Ids::new(b"key");
        let same = Ids::new(b"key");
        let other = Ids::new(b"another key");
        let mut seen = std::collections::HashSet::new();
        let mut taken_by_other = 0;
        for _ in 0..1000 {
            let id = ids.generate_cid();
            assert_eq!(id.len(), ids.cid_len());
            assert!(same.validate(&id).is_ok());
            taken_by_other += u32::from(other.validate(&id).is_ok());
            for bit in 0..8 * id.len() {
                let mut flipped = id.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                // What is flipped in the random half has another tag, but for one in 65,536.
                let known = same.validate(&ConnectionId::new(&flipped)).is_ok();
                assert!(!known || bit < 8 * Ids::RANDOM_BYTES, "{flipped:?}");
            }
            seen.insert(id.to_vec());
        }
        assert!(taken_by_other < 10, "{taken_by_other}");
        assert!(seen.len() > 900, "{}", seen.len());
        for length in [0, 1, 3, 5, 20] {
            assert!(same.validate(&ConnectionId::new(&[7; 20][..length])).is_err());
        }
    }

    #[test]
    fn keys_are_the_same_again_and_differ_by_identity_purpose_and_address() {
        let secret = ResetSecret::of(b"private key");
        let key = derived(&secret, &[b"purpose", b"[::]:7789"]);
        assert_eq!(derived(&ResetSecret::of(b"private key"), &[b"purpose", b"[::]:7789"]), key);
        assert_ne!(derived(&ResetSecret::of(b"another key"), &[b"purpose", b"[::]:7789"]), key);
        assert_ne!(derived(&secret, &[b"other", b"[::]:7789"]), key);
        assert_ne!(derived(&secret, &[b"purpose", b"[::]:7790"]), key);
    }
}
