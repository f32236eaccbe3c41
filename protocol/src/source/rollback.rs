//! A promotion can be taken back until its generation is real: until it admits a write, or a standby follows it.
//!
//! That it is real becomes durable first (rule 21). A write that was answered in a generation which can still be rolled back
//! would be gone without a trace, and the old primary would go on from before it.

use super::*;

impl Source {
    /// Takes the promotion of this host back: it is the standby of the old history again. Answered by
    /// [`Output::RolledBack`]; nothing is admitted any more from this call on, unless it is refused.
    pub fn roll_back(&mut self, now: Time) {
        self.now = self.now.max(now);
        let position = match self.may_roll_back().and_then(|_| self.state.roll_back()) {
            Ok(position) => position,
            Err(why) => {
                self.outputs.push_back(Output::RolledBack(Err(why)));
                return;
            }
        };
        self.rolling_back = Some((self.persist(), position));
        if !self.rules.on(Rule::RollbackDurable) {
            self.end_rollback(Ok(position));
        }
        self.pump(now);
    }

    /// Whether the promotion of this host can be taken back now, and to which position.
    pub fn may_roll_back(&self) -> Result<Position, CannotRollBack> {
        if self.rolling_back.is_some() {
            return Err(CannotRollBack::UnderWay);
        }
        if self.state_failed {
            return Err(CannotRollBack::Failed);
        }
        self.state.may_roll_back()
    }

    /// Whether it is durable that the generation is real; asks for it.
    pub(super) fn is_real_noted(&mut self) -> bool {
        self.begin_real();
        self.real_noted_by.is_none() || !self.rules.on(Rule::RealFirst)
    }

    /// The state cannot say that the generation is real, so no write may be admitted in it.
    pub(super) fn can_never_be_real(&self) -> bool {
        self.state_failed && (self.state.pending || self.real_noted_by.is_some())
    }

    /// Also for a standby that is about to follow: no session is asked for before it is durable.
    pub(super) fn begin_real(&mut self) {
        if self.state.pending {
            self.state.make_real();
            self.real_noted_by = Some(self.persist());
        }
    }

    /// The state of `version` is durable.
    pub(super) fn rollback_noted(&mut self, version: u64) {
        if let Some((noting, position)) = self.rolling_back
            && noting <= version
        {
            self.end_rollback(Ok(position));
        }
    }

    /// The state cannot be written: which one is on the disk is found when the group is opened again.
    pub(super) fn rollback_failed(&mut self) {
        if self.rolling_back.is_some() {
            self.end_rollback(Err(CannotRollBack::Failed));
        }
    }

    fn end_rollback(&mut self, outcome: Result<Position, CannotRollBack>) {
        self.rolling_back = None;
        self.outputs.push_back(Output::RolledBack(outcome));
    }
}
