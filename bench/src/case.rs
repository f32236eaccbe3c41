//! The cases: what the client does. They are the same for every contender.

use clap::ValueEnum;

/// One way of writing to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// 4 KiB random writes, one at a time, a flush after each.
    Qd1,
    /// 4 KiB random writes, one at a time, no flush.
    Qd1Noflush,
    /// 4 KiB random writes, 32 in flight, a flush after every 32.
    Qd32,
    /// 1 MiB sequential writes, 8 in flight, a flush after every 64.
    Seq,
    /// The same without a flush.
    SeqNoflush,
}

/// What a case asks of fio.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// fio's `rw`.
    pub rw: &'static str,
    /// Bytes of a write.
    pub block_bytes: u64,
    /// Writes in flight.
    pub depth: u32,
    /// A flush after so many writes, if any.
    pub fsync_every: Option<u32>,
}

impl Case {
    /// Every case, in the order of the report.
    pub const ALL: [Case; 5] = [Case::Qd1, Case::Qd1Noflush, Case::Qd32, Case::Seq, Case::SeqNoflush];

    /// Its name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Case::Qd1 => "qd1",
            Case::Qd1Noflush => "qd1-noflush",
            Case::Qd32 => "qd32",
            Case::Seq => "seq",
            Case::SeqNoflush => "seq-noflush",
        }
    }

    /// Its heading in the report.
    pub fn title(self) -> &'static str {
        match self {
            Case::Qd1 => "4 KiB random write, QD1, fsync=1",
            Case::Qd1Noflush => "4 KiB random write, QD1, no fsync",
            Case::Qd32 => "4 KiB random write, QD32, fsync=32",
            Case::Seq => "1 MiB sequential write, QD8, fsync=64",
            Case::SeqNoflush => "1 MiB sequential write, QD8, no fsync",
        }
    }

    /// What it asks of fio.
    pub fn workload(self) -> Workload {
        let (small, large) = (4 << 10, 1 << 20);
        match self {
            Case::Qd1 => Workload { rw: "randwrite", block_bytes: small, depth: 1, fsync_every: Some(1) },
            Case::Qd1Noflush => Workload { rw: "randwrite", block_bytes: small, depth: 1, fsync_every: None },
            Case::Qd32 => Workload { rw: "randwrite", block_bytes: small, depth: 32, fsync_every: Some(32) },
            Case::Seq => Workload { rw: "write", block_bytes: large, depth: 8, fsync_every: Some(64) },
            Case::SeqNoflush => Workload { rw: "write", block_bytes: large, depth: 8, fsync_every: None },
        }
    }
}
