//! What `compare` can measure: the cases that contenders take turns in, and the measurements that are made another way.

use clap::{ValueEnum, builder::PossibleValue};

use crate::case::Case;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A client writes, and contenders take turns.
    Case(Case),
    /// Bytes the whole way, beside bare quinn.
    Bulk,
    /// A first copy, beside nbdcopy.
    FirstSync,
    /// An old copy made a new one, beside rsync.
    CatchUp,
    /// Over the emulated wide-area link.
    Wan,
    /// Bytes sent for what a database and a file server write.
    Wire,
    /// A volume of 64 TiB.
    Scale,
}

impl Subject {
    const ALL: [Subject; 11] = [
        Subject::Case(Case::Qd1),
        Subject::Case(Case::Qd1Noflush),
        Subject::Case(Case::Qd32),
        Subject::Case(Case::Seq),
        Subject::Case(Case::SeqNoflush),
        Subject::Bulk,
        Subject::FirstSync,
        Subject::CatchUp,
        Subject::Wan,
        Subject::Wire,
        Subject::Scale,
    ];
    /// Those that are made another way than by turns, in the order of the report.
    pub const OTHERS: [Subject; 6] =
        [Subject::Bulk, Subject::FirstSync, Subject::CatchUp, Subject::Wan, Subject::Wire, Subject::Scale];

    /// Its name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Case(case) => case.name(),
            Subject::Bulk => "bulk",
            Subject::FirstSync => "first-sync",
            Subject::CatchUp => "catch-up",
            Subject::Wan => "wan",
            Subject::Wire => "wire",
            Subject::Scale => "scale",
        }
    }

    /// Its heading in the report; a case has its own.
    pub fn title(self) -> &'static str {
        match self {
            Subject::Case(case) => case.title(),
            Subject::Bulk => "Bulk: the whole way beside bare quinn",
            Subject::FirstSync => "First sync of a file that is half zero",
            Subject::CatchUp => "Catch-up after 1 % changed",
            Subject::Wan => "Wide-area link",
            Subject::Wire => "Bytes sent for each byte written",
            Subject::Scale => "A large volume",
        }
    }

    /// The programs it needs that are not of this product, and the packages that have them.
    pub fn programs(self) -> &'static [(&'static str, &'static str)] {
        const FIO: (&str, &str) = ("fio", "fio");
        match self {
            Subject::Case(_) | Subject::Bulk | Subject::Scale => &[FIO],
            Subject::FirstSync => {
                &[("nbdcopy", "libnbd-bin"), ("qemu-storage-daemon", "qemu-utils or qemu-system-common")]
            }
            Subject::CatchUp => &[FIO, ("rsync", "rsync")],
            Subject::Wan => &[FIO, ("ip", "iproute2")],
            Subject::Wire => &crate::wire::PROGRAMS,
        }
    }

    /// Network namespaces and mounts are root's.
    pub fn needs_root(self) -> bool {
        matches!(self, Subject::Wan | Subject::Wire)
    }

    /// Whether it takes minutes even in its short form.
    pub fn is_long(self) -> bool {
        matches!(self, Subject::Wan | Subject::Wire)
    }
}

impl ValueEnum for Subject {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(self.title()))
    }
}
