//! What can be set about an endpoint, and how that becomes quinn's configuration.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::congestion::SteadyConfig;

/// Seconds since 1970, whenever asked. A clock that cannot be read counts as 0, when no offer is open.
#[derive(Clone)]
pub struct UnixClock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl UnixClock {
    /// The host's clock.
    pub fn system() -> Self {
        Self::from_fn(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// Any other clock.
    pub fn from_fn(now_unix: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_unix))
    }

    /// Seconds since 1970.
    pub fn now_unix(&self) -> u64 {
        (self.0)()
    }
}

impl fmt::Debug for UnixClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnixClock({})", self.now_unix())
    }
}

/// What decides how much is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// What the path delivers and its shortest round trip; loss slows it down only beyond what a bad line loses.
    #[default]
    Steady,
    /// Every loss is congestion (RFC 9438).
    Cubic,
    /// quinn's BBR.
    Bbr,
    /// RFC 9002.
    NewReno,
}

impl Congestion {
    fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Steady => Arc::new(SteadyConfig),
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::Bbr => Arc::new(BbrConfig::default()),
            Self::NewReno => Arc::new(NewRenoConfig::default()),
        }
    }
}

/// What can be set about an endpoint. The defaults are for a link between two sites.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// A connection is lost when the peer was not heard for this long.
    pub idle_timeout: Duration,
    /// A quiet connection says so this often. Well below the idle timeout, so that a few may be lost.
    pub keep_alive: Duration,
    /// A handshake that is not done by then is given up.
    pub handshake_timeout: Duration,
    /// UDP payload that is taken to pass at first, in bytes: the least that QUIC asks of a path.
    pub initial_mtu_bytes: u16,
    /// UDP payload up to which a larger one is looked for, in bytes. Fewer packets cost fewer processors: a network with jumbo
    /// frames is made use of, and so is the loopback.
    pub max_mtu_bytes: u16,
    /// What a peer may send on one stream ahead of its reader, in bytes.
    pub stream_window_bytes: u32,
    /// What a peer may send on all streams ahead of their readers, in bytes: the bound of receive memory.
    pub receive_window_bytes: u32,
    /// What may be sent and not yet acknowledged, in bytes: the bound of send memory.
    pub send_window_bytes: u32,
    /// What decides how much is under way.
    pub congestion: Congestion,
    /// Kernel buffers of the UDP socket, in bytes, each way; less if the kernel allows less.
    pub socket_buffer_bytes: usize,
    /// Streams in both directions that a peer may have open.
    pub max_bi_streams: u32,
    /// Streams towards this host that a peer may have open.
    pub max_uni_streams: u32,
    /// Connections from pinned peers at a time.
    pub max_connections: usize,
    /// Threads with a socket of their own on the same port, among which the kernel spreads connections from outside; without
    /// any, all is on the runtime that the endpoint is opened in.
    pub lanes: usize,
    /// The state directory whose pairing offer is honoured; `None` never pairs.
    pub pairing_state_dir: Option<PathBuf>,
    /// What time it is, for the expiry of offers.
    pub clock: UnixClock,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(5),
            initial_mtu_bytes: 1200,
            max_mtu_bytes: MAX_UDP_PAYLOAD_BYTES,
            // Measured on loopback: 1 MiB starves a stream, 64 MiB overruns the socket and loses packets.
            stream_window_bytes: 4 << 20,
            receive_window_bytes: 16 << 20,
            send_window_bytes: 16 << 20,
            congestion: Congestion::default(),
            socket_buffer_bytes: 4 << 20,
            max_bi_streams: 64,
            max_uni_streams: 64,
            max_connections: 32,
            lanes: 0,
            pairing_state_dir: None,
            clock: UnixClock::system(),
        }
    }
}

/// What a round trip is taken for before it is known. A first packet that is lost, or sent before the peer is there, is sent again
/// after three of these, then after twice as long, and so on: with QUIC's own value a peer that comes back waits for seconds.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// What a connection may have in flight before its peer is known to be pinned: enough for a pairing.
pub(crate) const UNADMITTED_WINDOW_BYTES: u32 = 16 << 10;

/// UDP payload sent and received at most, in bytes: four packets fill the datagram that the kernel takes at once. Larger ones cost
/// little less on the loopback, and take memory on receipt.
pub(crate) const MAX_UDP_PAYLOAD_BYTES: u16 = 16_376;

/// The search for the largest packet ends when it knows it to within so many bytes: a few packets more to look for it, once, and
/// all others are as large as they can be.
const MTU_ACCURACY_BYTES: u16 = 1;

impl EndpointOptions {
    /// For connections that this side opens: the peer is proved before it can send a byte.
    pub(crate) fn client_transport(&self) -> TransportConfig {
        let mut config = self.transport();
        config
            .max_concurrent_bidi_streams(self.max_bi_streams.into())
            .max_concurrent_uni_streams(self.max_uni_streams.into())
            .receive_window(self.receive_window_bytes.into());
        config
    }

    /// For connections from others: no stream and next to no window until the connection is admitted.
    pub(crate) fn server_transport(&self) -> TransportConfig {
        let mut config = self.transport();
        config
            .max_concurrent_bidi_streams(0u32.into())
            .max_concurrent_uni_streams(0u32.into())
            .receive_window(UNADMITTED_WINDOW_BYTES.into());
        config
    }

    fn transport(&self) -> TransportConfig {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.max_mtu_bytes).minimum_change(MTU_ACCURACY_BYTES);
        let idle_ms = u32::try_from(self.idle_timeout.as_millis()).unwrap_or(u32::MAX);
        let mut config = TransportConfig::default();
        config
            .initial_rtt(INITIAL_RTT)
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))))
            .keep_alive_interval(Some(self.keep_alive))
            .initial_mtu(self.initial_mtu_bytes)
            .mtu_discovery_config(Some(discovery))
            .stream_receive_window(self.stream_window_bytes.into())
            .send_window(self.send_window_bytes.into())
            .congestion_controller_factory(self.congestion.factory())
            // Nothing here uses datagrams: no buffer for them.
            .datagram_receive_buffer_size(None);
        config
    }
}
