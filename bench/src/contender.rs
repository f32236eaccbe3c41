//! The contenders: something that serves a volume over NBD, with or without a copy elsewhere.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use clap::ValueEnum;
use rustix::process::Pid;
use serde::Serialize;

use crate::{
    bare,
    case::Case,
    nbdkit, ours,
    qsd::{self, CopyMode, Link},
    wait::Interrupt,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contender {
    /// `nbdkit file`, no copy.
    Nbdkit,
    /// `qemu-storage-daemon`, no copy.
    Qsd,
    /// The least that a server does, one request at a time.
    Bare,
    /// `qemu-storage-daemon`, `blockdev-mirror` in write-blocking mode.
    QsdMirrorSync,
    /// The same, NBD with TLS.
    QsdMirrorSyncTls,
    /// `qemu-storage-daemon`, `blockdev-mirror` in background mode.
    QsdMirrorAsync,
    /// The least that a pair over QUIC does whose clients wait for both ends.
    BarePair,
    /// The least that a pair over QUIC does whose clients wait for one end.
    BarePairAsync,
    /// The agent, its peer not running.
    OursAlone,
    /// The same, and beside it the least that carries as much as it writes.
    Beside,
    /// The agent and a receiver, `mode = "async"`.
    OursAsync,
    /// The agent and a receiver, `mode = "sync"`.
    OursSync,
}

/// Where one measurement lives. Everything is in one directory that goes away.
pub struct Bed<'a> {
    /// The directory.
    pub dir: &'a Path,
    /// Where the other end has its files: the copy, and what it keeps beside it. The same directory, or one on another disk.
    pub copies: &'a Path,
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
        self.copies.join("copy.img")
    }
}

/// A contender that serves its volume. Dropping it ends its processes.
pub trait Running {
    /// Where the client connects to.
    fn uri(&self) -> String;

    /// Every process that serves or copies.
    fn servers(&self) -> Vec<ServerProcess>;

    /// Waits until the copy has everything that was written; nothing is written meanwhile.
    fn drain(&mut self, interrupt: &Interrupt) -> Result<Drained>;

    /// Bytes sent to the copy since the start, without the headers of TCP or UDP and below; none without a copy.
    fn sent_bytes(&mut self, _: &Interrupt) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Ends the processes, so that both files are complete.
    fn stop(self: Box<Self>, interrupt: &Interrupt) -> Result<()>;
}

/// A process of a contender.
#[derive(Clone, Copy, Debug)]
pub struct ServerProcess {
    /// What it is there for.
    pub name: &'static str,
    /// At which end.
    pub side: Side,
    /// Its id.
    pub pid: Pid,
}

/// An end of the replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where clients write.
    Source,
    /// Where the copy is.
    Target,
}

impl ServerProcess {
    /// One where clients write.
    pub fn source(name: &'static str, pid: Pid) -> Self {
        Self { name, side: Side::Source, pid }
    }

    /// One where the copy is.
    pub fn target(name: &'static str, pid: Pid) -> Self {
        Self { name, side: Side::Target, pid }
    }
}

/// Contenders that run at the same time and take turns, since they are compared with each other.
pub struct Match {
    /// Its name in the report.
    pub name: &'static str,
    /// Each after the ones it is compared with.
    pub contenders: &'static [Contender],
}

/// What each case is about; a contender may be in more than one.
pub const MATCHES: [Match; 3] = [
    Match {
        name: "alone",
        contenders: &[Contender::Nbdkit, Contender::Qsd, Contender::Bare, Contender::OursAlone],
    },
    Match {
        name: "async",
        contenders: &[
            Contender::QsdMirrorAsync,
            Contender::OursAlone,
            Contender::BarePairAsync,
            Contender::Beside,
            Contender::OursAsync,
        ],
    },
    Match {
        name: "sync",
        contenders: &[
            Contender::QsdMirrorSyncTls,
            Contender::QsdMirrorSync,
            Contender::BarePair,
            Contender::OursSync,
        ],
    },
];

impl Match {
    /// Whether somebody who names no contenders wants this one: without it no goal would lack a figure.
    pub fn is_usual(&self, case: Case, contender: Contender) -> bool {
        match case {
            Case::Qd32 if contender == Contender::Bare => false,
            Case::Seq | Case::SeqNoflush if contender.is_bare() => false,
            Case::SeqNoflush => self.name == "async" && contender != Contender::OursAlone,
            Case::Qd1Noflush => self.name == "sync" && contender != Contender::QsdMirrorSyncTls,
            Case::Qd1 => contender != Contender::QsdMirrorSyncTls,
            Case::Qd32 | Case::Seq => true,
        }
    }
}

/// How far the copy was behind when the client was done.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Drained {
    /// Bytes that the other end did not have.
    pub behind_bytes: u64,
    /// Bytes that it did not have on stable storage, where that is known.
    pub not_durable_bytes: Option<u64>,
    /// Seconds until the copy lacked none.
    pub seconds: f64,
}

impl Drained {
    pub(crate) fn new(behind_bytes: u64, time: Duration) -> Self {
        Self { behind_bytes, not_durable_bytes: None, seconds: time.as_secs_f64() }
    }
}

impl Contender {
    /// Every contender, in the order of the report.
    pub const ALL: [Contender; 12] = [
        Contender::Nbdkit,
        Contender::Qsd,
        Contender::Bare,
        Contender::OursAlone,
        Contender::QsdMirrorAsync,
        Contender::BarePairAsync,
        Contender::Beside,
        Contender::OursAsync,
        Contender::QsdMirrorSyncTls,
        Contender::QsdMirrorSync,
        Contender::BarePair,
        Contender::OursSync,
    ];

    /// Its name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Nbdkit => "nbdkit",
            Contender::Qsd => "qsd",
            Contender::Bare => "bare",
            Contender::BarePair => "bare-pair",
            Contender::BarePairAsync => "bare-pair-async",
            Contender::QsdMirrorSync => "qsd-mirror-sync",
            Contender::QsdMirrorSyncTls => "qsd-mirror-sync-tls",
            Contender::QsdMirrorAsync => "qsd-mirror-async",
            Contender::OursAlone => "ours-alone",
            Contender::Beside => "beside",
            Contender::OursAsync => "ours-async",
            Contender::OursSync => "ours-sync",
        }
    }

    /// Those that do the nearest to the same job, which the ratios name. Of several in one group the better counts.
    pub fn references(self) -> &'static [&'static [Contender]] {
        match self {
            Contender::Nbdkit => &[&[Contender::Qsd]],
            Contender::Bare => &[&[Contender::Nbdkit, Contender::Qsd]],
            Contender::BarePair => &[&[Contender::QsdMirrorSync]],
            Contender::OursAlone => &[&[Contender::Nbdkit, Contender::Qsd], &[Contender::Bare]],
            Contender::BarePairAsync => &[&[Contender::QsdMirrorAsync], &[Contender::OursAlone]],
            Contender::Beside => &[&[Contender::OursAlone]],
            Contender::OursAsync => &[
                &[Contender::QsdMirrorAsync],
                &[Contender::OursAlone],
                &[Contender::BarePairAsync],
                &[Contender::Beside],
            ],
            Contender::OursSync => {
                &[&[Contender::QsdMirrorSync], &[Contender::QsdMirrorSyncTls], &[Contender::BarePair]]
            }
            Contender::Qsd
            | Contender::QsdMirrorAsync
            | Contender::QsdMirrorSync
            | Contender::QsdMirrorSyncTls => &[],
        }
    }

    /// Whether it is this product.
    pub fn is_ours(self) -> bool {
        matches!(self, Contender::OursAlone | Contender::Beside | Contender::OursAsync | Contender::OursSync)
    }

    fn is_bare(self) -> bool {
        matches!(self, Contender::Bare | Contender::BarePair | Contender::BarePairAsync | Contender::Beside)
    }

    /// Whether a second file has to be equal in the end.
    pub fn has_copy(self) -> bool {
        !matches!(
            self,
            Contender::Nbdkit | Contender::Qsd | Contender::Bare | Contender::OursAlone | Contender::Beside
        )
    }

    /// The programs it needs that are not of this product, and the packages that have them.
    pub fn programs(self) -> &'static [(&'static str, &'static str)] {
        const FIO: (&str, &str) = ("fio", "fio");
        const QSD: (&str, &str) = ("qemu-storage-daemon", "qemu-utils or qemu-system-common");
        const SS: (&str, &str) = ("ss", "iproute2");
        match self {
            Contender::Nbdkit => &[FIO, ("nbdkit", "nbdkit")],
            Contender::Qsd => &[FIO, QSD],
            Contender::QsdMirrorSync | Contender::QsdMirrorSyncTls | Contender::QsdMirrorAsync => {
                &[FIO, QSD, SS]
            }
            Contender::Bare
            | Contender::BarePair
            | Contender::BarePairAsync
            | Contender::OursAlone
            | Contender::Beside
            | Contender::OursAsync
            | Contender::OursSync => &[FIO],
        }
    }

    /// Starts it and waits until it serves the volume and, if there is one, the copy has caught up.
    pub fn start(self, bed: &Bed<'_>) -> Result<Box<dyn Running>> {
        Ok(match self {
            Contender::Nbdkit => Box::new(nbdkit::start(bed)?),
            Contender::Qsd => Box::new(qsd::start_plain(bed)?),
            Contender::QsdMirrorSync => {
                Box::new(qsd::start_mirror(bed, CopyMode::WriteBlocking, Link::Plain)?)
            }
            Contender::QsdMirrorSyncTls => {
                Box::new(qsd::start_mirror(bed, CopyMode::WriteBlocking, Link::Tls)?)
            }
            Contender::QsdMirrorAsync => Box::new(qsd::start_mirror(bed, CopyMode::Background, Link::Plain)?),
            Contender::Bare => Box::new(bare::start(bed)?),
            Contender::BarePair => Box::new(bare::start_pair(bed, false)?),
            Contender::BarePairAsync => Box::new(bare::start_pair(bed, true)?),
            Contender::OursAlone => Box::new(ours::start_alone(bed)?),
            Contender::Beside => Box::new(bare::beside::start(bed)?),
            Contender::OursAsync => Box::new(ours::start_pair(bed, ours::Mode::Async)?),
            Contender::OursSync => Box::new(ours::start_pair(bed, ours::Mode::Sync)?),
        })
    }
}
