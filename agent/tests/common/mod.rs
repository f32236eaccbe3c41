//! An agent in this process, an NBD client, and a target that does what a test says.
#![allow(dead_code, unused_imports)]

mod nbd;
mod peer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use afterimage_agent::{Options, run_with};
use afterimage_contract::admin::{Request, call};
use afterimage_contract::config::Config;
use afterimage_contract::status::{GroupStatus, Protection, Status};
use afterimage_transport::{Identity, PinStore, PinnedPeer};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use nbd::Nbd;
pub use peer::{Acks, Answer, Peer};

/// Longer than anything here takes; a test that waits for it fails.
pub const LONG: Duration = Duration::from_secs(20);
/// Long enough for something that must not happen to happen.
pub const SHORT: Duration = Duration::from_millis(300);
pub const VOLUME_BYTES: u64 = 64 << 20;
pub const GROUP: &str = "orders";

pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.expect("should be done long since")
}

/// A host with a state directory and one volume.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub identity: Identity,
    /// Lines of the group's table.
    pub group: String,
    pub peer_address: String,
}

pub struct Agent {
    pub stop: watch::Sender<bool>,
    pub task: JoinHandle<anyhow::Result<()>>,
    admin: PathBuf,
}

impl Host {
    pub fn new(group: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let identity = Identity::load_or_create(&state).unwrap();
        let volume = std::fs::File::create(dir.path().join("volume")).unwrap();
        volume.set_len(VOLUME_BYTES).unwrap();
        Self { dir, identity, group: group.to_owned(), peer_address: "127.0.0.1:9".to_owned() }
    }

    /// A host whose group has these lines, the peer it is paired with, and an agent that has a session with it.
    pub async fn with_peer(group: &str) -> (Self, Peer, Agent, peer::Session) {
        let mut host = Self::new(group);
        let peer = Peer::new(&host);
        host.pair(&peer);
        let agent = host.start();
        let session = peer.session().await;
        (host, peer, agent, session)
    }

    /// Pairs this host with `peer`, at the address that it has.
    pub fn pair(&mut self, peer: &Peer) {
        let pin = PinnedPeer {
            name: "beta".parse().unwrap(),
            fingerprint: peer.identity.fingerprint(),
            address: None,
            paired_at_unix: 1_800_000_000,
        };
        PinStore::new(&self.state()).pin(pin).unwrap();
        self.peer_address = peer.address().to_string();
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn volume(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub fn config(&self) -> Config {
        let text = format!(
            "[node]\nname = \"alpha\"\nstate_dir = {state:?}\n[peer]\nname = \"beta\"\naddress = \"{address}\"\n\
             [group.{GROUP}]\nprimary = \"alpha\"\n{group}\n[[group.{GROUP}.volume]]\nname = \"data\"\n\
             device = {device:?}\nexport = {{ nbd = {socket:?} }}\n",
            state = self.state(),
            address = self.peer_address,
            group = self.group,
            device = self.volume(),
            socket = self.socket(),
        );
        Config::parse(&text, "test").unwrap()
    }

    pub fn start(&self) -> Agent {
        self.start_with(self.config())
    }

    /// Without asking the peer whether it was promoted.
    pub fn start_alone(&self) -> Agent {
        self.start_with_options(self.config(), Options { alone: true, ..Options::default() })
    }

    pub fn start_with(&self, config: Config) -> Agent {
        self.start_with_options(config, Options::default())
    }

    fn start_with_options(&self, config: Config, options: Options) -> Agent {
        let (stop, shutdown) = watch::channel(false);
        let admin = config.agent_socket();
        Agent { stop, task: tokio::spawn(run_with(config, options, shutdown)), admin }
    }

    pub async fn client(&self) -> Nbd {
        in_time(async {
            loop {
                match Nbd::connect(&self.socket(), "data").await {
                    Ok(client) => return client,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
    }

    /// The bytes of the volume, by the file.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; len];
        std::fs::File::open(self.volume()).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

impl Agent {
    pub async fn stop(self) {
        self.stop.send_replace(true);
        in_time(self.task).await.unwrap().unwrap();
    }

    pub async fn call(&self, request: Request) -> afterimage_contract::admin::Response {
        in_time(async {
            loop {
                match call(Path::new(&self.admin), &request).await {
                    Ok(response) => return response,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
    }

    pub async fn status(&self) -> Status {
        self.call(Request::Status).await.into_answer().unwrap()
    }

    pub async fn group(&self) -> Option<GroupStatus> {
        self.status().await.groups.into_iter().find(|group| group.name == GROUP)
    }

    /// Waits until the group's status is as wanted, and returns it.
    pub async fn until(&self, what: &str, wanted: impl Fn(&GroupStatus) -> bool) -> GroupStatus {
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let group = self.group().await;
            if let Some(group) = group.clone().filter(|group| wanted(group)) {
                return group;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {what}: {group:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn until_protected(&self, protection: Protection) -> GroupStatus {
        self.until(&format!("{protection:?}"), |group| group.protection == protection).await
    }
}
