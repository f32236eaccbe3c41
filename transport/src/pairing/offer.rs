//! The issuer's side of a token, kept in the state directory: `pair --new` writes it in one process, the daemon that
//! owns the UDP port honours it in another, across restarts, once.

use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::token::{SECRET_BYTES, Secret, Token};
use crate::fingerprint::Fingerprint;
use crate::identity::Identity;
use crate::state_file::{StateFile, StateFileError, StateLock};
use crate::tls;

/// The file of a state directory that holds the open offer.
pub const OFFER_FILE: &str = "pairing-offer.json";

/// How long an offer stands, in seconds: time to walk to the other host, and no more.
pub const OFFER_LIFETIME_SECS: u64 = 15 * 60;

/// Wrong proofs until an offer is void. The secret cannot be guessed; somebody who tries is a reason to stop.
pub const MAX_WRONG_PROOFS: u32 = 5;

/// An offer that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The offer file could not be read or written, or is damaged.
    #[error(transparent)]
    File(#[from] StateFileError),
    /// The address cannot be put into a token.
    #[error("not an address: {0:?}; expected host:port")]
    Address(String),
    /// The operating system gave no random bytes.
    #[error("no random bytes for the token")]
    Random,
}

/// Makes an offer and returns its token; returns once the offer is on stable storage. An offer that was open before
/// is void from then on.
pub fn create_offer(
    state_dir: &Path,
    identity: &Identity,
    address: Option<&str>,
    now_unix: u64,
) -> Result<Token, OfferError> {
    if let Some(bad) = address.filter(|text| !super::is_address(text)) {
        return Err(OfferError::Address(bad.to_owned()));
    }
    let mut secret = [0; SECRET_BYTES];
    tls::provider().secure_random.fill(&mut secret).map_err(|_| OfferError::Random)?;
    let token = Token {
        issuer: identity.fingerprint(),
        secret: Secret(secret),
        expires_at_unix: now_unix.saturating_add(OFFER_LIFETIME_SECS),
        address: address.map(str::to_owned),
    };
    let offer = Offer {
        issuer: token.issuer,
        secret: HEXLOWER.encode(&secret),
        expires_at_unix: token.expires_at_unix,
        wrong_proofs: 0,
        claimed_by: None,
    };
    let _lock = StateLock::take(state_dir)?;
    file(state_dir).save(&offer)?;
    Ok(token)
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offer {
    issuer: Fingerprint,
    secret: String,
    expires_at_unix: u64,
    wrong_proofs: u32,
    /// Who gave the right proof. Nobody else can use the offer any more; that host may, until both have pinned each
    /// other, so that a connection lost half-way needs no new token.
    claimed_by: Option<Fingerprint>,
}

impl Offer {
    fn is_live(&self, issuer: Fingerprint, now_unix: u64) -> bool {
        // An expiry further off than any offer's lifetime means that the clock was set back: void, not eternal.
        let remaining = self.expires_at_unix.checked_sub(now_unix);
        self.issuer == issuer
            && self.wrong_proofs < MAX_WRONG_PROOFS
            && remaining.is_some_and(|secs| 0 < secs && secs <= OFFER_LIFETIME_SECS)
    }

    fn secret(&self) -> Option<Secret> {
        let bytes = HEXLOWER.decode(self.secret.as_bytes()).ok()?;
        Some(Secret(bytes.try_into().ok()?))
    }
}

/// What became of a proof.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Right: the offer is now this joiner's alone.
    Granted(Secret),
    /// Wrong: counted.
    WrongProof,
    /// There is no open offer for this joiner.
    NoOffer,
}

/// The offer of one state directory and one identity. Nothing is cached.
#[derive(Debug, Clone)]
pub(crate) struct OfferStore {
    dir: PathBuf,
    issuer: Fingerprint,
}

impl OfferStore {
    pub(crate) fn new(state_dir: &Path, issuer: Fingerprint) -> Self {
        Self { dir: state_dir.to_owned(), issuer }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether this host's key may pair now.
    pub(crate) fn is_open_to(&self, joiner: Fingerprint, now_unix: u64) -> Result<bool, StateFileError> {
        let offer = self.live(now_unix)?;
        Ok(joiner != self.issuer && offer.is_some_and(|offer| offer.claimed_by.is_none_or(|by| by == joiner)))
    }

    /// Checks a proof against the open offer and records the outcome; returns once that is on stable storage.
    pub(crate) fn claim(
        &self,
        joiner: Fingerprint,
        now_unix: u64,
        proves: impl FnOnce(&Secret) -> bool,
    ) -> Result<Claim, StateFileError> {
        let _lock = StateLock::take(&self.dir)?;
        let Some(mut offer) = self.live(now_unix)? else { return Ok(Claim::NoOffer) };
        if offer.claimed_by.is_some_and(|by| by != joiner) {
            return Ok(Claim::NoOffer);
        }
        let file = file(&self.dir);
        let secret = offer.secret().ok_or_else(|| file.damaged("the secret has a wrong length"))?;
        if !proves(&secret) {
            offer.wrong_proofs = offer.wrong_proofs.saturating_add(1);
            file.save(&offer)?;
            return Ok(Claim::WrongProof);
        }
        if offer.claimed_by.is_none() {
            offer.claimed_by = Some(joiner);
            file.save(&offer)?;
        }
        Ok(Claim::Granted(secret))
    }

    /// Whether the offer with this secret still stands for the joiner who claimed it: a newer one voids it.
    pub(crate) fn is_claimed(&self, joiner: Fingerprint, secret: &Secret) -> Result<bool, StateFileError> {
        let offer: Option<Offer> = file(&self.dir).load()?;
        Ok(offer.is_some_and(|offer| offer.claimed_by == Some(joiner) && offer.secret() == Some(*secret)))
    }

    /// Ends the offer with this secret; returns once that is on stable storage. A newer offer stays.
    pub(crate) fn consume(&self, secret: &Secret) -> Result<(), StateFileError> {
        let _lock = StateLock::take(&self.dir)?;
        let file = file(&self.dir);
        let offer: Option<Offer> = file.load()?;
        if offer.is_some_and(|offer| offer.secret() == Some(*secret)) {
            file.delete()?;
        }
        Ok(())
    }

    fn live(&self, now_unix: u64) -> Result<Option<Offer>, StateFileError> {
        let offer: Option<Offer> = file(&self.dir).load()?;
        Ok(offer.filter(|offer| offer.is_live(self.issuer, now_unix)))
    }
}

fn file(state_dir: &Path) -> StateFile {
    StateFile::new(state_dir, OFFER_FILE, "afterimage-offer")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const JOINER: Fingerprint = Fingerprint([1; 32]);
    const OTHER: Fingerprint = Fingerprint([2; 32]);

    fn offered() -> (tempfile::TempDir, OfferStore, Token) {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let token = create_offer(dir.path(), &identity, None, NOW).unwrap();
        let store = OfferStore::new(dir.path(), identity.fingerprint());
        (dir, store, token)
    }

    #[test]
    fn an_offer_stands_for_its_lifetime_and_survives_a_restart() {
        let (dir, store, token) = offered();
        assert_eq!(token.expires_at_unix(), NOW + OFFER_LIFETIME_SECS);
        let restarted = OfferStore::new(dir.path(), store.issuer);
        for (at, open) in [
            (0, true),
            (OFFER_LIFETIME_SECS - 1, true),
            (OFFER_LIFETIME_SECS, false),
            (u64::MAX - NOW, false),
        ] {
            assert_eq!(restarted.is_open_to(JOINER, NOW + at).unwrap(), open, "{at}");
            let expected = if open { Claim::WrongProof } else { Claim::NoOffer };
            assert_eq!(restarted.claim(JOINER, NOW + at, |_| false).unwrap(), expected, "{at}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_keep_an_offer_open() {
        let (_dir, store, _) = offered();
        assert!(!store.is_open_to(JOINER, NOW - 1).unwrap());
        assert!(!store.is_open_to(JOINER, 0).unwrap());
    }

    #[test]
    fn an_offer_is_for_the_key_that_made_it() {
        let (dir, _, _) = offered();
        let renewed = OfferStore::new(dir.path(), OTHER);
        assert!(!renewed.is_open_to(JOINER, NOW).unwrap());
        assert_eq!(renewed.claim(JOINER, NOW, |_| true).unwrap(), Claim::NoOffer);
    }

    #[test]
    fn wrong_proofs_void_it_even_for_the_right_one() {
        let (dir, store, _) = offered();
        for _ in 0..MAX_WRONG_PROOFS {
            // A new store each time: the count must survive a restart.
            let store = OfferStore::new(dir.path(), store.issuer);
            assert!(store.is_open_to(JOINER, NOW).unwrap());
            assert_eq!(store.claim(JOINER, NOW, |_| false).unwrap(), Claim::WrongProof);
        }
        assert!(!store.is_open_to(JOINER, NOW).unwrap());
        assert_eq!(store.claim(JOINER, NOW, |_| true).unwrap(), Claim::NoOffer);
    }

    #[test]
    fn the_first_right_proof_shuts_everybody_else_out() {
        let (dir, store, token) = offered();
        assert_eq!(store.claim(JOINER, NOW, |_| true).unwrap(), Claim::Granted(token.secret));
        let restarted = OfferStore::new(dir.path(), store.issuer);
        assert!(!restarted.is_open_to(OTHER, NOW).unwrap());
        assert_eq!(restarted.claim(OTHER, NOW, |_| true).unwrap(), Claim::NoOffer);
        assert_eq!(restarted.claim(JOINER, NOW, |_| true).unwrap(), Claim::Granted(token.secret));
        assert!(restarted.is_claimed(JOINER, &token.secret).unwrap());
        assert!(!restarted.is_claimed(OTHER, &token.secret).unwrap());
        restarted.consume(&token.secret).unwrap();
        assert_eq!(store.claim(JOINER, NOW, |_| true).unwrap(), Claim::NoOffer);
    }

    #[test]
    fn a_newer_offer_voids_the_older_and_is_not_consumed_for_it() {
        let (dir, store, old) = offered();
        store.claim(JOINER, NOW, |_| true).unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let new = create_offer(dir.path(), &identity, None, NOW).unwrap();
        assert!(new.secret != old.secret);
        assert!(!store.is_claimed(JOINER, &old.secret).unwrap());
        store.consume(&old.secret).unwrap();
        assert_eq!(store.claim(OTHER, NOW, |_| true).unwrap(), Claim::Granted(new.secret));
    }

    #[test]
    fn an_address_that_would_not_read_back_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        for bad in [
            "",
            "beta",
            "beta:",
            ":7789",
            "beta:0x1",
            "be ta:1",
            "beta:70000",
            &format!("{}:1", "a".repeat(300)),
        ] {
            let error = create_offer(dir.path(), &identity, Some(bad), NOW).unwrap_err();
            assert!(matches!(error, OfferError::Address(_)), "{bad}");
        }
        let token = create_offer(dir.path(), &identity, Some("beta:7789"), NOW).unwrap();
        assert_eq!(token.address(), Some("beta:7789"));
    }
}
