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

use quinn::EndpointConfig;
use quinn_proto::HashedConnectionIdGenerator;
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ring::hmac;

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
        let mut ids = [0; 8];
        self.derive(&[b"connection ids", address.as_bytes()], &mut ids);
        let ids = u64::from_le_bytes(ids);
        let mut reset = [0; 32];
        self.derive(&[b"reset tokens", address.as_bytes()], &mut reset);
        config
            .reset_key(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)))
            .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    }

    fn derive(&self, info: &[&[u8]], key: &mut [u8]) {
        let filled = self.0.expand(info, Length(key.len())).and_then(|material| material.fill(key));
        filled.expect("a key is far below the 8160 bytes that HKDF-SHA-256 gives");
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
    fn keys_are_the_same_again_and_differ_by_identity_purpose_and_address() {
        let secret = ResetSecret::of(b"private key");
        let key = derived(&secret, &[b"purpose", b"[::]:7789"]);
        assert_eq!(derived(&ResetSecret::of(b"private key"), &[b"purpose", b"[::]:7789"]), key);
        assert_ne!(derived(&ResetSecret::of(b"another key"), &[b"purpose", b"[::]:7789"]), key);
        assert_ne!(derived(&secret, &[b"other", b"[::]:7789"]), key);
        assert_ne!(derived(&secret, &[b"purpose", b"[::]:7790"]), key);
    }
}
