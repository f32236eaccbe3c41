//! A session as its group's thread sees it: where answers go, and the two gates of its readers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use afterimage_protocol::message::TargetMessage;
use afterimage_protocol::{Sequence, SessionId, Time};
use afterimage_transport::{CloseCode, Connection, Fingerprint};
use tokio::sync::{mpsc, watch};

/// Messages that wait for the writer of the control stream. Acknowledgements are made when nothing else is to be done, so
/// that a peer with this many unread ones does not read.
pub const OUTBOX_MESSAGES: usize = 256;

/// How long a peer may take to acknowledge, beside a few round trips.
const ANSWER_TIME: Duration = Duration::from_millis(150);
const ANSWER_POLL: Duration = Duration::from_millis(2);

/// The session is over, for a reason that is none of the peer's doing.
pub const SESSION_ENDED: CloseCode = CloseCode(CloseCode::FIRST_APPLICATION.0);
/// The peer broke the protocol.
pub const VIOLATION: CloseCode = CloseCode(CloseCode::FIRST_APPLICATION.0 + 1);

/// The connection of one session.
pub struct Link {
    /// Tells connections apart whose source names the same session.
    pub serial: u64,
    /// The session that the source asked for.
    pub session: SessionId,
    connection: Connection,
    outbox: mpsc::Sender<TargetMessage>,
    begun: watch::Sender<bool>,
    takes_ordered: watch::Sender<bool>,
}

impl Link {
    /// The link, and the messages that it is given to send.
    pub fn new(connection: Connection, session: SessionId) -> (Self, mpsc::Receiver<TargetMessage>) {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let link = Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            session,
            connection,
            outbox,
            begun: watch::Sender::new(false),
            takes_ordered: watch::Sender::new(true),
        };
        (link, messages)
    }

    /// Sends a message, or closes the connection of a peer that does not read. Never waits.
    pub fn send(&self, message: TargetMessage) {
        let begins = matches!(message, TargetMessage::Opened(_));
        if let Err(mpsc::error::TrySendError::Full(_)) = self.outbox.try_send(message) {
            self.close(VIOLATION, "the control stream is not read");
        }
        if begins {
            self.begun.send_replace(true);
        }
    }

    /// Whether the ordered stream may be read on.
    pub fn set_takes_ordered(&self, takes: bool) {
        self.takes_ordered.send_if_modified(|now| std::mem::replace(now, takes) != takes);
    }

    /// Returns once the session has begun: nothing is read off its streams before.
    pub async fn begun(&self) {
        // The sender is `self`, so this cannot fail.
        let _ = self.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// A receiver of what [`Link::set_takes_ordered`] was told last.
    pub fn watch_ordered(&self) -> watch::Receiver<bool> {
        self.takes_ordered.subscribe()
    }

    /// Whether a task of it that waits holds up no other connection.
    pub fn is_alone(&self) -> bool {
        self.connection.is_alone()
    }

    /// Closes the connection at once.
    pub fn close(&self, code: CloseCode, text: &str) {
        self.connection.close(code, text);
    }

    /// The peer's key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.connection.peer_fingerprint()
    }

    /// Where the peer is.
    pub fn address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Whether the peer's process answers: it acknowledges what it is sent now, twice. What was under way when it died
    /// does not look like an answer.
    pub async fn is_answered(&self, applied: Sequence) -> bool {
        let wait = self.connection.rtt() * 4 + ANSWER_TIME;
        for _ in 0..2 {
            let before = self.connection.stats().received_bytes;
            // It says nothing new, and belongs to no ping.
            self.send(TargetMessage::Pong { time: Time(u64::MAX), applied, clock: Time(0) });
            let answered = async {
                while self.connection.stats().received_bytes == before {
                    tokio::time::sleep(ANSWER_POLL).await;
                }
            };
            if tokio::time::timeout(wait, answered).await.is_err() {
                return false;
            }
            tokio::time::sleep(self.connection.rtt()).await;
        }
        true
    }

    /// Round trip time in microseconds.
    pub fn rtt_us(&self) -> u64 {
        u64::try_from(self.connection.rtt().as_micros()).unwrap_or(u64::MAX)
    }
}
