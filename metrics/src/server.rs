//! The open port: connections, and what limits them. Nothing that comes over it changes anything.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use afterimage_events::{Event, event};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::pages::{Page, Pages};

/// Connections at once: a Prometheus or two and some load balancers, each for a moment. Others wait in the kernel.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may last: one request, its answer, and a slow reader of it.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound of what a request may come to before its body, in bytes: the least that hyper allows. A body is not read.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// Pause after the address could not be listened on: whoever has it may go.
const BIND_AGAIN: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted: a process without free files would spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Shows `pages` on `address` until `shutdown` is true or its sender is gone. An address that cannot be had is logged and tried
/// again: replication goes on without.
pub async fn serve(address: SocketAddr, pages: Pages, mut shutdown: watch::Receiver<bool>) {
    let pages = Arc::new(pages);
    tokio::select! {
        () = listen(address, pages) => {}
        // Both a value and the end of the sender end it.
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
}

async fn listen(address: SocketAddr, pages: Arc<Pages>) {
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !std::mem::replace(&mut told, true) => {
                event!(Event::MetricsNotServed, %address, %error, "metrics cannot be served; it is tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_AGAIN).await;
    };
    accept(listener, pages).await;
}

/// Never returns.
async fn accept(listener: TcpListener, pages: Arc<Pages>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Fails only for a semaphore that was closed, which this one never is.
        let permit = room.clone().acquire_owned().await;
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let pages = pages.clone();
                connections.spawn(async move {
                    // What it was cut off at, or what was wrong with it, concerns the other side.
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, converse(stream, pages)).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
        }
    }
}

async fn converse(stream: TcpStream, pages: Arc<Pages>) {
    let service = service_fn(move |request| answer(request, pages.clone()));
    // What is wrong with a connection was said to the other side, as far as that can be said.
    let _ = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_REQUEST_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: Request<Incoming>, pages: Arc<Pages>) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = match *request.method() {
        Method::GET | Method::HEAD => pages.show(request.uri().path(), request.uri().query()).await,
        _ => Page::text(405, "only GET\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() = StatusCode::from_u16(page.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
