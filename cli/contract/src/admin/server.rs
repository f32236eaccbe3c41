//! The answering end: one task for each connection, bounded in number, in what it reads and in how long it
//! waits.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::line::{LineError, read_line};
use super::{ErrorCode, MAX_REQUEST_LEN, MAX_RESPONSE_LEN, Request, Response, VERSION};

/// Connections served at once: a handful of operators and monitors. One more is told to come back.
pub const MAX_CONNECTIONS: usize = 32;
/// How long a client may take for a request, or to take its answer, before it is dropped.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, which is a shortage of descriptors that only time mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests under way at shutdown may take.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Listens on `path` and answers with `handler` until `shutdown` completes: [`Server::bind`], then
/// [`Server::run`].
pub async fn serve<H, F>(
    path: impl AsRef<Path>,
    handler: H,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()>
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send,
{
    Server::bind(path)?.run(handler, shutdown).await;
    Ok(())
}

/// A socket that is listened on. Dropping it removes the socket file, unless another process has replaced it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Server {
    /// Listens on `path` with mode 0600. Replaces a socket that nobody listens on; fails with `AddrInUse` if
    /// somebody does, and with `AlreadyExists` if `path` is not a socket. The socket has its mode before it
    /// has its name, so no other user can connect in between. Two processes that start at the same moment are
    /// for the caller to keep apart (by the lock on the state directory). Must be called in a tokio runtime.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        ensure_nobody_listens(path)?;
        let mut draft = path.as_os_str().to_owned();
        // One letter: the path of a socket may have only 107 bytes.
        draft.push("~");
        let draft = PathBuf::from(draft);
        remove_if_there(&draft)?;
        let listener = UnixListener::bind(&draft)?;
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
        let inode = inode(&draft)?;
        std::fs::rename(&draft, path)?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Answers until `shutdown` completes; then takes no more requests, and returns when those under way are
    /// answered or a grace of 5 seconds is over; what is left is dropped. A client that goes away does not
    /// stop what it asked for. A handler that panics costs its connection and nothing else.
    pub async fn run<H, F>(self, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send,
    {
        let handler = Arc::new(handler);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = self.listener.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                turn_away(&stream);
                continue;
            };
            let handler = handler.clone();
            let mut stopped = stopped.clone();
            connections.spawn(async move {
                converse(stream, &*handler, &mut stopped).await;
                drop(place);
            });
        }
        let _ = stop.send(true);
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, all).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn ensure_nobody_listens(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            let text = format!("{} exists and is not a socket; remove it", path.display());
            return Err(io::Error::new(ErrorKind::AlreadyExists, text));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            let text = format!("another process already listens on {}; stop it first", path.display());
            Err(io::Error::new(ErrorKind::AddrInUse, text))
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Tells a client that there is no place for it, if that can be said at once.
fn turn_away(stream: &UnixStream) {
    let busy = Response::error(
        ErrorCode::Busy,
        format!("{MAX_CONNECTIONS} administration connections are already open"),
        "close some, or try again in a moment",
    );
    let _ = stream.try_write(&encode(&busy));
}

async fn converse<H, F>(stream: UnixStream, handler: &H, stopped: &mut tokio::sync::watch::Receiver<bool>)
where
    H: Fn(Request) -> F,
    F: Future<Output = Response>,
{
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let line = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            line = tokio::time::timeout(REQUEST_TIMEOUT, read_line(&mut reader, MAX_REQUEST_LEN.bytes())) => line,
        };
        let (response, go_on) = match line {
            Ok(Ok(Some(line))) => match parse(&line) {
                Ok(request) => (handler(request).await, true),
                Err(response) => (response, true),
            },
            // What follows in an endless line is not the start of a request.
            Ok(Err(error @ LineError::TooLong { .. })) => (bad_request(error), false),
            Ok(Ok(None) | Err(_)) | Err(_) => return,
        };
        let written = tokio::time::timeout(REQUEST_TIMEOUT, writer.write_all(&encode(&response))).await;
        if !go_on || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

/// The request in a line, or the response that refuses it.
fn parse(line: &[u8]) -> Result<Request, Response> {
    #[derive(Deserialize)]
    struct Envelope {
        version: u32,
        request: serde_json::Value,
    }
    let envelope: Envelope = serde_json::from_slice(line).map_err(bad_request)?;
    if envelope.version != VERSION {
        return Err(Response::error(
            ErrorCode::Version,
            format!("the request has protocol version {}; this daemon speaks {VERSION}", envelope.version),
            "use the command and the daemons of one release",
        ));
    }
    serde_json::from_value(envelope.request).map_err(bad_request)
}

fn bad_request(error: impl std::fmt::Display) -> Response {
    Response::error(
        ErrorCode::BadRequest,
        format!("the request cannot be read: {error}"),
        "use the command and the daemons of one release",
    )
}

/// A response as a line that is within the client's limit.
fn encode(response: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(response).unwrap_or_default();
    if line.is_empty() || line.len() as u64 > MAX_RESPONSE_LEN.bytes() {
        let text = format!("the answer of {} bytes is over the limit of {MAX_RESPONSE_LEN}", line.len());
        let error = Response::error(ErrorCode::Internal, text, "report this as a defect");
        line = serde_json::to_vec(&error).unwrap_or_default();
    }
    line.push(b'\n');
    line
}
