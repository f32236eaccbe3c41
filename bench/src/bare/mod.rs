//! The least that a server of a volume does, and the least that a pair over QUIC does: what the rest is held against.
//!
//! One client, one thread, past the page cache; nothing is tracked, locked, journalled or counted. With a copy each write also goes
//! over one stream of one QUIC connection to another process, which appends it to a log; a flush goes the same way, and both sync
//! their file. What is in the log is brought to the copy after the turn. A client is answered when both have done it, or, *early*,
//! when this end has; then what goes to the copy is gathered for a moment. It does the least, in the plainest way: where this product
//! is ahead, by asking for a flush before the client does or by doing several things at a time, it is no bound.
//!
//! [`beside`] is another kind: the agent itself, and next to it the least that a copy costs.

pub mod beside;
pub mod disk;
mod far;
mod link;
mod nbd;
mod near;

use std::{
    fs,
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::{
    contender::{Bed, Drained, Running, ServerProcess},
    process::Server,
    wait::Interrupt,
};

/// Of a frame to the far end: place and length, little-endian.
const FRAME_HEADER_BYTES: usize = 16;
/// In the place of a flush.
const FLUSH: u64 = u64::MAX;
/// In the place of a flush that is all that the client waits for.
const FLUSH_ALONE: u64 = u64::MAX - 1;
/// Answers of the far end, in order for each kind: one record is in the log, one flush is done.
const TAKEN: u8 = 1;
const FLUSHED: u8 = 2;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// One end of it, as a process of its own.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    end: End,
}

#[derive(Subcommand)]
enum End {
    /// Serves a volume.
    Near {
        volume: PathBuf,
        socket: PathBuf,
        /// The directory of the far end, if there is one.
        far: Option<PathBuf>,
        /// The client is answered without the far end.
        #[arg(long)]
        early: bool,
    },
    /// Keeps a copy; key and port are in a directory.
    Far { copy: PathBuf, dir: PathBuf },
    /// Sends as much as a process writes.
    BesideNear { pid: u32, socket: PathBuf, far: PathBuf },
    /// Appends it to a log.
    BesideFar { log: PathBuf, dir: PathBuf },
}

/// Runs one end until it is ended.
pub fn run(options: &Options) -> Result<ExitCode> {
    match &options.end {
        End::Near { volume, socket, far, early } => near::run(volume, socket, far.as_deref(), *early)?,
        End::Far { copy, dir } => far::run(copy, dir)?,
        End::BesideNear { pid, socket, far } => beside::run_near(*pid, socket, far)?,
        End::BesideFar { log, dir } => beside::run_far(log, dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves the volume of `bed`, with no copy.
pub fn start(bed: &Bed<'_>) -> Result<Bare> {
    Bare::start(bed, None, false)
}

/// Serves the volume of `bed` with a copy, which is made before; clients wait for it, or are answered early.
pub fn start_pair(bed: &Bed<'_>, early: bool) -> Result<Bare> {
    fs::copy(bed.volume(), bed.copy()).context("make the copy")?;
    let mut command = this_program()?;
    command.arg("far").arg(bed.copy()).arg(bed.dir);
    let mut far = Server::spawn("bare-far", command, bed.dir)?;
    far.wait_ready(bed.interrupt, || Ok(port_file(bed.dir).exists()))?;
    Bare::start(bed, Some(far), early)
}

fn this_program() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.arg("bare");
    Ok(command)
}

fn frame_header(place: u64, length: usize) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = [0; FRAME_HEADER_BYTES];
    header[..8].copy_from_slice(&place.to_le_bytes());
    header[8..].copy_from_slice(&(length as u64).to_le_bytes());
    header
}

/// Place and length, as [`frame_header`] wrote them.
fn frame(header: &[u8; FRAME_HEADER_BYTES]) -> (u64, usize) {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    (number(&header[..8]), number(&header[8..]) as usize)
}

fn port_file(dir: &Path) -> PathBuf {
    dir.join("bare.port")
}

fn behind_file(dir: &Path) -> PathBuf {
    dir.join("bare.behind")
}

fn certificate_file(dir: &Path) -> PathBuf {
    dir.join("bare.der")
}

/// A running server, and what keeps its copy.
pub struct Bare {
    near: Server,
    far: Option<Server>,
    socket: PathBuf,
    behind: PathBuf,
}

impl Bare {
    fn start(bed: &Bed<'_>, far: Option<Server>, early: bool) -> Result<Self> {
        let socket = bed.dir.join("bare.sock");
        let mut command = this_program()?;
        command.arg("near").arg(bed.volume()).arg(&socket);
        if far.is_some() {
            command.arg(bed.dir);
        }
        if early {
            command.arg("--early");
        }
        let mut near = Server::spawn("bare-near", command, bed.dir)?;
        near.wait_ready(bed.interrupt, || Ok(socket.exists()))?;
        Ok(Self { near, far, socket, behind: behind_file(bed.dir) })
    }
}

impl Running for Bare {
    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn servers(&self) -> Vec<ServerProcess> {
        let near = ServerProcess::source("bare-near", self.near.pid());
        let far = self.far.as_ref().map(|far| ServerProcess::target("bare-far", far.pid()));
        std::iter::once(near).chain(far).collect()
    }

    /// The next client is greeted when the copy has everything of the one before.
    fn drain(&mut self, _: &Interrupt) -> Result<Drained> {
        let start = Instant::now();
        let mut next = UnixStream::connect(&self.socket).context("connect")?;
        next.set_read_timeout(Some(DRAIN_TIMEOUT)).context("connect")?;
        next.read_exact(&mut [0]).context("wait for the copy")?;
        let behind = match self.far {
            Some(_) => fs::read_to_string(&self.behind).context("ask how far behind the copy was")?,
            None => return Ok(Drained::default()),
        };
        Ok(Drained::new(behind.parse().context("ask how far behind the copy was")?, start.elapsed()))
    }

    fn stop(self: Box<Self>, _: &Interrupt) -> Result<()> {
        self.near.stop()?;
        self.far.map_or(Ok(()), Server::stop)
    }
}
