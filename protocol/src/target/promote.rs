//! The end of being a target: the newest checkpoint becomes the image of a primary (rules 17 and 18).

use super::*;

/// Why a promotion is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotPromote {
    /// There is no checkpoint yet.
    #[error("the first sync has not finished: there is no consistent image to promote")]
    NoCheckpoint,
    /// This host is not a standby.
    #[error("this host is not the standby of the group")]
    NotStandby,
    /// A promotion is under way.
    #[error("a promotion is under way already")]
    UnderWay,
    /// A disk failed.
    #[error("the standby failed: {0}")]
    Failed(&'static str),
}

/// What a promotion yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The image is the old primary's at this position.
    pub position: Position,
    /// The history that begins.
    pub generation: Generation,
    /// When the position was reached at the source (or received here).
    pub time: Time,
    /// What is lost of what the source had answered until now.
    pub loss: Loss,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Drain,
    Cut { version: u64 },
    Truncating,
    Sync,
    Apply,
    Role { version: u64 },
}

#[derive(Clone, Debug)]
pub(super) struct Step {
    generation: Generation,
    /// It can be rolled back until a write was admitted.
    pending: bool,
    stage: Stage,
    /// What is known of the writes that this host had when it was asked.
    known: Pings,
}

impl Target {
    /// Ends every session and makes this host's image the newest checkpoint, with `generation` (random, new) as its
    /// history. Answered by [`Output::Promoted`]. Received records count; half an epoch does not.
    ///
    /// It can be rolled back until the generation is real (rule 21).
    pub fn promote(&mut self, now: Time, generation: Generation) {
        self.begin_promotion(now, generation, true);
    }

    /// As [`Target::promote`], because the source asked for it ([`Output::TakeOver`]): it gives up its role by itself, and the
    /// generation is real from its beginning.
    pub fn take_over(&mut self, now: Time, generation: Generation) {
        self.begin_promotion(now, generation, false);
    }

    fn begin_promotion(&mut self, now: Time, generation: Generation, pending: bool) {
        self.now = self.now.max(now);
        let refusal = self.may_promote().err();
        if let Some(refusal) = refusal {
            self.outputs.push_back(Output::Promoted(Err(refusal)));
            return;
        }
        self.end_session("the standby is being promoted");
        let known = self.pings.covered(self.newest_sequence(), self.rules);
        self.promoting = Some(Step { generation, pending, stage: Stage::Drain, known });
        self.pump(now);
    }

    /// What a promotion now would yield.
    pub fn may_promote(&self) -> Result<Checkpoint, CannotPromote> {
        if self.state.role != Role::Standby {
            return Err(CannotPromote::NotStandby);
        }
        if let Some(reason) = self.failed {
            return Err(CannotPromote::Failed(reason));
        }
        if self.promoting.is_some() {
            return Err(CannotPromote::UnderWay);
        }
        let direct = self.epoch.as_ref().is_some_and(|e| e.direct);
        self.points.newest().filter(|_| !direct).ok_or(CannotPromote::NoCheckpoint)
    }

    /// The source admits nothing after `position` until it hears what becomes of this.
    pub(super) fn asked_to_take_over(&mut self, position: Position) {
        let why = match self.may_promote() {
            Err(error) => error.to_string(),
            Ok(_) if self.epoch.is_some() => "an epoch is open".to_owned(),
            Ok(_) if self.points.durable_point().is_none_or(|p| p.position != position) => {
                format!("it does not have everything up to {position} on stable storage")
            }
            Ok(_) => {
                self.outputs.push_back(Output::TakeOver { position });
                return;
            }
        };
        self.do_not_take_over(why);
    }

    /// Answers [`Output::TakeOver`] with no: the source serves on.
    pub fn do_not_take_over(&mut self, why: String) {
        self.send(TargetMessage::NotTaken { text: why });
    }

    pub(super) fn pump_promotion(&mut self) {
        let Some(step) = self.promoting.clone() else { return };
        let Some(point) = self.points.newest() else { return };
        let base = self.state.base.map_or(Lsn(0), |b| b.lsn);
        let stage = match step.stage {
            Stage::Drain if self.applying() || self.syncing || self.state_persisting => return,
            Stage::Drain if self.cutting.is_some() => return,
            Stage::Drain => {
                // Bits for what is discarded are durable before it is (rule 18).
                if let Some(e) = self.epoch.take() {
                    self.state.lost.add(e.discarded());
                }
                Stage::Cut { version: self.persist() }
            }
            Stage::Cut { .. } | Stage::Truncating | Stage::Role { .. } => return,
            Stage::Sync if self.syncing => return,
            Stage::Sync if self.points.durable() < point.lsn && self.rules.on(Rule::PromoteFsync) => {
                self.sync_wanted = true;
                self.pump_sync();
                return;
            }
            Stage::Sync => Stage::Apply,
            Stage::Apply if self.applying() || matches!(self.apply, Apply::Failed { .. }) => return,
            Stage::Apply if self.journal_start < point.lsn => {
                if base == point.lsn {
                    self.redo_batch(base);
                } else {
                    self.begin_batch(point);
                }
                return;
            }
            Stage::Apply => {
                self.state.role = Role::Primary;
                self.state.parted = self.now;
                self.state.pending = step.pending;
                self.state.lineage = self.image_lineage();
                self.state.lineage.fork(step.generation, point.position.sequence);
                self.state.reserved = self.state.reserved.max(point.position.sequence);
                self.state.noted = Sequence(0);
                self.state.peer_has_checkpoint = false;
                Stage::Role { version: self.persist() }
            }
        };
        self.promoting = Some(Step { stage, ..step });
        if !matches!(stage, Stage::Cut { .. } | Stage::Role { .. }) {
            self.pump_promotion();
        }
    }

    pub(super) fn promote_noted(&mut self, version: u64) {
        let Some(step) = self.promoting.clone() else { return };
        let Some(point) = self.points.newest() else { return };
        match step.stage {
            Stage::Cut { version: v } if v <= version => {
                let stage = if self.points.end() > point.lsn {
                    self.cut_journal(point.lsn);
                    Stage::Truncating
                } else {
                    Stage::Sync
                };
                self.promoting = Some(Step { stage, ..step });
            }
            Stage::Role { version: v } if v <= version => {
                self.promoting = None;
                self.outputs.push_back(Output::Promoted(Ok(Promotion {
                    position: point.position,
                    generation: step.generation,
                    time: point.time,
                    loss: step.known.loss(self.now, self.rules),
                })));
            }
            _ => {}
        }
    }

    /// The journal was cut, or not.
    pub fn truncated(&mut self, now: Time, ok: bool) {
        self.now = self.now.max(now);
        match self.cutting.take() {
            Some(at) if ok => {
                self.points.cut(at);
                self.skip.retain(|(start, _)| *start < at);
            }
            _ => self.fail("the journal cannot be cut"),
        }
        if let Some(step) = self.promoting.as_mut().filter(|s| s.stage == Stage::Truncating) {
            step.stage = Stage::Sync;
        }
        self.pump(now);
    }

    pub(super) fn promote_failed(&mut self) {
        if let (Some(_), Some(reason)) = (&self.promoting, self.failed) {
            self.promoting = None;
            self.outputs.push_back(Output::Promoted(Err(CannotPromote::Failed(reason))));
        }
    }
}
