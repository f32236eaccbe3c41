//! The comparison: which contenders, which cases, how often, in which order.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use afterimage_contract::low_latency;
use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    bulk,
    case::Case,
    contender::{Contender, MATCHES, Match},
    copying,
    measure::{self, Place, Settings},
    ours,
    report::{Other, Report},
    scale,
    subject::Subject,
    wait::Interrupt,
    wan, wire,
};

/// Of measurements that are not made by turns.
const PAIRS: u32 = 5;
const QUICK_PAIRS: u32 = 2;
/// A volume and its copy.
const FILES_EACH: u64 = 2;
/// Logs, state, and what a file system keeps for itself.
const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// The contenders that a ratio compares run at the same time and take turns with the client, so that a slow minute of the
/// machine hits all of them. The exit status is 1 if a copy differed or something could not be measured to its end.
#[derive(Args)]
pub struct Options {
    /// One round of two turns of 2 s on a 256 MiB volume, unless told otherwise
    #[arg(long)]
    quick: bool,
    /// Only these; all unless told otherwise, with --quick all but what takes minutes
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<Subject>,
    /// Only these contenders, and in every case
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Only the peers
    #[arg(long)]
    without_ours: bool,
    /// How often everything is started anew [default: 2, quick: 1]
    #[arg(long)]
    rounds: Option<u32>,
    /// Turns of each contender in a round [default: 3, quick: 2]
    #[arg(long)]
    turns: Option<u32>,
    /// Seconds that the client writes in each turn [default: 2]
    #[arg(long)]
    seconds: Option<u32>,
    /// Size of the volume in MiB [default: 512, quick: 256]
    #[arg(long)]
    volume_mib: Option<u64>,
    /// Where the volumes are made, and removed again [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the copies of what is made by turns are, and removed again, such as on another disk [default: beside the volumes]
    #[arg(long)]
    copies: Option<PathBuf>,
    /// Keep processors awake for all contenders, which this product otherwise does for itself
    #[arg(long)]
    awake: bool,
    /// Where the results are saved [default: bench-results beside this program]
    #[arg(long)]
    save: Option<PathBuf>,
}

/// Has no processor sleep for as long as the file is open.
fn keep_awake() -> Result<File> {
    let opened = File::options().write(true).open(low_latency::DEVICE).and_then(|mut file| {
        file.write_all(&0_i32.to_ne_bytes())?;
        Ok(file)
    });
    opened.with_context(|| format!("keep processors awake with {}", low_latency::DEVICE))
}

/// Runs the comparison, prints and saves it.
pub fn run(options: &Options) -> Result<ExitCode> {
    let settings = settings(options)?;
    // Ends with the file.
    let _awake = options.awake.then(keep_awake).transpose()?;
    let interrupt = Interrupt::install()?;
    let base = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&base)
        .with_context(|| format!("make a directory in {}", base.display()))?;
    let mut report = Report::new(&settings)?;
    let contenders = available(options, &mut report)?;
    let matches = matches(options, &contenders);
    check_space(&base, &settings, &matches)?;

    take_turns(&matches, &settings, dir.path(), &mut report, &interrupt)?;
    for subject in Subject::OTHERS {
        measure_other(subject, options, dir.path(), &mut report, &interrupt)?;
    }

    println!("{}", report.to_text());
    let save = options.save.clone().map_or_else(default_save_dir, Ok)?;
    report.save(&save)?;
    println!("saved in {}", save.display());
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Planned = (Case, &'static Match, Vec<Contender>);

fn take_turns(
    matches: &[Planned],
    settings: &Settings,
    dir: &Path,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<()> {
    let total = matches.len() * settings.rounds as usize;
    let mut done = 0;
    for (case, group, contenders) in matches {
        for round in 1..=settings.rounds {
            done += 1;
            let place = Place { case: case.name(), group: group.name, round };
            let what = format!("{}, {}, round {round}", case.name(), group.name);
            eprintln!("[{done}/{total}] {what}");
            match measure::take(contenders, *case, place, settings, dir, interrupt) {
                Ok(outcome) => report.add(outcome),
                Err(error) => failed(report, what, &error, interrupt)?,
            }
        }
    }
    Ok(())
}

/// One failure is not the end of the others; the user's wish to stop is.
fn failed(
    report: &mut Report,
    what: impl Into<String>,
    error: &anyhow::Error,
    interrupt: &Interrupt,
) -> Result<()> {
    interrupt.check()?;
    let what = what.into();
    eprintln!("FAILED: {what}: {error:#}");
    report.lacks(what, format!("{error:#}"), true);
    Ok(())
}

fn measure_other(
    subject: Subject,
    options: &Options,
    dir: &Path,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<()> {
    if !options.only.is_empty() && !options.only.contains(&subject) {
        return Ok(());
    }
    let is_named = options.only.contains(&subject);
    let obstacle = if options.without_ours {
        Some("it measures this product: leave --without-ours away".to_owned())
    } else if options.quick && subject.is_long() && !is_named {
        Some(format!("it takes minutes: name it with --only {}", subject.name()))
    } else if subject.needs_root() && !rustix::process::geteuid().is_root() {
        Some("it needs root".to_owned())
    } else {
        missing_program(subject.programs())
    };
    if let Some(why) = obstacle {
        report.lacks(subject.name(), why, false);
        return Ok(());
    }
    eprintln!("{}", subject.title());
    let size = |normal: u64, quick| if options.quick { quick } else { normal } << 20;
    let rounds = options.rounds.unwrap_or(if options.quick { QUICK_PAIRS } else { PAIRS });
    let outcome = match subject {
        Subject::Case(_) => return Ok(()),
        Subject::Bulk => bulk::measure(size(512, 256), rounds, dir, interrupt).map(Other::Trials),
        Subject::FirstSync => copying::first_sync(size(2048, 512), rounds, dir, interrupt).map(Other::Trials),
        Subject::CatchUp => copying::catch_up(size(2048, 512), rounds, dir, interrupt).map(Other::Trials),
        Subject::Wan => wan::measure_shortly(dir, interrupt).map(Other::Trials),
        Subject::Wire => {
            let seconds = if options.quick { 15 } else { 60 };
            wire::measure_shortly(seconds, dir, interrupt).map(Other::Wire)
        }
        Subject::Scale => scale::measure_shortly(dir, interrupt).map(|found| Other::Scale(Box::new(found))),
    };
    match outcome {
        Ok(outcome) => {
            if let Other::Scale(found) = &outcome
                && let Some(why) = found.failure()
            {
                report.lacks("scale, with a copy", why, true);
            }
            report.add_other(subject, outcome);
        }
        Err(error) => failed(report, subject.name(), &error, interrupt)?,
    }
    Ok(())
}

fn settings(options: &Options) -> Result<Settings> {
    let default = |normal, quick| if options.quick { quick } else { normal };
    let settings = Settings {
        volume_bytes: options.volume_mib.unwrap_or(if options.quick { 256 } else { 512 }) << 20,
        turn_time: Duration::from_secs(options.seconds.unwrap_or(2).into()),
        turns: options.turns.unwrap_or(default(3, 2)),
        rounds: options.rounds.unwrap_or(default(2, 1)),
        copies: options.copies.clone(),
    };
    ensure!(settings.rounds > 0, "--rounds 0 measures nothing");
    ensure!(settings.turns > 0, "--turns 0 measures nothing");
    ensure!(!settings.turn_time.is_zero(), "--seconds 0 measures nothing");
    ensure!(settings.volume_bytes > 0, "--volume-mib 0 leaves nothing to write to");
    Ok(settings)
}

/// Those that are wanted and whose programs are here; of the others the report says what is missing.
fn available(options: &Options, report: &mut Report) -> Result<Vec<Contender>> {
    let is_wanted = |contender: &Contender| {
        let named = options.contenders.is_empty() || options.contenders.contains(contender);
        named && !(options.without_ours && contender.is_ours())
    };
    if !options.only.is_empty() && !options.only.iter().any(|subject| matches!(subject, Subject::Case(_))) {
        return Ok(Vec::new());
    }
    let mut contenders: Vec<Contender> = Contender::ALL.into_iter().filter(is_wanted).collect();
    contenders.retain(|contender| match missing_program(contender.programs()) {
        None => true,
        Some(why) => {
            report.lacks(contender.name(), why, false);
            false
        }
    });
    if contenders.iter().any(|contender| contender.is_ours()) {
        ours::build_if_missing()?;
    }
    Ok(contenders)
}

/// Which of some programs cannot be started, if one cannot, and what has it.
pub fn missing_program(programs: &[(&str, &str)]) -> Option<String> {
    let is_missing = |(program, _): &&(&str, &str)| Command::new(program).arg("--version").output().is_err();
    let (program, package) = programs.iter().find(is_missing)?;
    Some(format!("{program} cannot be started: install {package}"))
}

fn matches(options: &Options, contenders: &[Contender]) -> Vec<Planned> {
    let mut matches = Vec::new();
    for case in Case::ALL {
        if !options.only.is_empty() && !options.only.contains(&Subject::Case(case)) {
            continue;
        }
        for group in &MATCHES {
            let usual = |one: &Contender| !options.contenders.is_empty() || group.is_usual(case, *one);
            let playing: Vec<Contender> = group
                .contenders
                .iter()
                .copied()
                .filter(|one| contenders.contains(one) && usual(one))
                .collect();
            if !playing.is_empty() {
                matches.push((case, group, playing));
            }
        }
    }
    matches
}

fn check_space(dir: &Path, settings: &Settings, matches: &[Planned]) -> Result<()> {
    let most = matches.iter().map(|(_, _, contenders)| contenders.len()).max().unwrap_or_default() as u64;
    let needed =
        most * (settings.volume_bytes * FILES_EACH + ours::JOURNAL_MAX_MIB * (1 << 20)) + DISK_RESERVE_BYTES;
    let space =
        rustix::fs::statvfs(dir).with_context(|| format!("ask for the free space of {}", dir.display()))?;
    let free = space.f_bavail * space.f_frsize;
    ensure!(
        free >= needed,
        "{} has {} MiB free, {} MiB are needed: use --dir or a smaller --volume-mib",
        dir.display(),
        free >> 20,
        needed >> 20
    );
    Ok(())
}

/// `bench-results` beside this program.
pub fn default_save_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    Ok(program.with_file_name("bench-results"))
}
