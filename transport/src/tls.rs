//! TLS 1.3 both ways: which algorithms, which certificates, and what a handshake was seen to bring.
//!
//! Trust is decided in [`crate::admission`]; this module puts the question to it during the handshake, after which
//! rustls checks that the other side holds the key it showed.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};

use crate::admission::{Gate, Refusal, is_known_protocol};
use crate::fingerprint::Fingerprint;

/// The protocol of replication connections, with its version.
pub const ALPN_PEER: &[u8] = b"afterimage/3";

/// The protocol of pairing connections, with its version.
pub const ALPN_PAIRING: &[u8] = b"afterimage-pair/1";

/// In every certificate, and nobody's name: QUIC wants one to connect.
pub(crate) const SERVER_NAME: &str = "afterimage";

/// Offered protocols that are remembered of one handshake; more only make the log longer.
const MAX_OFFERED: usize = 8;

/// ring, TLS 1.3 only, AES-128-GCM first: the fastest here, and the only one QUIC insists on.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites.retain(|suite| suite.tls13().is_some());
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        Arc::new(provider)
    })
}

/// What one handshake was seen to bring, for the decision and for the words that tell of a refusal.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// Protocols the client offered, most wanted first. Server side only.
    pub(crate) offered: Vec<Vec<u8>>,
    /// The key in the certificate shown. Not yet proved to be held.
    pub(crate) key: Option<Fingerprint>,
    /// Why the certificate was refused during the handshake.
    pub(crate) refusal: Option<Refusal>,
}

impl Watch {
    pub(crate) fn seen(&self) -> Seen {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For one connection from a client. A configuration each, so that the one who checks the certificate knows which
/// protocol is meant: rustls does not tell.
pub(crate) fn server_config(
    key: &Arc<CertifiedKey>,
    gate: &Arc<Gate>,
    watch: &Arc<Watch>,
) -> QuicServerConfig {
    let mut config = rustls::ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(Arc::new(ClientCheck { gate: gate.clone(), watch: watch.clone() }))
        .with_cert_resolver(Arc::new(OwnKey { key: key.clone(), watch: watch.clone() }));
    config.alpn_protocols = vec![ALPN_PEER.to_vec(), ALPN_PAIRING.to_vec()];
    // A resumed session would skip the certificate, and with it the pins as they are now. One configuration a
    // connection leaves nothing to resume from already; these two keep that so, and save the cache.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).expect("the provider has AES-128-GCM")
}

/// For one connection to a server that must have the key `expected`.
pub(crate) fn client_config(
    key: &Arc<CertifiedKey>,
    protocol: &[u8],
    expected: Fingerprint,
    watch: &Arc<Watch>,
) -> QuicClientConfig {
    let mut config = rustls::ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerCheck { expected, watch: watch.clone() }))
        .with_client_cert_resolver(Arc::new(OwnKey { key: key.clone(), watch: watch.clone() }));
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    QuicClientConfig::try_from(config).expect("the provider has AES-128-GCM")
}

/// Shows this host's certificate, and notes what the client offered.
struct OwnKey {
    key: Arc<CertifiedKey>,
    watch: Arc<Watch>,
}

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnKey")
    }
}

impl ResolvesServerCert for OwnKey {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offered = hello.alpn().into_iter().flatten().take(MAX_OFFERED).map(<[u8]>::to_vec).collect();
        self.watch.lock().offered = offered;
        Some(self.key.clone())
    }
}

impl ResolvesClientCert for OwnKey {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Asks the gate whether a client with this key may have the protocol it asks for.
#[derive(Debug)]
struct ClientCheck {
    gate: Arc<Gate>,
    watch: Arc<Watch>,
}

impl ClientCertVerifier for ClientCheck {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = Fingerprint::of_certificate(end_entity);
        let mut seen = self.watch.lock();
        seen.key = key;
        let protocol =
            [ALPN_PEER, ALPN_PAIRING].into_iter().find(|ours| seen.offered.iter().any(|o| o == ours));
        match self.gate.admit(protocol, key) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(refusal) => {
                seen.refusal = Some(refusal);
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Accepts the one key that is expected.
#[derive(Debug)]
struct ServerCheck {
    expected: Fingerprint,
    watch: Arc<Watch>,
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = Fingerprint::of_certificate(end_entity);
        self.watch.lock().key = key;
        if key == Some(self.expected) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl Seen {
    /// Whether the client offered protocols, none of which is ours.
    pub(crate) fn offered_only_unknown(&self) -> bool {
        !self.offered.iter().any(|offered| is_known_protocol(offered))
    }
}
