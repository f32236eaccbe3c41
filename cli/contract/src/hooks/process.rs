//! One run of a program: started in a process group of its own, read while it runs, and ended at its time limit
//! together with all that it started.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Of its output the last so many bytes are kept: what a script says when it fails, it says at the end.
const KEPT_BYTES: usize = 4096;
/// What may still be in the pipe when the program has ended: the capacity of a pipe.
const PIPE_BYTES: usize = 64 << 10;

/// How a run ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// How the program ended; `None` if it was killed at the time limit.
    pub status: Option<ExitStatus>,
    /// The end of what it wrote to stdout and stderr.
    pub output: String,
}

/// Runs `program` with `variables` added to this process's environment, for at most `limit`. Blocks. When it returns,
/// nothing of the program's process group runs any more.
pub(super) fn run(
    program: &Path,
    variables: &[(&'static str, String)],
    limit: Duration,
) -> io::Result<Ended> {
    let deadline = Instant::now() + limit;
    let (mut reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.current_dir("/").stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut running = Running(command.spawn()?);
    // The other ends of the pipe are the program's alone from here on.
    drop(command);
    let mut tail = Tail::default();
    let in_time = running.read_until_end(&mut reader, &mut tail, deadline)?;
    running.end_group();
    drain(&mut reader, &mut tail)?;
    let status = running.0.wait()?;
    Ok(Ended { status: in_time.then_some(status), output: tail.text() })
}

/// A child that leads its own process group. The group ends with it, also on an error.
struct Running(Child);

impl Running {
    /// Reads until the program ends or `deadline` comes; whether it ended.
    fn read_until_end(
        &self,
        reader: &mut PipeReader,
        tail: &mut Tail,
        deadline: Instant,
    ) -> io::Result<bool> {
        let process = pidfd_open(self.pid(), PidfdFlags::empty())?;
        let mut open = true;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
            if open {
                fds.push(PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN));
            }
            wait(&mut fds, left)?;
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.get(1) == Some(&true) {
                open = tail.read(reader)? > 0;
            } else if ready[0] {
                return Ok(true);
            }
        }
    }

    /// Kills what is left of the group. The leader was not waited for, so its id cannot be anybody else's yet.
    fn end_group(&self) {
        // It fails when all of it has ended.
        let _ = kill_process_group(self.pid(), Signal::KILL);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not after a successful wait: the id may be another process's by then.
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            self.end_group();
            let _ = self.0.wait();
        }
    }
}

/// What was written before the end and not read yet. A process that left the group may hold the pipe open: its output
/// is not waited for.
fn drain(reader: &mut PipeReader, tail: &mut Tail) -> io::Result<()> {
    let mut bytes = 0;
    while bytes < PIPE_BYTES {
        let mut fds = [PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN)];
        wait(&mut fds, Duration::ZERO)?;
        if fds[0].revents().is_empty() {
            return Ok(());
        }
        match tail.read(reader)? {
            0 => return Ok(()),
            n => bytes += n,
        }
    }
    Ok(())
}

/// Waits until something can be read, a signal came, or `limit` is over.
fn wait(fds: &mut [PollFd<'_>], limit: Duration) -> io::Result<()> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(fds, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The last [`KEPT_BYTES`] of what was read.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    /// Reads once; 0 is the end.
    fn read(&mut self, reader: &mut PipeReader) -> io::Result<usize> {
        let mut buffer = [0; KEPT_BYTES];
        let n = match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(1),
            read => read?,
        };
        self.bytes.extend_from_slice(buffer.get(..n).unwrap_or_default());
        let excess = self.bytes.len().saturating_sub(KEPT_BYTES);
        self.cut |= excess > 0;
        self.bytes.drain(..excess);
        Ok(n)
    }

    /// One line, without anything that drives a terminal.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let lines: Vec<_> = text.trim().lines().filter(|line| !line.trim().is_empty()).collect();
        let line: String = lines.join(" | ").chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        if self.cut { format!("…{line}") } else { line }
    }
}
