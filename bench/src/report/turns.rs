//! The turns of all matches: who had which, and what two contenders come to beside each other.

use crate::{
    case::Case,
    contender::Contender,
    measure::{Life, Turn},
    stats::median,
};

/// All of them, and the lives they belong to.
#[derive(Clone, Copy)]
pub struct Turns<'a> {
    /// In the order they were taken.
    pub turns: &'a [Turn],
    /// One for each start of a contender.
    pub lives: &'a [Life],
}

/// A figure of a turn.
pub type Figure = fn(&Turn) -> f64;

/// Writes per second.
pub fn writes_per_second(turn: &Turn) -> f64 {
    turn.client.writes_per_second
}

impl<'a> Turns<'a> {
    /// Those of one contender in one case.
    pub fn of(self, case: Case, contender: Contender) -> impl Iterator<Item = &'a Turn> + Clone {
        let is_it = move |turn: &&Turn| turn.place.case == case.name() && turn.contender == contender.name();
        self.turns.iter().filter(is_it)
    }

    /// The lives of one contender in one case.
    pub fn lives_of(self, case: Case, contender: Contender) -> impl Iterator<Item = &'a Life> + Clone {
        let is_it = move |life: &&Life| life.place.case == case.name() && life.contender == contender.name();
        self.lives.iter().filter(is_it)
    }

    /// A figure of one beside the same figure of another: the ratio of each pair of turns that followed each other, and
    /// of these the median. Pairs in which the other's figure is 0 say nothing.
    pub fn ratio(self, case: Case, one: Contender, other: Contender, figure: Figure) -> Option<f64> {
        let beside = |turn: &Turn| {
            let same = |found: &&Turn| found.place == turn.place && found.turn == turn.turn;
            self.of(case, other).find(same).map(figure).filter(|value| *value != 0.0)
        };
        median(self.of(case, one).filter_map(|turn| Some(figure(turn) / beside(turn)?)))
    }

    /// Of some that were in the same match as `one`, the one with the most writes per second.
    pub fn best_beside(self, case: Case, one: Contender, some: &[Contender]) -> Option<Contender> {
        // Less is better for the one that is measured against it.
        let beside = |other: &Contender| self.ratio(case, one, *other, writes_per_second);
        let measured = some.iter().filter_map(|other| Some((*other, beside(other)?)));
        measured.min_by(|(_, left), (_, right)| left.total_cmp(right)).map(|(other, _)| other)
    }

    /// Bytes sent for each byte written.
    pub fn sent_per_written(self, case: Case, contender: Contender) -> Option<f64> {
        let per_life = |life: &Life| Some(life.sent_bytes? as f64 / life.written_bytes.max(1) as f64);
        median(self.lives_of(case, contender).filter_map(per_life))
    }
}
