//! The largest value of the last rounds.

use std::collections::VecDeque;

/// A maximum over a window of rounds. Exact, and bounded by the number of rounds in the window.
#[derive(Debug, Clone)]
pub(super) struct MaxFilter {
    window_rounds: u64,
    /// Rounds ascending, values descending: the first is the maximum, the others take its place when it ages out.
    values: VecDeque<(u64, u64)>,
}

impl MaxFilter {
    pub(super) fn new(window_rounds: u64) -> Self {
        Self { window_rounds, values: VecDeque::new() }
    }

    /// The maximum, or `None` before the first value.
    pub(super) fn get(&self) -> Option<u64> {
        self.values.front().map(|&(_, value)| value)
    }

    /// Takes a value of `round` in, and forgets what is older than the window. Only this forgets: without new values the
    /// last maximum stands.
    pub(super) fn update(&mut self, round: u64, value: u64) {
        while self.values.back().is_some_and(|&(_, smaller)| smaller <= value) {
            self.values.pop_back();
        }
        if self.values.back().is_none_or(|&(last, _)| last != round) {
            self.values.push_back((round, value));
        }
        while self.values.front().is_some_and(|&(old, _)| old + self.window_rounds <= round) {
            self.values.pop_front();
        }
    }

    pub(super) fn clear(&mut self) {
        self.values.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maximum_stands_for_the_window_and_then_gives_way_to_the_next() {
        let mut filter = MaxFilter::new(3);
        assert_eq!(filter.get(), None);
        for (round, value, expected) in
            [(1, 5, 5), (1, 9, 9), (2, 7, 9), (3, 4, 9), (4, 1, 7), (5, 1, 4), (6, 2, 2)]
        {
            filter.update(round, value);
            assert_eq!(filter.get(), Some(expected), "round {round}");
        }
    }

    #[test]
    fn it_holds_no_more_than_one_value_a_round() {
        let mut filter = MaxFilter::new(4);
        for value in (0..1000).rev() {
            filter.update(1000 - value / 10, value);
            assert!(filter.values.len() <= 4);
        }
    }
}
