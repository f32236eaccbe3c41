//! That a host knows the token's secret, for this session and these two hosts only.

use data_encoding::HEXLOWER;
use ring::hmac;

use super::token::Secret;
use crate::fingerprint::Fingerprint;
use crate::node_name::NodeName;

/// What both sides of an exchange must see alike.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) issuer: Fingerprint,
    pub(crate) joiner: Fingerprint,
    /// TLS keying material (RFC 5705, RFC 8446 section 7.5): differs in every session, and between the two sessions
    /// of a man in the middle.
    pub(crate) binding: [u8; 32],
}

/// Label of the exported keying material.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-afterimage-pair-1";

impl Session {
    /// `None` if the TLS session cannot export, which a finished handshake always can.
    pub(crate) fn of(
        connection: &quinn::Connection,
        issuer: Fingerprint,
        joiner: Fingerprint,
    ) -> Option<Self> {
        let mut binding = [0; 32];
        connection.export_keying_material(&mut binding, EXPORTER_LABEL, &[]).ok()?;
        Some(Self { issuer, joiner, binding })
    }

    /// The joiner's proof, in hex.
    pub(crate) fn joiner_proof(&self, secret: &Secret, joiner: &NodeName, address: Option<&str>) -> String {
        HEXLOWER.encode(hmac::sign(&key(secret), &self.claimed(joiner, address)).as_ref())
    }

    /// Whether the joiner's proof is right; takes the same time for every wrong one.
    pub(crate) fn is_joiner_proof(
        &self,
        secret: &Secret,
        joiner: &NodeName,
        address: Option<&str>,
        proof: &str,
    ) -> bool {
        is_proof(secret, &self.claimed(joiner, address), proof)
    }

    /// The issuer's proof, in hex.
    pub(crate) fn issuer_proof(&self, secret: &Secret, issuer: &NodeName, joiner: &NodeName) -> String {
        HEXLOWER.encode(hmac::sign(&key(secret), &self.granted(issuer, joiner)).as_ref())
    }

    /// Whether the issuer's proof is right; takes the same time for every wrong one.
    pub(crate) fn is_issuer_proof(
        &self,
        secret: &Secret,
        issuer: &NodeName,
        joiner: &NodeName,
        proof: &str,
    ) -> bool {
        is_proof(secret, &self.granted(issuer, joiner), proof)
    }

    fn claimed(&self, joiner: &NodeName, address: Option<&str>) -> Vec<u8> {
        self.transcript(b"afterimage-pair/1 joiner", &[joiner.as_str(), address.unwrap_or_default()])
    }

    fn granted(&self, issuer: &NodeName, joiner: &NodeName) -> Vec<u8> {
        self.transcript(b"afterimage-pair/1 issuer", &[issuer.as_str(), joiner.as_str()])
    }

    /// Every part with its length in front, so that no two lists of parts give the same bytes.
    fn transcript(&self, role: &[u8], words: &[&str]) -> Vec<u8> {
        let fixed = [role, self.issuer.as_bytes(), self.joiner.as_bytes(), &self.binding];
        let mut bytes = Vec::new();
        for part in fixed.into_iter().chain(words.iter().map(|word| word.as_bytes())) {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

fn key(secret: &Secret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &secret.0)
}

fn is_proof(secret: &Secret, message: &[u8], proof: &str) -> bool {
    HEXLOWER.decode(proof.as_bytes()).is_ok_and(|tag| hmac::verify(&key(secret), message, &tag).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    #[test]
    fn a_proof_holds_for_nothing_but_what_it_was_made_for() {
        let session =
            Session { issuer: Fingerprint([1; 32]), joiner: Fingerprint([2; 32]), binding: [3; 32] };
        let (secret, alpha, beta) = (Secret([4; 16]), name("alpha"), name("beta"));
        let joins = session.joiner_proof(&secret, &beta, Some("b:1"));
        let issues = session.issuer_proof(&secret, &alpha, &beta);
        assert!(session.is_joiner_proof(&secret, &beta, Some("b:1"), &joins));
        assert!(session.is_issuer_proof(&secret, &alpha, &beta, &issues));

        for other in [
            Session { issuer: Fingerprint([9; 32]), ..session.clone() },
            Session { joiner: Fingerprint([9; 32]), ..session.clone() },
            Session { binding: [9; 32], ..session.clone() },
            Session { issuer: session.joiner, joiner: session.issuer, binding: session.binding },
        ] {
            assert!(!other.is_joiner_proof(&secret, &beta, Some("b:1"), &joins));
            assert!(!other.is_issuer_proof(&secret, &alpha, &beta, &issues));
        }
        assert!(!session.is_joiner_proof(&Secret([5; 16]), &beta, Some("b:1"), &joins));
        assert!(!session.is_joiner_proof(&secret, &alpha, Some("b:1"), &joins));
        assert!(!session.is_joiner_proof(&secret, &beta, Some("b:2"), &joins));
        assert!(!session.is_joiner_proof(&secret, &beta, None, &joins));
        assert!(!session.is_issuer_proof(&Secret([5; 16]), &alpha, &beta, &issues));
        assert!(!session.is_issuer_proof(&secret, &beta, &alpha, &issues));
        // A proof sent back to its maker is none, whatever the names.
        assert!(!session.is_issuer_proof(
            &secret,
            &beta,
            &beta,
            &session.joiner_proof(&secret, &beta, Some("beta"))
        ));
        for bad in ["", "00", &joins[..62], &format!("{joins}00"), "zz"] {
            assert!(!session.is_joiner_proof(&secret, &beta, Some("b:1"), bad));
        }
    }
}
