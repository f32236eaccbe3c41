//! What is said of long work, and when. Time is an argument.

use std::time::Duration;

use afterimage_contract::meter::Meter;
use afterimage_contract::units::ByteSize;

use crate::text::span;

/// A line is due when so much more was done, in percent.
const LINE_PERCENT: u64 = 5;
/// And after this long in any case: whoever reads the log of a script sees that it lives.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// How far some work is. What is not known is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Work {
    /// What is done, such as `first sync of orders`.
    pub name: String,
    /// Which one of those that have this name: another one begins at 0.
    pub id: u64,
    /// Bytes that are done.
    pub done_bytes: Option<u64>,
    /// Bytes of all; may grow.
    pub total_bytes: Option<u64>,
    /// Bytes that are done in a second; measured here otherwise.
    pub rate_bytes_per_s: Option<u64>,
    /// What else is to be known, such as what holds it back.
    pub note: Option<String>,
}

impl Work {
    /// Some of which nothing but the name is known.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// Turns what is left, which may also grow, into what is done of how much.
#[derive(Debug, Clone, Copy, Default)]
pub struct Left {
    left_bytes: u64,
    done_bytes: u64,
}

impl Left {
    /// So much is left now.
    pub fn note(&mut self, left_bytes: u64) {
        self.done_bytes += self.left_bytes.saturating_sub(left_bytes);
        self.left_bytes = left_bytes;
    }

    /// Whether nothing is left.
    pub fn is_nothing(&self) -> bool {
        self.left_bytes == 0
    }

    /// What was done since the first look, of what there was and came since.
    pub fn of(&self, name: impl Into<String>) -> Work {
        let (done, total) = (self.done_bytes, self.done_bytes + self.left_bytes);
        Work { done_bytes: Some(done), total_bytes: Some(total), ..Work::named(name) }
    }
}

/// What to say now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Say {
    /// Whether a line is due, where there is no bar.
    pub line: bool,
    /// The text beside a bar, or the line.
    pub text: String,
    /// How far it is, in thousandths.
    pub permille: Option<u64>,
}

/// What was said of the work.
#[derive(Debug, Default)]
pub(super) struct Report {
    said: Option<Said>,
    meter: Meter,
}

#[derive(Debug)]
struct Said {
    work: Work,
    /// When the last line was due.
    at: Duration,
    percent: Option<u64>,
}

impl Report {
    /// Looks at the work at a time.
    pub fn look(&mut self, now: Duration, work: &Work) -> Say {
        let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let known = self.said.as_ref().filter(|said| said.work.name == work.name && said.work.id == work.id);
        if known.is_none() {
            self.meter = Meter::default();
        }
        self.meter.note(now_us, work.done_bytes);
        let permille = permille(work);
        let percent = permille.map(|permille| permille / 10);
        let line = known.is_none_or(|said| {
            let steps = |percent: Option<u64>| percent.map(|percent| percent / LINE_PERCENT);
            steps(percent) > steps(said.percent)
                // A count in it may change with every look.
                || said.work.note.is_some() != work.note.is_some()
                || now.saturating_sub(said.at) >= LINE_INTERVAL
        });
        let rate = work.rate_bytes_per_s.or(self.meter.per_s(now_us));
        let text = describe(work, percent, rate);
        match &mut self.said {
            Some(said) if !line => {
                said.work = work.clone();
                // Where the total has grown, the next 5 % count from here.
                said.percent = percent.min(said.percent);
            }
            said => *said = Some(Said { work: work.clone(), at: now, percent }),
        }
        Say { line, text, permille }
    }

    /// What to say at the end, if anything was said before. What was done last may not have been seen.
    pub fn ended(&self, now: Duration) -> Option<String> {
        let work = &self.said.as_ref()?.work;
        let total = work.total_bytes.map(|total| format!(", {}", size(total))).unwrap_or_default();
        Some(format!("{}: ended after {}{total}", work.name, span(now.as_secs())))
    }
}

/// It is never all of it before the end.
fn permille(work: &Work) -> Option<u64> {
    let (done, total) = (work.done_bytes?, work.total_bytes.filter(|total| *total > 0)?);
    let permille = u128::from(done) * 1000 / u128::from(total);
    Some(u64::try_from(permille).unwrap_or(u64::MAX).min(999))
}

fn describe(work: &Work, percent: Option<u64>, rate: Option<u64>) -> String {
    let mut text = format!("{}: ", work.name);
    text += &match (work.done_bytes, work.total_bytes) {
        (Some(done), Some(total)) => {
            format!("{}%, {} of {}", percent.unwrap_or(0), size(done), size(total.max(done)))
        }
        (Some(done), None) => format!("{} of unknown", size(done)),
        (None, Some(total)) => format!("unknown part of {}", size(total)),
        (None, None) => "how far it is, is unknown".to_owned(),
    };
    if work.done_bytes.is_some() {
        let left = work.total_bytes.zip(work.done_bytes).map(|(total, done)| total.saturating_sub(done));
        let seconds = left.zip(rate).and_then(|(left, rate)| left.checked_div(rate));
        text += &match (rate, seconds) {
            (None, _) => ", rate and time left unknown".to_owned(),
            (Some(rate), None) => format!(", {}/s, time left unknown", size(rate)),
            (Some(rate), Some(seconds)) => format!(", {}/s, {} left", size(rate), span(seconds)),
        };
    }
    match &work.note {
        Some(note) => format!("{text}; {note}"),
        None => text,
    }
}

fn size(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).approximate()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn work(done_mib: u64) -> Work {
        Work {
            name: "catch-up of orders".into(),
            done_bytes: Some(done_mib * MIB),
            total_bytes: Some(200 * MIB),
            ..Work::default()
        }
    }

    #[test]
    fn what_is_unknown_is_never_0() {
        let mut report = Report::default();
        let say = report.look(at(0), &work(0));
        assert_eq!(say.text, "catch-up of orders: 0%, 0 B of 200 MiB, rate and time left unknown");
        let say = report.look(at(0), &Work { name: "apply".into(), ..Work::default() });
        assert_eq!(say, Say { line: true, text: "apply: how far it is, is unknown".into(), permille: None });
        let say = report.look(at(0), &Work { total_bytes: None, ..work(3) });
        assert_eq!(say.text, "catch-up of orders: 3 MiB of unknown, rate and time left unknown");
        assert_eq!(say.permille, None);
    }

    #[test]
    fn the_rate_is_measured_where_the_daemon_does_not_know_it() {
        let mut report = Report::default();
        report.look(at(0), &work(0));
        let say = report.look(at(2), &work(20));
        assert_eq!(say.text, "catch-up of orders: 10%, 20 MiB of 200 MiB, 10 MiB/s, 18s left");
        let told = Work { rate_bytes_per_s: Some(90 * MIB), ..work(20) };
        assert!(report.look(at(2), &told).text.ends_with(", 90 MiB/s, 2s left"));
        let stands = Work { rate_bytes_per_s: Some(0), ..work(20) };
        assert!(report.look(at(2), &stands).text.ends_with(", 0 B/s, time left unknown"));
    }

    #[test]
    fn a_line_is_due_at_the_start_and_every_5_percent_or_10_seconds() {
        let mut report = Report::default();
        let due = [(0, 0), (1, 9), (2, 10), (3, 19), (4, 31), (5, 35), (13, 35), (14, 35), (15, 36)];
        let lines = due.map(|(second, done)| report.look(at(second), &work(done)).line);
        assert_eq!(lines, [true, false, true, false, true, false, false, true, false]);
    }

    #[test]
    fn a_note_that_comes_or_goes_makes_a_line() {
        let mut report = Report::default();
        let held = |done| Work { note: Some("held back for clients".into()), ..work(done) };
        report.look(at(0), &work(0));
        let say = report.look(at(1), &held(0));
        assert!(say.line && say.text.ends_with("; held back for clients"), "{say:?}");
        assert!(!report.look(at(1), &held(1)).line);
        assert!(report.look(at(1), &work(1)).line);
    }

    #[test]
    fn a_total_that_grows_takes_percents_back_without_lines() {
        let mut report = Report::default();
        report.look(at(0), &work(100));
        let say = report.look(at(1), &Work { total_bytes: Some(400 * MIB), ..work(100) });
        assert!(!say.line && say.text.contains("25%, 100 MiB of 400 MiB"), "{say:?}");
        assert!(report.look(at(2), &work(110)).line);
    }

    #[test]
    fn another_work_begins_anew() {
        let mut report = Report::default();
        report.look(at(0), &work(0));
        report.look(at(1), &work(100));
        let say = report.look(at(2), &Work { id: 7, ..work(101) });
        assert!(say.line && say.text.ends_with("rate and time left unknown"), "{say:?}");
    }

    #[test]
    fn what_is_left_becomes_what_is_done() {
        let mut left = Left::default();
        let seen = [40, 30, 45, 0].map(|bytes| {
            left.note(bytes);
            let work = left.of("apply");
            (work.done_bytes, work.total_bytes)
        });
        let expected = [(0, 40), (10, 40), (10, 55), (55, 55)];
        assert_eq!(seen, expected.map(|(done, total)| (Some(done), Some(total))));
    }

    #[test]
    fn it_is_not_all_done_before_the_end() {
        let mut report = Report::default();
        assert_eq!(report.ended(at(1)), None);
        let say = report.look(at(0), &work(200));
        assert!(say.text.contains("99%") && say.permille == Some(999), "{say:?}");
        assert_eq!(report.ended(at(75)).unwrap(), "catch-up of orders: ended after 1m 15s, 200 MiB");
    }
}
