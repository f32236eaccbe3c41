//! Processes that never outlive their owner: servers, and commands that end by themselves.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{self, Interrupt};

const START_TIMEOUT: Duration = Duration::from_secs(20);
/// A server has to write back what it holds before it ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_POLL: Duration = Duration::from_millis(10);
const LOG_TAIL_BYTES: usize = 2000;

/// A running process. Dropping it kills it.
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `command`; its errors go to `NAME.log` in `dir`.
    pub fn spawn(name: &str, command: Command, dir: &Path) -> Result<Self> {
        Self::spawn_with_output(name, command, dir, Stdio::null())
    }

    fn spawn_with_output(name: &str, mut command: Command, dir: &Path, output: Stdio) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let errors = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until `is_ready`; an error with the end of its log if it ends before.
    pub fn wait_ready(
        &mut self,
        interrupt: &Interrupt,
        mut is_ready: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let what = format!("{} to serve", self.name);
        wait::until(&what, START_TIMEOUT, interrupt, || {
            self.check_alive()?;
            Ok(is_ready()?.then_some(()))
        })
        .with_context(|| self.log_tail())
    }

    /// An error if it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("ask for its status")? {
            bail!("{} ended by itself ({status}): {}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Asks it to end, and kills it if it does not.
    pub fn stop(mut self) -> Result<()> {
        self.check_alive()?;
        kill_process(self.pid(), Signal::TERM).with_context(|| format!("end {}", self.name))?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.child.try_wait().context("ask for its status")?.is_none() {
            if Instant::now() > deadline {
                bail!(
                    "{} did not end within {STOP_TIMEOUT:?} and was killed: {}",
                    self.name,
                    self.log_tail()
                );
            }
            thread::sleep(STOP_POLL);
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Duration, interrupt: &Interrupt) -> Result<ExitStatus> {
        wait::until(&format!("{} to end", self.name), timeout, interrupt, || {
            self.child.try_wait().context("ask for its status")
        })
    }

    fn log_tail(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_else(|error| format!("its log cannot be read: {error}"));
        let start = text.ceil_char_boundary(text.len().saturating_sub(LOG_TAIL_BYTES));
        format!("{} said: {}", self.name, text[start..].trim())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end and returns what it printed; an error, with what it said, if it fails.
pub fn capture(
    name: &str,
    command: Command,
    dir: &Path,
    timeout: Duration,
    interrupt: &Interrupt,
) -> Result<String> {
    let path = dir.join(format!("{name}.out"));
    let output = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut running = Server::spawn_with_output(name, command, dir, output.into())?;
    let status = running.wait(timeout, interrupt)?;
    if !status.success() {
        bail!("{name} failed ({status}): {}", running.log_tail());
    }
    fs::read_to_string(&path).with_context(|| format!("read what {name} printed"))
}

/// A port of the loopback that was free a moment ago, for servers that cannot choose one and tell.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr().context("find a free port")?.port())
}
