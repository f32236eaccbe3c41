//! Checks of a verification: hashes of blocks at a sequence, compared with the image at that sequence (rule 25).
//!
//! A check comes on the ordered stream right behind the record of its sequence, so the place in the journal behind that record
//! is where its image is: the base, and over it the journal up to there. A block that no entry of the journal touches is
//! compared as the base has it. Of the others a copy is brought up to date in memory first; that reads the journal once for
//! all checks that wait, and is not done for a journal that is too long for it: those blocks are counted as not compared.
//! Their newest bytes are in entries with checksums, and become a part of the base that a later verification compares.
//!
//! The base must not be ahead of a check. So no batch begins that goes beyond a check that waits, and none at all while checks
//! are compared. Both are short: checks wait for nothing but a batch that is under way.
//!
//! Nothing of this is stored. A check belongs to its session: when that ends, its checks and their results are forgotten, and
//! the source asks again. A batch that a crash cut short is done again before anything is compared.

use super::*;
use crate::frame::Check;

use super::intake::Violation;

/// Checks that may wait. A source has fewer under way.
const MAX_WAITING: usize = 256;
/// Of a longer journal the blocks that it holds are not compared, in bytes: a batch of the applier and what came meanwhile
/// fit several times, and reading it takes less than a second.
const MAX_REPLAY_BYTES: u64 = 256 << 20;
/// Blocks that are brought up to date in memory together, but for those of a single check: 16 MiB.
const MAX_REPLAY_BLOCKS: u64 = 4096;

/// Checks to be compared together.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The checks, in order.
    pub checks: Vec<DueCheck>,
    /// Read the journal up to here for the blocks that it holds; `None`: they are not compared.
    pub replay_to: Option<Lsn>,
    /// Entries that count for nothing.
    pub skip: Vec<(Lsn, Lsn)>,
}

/// One check, and where it is to be compared.
#[derive(Clone, Debug)]
pub struct DueCheck {
    /// The check.
    pub check: Check,
    /// Base and journal up to here are the image.
    pub at: Lsn,
    /// Its blocks that the journal may hold something of.
    pub journaled: Vec<BlockRange>,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// The check.
    pub id: CheckId,
    /// Its blocks that differ.
    pub differing: Vec<BlockRange>,
    /// Count of its blocks that could not be compared.
    pub unchecked: u64,
}

#[derive(Debug)]
struct Waiting {
    check: Check,
    /// Known once the record before it is in the journal.
    at: Option<Lsn>,
}

/// The checks of a session.
#[derive(Debug, Default)]
pub(super) struct Checks {
    waiting: VecDeque<Waiting>,
    /// The session whose checks are being compared.
    comparing: Option<SessionId>,
}

impl Checks {
    pub fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    pub fn is_comparing(&self) -> bool {
        self.comparing.is_some()
    }

    /// The base may be brought up to here.
    fn holds_at(&self) -> Option<Lsn> {
        self.waiting.front().and_then(|w| w.at)
    }

    /// The record at `position` is in the journal, and ends at `end`.
    pub fn reached(&mut self, position: Position, end: Lsn) {
        for w in self.waiting.iter_mut().filter(|w| w.at.is_none() && w.check.position == position) {
            w.at = Some(end);
        }
    }
}

impl Target {
    pub(super) fn take_check(&mut self, check: Check) -> Result<(), Violation> {
        if self.checks.waiting.len() >= MAX_WAITING {
            return Err(Violation::Unexpected("more checks than may be under way"));
        }
        let newest = self.points.newest().map(|p| p.position);
        let last = match self.coming {
            Some(next) => Some(Position::new(self.state.generation(), Sequence(next.0.saturating_sub(1)))),
            None => newest,
        };
        let in_order = self.epoch.is_none() && last == Some(check.position);
        if !in_order && self.rules.on(Rule::CheckInOrder) {
            let unchecked = check.range.blocks().count;
            self.send(TargetMessage::Checked { id: check.id, differing: Vec::new(), unchecked });
            return Ok(());
        }
        let at = (newest == last).then(|| self.points.end());
        self.checks.waiting.push_back(Waiting { check, at });
        Ok(())
    }

    /// How far the next batch may go.
    pub(super) fn apply_limit(&self) -> Option<Lsn> {
        self.checks.holds_at().filter(|_| self.rules.on(Rule::CheckHoldsApply))
    }

    /// Whether no batch may begin.
    pub(super) fn holds_apply(&self) -> bool {
        self.checks.is_comparing() && self.rules.on(Rule::CheckHoldsApply)
    }

    pub(super) fn pump_checks(&mut self) {
        let (Some(session), Some(base)) = (self.session.active(), self.state.base) else { return };
        // What is aborted is known as such only once that is in the journal.
        let unsettled = self.aborting.is_some() || self.cutting.is_some() || self.promoting.is_some();
        let redoes = !matches!(self.apply, Apply::Idle) || self.journal_start < base.lsn;
        if self.checks.is_comparing() || unsettled || redoes {
            return;
        }
        let mut checks: Vec<DueCheck> = Vec::new();
        let mut blocks = 0;
        while let Some(at) = self.checks.holds_at() {
            let Some(check) = self.checks.waiting.front().map(|w| &w.check) else { break };
            let journaled = self.journaled(check.range.blocks());
            blocks += journaled.iter().map(|r| r.count).sum::<u64>();
            if blocks > MAX_REPLAY_BLOCKS && !checks.is_empty() {
                break;
            }
            if let Some(w) = self.checks.waiting.pop_front() {
                checks.push(DueCheck { check: w.check, at, journaled });
            }
        }
        let Some(last) = checks.last().map(|due| due.at) else { return };
        let short = last.0.saturating_sub(self.journal_start.0) <= MAX_REPLAY_BYTES;
        self.checks.comparing = Some(session);
        let skip = self.skip.clone();
        self.outputs.push_back(Output::Verify(Comparison { checks, replay_to: short.then_some(last), skip }));
    }

    /// The blocks of `blocks` that the journal may hold something of.
    fn journaled(&self, blocks: BlockRange) -> Vec<BlockRange> {
        let mut runs: Vec<BlockRange> = Vec::new();
        if !self.rules.on(Rule::CheckView) {
            return runs;
        }
        for b in blocks.iter().filter(|b| self.overlay.contains(blocks.volume, *b)) {
            match runs.last_mut() {
                Some(run) if run.end() == b => run.count += 1,
                _ => runs.push(BlockRange { first: b, count: 1, ..blocks }),
            }
        }
        runs
    }

    /// The checks of [`Output::Verify`] were compared.
    pub fn verified(&mut self, now: Time, results: Vec<CheckResult>) {
        let asked_by = self.checks.comparing.take();
        if asked_by.is_some() && asked_by == self.session.active() {
            for CheckResult { id, differing, unchecked } in results {
                self.send(TargetMessage::Checked { id, differing, unchecked });
            }
        }
        self.pump(now);
    }
}
