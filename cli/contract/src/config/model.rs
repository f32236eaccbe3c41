//! The configuration as the rest of the code sees it, and the default and the bounds of every key.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Problem;
use crate::units::{ByteRate, ByteSize, HostPort};

/// Where the three binaries look when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/afterimage/afterimage.toml";
/// `node.listen`: every address, IPv4 included, on the port the peer expects.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7789);
/// `node.state_dir`: made by the packaged systemd units.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/afterimage";
/// `node.low_latency`: where few processors, or none of a virtual machine, are kept awake.
pub const DEFAULT_LOW_LATENCY: LowLatency = LowLatency::Auto;
/// `group.*.mode`: asynchronous, since nobody should pay the link's round trip for each write without asking.
pub const DEFAULT_MODE: Mode = Mode::Async;
/// `group.*.ack`: the receiver process has it; flushes wait for durable in any case.
pub const DEFAULT_ACK: Ack = Ack::Received;
/// `group.*.on_link_loss`: the volume goes on.
pub const DEFAULT_ON_LINK_LOSS: OnLinkLoss = OnLinkLoss::Degrade;
/// `group.*.sync_timeout`: well above a slow link's hiccups, well below the 30 s after which a kernel or a
/// database gives up on a disk.
pub const DEFAULT_SYNC_TIMEOUT: Duration = Duration::from_secs(5);
/// Least `group.*.sync_timeout`: below it one lost packet on a 200 ms link would end sync.
pub const MIN_SYNC_TIMEOUT: Duration = Duration::from_millis(500);
/// Greatest `group.*.sync_timeout`: writes are held for this long when the link is lost.
pub const MAX_SYNC_TIMEOUT: Duration = Duration::from_secs(300);
/// `group.*.history`: keep no past, the base follows at once.
pub const DEFAULT_HISTORY: Duration = Duration::ZERO;
/// Greatest `group.*.history`: a journal is not an archive.
pub const MAX_HISTORY: Duration = Duration::from_secs(366 * 24 * 3600);
/// Directory under `node.state_dir` that is the default of `group.*.journal.dir`.
pub const DEFAULT_JOURNAL_SUBDIR: &str = "journal";
/// `group.*.journal.max_size`: rides out some minutes of a slow base disk on a host that set nothing aside.
pub const DEFAULT_JOURNAL_MAX_SIZE: ByteSize = ByteSize::from_gib(8);
/// Least `group.*.journal.max_size`: a few segments.
pub const MIN_JOURNAL_MAX_SIZE: ByteSize = ByteSize::from_mib(16);
/// `group.*.first_sync`: copy, since the standby's volume is usually empty.
pub const DEFAULT_FIRST_SYNC: FirstSync = FirstSync::Copy;
/// `group.*.queue_size`: half a second of a gigabit link, and bounded memory.
pub const DEFAULT_QUEUE_SIZE: ByteSize = ByteSize::from_mib(64);
/// Least `group.*.queue_size`: a few of the largest requests.
pub const MIN_QUEUE_SIZE: ByteSize = ByteSize::from_mib(1);
/// Greatest `group.*.queue_size`: it is memory.
pub const MAX_QUEUE_SIZE: ByteSize = ByteSize::from_gib(8);
/// `group.*.catchup_window`: what the disk reads while the link takes a breath.
pub const DEFAULT_CATCHUP_WINDOW: ByteSize = ByteSize::from_mib(16);
/// Least `group.*.catchup_window`: one large read.
pub const MIN_CATCHUP_WINDOW: ByteSize = ByteSize::from_mib(1);
/// Greatest `group.*.catchup_window`: it is memory at both ends.
pub const MAX_CATCHUP_WINDOW: ByteSize = ByteSize::from_gib(1);
/// `group.*.hot_extents`: at 4 MiB each, at most 4 GiB is read again after a power cut.
pub const DEFAULT_HOT_EXTENTS: u32 = 1024;
/// Least `group.*.hot_extents`: room for the largest request at a useful concurrency.
pub const MIN_HOT_EXTENTS: u32 = 16;
/// Greatest `group.*.hot_extents`: 256 GiB to read again after a power cut.
pub const MAX_HOT_EXTENTS: u32 = 65_536;
/// Least `group.*.max_rate`: below it a catch-up might never end.
pub const MIN_MAX_RATE: ByteRate = ByteRate::from_bytes_per_s(64 << 10);
/// `group.*.background`: clients may wait twice as long, and a catch-up is not drawn out without end.
pub const DEFAULT_BACKGROUND: Background = Background::Balanced;
/// `group.*.verify.rate`: half of what a slow disk reads, so that a verification is not felt.
pub const DEFAULT_VERIFY_RATE: ByteRate = ByteRate::from_bytes_per_s(50 << 20);
/// `group.*.compression`: by what the link and the processors turn out to be.
pub const DEFAULT_COMPRESSION: Compression = Compression::Auto;
/// `group.*.compression_window`: what a busy database writes between two checkpoints, or a part of it.
pub const DEFAULT_COMPRESSION_WINDOW: ByteSize = ByteSize::from_mib(64);
/// Least `group.*.compression_window`.
pub const MIN_COMPRESSION_WINDOW: ByteSize = ByteSize::from_mib(1);
/// Greatest `group.*.compression_window`: it is memory at both ends.
pub const MAX_COMPRESSION_WINDOW: ByteSize = ByteSize::from_mib(128);
/// `group.*.volume.capture`: the agent is in the I/O path.
pub const DEFAULT_CAPTURE: Capture = Capture::Inline;
/// `group.*.volume.export.tcp_remote`: NBD knows no password.
pub const DEFAULT_TCP_REMOTE: bool = false;
/// `log.level`: what an operator has to know, and nothing for each write.
pub const DEFAULT_LOG_LEVEL: &str = "info";
/// `hooks.dir`: beside the configuration, where only root writes.
pub const DEFAULT_HOOKS_DIR: &str = "/etc/afterimage/hooks";
/// `hooks.timeout`: a DNS update or an address move takes seconds, and a promotion waits for what is before it.
pub const DEFAULT_HOOKS_TIMEOUT: Duration = Duration::from_secs(30);
/// Least `hooks.timeout`: a script must have the time to start.
pub const MIN_HOOKS_TIMEOUT: Duration = Duration::from_secs(1);
/// Greatest `hooks.timeout`: the operator's command waits 5 minutes for a promotion, the hook before it included.
pub const MAX_HOOKS_TIMEOUT: Duration = Duration::from_secs(120);
/// `hooks.before_*.on_failure`: what runs before something is there to stop it.
pub const DEFAULT_ON_FAILURE: OnFailure = OnFailure::Abort;
/// Most groups on a host: each has its own stream, queue and journal.
pub const MAX_GROUPS: usize = 64;
/// Most volumes in a group: one write order serves them all.
pub const MAX_VOLUMES: usize = 64;
/// Longest name of a node, group or volume, in bytes.
pub const MAX_NAME_LEN: usize = 64;
/// Longest path of a unix socket, in bytes: what `sockaddr_un` holds, less its final NUL.
pub const MAX_SOCKET_PATH_LEN: usize = 107;

/// A whole configuration. Every value is within its bounds and every name is unique where it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This host.
    pub node: Node,
    /// The other host.
    pub peer: Peer,
    /// What is logged.
    pub log: Log,
    /// The operator's programs; `None` without a `[hooks]` section: then none is looked for.
    pub hooks: Option<Hooks>,
    /// The groups by name.
    pub groups: BTreeMap<String, Group>,
    /// What is legal and probably not meant, in the order of the lines. To be shown, once.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Where the agent of this host takes administration requests.
    pub fn agent_socket(&self) -> PathBuf {
        self.node.state_dir.join(crate::config::AGENT_SOCKET_NAME)
    }

    /// Where the receiver of this host takes administration requests.
    pub fn receiver_socket(&self) -> PathBuf {
        self.node.state_dir.join(crate::config::RECEIVER_SOCKET_NAME)
    }

    /// Where the agent of this host shows its metrics.
    pub fn agent_metrics(&self) -> Option<SocketAddr> {
        self.node.metrics
    }

    /// Where the receiver of this host shows its metrics: on the port after the agent's.
    pub fn receiver_metrics(&self) -> Option<SocketAddr> {
        // The last port is refused where the configuration is read.
        self.node.metrics.map(|address| SocketAddr::new(address.ip(), address.port().saturating_add(1)))
    }
}

/// `[node]`: this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What the groups' `primary` and the peer call it.
    pub name: String,
    /// Where the receiver listens for the peer (UDP, QUIC).
    pub listen: SocketAddr,
    /// Where identity, bitmaps, superblocks and administration sockets are. Absolute.
    pub state_dir: PathBuf,
    /// Where the agent shows metrics over HTTP, and on the next port the receiver; nowhere by default.
    pub metrics: Option<SocketAddr>,
    /// Whether processors are kept from sleeping while clients wait.
    pub low_latency: LowLatency,
}

/// Whether the processors of this host are kept from sleeping while clients wait for one request after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LowLatency {
    /// Not in a virtual machine with many of them.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// `[peer]`: the other host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its `node.name`.
    pub name: String,
    /// Where its receiver listens.
    pub address: HostPort,
}

/// `[log]`: what is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level, or a filter as `RUST_LOG` has it.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: DEFAULT_LOG_LEVEL.to_owned() }
    }
}

/// `[hooks]`: programs that are run when something happens to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Where they are, each named after its event. Absolute.
    pub dir: PathBuf,
    /// How long one may run.
    pub timeout: Duration,
    /// What a failure of the hook before a promotion does.
    pub before_promotion: OnFailure,
    /// What a failure of the hook before a switchover does.
    pub before_switchover: OnFailure,
}

/// What the failure of a hook does to that before which it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is not done, and nothing has changed.
    Abort,
    /// It is done all the same.
    Continue,
}

/// `[group.NAME]`: the volumes that share one write order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The name, as in the map.
    pub name: String,
    /// When a write completes.
    pub mode: Mode,
    /// What `sync` waits for.
    pub ack: Ack,
    /// What happens to writes when the standby cannot be reached.
    pub on_link_loss: OnLinkLoss,
    /// How long a write of a sync group waits for the standby before the link counts as lost.
    pub sync_timeout: Duration,
    /// What the group is meant to achieve; status compares.
    pub objectives: Objectives,
    /// How far back the standby can show the volumes.
    pub history: Duration,
    /// The standby's redo log.
    pub journal: Journal,
    /// The node whose host is the primary when the group is first created: this node's name or the peer's.
    /// Without meaning once the group has a role.
    pub primary: String,
    /// How a new standby gets its first copy.
    pub first_sync: FirstSync,
    /// Bound of the queue of records waiting for the link.
    pub queue_size: ByteSize,
    /// Catch-up bytes under way at once.
    pub catchup_window: ByteSize,
    /// Extents of 4 MiB that may be written at the same time without the hot-extent log growing.
    pub hot_extents: u32,
    /// Bound of what a catch-up sends; none by default.
    pub max_rate: Option<ByteRate>,
    /// What catch-up and verification leave to clients.
    pub background: Background,
    /// What is done to send fewer bytes.
    pub compression: Compression,
    /// How much of what was sent both ends remember, so that it need not be sent again.
    pub compression_window: ByteSize,
    /// How the copies are compared.
    pub verify: Verify,
    /// At least one, in the order of the file.
    pub volumes: Vec<Volume>,
}

impl Group {
    /// Whether the node of that name is the primary when the group is first created.
    pub fn starts_as_primary(&self, node: &str) -> bool {
        self.primary == node
    }

    /// This group's own directory in `journal.dir`, so that groups can share the setting.
    pub fn journal_path(&self) -> PathBuf {
        self.journal.dir.join(&self.name)
    }

    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.name == name)
    }
}

/// When a write completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// When the local write is done and the standby has it.
    Sync,
    /// When the local write is done.
    Async,
}

/// What a sync group calls "the standby has it".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// In the journal's page cache: survives the receiver process.
    Received,
    /// On stable storage.
    Durable,
}

/// What happens to writes when the standby cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLinkLoss {
    /// They complete locally, and the status says so.
    Degrade,
    /// They wait.
    Block,
}

/// How a new standby gets its first copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstSync {
    /// Send every block that is not zero.
    Copy,
    /// The standby was pre-seeded: compare hashes, send what differs.
    Compare,
}

/// How much of the clients' time catch-up, first sync and verification may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Background {
    /// Clients hardly notice it.
    Gentle,
    /// Clients may wait twice as long as without it.
    Balanced,
    /// It does not ask.
    Fast,
}

/// What is done to send fewer bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// What pays, by measurement of the link and of the processors.
    Auto,
    /// Nothing.
    None,
    /// Together with what was sent just before, with LZ4.
    Lz4,
    /// Together with what was sent before, with Zstandard.
    Zstd,
}

/// How writes are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    /// The agent is in the I/O path.
    Inline,
    /// From outside, on a mounted volume. Parsed and refused in this version: no [`Config`] holds it.
    Live,
}

/// `objectives`: what the group is meant to achieve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Objectives {
    /// The most time that may be lost.
    pub rpo: Option<Duration>,
    /// The most time a takeover may last.
    pub rto: Option<Duration>,
}

/// `journal`: where the standby keeps its redo log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// As written; see [`Group::journal_path`] for the directory of one group. Absolute.
    pub dir: PathBuf,
    /// Bound of the group's journal on disk.
    pub max_size: ByteSize,
}

/// `verify`: how the copies are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verify {
    /// Bound of a verification's reading, unless the operator says another.
    pub rate: ByteRate,
}

/// `[[group.NAME.volume]]`: one block device or image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Unique on the host: also the NBD export name.
    pub name: String,
    /// The block device or image file. Absolute; unique on the host as text, so links are for the opener to
    /// check.
    pub device: PathBuf,
    /// How writes are seen.
    pub capture: Capture,
    /// How the volume is offered while this host is its primary.
    pub export: Export,
}

/// `export`: how a volume is offered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Export {
    /// A unix socket to serve NBD on.
    pub nbd: Option<PathBuf>,
    /// A TCP address to serve NBD on.
    pub tcp: Option<SocketAddr>,
    /// Whether `tcp` may be an address that other hosts can reach.
    pub tcp_remote: bool,
    /// A kernel NBD device (`/dev/nbdN`) to connect, so that the volume can be mounted.
    pub attach: Option<PathBuf>,
}

impl Export {
    /// Whether nothing can reach the volume.
    pub fn is_empty(&self) -> bool {
        self.nbd.is_none() && self.tcp.is_none() && self.attach.is_none()
    }
}

/// Whether `name` may name a node, a group, a volume or a bookmark: `[a-z0-9][a-z0-9_-]{0,63}`.
pub fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= MAX_NAME_LEN
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|b| plain(b) || matches!(b, b'_' | b'-'))
}

/// Whether a path is absolute and has no `..`: nothing in it depends on where the process was started.
pub(super) fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|c| c == std::path::Component::ParentDir)
}
