//! Over real sockets: answers, and what is done about those who ask for too much.

use std::collections::BTreeMap;

use afterimage_contract::config::{Config, Mode};
use afterimage_contract::status::{GroupStatus, PeerStatus, Protection, Role, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::pages::Daemon;
use crate::scrape::Numbers;

const CONFIG: &str = "[node]\nname = \"alpha\"\nstate_dir = \"STATE\"\n[peer]\nname = \"beta\"\n\
    address = \"127.0.0.1:1\"\n[group.orders]\nprimary = \"alpha\"\nmode = \"sync\"\n[[group.orders.volume]]\n\
    name = \"disk\"\ndevice = \"/dev/x\"\nexport = { nbd = \"/run/x\" }\n";

struct Standby(Arc<Config>);

impl Daemon for Standby {
    fn look(&self) -> (Status, BTreeMap<String, Numbers>) {
        let peer = PeerStatus { name: "beta".into(), ..PeerStatus::default() };
        let mut group =
            GroupStatus::new("orders", Role::Standby, Mode::Sync, Protection::AsyncStreaming, peer);
        group.durable_sequence = Some(1);
        (Status { groups: vec![group], ..Status::new("alpha", 0) }, BTreeMap::new())
    }

    fn config(&self) -> Arc<Config> {
        self.0.clone()
    }
}

/// Where a standby's pages are shown for as long as what else is returned is kept.
async fn start() -> (SocketAddr, watch::Sender<bool>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = CONFIG.replace("STATE", dir.path().to_str().unwrap());
    // It was read again since the daemon was started.
    let in_force = config.replace("mode =", "objectives = { rpo = \"7s\" }\nmode =");
    let in_force = Arc::new(Config::parse(&in_force, "a.toml").unwrap());
    let config = Config::parse(&config, "a.toml").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pages = Arc::new(Pages::of_receiver(&config, Arc::new(Standby(in_force))));
    let (stop, mut stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, pages) => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    });
    (address, stop, dir)
}

/// Sends `request` and returns all that comes back.
async fn send(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may be answered before it was read to its end.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = send(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, body.to_owned())
}

#[tokio::test]
async fn pages_answer_for_the_host_and_for_one_group() {
    let (address, _stop, _dir) = start().await;
    let (code, body) = get(address, "/metrics").await;
    assert_eq!(code, 200);
    assert!(
        body.contains("afterimage_role{group=\"orders\",peer=\"beta\",role=\"standby\"} 1.0\n"),
        "{body}"
    );
    assert!(body.ends_with("# EOF\n"), "{body}");
    for (path, code, text) in [
        ("/standby", 200, "orders: yes, standby, async_streaming\n"),
        ("/standby/orders", 200, "orders: yes"),
        ("/standby?x=1&group=orders", 200, "orders: yes"),
        ("/primary?group=orders", 503, "orders: no, standby, async_streaming\n"),
        // The agent of this host does not run.
        ("/healthy", 503, "host: no, afterimage-agent is not running"),
        ("/standby/other", 404, "no such group"),
        ("/standby/orders/x", 404, "no such group"),
        ("/else", 404, "/metrics"),
        ("/", 200, "/healthy"),
    ] {
        let (found, body) = get(address, path).await;
        assert_eq!(found, code, "{path}: {body}");
        assert!(body.contains(text), "{path}: {body}");
    }
}

#[tokio::test]
async fn what_is_not_asked_as_it_should_be_is_refused() {
    let (address, _stop, _dir) = start().await;
    let post = send(address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    let long =
        format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(MAX_REQUEST_BYTES * 4));
    let long = send(address, &long).await;
    assert!(!long.contains("200 OK"), "{long}");
    let garbage = send(address, "\x16\x03\x01 not http\r\n\r\n").await;
    assert!(!garbage.contains("200 OK"), "{garbage}");
}

#[tokio::test(start_paused = true)]
async fn who_holds_all_connections_loses_them() {
    let (address, _stop, _dir) = start().await;
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 4 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        held.push(stream);
    }
    // The clock runs on while nothing else happens, so this takes no real time.
    let (code, _) = get(address, "/metrics").await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn the_objectives_are_those_that_are_in_force() {
    let (address, _stop, _dir) = start().await;
    let (code, page) = get(address, "/metrics").await;
    assert_eq!(code, 200);
    assert!(page.contains("afterimage_objective_rpo_seconds{group=\"orders\"} 7.0"), "{page}");
}
