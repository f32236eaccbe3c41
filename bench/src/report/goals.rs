//! What was set as a goal, and how far this run got.

use serde::Serialize;

use super::{
    Other,
    cases::behind_bytes,
    table::none,
    turns::{Turns, writes_per_second},
};
use crate::{
    bulk,
    case::Case,
    contender::Contender::{
        self, Bare, BarePair, Beside, OursAlone, OursAsync, OursSync, QsdMirrorAsync, QsdMirrorSync,
        QsdMirrorSyncTls,
    },
    copying,
    measure::Turn,
    scale,
    subject::Subject,
    trials::Trials,
    wan, wire,
};

/// The columns of [`Goal::row`].
pub const HEADINGS: [&str; 5] = ["goal", "wanted", "reached", "", "the bare one"];

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
    /// How much it was with the least that has to be done ([`crate::bare`], or the bare transport), in the same run.
    pub bare: Option<f64>,
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
        let figure = |value: Option<f64>| value.map_or_else(none, |value| format!("{value:.3} {unit}"));
        vec![
            self.what.clone(),
            match self.wanted {
                Wanted::AtLeast(wanted) => format!("≥ {wanted} {unit}"),
                Wanted::AtMost(wanted) => format!("≤ {wanted} {unit}"),
            },
            figure(self.reached),
            match self.is_met() {
                Some(true) => "met".to_owned(),
                Some(false) => "NOT MET".to_owned(),
                None => "not measured".to_owned(),
            },
            figure(self.bare),
        ]
    }
}

/// All of them, whether this run has measured them or not.
/// `other` has what was not made by turns.
pub fn all<'a>(taken: Turns<'_>, other: impl Fn(Subject) -> Option<&'a Other>) -> Vec<Goal> {
    let trials = |subject| match other(subject) {
        Some(Other::Trials(trials)) => Some(trials),
        _ => None,
    };
    let mut goals = cases(taken);
    goals.extend(copies(trials(Subject::Bulk), trials(Subject::FirstSync), trials(Subject::CatchUp)));
    goals.extend(link(trials(Subject::Wan)));
    goals.extend(wire(match other(Subject::Wire) {
        Some(Other::Wire(outcomes)) => outcomes,
        _ => &[],
    }));
    goals.extend(scale(match other(Subject::Scale) {
        Some(Other::Scale(outcome)) => Some(outcome),
        _ => None,
    }));
    goals
}

fn at_least(what: impl Into<String>, wanted: f64, unit: &'static str, reached: Option<f64>) -> Goal {
    Goal { what: what.into(), wanted: Wanted::AtLeast(wanted), unit, reached, bare: None }
}

fn at_most(what: impl Into<String>, wanted: f64, unit: &'static str, reached: Option<f64>) -> Goal {
    Goal { what: what.into(), wanted: Wanted::AtMost(wanted), unit, reached, bare: None }
}

fn copies(bulk: Option<&Trials>, first: Option<&Trials>, later: Option<&Trials>) -> [Goal; 4] {
    let ratio = |trials: Option<&Trials>, case, one, other| trials?.ratio(case, one, other);
    let bulk_ratio = ratio(bulk, bulk::CASE, bulk::CATCH_UP, bulk::QUINN);
    let cores = |who| bulk.and_then(|trials| trials.core_ms_per_mib(bulk::CASE, who));
    let bulk_disk = ratio(bulk, bulk::CASE, bulk::DISK, bulk::QUINN);
    let first_disk = ratio(first, copying::FIRST_SYNC, copying::DISK, copying::NBDCOPY);
    let first = ratio(first, copying::FIRST_SYNC, copying::PAIR, copying::NBDCOPY);
    let later = ratio(later, copying::CATCH_UP, copying::RSYNC, copying::PAIR);
    [
        Goal { bare: bulk_disk, ..at_least("bulk: catch-up × bare quinn", 0.7, "×", bulk_ratio) },
        Goal {
            bare: cores(bulk::QUINN_LARGE),
            ..at_most("bulk: catch-up, both ends", 2.0, "core-ms/MiB", cores(bulk::CATCH_UP))
        },
        Goal { bare: first_disk, ..at_least("first-sync: × nbdcopy", 1.3, "×", first) },
        at_least("catch-up: times faster than rsync", 20.0, "×", later),
    ]
}

fn link(trials: Option<&Trials>) -> Vec<Goal> {
    let ratio = |case: &str, other: &str| trials?.ratio(case, wan::PAIR, other);
    let median = |case: &str, who: &str| trials?.median(case, who);
    let mut goals = Vec::new();
    for (case, rate_mbit) in wan::cases() {
        if let Some(rate_mbit) = rate_mbit {
            let reached = median(&case, wan::PAIR).map(|value| value / rate_mbit);
            goals.push(at_least(format!("wan: {case}: of the rate"), 0.95, "×", reached));
        }
        let best = wan::TCP.into_iter().filter_map(|tcp| ratio(&case, tcp)).min_by(f64::total_cmp);
        goals.push(at_least(format!("wan: {case}: × the better TCP"), 1.0, "×", best));
    }
    let (sync, rtt) = (wan::client_case(wan::SYNC_WRITE, 20), wan::client_case(wan::ROUND_TRIP, 20));
    let more = median(&sync, wan::PAIR).zip(median(&rtt, "tcp")).map(|(write, rtt)| (write - rtt) / 1000.0);
    goals.push(at_most("wan: sync write at 20 ms, p50 beyond the round trip", 0.5, "ms", more));
    for case in [Case::Qd1, Case::Qd32] {
        let writes = |rtt_ms| median(&wan::client_case(&wan::async_writes(case), rtt_ms), wan::PAIR);
        let ratio = writes(20).zip(writes(0)).map(|(far, near)| far / near);
        goals.push(at_least(format!("wan: async {} at 20 ms × at 0 ms", case.name()), 0.98, "×", ratio));
    }
    goals
}

fn wire(outcomes: &[wire::Outcome]) -> [Goal; 3] {
    let sent = |load, setting| wire::sent_per_written(outcomes, load, setting);
    [
        at_most("wire: pgbench, zstd, bytes sent per byte", 0.05, "", sent("pgbench", "zstd")),
        at_most("wire: pgbench, lz4, bytes sent per byte", 0.08, "", sent("pgbench", "lz4")),
        at_most(
            "wire: pgbench, lz4 × each write by itself with LZ4",
            0.5,
            "×",
            wire::sent_per_stored(outcomes, "pgbench", "lz4"),
        ),
    ]
}

fn scale(outcome: Option<&scale::Outcome>) -> [Goal; 2] {
    let ratio = outcome.map(scale::Outcome::search_ratio);
    [
        at_most("scale: finding 1,000 dirty blocks in 64 TiB × in 1 GiB", 2.0, "×", ratio),
        at_most(
            "scale: agent resident with 64 TiB, idle",
            64.0,
            "MiB",
            outcome.and_then(scale::Outcome::idle_mib),
        ),
    ]
}

fn cases(taken: Turns<'_>) -> Vec<Goal> {
    use Case::{Qd1, Qd1Noflush, Qd32, Seq, SeqNoflush};
    let mut goals = Vec::new();
    for (case, wanted) in [(Qd1, 1.2), (Qd32, 1.5), (Seq, 1.0)] {
        let peers = [Contender::Nbdkit, Contender::Qsd];
        let best = taken.best_beside(case, OursAlone, &peers);
        goals.push(Goal {
            what: format!("{}: ours-alone × the better of nbdkit and qsd", case.name()),
            wanted: Wanted::AtLeast(wanted),
            unit: "×",
            reached: best.and_then(|best| taken.ratio(case, OursAlone, best, writes_per_second)),
            bare: best.and_then(|best| taken.ratio(case, Bare, best, writes_per_second)),
        });
    }
    let mut speed = |case: Case, one: Contender, other: Contender, wanted: f64| {
        goals.push(Goal {
            what: format!("{}: {} × {}", case.name(), one.name(), other.name()),
            wanted: Wanted::AtLeast(wanted),
            unit: "×",
            reached: taken.ratio(case, one, other, writes_per_second),
            bare: bare(one).and_then(|bare| taken.ratio(case, bare, other, writes_per_second)),
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
        let bare = bare(one).and_then(|bare| taken.ratio(case, bare, other, figure));
        goals.push(Goal { what, wanted: Wanted::AtMost(wanted), unit: "×", reached, bare });
    };
    for case in [Qd1Noflush, Qd1, Qd32] {
        let what = format!("{}: write p99 of ours-sync × qsd-mirror-sync", case.name());
        least(what, case, [OursSync, QsdMirrorSync], p99, 0.8);
    }
    let what = "seq-noflush: ours-async behind at the end × qsd-mirror-async".to_owned();
    least(what, SeqNoflush, [OursAsync, QsdMirrorAsync], behind_bytes, 0.1);
    for case in [Qd32, Seq] {
        let what = format!("{}: CPU s/GiB, both ends, ours-sync × qsd-mirror-sync-tls", case.name());
        least(what, case, [OursSync, QsdMirrorSyncTls], cpu, 0.8);
    }
    goals
}

/// What does the least of the same job.
fn bare(contender: Contender) -> Option<Contender> {
    Some(match contender {
        OursAlone => Bare,
        OursAsync => Beside,
        OursSync => BarePair,
        _ => return None,
    })
}

fn p99(turn: &Turn) -> f64 {
    turn.client.write_latency.p99_us
}

fn cpu(turn: &Turn) -> f64 {
    turn.cpu_per_gib(None)
}
