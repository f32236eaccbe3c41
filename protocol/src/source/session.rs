//! The handshake, and what the target says afterwards.
//!
//! A handshake compares what both sides noted: the last session, the durable checkpoint, the blocks that the target lost.
//! Anything that does not fit means that one side is a copy of an older state, and then everything is compared (rule 23).

use super::*;
use crate::message::{Lost, Open, Opened, Refusal, TargetMessage};

#[derive(Debug)]
pub(super) enum Session {
    None,
    /// Asked for.
    Opening(SessionId),
    /// Agreed on; begins when the state of this version is durable.
    Noting(u64),
    Active,
}

impl Session {
    pub fn is_active(&self) -> bool {
        matches!(self, Session::Active)
    }

    /// Whether the target counts it as begun: what it says from then on it says once.
    fn is_agreed(&self) -> bool {
        matches!(self, Session::Noting(_) | Session::Active)
    }
}

impl Source {
    /// The first message of a new session; `session` is a fresh random number. An older session must have been ended
    /// with [`Source::disconnected`]. `None` while the source cannot have one.
    pub fn open(&mut self, session: SessionId) -> Option<Open> {
        if !self.ready || self.state_failed || self.is_resizing() || !matches!(self.session, Session::None) {
            return None;
        }
        if self.state.role != Role::Primary || self.real_noted_by.is_some() {
            return None;
        }
        self.session = Session::Opening(session);
        Some(Open {
            group: self.config.group.clone(),
            session,
            known_session: self.state.session,
            standing: self.standing(),
            incarnation: self.state.incarnation,
            durable_acks: self.config.mode == Mode::Sync && self.config.ack == AckLevel::Durable,
            pending: self.state.pending,
            volumes: self.config.volumes.clone(),
        })
    }

    /// The session ended, or never began.
    pub fn disconnected(&mut self, now: Time) {
        if !matches!(self.session, Session::None) {
            self.session = Session::None;
            self.disconnected_since = now;
        }
        self.pump(now);
    }

    /// A control message came.
    pub fn message(&mut self, now: Time, message: TargetMessage) {
        self.now = self.now.max(now);
        match message {
            TargetMessage::Opened(opened) => self.opened(opened),
            // A set bit is never wrong: they are joined as they come, and count with what follows.
            TargetMessage::Lacks { blocks } if matches!(self.session, Session::Opening(_)) => {
                blocks.into_iter().for_each(|range| self.set_bits(range));
            }
            // What it answers to a question that the shell asks.
            TargetMessage::Lacks { .. } | TargetMessage::Measured { .. } => {}
            TargetMessage::Refused { code: Refusal::Pending, .. } => self.begin_real(),
            _ if !self.session.is_agreed() => {}
            TargetMessage::Received { sequence } => self.acked(sequence, false),
            TargetMessage::Durable { sequence } => self.acked(sequence, true),
            TargetMessage::Staged { epoch, frames, records_to, mark } => {
                self.staged(epoch, &frames, records_to, mark);
            }
            TargetMessage::Differs { epoch, frame, blocks } => self.differs(epoch, frame, &blocks),
            TargetMessage::Pong { time, applied, clock } => {
                self.applied = applied;
                self.answered(time, clock);
                self.heard_of_peer(time);
            }
            TargetMessage::NotTaken { text } => self.not_taken(&text),
            TargetMessage::Checked { id, differing, unchecked } => self.checked(id, &differing, unchecked),
            // Said to fenced hosts only, which have no source.
            TargetMessage::RolledBack { .. } => {}
            TargetMessage::Refused { .. } => {
                self.outputs.push_back(Output::Disconnect { reason: "the peer refused the session" });
            }
        }
        self.pump(now);
    }

    fn acked(&mut self, sequence: Sequence, durable: bool) {
        if sequence > self.sequence {
            self.outputs
                .push_back(Output::Disconnect { reason: "the peer acknowledged what was never sent" });
            return;
        }
        self.received = self.received.max(sequence);
        if durable {
            self.durable = self.durable.max(sequence);
            self.queue.free_durable(sequence, self.now, &mut self.counters.durable);
            let done = self.epoch.as_ref().and_then(|e| e.committed).is_some_and(|s| s <= sequence);
            if done {
                // What was staged by frame is covered by the commit.
                self.epoch = None;
            }
        }
        self.regain_sync();
    }

    fn opened(&mut self, opened: Opened) {
        let Session::Opening(session) = self.session else { return };
        if opened.session != session {
            self.outputs.push_back(Output::Disconnect { reason: "the peer answered for another session" });
            return;
        }
        let ours = |p: &Option<Position>| p.filter(|p| p.generation == self.state.generation());
        let received = ours(&opened.received).map(|p| p.sequence);
        let durable = ours(&opened.durable).map(|p| p.sequence);
        self.not_taken("it has begun a session as the standby");
        let joined = self.join(&opened, received, durable);
        self.state.session = session;
        let version = self.persist();
        self.session = Session::Noting(version);
        let first = self.phase == Phase::Streaming && self.sequence == self.recovery;
        if let Some(received) = received.filter(|_| first && !self.rules.on(Rule::EpochFirst)) {
            // A hasty reading: what this run has not written, the target has.
            (self.sequence, self.recovery) = (received, received);
        }
        if self.phase == Phase::Streaming && self.can_resume(received, joined) {
            self.resume_stream(received.unwrap_or_default(), durable.unwrap_or_default(), &opened);
            return;
        }
        if self.rules.on(Rule::ReceivedResets) {
            self.received = Sequence(0);
            self.durable = durable.unwrap_or_default();
        }
        self.in_sync = false;
        let resumed = self.phase == Phase::CatchUp
            && !joined
            && opened.epoch.as_ref().is_some_and(|open| self.resume_epoch(open));
        if !resumed {
            self.fall_to_catch_up();
        }
    }

    /// Joins what the target lacks to the bits; whether there was anything.
    fn join(&mut self, opened: &Opened, received: Option<Sequence>, durable: Option<Sequence>) -> bool {
        let known = self.state.session;
        let other_session = opened.known_session != known && opened.previous_session != known;
        let ahead = received.is_some_and(|s| s > self.sequence);
        let behind = durable.unwrap_or_default() < self.state.noted || opened.mark < self.state.mark;
        let stale = (other_session && self.rules.on(Rule::StaleSession))
            || ((ahead || behind) && self.rules.on(Rule::StalePeer));
        let all = stale || opened.lost == Lost::All;
        match &opened.lost {
            _ if !self.rules.on(Rule::JoinBits) && !stale => return false,
            _ if all => {
                self.state.compare_all = true;
                self.state.noted = durable.unwrap_or_default().min(self.state.noted);
                self.state.mark = opened.mark;
                set_all(&mut self.bitmaps);
            }
            Lost::Ranges(ranges) if !ranges.is_empty() => {
                for r in ranges {
                    set_blocks(&mut self.bitmaps, *r);
                }
            }
            Lost::Told => {}
            _ => return false,
        }
        if !self.rules.on(Rule::JoinTakesSequence) {
            return false;
        }
        self.sequence = self.sequence.next();
        true
    }

    /// Whether the queue has all that the target lacks (rule 9).
    fn can_resume(&self, received: Option<Sequence>, joined: bool) -> bool {
        let Some(received) = received else { return false };
        // Between the beginning of an epoch and its commit not every write has a record.
        let gaps = self.epoch.as_ref().and_then(|e| e.committed).is_some_and(|commit| received < commit);
        let follows = self.queue.first_record().is_some_and(|first| first <= received.next());
        let whole = received == self.sequence || (follows && !gaps);
        let whole = whole || !self.rules.on(Rule::ResumeContiguous);
        whole && !joined && received >= self.recovery && received <= self.sequence
    }

    fn resume_stream(&mut self, received: Sequence, durable: Sequence, opened: &Opened) {
        self.queue.rewind(received);
        if let Some(open) = opened.epoch.as_ref().filter(|_| self.rules.on(Rule::ResumeAborts)) {
            self.queue.push_first(Frame::EpochAbort { epoch: open.epoch });
        }
        // What an epoch still waited for is covered: its commit is at or below `received`.
        self.epoch = None;
        (self.received, self.durable) = if self.rules.on(Rule::ReceivedResets) {
            (received, durable)
        } else {
            (self.received.max(received), self.durable.max(durable))
        };
        if self.level() < self.acknowledged {
            self.in_sync = false;
        }
    }

    /// The state of `version` is durable: a session that waited for it begins.
    pub(super) fn session_noted(&mut self, version: u64) {
        if matches!(self.session, Session::Noting(v) if v <= version) {
            self.session = Session::Active;
            self.end_lease();
            // It was asked for after the standstill, if there was one.
            self.heard_of_peer(self.now);
            self.regain_sync();
            self.ask_for_all_durable();
        }
    }
}
