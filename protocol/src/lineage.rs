//! Who may stream to whom: the histories of two hosts, how they relate, and what follows from it.
//!
//! A generation is an uninterrupted history of a group; a promotion begins a new one at a position of its parent. Each
//! host keeps the line of generations that led to its image. Two lines are compared by ancestry, never by number, and
//! [`decide`] looks the answer up in one table (docs/roles.md shows it).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::*;
use crate::message::{Refusal, TargetMessage};
use crate::state::Role;

/// Most generations that a host remembers; older ones are forgotten first. Two hosts of which one has missed more
/// promotions than this count as unrelated.
pub const MAX_GENERATIONS: usize = 64;

/// The generations that led to an image, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Older generations, each with the sequence at which the next one left it.
    past: Vec<(Generation, Sequence)>,
    /// The generation of the image.
    current: Generation,
}

impl Lineage {
    /// A line that begins with `generation`.
    pub fn new(generation: Generation) -> Self {
        Self { past: Vec::new(), current: generation }
    }

    /// A line as it was stored or sent, with at most [`MAX_GENERATIONS`] of the past.
    pub fn from_parts(past: Vec<(Generation, Sequence)>, current: Generation) -> Self {
        let mut line = Self { past, current };
        line.shorten();
        line
    }

    /// The generation of the image.
    pub fn current(&self) -> Generation {
        self.current
    }

    /// Older generations, each with the sequence at which the next one left it.
    pub fn past(&self) -> &[(Generation, Sequence)] {
        &self.past
    }

    /// Where the current generation left its parent; `None` for a first one.
    pub fn parent(&self) -> Option<Position> {
        self.past.last().map(|(generation, at)| Position::new(*generation, *at))
    }

    /// A new generation begins at `at` of the current one.
    pub fn fork(&mut self, generation: Generation, at: Sequence) {
        if self.current != Generation::NONE {
            self.past.push((self.current, at));
        }
        self.current = generation;
        self.shorten();
    }

    /// The newest generation did not become real: the one before it is current again. Whether there was one.
    pub fn unfork(&mut self) -> bool {
        match self.past.pop() {
            Some((generation, _)) => {
                self.current = generation;
                true
            }
            None => false,
        }
    }

    /// The line of an older image of it: the generations up to `generation`. A line of its own if it is not among them.
    pub fn up_to(&self, generation: Generation) -> Lineage {
        if self.current == generation {
            return self.clone();
        }
        match self.past.iter().rposition(|(g, _)| *g == generation) {
            Some(at) => Self { past: self.past[..at].to_vec(), current: generation },
            None => Self::new(generation),
        }
    }

    /// The last position that this line and `other` have in common, where both went on from it; `None` where there
    /// is none that either remembers.
    pub fn parted_from(&self, other: &Lineage) -> Option<Position> {
        self.past.iter().rev().find_map(|(generation, at)| match other.left(*generation) {
            Some(Left::At(theirs)) => Some(Position::new(*generation, (*at).min(theirs))),
            _ => None,
        })
    }

    /// What the host of `other` notes when this line takes the place of its own: the generation that does, and the last
    /// sequence that both have; 0 if that is not known.
    pub fn replaces(&self, other: &Lineage) -> (Generation, Sequence) {
        let left_at = self.left_at(other.current);
        let left_at = left_at.or_else(|| self.parted_from(other).map(|common| common.sequence));
        (self.current, left_at.unwrap_or_default())
    }

    fn shorten(&mut self) {
        let surplus = self.past.len().saturating_sub(MAX_GENERATIONS);
        self.past.drain(..surplus);
    }

    /// The sequence at which this line left `generation`; `None` if it is its current one, or not of it at all.
    pub fn left_at(&self, generation: Generation) -> Option<Sequence> {
        match self.left(generation) {
            Some(Left::At(sequence)) => Some(sequence),
            _ => None,
        }
    }

    /// Where this line left `generation`: a sequence, or the end of all if it has not.
    fn left(&self, generation: Generation) -> Option<Left> {
        if generation == Generation::NONE {
            return None;
        }
        if self.current == generation {
            return Some(Left::Not);
        }
        self.past.iter().rev().find(|(g, _)| *g == generation).map(|(_, at)| Left::At(*at))
    }
}

enum Left {
    Not,
    At(Sequence),
}

/// What one host says of its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its role.
    pub role: Role,
    /// The generations that led to it.
    pub lineage: Lineage,
    /// The last sequence in it: admitted at a primary, the newest checkpoint at a standby.
    pub sequence: Sequence,
    /// A primary, or one that was: since the last session it has acknowledged writes that no other host has seen.
    pub alone: bool,
    /// When it last began to go its own way, by its own clock: went on alone, or was promoted. 0 if that is not known.
    pub parted: Time,
}

/// How two images relate: `a` as seen from `b`'s side and the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// One of them has never had a history.
    Blank,
    /// The same generation.
    Same,
    /// `b` went on from a position that `a` has, and `a` has nothing beyond it.
    Behind {
        /// Where `b` left `a`'s generation.
        fork: Sequence,
    },
    /// `b` went on from a position that `a` has, and `a` has gone on too.
    Forked {
        /// Where `b` left `a`'s generation.
        fork: Sequence,
    },
    /// The mirror image of [`Relation::Behind`]: `b` has nothing beyond the fork.
    Ahead {
        /// Where `a` left `b`'s generation.
        fork: Sequence,
    },
    /// The mirror image of [`Relation::Forked`]: `b` has gone on in the generation that `a` left.
    Overtaken {
        /// Where `a` left `b`'s generation.
        fork: Sequence,
    },
    /// Both left a common generation, for different ones.
    BothForked {
        /// The last position that both have.
        common: Position,
    },
    /// Nothing in common that either remembers.
    Unrelated,
}

/// How the image of `a` relates to that of `b`.
pub fn relate(a: &Standing, b: &Standing) -> Relation {
    let (ours, theirs) = (&a.lineage, &b.lineage);
    if ours.current == Generation::NONE || theirs.current == Generation::NONE {
        return Relation::Blank;
    }
    match (theirs.left(ours.current), ours.left(theirs.current)) {
        (Some(Left::Not), _) => return Relation::Same,
        (Some(Left::At(fork)), _) if a.sequence <= fork => return Relation::Behind { fork },
        (Some(Left::At(fork)), _) => return Relation::Forked { fork },
        (_, Some(Left::At(fork))) if b.sequence <= fork => return Relation::Ahead { fork },
        (_, Some(Left::At(fork))) => return Relation::Overtaken { fork },
        _ => {}
    }
    let common = ours.parted_from(theirs);
    common.map_or(Relation::Unrelated, |common| Relation::BothForked { common })
}

/// What becomes of a source that asks a target for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The source streams; the target takes on its generation where they differ.
    Stream,
    /// The source was replaced: it serves nothing more. What it has beyond the fork is saved and given up in a
    /// reinstatement.
    SourceReplaced,
    /// The target was replaced: it serves nothing more, and takes nothing before it was reinstated.
    TargetReplaced,
    /// The target has data that the source's history does not: it takes nothing before it was reinstated.
    ReinstateTarget,
    /// Both hosts went on after the fork: the operator says which side stays.
    SplitBrain,
    /// Two primaries of one generation: one of them is a copy of the other.
    Clone,
    /// The histories have nothing in common: one of the hosts has the wrong group, or lost its state.
    Unrelated,
}

impl Verdict {
    /// All of them, in the order of the documentation.
    pub const ALL: [Verdict; 7] = [
        Verdict::Stream,
        Verdict::SourceReplaced,
        Verdict::TargetReplaced,
        Verdict::ReinstateTarget,
        Verdict::SplitBrain,
        Verdict::Clone,
        Verdict::Unrelated,
    ];
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Stream => "streams",
            Verdict::SourceReplaced => "the source was replaced",
            Verdict::TargetReplaced => "the target was replaced",
            Verdict::ReinstateTarget => "the target has to be reinstated",
            Verdict::SplitBrain => "split brain",
            Verdict::Clone => "one of them is a copy of the other",
            Verdict::Unrelated => "unrelated",
        })
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// How the source's image relates to the target's.
    pub relation: &'static str,
    /// What it means, for the documentation.
    pub meaning: &'static str,
    /// The verdict for a target that is standby, primary, fenced.
    pub verdicts: [Verdict; 3],
}

/// Who may stream to whom. The source is a primary; the columns are the target's role: standby, primary, fenced.
pub const TABLE: [Row; 10] = {
    use Verdict::*;
    [
        Row {
            relation: "blank",
            meaning: "one of them never had a history",
            verdicts: [Stream, Unrelated, Unrelated],
        },
        Row { relation: "same", meaning: "one generation", verdicts: [Stream, Clone, Clone] },
        Row {
            relation: "behind",
            meaning: "the target's history goes on from a position of the source, which has nothing beyond it",
            verdicts: [SourceReplaced, SourceReplaced, SourceReplaced],
        },
        Row {
            relation: "forked",
            meaning: "the same, and the source has writes beyond the fork, all admitted while connected",
            verdicts: [SourceReplaced, SourceReplaced, SourceReplaced],
        },
        Row {
            relation: "forked alone",
            meaning: "the same, and the source acknowledged writes beyond the fork while it was alone",
            verdicts: [SplitBrain, SplitBrain, SplitBrain],
        },
        Row {
            relation: "ahead",
            meaning: "the source's history goes on from a position of the target, which has nothing beyond it",
            verdicts: [Stream, TargetReplaced, ReinstateTarget],
        },
        Row {
            relation: "overtaken",
            meaning: "the same, and the target has data beyond the fork, all admitted while connected",
            verdicts: [ReinstateTarget, TargetReplaced, ReinstateTarget],
        },
        Row {
            relation: "overtaken alone",
            meaning: "the same, and the target acknowledged writes beyond the fork while it was alone",
            verdicts: [ReinstateTarget, SplitBrain, SplitBrain],
        },
        Row {
            relation: "both forked",
            meaning: "both histories left a common one",
            verdicts: [ReinstateTarget, SplitBrain, SplitBrain],
        },
        Row {
            relation: "unrelated",
            meaning: "nothing in common",
            verdicts: [Unrelated, Unrelated, Unrelated],
        },
    ]
};

/// The row of the table that a source and a target fall into.
pub fn row(source: &Standing, target: &Standing) -> &'static Row {
    let index = match relate(source, target) {
        Relation::Blank => 0,
        Relation::Same => 1,
        Relation::Behind { .. } => 2,
        Relation::Forked { .. } if source.alone => 4,
        Relation::Forked { .. } => 3,
        Relation::Ahead { .. } => 5,
        Relation::Overtaken { .. } if target.alone => 7,
        Relation::Overtaken { .. } => 6,
        Relation::BothForked { .. } => 8,
        Relation::Unrelated => 9,
    };
    &TABLE[index]
}

/// Whether `source`, a primary, may stream to `target`.
pub fn decide(source: &Standing, target: &Standing) -> Verdict {
    row(source, target).verdicts[match target.role {
        Role::Standby => 0,
        Role::Primary => 1,
        Role::Fenced => 2,
    }]
}

/// What a target of `group` answers a source that it does not take, and why; `None` for one that may stream.
pub fn refuse(group: &str, source: &Standing, target: &Standing) -> Option<TargetMessage> {
    let (theirs, ours) = (source.lineage.current(), target.lineage.current());
    let (code, text) = match decide(source, target) {
        Verdict::Stream => return None,
        Verdict::SourceReplaced => (
            Refusal::Promoted,
            format!(
                "group {group}: generation {theirs} of the source was replaced by generation {ours}; the source has to \
                 be reinstated"
            ),
        ),
        Verdict::TargetReplaced => (
            Refusal::Role,
            format!(
                "group {group}: this host is the primary of generation {ours}, which generation {theirs} of the source \
                 has replaced; it has to be reinstated"
            ),
        ),
        Verdict::ReinstateTarget => (
            Refusal::Reinstate,
            format!(
                "group {group}: this host has data of generation {ours} that generation {theirs} of the source lacks; \
                 it has to be reinstated"
            ),
        ),
        Verdict::SplitBrain => (
            Refusal::SplitBrain,
            format!(
                "group {group}: split brain: generation {theirs} of the source and generation {ours} of this host both \
                 went on after they parted; name the side that stays"
            ),
        ),
        Verdict::Clone => (
            Refusal::Clone,
            format!(
                "group {group}: both hosts claim to be the primary of generation {ours}: one of them is a copy of the \
                 other"
            ),
        ),
        Verdict::Unrelated => (
            Refusal::Generation,
            format!(
                "group {group}: generation {theirs} of the source and generation {ours} of this host have no history in \
                 common: is this the right group, and the right host?"
            ),
        ),
    };
    Some(TargetMessage::Refused { code, text, standing: Some(target.clone()) })
}

#[cfg(test)]
mod tests;
