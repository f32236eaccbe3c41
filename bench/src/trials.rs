//! Measurements that come to one number each: medians and ratios, for a terminal, as Markdown and as JSON.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    report::table::{aligned, headings, markdown, none},
    stats::{median, range},
};

/// Version of the JSON document's shape.
const VERSION: u32 = 1;

/// All of them, and under what circumstances they were taken.
#[derive(Clone, Serialize)]
pub struct Trials {
    version: u32,
    kernel: String,
    processors: u64,
    rounds: u32,
    seconds: u32,
    runs: Vec<Trial>,
}

/// One number.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// What was done.
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
    /// Milliseconds of a processor that both ends took for each MiB, if they were counted.
    pub core_ms_per_mib: Option<f64>,
}

impl Trial {
    /// All of it.
    pub fn new(
        case: String,
        contender: &'static str,
        round: u32,
        value: f64,
        unit: &'static str,
        busy_cpus: f64,
    ) -> Self {
        Self { case, contender, round, value, unit, busy_cpus, core_ms_per_mib: None }
    }
}

impl Trials {
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
    pub fn add(&mut self, run: Trial) {
        self.runs.push(run);
    }

    /// For a terminal.
    pub fn to_text(&self) -> String {
        self.circumstances() + &aligned(&self.rows())
    }

    /// The middle of all values.
    pub fn median(&self, case: &str, contender: &str) -> Option<f64> {
        median(self.of(case, contender).map(|run| run.value))
    }

    /// The middle of the processor times.
    pub fn core_ms_per_mib(&self, case: &str, contender: &str) -> Option<f64> {
        median(self.of(case, contender).filter_map(|run| run.core_ms_per_mib))
    }

    /// The middle of the ratios of the values of each round.
    pub fn ratio(&self, case: &str, one: &str, other: &str) -> Option<f64> {
        let beside = |round| self.of(case, other).find(|run| run.round == round).map(|run| run.value);
        median(self.of(case, one).filter_map(|run| Some(run.value / beside(run.round)?)))
    }

    fn of<'a>(&'a self, case: &'a str, contender: &'a str) -> impl Iterator<Item = &'a Trial> {
        self.runs.iter().filter(move |run| run.case == case && run.contender == contender)
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
        format!("{}\n{}", self.circumstances(), markdown(&self.rows()))
    }

    fn circumstances(&self) -> String {
        let Self { kernel, processors, rounds, seconds, .. } = self;
        format!("Linux {kernel}, {processors} processors; {rounds} rounds of {seconds} s\n")
    }

    /// The table, its headings first.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let mut keys: Vec<(&str, &'static str)> = Vec::new();
        for run in &self.runs {
            let key = (run.case.as_str(), run.contender);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let names = ["case", "contender", "median (range)", "against the first", "core-ms/MiB", "busy CPUs"];
        let rows = keys.into_iter().filter_map(|(case, name)| self.row(case, name));
        std::iter::once(headings(names)).chain(rows).collect()
    }

    fn row(&self, case: &str, contender: &str) -> Option<Vec<String>> {
        let runs: Vec<&Trial> = self.of(case, contender).collect();
        let middle = self.median(case, contender)?;
        let (low, high) = range(runs.iter().map(|run| run.value))?;
        let first = self.runs.iter().find(|run| run.case == case)?.contender;
        let busy = median(runs.iter().map(|run| run.busy_cpus))?;
        let ratio = if contender == first { None } else { self.ratio(case, contender, first) };
        let digits = if high < 10.0 { 3 } else { 1 };
        Some(vec![
            case.to_owned(),
            contender.to_owned(),
            format!("{middle:.digits$} ({low:.digits$}–{high:.digits$}) {}", runs.first()?.unit),
            ratio.map_or_else(none, |ratio| format!("{ratio:.3}")),
            self.core_ms_per_mib(case, contender).map_or_else(none, |ms| format!("{ms:.2}")),
            format!("{busy:.2}"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds() {
        let mut report = Trials::new(3, 1).expect("circumstances");
        for (round, (tcp, pair)) in (1..).zip([(100.0, 110.0), (50.0, 60.0), (200.0, 200.0)]) {
            report.add(Trial::new("line".to_owned(), "tcp", round, tcp, "Mbit/s", 1.0));
            report.add(Trial::new("line".to_owned(), "pair", round, pair, "Mbit/s", 1.5));
        }
        let rows = report.rows();
        assert_eq!(rows[1][2..4], ["100.0 (50.0–200.0) Mbit/s".to_owned(), "–".to_owned()]);
        assert_eq!(rows[2][2..4], ["110.0 (60.0–200.0) Mbit/s".to_owned(), "1.100".to_owned()]);
        assert_eq!(rows[2][4], "–", "nobody counted");
        assert!(report.to_markdown().contains("| line | pair |"));
    }
}
