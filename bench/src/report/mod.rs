//! The outcome: medians and ratios, as tables for a terminal and as Markdown, as plots, and as JSON with every single value.

mod cases;
mod goals;
mod plot;
pub mod table;
mod turns;

use std::{fmt::Write, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::Serialize;

use self::{
    goals::Goal,
    table::{aligned, headings, markdown},
    turns::Turns,
};
use crate::{
    measure::{Copy, Life, Outcome, Settings, Turn},
    scale,
    subject::Subject,
    trials::Trials,
    wire,
};

/// Version of the JSON document's shape.
const VERSION: u32 = 2;

/// All measurements, and under what circumstances they were taken.
#[derive(Serialize)]
pub struct Report {
    version: u32,
    kernel: String,
    processors: u64,
    programs: Vec<String>,
    volume_mib: u64,
    rounds: u32,
    turns_each: u32,
    turn_seconds: u64,
    copies_elsewhere: bool,
    turns: Vec<Turn>,
    lives: Vec<Life>,
    others: Vec<Section>,
    not_measured: Vec<NotMeasured>,
}

/// Something that was asked for, and why there is no figure of it.
#[derive(Clone, Debug, Serialize)]
pub struct NotMeasured {
    /// What.
    pub what: String,
    /// Why, and what would help.
    pub why: String,
    /// Whether it was tried and failed.
    pub failed: bool,
}

/// What came of a measurement that is not made by turns.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Other {
    /// Numbers.
    Trials(Trials),
    /// What was sent.
    Wire(Vec<wire::Outcome>),
    /// A large volume.
    Scale(Box<scale::Outcome>),
}

/// Such a measurement in the report.
#[derive(Serialize)]
struct Section {
    name: &'static str,
    #[serde(skip)]
    subject: Subject,
    outcome: Other,
}

/// What is saved beside the measurements, so that it need not be worked out again.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    report: &'a Report,
    goals: Vec<Goal>,
}

impl Report {
    /// No measurements yet.
    pub fn new(settings: &Settings) -> Result<Self> {
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
            rounds: settings.rounds,
            turns_each: settings.turns,
            turn_seconds: settings.turn_time.as_secs(),
            copies_elsewhere: settings.copies.is_some(),
            turns: Vec::new(),
            lives: Vec::new(),
            others: Vec::new(),
            not_measured: Vec::new(),
        })
    }

    /// Adds what a match came to.
    pub fn add(&mut self, outcome: Outcome) {
        self.turns.extend(outcome.turns);
        self.lives.extend(outcome.lives);
    }

    /// Adds what came of a measurement that is not made by turns.
    pub fn add_other(&mut self, subject: Subject, outcome: Other) {
        self.others.push(Section { name: subject.name(), subject, outcome });
    }

    /// Notes that there will be no figures of something.
    pub fn lacks(&mut self, what: impl Into<String>, why: impl Into<String>, failed: bool) {
        self.not_measured.push(NotMeasured { what: what.into(), why: why.into(), failed });
    }

    /// Whether every copy was one and nothing failed.
    pub fn is_good(&self) -> bool {
        self.differing().count() == 0 && !self.not_measured.iter().any(|lack| lack.failed)
    }

    /// For a terminal: columns aligned with spaces.
    pub fn to_text(&self) -> String {
        let mut text = self.circumstances();
        for (title, rows) in self.tables() {
            let _ = write!(text, "\n{title}\n{}", aligned(&rows));
        }
        for life in self.differing() {
            let _ = writeln!(text, "\nTHE COPY DIFFERS: {}", difference(life));
        }
        for NotMeasured { what, why, .. } in &self.not_measured {
            let _ = writeln!(text, "\nNOT MEASURED: {what}: {why}");
        }
        text
    }

    /// Saves `compare.json`, `compare.md` and the plots in `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let goals = self.goals();
        let ratios = plot::ratios(&goals).context("draw the ratios")?;
        let latencies = plot::latencies(self.taken()).context("draw the latencies")?;
        let json = serde_json::to_string_pretty(&Document { report: self, goals });
        let json = json.context("encode the report")?;
        for (name, content) in [
            ("compare.json", Some(json)),
            ("compare.md", Some(self.to_markdown())),
            ("ratios.svg", ratios),
            ("latency.svg", latencies),
        ] {
            let path = dir.join(name);
            match content {
                Some(content) => fs::write(&path, content),
                // One of another run would be taken for one of this.
                None if path.exists() => fs::remove_file(&path),
                None => Ok(()),
            }
            .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn to_markdown(&self) -> String {
        let mut text = self.circumstances();
        for (title, rows) in self.tables() {
            let _ = write!(text, "\n### {title}\n\n{}", markdown(&rows));
        }
        for life in self.differing() {
            let _ = writeln!(text, "\n**The copy differs**: {}", difference(life));
        }
        if !self.not_measured.is_empty() {
            let _ = writeln!(text, "\n### Not measured\n");
        }
        for NotMeasured { what, why, .. } in &self.not_measured {
            let _ = writeln!(text, "- {what}: {why}");
        }
        text
    }

    fn circumstances(&self) -> String {
        format!(
            "{}; Linux {}, {} processors; volume {} MiB, {} rounds of {} turns of {} s{}\n",
            self.programs.join(", "),
            self.kernel,
            self.processors,
            self.volume_mib,
            self.rounds,
            self.turns_each,
            self.turn_seconds,
            if self.copies_elsewhere { "; the copies on another file system" } else { "" }
        )
    }

    fn tables(&self) -> Vec<(&'static str, Vec<Vec<String>>)> {
        let mut tables = cases::tables(self.taken());
        for Section { subject, outcome, .. } in &self.others {
            let rows = match outcome {
                Other::Trials(trials) => trials.rows(),
                Other::Wire(outcomes) => wire::rows(outcomes),
                Other::Scale(outcome) => outcome.rows(),
            };
            tables.push((subject.title(), rows));
        }
        let goals = self.goals().iter().map(Goal::row).collect();
        tables.push(("Goals", [vec![headings(goals::HEADINGS)], goals].concat()));
        tables
    }

    fn goals(&self) -> Vec<Goal> {
        goals::all(self.taken(), |subject| {
            self.others.iter().find(|section| section.subject == subject).map(|section| &section.outcome)
        })
    }

    fn taken(&self) -> Turns<'_> {
        Turns { turns: &self.turns, lives: &self.lives }
    }

    /// Those whose copy was not one.
    fn differing(&self) -> impl Iterator<Item = &Life> {
        self.lives.iter().filter(|life| matches!(life.copy, Copy::DiffersAt(_)))
    }
}

fn difference(life: &Life) -> String {
    let Life { contender, place, copy, .. } = life;
    format!("{contender}, {}, round {}: {copy:?}", place.case, place.round)
}

/// The first line of `--version`, if the program is there.
fn program_version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests;
