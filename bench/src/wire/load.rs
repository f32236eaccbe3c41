//! What is written: a database, whose pages change a little and often, and files that are written once.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{process, wait::Interrupt};

const LIMIT: Duration = Duration::from_secs(300);
/// The server refuses to run as root.
const USER: &str = "postgres";
const SCALE: &str = "10";
/// Programs, libraries and documentation: on every host, about half of it compressed already or hard to compress.
const SOURCES: [&str; 3] = ["/usr/bin", "/usr/lib", "/usr/share"];

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Load {
    /// PostgreSQL's pgbench, as it comes: its rows compress well, and pages are written again and again.
    Pgbench,
    /// Files of this host's are copied: each byte is written once, so that nothing sent before helps.
    Files,
}

/// How much of it.
pub struct Work {
    /// For a load that does not end by itself.
    pub seconds: u32,
    /// For one that copies files.
    pub files_bytes: u64,
}

impl Load {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Pgbench, Self::Files];

    /// Its name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pgbench => "pgbench",
            Self::Files => "files",
        }
    }

    /// Everything that is not measured. `dir` is for what is on no replicated volume.
    pub fn prepare(self, target: PathBuf, dir: &Path, interrupt: &Interrupt) -> Result<Prepared> {
        match self {
            Self::Pgbench => Database::start(&target, dir, interrupt).map(Prepared::Pgbench),
            Self::Files => Ok(Prepared::Files { target }),
        }
    }
}

/// Ready to write.
pub enum Prepared {
    /// A database that runs.
    Pgbench(Database),
    /// A directory.
    Files {
        /// Where to copy to.
        target: PathBuf,
    },
}

impl Prepared {
    /// Writes; what there is to say of it.
    pub fn run(&mut self, work: &Work, interrupt: &Interrupt) -> Result<String> {
        match self {
            Self::Pgbench(database) => database.bench(work.seconds, interrupt),
            Self::Files { target } => copy(target, work.files_bytes, interrupt),
        }
    }

    /// Lets go of the file system.
    pub fn stop(&mut self, interrupt: &Interrupt) -> Result<()> {
        match self {
            Self::Pgbench(database) => database.stop(interrupt),
            Self::Files { .. } => Ok(()),
        }
    }
}

/// A PostgreSQL server on the volume.
pub struct Database {
    data: String,
    dir: PathBuf,
    is_running: bool,
}

impl Database {
    fn start(target: &Path, dir: &Path, interrupt: &Interrupt) -> Result<Self> {
        let (data, run) = (target.join("data"), dir.join("postgres"));
        for path in [&data, &run] {
            fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
            let mut chown = Command::new("chown");
            chown.arg(USER).arg(path);
            process::capture("chown", chown, dir, LIMIT, interrupt)?;
        }
        // The server's user has to get to what is below.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).context("let the server in")?;
        let mut database = Self { data: data.display().to_string(), dir: run, is_running: false };
        database.program("initdb", &["-D", &database.data, "-A", "trust", "--no-locale"], interrupt)?;
        let log = database.dir.join("server.log").display().to_string();
        let socket = database.dir.display().to_string();
        let options = format!("-k {socket} -c listen_addresses=''");
        database.is_running = true;
        let start = ["-D", &database.data, "-l", &log, "-o", &options, "-w", "start"];
        database.program("pg_ctl", &start, interrupt)?;
        database.program("pgbench", &["-h", &socket, "-i", "-s", SCALE, "-q", "postgres"], interrupt)?;
        database.program("psql", &["-h", &socket, "-q", "-c", "checkpoint", "postgres"], interrupt)?;
        Ok(database)
    }

    fn bench(&self, seconds: u32, interrupt: &Interrupt) -> Result<String> {
        let (socket, seconds) = (self.dir.display().to_string(), seconds.to_string());
        let args = ["-h", &socket, "-c", "4", "-j", "2", "-T", &seconds, "postgres"];
        let printed = self.program("pgbench", &args, interrupt)?;
        let tps = printed.lines().find_map(|line| line.strip_prefix("tps = "));
        let tps = tps.and_then(|rest| rest.split('.').next()).context("pgbench says nothing of its speed")?;
        Ok(format!("{tps} transactions/s"))
    }

    fn stop(&mut self, interrupt: &Interrupt) -> Result<()> {
        self.is_running = false;
        self.program("pg_ctl", &["-D", &self.data, "-m", "fast", "-w", "stop"], interrupt).map(drop)
    }

    fn program(&self, name: &str, args: &[&str], interrupt: &Interrupt) -> Result<String> {
        process::capture(name, self.command(name, args), &self.dir, LIMIT, interrupt)
    }

    fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new("runuser");
        command.args(["-u", USER, "--", name]).args(args).current_dir(&self.dir);
        command
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.is_running {
            // There is no more that can be done about a server that does not end.
            let _ = self.command("pg_ctl", &["-D", &self.data, "-m", "immediate", "stop"]).status();
        }
    }
}

/// Copies files in the order of their names, a quarter of them, so that all kinds are among them.
fn copy(target: &Path, bytes: u64, interrupt: &Interrupt) -> Result<String> {
    let mut left = bytes;
    let (mut count, mut seen) = (0u64, 0u64);
    for source in SOURCES {
        // As much of each.
        let mut share = bytes / SOURCES.len() as u64;
        let mut directories = vec![PathBuf::from(source)];
        while let Some(directory) = directories.pop() {
            interrupt.check()?;
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            paths.sort();
            for path in paths {
                let Ok(meta) = fs::symlink_metadata(&path) else { continue };
                if meta.is_dir() {
                    directories.push(path);
                    continue;
                }
                seen += 1;
                if !meta.is_file() || !seen.is_multiple_of(4) || meta.len() > share {
                    continue;
                }
                let to = target.join(format!("{count}"));
                fs::copy(&path, &to).with_context(|| format!("copy {}", path.display()))?;
                count += 1;
                share -= meta.len();
                left -= meta.len();
            }
        }
    }
    ensure!(left < bytes / 2, "there are only {} MiB of files to copy", (bytes - left) >> 20);
    Ok(format!("{count} files"))
}
