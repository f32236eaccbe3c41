//! What the operator carries from one host to the other.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;

use crate::fingerprint::Fingerprint;
use crate::pins::MAX_ADDRESS_BYTES;
use crate::text::base32_symbols;

/// A one-time pairing token: `AI1-` and base32 of the issuer's fingerprint (32 bytes), the secret (16), the expiry
/// (u64, little-endian), the address's length (u16, little-endian) and bytes, and the first 4 bytes of the SHA-256
/// of all before.
///
/// It may be typed in either case, with dashes and line breaks. Whoever holds it can pair with the issuer until it
/// expires: `Display` shows it, `Debug` does not.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(crate) issuer: Fingerprint,
    pub(crate) secret: Secret,
    pub(crate) expires_at_unix: u64,
    pub(crate) address: Option<String>,
}

/// The one-time secret of an offer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) [u8; SECRET_BYTES]);

/// 128 bits: beyond guessing, and short enough to be carried.
pub(crate) const SECRET_BYTES: usize = 16;

const VERSION: &str = "1";
const CHECKSUM_BYTES: usize = 4;
const FIXED_BYTES: usize = 32 + SECRET_BYTES + 8 + 2;
const MAX_SYMBOLS: usize = ((FIXED_BYTES + MAX_ADDRESS_BYTES + CHECKSUM_BYTES) * 8).div_ceil(5);

/// Text that is not a token this program understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token at all.
    #[error("not a pairing token: it begins with AI{VERSION}-")]
    NotAToken,
    /// A token of another version.
    #[error(
        "the token has version {0}, this program reads version {VERSION}: use the same release on both hosts"
    )]
    UnknownVersion(String),
    /// Mistyped or cut.
    #[error("the token is mistyped or incomplete: copy it again, to its end")]
    Mistyped,
}

impl Token {
    /// Whom the token lets pair: the issuer's fingerprint.
    pub fn issuer(&self) -> Fingerprint {
        self.issuer
    }

    /// Where the issuer listens, `host:port`, if the token says so.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// When the issuer stops to accept it, in seconds since 1970 by the issuer's clock.
    pub fn expires_at_unix(&self) -> u64 {
        self.expires_at_unix
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("issuer", &self.issuer)
            .field("expires_at_unix", &self.expires_at_unix)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.as_deref().unwrap_or_default().as_bytes();
        let mut bytes = Vec::with_capacity(FIXED_BYTES + address.len() + CHECKSUM_BYTES);
        bytes.extend_from_slice(self.issuer.as_bytes());
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.expires_at_unix.to_le_bytes());
        bytes.extend_from_slice(&u16::try_from(address.len()).map_err(|_| fmt::Error)?.to_le_bytes());
        bytes.extend_from_slice(address);
        bytes.extend_from_slice(&checksum(&bytes));
        write!(f, "AI{VERSION}-{}", BASE32_NOPAD.encode(&bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let (prefix, rest) = text.trim().split_once('-').ok_or(TokenError::NotAToken)?;
        let version = match prefix.get(..2) {
            Some(letters) if letters.eq_ignore_ascii_case("AI") => &prefix[2..],
            _ => return Err(TokenError::NotAToken),
        };
        if version.is_empty() || version.len() > 4 || !version.bytes().all(|b| b.is_ascii_digit()) {
            return Err(TokenError::NotAToken);
        }
        if version != VERSION {
            return Err(TokenError::UnknownVersion(version.to_owned()));
        }
        let symbols = base32_symbols(rest, MAX_SYMBOLS).ok_or(TokenError::Mistyped)?;
        let bytes = BASE32_NOPAD.decode(symbols.as_bytes()).map_err(|_| TokenError::Mistyped)?;
        decode(&bytes).ok_or(TokenError::Mistyped)
    }
}

fn decode(bytes: &[u8]) -> Option<Token> {
    let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    if checksum(body) != *sum {
        return None;
    }
    let (issuer, rest) = body.split_first_chunk::<32>()?;
    let (secret, rest) = rest.split_first_chunk::<SECRET_BYTES>()?;
    let (expires_at, rest) = rest.split_first_chunk::<8>()?;
    let (address_len, address) = rest.split_first_chunk::<2>()?;
    if usize::from(u16::from_le_bytes(*address_len)) != address.len() {
        return None;
    }
    let address = std::str::from_utf8(address).ok()?;
    Some(Token {
        issuer: Fingerprint(*issuer),
        secret: Secret(*secret),
        expires_at_unix: u64::from_le_bytes(*expires_at),
        address: match address {
            "" => None,
            text if super::is_address(text) => Some(text.to_owned()),
            _ => return None,
        },
    })
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = ring::digest::digest(&ring::digest::SHA256, body);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&digest.as_ref()[..CHECKSUM_BYTES]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(address: Option<&str>) -> Token {
        Token {
            issuer: Fingerprint([3; 32]),
            secret: Secret([5; 16]),
            expires_at_unix: 1_800_000_900,
            address: address.map(str::to_owned),
        }
    }

    #[test]
    fn reads_back_however_it_is_pasted() {
        for address in [None, Some("beta.example.net:7789"), Some("[2001:db8::1]:7789")] {
            let token = token(address);
            let text = token.to_string();
            assert_eq!(text.parse(), Ok(token.clone()));
            assert_eq!(text.to_lowercase().parse(), Ok(token.clone()));
            let wrapped = format!(" {}\n  {}-{}\n", &text[..30], &text[30..60], &text[60..]);
            assert_eq!(wrapped.parse(), Ok(token));
        }
    }

    #[test]
    fn every_typo_and_every_cut_is_noticed() {
        let text = token(Some("beta:7789")).to_string();
        for at in 4..text.len() {
            let cut = &text[..at];
            assert_eq!(cut.parse::<Token>(), Err(TokenError::Mistyped), "{cut}");
            for symbol in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567!".chars() {
                let typo = format!("{}{symbol}{}", &text[..at], &text[at + 1..]);
                if typo != text {
                    assert_eq!(typo.parse::<Token>(), Err(TokenError::Mistyped), "{typo}");
                }
            }
            if at + 2 <= text.len() && text[at..=at] != text[at + 1..at + 2] {
                let swapped =
                    format!("{}{}{}{}", &text[..at], &text[at + 1..at + 2], &text[at..=at], &text[at + 2..]);
                assert_eq!(swapped.parse::<Token>(), Err(TokenError::Mistyped), "{swapped}");
            }
        }
    }

    #[test]
    fn other_versions_and_other_texts_are_told_apart() {
        assert_eq!("AI2-ABCD".parse::<Token>(), Err(TokenError::UnknownVersion("2".to_owned())));
        for text in ["", "-", "AI-", "AIx-AAAA", "AI12345-A", "hello-world", "é-", "aé1-"] {
            assert_eq!(text.parse::<Token>(), Err(TokenError::NotAToken), "{text}");
        }
    }

    #[test]
    fn debug_output_does_not_hold_the_secret() {
        let shown = format!("{:?}", token(None));
        assert!(!shown.contains("secret"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "(AI1-)?.{0,400}") {
            let _ = text.parse::<Token>();
        }

        #[test]
        fn any_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            decode(&bytes);
            bytes.extend_from_slice(&checksum(&bytes));
            if let Some(token) = decode(&bytes) {
                prop_assert_eq!(token.to_string().parse(), Ok(token));
            }
        }
    }
}
