//! One connection: handshake, control messages both ways, liveness, end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use afterimage_events::{Event, event};
use afterimage_protocol::lineage::Standing;
use afterimage_protocol::message::{
    MAX_MESSAGE_BYTES, Refusal, SourceMessage, TargetMessage, decode, encode,
};
use afterimage_protocol::{SessionId, Time};
use afterimage_transport::{
    CloseCode, Connection, ConnectionLost, RecvStream, SendStream, read_message, write_message,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Link;
use super::dial::{Dialer, chain};
use super::sender::{BLOCK_STREAMS, Sender};
use crate::group::Group;
use crate::random;

/// How often the round trip is noted for the status.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A peer that says nothing for this long is gone, whatever QUIC thinks: its process may hang.
const SILENCE_US: u64 = 10_000_000;
/// How long a source that has just started may take to be ready for a session.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
const READY_POLL: Duration = Duration::from_millis(5);
/// How long the peer may take to answer a handshake: it notes the session on its disk.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Control messages go before all else, and records before blocks.
const CONTROL_PRIORITY: i32 = 2;
pub(super) const CAP_BYTES: u32 = MAX_MESSAGE_BYTES as u32;

/// How an attempt, or a session, ended.
#[derive(Debug)]
pub(super) enum End {
    Stopped,
    Paused,
    Unpaired,
    Refused(Refusal, Option<Standing>),
    /// The peer's new process says that it does not know the session: it is there, and can have one.
    Restarted,
    Lost,
}

impl Link {
    /// Reaches the peer and holds a session with it until that ends.
    pub(super) async fn attempt(&self, group: &Arc<Group>, dialer: &Dialer) -> End {
        let mut paused = self.paused.subscribe();
        tokio::select! {
            end = self.dial_and_hold(group, dialer) => end,
            _ = paused.wait_for(|paused| *paused) => {
                self.note(|state| state.rtt_us = None);
                End::Paused
            }
        }
    }

    async fn dial_and_hold(&self, group: &Arc<Group>, dialer: &Dialer) -> End {
        let connection = match self.dial(dialer).await {
            Ok(connection) => connection,
            Err(end) => return end,
        };
        // Dropped last, also when this future is: no task of the session outlives it.
        let _held = Held { group: group.clone(), connection: connection.clone() };
        match self.hold(group, &connection).await {
            Ok(never) => match never {},
            Err(Broken::Refused { code, text, standing }) => {
                let retry = matches!(code, Refusal::NotReady | Refusal::Pending);
                self.note(|state| {
                    state.standing = standing.clone().or(state.standing.take());
                    state.refused = !retry;
                    state.split_brain = code == Refusal::SplitBrain;
                    state.reinstate = code == Refusal::Reinstate;
                });
                self.failed(End::Refused(code, standing), text)
            }
            Err(Broken::Lost(text)) => {
                let (end, text) = match connection.close_reason() {
                    Some(reason @ ConnectionLost::Reset) => (End::Restarted, format!("{text}: {reason}")),
                    Some(reason) => (End::Lost, format!("{text}: {reason}")),
                    None => (End::Lost, text),
                };
                self.failed(end, text)
            }
        }
    }

    async fn hold(
        &self,
        group: &Arc<Group>,
        connection: &Connection,
    ) -> Result<std::convert::Infallible, Broken> {
        let mut hang_ups = group.hang_ups();
        let (mut control, mut answers) = connection.open_bi().await.map_err(lost)?;
        // Fails only on a stream that is closed, which the next write tells.
        let _ = control.set_priority(CONTROL_PRIORITY);
        let open = open(group).await?;
        write_message(&mut control, &encode(&open), CAP_BYTES).await.map_err(lost)?;
        loop {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, next(&mut answers)).await;
            match answer.map_err(|_| Broken::Lost("the peer does not answer the handshake".to_owned()))?? {
                TargetMessage::Refused { code, text, standing } => {
                    if code == Refusal::Pending {
                        let refused = TargetMessage::Refused { code, text: text.clone(), standing: None };
                        group.feed(|source, now| source.message(now, refused));
                    }
                    return Err(Broken::Refused { code, text, standing });
                }
                message @ TargetMessage::Lacks { .. } => {
                    group.feed(|source, now| source.message(now, message));
                }
                message @ TargetMessage::Opened(_) => {
                    group.feed(|source, now| source.message(now, message));
                    self.agreed.send_replace(true);
                    break;
                }
                _ => {
                    return Err(Broken::Lost(
                        "the peer answers the handshake with something else".to_owned(),
                    ));
                }
            }
        }
        event!(
            Event::LinkUp,
            group = group.name,
            peer = %connection.remote_address(),
            key = %connection.peer_fingerprint(),
            "session with the peer"
        );
        self.note(|state| {
            state.refused = false;
            state.split_brain = false;
            state.reinstate = false;
            state.standing = None;
        });
        let heard = Arc::new(Heard::new(group.clock.now()));
        let sender = Arc::new(Sender::new(group.clone()));
        let mut tasks = JoinSet::new();
        let (ask, asks) = mpsc::channel(1);
        let (measured, mut sizes) = mpsc::channel(1);
        tasks.spawn(receive(group.clone(), answers, heard.clone(), measured));
        tasks.spawn(ping(group.clone(), control, heard.clone(), asks));
        tasks.spawn(sender.clone().run_ordered(connection.clone(), session_of(&open)));
        for _ in 0..BLOCK_STREAMS {
            tasks.spawn(sender.clone().run_blocks(connection.clone(), session_of(&open)));
        }
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                Some(ended) = tasks.join_next() => match ended {
                    Ok(broken) => return Err(broken),
                    Err(error) => return Err(Broken::Lost(format!("a task of the session failed: {error}"))),
                },
                _ = hang_ups.changed() => {
                    let reason = hang_ups.borrow().1;
                    return Err(Broken::Lost(format!("the session was ended here: {reason}")));
                }
                () = self.measure.notified() => {
                    // One that is under way answers this one too.
                    let _ = ask.try_send(());
                }
                Some(sizes) = sizes.recv() => self.measured.send_modify(|(count, last)| {
                    *count += 1;
                    *last = sizes;
                }),
                _ = look.tick() => {
                    group.wire.packets_sent(connection.stats().sent_bytes);
                    self.note(|state| state.rtt_us = heard.rtt_us());
                }
            }
        }
    }
}

/// Why a session is no more.
#[derive(Debug)]
pub(super) enum Broken {
    Refused { code: Refusal, text: String, standing: Option<Standing> },
    Lost(String),
}

pub(super) fn lost<E: std::error::Error>(error: E) -> Broken {
    Broken::Lost(chain(&error))
}

/// A connection, and the session that the source has on it: both end when this is dropped.
struct Held {
    group: Arc<Group>,
    connection: Connection,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.close(CloseCode::DONE, "the session has ended");
        self.group.feed(|source, now| source.disconnected(now));
    }
}

/// When the peer was last heard, and how long its last answer took. Microseconds.
struct Heard {
    at: AtomicU64,
    /// `u64::MAX` before the first answer.
    rtt: AtomicU64,
}

impl Heard {
    fn new(now: Time) -> Self {
        Self { at: AtomicU64::new(now.0), rtt: AtomicU64::new(u64::MAX) }
    }

    fn rtt_us(&self) -> Option<u64> {
        Some(self.rtt.load(Ordering::Relaxed)).filter(|rtt| *rtt != u64::MAX)
    }
}

/// The first message of a session, once the source is ready for one.
async fn open(group: &Arc<Group>) -> Result<SourceMessage, Broken> {
    let session = SessionId(random::nonzero().map_err(lost)?);
    let ready = async {
        loop {
            if let Some(open) = group.feed(|source, _| source.open(session)) {
                return open;
            }
            tokio::time::sleep(READY_POLL).await;
        }
    };
    let open = tokio::time::timeout(READY_TIMEOUT, ready).await;
    open.map(SourceMessage::Open).map_err(|_| Broken::Lost("the group's state cannot be written".to_owned()))
}

fn session_of(open: &SourceMessage) -> SessionId {
    match open {
        SourceMessage::Open(open) => open.session,
        SourceMessage::Ping(_) | SourceMessage::Measure => SessionId(0),
    }
}

pub(super) async fn next(answers: &mut RecvStream) -> Result<TargetMessage, Broken> {
    match read_message(answers, CAP_BYTES).await.map_err(lost)? {
        Some(bytes) => decode(&bytes).map_err(lost),
        None => Err(Broken::Lost("the peer ended the session".to_owned())),
    }
}

async fn receive(
    group: Arc<Group>,
    mut answers: RecvStream,
    heard: Arc<Heard>,
    measured: mpsc::Sender<Vec<u64>>,
) -> Broken {
    loop {
        let message = match next(&mut answers).await {
            Ok(TargetMessage::Refused { code, text, standing }) => {
                return Broken::Refused { code, text, standing };
            }
            Ok(message) => message,
            Err(broken) => return broken,
        };
        let now = group.clock.now();
        heard.at.store(now.0, Ordering::Relaxed);
        if let TargetMessage::Pong { time, .. } = &message
            && *time <= now
        {
            heard.rtt.store(now.since_us(*time), Ordering::Relaxed);
        }
        if let TargetMessage::Measured { sizes } = message {
            // Nobody may have asked.
            let _ = measured.try_send(sizes);
            continue;
        }
        group.feed(|source, now| source.message(now, message));
    }
}

/// Pings, and the questions of the operator.
async fn ping(
    group: Arc<Group>,
    mut control: SendStream,
    heard: Arc<Heard>,
    mut asks: mpsc::Receiver<()>,
) -> Broken {
    let pause = Duration::from_micros(group.look(|source| source.ping_interval_us()));
    let mut interval = tokio::time::interval(pause);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            Some(()) = asks.recv() => {
                if let Err(error) = write_message(&mut control, &encode(&SourceMessage::Measure), CAP_BYTES).await {
                    return lost(error);
                }
                continue;
            }
        }
        let now = group.clock.now();
        if now.since_us(Time(heard.at.load(Ordering::Relaxed))) > SILENCE_US {
            return Broken::Lost(format!("the peer was silent for {} s", SILENCE_US / 1_000_000));
        }
        let ping = group.feed(|source, now| source.ping(now));
        let ping = encode(&SourceMessage::Ping(ping));
        if let Err(error) = write_message(&mut control, &ping, CAP_BYTES).await {
            return lost(error);
        }
    }
}
