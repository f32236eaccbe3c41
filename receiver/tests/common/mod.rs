//! A standby on loopback, and a source that does what it is told.
#![allow(dead_code)]

pub mod frames;
#[path = "../../../tests/src/real/ports.rs"]
mod ports;
pub mod source;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use afterimage_contract::admin::{Promotion, Request, Response, call};
use afterimage_contract::config::Config;
use afterimage_contract::status::{GroupStatus, Status};
use afterimage_transport::{Endpoint, EndpointOptions, Identity, PinStore, PinnedPeer, Pins};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Longer than anything here takes; a test that waits for it fails.
pub const LONG: Duration = Duration::from_secs(30);
/// Long enough for something that must not happen to happen.
pub const SHORT: Duration = Duration::from_millis(200);
pub const VOLUME_BYTES: u64 = 32 << 20;
pub const GROUP: &str = "orders";

pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.expect("should be done long since")
}

/// A key of its own in a directory of its own.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub identity: Identity,
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        Self { dir, identity }
    }

    /// Trusts `other` under this name.
    pub fn pin(&self, name: &str, other: &Host) {
        let peer = PinnedPeer {
            name: name.parse().unwrap(),
            fingerprint: other.identity.fingerprint(),
            address: None,
            paired_at_unix: 1,
        };
        PinStore::new(self.dir.path()).pin(peer).unwrap();
    }

    pub fn endpoint(&self) -> Endpoint {
        let pins = Arc::new(Pins::open(self.dir.path()).unwrap());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        // A small window, so that what is not read is soon noticed at the other end.
        let options = EndpointOptions { stream_window_bytes: 16 << 10, ..EndpointOptions::default() };
        Endpoint::bind(any, &self.identity, pins, options).unwrap()
    }
}

/// What is configured and on disk of a standby, whether its receiver runs or not.
pub struct Standby {
    pub host: Host,
    pub peer: Host,
    pub address: SocketAddr,
    pub history: &'static str,
    pub journal_max: &'static str,
    pub primary: &'static str,
}

impl Standby {
    /// A standby and its peer, paired, with an empty image.
    pub fn new() -> Self {
        let (host, peer) = (Host::new(), Host::new());
        host.pin("alpha", &peer);
        let address = ports::free_udp().unwrap();
        let standby = Self { host, peer, address, history: "0s", journal_max: "64MiB", primary: "alpha" };
        standby.make_image();
        standby
    }

    pub fn image(&self) -> PathBuf {
        self.host.dir.path().join("pgdata.img")
    }

    pub fn make_image(&self) {
        std::fs::File::create_new(self.image()).unwrap().set_len(VOLUME_BYTES).unwrap();
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.image()).unwrap()
    }

    pub fn config_text(&self) -> String {
        let (listen, dir) = (self.address, self.host.dir.path().display());
        let (history, max_size, primary) = (self.history, self.journal_max, self.primary);
        format!(
            r#"
            [node]
            name = "beta"
            listen = "{listen}"
            state_dir = "{dir}"
            [peer]
            name = "alpha"
            address = "127.0.0.1:7789"
            [group.{GROUP}]
            primary = "{primary}"
            history = "{history}"
            journal = {{ dir = "{dir}/journal", max_size = "{max_size}" }}
            [[group.{GROUP}.volume]]
            name = "pgdata"
            device = "{dir}/pgdata.img"
            export = {{ nbd = "{dir}/nbd.sock" }}
            "#
        )
    }

    pub fn config(&self) -> Config {
        Config::parse(&self.config_text(), "test.toml").unwrap()
    }

    /// Runs the receiver in this process.
    pub fn run(&self) -> Receiver {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(afterimage_receiver::run(self.config(), stopped));
        Receiver { stop, task }
    }

    async fn ask(&self, request: &Request) -> Response {
        let socket = self.config().receiver_socket();
        let mut tries = 0;
        loop {
            match call(&socket, request).await {
                Ok(response) => return response,
                Err(error) if tries > 200 => panic!("no answer: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            tries += 1;
        }
    }

    pub async fn status(&self) -> Status {
        self.ask(&Request::Status).await.into_answer().unwrap()
    }

    /// The group's status once it is as `wanted`.
    pub async fn status_when(&self, wanted: impl Fn(&GroupStatus) -> bool) -> GroupStatus {
        let mut last = None;
        for _ in 0..500 {
            last = self.status().await.groups.pop();
            if let Some(group) = last.as_ref().filter(|g| wanted(g)) {
                return group.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the status never was as wanted: {last:#?}");
    }

    pub async fn promote(&self, dry_run: bool) -> Result<Promotion, String> {
        self.promote_with(dry_run, true).await
    }

    pub async fn promote_with(&self, dry_run: bool, force: bool) -> Result<Promotion, String> {
        let request = Request::Promote { group: GROUP.to_owned(), dry_run, at: None, force };
        self.ask(&request).await.into_answer().map_err(|e| e.to_string())
    }
}

/// A receiver in this process.
pub struct Receiver {
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Receiver {
    /// Stops it in good order.
    pub async fn stop(self) {
        self.stop.send(true).unwrap();
        in_time(self.task).await.unwrap().unwrap();
    }

    /// What it ends with by itself.
    pub async fn ended(self) -> anyhow::Result<()> {
        in_time(self.task).await.unwrap()
    }
}
