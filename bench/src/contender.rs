//! The contenders: something that serves a volume over NBD, with or without a copy elsewhere.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use clap::ValueEnum;
use rustix::process::Pid;
use serde::Serialize;

use crate::{nbdkit, ours, qsd, wait::Interrupt};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contender {
    /// `nbdkit file`, no copy.
    Nbdkit,
    /// `qemu-storage-daemon`, no copy.
    Qsd,
    /// `qemu-storage-daemon`, `blockdev-mirror` in write-blocking mode.
    QsdMirrorSync,
    /// `qemu-storage-daemon`, `blockdev-mirror` in background mode.
    QsdMirrorAsync,
    /// The agent, its peer not running.
    OursAlone,
    /// The agent and a receiver, `mode = "async"`.
    OursAsync,
    /// The agent and a receiver, `mode = "sync"`.
    OursSync,
}

/// Where one measurement lives. Everything is in one directory that goes away.
pub struct Bed<'a> {
    /// The directory.
    pub dir: &'a Path,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// More lines for the group in the configuration of this product.
    pub settings: &'a str,
    /// Set when the user wants to stop.
    pub interrupt: &'a Interrupt,
}

impl Bed<'_> {
    /// The volume that is served.
    pub fn volume(&self) -> PathBuf {
        self.dir.join("volume.img")
    }

    /// The copy at the other end.
    pub fn copy(&self) -> PathBuf {
        self.dir.join("copy.img")
    }
}

/// A contender that serves its volume. Dropping it ends its processes.
pub trait Running {
    /// Where the client connects to.
    fn uri(&self) -> String;

    /// Every process that serves or copies.
    fn servers(&self) -> Vec<Pid>;

    /// Waits until the copy has everything that was written; nothing is written meanwhile.
    fn drain(&mut self, interrupt: &Interrupt) -> Result<Drained>;

    /// Ends the processes, so that both files are complete.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// How far the copy was behind when the client was done.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Drained {
    /// Bytes the copy lacked.
    pub behind_bytes: u64,
    /// Seconds until it lacked none.
    pub seconds: f64,
}

impl Drained {
    pub(crate) fn new(behind_bytes: u64, time: Duration) -> Self {
        Self { behind_bytes, seconds: time.as_secs_f64() }
    }
}

impl Contender {
    /// Every contender, each after the one it is compared with.
    pub const ALL: [Contender; 7] = [
        Contender::Nbdkit,
        Contender::Qsd,
        Contender::OursAlone,
        Contender::QsdMirrorAsync,
        Contender::OursAsync,
        Contender::QsdMirrorSync,
        Contender::OursSync,
    ];

    /// Its name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Nbdkit => "nbdkit",
            Contender::Qsd => "qsd",
            Contender::QsdMirrorSync => "qsd-mirror-sync",
            Contender::QsdMirrorAsync => "qsd-mirror-async",
            Contender::OursAlone => "ours-alone",
            Contender::OursAsync => "ours-async",
            Contender::OursSync => "ours-sync",
        }
    }

    /// The one that does the nearest to the same job, which the ratios name.
    pub fn reference(self) -> Option<Contender> {
        match self {
            Contender::Qsd => None,
            Contender::Nbdkit
            | Contender::QsdMirrorSync
            | Contender::QsdMirrorAsync
            | Contender::OursAlone => Some(Contender::Qsd),
            Contender::OursAsync => Some(Contender::QsdMirrorAsync),
            Contender::OursSync => Some(Contender::QsdMirrorSync),
        }
    }

    /// Whether it is this product.
    pub fn is_ours(self) -> bool {
        matches!(self, Contender::OursAlone | Contender::OursAsync | Contender::OursSync)
    }

    /// Whether a second file has to be equal in the end.
    pub fn has_copy(self) -> bool {
        !matches!(self, Contender::Nbdkit | Contender::Qsd | Contender::OursAlone)
    }

    /// Starts it and waits until it serves the volume and, if there is one, the copy has caught up.
    pub fn start(self, bed: &Bed<'_>) -> Result<Box<dyn Running>> {
        Ok(match self {
            Contender::Nbdkit => Box::new(nbdkit::start(bed)?),
            Contender::Qsd => Box::new(qsd::start_plain(bed)?),
            Contender::QsdMirrorSync => Box::new(qsd::start_mirror(bed, qsd::CopyMode::WriteBlocking)?),
            Contender::QsdMirrorAsync => Box::new(qsd::start_mirror(bed, qsd::CopyMode::Background)?),
            Contender::OursAlone => Box::new(ours::start_alone(bed)?),
            Contender::OursAsync => Box::new(ours::start_pair(bed, ours::Mode::Async)?),
            Contender::OursSync => Box::new(ours::start_pair(bed, ours::Mode::Sync)?),
        })
    }
}
