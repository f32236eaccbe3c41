//! A host's own key and certificate: made on first start, never replaced on its own account.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::fingerprint::Fingerprint;
use crate::reset::ResetSecret;
use crate::state_file::{self, StateFileError, StateLock};
use crate::tls;

/// The file of a state directory that holds the private key and the certificate, both as PEM.
pub const IDENTITY_FILE: &str = "identity.pem";

/// A host's private key and the self-signed certificate that carries its public key.
///
/// An Ed25519 key. The certificate has no end of validity that matters: trust comes from the pinned fingerprint alone,
/// and a clock that is wrong must not keep two paired hosts apart.
#[derive(Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    fingerprint: Fingerprint,
    reset_secret: ResetSecret,
}

/// An identity that could not be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The identity file could not be read or written.
    #[error(transparent)]
    File(#[from] StateFileError),
    /// Others than the owner may read the private key.
    #[error(
        "{} can be read by others (mode {mode:04o}): run `chmod 600 {}`; if others may have read it, \
         move it away and pair the hosts again", path.display(), path.display()
    )]
    Exposed {
        /// The identity file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is there, but does not hold one key and its certificate.
    #[error(
        "{} is damaged ({what}): restore it from a copy, or move it away to get a new identity \
         and pair the hosts again", path.display()
    )]
    Damaged {
        /// The identity file.
        path: PathBuf,
        /// The first thing found wrong.
        what: String,
    },
    /// No key or certificate could be made.
    #[error("cannot make a new identity")]
    Make(#[source] rcgen::Error),
}

impl Identity {
    /// Loads the identity in `dir`, or makes one if there is none; returns once it is on stable storage.
    ///
    /// An identity that is there but cannot be used is an error, never replaced: the peer knows this host by it.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(IDENTITY_FILE);
        // Taken first: of two processes that start together one makes the identity, the other loads it.
        let _lock = StateLock::take(dir)?;
        if let Some(identity) = Self::load(&path)? {
            return Ok(identity);
        }
        let pem = make_pem().map_err(IdentityError::Make)?;
        state_file::replace(&path, pem.as_bytes())?;
        Self::load(&path)?.ok_or_else(|| damaged(&path, "gone again after it was written"))
    }

    /// What a peer pins to know this host.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }

    pub(crate) fn reset_secret(&self) -> &ResetSecret {
        &self.reset_secret
    }

    fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let mode = match fs::metadata(path) {
            Ok(metadata) => metadata.permissions().mode() & 0o7777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(state_file::io_error("read", path, error).into()),
        };
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        match state_file::read_capped(path)? {
            Some(bytes) => parse(&bytes).map(Some).map_err(|what| damaged(path, what)),
            None => Ok(None),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

fn make_pem() -> Result<String, rcgen::Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    // The name says nothing: peers are told apart by key, and the node name is in the configuration.
    let mut params = rcgen::CertificateParams::new(vec![tls::SERVER_NAME.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, tls::SERVER_NAME);
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    // "No well-defined expiration date", RFC 5280 section 4.1.2.5.
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    let certificate = params.self_signed(&key)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

fn parse(bytes: &[u8]) -> Result<Identity, String> {
    let keys = PrivatePkcs8KeyDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
    let certificates = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
    let mut keys = keys.map_err(|error| error.to_string())?;
    let mut certificates = certificates.map_err(|error| error.to_string())?;
    let (Some(key), true) = (keys.pop(), keys.is_empty()) else {
        return Err("does not hold exactly one PRIVATE KEY".to_owned());
    };
    let (Some(certificate), true) = (certificates.pop(), certificates.is_empty()) else {
        return Err("does not hold exactly one CERTIFICATE".to_owned());
    };
    let fingerprint = Fingerprint::of_certificate(&certificate)
        .ok_or_else(|| "the certificate is not an X.509 v3 certificate".to_owned())?;
    let reset_secret = ResetSecret::of(key.secret_pkcs8_der());
    let key = tls::provider()
        .key_provider
        .load_private_key(PrivateKeyDer::Pkcs8(key))
        .map_err(|_| "the private key is not valid".to_owned())?;
    let key = CertifiedKey::new(vec![certificate], key);
    key.keys_match().map_err(|_| "the private key does not belong to the certificate".to_owned())?;
    Ok(Identity { key: Arc::new(key), fingerprint, reset_secret })
}

fn damaged(path: &Path, what: impl Into<String>) -> IdentityError {
    IdentityError::Damaged { path: path.to_owned(), what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn is_made_once_private_and_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Identity::load_or_create(dir.path()).unwrap().fingerprint(), first.fingerprint());
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Identity::load_or_create(other.path()).unwrap().fingerprint(), first.fingerprint());
    }

    #[test]
    fn two_first_starts_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let found: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| Identity::load_or_create(dir.path()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap().fingerprint()).collect()
        });
        assert!(found.iter().all(|fingerprint| *fingerprint == found[0]), "{found:?}");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        Identity::load_or_create(dir.path()).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o666] {
            set_mode(&path, mode);
            let error = Identity::load_or_create(dir.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Exposed { .. }), "{mode:o}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        set_mode(&path, 0o400);
        Identity::load_or_create(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        Identity::load_or_create(dir.path()).unwrap();
        let good = fs::read(&path).unwrap();
        for bad in [Vec::new(), b"nonsense".to_vec(), good[..good.len() / 2].to_vec(), good.repeat(2)] {
            fs::write(&path, &bad).unwrap();
            let error = Identity::load_or_create(dir.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bad);
        }
    }

    #[test]
    fn the_key_of_one_and_the_certificate_of_another_are_refused() {
        let (one, other) = (make_pem().unwrap(), make_pem().unwrap());
        let split = |pem: &str| pem.find("-----BEGIN CERTIFICATE").unwrap();
        let mixed = one[..split(&one)].to_owned() + &other[split(&other)..];
        assert!(parse(mixed.as_bytes()).unwrap_err().contains("does not belong"));
    }

    #[test]
    fn a_flipped_byte_never_yields_another_identity() {
        let good = make_pem().unwrap().into_bytes();
        let fingerprint = parse(&good).unwrap().fingerprint();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            if let Ok(identity) = parse(&bad) {
                assert_eq!(identity.fingerprint(), fingerprint, "byte {at}");
            }
        }
    }

    #[test]
    fn debug_output_does_not_hold_the_key() {
        let identity = parse(make_pem().unwrap().as_bytes()).unwrap();
        let shown = format!("{identity:?}");
        assert_eq!(shown, format!("Identity {{ fingerprint: {}, .. }}", identity.fingerprint()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
