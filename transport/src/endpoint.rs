//! The UDP port: connections from pinned peers, connections to them, and pairing.
//!
//! Every connection from outside goes through the same steps: a slot ([`crate::intake`]), the handshake with the
//! first answer of the [`Gate`], the second answer, and only then streams and windows. What is refused on the way is
//! logged here, once, and the application never hears of it.

use afterimage_events::{Event, event};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use quinn::crypto::rustls::HandshakeData;
use quinn::{EndpointConfig, TokioRuntime};
use rustls::pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

use crate::admission::{Admission, Gate, Refusal};
use crate::connection::{CloseCode, Connection, ConnectionLost, Places};
use crate::dial::{ConnectError, Dial, Unwelcome};
use crate::fingerprint::Fingerprint;
use crate::identity::Identity;
use crate::intake::{HalfOpen, Intake, Slot};
use crate::lane::{Crowd, Lane};
use crate::options::{EndpointOptions, MAX_UDP_PAYLOAD_BYTES};
use crate::pairing::{OfferStore, PairingConnection};
use crate::pins::Pins;
use crate::refusals::{Refusals, RefusedKeys};
use crate::socket;
use crate::text::shown;
use crate::tls::{self, ALPN_PEER, Seen, Watch};

/// A UDP port that takes connections from pinned peers and opens connections to them.
///
/// Needs a tokio runtime with time and network. Dropping it ends the taking of connections; those that are open stay.
#[derive(Debug)]
pub struct Endpoint {
    /// One for each lane, all on the same port; connections are opened from the first.
    sockets: Vec<Socket>,
    doorman: Arc<Doorman>,
    accepted: Mutex<mpsc::Receiver<Accepted>>,
}

/// A socket, what drives it, and the task that takes connections in.
#[derive(Debug)]
struct Socket {
    quic: quinn::Endpoint,
    taking_in: AbortHandle,
    lane: Option<Lane>,
}

/// A connection from outside that was let in.
#[derive(Debug)]
pub enum Accepted {
    /// A pinned peer's.
    Peer(Connection),
    /// Somebody's who wants to pair while an offer is open.
    Pairing(PairingConnection),
}

/// An endpoint that could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on UDP {address}")]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What the accepting side sends first, on a stream of its own: the client is let in. Until then a client only knows
/// that the handshake was good on its side.
pub(crate) const WELCOME: &[u8] = b"welcome\n";

/// Connections that wait for the application to take them.
const ACCEPTED_WAITING: usize = 8;

/// Pairing connections at a time: one operator, and a few who try.
const MAX_PAIRING: usize = 4;

/// Initial packets that wait for the intake task, and the bytes kept for each and for all of them.
const MAX_INCOMING: usize = 256;
const INCOMING_BYTES: u64 = 8 << 10;
const ALL_INCOMING_BYTES: u64 = 1 << 20;

impl Endpoint {
    /// Opens the UDP port. `[::]` takes IPv4 as well.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        pins: Arc<Pins>,
        options: EndpointOptions,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let lanes = (0..options.lanes).map(|n| Lane::start(format!("lane-{n}")).map(Some));
        let lanes = lanes.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let lanes = if lanes.is_empty() { vec![None] } else { lanes };
        let (mut address, share) = (address, lanes.len() > 1);
        if share {
            // Who shares a port is not told that another process has it.
            let alone = open_socket(address, options.socket_buffer_bytes, false).map_err(failed)?;
            address = alone.local_addr().map_err(failed)?;
        }
        let doorman = Arc::new(Doorman::new(identity, pins, options));
        let (hand_over, accepted) = mpsc::channel(ACCEPTED_WAITING);
        let socket = |lane| doorman.open(address, share, lane, &hand_over).map_err(failed);
        let sockets = lanes.into_iter().map(socket).collect::<Result<_, _>>()?;
        Ok(Self { sockets, doorman, accepted: Mutex::new(accepted) })
    }

    fn first(&self) -> &quinn::Endpoint {
        // There is always one.
        &self.sockets[0].quic
    }

    /// The next connection that was let in; `None` once the endpoint is closed. Cancel safe.
    pub async fn accept(&self) -> Option<Accepted> {
        self.accepted.lock().await.recv().await
    }

    /// Connects to the peer with this key. Returns once the peer has let this host in too.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: Fingerprint,
    ) -> Result<Connection, ConnectError> {
        let (identity, options) = (&self.doorman.identity, &self.doorman.options);
        let dial = Dial { identity, options, protocol: ALPN_PEER, address, expected };
        let connection = dial.connect(self.first(), wait_for_welcome).await?;
        Ok(Connection::new(connection, expected, Places::default()))
    }

    /// Where it listens.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.first().local_addr()
    }

    /// Goes on from another port, with the connections there are: a peer whose port is shared by several threads is then
    /// likely to be reached on another of them.
    pub fn change_port(&self) -> io::Result<()> {
        let address = SocketAddr::new(self.local_address()?.ip(), 0);
        let socket = open_socket(address, self.doorman.options.socket_buffer_bytes, false)?;
        self.first().rebind_abstract(socket::open(socket)?)
    }

    /// Connections refused so far because of who or what was at the other end.
    pub fn refused_connections(&self) -> u64 {
        self.doorman.refusals.total()
    }

    /// The key that was last refused, now and later.
    pub fn refused_keys(&self) -> RefusedKeys {
        self.doorman.refused_keys.clone()
    }

    /// Closes all connections and takes no more; the peers see code and text.
    pub fn close(&self, code: CloseCode, text: &str) {
        self.sockets.iter().for_each(|socket| socket.quic.close(code.0.into(), text.as_bytes()));
    }

    /// The threads on which its connections are driven, where it has threads of its own.
    pub fn lanes(&self) -> impl Iterator<Item = &Handle> {
        self.sockets.iter().filter_map(|socket| socket.lane.as_ref()).map(Lane::runtime)
    }

    /// Waits until the peers have been told of what was closed, or cannot be.
    pub async fn wait_idle(&self) {
        for socket in &self.sockets {
            socket.quic.wait_idle().await;
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        for socket in &self.sockets {
            socket.taking_in.abort();
            socket.quic.set_server_config(None);
        }
    }
}

async fn wait_for_welcome(connection: quinn::Connection) -> Result<(), Unwelcome> {
    let mut stream = connection.accept_uni().await.map_err(Unwelcome::Lost)?;
    match stream.read_to_end(WELCOME.len()).await {
        Ok(words) if words == WELCOME => Ok(()),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error))) => {
            Err(Unwelcome::Lost(error))
        }
        _ => Err(Unwelcome::Garbled),
    }
}

/// Ends with the endpoint; the handshakes that are under way end with it.
async fn take_in(
    quic: quinn::Endpoint,
    doorman: Arc<Doorman>,
    crowd: Option<Crowd>,
    hand_over: mpsc::Sender<Accepted>,
) {
    let mut handshakes = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = quic.accept() => incoming,
            Some(_) = handshakes.join_next() => continue,
        };
        let Some(incoming) = incoming else { return };
        let proved = incoming.remote_address_validated();
        match doorman.half_open.take(incoming.remote_address().ip(), proved) {
            Intake::Accept(slot) => {
                let (doorman, crowd, hand_over) = (doorman.clone(), crowd.clone(), hand_over.clone());
                handshakes
                    .spawn(async move { doorman.let_in(incoming, slot, crowd.as_ref(), hand_over).await });
            }
            // Cannot fail: the address is not proved, so no token was used yet.
            Intake::Retry => drop(incoming.retry()),
            Intake::Refuse => {
                doorman.refusals.count(Instant::now());
                incoming.refuse();
            }
        }
    }
}

/// Decides on every connection from outside.
#[derive(Debug)]
struct Doorman {
    identity: Identity,
    options: EndpointOptions,
    gate: Arc<Gate>,
    base_config: quinn::ServerConfig,
    half_open: HalfOpen,
    connections: Arc<Semaphore>,
    pairings: Arc<Semaphore>,
    refusals: Refusals,
    refused_keys: RefusedKeys,
}

impl Doorman {
    fn new(identity: &Identity, pins: Arc<Pins>, options: EndpointOptions) -> Self {
        let own = identity.fingerprint();
        let offers = options.pairing_state_dir.as_ref().map(|dir| OfferStore::new(dir, own));
        let gate = Arc::new(Gate { pins, offers, clock: options.clock.clone() });
        let crypto = tls::server_config(&identity.certified_key(), &gate, &Arc::default());
        let mut base_config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        base_config
            .transport_config(Arc::new(options.server_transport()))
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(ALL_INCOMING_BYTES);
        Self {
            identity: identity.clone(),
            gate,
            base_config,
            half_open: HalfOpen::default(),
            connections: Arc::new(Semaphore::new(options.max_connections)),
            pairings: Arc::new(Semaphore::new(MAX_PAIRING)),
            refusals: Refusals::default(),
            refused_keys: RefusedKeys::default(),
            options,
        }
    }

    /// Opens a socket, on `lane` or in the runtime of the caller, and begins to take in what comes to it.
    fn open(
        self: &Arc<Self>,
        address: SocketAddr,
        share: bool,
        lane: Option<Lane>,
        hand_over: &mpsc::Sender<Accepted>,
    ) -> io::Result<Socket> {
        let _on_lane = lane.as_ref().map(|lane| lane.runtime().enter());
        let socket = open_socket(address, self.options.socket_buffer_bytes, share)?;
        let config = self.server_config(&Arc::new(Watch::default()));
        let mut endpoint_config = endpoint_config();
        self.identity.reset_secret().apply(socket.local_addr()?, &mut endpoint_config);
        let quic = open_on(socket, endpoint_config, Some(config))?;
        let crowd = lane.as_ref().map(|_| Crowd::default());
        let taking_in = tokio::spawn(take_in(quic.clone(), self.clone(), crowd, hand_over.clone()));
        let taking_in = taking_in.abort_handle();
        Ok(Socket { quic, taking_in, lane })
    }

    fn server_config(&self, watch: &Arc<Watch>) -> quinn::ServerConfig {
        let mut config = self.base_config.clone();
        config.crypto = Arc::new(tls::server_config(&self.identity.certified_key(), &self.gate, watch));
        config
    }

    /// The slot is kept until the application has taken the connection, or it is refused.
    async fn let_in(
        &self,
        incoming: quinn::Incoming,
        slot: Slot,
        crowd: Option<&Crowd>,
        hand_over: mpsc::Sender<Accepted>,
    ) {
        let address = incoming.remote_address();
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let watch = Arc::new(Watch::default());
        let admitted = tokio::time::timeout(self.options.handshake_timeout, async {
            let connecting = incoming.accept_with(Arc::new(self.server_config(&watch)))?;
            let connection = connecting.await?;
            self.admit(connection, crowd, &watch, address).await
        });
        match admitted.await {
            Ok(Ok(Some(accepted))) => {
                // Fails only when the endpoint is gone, which closes the connection.
                let _ = hand_over.send(accepted).await;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => self.handshake_failed(&error, &watch.seen(), address),
            Err(_) => debug!(%address, "handshake not done in time"),
        }
        drop(slot);
    }

    /// What a connection is once its handshake is done: `None` if it was refused.
    async fn admit(
        &self,
        connection: quinn::Connection,
        crowd: Option<&Crowd>,
        watch: &Watch,
        address: SocketAddr,
    ) -> Result<Option<Accepted>, quinn::ConnectionError> {
        let agreed = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let protocol = agreed.and_then(|data| data.protocol);
        let key = proved_key(&connection);
        match self.gate.admit(protocol.as_deref(), key) {
            Ok(Admission::Peer(peer)) => {
                let Ok(allowed) = self.connections.clone().try_acquire_owned() else {
                    self.busy(&connection, peer, address);
                    return Ok(None);
                };
                let lane = crowd.map(|crowd| (Handle::current(), crowd.join()));
                let places = Places { _allowed: Some(allowed), lane };
                self.welcome(&connection).await?;
                connection.set_receive_window(self.options.receive_window_bytes.into());
                connection.set_max_concurrent_bi_streams(self.options.max_bi_streams.into());
                connection.set_max_concurrent_uni_streams(self.options.max_uni_streams.into());
                Ok(Some(Accepted::Peer(Connection::new(connection, peer, places))))
            }
            Ok(Admission::Pairing(joiner)) => {
                let (Ok(place), Some(offers)) =
                    (self.pairings.clone().try_acquire_owned(), self.gate.offers.clone())
                else {
                    self.busy(&connection, joiner, address);
                    return Ok(None);
                };
                connection.set_max_concurrent_bi_streams(1u32.into());
                let clock = self.gate.clock.clone();
                Ok(Some(Accepted::Pairing(PairingConnection::new(
                    connection,
                    self.identity.fingerprint(),
                    joiner,
                    offers,
                    clock,
                    place,
                ))))
            }
            Err(refusal) => {
                let (code, text) = refusal.close();
                connection.close(code.0.into(), text);
                self.refused(&refusal, &Seen { key, ..watch.seen() }, address);
                Ok(None)
            }
        }
    }

    async fn welcome(&self, connection: &quinn::Connection) -> Result<(), quinn::ConnectionError> {
        let mut stream = connection.open_uni().await?;
        // Any other failure is a peer that stops the stream: it does not want to know.
        if let Err(quinn::WriteError::ConnectionLost(error)) = stream.write_all(WELCOME).await {
            return Err(error);
        }
        let _ = stream.finish();
        Ok(())
    }

    fn handshake_failed(&self, error: &quinn::ConnectionError, seen: &Seen, address: SocketAddr) {
        let here = matches!(error, quinn::ConnectionError::TransportError(_));
        let lost = ConnectionLost::from(error.clone());
        let refusal = match &seen.refusal {
            Some(refusal) => refusal.clone(),
            None if seen.offered_only_unknown() && !seen.offered.is_empty() => Refusal::UnknownProtocol,
            None if here && seen.key.is_some() => Refusal::KeyNotProved,
            None if here && !seen.offered.is_empty() => Refusal::NoKey,
            None if matches!(lost, ConnectionLost::ClosedByPeer { code: CloseCode::NOT_PINNED, .. }) => {
                Refusal::DoesNotTrustThisHost
            }
            None => return debug!(%address, %error, "handshake failed"),
        };
        self.refused(&refusal, seen, address);
    }

    fn refused(&self, refusal: &Refusal, seen: &Seen, address: SocketAddr) {
        if let (Refusal::NotPinned | Refusal::DoesNotTrustThisHost, Some(key)) = (refusal, seen.key) {
            self.refused_keys.note(address, key, refusal.to_string());
        }
        let Some(unlogged) = self.refusals.count(Instant::now()) else { return };
        let key = seen.key.map_or_else(|| "none".to_owned(), |key| key.to_string());
        let offered: Vec<_> = seen.offered.iter().map(|offered| shown(offered, 32)).collect();
        let offered = offered.join(" ");
        match refusal {
            Refusal::PinsUnreadable(_) | Refusal::OfferUnreadable(_) => {
                event!(limited: Event::PinsUnreadable, %address, key, offered, unlogged, "connection refused: {refusal}");
            }
            Refusal::NotPinned => {
                let pinned = self.pinned_keys();
                event!(limited: Event::KeyRefused, %address, key, pinned, offered, unlogged, "connection refused: {refusal}");
            }
            Refusal::NoOffer
            | Refusal::UnknownProtocol
            | Refusal::NoKey
            | Refusal::KeyNotProved
            | Refusal::DoesNotTrustThisHost => {
                event!(limited: Event::KeyRefused, %address, key, offered, unlogged, "connection refused: {refusal}");
            }
        }
    }

    fn busy(&self, connection: &quinn::Connection, key: Fingerprint, address: SocketAddr) {
        connection.close(CloseCode::BUSY.0.into(), b"too many connections");
        if let Some(unlogged) = self.refusals.count(Instant::now()) {
            event!(limited: Event::BusyRefused, %address, %key, unlogged, "connection refused: too many are open");
        }
    }

    /// Names and keys, so that a replaced key can be told from a stranger's; the first few are enough for that.
    fn pinned_keys(&self) -> String {
        let peers = self.gate.pins.all().unwrap_or_default();
        let shown: Vec<_> =
            peers.iter().take(4).map(|peer| format!("{}={}", peer.name, peer.fingerprint)).collect();
        shown.join(" ")
    }
}

/// The key in the certificate whose private half the other side has proved to hold.
fn proved_key(connection: &quinn::Connection) -> Option<Fingerprint> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Fingerprint::of_certificate(identity.first()?)
}

pub(crate) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(MAX_UDP_PAYLOAD_BYTES).expect("above the 1200 that QUIC asks for");
    config
}

/// One on `socket`, in the runtime of the caller.
pub(crate) fn open_on(
    socket: UdpSocket,
    config: EndpointConfig,
    serving: Option<quinn::ServerConfig>,
) -> io::Result<quinn::Endpoint> {
    let socket = socket::open(socket)?;
    quinn::Endpoint::new_with_abstract_socket(config, serving, socket, Arc::new(TokioRuntime))
}

/// A UDP socket with large kernel buffers, as far as the kernel allows: small ones lose packets at full speed.
/// With `share` others may have the same port.
pub(crate) fn open_socket(address: SocketAddr, buffer_bytes: usize, share: bool) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_port(share)?;
    let sized =
        socket.set_recv_buffer_size(buffer_bytes).and_then(|()| socket.set_send_buffer_size(buffer_bytes));
    // The kernel reports twice what it gives, for its own use.
    let (receive, send) = (socket.recv_buffer_size()? / 2, socket.send_buffer_size()? / 2);
    if sized.is_err() || receive.min(send) < buffer_bytes {
        debug!(
            wanted_bytes = buffer_bytes,
            receive,
            send,
            "the kernel gives smaller UDP buffers: raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}
