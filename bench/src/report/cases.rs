//! A table for each case, a row for each contender.

use super::{
    table::{headings, none},
    turns::{Turns, writes_per_second},
};
use crate::{
    case::Case,
    contender::{Contender, Side},
    fio::Latency,
    measure::{Copy, Life, Turn},
    stats::{median, range},
};

const HEADINGS: [&str; 12] = [
    "contender",
    "writes/s (range)",
    "MiB/s",
    "ratio",
    "write p50 / p99 / p99.9 µs",
    "flush p50 / p99 / p99.9 µs",
    "CPU s/GiB (source + target)",
    "peak MiB, source + target",
    "sent per byte",
    "behind, drained in",
    "others' CPUs (most)",
    "copy",
];

/// Those of all cases in which somebody had a turn.
pub fn tables(taken: Turns<'_>) -> Vec<(&'static str, Vec<Vec<String>>)> {
    let table = |case: Case| {
        let rows: Vec<_> =
            Contender::ALL.into_iter().filter_map(|contender| row(taken, case, contender)).collect();
        (!rows.is_empty()).then(|| (case.title(), [vec![headings(HEADINGS)], rows].concat()))
    };
    Case::ALL.into_iter().filter_map(table).collect()
}

fn row(taken: Turns<'_>, case: Case, contender: Contender) -> Option<Vec<String>> {
    let turns: Vec<&Turn> = taken.of(case, contender).collect();
    let lives: Vec<&Life> = taken.lives_of(case, contender).collect();
    let middle = |figure: fn(&Turn) -> f64| median(turns.iter().map(|turn| figure(turn)));
    let (low, high) = range(turns.iter().copied().map(writes_per_second))?;
    let (_, others_most) = range(turns.iter().map(|turn| turn.others_cpus))?;
    let cpu = if contender.has_copy() {
        format!(
            "{:.1} ({:.1} + {:.1})",
            middle(|turn| turn.cpu_per_gib(None))?,
            middle(|turn| turn.cpu_per_gib(Some(Side::Source)))?,
            middle(|turn| turn.cpu_per_gib(Some(Side::Target)))?
        )
    } else {
        format!("{:.1}", middle(|turn| turn.cpu_per_gib(None))?)
    };
    let peak = |side: Side| {
        let most = turns.iter().map(|turn| turn.peak_memory_bytes(side)).max().unwrap_or_default();
        format!("{:.0}", most as f64 / f64::from(1 << 20))
    };
    let behind = || {
        let (bytes, seconds) = (middle(behind_bytes)?, middle(|turn| turn.drained.seconds)?);
        let mib = |bytes: f64| format!("{:.1} MiB", bytes / f64::from(1 << 20));
        let is_known = turns.iter().all(|turn| turn.drained.not_durable_bytes.is_some());
        let not_durable = middle(|turn| turn.drained.not_durable_bytes.unwrap_or_default() as f64)?;
        let not_durable = if is_known { format!(" ({})", mib(not_durable)) } else { String::new() };
        Some(format!("{}{not_durable}, {seconds:.2} s", mib(bytes)))
    };
    let has_copy = contender.has_copy();
    Some(vec![
        contender.name().to_owned(),
        format!("{:.0} ({low:.0}–{high:.0})", middle(writes_per_second)?),
        format!("{:.1}", middle(|turn| turn.client.mib_per_second)?),
        ratios(taken, case, contender),
        latency(turns.iter().map(|turn| turn.client.write_latency)).unwrap_or_else(none),
        latency(turns.iter().filter_map(|turn| turn.client.flush_latency)).unwrap_or_else(none),
        cpu,
        if has_copy {
            format!("{} + {}", peak(Side::Source), peak(Side::Target))
        } else {
            peak(Side::Source)
        },
        taken.sent_per_written(case, contender).map_or_else(none, |sent| format!("{sent:.3}")),
        has_copy.then(behind).flatten().unwrap_or_else(none),
        format!("{:.2} ({others_most:.2})", middle(|turn| turn.others_cpus)?),
        copies(&lives),
    ])
}

/// Bytes that the other end did not have at the end of a turn.
pub fn behind_bytes(turn: &Turn) -> f64 {
    turn.drained.behind_bytes as f64
}

fn ratios(taken: Turns<'_>, case: Case, contender: Contender) -> String {
    let text = |group: &&[Contender]| {
        let other = taken.best_beside(case, contender, group)?;
        let ratio = taken.ratio(case, contender, other, writes_per_second)?;
        Some(format!("{ratio:.2} × {}", other.name()))
    };
    let texts: Vec<String> = contender.references().iter().filter_map(text).collect();
    if texts.is_empty() { none() } else { texts.join(", ") }
}

fn latency(latencies: impl Iterator<Item = Latency> + Clone) -> Option<String> {
    let p50 = median(latencies.clone().map(|latency| latency.p50_us))?;
    let p99 = median(latencies.clone().map(|latency| latency.p99_us))?;
    let p999 = median(latencies.map(|latency| latency.p999_us))?;
    Some(format!("{p50:.0} / {p99:.0} / {p999:.0}"))
}

fn copies(lives: &[&Life]) -> String {
    let differing = lives.iter().filter(|life| matches!(life.copy, Copy::DiffersAt(_))).count();
    let equal = lives.iter().filter(|life| life.copy == Copy::Equal).count();
    match (equal, differing) {
        (0, 0) => none(),
        (_, 0) => "equal".to_owned(),
        _ => format!("DIFFERS in {differing} of {}", lives.len()),
    }
}
