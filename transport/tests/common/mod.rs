//! Hosts on loopback, and clients and servers that do not keep to the rules.
#![allow(dead_code)]

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use afterimage_transport::*;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

pub const NOW: u64 = 1_800_000_000;
pub const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);
/// Longer than anything on loopback takes; a test that waits for it fails.
pub const LONG: Duration = Duration::from_secs(20);
/// Long enough for something that must not happen to happen.
pub const SHORT: Duration = Duration::from_millis(300);

/// A host with a state directory of its own.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub identity: Identity,
    pub name: NodeName,
}

impl Host {
    pub fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        Self { dir, identity, name: name.parse().unwrap() }
    }

    pub fn key(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    pub fn pin(&self, other: &Host) {
        let peer = PinnedPeer {
            name: other.name.clone(),
            fingerprint: other.key(),
            address: None,
            paired_at_unix: NOW,
        };
        PinStore::new(self.dir.path()).pin(peer).unwrap();
    }

    pub fn pinned(&self) -> Vec<PinnedPeer> {
        PinStore::new(self.dir.path()).load().unwrap()
    }

    pub fn options(&self) -> EndpointOptions {
        EndpointOptions {
            pairing_state_dir: Some(self.dir.path().to_owned()),
            clock: UnixClock::from_fn(|| NOW),
            ..EndpointOptions::default()
        }
    }

    pub fn listen(&self) -> (Endpoint, SocketAddr) {
        self.listen_with(self.options())
    }

    pub fn listen_with(&self, options: EndpointOptions) -> (Endpoint, SocketAddr) {
        let pins = Arc::new(Pins::open(self.dir.path()).unwrap());
        let endpoint = Endpoint::bind(LOOPBACK.into(), &self.identity, pins, options).unwrap();
        let address = endpoint.local_address().unwrap();
        (endpoint, address)
    }

    pub fn offer(&self, address: SocketAddr) -> Token {
        create_offer(self.dir.path(), &self.identity, Some(&address.to_string()), NOW).unwrap()
    }

    pub fn joiner(&self) -> Joiner<'_> {
        Joiner {
            identity: &self.identity,
            state_dir: self.dir.path(),
            node_name: &self.name,
            listens_at: Some("127.0.0.1:7789"),
            now_unix: NOW,
        }
    }

    /// Certificate and key as TLS libraries want them.
    pub fn certified_key(&self) -> CertifiedKey {
        let path = self.dir.path().join(IDENTITY_FILE);
        let certificate = CertificateDer::from_pem_file(&path).unwrap();
        let key = PrivateKeyDer::from_pem_file(&path).unwrap();
        CertifiedKey::from_der(vec![certificate], key, &provider()).unwrap()
    }
}

/// Two hosts that have pinned each other.
pub fn two_paired() -> (Host, Host) {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    alpha.pin(&beta);
    beta.pin(&alpha);
    (alpha, beta)
}

pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.expect("should be done long since")
}

pub async fn accept_peer(endpoint: &Endpoint) -> Connection {
    match in_time(endpoint.accept()).await {
        Some(Accepted::Peer(connection)) => connection,
        other => panic!("expected a peer, got {other:?}"),
    }
}

pub async fn accept_pairing(endpoint: &Endpoint) -> PairingConnection {
    match in_time(endpoint.accept()).await {
        Some(Accepted::Pairing(connection)) => connection,
        other => panic!("expected a pairing, got {other:?}"),
    }
}

pub async fn accepts_nobody(endpoint: &Endpoint) {
    if let Ok(accepted) = tokio::time::timeout(SHORT, endpoint.accept()).await {
        panic!("the application was handed {accepted:?}");
    }
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A client that shows `key`, trusts any server and asks for `protocols`.
pub fn raw_client(key: Option<CertifiedKey>, protocols: &[&[u8]]) -> quinn::Endpoint {
    raw_client_with(key, protocols, quinn::TransportConfig::default())
}

pub fn raw_client_with(
    key: Option<CertifiedKey>,
    protocols: &[&[u8]],
    transport: quinn::TransportConfig,
) -> quinn::Endpoint {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAll));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    config.transport_config(Arc::new(transport));
    let mut endpoint = quinn::Endpoint::client(LOOPBACK.into()).unwrap();
    endpoint.set_default_client_config(config);
    endpoint
}

/// A server that shows `key`, trusts any client and speaks `protocol`.
pub fn raw_server(key: CertifiedKey, protocol: &[u8]) -> (quinn::Endpoint, SocketAddr) {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(TrustAll))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![protocol.to_vec()];
    let crypto = Arc::new(QuicServerConfig::try_from(config).unwrap());
    let endpoint =
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(crypto), LOOPBACK.into()).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

/// Lets everybody in and says the welcome.
pub fn serve(server: quinn::Endpoint) {
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(incoming) = server.accept().await {
            if let Ok(connection) = incoming.await
                && let Ok(mut stream) = connection.open_uni().await
            {
                let _ = stream.write_all(b"welcome\n").await;
                let _ = stream.finish();
                kept.push(connection);
            }
        }
    });
}

/// Connects and waits until the server has closed the connection; says why.
pub async fn turned_away(client: &quinn::Endpoint, address: SocketAddr) -> quinn::ConnectionError {
    match client.connect(address, "afterimage").unwrap().await {
        Ok(connection) => in_time(connection.closed()).await,
        Err(error) => error,
    }
}

#[derive(Debug)]
struct TrustAll;

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for TrustAll {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What is logged on this thread while it lives.
pub struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    pub fn capture() -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let sink = text.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::WARN)
            .with_writer(move || Sink(sink.clone()))
            .finish();
        Self { text, _guard: tracing::subscriber::set_default(subscriber) }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
    }

    /// Waits until all words are in one line, which it returns.
    pub async fn line_with(&self, words: &[&str]) -> String {
        for _ in 0..200 {
            let text = self.text();
            if let Some(line) = text.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no line with {words:?} in:\n{}", self.text());
    }
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
