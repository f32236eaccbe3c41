//! The asking end.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::line::{LineError, read_line};
use super::{Failure, MAX_RESPONSE_LEN, Request, Response, VERSION};
use crate::config::{AGENT_SOCKET_NAME, RECEIVER_SOCKET_NAME};
use crate::units::format_duration;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens on the socket: nothing was done.
    #[error("{daemon} is not running: nothing listens on {}; start it with: systemctl start {daemon}", path.display())]
    NotRunning {
        /// The daemon, which is also its systemd unit.
        daemon: &'static str,
        /// The socket.
        path: PathBuf,
    },
    /// The socket is another user's: nothing was done.
    #[error("no permission to open {}; run this as root or as the user {daemon} runs as", path.display())]
    Permission {
        /// The daemon.
        daemon: &'static str,
        /// The socket.
        path: PathBuf,
    },
    /// The daemon did not answer in time: whether it did what was asked is unknown.
    #[error("{daemon} did not answer within {}; look at its log: journalctl -u {daemon}", format_duration(*.after))]
    Timeout {
        /// The daemon.
        daemon: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection broke: whether the daemon did what was asked is unknown.
    #[error("{daemon} ended the conversation: {reason}; look at its log: journalctl -u {daemon}")]
    Broken {
        /// The daemon.
        daemon: &'static str,
        /// How it ended.
        reason: String,
    },
    /// The answer has an unexpected shape.
    #[error("the answer cannot be read: {0}; check that the command and the daemons are of the same release")]
    Answer(#[source] serde_json::Error),
    /// The daemon answered, and the answer is no.
    #[error(transparent)]
    Failed(Failure),
}

/// A request as it travels.
#[derive(Serialize)]
struct Envelope<'a> {
    version: u32,
    request: &'a Request,
}

/// Asks the daemon that listens on `path` and waits for its answer for as long as the request allows. A
/// refusal is an answer: see [`Response::into_answer`]. Dropping the future does not undo what was asked.
pub async fn call(path: impl AsRef<Path>, request: &Request) -> Result<Response, AdminError> {
    call_within(path, request, request.timeout()).await
}

/// As [`call`], with a time limit of the caller's choice.
pub async fn call_within(
    path: impl AsRef<Path>,
    request: &Request,
    limit: Duration,
) -> Result<Response, AdminError> {
    let path = path.as_ref();
    let timeout = AdminError::Timeout { daemon: daemon(path), after: limit };
    tokio::time::timeout(limit, converse(path, request)).await.unwrap_or(Err(timeout))
}

async fn converse(path: &Path, request: &Request) -> Result<Response, AdminError> {
    let daemon = daemon(path);
    let broken = |reason: String| AdminError::Broken { daemon, reason };
    let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            AdminError::NotRunning { daemon, path: path.to_owned() }
        }
        ErrorKind::PermissionDenied => AdminError::Permission { daemon, path: path.to_owned() },
        _ => broken(error.to_string()),
    })?;
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(&Envelope { version: VERSION, request })
        .map_err(|error| broken(error.to_string()))?;
    line.push(b'\n');
    // A server at its limit answers and closes without reading: its answer counts, not the failed write.
    let written = writer.write_all(&line).await;
    let answer = match read_line(&mut BufReader::new(reader), MAX_RESPONSE_LEN.bytes()).await {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            let reason = written.err().map_or_else(|| "no answer came".to_owned(), |error| error.to_string());
            return Err(broken(reason));
        }
        Err(error @ (LineError::TooLong { .. } | LineError::Cut | LineError::Io(_))) => {
            return Err(broken(error.to_string()));
        }
    };
    serde_json::from_slice(&answer).map_err(AdminError::Answer)
}

/// The daemon, and systemd unit, that a socket belongs to.
fn daemon(path: &Path) -> &'static str {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(AGENT_SOCKET_NAME) => "afterimage-agent",
        Some(RECEIVER_SOCKET_NAME) => "afterimage-receiver",
        _ => "the daemon",
    }
}
