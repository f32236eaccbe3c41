//! What hooks are run for.

use crate::config::{Hooks, OnFailure};

/// Something that a program of the operator's may be run for. [`Event::name`] is the name of the program's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// This host is about to be promoted. A failure can stop that.
    BeforePromotion,
    /// This host was promoted.
    AfterPromotion,
    /// The roles are about to be swapped in good order. A failure can stop that.
    BeforeSwitchover,
    /// The roles were swapped.
    AfterSwitchover,
    /// This host was the primary and serves the group no more: its peer was promoted.
    AfterDemotion,
    /// The session with the peer has ended.
    LinkLost,
    /// A loss of the primary would now cost acknowledged writes, or more of them than in good order.
    ProtectionLost,
    /// The group is protected as it is configured to be again.
    ProtectionRegained,
    /// Both hosts have writes of their own.
    SplitBrain,
    /// The standby has lacked writes for longer than the objective allows.
    RpoBreach,
}

impl Event {
    /// Every event, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::BeforePromotion,
        Self::AfterPromotion,
        Self::BeforeSwitchover,
        Self::AfterSwitchover,
        Self::AfterDemotion,
        Self::LinkLost,
        Self::ProtectionLost,
        Self::ProtectionRegained,
        Self::SplitBrain,
        Self::RpoBreach,
    ];

    /// The name of the hook's file, and the value of `AFTERIMAGE_EVENT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforePromotion => "before-promotion",
            Self::AfterPromotion => "after-promotion",
            Self::BeforeSwitchover => "before-switchover",
            Self::AfterSwitchover => "after-switchover",
            Self::AfterDemotion => "after-demotion",
            Self::LinkLost => "link-lost",
            Self::ProtectionLost => "protection-lost",
            Self::ProtectionRegained => "protection-regained",
            Self::SplitBrain => "split-brain",
            Self::RpoBreach => "rpo-breach",
        }
    }

    /// Whether a failure of the hook can stop what it is run for: that has not happened yet.
    pub const fn can_stop(self) -> bool {
        matches!(self, Self::BeforePromotion | Self::BeforeSwitchover)
    }

    /// What a failure of the hook does. What has happened already cannot be stopped.
    pub fn on_failure(self, config: &Hooks) -> OnFailure {
        match self {
            Self::BeforePromotion => config.before_promotion,
            Self::BeforeSwitchover => config.before_switchover,
            _ => OnFailure::Continue,
        }
    }
}
