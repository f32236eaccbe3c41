//! One client from its arrival to its end: handshake, transmission, closing.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::timeout,
};

use crate::{
    execute::execute,
    export::Export,
    handshake::{self, HandshakeError},
    limits::Limits,
    transmission::{self, End},
};

/// How long a connection that the server ends waits for the client to close its side. Closing while bytes of the
/// client are unread would reset the connection and could cost it the last replies. A round trip on a bad link; some
/// clients never close their side, and every shutdown waits for them.
const LINGER: Duration = Duration::from_millis(250);
/// What is read at a time, to be dropped, while lingering.
const LINGER_READ_BYTES: usize = 16 << 10;

/// Serves one client. Returns when the connection is closed and none of its requests is in flight.
pub(crate) async fn serve<E, S>(
    mut stream: S,
    exports: &[Arc<E>],
    limits: &Limits,
    shutdown: watch::Receiver<bool>,
) where
    E: Export,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let infos = exports.iter().map(|export| export.info()).collect();
    let handshake = timeout(limits.handshake_timeout, handshake::run(&mut stream, infos));
    let (agreement, received) = tokio::select! {
        outcome = handshake => match outcome {
            Ok(Ok(agreed)) => agreed,
            Ok(Err(HandshakeError::Left)) => return tracing::debug!("the client left during the handshake"),
            Ok(Err(error)) => return tracing::info!(%error, "handshake failed"),
            Err(_) => return tracing::info!("the client took too long over the handshake"),
        },
        () = stopped(shutdown.clone()) => return,
    };
    let Some(export) = exports.get(agreement.export) else { return };
    tracing::debug!(export = export.info().name, structured = agreement.structured, "client connected");

    let start = |job| execute(&**export, job);
    let end = transmission::run(&mut stream, received, agreement, limits, stopped(shutdown), start).await;
    match &end {
        End::Disconnect | End::Vanished { mid_request: false } | End::Shutdown => {
            tracing::debug!(reason = %end, "connection closed");
        }
        End::DrainTimeout { .. } => tracing::error!(reason = %end, "connection closed"),
        _ => tracing::info!(reason = %end, "connection closed"),
    }
    if matches!(end, End::Shutdown | End::Protocol(_) | End::OversizedWrite { .. }) {
        // Whatever goes wrong here, the connection is over.
        let _ = timeout(LINGER, linger(&mut stream)).await;
    }
}

/// Ready once the value is true, or nobody can change it any more.
pub(crate) async fn stopped(mut shutdown: watch::Receiver<bool>) {
    // An error means that the sender is gone: nobody is left who could want the server to go on.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    stream.shutdown().await?;
    let mut scratch = vec![0; LINGER_READ_BYTES];
    while stream.read(&mut scratch).await? > 0 {}
    Ok(())
}
