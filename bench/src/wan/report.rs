//! Medians and ratios of what was measured over the link, for a terminal, as Markdown and as JSON.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::stats::{median, range};

/// Version of the JSON document's shape.
const VERSION: u32 = 1;

/// All runs, and under what circumstances they were taken.
#[derive(Serialize)]
pub struct Report {
    version: u32,
    kernel: String,
    processors: u64,
    rounds: u32,
    seconds: u32,
    runs: Vec<Run>,
}

/// One number.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The line, or what was done over it.
    pub case: String,
    /// Who did it.
    pub contender: &'static str,
    /// From 1.
    pub round: u32,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// Processors that were busy meanwhile, on average, with everything.
    pub busy_cpus: f64,
}

impl Run {
    /// All of it.
    pub fn new(
        case: String,
        contender: &'static str,
        round: u32,
        value: f64,
        unit: &'static str,
        busy_cpus: f64,
    ) -> Self {
        Self { case, contender, round, value, unit, busy_cpus }
    }
}

impl Report {
    /// No runs yet.
    pub fn new(rounds: u32, seconds: u32) -> Result<Self> {
        let processors = std::thread::available_parallelism().context("count the processors")?;
        Ok(Self {
            version: VERSION,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processors: processors.get() as u64,
            rounds,
            seconds,
            runs: Vec::new(),
        })
    }

    /// Adds one run.
    pub fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// For a terminal.
    pub fn to_text(&self) -> String {
        let mut text = self.circumstances();
        for row in self.rows() {
            text.push_str(&row.join("  "));
            text.push('\n');
        }
        text
    }

    /// Saves `NAME.json` and `NAME.md` in `dir`.
    pub fn save(&self, dir: &Path, name: &str) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let json = serde_json::to_string_pretty(self).context("encode the report")?;
        for (suffix, content) in [("json", json), ("md", self.to_markdown())] {
            let path = dir.join(format!("{name}.{suffix}"));
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn to_markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rows: Vec<Vec<String>> = self.rows().collect();
        let columns = rows.first().map_or(0, Vec::len);
        let (headings, rows) = rows.split_at(1.min(rows.len()));
        let rule = vec!["---".to_owned(); columns];
        let table = headings.iter().chain([&rule]).chain(rows).map(|row| line(row));
        format!("{}\n{}", self.circumstances(), table.collect::<String>())
    }

    fn circumstances(&self) -> String {
        let Self { kernel, processors, rounds, seconds, .. } = self;
        format!("Linux {kernel}, {processors} processors; {rounds} rounds of {seconds} s\n")
    }

    fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        let mut keys: Vec<(&str, &'static str)> = Vec::new();
        for run in &self.runs {
            let key = (run.case.as_str(), run.contender);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let headings = ["case", "contender", "median (range)", "against the first", "busy CPUs"];
        let headings = headings.map(str::to_owned).to_vec();
        std::iter::once(headings).chain(keys.into_iter().filter_map(|(case, name)| self.row(case, name)))
    }

    fn row(&self, case: &str, contender: &str) -> Option<Vec<String>> {
        let runs: Vec<&Run> =
            self.runs.iter().filter(|run| run.case == case && run.contender == contender).collect();
        let middle = median(runs.iter().map(|run| run.value))?;
        let (low, high) = range(runs.iter().map(|run| run.value))?;
        let first = self.runs.iter().find(|run| run.case == case)?.contender;
        let reference = |round| {
            let found = |run: &&Run| run.case == case && run.contender == first && run.round == round;
            self.runs.iter().find(found).map(|run| run.value)
        };
        let ratio = median(runs.iter().filter_map(|run| Some(run.value / reference(run.round)?)))?;
        let busy = median(runs.iter().map(|run| run.busy_cpus))?;
        Some(vec![
            case.to_owned(),
            contender.to_owned(),
            format!("{middle:.1} ({low:.1}–{high:.1}) {}", runs.first()?.unit),
            if contender == first { "–".to_owned() } else { format!("{ratio:.3}") },
            format!("{busy:.2}"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds() {
        let mut report = Report::new(3, 1).expect("circumstances");
        for (round, (tcp, pair)) in (1..).zip([(100.0, 110.0), (50.0, 60.0), (200.0, 200.0)]) {
            report.add(Run::new("line".to_owned(), "tcp", round, tcp, "Mbit/s", 1.0));
            report.add(Run::new("line".to_owned(), "pair", round, pair, "Mbit/s", 1.5));
        }
        let rows: Vec<_> = report.rows().collect();
        assert_eq!(rows[1][2..4], ["100.0 (50.0–200.0) Mbit/s".to_owned(), "–".to_owned()]);
        assert_eq!(rows[2][2..4], ["110.0 (60.0–200.0) Mbit/s".to_owned(), "1.100".to_owned()]);
        assert!(report.to_markdown().contains("| line | pair |"));
    }
}
