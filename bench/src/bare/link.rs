//! The connection between the two ends, with packets as large as those of this product.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use quinn::{Connection, Endpoint, TransportConfig};
use rustls::pki_types::CertificateDer;
use tokio::runtime::{Builder, Runtime};

use super::{certificate_file, port_file};
use crate::bulk::bare::{HOST_NAME, Packets, endpoint, serving, trusting};

/// To the far end.
pub struct Link {
    pub runtime: Runtime,
    pub connection: Connection,
    _endpoint: Endpoint,
}

impl Link {
    /// To the one whose address is in the directory `far`.
    pub fn open(far: &Path) -> Result<Self> {
        let certificate = fs::read(certificate_file(far)).context("read the far end's certificate")?;
        let port = fs::read_to_string(port_file(far)).context("read the far end's port")?;
        let port = port.parse().context("read the far end's port")?;
        let mut trusting = trusting(CertificateDer::from(certificate))?;
        trusting.transport_config(transport());
        let runtime = runtime()?;
        let (endpoint, connection) = runtime.block_on(async {
            let endpoint = endpoint(Packets::AsOurs, None)?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let connecting = endpoint.connect_with(trusting, address, HOST_NAME).context("connect")?;
            anyhow::Ok((endpoint, connecting.await.context("connect")?))
        })?;
        Ok(Self { runtime, connection, _endpoint: endpoint })
    }
}

/// Takes one connection and leaves it to `keep`; how this end is reached, it leaves in `dir`.
pub fn serve(dir: &Path, keep: impl AsyncFnOnce(Connection) -> Result<()>) -> Result<()> {
    let (mut serving, certificate) = serving()?;
    fs::write(certificate_file(dir), &certificate).context("leave the certificate")?;
    serving.transport_config(transport());
    runtime()?.block_on(async {
        let endpoint = endpoint(Packets::AsOurs, Some(serving))?;
        let port = endpoint.local_addr().context("find the port")?.port();
        let unfinished = dir.join("bare.port.new");
        fs::write(&unfinished, port.to_string()).context("leave the port")?;
        fs::rename(&unfinished, port_file(dir)).context("leave the port")?;
        let connection =
            endpoint.accept().await.context("the endpoint is closed")?.await.context("accept")?;
        keep(connection).await
    })
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("start a runtime")
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = Packets::AsOurs.transport();
    // Others have turns too, and nothing runs here meanwhile.
    transport.max_idle_timeout(None);
    Arc::new(transport)
}
