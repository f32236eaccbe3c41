//! What the live view shows: fed with status documents and keys, it knows nothing of terminals or daemons.

use std::collections::{BTreeMap, VecDeque};

use afterimage_contract::status::{GroupStatus, Status};
use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::text::Paint;

/// Samples that are kept of each series: a sparkline shows one in each column, and no terminal has more.
const MAX_SAMPLES: usize = 512;

/// Whether the view goes on after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It does.
    Stay,
    /// The operator leaves.
    Leave,
}

/// Numbers over time, the newest first; `None` where it was not known.
#[derive(Debug, Default)]
pub(super) struct Series(VecDeque<Option<u64>>);

impl Series {
    fn push(&mut self, sample: Option<u64>) {
        self.0.truncate(MAX_SAMPLES - 1);
        self.0.push_front(sample);
    }

    /// The newest first.
    pub(super) fn samples(&self) -> impl Iterator<Item = Option<u64>> {
        self.0.iter().copied()
    }

    /// The newest; `None` where it is not known.
    pub(super) fn newest(&self) -> Option<u64> {
        self.0.front().copied().flatten()
    }
}

/// What was seen of a group so far.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Milliseconds.
    pub(super) transport_lag: Series,
    /// Milliseconds.
    pub(super) apply_lag: Series,
    /// Bytes a second that clients wrote.
    pub(super) written: Series,
    /// Bytes a second that the primary sent, or the standby received.
    pub(super) moved: Series,
    counts: Option<Counts>,
}

/// Counters of a group at a time.
#[derive(Debug, Clone, Copy)]
struct Counts {
    time_us: u64,
    written: Option<u64>,
    moved: Option<u64>,
}

impl History {
    fn note(&mut self, group: Option<&GroupStatus>, time_us: u64) {
        self.transport_lag.push(group.and_then(|group| milliseconds(group.lag?.seconds)));
        self.apply_lag.push(group.and_then(|group| milliseconds(group.apply_lag?.seconds)));
        let counts = group.map(|group| Counts {
            time_us,
            written: group.written_bytes,
            moved: group.compression.map(|compression| compression.wire_bytes).or(group.received_bytes),
        });
        let between = self.counts.zip(counts);
        self.written.push(between.and_then(|(before, now)| rate(&before, &now, |counts| counts.written)));
        self.moved.push(between.and_then(|(before, now)| rate(&before, &now, |counts| counts.moved)));
        self.counts = counts;
    }
}

fn milliseconds(seconds: f64) -> Option<u64> {
    (seconds.is_finite() && seconds >= 0.0).then_some((seconds * 1e3) as u64)
}

/// Bytes a second; `None` if a counter began anew.
fn rate(before: &Counts, now: &Counts, of: impl Fn(&Counts) -> Option<u64>) -> Option<u64> {
    let (bytes, us) = (of(now)?.checked_sub(of(before)?)?, now.time_us.checked_sub(before.time_us)?);
    u64::try_from((u128::from(bytes) * 1_000_000).checked_div(u128::from(us))?).ok()
}

/// The live view.
#[derive(Debug)]
pub(super) struct View {
    /// This host.
    pub(super) node: String,
    /// Whether colours are shown.
    pub(super) paint: Paint,
    /// Whether only what is not healthy is shown.
    pub(super) unhealthy: bool,
    /// The newest status; its groups are older where nobody answers.
    pub(super) status: Option<Status>,
    /// When the groups were last reported, in microseconds since 1970, while no daemon answers.
    pub(super) silent_since_us: Option<u64>,
    /// The first group that is shown.
    pub(super) first: usize,
    histories: BTreeMap<String, History>,
}

impl View {
    /// Of a host of which nothing is known yet.
    pub(super) fn new(node: &str, paint: Paint, unhealthy: bool) -> Self {
        Self {
            node: node.to_owned(),
            paint,
            unhealthy,
            status: None,
            silent_since_us: None,
            first: 0,
            histories: BTreeMap::new(),
        }
    }

    /// Takes the newest status. While no daemon answers the groups that were last known stay.
    pub(super) fn feed(&mut self, mut status: Status) {
        let nobody_answers = status.agent.is_none() && status.receiver.is_none();
        let is_reported = |name: &String| status.groups.iter().any(|group| group.name == *name);
        if nobody_answers {
            if let Some(last) = self.status.take() {
                self.silent_since_us.get_or_insert(last.time_us);
                status.groups = last.groups;
            }
            self.histories.values_mut().for_each(|history| history.note(None, status.time_us));
        } else {
            self.silent_since_us = None;
            self.histories.retain(|name, _| is_reported(name));
            for group in &status.groups {
                self.histories.entry(group.name.clone()).or_default().note(Some(group), status.time_us);
            }
        }
        self.first = self.first.min(status.groups.len().saturating_sub(1));
        self.status = Some(status);
    }

    /// What was seen of a group.
    pub(super) fn history(&self, group: &str) -> Option<&History> {
        self.histories.get(group)
    }

    /// Does what a key asks for.
    pub(super) fn handle(&mut self, event: &Event) -> Next {
        let Event::Key(key) = event else { return Next::Stay };
        if key.kind == KeyEventKind::Release {
            return Next::Stay;
        }
        let last = self.status.as_ref().map_or(0, |status| status.groups.len().saturating_sub(1));
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Leave,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Leave,
            KeyCode::Down | KeyCode::Char('j') => self.first = (self.first + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.first = self.first.saturating_sub(1),
            KeyCode::Home => self.first = 0,
            KeyCode::End => self.first = last,
            _ => {}
        }
        Next::Stay
    }
}
