//! Accepts clients and looks after their connections until the shutdown.

use std::{future::Future, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{
    connection,
    export::Export,
    limits::Limits,
    listener::{BindError, TcpEndpoint, UnixEndpoint},
};

/// Pause after a failed accept: file descriptors have run out, and trying at once would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A TCP client whose host has gone silent is found out after this and nine probes of the kernel's default
/// interval, so that it does not hold a connection for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// An NBD server: exports by name, and the limits that all its listeners share.
#[derive(Debug)]
pub struct Server<E> {
    exports: Vec<Arc<E>>,
    limits: Limits,
    connections: Arc<Semaphore>,
}

impl<E: Export> Server<E> {
    /// The first export is also the default one, "". Of exports with the same name only the first is served.
    pub fn new(exports: Vec<Arc<E>>, limits: Limits) -> Self {
        let connections = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
        Self { exports, limits, connections }
    }

    /// [`UnixEndpoint::bind`] and [`Server::serve_unix_on`].
    pub async fn serve_unix(
        self: Arc<Self>,
        path: impl AsRef<Path>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<(), BindError> {
        self.serve_unix_on(UnixEndpoint::bind(path)?, shutdown).await;
        Ok(())
    }

    /// [`TcpEndpoint::bind`] and [`Server::serve_tcp_on`].
    pub async fn serve_tcp(
        self: Arc<Self>,
        addr: SocketAddr,
        allow_remote: bool,
        shutdown: watch::Receiver<bool>,
    ) -> Result<(), BindError> {
        self.serve_tcp_on(TcpEndpoint::bind(addr, allow_remote)?, shutdown).await;
        Ok(())
    }

    /// Serves until `shutdown` is true or its sender is gone; then removes the socket, lets every connection
    /// finish what is in flight within [`Limits::drain_timeout`], and returns when all are closed.
    ///
    /// If the future is dropped instead, all connections are cut at once and their requests dropped half-way.
    pub async fn serve_unix_on(self: Arc<Self>, endpoint: UnixEndpoint, shutdown: watch::Receiver<bool>) {
        tracing::info!(path = %endpoint.path().display(), "serving NBD");
        let mut clients = JoinSet::new();
        let accept = async || endpoint.listener.accept().await.map(|(stream, _)| stream);
        self.accept_all(accept, &mut clients, shutdown).await;
        drop(endpoint);
        drain(clients).await;
    }

    /// As [`Server::serve_unix_on`], on TCP.
    pub async fn serve_tcp_on(self: Arc<Self>, endpoint: TcpEndpoint, shutdown: watch::Receiver<bool>) {
        if let Ok(addr) = endpoint.local_addr() {
            tracing::info!(%addr, "serving NBD");
        }
        let mut clients = JoinSet::new();
        let accept = async || {
            let (stream, peer) = endpoint.listener.accept().await?;
            if let Err(error) = tune(&stream) {
                // It is gone already, or will work a little slower.
                tracing::debug!(%peer, %error, "cannot set socket options");
            }
            Ok(stream)
        };
        self.accept_all(accept, &mut clients, shutdown).await;
        drop(endpoint);
        drain(clients).await;
    }

    async fn accept_all<S, A, F>(
        self: &Arc<Self>,
        mut accept: A,
        clients: &mut JoinSet<()>,
        shutdown: watch::Receiver<bool>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: FnMut() -> F,
        F: Future<Output = io::Result<S>>,
    {
        let stop = connection::stopped(shutdown.clone());
        tokio::pin!(stop);
        let mut full = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => return,
                Some(outcome) = clients.join_next() => {
                    report(outcome);
                    continue;
                }
                accepted = accept() => accepted,
            };
            match (accepted, self.connections.clone().try_acquire_owned()) {
                (Ok(stream), Ok(permit)) => {
                    full = false;
                    let (server, shutdown) = (Arc::clone(self), shutdown.clone());
                    clients.spawn(async move {
                        connection::serve(stream, &server.exports, &server.limits, shutdown).await;
                        drop(permit);
                    });
                }
                (Ok(stream), Err(_)) => {
                    drop(stream);
                    // Once, not for every client of a flood.
                    if !std::mem::replace(&mut full, true) {
                        let limit = self.limits.max_connections;
                        tracing::warn!(limit, "too many connections: new clients are turned away");
                    }
                }
                (Err(error), _) => {
                    tracing::warn!(%error, "cannot accept a client");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Waits for every connection to end.
async fn drain(mut clients: JoinSet<()>) {
    while let Some(outcome) = clients.join_next().await {
        report(outcome);
    }
}

/// A panic of a backend ends its connection and no other.
fn report(outcome: Result<(), tokio::task::JoinError>) {
    if let Err(error) = outcome {
        tracing::error!(%error, "a connection failed");
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    Ok(())
}
