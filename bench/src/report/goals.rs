//! What was set as a goal, and how far this run got.

use serde::Serialize;

use super::{
    cases::behind_bytes,
    table::none,
    turns::{Turns, writes_per_second},
};
use crate::{
    case::Case,
    contender::Contender::{
        self, OursAlone, OursAsync, OursSync, QsdMirrorAsync, QsdMirrorSync, QsdMirrorSyncTls,
    },
    measure::Turn,
};

/// The columns of [`Goal::row`].
pub const HEADINGS: [&str; 4] = ["goal", "wanted", "reached", ""];

/// A goal.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// Of what.
    pub what: String,
    /// How much of it.
    pub wanted: Wanted,
    /// Of what `wanted` and `reached` are; `×` for a ratio.
    pub unit: &'static str,
    /// How much it was; none if this run has not measured it.
    pub reached: Option<f64>,
}

/// On which side of the goal it is good to be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// This much or more.
    AtLeast(f64),
    /// This much or less.
    AtMost(f64),
}

impl Goal {
    /// Whether it was reached, if it was measured.
    pub fn is_met(&self) -> Option<bool> {
        let reached = self.reached?;
        Some(match self.wanted {
            Wanted::AtLeast(wanted) => reached >= wanted,
            Wanted::AtMost(wanted) => reached <= wanted,
        })
    }

    /// For the table.
    pub fn row(&self) -> Vec<String> {
        let unit = self.unit;
        vec![
            self.what.clone(),
            match self.wanted {
                Wanted::AtLeast(wanted) => format!("≥ {wanted} {unit}"),
                Wanted::AtMost(wanted) => format!("≤ {wanted} {unit}"),
            },
            self.reached.map_or_else(none, |reached| format!("{reached:.3} {unit}")),
            match self.is_met() {
                Some(true) => "met".to_owned(),
                Some(false) => "NOT MET".to_owned(),
                None => "not measured".to_owned(),
            },
        ]
    }
}

/// All of them, whether this run has measured them or not.
pub fn all(taken: Turns<'_>) -> Vec<Goal> {
    cases(taken)
}

fn cases(taken: Turns<'_>) -> Vec<Goal> {
    use Case::{Qd1, Qd1Noflush, Qd32, Seq};
    let mut goals = Vec::new();
    for (case, wanted) in [(Qd1, 1.2), (Qd32, 1.5), (Seq, 1.0)] {
        let peers = [Contender::Nbdkit, Contender::Qsd];
        let best = taken.best_beside(case, OursAlone, &peers);
        goals.push(Goal {
            what: format!("{}: ours-alone × the better of nbdkit and qsd", case.name()),
            wanted: Wanted::AtLeast(wanted),
            unit: "×",
            reached: best.and_then(|best| taken.ratio(case, OursAlone, best, writes_per_second)),
        });
    }
    let mut speed = |case: Case, one: Contender, other: Contender, wanted: f64| {
        goals.push(Goal {
            what: format!("{}: {} × {}", case.name(), one.name(), other.name()),
            wanted: Wanted::AtLeast(wanted),
            unit: "×",
            reached: taken.ratio(case, one, other, writes_per_second),
        });
    };
    speed(Qd1, OursAsync, OursAlone, 0.92);
    speed(Qd32, OursAsync, OursAlone, 0.85);
    speed(Qd32, OursAsync, QsdMirrorAsync, 5.0);
    speed(Qd1Noflush, OursSync, QsdMirrorSync, 1.7);
    speed(Qd1, OursSync, QsdMirrorSync, 1.0);
    speed(Qd32, OursSync, QsdMirrorSync, 1.8);
    speed(Seq, OursSync, QsdMirrorSync, 1.0);
    speed(Seq, OursSync, QsdMirrorSyncTls, 1.5);
    let mut least = |what: String, case: Case, [one, other]: [Contender; 2], figure, wanted: f64| {
        let reached = taken.ratio(case, one, other, figure);
        goals.push(Goal { what, wanted: Wanted::AtMost(wanted), unit: "×", reached });
    };
    for case in [Qd1Noflush, Qd1, Qd32] {
        let what = format!("{}: write p99 of ours-sync × qsd-mirror-sync", case.name());
        least(what, case, [OursSync, QsdMirrorSync], p99, 0.8);
    }
    let what = "seq: ours-async behind at the end × qsd-mirror-async".to_owned();
    least(what, Seq, [OursAsync, QsdMirrorAsync], behind_bytes, 0.1);
    for case in [Qd32, Seq] {
        let what = format!("{}: CPU s/GiB, both ends, ours-sync × qsd-mirror-sync-tls", case.name());
        least(what, case, [OursSync, QsdMirrorSyncTls], cpu, 0.8);
    }
    goals
}

fn p99(turn: &Turn) -> f64 {
    turn.client.write_latency.p99_us
}

fn cpu(turn: &Turn) -> f64 {
    turn.cpu_per_gib(None)
}
