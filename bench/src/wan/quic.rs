//! The bare transport over the link: streams of one connection, without volumes, journals and their processor time.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use afterimage_transport::{
    Accepted, CloseCode, Congestion, Endpoint, EndpointOptions, Identity, PinnedPeer, Pins,
};
use afterimage_wan::Wan;
use anyhow::{Context, Result, anyhow};
use tokio::runtime::{Builder, Runtime};

use super::flow::Flow;

/// As many as a session has for blocks.
const STREAMS: usize = 3;
const PIECE_BYTES: usize = 64 << 10;

/// Endless streams from side a to side b.
pub struct Streams {
    received: Arc<AtomicU64>,
    // One runtime for each end, as with two processes.
    _ends: [Runtime; 2],
}

impl Streams {
    /// Starts them. Keys are made in `dir`.
    pub fn start(wan: &Wan, congestion: Congestion, dir: &Path) -> Result<Self> {
        let (here, there) = (identity(&dir.join("a"))?, identity(&dir.join("b"))?);
        let options = EndpointOptions { congestion, ..EndpointOptions::default() };
        let bind = |own: &Identity, peer: &Identity, address: IpAddr| {
            let pins = Pins::fixed([PinnedPeer {
                name: "peer".parse().context("name the peer")?,
                fingerprint: peer.fingerprint(),
                address: None,
                paired_at_unix: 0,
            }]);
            Endpoint::bind(SocketAddr::new(address, 0), own, Arc::new(pins), options.clone())
                .context("open a UDP port")
        };
        let far = runtime()?;
        let server = wan.run_in(wan.ns_b(), || {
            let _entered = far.enter();
            bind(&there, &here, wan.address_b().into())
        })??;
        let near = runtime()?;
        let client = wan.run_in(wan.ns_a(), || {
            let _entered = near.enter();
            bind(&here, &there, wan.address_a().into())
        })??;
        let address = server.local_address().context("find the port")?;
        let received = Arc::new(AtomicU64::new(0));
        far.spawn(reported(receive(server, received.clone())));
        let connection = near.block_on(client.connect(address, there.fingerprint())).context("connect")?;
        for _ in 0..STREAMS {
            let connection = connection.clone();
            near.spawn(async move {
                let mut stream = connection.open_uni().await?;
                let piece = vec![0x5a; PIECE_BYTES];
                while stream.write_all(&piece).await.is_ok() {}
                anyhow::Ok(())
            });
        }
        near.spawn(async move {
            // Its end would be the end of the connection's socket.
            let _client = client;
            connection.closed().await
        });
        Ok(Self { received, _ends: [near, far] })
    }
}

impl Flow for Streams {
    fn received_bytes(&self) -> Result<u64> {
        Ok(self.received.load(Ordering::Relaxed))
    }
}

async fn receive(server: Endpoint, received: Arc<AtomicU64>) -> Result<()> {
    let accepted = server.accept().await.ok_or_else(|| anyhow!("the endpoint is closed"))?;
    let Accepted::Peer(connection) = accepted else { return Err(anyhow!("not a peer")) };
    while let Ok(mut stream) = connection.accept_uni().await {
        let received = received.clone();
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
                received.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
            }
        });
    }
    server.close(CloseCode::DONE, "");
    Ok(())
}

/// What goes wrong is seen as no bytes at the far end; here is why.
async fn reported(work: impl Future<Output = Result<()>>) {
    if let Err(error) = work.await {
        eprintln!("the far end: {error:#}");
    }
}

fn identity(dir: &Path) -> Result<Identity> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    Identity::load_or_create(dir).context("make a key")
}

fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().context("start a runtime")
}
