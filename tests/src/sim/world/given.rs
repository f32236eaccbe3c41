//! Rules that are off beside the one that is looked at: what one rule alone would bring down another one mostly mends. So
//! the other one is off too, in a world without the faults that it alone protects from.

use afterimage_protocol::rules::{Rule, Rules};

use super::copies::Copies;

/// A rule that is off beside the one that is looked at, and what is left out of the world for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// No full comparison of a peer that is behind; no old copies.
    StalePeer,
    /// The same; old copies are those of older sessions.
    StalePeerSessions,
    /// The target takes any record; none is lost on its way.
    Contiguous,
}

impl Given {
    /// The rule that is off.
    pub fn rule(self) -> Rule {
        match self {
            Given::StalePeer | Given::StalePeerSessions => Rule::StalePeer,
            Given::Contiguous => Rule::Contiguous,
        }
    }

    /// Its name.
    pub fn rule_name(self) -> &'static str {
        Rule::ALL.iter().find(|(rule, ..)| *rule == self.rule()).map_or("", |(_, _, name)| name)
    }

    /// These rules without it.
    pub fn off(self, rules: Rules) -> Rules {
        rules.and_without(self.rule())
    }

    pub(super) fn copies(self) -> Copies {
        match self {
            Given::StalePeer => Copies::None,
            Given::StalePeerSessions => Copies::OtherSessions,
            Given::Contiguous => Copies::Any,
        }
    }

    pub(super) fn loses_records(self) -> bool {
        self != Given::Contiguous
    }
}
