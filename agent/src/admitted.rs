//! When writes were admitted, roughly: how old the oldest is that the standby has not applied. The standby says which
//! sequence it has applied; this keeps what sequence there was at which time.

use std::collections::VecDeque;

use afterimage_protocol::Time;

/// Most times that are kept, at equal distances: an age is off by one part in 512 of the longest at most, which a person does not
/// see, and a group takes 16 KiB.
const MAX_MARKS: usize = 1024;

/// Times, and the newest sequence that had been admitted at each.
#[derive(Default)]
pub(crate) struct Admitted {
    marks: VecDeque<(Time, u64)>,
    /// Least time between two marks, in microseconds; doubled when there are too many.
    apart_us: u64,
}

impl Admitted {
    /// At `now` the newest sequence is `admitted`, and the standby has applied `applied`.
    pub fn note(&mut self, now: Time, admitted: u64, applied: u64) {
        // The last mark that is not beyond what was applied says when the next write came at the earliest.
        while self.marks.get(1).is_some_and(|(_, sequence)| *sequence <= applied) {
            self.marks.pop_front();
        }
        if self.marks.len() < MAX_MARKS / 4 {
            self.apart_us = 0;
        }
        let apart_us = self.apart_us;
        match self.marks.back_mut() {
            // Nothing was written since: the next write comes after now.
            Some((time, sequence)) if *sequence == admitted => *time = now,
            Some((time, _)) if now.since_us(*time) < apart_us => {}
            _ => self.marks.push_back((now, admitted)),
        }
        if self.marks.len() > MAX_MARKS {
            let mut keep = false;
            self.marks.retain(|_| {
                keep = !keep;
                keep
            });
            let (first, last) = (self.marks.front(), self.marks.back());
            let length_us = first.zip(last).map_or(0, |(first, last)| last.0.since_us(first.0));
            self.apart_us = length_us / (MAX_MARKS as u64 / 2);
        }
    }

    /// Age of the oldest write that the standby has received and not applied, at most, in microseconds; 0 where it has applied
    /// all of them, `None` if it is older than what is remembered.
    pub fn age_us(&self, now: Time, applied: u64, received: u64) -> Option<u64> {
        // 0 is told when a catch-up begins: what the standby has is not known then.
        if received == 0 {
            return None;
        }
        if applied >= received {
            return Some(0);
        }
        let before = self.marks.iter().rev().find(|(_, sequence)| *sequence <= applied)?;
        Some(now.since_us(before.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000)
    }

    #[test]
    fn the_oldest_write_that_is_not_applied_counts() {
        let mut admitted = Admitted::default();
        assert_eq!(admitted.age_us(at(0), 0, 0), None, "nothing is known yet");
        admitted.note(at(1), 10, 0);
        assert_eq!(admitted.age_us(at(1), 0, 10), None, "they were admitted before the first look");
        assert_eq!(admitted.age_us(at(1), 10, 10), Some(0));
        assert_eq!(admitted.age_us(at(1), 10, 0), None, "what the standby has is not known");
        admitted.note(at(5), 10, 10);
        admitted.note(at(6), 20, 10);
        admitted.note(at(7), 30, 10);
        assert_eq!(admitted.age_us(at(8), 10, 30), Some(3_000_000), "the 11th came after 5 s");
        assert_eq!(admitted.age_us(at(8), 25, 30), Some(2_000_000));
        assert_eq!(
            admitted.age_us(at(8), 10, 10),
            Some(0),
            "what the standby lacks is no matter of its base"
        );
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_stays() {
        let mut admitted = Admitted::default();
        for second in 0..100_000 {
            admitted.note(at(second), second, 0);
        }
        assert!(admitted.marks.len() <= MAX_MARKS);
        assert_eq!(admitted.age_us(at(100_000), 0, 99_999), Some(100_000_000_000));
        let age = admitted.age_us(at(100_000), 50_000, 99_999).unwrap();
        assert!((50_000_000_000..51_000_000_000).contains(&age), "{age}");
    }
}
