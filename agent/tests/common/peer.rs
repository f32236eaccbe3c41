//! A target made of nothing but the protocol's messages: it keeps an image in memory and acknowledges as told.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use afterimage_protocol::chunk::{CHUNK_HEADER_BYTES, ChunkHeader, Frames, MAX_WINDOW_LOG, Opener};
use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Content, Frame, HEADER_BYTES, Header, Record, frame_digest};
use afterimage_protocol::message::{
    Lost, MAX_MESSAGE_BYTES, Open, Opened, Refusal, SourceMessage, TargetMessage, decode, encode,
};
use afterimage_protocol::*;
use afterimage_transport::{
    Accepted, CloseCode, Connection, Endpoint, EndpointOptions, Identity, PinStore, PinnedPeer, Pins,
    RecvStream, SendStream, read_message, write_message,
};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{Host, VOLUME_BYTES, in_time};

const CAP: u32 = MAX_MESSAGE_BYTES as u32;

/// A host that has paired with the agent's.
pub struct Peer {
    _dir: tempfile::TempDir,
    pub identity: Identity,
    endpoint: Endpoint,
    pub image: Arc<Mutex<Image>>,
}

/// What the target has.
pub struct Image {
    pub bytes: Vec<u8>,
    /// The newest checkpoint.
    pub checkpoint: Option<Position>,
    pub session: SessionId,
    pub records: u64,
    pub commits: u64,
    /// Bytes that came over streams, and raw bytes of payloads.
    pub wire_bytes: u64,
    pub raw_bytes: u64,
    /// In the epoch: when each block was read, and what was written.
    read_at: BTreeMap<u64, Sequence>,
    records_of_epoch: Vec<(ByteRange, Sequence, Bytes)>,
    generation: Generation,
    epoch: Option<(EpochId, u64, u64)>,
    commit: Option<(u64, u64, Position)>,
    /// Blocks that came before their epoch's begin: streams overtake each other.
    early: Vec<Block>,
    /// Frames of the epoch that were not yet said to be staged.
    staged: Vec<(FrameId, u64)>,
    last_record: Sequence,
}

/// How an `Open` is answered.
pub enum Answer {
    Take,
    Refuse(Refusal),
}

/// Which acknowledgements are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    All,
    Received,
    None,
}

pub struct Session {
    pub open: Open,
    pub connection: Connection,
    pub acks: watch::Sender<Acks>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Peer {
    pub fn new(host: &Host) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let pin = PinnedPeer {
            name: "alpha".parse().unwrap(),
            fingerprint: host.identity.fingerprint(),
            address: None,
            paired_at_unix: 1_800_000_000,
        };
        PinStore::new(dir.path()).pin(pin).unwrap();
        let pins = Arc::new(Pins::open(dir.path()).unwrap());
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = Endpoint::bind(address, &identity, pins, EndpointOptions::default()).unwrap();
        let image = Image {
            bytes: vec![0; VOLUME_BYTES as usize],
            checkpoint: None,
            session: SessionId(0),
            records: 0,
            commits: 0,
            wire_bytes: 0,
            raw_bytes: 0,
            read_at: BTreeMap::new(),
            records_of_epoch: Vec::new(),
            generation: Generation::NONE,
            epoch: None,
            commit: None,
            early: Vec::new(),
            staged: Vec::new(),
            last_record: Sequence(0),
        };
        Self { _dir: dir, identity, endpoint, image: Arc::new(Mutex::new(image)) }
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_address().unwrap()
    }

    /// Takes the next session and acknowledges everything.
    pub async fn session(&self) -> Session {
        in_time(self.session_with(Answer::Take, Acks::All)).await.unwrap()
    }

    /// Answers the next request for a session; `None` if it was refused.
    pub async fn session_with(&self, answer: Answer, acks: Acks) -> Option<Session> {
        let connection = match self.endpoint.accept().await {
            Some(Accepted::Peer(connection)) => connection,
            other => panic!("expected a peer, got {other:?}"),
        };
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let first = read_message(&mut receive, CAP).await.unwrap().unwrap();
        let SourceMessage::Open(open) = decode(&first).unwrap() else {
            panic!("the first message is no Open")
        };
        if let Answer::Refuse(code) = answer {
            let refused = TargetMessage::Refused { code, text: "told to".to_owned(), standing: None };
            write_message(&mut send, &encode(&refused), CAP).await.unwrap();
            connection.closed().await;
            return None;
        }
        let opened = {
            let mut image = self.image.lock().unwrap();
            let known_session = std::mem::replace(&mut image.session, open.session);
            image.generation = open.standing.lineage.current();
            (image.epoch, image.commit) = (None, None);
            image.early.clear();
            Opened {
                session: open.session,
                known_session,
                previous_session: open.known_session,
                received: image.checkpoint,
                durable: image.checkpoint,
                mark: 0,
                epoch: None,
                lost: Lost::None,
            }
        };
        write_message(&mut send, &encode(&TargetMessage::Opened(opened)), CAP).await.unwrap();
        let (acks, wanted) = watch::channel(acks);
        let mut tasks = tokio::task::JoinSet::new();
        let (answers, outgoing) = mpsc::unbounded_channel();
        tasks.spawn(write_answers(send, outgoing));
        tasks.spawn(read_control(receive, answers.clone()));
        tasks.spawn(acknowledge(self.image.clone(), wanted, answers));
        tasks.spawn(take_streams(connection.clone(), self.image.clone(), open.session));
        Some(Session { open, connection, acks, _tasks: tasks })
    }
}

impl Session {
    /// Cuts the link.
    pub async fn cut(self) {
        self.connection.close(CloseCode(300), "cut by the test");
        self.connection.closed().await;
    }
}

async fn write_answers(mut send: SendStream, mut outgoing: mpsc::UnboundedReceiver<TargetMessage>) {
    while let Some(message) = outgoing.recv().await {
        if write_message(&mut send, &encode(&message), CAP).await.is_err() {
            return;
        }
    }
}

async fn read_control(mut receive: RecvStream, answers: mpsc::UnboundedSender<TargetMessage>) {
    while let Ok(Some(bytes)) = read_message(&mut receive, CAP).await {
        if let SourceMessage::Ping(ping) = decode(&bytes).unwrap() {
            let pong = TargetMessage::Pong { time: ping.time, applied: Sequence(0), clock: Time(1) };
            let _ = answers.send(pong);
        }
    }
}

/// Says what the newest checkpoint is when that changes.
async fn acknowledge(
    image: Arc<Mutex<Image>>,
    mut wanted: watch::Receiver<Acks>,
    answers: mpsc::UnboundedSender<TargetMessage>,
) {
    let mut said = (Sequence(0), Sequence(0));
    loop {
        let checkpoint = image.lock().unwrap().checkpoint.map(|p| p.sequence);
        let acks = *wanted.borrow_and_update();
        let staged = image.lock().unwrap().staged().filter(|_| acks == Acks::All);
        if let Some(staged) = staged {
            let _ = answers.send(staged);
        }
        if let Some(sequence) = checkpoint.filter(|s| *s > said.0 && acks != Acks::None) {
            said.0 = sequence;
            let _ = answers.send(TargetMessage::Received { sequence });
        }
        if let Some(sequence) = checkpoint.filter(|s| *s > said.1 && acks == Acks::All) {
            said.1 = sequence;
            let _ = answers.send(TargetMessage::Durable { sequence });
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

async fn take_streams(connection: Connection, image: Arc<Mutex<Image>>, session: SessionId) {
    let mut readers = tokio::task::JoinSet::new();
    while let Ok(mut stream) = connection.accept_uni().await {
        let image = image.clone();
        readers.spawn(async move {
            let mut preface = [0; 9];
            if stream.read_exact(&mut preface).await.is_err() {
                return;
            }
            assert!(matches!(preface[0], b'O' | b'B'));
            assert_eq!(preface[1..], session.0.to_le_bytes());
            let mut reader = Reader::new(stream);
            while let Some(frame) = reader.next().await {
                let mut image = image.lock().unwrap();
                image.wire_bytes += std::mem::take(&mut reader.wire_bytes);
                image.take(frame);
            }
        });
    }
    // The readers end with the connection.
    while readers.join_next().await.is_some() {}
}

/// The frames of a stream, out of chunks too.
struct Reader {
    stream: RecvStream,
    opener: Opener,
    opened: VecDeque<Frame>,
    /// Bytes of chunks, and of frames that came by themselves.
    wire_bytes: u64,
}

impl Reader {
    fn new(stream: RecvStream) -> Self {
        Self { stream, opener: Opener::default(), opened: VecDeque::new(), wire_bytes: 0 }
    }

    async fn next(&mut self) -> Option<Frame> {
        while self.opened.is_empty() {
            let mut header = [0; HEADER_BYTES];
            self.stream.read_exact(&mut header[..CHUNK_HEADER_BYTES]).await.ok()?;
            let chunk = ChunkHeader::parse(&header).unwrap();
            let length = match chunk {
                Some(chunk) => chunk.coded_bytes as usize,
                None => {
                    self.stream.read_exact(&mut header[CHUNK_HEADER_BYTES..]).await.ok()?;
                    Header::parse(&header).unwrap().payload_bytes()
                }
            };
            let mut bytes = vec![0; length];
            self.stream.read_exact(&mut bytes).await.ok()?;
            self.wire_bytes += length as u64;
            match chunk {
                Some(chunk) => {
                    let raw = self.opener.open(&chunk, &bytes.into(), MAX_WINDOW_LOG).unwrap();
                    self.opened.extend(Frames::of(raw).map(Result::unwrap));
                }
                None => self.opened.push_back(Header::parse(&header).unwrap().open(bytes.into()).unwrap()),
            }
        }
        self.opened.pop_front()
    }
}

impl Image {
    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Record(record) => {
                self.records += 1;
                self.last_record = record.position.sequence;
                self.write_record(&record);
                if self.epoch.is_none() {
                    self.checkpoint = Some(record.position);
                }
            }
            Frame::EpochBegin { epoch, generation, .. } => {
                assert_eq!(generation, self.generation);
                self.epoch = Some((epoch, 0, 0));
                self.read_at.clear();
                self.records_of_epoch.clear();
                self.staged.clear();
                std::mem::take(&mut self.early).into_iter().for_each(|block| self.take_block(block));
            }
            Frame::Block(block) => self.take_block(block),
            Frame::EpochCommit { position, frames, digest, .. } => {
                self.commit = Some((frames, digest, position))
            }
            Frame::Compare(_) => panic!("nothing to compare with"),
            Frame::Mark { .. } | Frame::EpochAbort { .. } | Frame::Point { .. } => {}
            Frame::TakeOver { .. } | Frame::Check(_) => {}
        }
        if let (Some((_, frames, digest)), Some((want, want_digest, position))) = (self.epoch, self.commit)
            && frames == want
        {
            assert_eq!(digest, want_digest);
            (self.epoch, self.commit) = (None, None);
            // Records behind the commit may have come before the last of its blocks.
            let last = position.sequence.max(self.last_record);
            self.checkpoint = Some(Position::new(position.generation, last));
            self.commits += 1;
        }
    }

    /// What was staged since this was asked last.
    fn staged(&mut self) -> Option<TargetMessage> {
        let (epoch, ..) = self.epoch.filter(|_| !self.staged.is_empty())?;
        let frames = std::mem::take(&mut self.staged);
        Some(TargetMessage::Staged { epoch, frames, records_to: self.last_record, mark: None })
    }

    fn take_block(&mut self, block: Block) {
        let Some((epoch, ..)) = self.epoch else { return self.early.push(block) };
        if block.epoch < epoch {
            // What was on its way when the source began anew.
            return;
        }
        if block.epoch > epoch {
            return self.early.push(block);
        }
        self.write_block(&block);
        let digest = frame_digest(block.frame, block.read_at);
        self.staged.push((block.frame, 1));
        let epoch = self.epoch.as_mut().expect("looked at above");
        epoch.1 += 1;
        epoch.2 = epoch.2.wrapping_add(digest);
    }

    fn write_block(&mut self, block: &Block) {
        let bytes = self.content(&block.range, &block.content);
        self.put(block.range, &bytes);
        for b in block.range.blocks().iter() {
            self.read_at.insert(b, block.read_at);
        }
        // What was written after the block was read stays, to the byte.
        for (range, at, bytes) in std::mem::take(&mut self.records_of_epoch) {
            if at > block.read_at {
                let (from, to) = (range.offset.max(block.range.offset), range.end().min(block.range.end()));
                if from < to {
                    let part = ByteRange::new(range.volume, from, to - from);
                    self.put(part, &bytes[(from - range.offset) as usize..(to - range.offset) as usize]);
                }
            }
            self.records_of_epoch.push((range, at, bytes));
        }
    }

    fn write_record(&mut self, record: &Record) {
        let (range, at) = (record.range, record.position.sequence);
        let bytes = self.content(&range, &record.content);
        for b in range.blocks().iter() {
            let newer = self.epoch.is_some() && self.read_at.get(&b).is_some_and(|read| *read >= at);
            let (from, to) = ((b * BLOCK_BYTES).max(range.offset), ((b + 1) * BLOCK_BYTES).min(range.end()));
            if !newer {
                let part = ByteRange::new(range.volume, from, to - from);
                self.put(part, &bytes[(from - range.offset) as usize..(to - range.offset) as usize]);
            }
        }
        if self.epoch.is_some() {
            self.records_of_epoch.push((range, at, bytes));
        }
    }

    fn content(&mut self, range: &ByteRange, content: &Content) -> Bytes {
        match content {
            Content::Data(payload) => {
                self.raw_bytes += u64::from(payload.raw_bytes);
                codec::decode(payload).unwrap()
            }
            Content::Zeroes { .. } => Bytes::from(vec![0; range.length as usize]),
        }
    }

    fn put(&mut self, range: ByteRange, bytes: &[u8]) {
        self.bytes[range.offset as usize..range.end() as usize].copy_from_slice(bytes);
    }
}
