//! One child process that cannot outlive the test that started it.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to stop after SIGSTOP: a thread that waits for a disk stops once that has answered.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How often something is looked at that cannot be waited for.
pub const POLL: Duration = Duration::from_millis(5);
/// Bytes of a log's end that an error shows.
const LOG_TAIL_BYTES: usize = 4000;

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints is added to the file `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let open = || File::options().create(true).append(true).open(log);
        let out = open().with_context(|| format!("open the log {}", log.display()))?;
        let err = out.try_clone().with_context(|| format!("open the log {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Fails, with the end of its log, unless it is running.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().with_context(|| format!("look at {}", self.name))? {
            bail!("{} ended early ({status}); its log ends in\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Kills it as `kill -9` does and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Interrupts it (SIGINT), as Ctrl-C does.
    pub fn interrupt(&mut self) -> Result<()> {
        self.signal(Signal::INT)
    }

    /// Tells it that its terminal is gone (SIGHUP), which daemons take for a wish that they read their configuration again.
    pub fn hang_up(&mut self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Freezes it (SIGSTOP): a host that hangs without its connections ending. None of its threads runs on return.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let started = Instant::now();
        while !self.has_stopped()? {
            ensure!(started.elapsed() < STOP_LIMIT, "{} does not stop", self.name);
            sleep(POLL);
        }
        Ok(())
    }

    /// Whether each of its threads has stopped.
    fn has_stopped(&self) -> Result<bool> {
        let tasks = format!("/proc/{}/task", self.pid());
        for task in std::fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
            // A thread may end meanwhile.
            let stat = std::fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
            // The name, in parentheses, may hold anything.
            let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
            if !matches!(state, Some('T' | 't') | None) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets it go on after [`Process::freeze`].
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits until it ends; fails if that takes longer than `limit`, and leaves it running.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("wait for {}", self.name))? {
                return Ok(status);
            }
            if started.elapsed() > limit {
                bail!("{} did not end within {limit:?}; its log ends in\n{}", self.name, self.log_tail());
            }
            sleep(POLL);
        }
    }

    /// All of its log.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// The last lines of its log, for an error message.
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        // A child that was waited for has no process id any more: it may be another process's.
        self.ensure_running()?;
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("send signal {} to {}", signal.as_raw(), self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell.
        let _ = self.kill();
    }
}

/// What a program that ran to its end left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// What it printed, if it ended with exit status 0.
    pub fn success(self) -> Result<String> {
        if !self.status.success() {
            bail!("it failed ({}): {}{}", self.status, self.stderr, self.stdout);
        }
        Ok(self.stdout)
    }
}

/// Runs a program to its end; kills it and fails if that takes longer than `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    let what = format!("{command:?}");
    let capture = || tempfile::tempfile().context("make a file for the output");
    let (mut stdout, mut stderr) = (capture()?, capture()?);
    let child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().context("share the output")?)
        .stderr(stderr.try_clone().context("share the output")?)
        .spawn()
        .with_context(|| format!("start {what}"))?;
    let mut process = Process { child, name: what.clone(), log: PathBuf::new() };
    let waited = process.wait(limit);
    let (stdout, stderr) = (text(&mut stdout)?, text(&mut stderr)?);
    match waited {
        Ok(status) => Ok(Finished { status, stdout, stderr }),
        Err(_) => bail!("{what} did not end within {limit:?}: {stderr}{stdout}"),
    }
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).context("read the output")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::Scratch;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_exit_status_are_kept() {
        let limit = Duration::from_secs(10);
        let finished = run(&mut shell("echo out; echo err >&2; exit 3"), limit).unwrap();
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(finished.status.code(), Some(3));
        assert!(finished.success().unwrap_err().to_string().contains("err"));
        let error = run(&mut shell("echo so far; sleep 100"), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("did not end within 100ms: so far"), "{error}");
    }

    #[test]
    fn a_process_is_frozen_thawed_killed_and_its_log_kept() {
        let scratch = Scratch::new(1 << 20).unwrap();
        let (log, beats) = (scratch.path().join("log"), scratch.path().join("beats"));
        let script = format!("echo hello; while true; do echo x >> {}; sleep 0.01; done", beats.display());
        let mut process = Process::spawn(&mut shell(&script), &log).unwrap();
        let count = || fs::metadata(&beats).map(|beats| beats.len()).unwrap_or(0);
        let until = |wanted: &dyn Fn() -> bool| {
            let started = Instant::now();
            while !wanted() {
                assert!(started.elapsed() < Duration::from_secs(10));
                sleep(POLL);
            }
        };
        until(&|| count() > 0);
        process.freeze().unwrap();
        sleep(Duration::from_millis(50));
        let frozen = count();
        sleep(Duration::from_millis(50));
        assert_eq!(count(), frozen);
        process.thaw().unwrap();
        until(&|| count() > frozen);
        assert!(process.wait(Duration::from_millis(20)).is_err());
        process.kill().unwrap();
        assert!(!process.is_running());
        let error = process.ensure_running().unwrap_err().to_string();
        assert!(error.contains("hello"), "{error}");
        assert!(process.freeze().is_err());
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let scratch = Scratch::new(1 << 20).unwrap();
        let process = Process::spawn(&mut shell("exec sleep 100"), &scratch.path().join("log")).unwrap();
        let entry = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(entry.exists());
        drop(process);
        assert!(!entry.exists());
    }
}
