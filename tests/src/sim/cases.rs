//! How each rule, switched off, is caught: in which world, and within how many seeds.
//!
//! Most are caught in a world that chance makes. Some take a theme, since what they prevent needs several things to happen
//! one after the other. And some are mostly mended by another rule, which is then off too ([`Given`]).

use afterimage_protocol::rules::{Rule, Rules};

use super::world::{self, Given, Settings, Theme, Violation};

/// How one rule is caught.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The rule.
    pub rule: Rule,
    /// What the runs concentrate on; `None` leaves it to chance.
    pub theme: Option<Theme>,
    /// What is off beside the rule.
    pub given: Option<Given>,
    /// Within so many seeds there is a violation: several times what was seen, since any change of the simulator shuffles
    /// the seeds.
    pub seeds: u64,
}

impl Case {
    /// The case of `rule`.
    pub fn of(rule: Rule) -> Self {
        let (theme, given, seeds) = match rule {
            Rule::ClearLastWrite | Rule::ClearLocal => (Some(Theme::SlowWrites), None, 600),
            Rule::RecoverFsync => (Some(Theme::StandbyTwice), None, 300),
            Rule::RewriteTail => (Some(Theme::SyncThenPower), None, 300),
            Rule::ErrorEpoch => (Some(Theme::VolumeFails), None, 300),
            Rule::HotTogether => (Some(Theme::TwoExtents), None, 300),
            Rule::CoolAfterFlush | Rule::CoolSyncsBitmap => (Some(Theme::PrimaryPower), None, 600),
            Rule::FailedFlush => (Some(Theme::FlushFails), None, 300),
            Rule::DemoteFlushes => (Some(Theme::SwitchOver), None, 300),
            Rule::HotIntoBitmap => (Some(Theme::PrimaryTwice), None, 300),
            Rule::HotInherited => (Some(Theme::PrimaryTwice), None, 1000),
            Rule::EpochFirst => (Some(Theme::PrimaryAlone), None, 300),
            Rule::EpochResumeRewrites => (Some(Theme::StandbyTwice), None, 300),
            Rule::ResumeContiguous => (Some(Theme::CommitLost), Some(Given::Contiguous), 300),
            Rule::ResumeAborts => (Some(Theme::HotLogAtCommit), None, 1000),
            Rule::DirectFsync => (Some(Theme::FirstSync), None, 300),
            Rule::SessionFence => (Some(Theme::OldSessions), None, 300),
            Rule::Contiguous => (Some(Theme::LostRecord), None, 300),
            Rule::ApplyDurable => (Some(Theme::StandbyPower), None, 300),
            Rule::PromoteFsync => (Some(Theme::Promote), None, 2000),
            Rule::DiscardNoted => (Some(Theme::PromoteAt), None, 300),
            Rule::JoinBits | Rule::DamageRefetched => (Some(Theme::Damage), Some(Given::StalePeer), 300),
            Rule::JoinTakesSequence => (Some(Theme::Damage), Some(Given::StalePeer), 1000),
            Rule::TargetKeepsBits => (Some(Theme::DamageUnheard), Some(Given::StalePeer), 300),
            Rule::RealFirst | Rule::RollbackDurable => (Some(Theme::RollBack), None, 300),
            Rule::DamageUnderApply => (Some(Theme::Damage), None, 300),
            Rule::NoteFirst => (Some(Theme::OldCopyAtNote), None, 1000),
            Rule::Throttle => (None, None, 1000),
            Rule::StalePeer => (Some(Theme::OldCopy), None, 300),
            Rule::StaleSession => (Some(Theme::OldSessions), Some(Given::StalePeerSessions), 300),
            Rule::LeaseHeld => (Some(Theme::VolumeFails), None, 300),
            Rule::LeaseOfSession => (Some(Theme::PrimaryTwice), None, 600),
            Rule::CheckInOrder | Rule::CheckView | Rule::CheckHoldsApply => (Some(Theme::Verify), None, 300),
            Rule::GrowHolds => (Some(Theme::Grow), None, 1000),
            Rule::GrowNoted | Rule::GrowTakesSequence => (Some(Theme::Grow), None, 300),
            _ => (None, None, 300),
        };
        Self { rule, theme, given, seeds }
    }

    /// The runs of this case, of so many steps each.
    pub fn settings(&self, steps: u64) -> Settings {
        Settings { steps, rules: Rules::without(self.rule), given: self.given, theme: self.theme }
    }

    /// The same with only what is given off: a world that has to be clean.
    pub fn given_alone(&self, steps: u64) -> Option<Settings> {
        self.given.map(|_| Settings { rules: Rules::default(), ..self.settings(steps) })
    }

    /// The first violation in `seeds` seeds from `from`, and how many it took. A panic shows nothing: a state that is
    /// impossible with all rules may well be one.
    pub fn hunt(&self, steps: u64, from: u64, seeds: u64) -> Option<(u64, Violation)> {
        let settings = self.settings(steps);
        (0..seeds).find_map(|n| {
            let violation = world::run(from + n, &settings, None).err()?;
            (violation.what != "panic").then_some((n + 1, violation))
        })
    }
}
