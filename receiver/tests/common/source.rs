//! The source's end of a session, by hand.

use afterimage_protocol::frame::Frame;
use afterimage_protocol::lineage::{Lineage, Standing};
use afterimage_protocol::message::{
    self, MAX_MESSAGE_BYTES, Open, Opened, Ping, Refusal, SourceMessage, TargetMessage, VolumeInfo,
};
use afterimage_protocol::state::Role;
use afterimage_protocol::*;
use afterimage_transport::{
    Connection, ConnectionLost, Endpoint, MessageError, RecvStream, SendStream, WriteError, read_message,
    write_message,
};

use super::frames::{Epoch, GENERATION, noise};
use super::{GROUP, SHORT, Standby, VOLUME_BYTES, in_time};

const CAP: u32 = MAX_MESSAGE_BYTES as u32;

/// A session that was asked for.
pub struct Source {
    pub connection: Connection,
    pub session: SessionId,
    pub send: SendStream,
    receive: RecvStream,
    ordered: SendStream,
    _endpoint: Endpoint,
    pub received: u64,
    pub durable: u64,
    pub messages: Vec<TargetMessage>,
}

/// Connects to the standby's receiver, which may still be starting.
pub async fn connect(standby: &Standby) -> (Endpoint, Connection) {
    let endpoint = standby.peer.endpoint();
    let key = standby.host.identity.fingerprint();
    for _ in 0..50 {
        match endpoint.connect(standby.address, key).await {
            Ok(connection) => return (endpoint, connection),
            Err(_) => tokio::time::sleep(SHORT).await,
        }
    }
    panic!("cannot connect");
}

pub fn open_message(session: u64) -> Open {
    Open {
        group: GROUP.to_owned(),
        session: SessionId(session),
        known_session: SessionId(0),
        standing: Standing {
            role: Role::Primary,
            lineage: Lineage::new(GENERATION),
            sequence: Sequence(1000),
            alone: false,
            parted: Time(0),
        },
        incarnation: Incarnation(1),
        durable_acks: false,
        pending: false,
        volumes: vec![VolumeInfo { name: "pgdata".to_owned(), size_bytes: VOLUME_BYTES }],
    }
}

impl Source {
    /// Asks for a session.
    pub async fn ask(standby: &Standby, open: Open) -> Result<(Self, Opened), (Refusal, String)> {
        in_time(async {
            let (endpoint, connection) = connect(standby).await;
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let session = open.session;
            write_message(&mut send, &message::encode(&SourceMessage::Open(open)), CAP).await.unwrap();
            let answer = read_message(&mut receive, CAP).await.unwrap().unwrap();
            match message::decode(&answer).unwrap() {
                TargetMessage::Opened(opened) => {
                    let ordered = stream(&connection, b'O', session).await;
                    let source = Self {
                        connection,
                        session,
                        send,
                        receive,
                        ordered,
                        _endpoint: endpoint,
                        received: 0,
                        durable: 0,
                        messages: Vec::new(),
                    };
                    Ok((source, opened))
                }
                TargetMessage::Refused { code, text, .. } => Err((code, text)),
                other => panic!("{other:?}"),
            }
        })
        .await
    }

    /// A session, begun.
    pub async fn open(standby: &Standby, session: u64) -> (Self, Opened) {
        Self::ask(standby, open_message(session)).await.unwrap()
    }

    /// A first sync of noise over the first MiB, up to sequence 10; returns once it is durable.
    pub async fn first_sync(standby: &Standby, session: u64) -> Self {
        let (mut source, opened) = Self::open(standby, session).await;
        assert_eq!(opened.received, None);
        let mut epoch = Epoch::new(1);
        source.send(&epoch.begin()).await;
        source.blocks(&[epoch.block(0, &noise(1, 1 << 20), 10)]).await;
        source.send(&epoch.commit(10)).await;
        source.until_durable(10).await;
        source
    }

    pub async fn send(&mut self, frame: &Frame) {
        self.raw(&frame.to_bytes()).await;
    }

    pub async fn raw(&mut self, bytes: &[u8]) {
        self.try_raw(bytes).await.unwrap();
    }

    pub async fn try_raw(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        in_time(self.ordered.write_all(bytes)).await
    }

    /// Sends frames over a block stream of their own.
    pub async fn blocks(&self, frames: &[Frame]) {
        let mut stream = stream(&self.connection, b'B', self.session).await;
        for frame in frames {
            in_time(stream.write_all(&frame.to_bytes())).await.unwrap();
        }
        stream.finish().unwrap();
        in_time(stream.stopped()).await.unwrap();
    }

    pub async fn ping(&mut self, time: u64) {
        self.try_ping(time).await.unwrap();
    }

    pub async fn try_ping(&mut self, time: u64) -> Result<(), MessageError> {
        let ping = message::encode(&SourceMessage::Ping(Ping {
            time: Time(time),
            sequence: Sequence(0),
            lease: None,
        }));
        write_message(&mut self.send, &ping, CAP).await
    }

    /// The next message of the target.
    pub async fn next(&mut self) -> TargetMessage {
        let bytes = in_time(read_message(&mut self.receive, CAP)).await.unwrap().unwrap();
        let message: TargetMessage = message::decode(&bytes).unwrap();
        match &message {
            TargetMessage::Received { sequence } => self.received = sequence.0,
            TargetMessage::Durable { sequence } => {
                self.durable = sequence.0;
                self.received = self.received.max(sequence.0);
            }
            _ => {}
        }
        self.messages.push(message.clone());
        message
    }

    pub async fn until_received(&mut self, sequence: u64) {
        while self.received < sequence {
            self.next().await;
        }
    }

    pub async fn until_durable(&mut self, sequence: u64) {
        while self.durable < sequence {
            self.next().await;
        }
    }

    /// Reads on until the target has staged the records of an epoch up to `sequence`.
    pub async fn until_staged(&mut self, sequence: u64) {
        let staged = |m: &TargetMessage| matches!(m, TargetMessage::Staged { records_to, .. } if records_to.0 >= sequence);
        while !staged(&self.next().await) {}
    }

    /// Whether nothing is acknowledged for a while.
    pub async fn hears_nothing(&mut self) -> bool {
        tokio::time::timeout(SHORT, self.next()).await.is_err()
    }

    /// What the receiver says when it closes the connection.
    pub async fn closed(&self) -> String {
        match in_time(self.connection.closed()).await {
            ConnectionLost::ClosedByPeer { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }
}

/// A stream to the receiver, with its preface.
pub async fn stream(connection: &Connection, kind: u8, session: SessionId) -> SendStream {
    let mut stream = connection.open_uni().await.unwrap();
    let mut preface = vec![kind];
    preface.extend_from_slice(&session.0.to_le_bytes());
    stream.write_all(&preface).await.unwrap();
    stream
}
