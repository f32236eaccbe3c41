//! The comparison: which contenders, which cases, how often, in which order.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    case::Case,
    contender::Contender,
    measure::{self, Settings},
    ours,
    report::Report,
    wait::Interrupt,
};

/// A volume and its copy.
const FILES_PER_RUN: u64 = 2;
/// Logs, state, and what a file system keeps for itself.
const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// The contenders take turns within a round, and the rounds repeat, so that a slow minute of the machine hits all
/// of them. The exit status is 1 if a copy differed.
#[derive(Args)]
pub struct Options {
    /// Two rounds of 3 s on a 256 MiB volume, unless told otherwise
    #[arg(long)]
    quick: bool,
    /// Only this case; may be given several times
    #[arg(long, value_name = "CASE")]
    only: Vec<Case>,
    /// Only these contenders
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Only the peers
    #[arg(long)]
    without_ours: bool,
    /// Rounds [default: 5, quick: 2]
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds that the client writes in each run [default: 5, quick: 3]
    #[arg(long)]
    seconds: Option<u32>,
    /// Size of the volume in MiB [default: 512, quick: 256]
    #[arg(long)]
    volume_mib: Option<u64>,
    /// Where the volumes are made, and removed again [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the results are saved [default: bench-results beside this program]
    #[arg(long)]
    save: Option<PathBuf>,
}

/// Runs the comparison, prints and saves it.
pub fn run(options: &Options) -> Result<ExitCode> {
    let plan = Plan::new(options)?;
    let interrupt = Interrupt::install()?;
    plan.check_programs()?;
    let base = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    plan.check_space(&base)?;
    let dir = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&base)
        .with_context(|| format!("make a directory in {}", base.display()))?;

    let mut report = Report::new(&plan.settings, plan.rounds, &plan.contenders)?;
    let total = plan.cases.len() * plan.rounds as usize * plan.contenders.len();
    let mut done = 0;
    for &case in &plan.cases {
        for round in 1..=plan.rounds {
            for &contender in &plan.contenders {
                done += 1;
                eprint!("[{done}/{total}] {} {} round {round}: ", case.name(), contender.name());
                let measurement =
                    measure::take(contender, case, round, &plan.settings, dir.path(), &interrupt)
                        .with_context(|| format!("{} {}, round {round}", case.name(), contender.name()))?;
                eprintln!(
                    "{:.0} writes/s, others {:.2} CPUs",
                    measurement.client.writes_per_second, measurement.others_cpus
                );
                report.add(measurement);
            }
        }
    }

    println!("{}", report.to_text());
    let save = options.save.clone().map_or_else(default_save_dir, Ok)?;
    report.save(&save)?;
    println!("saved in {}", save.display());
    Ok(match report.differing().count() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

struct Plan {
    contenders: Vec<Contender>,
    cases: Vec<Case>,
    rounds: u32,
    settings: Settings,
}

impl Plan {
    fn new(options: &Options) -> Result<Self> {
        let default = |normal, quick| if options.quick { quick } else { normal };
        let is_wanted = |contender: &Contender| {
            let named = options.contenders.is_empty() || options.contenders.contains(contender);
            named && !(options.without_ours && contender.is_ours())
        };
        let plan = Self {
            contenders: Contender::ALL.into_iter().filter(is_wanted).collect(),
            cases: Case::ALL
                .into_iter()
                .filter(|case| options.only.is_empty() || options.only.contains(case))
                .collect(),
            rounds: options.rounds.unwrap_or(default(5, 2)),
            settings: Settings {
                volume_bytes: options.volume_mib.unwrap_or(if options.quick { 256 } else { 512 }) << 20,
                run_time: Duration::from_secs(options.seconds.unwrap_or(default(5, 3)).into()),
            },
        };
        ensure!(plan.rounds > 0, "--rounds 0 measures nothing");
        ensure!(!plan.settings.run_time.is_zero(), "--seconds 0 measures nothing");
        ensure!(plan.settings.volume_bytes > 0, "--volume-mib 0 leaves nothing to write to");
        Ok(plan)
    }

    fn check_programs(&self) -> Result<()> {
        let mut needed = vec![("fio", "fio")];
        if self.contenders.contains(&Contender::Nbdkit) {
            needed.push(("nbdkit", "nbdkit"));
        }
        let is_qsd = |contender: &Contender| !contender.is_ours() && *contender != Contender::Nbdkit;
        if self.contenders.iter().any(is_qsd) {
            needed.push(("qemu-storage-daemon", "qemu-utils or qemu-system-common"));
        }
        for (program, package) in needed {
            if Command::new(program).arg("--version").output().is_err() {
                bail!("{program} cannot be started: install {package}");
            }
        }
        if self.contenders.iter().any(|contender| contender.is_ours()) {
            ours::build_if_missing()?;
        }
        Ok(())
    }

    fn check_space(&self, dir: &Path) -> Result<()> {
        let needed = self.settings.volume_bytes * FILES_PER_RUN
            + ours::JOURNAL_MAX_MIB * (1 << 20)
            + DISK_RESERVE_BYTES;
        let space = rustix::fs::statvfs(dir)
            .with_context(|| format!("ask for the free space of {}", dir.display()))?;
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
}

/// `bench-results` beside this program.
pub fn default_save_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    Ok(program.with_file_name("bench-results"))
}
