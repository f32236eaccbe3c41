//! The planned change of roles: clients are held, the target takes over at the last write, and this host becomes its
//! standby.
//!
//! Until the note of step 3 is durable the source gives up on its own, and serves on. From then on it admits nothing before
//! the target has said who serves, also after a restart: either it opens a session, and then it has not taken over and
//! the note is withdrawn, or it refuses with a generation that left this one at the noted place
//! ([`GroupState::replaced`]).

use super::*;

/// Why the roles stay as they are. The group is served as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RolesStay {
    /// There is no session.
    #[error("the standby is not connected")]
    NotConnected,
    /// The target lacks more than what is under way.
    #[error("the standby is catching up")]
    CatchingUp,
    /// The disk of the state, or of a volume, failed.
    #[error("a disk of this host failed: what it has cannot be vouched for")]
    Failed,
    /// One is under way.
    #[error("a switchover is under way already")]
    UnderWay,
    /// Volumes are growing.
    #[error("a resize is under way")]
    Resizing,
    /// Not everything that was under way got there in the time that was given.
    #[error("the standby did not get everything in time")]
    TooSlow,
    /// The session ended before the target was asked.
    #[error("the connection to the standby was lost")]
    ConnectionLost,
    /// The target did not do it.
    #[error("the standby did not take over: {0}")]
    NotTaken(String),
}

#[derive(Debug)]
pub(super) struct Handover {
    step: Step,
    /// Given up, if that is still possible, at this time.
    until: Time,
}

#[derive(Debug)]
enum Step {
    /// Nothing is admitted; what was, gets to the target's stable storage. So far that was asked for up to here.
    Drain { asked: Sequence },
    /// Volumes and bitmaps become durable here.
    Flush { flushes: Vec<u64>, bits: Option<u64> },
    /// That the target decides becomes durable.
    Note { version: u64 },
    /// The target decides.
    Asked,
    /// It did not take over: that becomes durable.
    Withdraw { version: u64, why: RolesStay },
}

impl Handover {
    /// What a source goes on with that was ended while the target decided.
    pub fn found(state: &GroupState, now: Time) -> Option<Self> {
        state.handing_over.map(|_| Self { step: Step::Asked, until: now })
    }
}

impl Source {
    /// Has the target take over at the last write that is admitted before this call. Answered by a session that is
    /// refused because the target was promoted ([`GroupState::replaced`]), or by [`Output::RolesStay`]: at the latest
    /// after `timeout_us`, unless the target has been asked by then.
    pub fn hand_over(&mut self, now: Time, timeout_us: u64) {
        self.now = self.now.max(now);
        if let Err(why) = self.may_hand_over() {
            self.outputs.push_back(Output::RolesStay(why));
            return;
        }
        let step = Step::Drain { asked: Sequence(0) };
        self.handover = Some(Handover { step, until: self.now.plus_us(timeout_us) });
        self.pump(now);
    }

    /// Whether a change of roles could begin now.
    pub fn may_hand_over(&self) -> Result<(), RolesStay> {
        if self.handover.is_some() {
            return Err(RolesStay::UnderWay);
        }
        if self.growing.is_some() {
            return Err(RolesStay::Resizing);
        }
        if self.state_failed || self.tracking_lost || self.state.compare_all || !self.unreadable.is_empty() {
            return Err(RolesStay::Failed);
        }
        if !self.session.is_active() {
            return Err(RolesStay::NotConnected);
        }
        let known = self.received >= self.recovery && self.state.peer_has_checkpoint;
        if self.phase != Phase::Streaming || !known {
            return Err(RolesStay::CatchingUp);
        }
        Ok(())
    }

    /// Whether the target has been asked, or may have been: only it knows who serves.
    pub fn is_handed_over(&self) -> bool {
        self.state.handing_over.is_some()
    }

    /// Whether clients are held for a change of roles.
    pub(super) fn holds_for_handover(&self) -> bool {
        self.handover.is_some()
    }

    /// The queue was given up, and with it the question to the target, if that was not sent yet: a new session tells whether
    /// it has taken over.
    pub(super) fn question_lost(&mut self) {
        if self.state.handing_over.is_some() && self.session.is_active() {
            self.outputs
                .push_back(Output::Disconnect { reason: "the standby may not hear that it is to take over" });
        }
    }

    /// When a change of roles is given up.
    pub(super) fn handover_ends_at(&self) -> Option<Time> {
        self.handover
            .as_ref()
            .filter(|h| matches!(h.step, Step::Drain { .. } | Step::Flush { .. }))
            .map(|h| h.until)
    }

    /// Goes on with a change of roles; whether clients are held no more.
    pub(super) fn pump_handover(&mut self) -> bool {
        let Some(mut handover) = self.handover.take() else { return false };
        loop {
            let next = match &mut handover.step {
                Step::Drain { .. } | Step::Flush { .. } if self.given_up(handover.until) => return true,
                Step::Drain { asked } => {
                    if !self.in_flight.is_empty() {
                        break;
                    }
                    if self.durable < self.sequence {
                        if *asked < self.sequence {
                            *asked = self.sequence;
                            self.queue.push(Frame::Mark { sequence: self.sequence, sync: true });
                        }
                        break;
                    }
                    self.begin_flush()
                }
                Step::Flush { flushes, bits } => {
                    if !flushes.is_empty() || bits.is_some() {
                        break;
                    }
                    self.state.handing_over = Some(self.sequence);
                    Step::Note { version: self.persist() }
                }
                Step::Note { .. } if self.state_failed => {
                    self.state.handing_over = None;
                    self.outputs.push_back(Output::RolesStay(RolesStay::Failed));
                    return true;
                }
                Step::Note { .. } | Step::Asked | Step::Withdraw { .. } => break,
            };
            handover.step = next;
        }
        self.handover = Some(handover);
        false
    }

    /// Gives up while that is possible, if there is a reason to.
    fn given_up(&mut self, until: Time) -> bool {
        let why = if self.state_failed || self.tracking_lost {
            RolesStay::Failed
        } else if !self.session.is_active() || self.phase != Phase::Streaming {
            RolesStay::ConnectionLost
        } else if self.now >= until {
            RolesStay::TooSlow
        } else {
            return false;
        };
        self.outputs.push_back(Output::RolesStay(why));
        true
    }

    fn begin_flush(&mut self) -> Step {
        if !self.rules.on(Rule::DemoteFlushes) {
            return Step::Flush { flushes: Vec::new(), bits: None };
        }
        let volumes = 0..self.bitmaps.len() as u32;
        let flushes = volumes.map(|volume| self.start_local_flush(VolumeIndex(volume), None)).collect();
        let token = self.token();
        let words = self.words_of(&self.all_blocks());
        self.outputs.push_back(Output::SyncBitmap { token, words });
        Step::Flush { flushes, bits: Some(token) }
    }

    /// A flush has ended well; a failed one loses the tracking, and that ends it.
    pub(super) fn handover_flushed(&mut self, token: u64) {
        if let Some(Handover { step: Step::Flush { flushes, .. }, .. }) = &mut self.handover {
            flushes.retain(|t| *t != token);
        }
    }

    /// The bitmaps are on stable storage.
    pub(super) fn handover_synced(&mut self, token: u64, ok: bool) {
        if let Some(Handover { step: Step::Flush { bits, .. }, .. }) = &mut self.handover
            && bits.take_if(|t| *t == token).is_some()
            && !ok
        {
            self.lose_tracking();
        }
    }

    /// The state of `version` is durable.
    pub(super) fn handover_noted(&mut self, version: u64) {
        match &self.handover {
            Some(Handover { step: Step::Note { version: noted }, .. }) if *noted <= version => {
                if let Some(at) = self.state.handing_over {
                    let position = Position::new(self.state.generation(), at);
                    self.queue.push(Frame::TakeOver { position });
                }
                if let Some(handover) = &mut self.handover {
                    handover.step = Step::Asked;
                }
            }
            Some(Handover { step: Step::Withdraw { version: withdrawn, why }, .. })
                if *withdrawn <= version =>
            {
                self.outputs.push_back(Output::RolesStay(why.clone()));
                self.handover = None;
            }
            _ => {}
        }
    }

    /// The target has not taken over, and will not: it says so, or opens a session.
    pub(super) fn not_taken(&mut self, why: &str) {
        if self.state.handing_over.take().is_none() {
            return;
        }
        let version = self.persist();
        if let Some(handover) = &mut self.handover {
            handover.step = Step::Withdraw { version, why: RolesStay::NotTaken(why.to_owned()) };
        }
    }
}
