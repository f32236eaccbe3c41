//! What a pin is: the SHA-256 of a certificate's public key.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::base32_symbols;

/// The SHA-256 of a certificate's DER `SubjectPublicKeyInfo`.
///
/// It names the key, not the certificate around it, and can be checked with stock tools:
/// `openssl x509 -in identity.pem -noout -pubkey | openssl pkey -pubin -outform der | sha256sum`.
/// Shown as 13 groups of 4 base32 symbols; read back with or without the dashes, in either case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

/// Base32 symbols in the text of a fingerprint: 256 bits, 5 each.
const SYMBOLS: usize = 52;

impl Fingerprint {
    /// The fingerprint of a certificate, or `None` if the bytes are not an X.509 v3 certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        Some(Self::of_public_key(&parsed.subject_public_key_info()))
    }

    /// The fingerprint of a DER `SubjectPublicKeyInfo`.
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, spki_der);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, symbol) in BASE32_NOPAD.encode(&self.0).chars().enumerate() {
            if at > 0 && at % 4 == 0 {
                f.write_str("-")?;
            }
            write!(f, "{symbol}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a fingerprint: expected {SYMBOLS} base32 symbols (A-Z and 2-7), in groups of 4 or not")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let symbols = base32_symbols(text, SYMBOLS).ok_or(FingerprintError)?;
        let bytes = BASE32_NOPAD.decode(symbols.as_bytes()).map_err(|_| FingerprintError)?;
        Ok(Self(bytes.try_into().map_err(|_| FingerprintError)?))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_grouped_and_reads_back_however_it_is_typed() {
        let fingerprint = Fingerprint::of_public_key(b"a key");
        let text = fingerprint.to_string();
        assert_eq!(text.len(), 64);
        assert_eq!(text.split('-').count(), 13);
        assert_eq!(text.parse(), Ok(fingerprint));
        assert_eq!(text.to_lowercase().replace('-', "").parse(), Ok(fingerprint));
        assert_eq!(format!(" {} ", text.replace('-', " ")).parse(), Ok(fingerprint));
    }

    #[test]
    fn a_cut_or_extended_text_is_refused() {
        let text = Fingerprint([7; 32]).to_string();
        for cut in 0..text.len() {
            assert_eq!(text[..cut].parse::<Fingerprint>(), Err(FingerprintError), "{cut}");
        }
        assert_eq!(format!("{text}A").parse::<Fingerprint>(), Err(FingerprintError));
    }

    #[test]
    fn is_the_sha256_of_the_key() {
        let empty = Fingerprint::of_public_key(b"");
        assert_eq!(empty.0[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,200}") {
            if let Ok(fingerprint) = text.parse::<Fingerprint>() {
                prop_assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
            }
        }

        #[test]
        fn any_certificate_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            Fingerprint::of_certificate(&CertificateDer::from(bytes));
        }
    }
}
