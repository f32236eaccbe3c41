//! The peers this host trusts: their fingerprints by name, on disk and as the network code sees them.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::node_name::NodeName;
use crate::state_file::{StateFile, StateFileError, StateLock};

/// The file of a state directory that holds the pinned peers.
pub const PINS_FILE: &str = "peers.json";

/// Pinned peers at most. A host has one peer a group; this bounds the file and every search in it.
pub const MAX_PEERS: usize = 64;

/// A peer's address is at most this long, in bytes: a DNS name and a port.
pub(crate) const MAX_ADDRESS_BYTES: usize = 261;

/// A peer that this host trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedPeer {
    /// The name it gave when the hosts were paired.
    pub name: NodeName,
    /// The only key it is known by.
    pub fingerprint: Fingerprint,
    /// Where it listens, `host:port`, if it said so.
    pub address: Option<String>,
    /// When the hosts were paired, in seconds since 1970.
    pub paired_at_unix: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peers {
    peers: Vec<PinnedPeer>,
}

/// Pins that could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The pin file could not be read or written, or is damaged.
    #[error(transparent)]
    File(#[from] StateFileError),
    /// There are [`MAX_PEERS`] already.
    #[error("{MAX_PEERS} peers are pinned already: unpin one first")]
    Full,
}

/// The pin file of a state directory. Nothing is cached; changes are safe between processes.
#[derive(Debug, Clone)]
pub struct PinStore {
    dir: PathBuf,
}

impl PinStore {
    /// The pins of a state directory. Touches nothing yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.to_owned() }
    }

    /// All pinned peers; none if there is no file yet.
    pub fn load(&self) -> Result<Vec<PinnedPeer>, PinError> {
        let file = self.file();
        let Some(Peers { peers }) = file.load()? else { return Ok(Vec::new()) };
        let names: HashSet<_> = peers.iter().map(|peer| &peer.name).collect();
        let keys: HashSet<_> = peers.iter().map(|peer| peer.fingerprint).collect();
        if names.len() != peers.len() || keys.len() != peers.len() {
            return Err(file.damaged("the same peer twice").into());
        }
        Ok(peers)
    }

    /// Pins a peer; returns once that is on stable storage. What was pinned before under its name or its fingerprint
    /// is replaced and returned.
    pub fn pin(&self, peer: PinnedPeer) -> Result<Vec<PinnedPeer>, PinError> {
        let _lock = StateLock::take(&self.dir)?;
        let (replaced, mut peers): (Vec<_>, Vec<_>) = self
            .load()?
            .into_iter()
            .partition(|old| old.name == peer.name || old.fingerprint == peer.fingerprint);
        if peers.len() >= MAX_PEERS {
            return Err(PinError::Full);
        }
        peers.push(peer);
        self.file().save(&Peers { peers })?;
        Ok(replaced)
    }

    /// Unpins a peer and returns it, or `None` if no such peer was pinned; returns once that is on stable storage.
    /// Connections that are open stay open.
    pub fn unpin(&self, name: &NodeName) -> Result<Option<PinnedPeer>, PinError> {
        let _lock = StateLock::take(&self.dir)?;
        let (mut gone, peers): (Vec<_>, Vec<_>) =
            self.load()?.into_iter().partition(|peer| peer.name == *name);
        if !gone.is_empty() {
            self.file().save(&Peers { peers })?;
        }
        Ok(gone.pop())
    }

    fn file(&self) -> StateFile {
        StateFile::new(&self.dir, PINS_FILE, "afterimage-peers")
    }
}

/// The pins as they are now, for code that asks on every connection: read again when another process (the operator's
/// command) has replaced the file, which one `stat` tells.
#[derive(Debug)]
pub struct Pins {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Fixed(Arc<[PinnedPeer]>),
    Stored { store: PinStore, path: PathBuf, cache: Mutex<Option<Cached>> },
}

#[derive(Debug)]
struct Cached {
    stamp: Option<Stamp>,
    peers: Arc<[PinnedPeer]>,
}

/// Tells one version of a file that is replaced by rename from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    changed_ns: (i64, i64),
    bytes: u64,
}

impl Pins {
    /// The pins of a state directory, which must be readable now.
    pub fn open(state_dir: &Path) -> Result<Self, PinError> {
        let store = PinStore::new(state_dir);
        let path = store.file().path().to_owned();
        let pins = Self { source: Source::Stored { store, path, cache: Mutex::new(None) } };
        pins.all()?;
        Ok(pins)
    }

    /// Pins that come from no file and never change.
    pub fn fixed(peers: impl IntoIterator<Item = PinnedPeer>) -> Self {
        Self { source: Source::Fixed(peers.into_iter().collect()) }
    }

    /// All pinned peers. An error means that nobody is trusted: a file that turned bad does not leave the old pins.
    pub fn all(&self) -> Result<Arc<[PinnedPeer]>, PinError> {
        let (store, path, cache) = match &self.source {
            Source::Fixed(peers) => return Ok(peers.clone()),
            Source::Stored { store, path, cache } => (store, path, cache),
        };
        // Held across the read: it is replaced as a whole, so a panic elsewhere leaves nothing half done.
        let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the read: if the file is replaced in between, the next call reads once more.
        let stamp = Stamp::of(path)?;
        if let Some(cached) = cache.as_ref().filter(|cached| cached.stamp == stamp) {
            return Ok(cached.peers.clone());
        }
        *cache = None;
        let peers: Arc<[PinnedPeer]> = store.load()?.into();
        *cache = Some(Cached { stamp, peers: peers.clone() });
        Ok(peers)
    }

    /// The peer with this key, if it is pinned.
    pub fn by_fingerprint(&self, fingerprint: Fingerprint) -> Result<Option<PinnedPeer>, PinError> {
        Ok(self.all()?.iter().find(|peer| peer.fingerprint == fingerprint).cloned())
    }

    /// The peer of this name, if it is pinned.
    pub fn by_name(&self, name: &NodeName) -> Result<Option<PinnedPeer>, PinError> {
        Ok(self.all()?.iter().find(|peer| peer.name == *name).cloned())
    }
}

impl Stamp {
    fn of(path: &Path) -> Result<Option<Self>, StateFileError> {
        match fs::metadata(path) {
            Ok(found) => Ok(Some(Self {
                device: found.dev(),
                inode: found.ino(),
                changed_ns: (found.ctime(), found.ctime_nsec()),
                bytes: found.len(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(crate::state_file::io_error("read", path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, key: u8) -> PinnedPeer {
        PinnedPeer {
            name: name.parse().unwrap(),
            fingerprint: Fingerprint([key; 32]),
            address: Some("beta.example.net:7789".to_owned()),
            paired_at_unix: 1_800_000_000,
        }
    }

    #[test]
    fn pins_come_back_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = PinStore::new(dir.path());
        assert_eq!(store.load().unwrap(), []);
        assert_eq!(store.pin(peer("beta", 1)).unwrap(), []);
        store.pin(peer("gamma", 2)).unwrap();
        assert_eq!(PinStore::new(dir.path()).load().unwrap(), [peer("beta", 1), peer("gamma", 2)]);
        assert_eq!(store.unpin(&"beta".parse().unwrap()).unwrap(), Some(peer("beta", 1)));
        assert_eq!(store.unpin(&"beta".parse().unwrap()).unwrap(), None);
        assert_eq!(store.load().unwrap(), [peer("gamma", 2)]);
    }

    #[test]
    fn one_pin_a_name_and_a_key_and_the_replaced_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = PinStore::new(dir.path());
        store.pin(peer("beta", 1)).unwrap();
        store.pin(peer("gamma", 2)).unwrap();
        assert_eq!(store.pin(peer("beta", 3)).unwrap(), [peer("beta", 1)]);
        assert_eq!(store.pin(peer("renamed", 2)).unwrap(), [peer("gamma", 2)]);
        assert_eq!(store.load().unwrap(), [peer("beta", 3), peer("renamed", 2)]);
    }

    #[test]
    fn the_number_of_peers_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = PinStore::new(dir.path());
        let peers: Vec<_> = (0..MAX_PEERS).map(|n| peer(&format!("p{n}"), n as u8)).collect();
        store.file().save(&Peers { peers }).unwrap();
        assert!(matches!(store.pin(peer("one-more", 200)), Err(PinError::Full)));
        store.pin(peer("p7", 201)).unwrap();
    }

    #[test]
    fn the_same_peer_twice_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let store = PinStore::new(dir.path());
        for twice in [[peer("a", 1), peer("a", 2)], [peer("a", 1), peer("b", 1)]] {
            store.file().save(&Peers { peers: twice.to_vec() }).unwrap();
            assert!(store.load().unwrap_err().to_string().contains("twice"));
        }
    }

    #[test]
    fn changes_by_others_are_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::open(dir.path()).unwrap();
        let store = PinStore::new(dir.path());
        for round in 0..20 {
            store.pin(peer("beta", round)).unwrap();
            assert_eq!(pins.by_name(&"beta".parse().unwrap()).unwrap(), Some(peer("beta", round)));
            assert_eq!(pins.by_fingerprint(Fingerprint([round; 32])).unwrap(), Some(peer("beta", round)));
            store.unpin(&"beta".parse().unwrap()).unwrap();
            assert_eq!(pins.by_fingerprint(Fingerprint([round; 32])).unwrap(), None);
        }
    }

    #[test]
    fn a_file_that_turns_bad_leaves_nobody_trusted() {
        let dir = tempfile::tempdir().unwrap();
        PinStore::new(dir.path()).pin(peer("beta", 1)).unwrap();
        let pins = Pins::open(dir.path()).unwrap();
        fs::write(dir.path().join(PINS_FILE), b"garbage").unwrap();
        for _ in 0..2 {
            assert!(pins.by_fingerprint(Fingerprint([1; 32])).is_err());
        }
        assert!(Pins::open(dir.path()).unwrap_err().to_string().contains("damaged"));
        assert!(PinStore::new(dir.path()).pin(peer("beta", 2)).is_err(), "a damaged file is not overwritten");
    }
}
