//! The end where the copy is.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use quinn::{Connection, ReadExactError, RecvStream, SendStream, ServerConfig, TransportConfig};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::runtime::Builder;

use crate::bulk::bare::endpoint;

use super::{FLUSH, FRAME_HEADER_BYTES, HOST_NAME, certificate_file, nbd::WRITE_BYTES_MAX, port_file};

/// Keeps `copy` until it is ended; how it is reached, it leaves in `dir`.
pub fn run(copy: &Path, dir: &Path) -> Result<()> {
    let file =
        OpenOptions::new().write(true).open(copy).with_context(|| format!("open {}", copy.display()))?;
    let key = rcgen::KeyPair::generate().context("make a key")?;
    let params = rcgen::CertificateParams::new(vec![HOST_NAME.to_owned()]).context("describe this end")?;
    let certificate = params.self_signed(&key).context("sign this end")?.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    fs::write(certificate_file(dir), &certificate).context("leave the certificate")?;
    let mut serving = ServerConfig::with_single_cert(vec![certificate], key).context("set up the server")?;
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(None);
    serving.transport_config(Arc::new(transport));
    let runtime = Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let endpoint = endpoint(Some(serving))?;
        let port = endpoint.local_addr().context("find the port")?.port();
        let unfinished = dir.join("bare.port.new");
        fs::write(&unfinished, port.to_string()).context("leave the port")?;
        fs::rename(&unfinished, port_file(dir)).context("leave the port")?;
        let connection =
            endpoint.accept().await.context("the endpoint is closed")?.await.context("accept")?;
        keep(&file, &connection).await
    })
}

/// One stream after the other: each is a client.
async fn keep(file: &File, connection: &Connection) -> Result<()> {
    loop {
        let (answers, records) = connection.accept_bi().await.context("take a stream")?;
        take(file, records, answers).await?;
    }
}

async fn take(file: &File, mut records: RecvStream, mut answers: SendStream) -> Result<()> {
    let mut data = vec![0; WRITE_BYTES_MAX];
    let mut header = [0; FRAME_HEADER_BYTES];
    loop {
        match records.read_exact(&mut header).await {
            Err(ReadExactError::FinishedEarly(0)) => return Ok(()),
            read => read.context("take a record")?,
        }
        let [place, length] = [0, 8].map(|at| {
            header[at..at + 8].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        });
        if place == FLUSH {
            file.sync_data().context("flush")?;
        } else {
            let length = length as usize;
            ensure!(length <= WRITE_BYTES_MAX, "a record of {length} bytes is too long");
            records.read_exact(&mut data[..length]).await.context("take a record")?;
            file.write_all_at(&data[..length], place).context("write")?;
        }
        answers.write_all(&[1]).await.context("answer")?;
    }
}
