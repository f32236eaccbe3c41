//! quinn as it comes, on the loopback: streams of one connection, without framing and disks.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use afterimage_transport::{EndpointOptions, socket};
use anyhow::{Context, Result, ensure};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TokioRuntime,
    TransportConfig,
};
use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_send_buffer_size,
    set_socket_send_buffer_size_force,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::runtime::{Builder, Runtime};

/// As many as a session has for blocks.
const STREAMS: u64 = 3;
const PIECE_BYTES: usize = 64 << 10;
/// Without so much packets are lost on the loopback.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// The server's name, as a client is to ask for it.
pub const HOST_NAME: &str = "localhost";

/// How large packets are looked for.
#[derive(Clone, Copy)]
pub enum Packets {
    /// As Ethernet takes them.
    Usual,
    /// As this product does.
    AsOurs,
}

impl Packets {
    fn endpoint(self) -> Result<EndpointConfig> {
        let mut config = EndpointConfig::default();
        if let Packets::AsOurs = self {
            let bytes = EndpointOptions::default().max_mtu_bytes;
            config.max_udp_payload_size(bytes).context("set the size of packets")?;
        }
        Ok(config)
    }

    /// What both ends are to have.
    pub fn transport(self) -> TransportConfig {
        let mut config = TransportConfig::default();
        if let Packets::AsOurs = self {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(EndpointOptions::default().max_mtu_bytes);
            config.mtu_discovery_config(Some(discovery));
        }
        config
    }
}

/// Two ends that are connected.
pub struct Transfer {
    client: Connection,
    server: Connection,
    // Their end would be that of the connection.
    _endpoints: [Endpoint; 2],
    near: Runtime,
    far: Runtime,
}

impl Transfer {
    /// Connects two endpoints, each with a thread of its own, as two processes have.
    pub fn prepare(packets: Packets) -> Result<Self> {
        let (mut serving, certificate) = serving()?;
        let mut trusting = trusting(certificate)?;
        serving.transport_config(Arc::new(packets.transport()));
        trusting.transport_config(Arc::new(packets.transport()));
        let (near, far) = (runtime()?, runtime()?);
        let server = far.block_on(async { endpoint(packets, Some(serving)) })?;
        let client = near.block_on(async { endpoint(packets, None) })?;
        let address = server.local_addr().context("find the port")?;
        let accepting = far.spawn({
            let server = server.clone();
            async move { anyhow::Ok(server.accept().await.context("the endpoint is closed")?.await?) }
        });
        let client_connection = near.block_on(async {
            anyhow::Ok(client.connect_with(trusting, address, HOST_NAME).context("connect")?.await?)
        })?;
        let server_connection = far.block_on(accepting).context("accept")?.context("accept")?;
        let _endpoints = [client, server];
        Ok(Self { client: client_connection, server: server_connection, _endpoints, near, far })
    }

    /// Sends `bytes` bytes and returns when all have come out.
    pub fn run(&self, bytes: u64) -> Result<()> {
        let each = bytes / STREAMS;
        for _ in 0..STREAMS {
            let connection = self.client.clone();
            self.near.spawn(async move {
                let mut stream = connection.open_uni().await?;
                let piece = vec![0x5a; PIECE_BYTES];
                let mut left = each;
                while left > 0 {
                    let length = left.min(PIECE_BYTES as u64);
                    stream.write_all(&piece[..length as usize]).await?;
                    left -= length;
                }
                stream.finish()?;
                anyhow::Ok(())
            });
        }
        let server = self.server.clone();
        let received = self.far.spawn(async move {
            let mut streams = Vec::new();
            for _ in 0..STREAMS {
                let mut stream = server.accept_uni().await?;
                streams.push(tokio::spawn(async move {
                    let mut received = 0;
                    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
                        received += chunk.bytes.len() as u64;
                    }
                    anyhow::Ok(received)
                }));
            }
            let mut received = 0;
            for stream in streams {
                received += stream.await??;
            }
            anyhow::Ok(received)
        });
        let received = self.far.block_on(received).context("receive")?.context("receive")?;
        ensure!(received == each * STREAMS, "{received} bytes came out of {}", each * STREAMS);
        Ok(())
    }
}

/// What a server with a new key needs, and what its clients are to trust.
pub fn serving() -> Result<(ServerConfig, CertificateDer<'static>)> {
    let key = rcgen::KeyPair::generate().context("make a key")?;
    let params = rcgen::CertificateParams::new(vec![HOST_NAME.to_owned()]).context("describe a server")?;
    let certificate = params.self_signed(&key).context("sign a server")?.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let serving =
        ServerConfig::with_single_cert(vec![certificate.clone()], key).context("set up the server")?;
    Ok((serving, certificate))
}

/// What a client of the server with this certificate needs.
pub fn trusting(certificate: CertificateDer<'static>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).context("trust the server")?;
    ClientConfig::with_root_certificates(Arc::new(roots)).context("set up the client")
}

/// One on a port of the loopback, with room for what comes at once. Within a runtime.
pub fn endpoint(packets: Packets, serving: Option<ServerConfig>) -> Result<Endpoint> {
    let socket = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).context("open a UDP port")?;
    // What only root may do is better; what anyone may is bounded by the kernel's settings.
    set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES))
        .context("size the receive buffer")?;
    set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES))
        .context("size the send buffer")?;
    let config = packets.endpoint()?;
    let runtime = Arc::new(TokioRuntime);
    let opened = match packets {
        Packets::Usual => Endpoint::new(config, serving, socket, runtime),
        Packets::AsOurs => socket::open(socket)
            .and_then(|socket| Endpoint::new_with_abstract_socket(config, serving, socket, runtime)),
    };
    opened.context("open an endpoint")
}

fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().context("start a runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_out() {
        Transfer::prepare(Packets::AsOurs).expect("two ends").run(1 << 20).expect("a transfer");
    }
}
