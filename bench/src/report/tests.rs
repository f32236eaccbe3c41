use std::time::Duration;

use super::*;
use crate::{
    case::Case,
    contender::{Contender, Drained, Side},
    fio::{self, Latency},
    measure::{Place, ServerUse},
};

fn turn(contender: Contender, round: u32, writes_per_second: f64) -> Turn {
    let latency = Latency { p50_us: 10.0, p99_us: 20.0, p999_us: 30.0 };
    let server = |name, side, cpu_seconds| ServerUse { name, side, cpu_seconds, peak_memory_bytes: 5 << 20 };
    Turn {
        contender: contender.name(),
        place: place(round),
        turn: 1,
        client: fio::Outcome {
            writes_per_second,
            mib_per_second: writes_per_second / 256.0,
            written_bytes: 1 << 29,
            write_latency: latency,
            flush_latency: None,
            cpu_seconds: 1.0,
        },
        servers: vec![server("one", Side::Source, 1.5), server("other", Side::Target, 0.5)],
        others_cpus: 0.1,
        drained: Drained { behind_bytes: 3 << 20, not_durable_bytes: Some(4 << 20), seconds: 0.5 },
    }
}

fn place(round: u32) -> Place {
    Place { case: Case::Qd1.name(), group: "sync", round }
}

fn life(contender: Contender, round: u32, copy: Copy) -> Life {
    let sent_bytes = contender.has_copy().then_some(3000);
    Life { contender: contender.name(), place: place(round), written_bytes: 2000, sent_bytes, copy }
}

fn report(turns: Vec<Turn>, lives: Vec<Life>) -> Report {
    let turn_time = Duration::from_secs(3);
    let settings = Settings { volume_bytes: 256 << 20, turn_time, turns: 1, rounds: 2, copies: None };
    let mut report = Report::new(&settings).expect("circumstances");
    report.add(Outcome { turns, lives });
    report
}

const PEER: Contender = Contender::QsdMirrorSync;
const OURS: Contender = Contender::OursSync;

fn two_rounds() -> Report {
    report(
        vec![turn(PEER, 1, 1000.0), turn(OURS, 1, 500.0), turn(PEER, 2, 4000.0), turn(OURS, 2, 1000.0)],
        vec![life(OURS, 1, Copy::Equal), life(OURS, 2, Copy::Equal)],
    )
}

#[test]
fn a_ratio_is_the_median_of_the_pairs_and_names_its_peer() {
    let report = two_rounds();
    let tables = report.tables();
    let rows = &tables[0].1;
    let ours = rows.iter().find(|row| row[0] == OURS.name()).expect("a row");
    assert_eq!(ours[1], "750 (500–1000)");
    assert_eq!(ours[3], "0.38 × qsd-mirror-sync");
    assert_eq!(ours[4], "10 / 20 / 30");
    assert_eq!(ours[5], "–", "no flush was asked for");
    assert_eq!(ours[6], "4.0 (3.0 + 1.0)");
    assert_eq!(ours[7], "5 + 5");
    assert_eq!(ours[8], "1.500");
    assert_eq!(ours[9], "3.0 MiB (4.0 MiB), 0.50 s");
    assert_eq!(ours[11], "equal");
    assert_eq!(tables.len(), 2, "one case, and the goals");
}

#[test]
fn of_several_references_the_better_counts() {
    let report = report(
        vec![
            turn(Contender::Nbdkit, 1, 1000.0),
            turn(Contender::Qsd, 1, 2000.0),
            turn(Contender::OursAlone, 1, 3000.0),
        ],
        vec![],
    );
    let tables = report.tables();
    let ours = tables[0].1.iter().find(|row| row[0] == "ours-alone").expect("a row");
    assert_eq!(ours[3], "1.50 × qsd");
    assert_eq!((ours[6].as_str(), ours[7].as_str(), ours[8].as_str()), ("4.0", "5", "–"));
}

#[test]
fn a_goal_is_met_or_not_or_was_not_measured() {
    let goals = two_rounds().goals();
    let row = |what: &str| goals.iter().find(|goal| goal.what == what).expect("a goal").row();
    assert_eq!(row("qd1: ours-sync × qsd-mirror-sync")[1..], ["≥ 1 ×", "0.375 ×", "NOT MET", "–"]);
    assert_eq!(
        row("qd32: ours-sync × qsd-mirror-sync")[1..],
        ["≥ 1.8 ×", "–", "not measured", "–"],
        "it is not dropped"
    );
}

#[test]
fn a_copy_that_differs_is_shouted_about() {
    let report = report(
        vec![turn(PEER, 1, 500.0), turn(PEER, 2, 500.0)],
        vec![life(PEER, 1, Copy::Equal), life(PEER, 2, Copy::DiffersAt(4096))],
    );
    assert!(!report.is_good());
    let text = report.to_text();
    assert!(text.contains("DIFFERS in 1 of 2"), "{text}");
    assert!(text.contains("THE COPY DIFFERS: qsd-mirror-sync, qd1, round 2: DiffersAt(4096)"), "{text}");
    assert!(report.to_markdown().contains("| contender | writes/s (range) |"));
}

#[test]
fn what_was_not_measured_is_told() {
    let mut report = two_rounds();
    assert!(report.is_good());
    report.lacks("nbdkit", "nbdkit cannot be started: install nbdkit", false);
    assert!(report.is_good(), "nothing failed");
    assert!(report.to_text().contains("NOT MEASURED: nbdkit: nbdkit cannot be started"));
    report.lacks("scale", "it broke", true);
    assert!(!report.is_good());
    assert!(report.to_markdown().contains("- scale: it broke"));
}

#[test]
fn everything_is_saved_and_old_plots_go() {
    let dir = tempfile::tempdir().expect("a directory");
    two_rounds().save(dir.path()).expect("save");
    for name in ["compare.json", "compare.md", "ratios.svg", "latency.svg"] {
        assert!(dir.path().join(name).exists(), "{name}");
    }
    report(vec![], vec![]).save(dir.path()).expect("save");
    assert!(!dir.path().join("ratios.svg").exists());
}
