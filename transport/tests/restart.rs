//! A peer that was killed and is back is noticed by its answer, not by its silence.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use afterimage_transport::*;
use common::*;
use tokio::runtime::Runtime;

/// An endpoint that can be killed: it ends without a word to anybody.
struct Process {
    runtime: Runtime,
    endpoint: Endpoint,
}

impl Process {
    fn start(host: &Host, address: SocketAddr) -> Self {
        let runtime = Runtime::new().unwrap();
        let inside = runtime.enter();
        let pins = Arc::new(Pins::open(host.dir.path()).unwrap());
        let endpoint = Endpoint::bind(address, &host.identity, pins, host.options()).unwrap();
        drop(inside);
        Self { runtime, endpoint }
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_address().unwrap()
    }

    fn accept(&self) -> Connection {
        self.runtime.block_on(accept_peer(&self.endpoint))
    }

    /// As `kill -9` does: nothing is sent any more, and the port is free. `connections` are those that it had.
    fn kill(self, connections: Vec<Connection>) {
        // What sends runs here, so it is gone before anything could be closed.
        drop(self.runtime);
        drop(connections);
        drop(self.endpoint);
    }
}

/// What the side that dialled sees when the other one was killed and another process listens in its place.
fn after_restart(of: &Host, then: &Host, seen_by: &Host, idle_timeout: Duration) -> ConnectionLost {
    let first = Process::start(of, LOOPBACK.into());
    let address = first.address();
    let dialler = Runtime::new().unwrap();
    let (_dialling, out) = dialler.block_on(async {
        let (dialling, _) = seen_by.listen_with(EndpointOptions { idle_timeout, ..seen_by.options() });
        let out = in_time(dialling.connect(address, of.key())).await.unwrap();
        (dialling, out)
    });
    let inn = first.accept();
    first.kill(vec![inn]);
    assert_eq!(out.close_reason(), None, "a killed process said something");
    let second = Process::start(then, address);
    let lost = dialler.block_on(async {
        // The next packet is what the new process answers: this write, or one that was under way and is sent again before.
        if let Ok(mut stream) = out.open_uni().await {
            let _ = stream.write_all(b"are you there?").await;
        }
        in_time(out.closed()).await
    });
    second.kill(Vec::new());
    lost
}

#[test]
fn a_restarted_process_ends_the_connections_of_the_one_before() {
    let (alpha, beta) = two_paired();
    let idle_timeout = EndpointOptions::default().idle_timeout;
    assert_eq!(after_restart(&beta, &beta, &alpha, idle_timeout), ConnectionLost::Reset);
    assert_eq!(after_restart(&alpha, &alpha, &beta, idle_timeout), ConnectionLost::Reset);
}

#[test]
fn a_process_of_another_identity_ends_nothing() {
    let (alpha, beta) = two_paired();
    let stranger = Host::new("stranger");
    assert_eq!(after_restart(&beta, &stranger, &alpha, SHORT), ConnectionLost::TimedOut);
}
