//! The outcome: medians and ratios, as a table for a terminal, as Markdown and as JSON with every single value.

use std::{fmt::Write, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    case::Case,
    contender::Contender,
    fio::Latency,
    measure::{Copy, Measurement, Settings},
    stats::{median, range},
};

/// Version of the JSON document's shape.
const VERSION: u32 = 1;

/// All measurements, and under what circumstances they were taken.
#[derive(Serialize)]
pub struct Report {
    version: u32,
    kernel: String,
    processors: u64,
    programs: Vec<String>,
    volume_mib: u64,
    seconds: u64,
    rounds: u32,
    #[serde(skip)]
    contenders: Vec<Contender>,
    measurements: Vec<Measurement>,
}

impl Report {
    /// No measurements yet.
    pub fn new(settings: &Settings, rounds: u32, contenders: &[Contender]) -> Result<Self> {
        let uname = rustix::system::uname();
        let processors = std::thread::available_parallelism().context("count the processors")?;
        Ok(Self {
            version: VERSION,
            kernel: uname.release().to_string_lossy().into_owned(),
            processors: processors.get() as u64,
            programs: ["fio", "nbdkit", "qemu-storage-daemon"]
                .into_iter()
                .filter_map(program_version)
                .collect(),
            volume_mib: settings.volume_bytes >> 20,
            seconds: settings.run_time.as_secs(),
            rounds,
            contenders: contenders.to_vec(),
            measurements: Vec::new(),
        })
    }

    /// Adds one measurement.
    pub fn add(&mut self, measurement: Measurement) {
        self.measurements.push(measurement);
    }

    /// The measurements after which a copy was not one.
    pub fn differing(&self) -> impl Iterator<Item = &Measurement> {
        self.measurements.iter().filter(|measurement| matches!(measurement.copy, Copy::DiffersAt(_)))
    }

    /// For a terminal: columns aligned with spaces.
    pub fn to_text(&self) -> String {
        let mut text = self.circumstances();
        for (case, rows) in self.tables() {
            let _ = write!(text, "\n{}\n{}", case.title(), aligned(&rows));
        }
        for measurement in self.differing() {
            let _ = writeln!(text, "\nTHE COPY DIFFERS: {}", difference(measurement));
        }
        text
    }

    /// Saves `compare.json` and `compare.md` in `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let json = serde_json::to_string_pretty(self).context("encode the report")?;
        for (name, content) in [("compare.json", json), ("compare.md", self.to_markdown())] {
            let path = dir.join(name);
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn to_markdown(&self) -> String {
        let mut text = self.circumstances();
        for (case, rows) in self.tables() {
            let _ = write!(text, "\n### {}\n\n{}", case.title(), markdown(&rows));
        }
        for measurement in self.differing() {
            let _ = writeln!(text, "\n**The copy differs**: {}", difference(measurement));
        }
        text
    }

    fn circumstances(&self) -> String {
        format!(
            "{}; Linux {}, {} processors; volume {} MiB, {} rounds of {} s\n",
            self.programs.join(", "),
            self.kernel,
            self.processors,
            self.volume_mib,
            self.rounds,
            self.seconds
        )
    }

    fn tables(&self) -> impl Iterator<Item = (Case, Vec<Vec<String>>)> {
        Case::ALL.into_iter().filter_map(|case| {
            let rows: Vec<_> =
                self.contenders.iter().filter_map(|contender| self.row(case, *contender)).collect();
            (!rows.is_empty()).then(|| (case, [vec![HEADINGS.map(str::to_owned).to_vec()], rows].concat()))
        })
    }

    fn row(&self, case: Case, contender: Contender) -> Option<Vec<String>> {
        let runs: Vec<&Measurement> = self.runs(case, contender).collect();
        let middle = |value: fn(&Measurement) -> f64| median(runs.iter().map(|run| value(run)));
        let writes = middle(|run| run.client.writes_per_second)?;
        let (low, high) = range(runs.iter().map(|run| run.client.writes_per_second))?;
        let latency = |of: fn(&Measurement) -> Latency| {
            let p50 = median(runs.iter().map(|run| of(run).p50_us))?;
            let p99 = median(runs.iter().map(|run| of(run).p99_us))?;
            Some(format!("{p50:.0} / {p99:.0}"))
        };
        let versus = contender.reference().and_then(|reference| {
            let ratio = median(self.ratios(case, contender, reference))?;
            Some(format!("{ratio:.2} × {}", reference.name()))
        });
        let behind = contender.has_copy().then(|| {
            let bytes = middle(|run| run.drained.behind_bytes as f64)?;
            let seconds = middle(|run| run.drained.seconds)?;
            Some(format!("{:.0} MiB, {seconds:.2} s", bytes / (1 << 20) as f64))
        });
        let (_, others_most) = range(runs.iter().map(|run| run.others_cpus))?;
        Some(vec![
            contender.name().to_owned(),
            format!("{writes:.0} ({low:.0}–{high:.0})"),
            format!("{:.1}", middle(|run| run.client.mib_per_second)?),
            versus.unwrap_or_else(none),
            latency(|run| run.client.write_latency)?,
            latency(|run| run.client.flush_latency)?,
            format!("{:.1}", middle(Measurement::server_cpu_per_gib)?),
            behind.flatten().unwrap_or_else(none),
            format!("{:.2} ({others_most:.2})", middle(|run| run.others_cpus)?),
            copies(&runs),
        ])
    }

    fn runs(&self, case: Case, contender: Contender) -> impl Iterator<Item = &Measurement> {
        self.measurements
            .iter()
            .filter(move |run| run.case == case.name() && run.contender == contender.name())
    }

    /// Writes per second against `reference` in the same round.
    fn ratios(&self, case: Case, contender: Contender, reference: Contender) -> impl Iterator<Item = f64> {
        self.runs(case, contender).filter_map(move |run| {
            let other = self.runs(case, reference).find(|other| other.round == run.round)?;
            Some(run.client.writes_per_second / other.client.writes_per_second)
        })
    }
}

const HEADINGS: [&str; 10] = [
    "contender",
    "writes/s (range)",
    "MiB/s",
    "ratio",
    "write p50 / p99 µs",
    "flush p50 / p99 µs",
    "CPU s/GiB",
    "behind, drained in",
    "others' CPUs (most)",
    "copy",
];

fn none() -> String {
    "–".to_owned()
}

fn copies(runs: &[&Measurement]) -> String {
    let differing = runs.iter().filter(|run| matches!(run.copy, Copy::DiffersAt(_))).count();
    let equal = runs.iter().filter(|run| run.copy == Copy::Equal).count();
    match (equal, differing) {
        (0, 0) => none(),
        (_, 0) => "equal".to_owned(),
        _ => format!("DIFFERS in {differing} of {}", runs.len()),
    }
}

fn difference(measurement: &Measurement) -> String {
    let Measurement { contender, case, round, copy, .. } = measurement;
    format!("{contender}, {case}, round {round}: {copy:?}")
}

fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn markdown(rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let Some((headings, rows)) = rows.split_first() else { return String::new() };
    let rule = vec!["---".to_owned(); headings.len()];
    [line(headings), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

/// The first line of `--version`, if the program is there.
fn program_version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{contender::Drained, fio::Outcome};

    fn run(contender: Contender, round: u32, writes_per_second: f64, copy: Copy) -> Measurement {
        let latency = Latency { p50_us: 10.0, p99_us: 20.0 };
        Measurement {
            contender: contender.name(),
            case: Case::Qd1.name(),
            round,
            client: Outcome {
                writes_per_second,
                mib_per_second: writes_per_second / 256.0,
                written_bytes: 1 << 29,
                write_latency: latency,
                flush_latency: latency,
                cpu_seconds: 1.0,
            },
            server_cpu_seconds: 2.0,
            others_cpus: 0.1,
            drained: Drained { behind_bytes: 3 << 20, seconds: 0.5 },
            copy,
        }
    }

    fn report(runs: Vec<Measurement>) -> Report {
        let settings = Settings { volume_bytes: 256 << 20, run_time: Duration::from_secs(3) };
        let mut report = Report::new(&settings, 2, &Contender::ALL).expect("circumstances");
        runs.into_iter().for_each(|run| report.add(run));
        report
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_and_names_its_peer() {
        let mirror = Contender::QsdMirrorSync;
        let report = report(vec![
            run(Contender::Qsd, 1, 1000.0, Copy::None),
            run(mirror, 1, 500.0, Copy::Equal),
            run(Contender::Qsd, 2, 4000.0, Copy::None),
            run(mirror, 2, 1000.0, Copy::Equal),
        ]);
        let row = report.row(Case::Qd1, mirror).expect("a row");
        assert_eq!(row[1], "750 (500–1000)");
        assert_eq!(row[3], "0.38 × qsd");
        assert_eq!(row[6], "4.0");
        assert_eq!(row[7], "3 MiB, 0.50 s");
        assert_eq!(row[9], "equal");
        let plain = report.row(Case::Qd1, Contender::Qsd).expect("a row");
        assert_eq!((plain[3].as_str(), plain[7].as_str(), plain[9].as_str()), ("–", "–", "–"));
        assert_eq!(report.row(Case::Seq, mirror), None, "nothing was measured");
    }

    #[test]
    fn a_copy_that_differs_is_shouted_about() {
        let mirror = Contender::QsdMirrorSync;
        let report =
            report(vec![run(mirror, 1, 500.0, Copy::Equal), run(mirror, 2, 500.0, Copy::DiffersAt(4096))]);
        assert_eq!(report.differing().count(), 1);
        let text = report.to_text();
        assert!(text.contains("DIFFERS in 1 of 2"), "{text}");
        assert!(text.contains("THE COPY DIFFERS: qsd-mirror-sync, qd1, round 2: DiffersAt(4096)"), "{text}");
        assert!(report.to_markdown().contains("| contender | writes/s (range) |"));
    }
}
