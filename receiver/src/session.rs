//! One connection of a source: the handshake and the control stream. Its frames are the business of [`crate::streams`].

use std::sync::Arc;
use std::time::Duration;

use afterimage_contract::config::MAX_NAME_LEN;
use afterimage_events::{Event, event};
use afterimage_protocol::frame::FrameError;
use afterimage_protocol::message::{self, MAX_MESSAGE_BYTES, Open, Refusal, SourceMessage, TargetMessage};
use afterimage_transport::{
    CloseCode, Connection, ConnectionLost, MessageError, RecvStream, SendStream, read_message, write_message,
};
use tokio::sync::mpsc;
use tracing::{debug, info};

use crate::group::{Group, Input};
use crate::link::{Link, SESSION_ENDED, VIOLATION};
use crate::node::Node;
use crate::streams::{self, StreamError};

/// A source that has not asked for a session by then is not going to: it knows what to ask before it connects.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a refused source may take to read why.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
const CAP_BYTES: u32 = MAX_MESSAGE_BYTES as u32;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No request for a session came.
    #[error("no session was asked for within {} s", OPEN_TIMEOUT.as_secs())]
    NoOpen,
    /// The control stream cannot be used.
    #[error("control stream: {0}")]
    Control(#[from] MessageError),
    /// A message that cannot be read.
    #[error(transparent)]
    Message(#[from] message::MessageError),
    /// A message that may not come here.
    #[error("control stream: {0}")]
    Unexpected(&'static str),
    /// A stream of frames cannot be used.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The connection is gone.
    #[error(transparent)]
    Lost(#[from] ConnectionLost),
    /// The group's thread is gone: the receiver stops.
    #[error("the receiver stops")]
    Stopping,
}

/// Serves a connection until it is closed.
pub async fn serve(node: Arc<Node>, connection: Connection) {
    let opening = tokio::time::timeout(OPEN_TIMEOUT, open(&connection)).await;
    let (control, open) = match opening.unwrap_or(Err(SessionError::NoOpen)) {
        Ok(opened) => opened,
        // A look at whether this host answers, such as of `afterimage config check`.
        Err(SessionError::Lost(ConnectionLost::ClosedByPeer { code: CloseCode::DONE, text })) => {
            debug!(address = %connection.remote_address(), text, "a connection was closed, no session was asked for");
            return;
        }
        Err(error) => {
            let address = connection.remote_address();
            event!(Event::ProtocolViolated, %address, %error, "a connection ended before a session was asked for");
            connection.close(VIOLATION, &error.to_string());
            return;
        }
    };
    let Some(group) = node.group(&open.group) else {
        let name: String = open.group.chars().take(MAX_NAME_LEN).collect();
        let text = format!("group {name} is not configured here");
        event!(
            Event::SessionRefused,
            wanted = name,
            address = %connection.remote_address(),
            "session refused: no such group"
        );
        let refused = TargetMessage::Refused { code: Refusal::UnknownGroup, text, standing: None };
        refuse(control.0, &connection, &refused).await;
        return;
    };
    converse(group, &connection, control, open).await;
}

async fn open(connection: &Connection) -> Result<((SendStream, RecvStream), Open), SessionError> {
    let (send, mut receive) = connection.accept_bi().await?;
    let bytes = read_message(&mut receive, CAP_BYTES).await?.ok_or(MessageError::Truncated)?;
    match message::decode(&bytes)? {
        SourceMessage::Open(open) => Ok(((send, receive), open)),
        SourceMessage::Ping(_) | SourceMessage::Measure => {
            Err(SessionError::Unexpected("something else before a session was asked for"))
        }
    }
}

async fn converse(
    group: &Arc<Group>,
    connection: &Connection,
    (send, receive): (SendStream, RecvStream),
    open: Open,
) {
    let (link, messages) = Link::new(connection.clone(), open.session);
    let link = Arc::new(link);
    if !group.send(Input::Open { open: Box::new(open), link: link.clone() }) {
        connection.close(SESSION_ENDED, &SessionError::Stopping.to_string());
        return;
    }
    let ended = tokio::select! {
        ended = write(send, messages, connection) => ended,
        ended = read(receive, group, &link) => ended,
        ended = streams::accept(connection, group, &link) => ended.map_err(SessionError::from),
        lost = connection.closed() => Err(lost.into()),
    };
    let (code, text) = match &ended {
        Ok(()) => (CloseCode::DONE, "the session is over".to_owned()),
        Err(SessionError::Lost(_) | SessionError::Stopping) => {
            (SESSION_ENDED, "the session is over".to_owned())
        }
        Err(error) => (VIOLATION, error.to_string()),
    };
    if let Err(error) = &ended {
        tell(group.name(), &link, error);
    }
    // A connection that is closed already keeps its reason.
    link.close(code, &text);
    let reason = match ended {
        Ok(()) => "the source closed its control stream".to_owned(),
        Err(error) => error.to_string(),
    };
    info!(group = group.name(), session = link.session.0, address = %link.address(), reason, "connection closed");
    group.send(Input::Disconnected { serial: link.serial, reason });
}

/// Logs an error that is none of the link's.
fn tell(group: &str, link: &Link, error: &SessionError) {
    let address = link.address();
    match error {
        SessionError::Stream(StreamError::Frame {
            source: FrameError::Checksum | FrameError::Content,
            ..
        }) => {
            event!(Event::ChecksumError, group = group, %address, %error, "a frame is not the one that was sent");
        }
        SessionError::Lost(_) | SessionError::Stopping | SessionError::Control(_) => {}
        SessionError::Stream(StreamError::Lost(_) | StreamError::Read(_) | StreamError::Stopping) => {}
        _ => {
            event!(Event::ProtocolViolated, group = group, %address, %error, "the source broke the protocol")
        }
    }
}

/// Writes what the group's thread has to say. Returns once a refusal was read, or on an error.
async fn write(
    mut send: SendStream,
    mut messages: mpsc::Receiver<TargetMessage>,
    connection: &Connection,
) -> Result<(), SessionError> {
    while let Some(message) = messages.recv().await {
        if matches!(message, TargetMessage::Refused { .. }) {
            refuse(send, connection, &message).await;
            return Ok(());
        }
        write_message(&mut send, &message::encode(&message), CAP_BYTES).await?;
    }
    Ok(())
}

/// Says no, and leaves the source the time to hear it.
async fn refuse(mut send: SendStream, connection: &Connection, message: &TargetMessage) {
    let told = write_message(&mut send, &message::encode(message), CAP_BYTES).await;
    if told.is_ok() && send.finish().is_ok() {
        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, connection.closed()).await;
    }
    connection.close(CloseCode::DONE, "refused");
}

/// Reads what the source has to say after its first message.
async fn read(mut receive: RecvStream, group: &Group, link: &Link) -> Result<(), SessionError> {
    while let Some(bytes) = read_message(&mut receive, CAP_BYTES).await? {
        let permit = group.room(bytes.len()).await;
        match message::decode(&bytes)? {
            SourceMessage::Ping(ping) => {
                if !group.send(Input::Ping { serial: link.serial, ping, permit }) {
                    return Err(SessionError::Stopping);
                }
            }
            SourceMessage::Measure => {
                if !group.send(Input::Measure { serial: link.serial, permit }) {
                    return Err(SessionError::Stopping);
                }
            }
            SourceMessage::Open(_) => return Err(SessionError::Unexpected("a second request for a session")),
        }
    }
    Ok(())
}
