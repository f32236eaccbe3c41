//! The simulated network: one connection at a time counts, older ones may still deliver.

use std::collections::VecDeque;

use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Codec, Content, Frame, Record};
use afterimage_protocol::message::{self, SourceMessage, TargetMessage};
use afterimage_protocol::*;
use bytes::Bytes;

use super::{Violation, World};

/// Block streams of a connection.
pub const BLOCK_STREAMS: usize = 3;

/// A connection from the source to the target.
#[derive(Default)]
pub struct Connection {
    /// The session that it carries.
    pub session: SessionId,
    /// Encoded control messages.
    pub to_target: VecDeque<Vec<u8>>,
    pub to_source: VecDeque<Vec<u8>>,
    /// Encoded frames.
    pub ordered: VecDeque<Bytes>,
    pub blocks: [VecDeque<Bytes>; BLOCK_STREAMS],
    /// A record was lost on it, as no connection should: it may hang, and is not kept when everything is mended.
    pub lossy: bool,
    /// The source has let go of it.
    pub source_gone: bool,
    /// The target has.
    pub target_gone: bool,
}

impl Connection {
    pub fn new(session: SessionId) -> Self {
        Self { session, ..Self::default() }
    }

    pub fn is_over(&self) -> bool {
        self.source_gone && self.target_gone
    }
}

impl World {
    pub(super) fn connect(&mut self) {
        let Some(p) = &mut self.primary.process else { return };
        if p.disconnect {
            p.disconnect = false;
            self.source_disconnects();
            return;
        }
        let busy = self.connections.iter().any(|c| !c.source_gone);
        if busy || !self.link[0] || !self.link[1] || self.standby.process.is_none() {
            return;
        }
        let session = SessionId(self.rng.next_u64() | 1);
        if let Some(open) = p.source.open(session) {
            self.say(|| format!("source asks for session {session}"));
            let mut c = Connection::new(session);
            c.to_target.push_back(message::encode(&SourceMessage::Open(open)));
            self.connections.push(c);
        }
    }

    pub(super) fn source_disconnects(&mut self) {
        self.say(|| "source lets the connection go".into());
        for c in &mut self.connections {
            c.source_gone = true;
        }
        if let Some(p) = &mut self.primary.process {
            p.source.disconnected(self.now);
        }
        self.primary.drain(&mut self.history);
    }

    /// The source gives frames, and now and then a ping, to the connection.
    pub(super) fn send(&mut self) {
        let Some(p) = &mut self.primary.process else { return };
        let Some(c) = self.connections.iter_mut().find(|c| !c.source_gone) else { return };
        // The first message of a connection asks for the session.
        let open = c.to_target.is_empty() && p.source.status().connected;
        if open && self.rng.chance(0.2) {
            let ping = p.source.ping(self.now);
            c.to_target.push_back(message::encode(&SourceMessage::Ping(ping)));
        }
        let lz4 = self.rng.coin();
        let mut said = Vec::new();
        for _ in 0..1 + self.rng.below(4) {
            if let Some(frame) = p.source.next_frame(self.now) {
                said.push(brief(&frame));
                c.ordered.push_back(encode(frame, lz4));
            }
            if let Some(frame) = p.source.next_block(self.now) {
                said.push(brief(&frame));
                let stream = self.rng.index(BLOCK_STREAMS);
                c.blocks[stream].push_back(encode(frame, lz4));
            }
        }
        for line in said {
            self.say(|| format!("source sends {line}"));
        }
        self.primary.drain(&mut self.history);
    }

    /// Something arrives somewhere.
    pub(super) fn deliver(&mut self) -> Result<(), Violation> {
        if self.connections.is_empty() {
            return Ok(());
        }
        let at = self.rng.index(self.connections.len());
        let stream = self.rng.below(3 + BLOCK_STREAMS as u64);
        let now = self.now;
        let c = &mut self.connections[at];
        let session = c.session;
        if stream == 0 {
            // To the source.
            if !self.link[1] || c.source_gone {
                return Ok(());
            }
            let (Some(bytes), Some(p)) = (c.to_source.pop_front(), &mut self.primary.process) else {
                return Ok(());
            };
            if let Ok(message) = message::decode::<TargetMessage>(&bytes) {
                let alarm = match &message {
                    TargetMessage::Checked { differing, .. } => differing.clone(),
                    _ => Vec::new(),
                };
                if self.faults.lose_opened && matches!(message, TargetMessage::Opened(_)) {
                    self.faults.lose_opened = false;
                    self.say(|| "  the connection ends before the handshake does".into());
                    self.source_disconnects();
                    return Ok(());
                }
                p.source.message(now, message.clone());
                if matches!(message, TargetMessage::Opened(_)) {
                    self.session_count += 1;
                    self.primary.unaware = false;
                }
                self.say(|| format!("source gets {message:?}"));
                self.check_alarm(&alarm)?;
            }
            self.primary.drain(&mut self.history);
            return Ok(());
        }
        if !self.link[0] || c.target_gone {
            return Ok(());
        }
        let Some(p) = &mut self.standby.process else { return Ok(()) };
        if stream == 1 {
            let Some(bytes) = c.to_target.pop_front() else { return Ok(()) };
            match message::decode(&bytes) {
                Ok(SourceMessage::Open(open)) => {
                    if let Err(refused) = p.target.open(now, open) {
                        c.to_source.push_back(message::encode(&refused));
                        c.target_gone = true;
                    }
                    self.say(|| format!("target is asked for session {session}"));
                }
                Ok(SourceMessage::Ping(ping)) => {
                    p.target.ping(now, session, ping);
                    self.say(|| format!("target gets {ping:?}"));
                }
                // The shell answers that.
                Ok(SourceMessage::Measure) => {}
                Err(error) => {
                    return Err(Violation::new("G4", format!("a message did not survive the wire: {error}")));
                }
            }
        } else {
            if stream == 2 && !p.target.takes_ordered() {
                return Ok(());
            }
            let queue = if stream == 2 { &mut c.ordered } else { &mut c.blocks[stream as usize - 3] };
            let Some(bytes) = queue.pop_front() else { return Ok(()) };
            match Frame::decode(&bytes) {
                Ok((Frame::Record(_), _)) if self.faults.lose_record && p.target.staging().is_none() => {
                    self.faults.lose_record = false;
                    c.lossy = true;
                    self.say(|| "  a record is lost on its way".into());
                }
                Ok((Frame::EpochCommit { .. }, _)) if self.faults.lose_commit => {
                    self.faults.lose_commit = false;
                    c.target_gone = true;
                    p.target.disconnected(now, session);
                    self.say(|| "  the connection ends at a commit".into());
                }
                Ok((frame, _)) => {
                    let line = brief(&frame);
                    let result = p.target.frame(now, session, frame);
                    self.say(|| format!("target gets {line} of {session}: {result:?}"));
                }
                Err(error) => {
                    return Err(Violation::new("G4", format!("a frame did not survive the wire: {error}")));
                }
            }
        }
        self.standby.drain(now);
        Ok(())
    }

    /// Moves what the target said onto the wire.
    pub(super) fn collect(&mut self) {
        for (session, m) in std::mem::take(&mut self.standby.outbox) {
            let c = self.connections.iter_mut().find(|c| c.session == session && !c.target_gone);
            if let Some(c) = c {
                c.to_source.push_back(message::encode(&m));
            }
        }
        for session in std::mem::take(&mut self.standby.ended) {
            for c in self.connections.iter_mut().filter(|c| c.session == session) {
                c.target_gone = true;
            }
        }
        // The peer's end of a connection is noticed, sooner or later.
        if self.rng.chance(0.1) {
            let gone: Vec<_> =
                self.connections.iter().map(|c| (c.session, c.source_gone, c.target_gone)).collect();
            for (session, source_gone, target_gone) in gone {
                if target_gone && !source_gone && (self.link[1] || self.rng.chance(0.05)) {
                    self.source_disconnects();
                }
                if source_gone
                    && !target_gone
                    && (self.link[0] || self.rng.chance(0.05))
                    && self.rng.chance(0.3)
                {
                    if let Some(c) = self.connections.iter_mut().find(|c| c.session == session) {
                        c.target_gone = true;
                    }
                    if let Some(p) = &mut self.standby.process {
                        p.target.disconnected(self.now, session);
                    }
                    self.standby.drain(self.now);
                }
            }
        }
        self.connections.retain(|c| !c.is_over());
    }
}

fn encode(frame: Frame, lz4: bool) -> bytes::Bytes {
    let squeeze = |content: Content| match content {
        Content::Data(p) if lz4 => Content::Data(codec::encode(Codec::Lz4, &p.encoded, p.checksum)),
        other => other,
    };
    let frame = match frame {
        Frame::Record(r) => Frame::Record(Record { content: squeeze(r.content), ..r }),
        Frame::Block(b) => Frame::Block(Block { content: squeeze(b.content), ..b }),
        other => other,
    };
    frame.to_bytes()
}

fn brief(frame: &Frame) -> String {
    let range = |r: &ByteRange| format!("{}:{}+{}", r.volume, r.offset, r.length);
    match frame {
        Frame::Record(r) => format!("record {} {}", r.position.sequence, range(&r.range)),
        Frame::Block(b) => {
            format!(
                "block {} of epoch {} {} read at {} after {}",
                b.frame,
                b.epoch,
                range(&b.range),
                b.read_at,
                b.after
            )
        }
        Frame::Compare(c) => format!("compare {} of epoch {} {}", c.frame, c.epoch, range(&c.range)),
        other => format!("{other:?}"),
    }
}
