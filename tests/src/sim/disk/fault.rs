//! Faults that are switched on and off while a run goes on, and the processes that they kill.

use std::io;
use std::ops::Range;

use super::image::PAGE_BYTES;

/// Operations that a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Reads.
    Read,
    /// Writes and zeroing.
    Write,
    /// Syncs of bytes, of mapped words and of names.
    Sync,
    /// Whatever needs more disk space: allocating, mapping a new file, a write into a hole or past the end.
    Space,
    /// Opening, creating, removing and renaming.
    Name,
    /// Every operation.
    Any,
}

/// What the operation returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `EIO`.
    Io,
    /// `ENOSPC`.
    NoSpace,
    /// `EROFS`, as after a file system gave up.
    ReadOnly,
}

impl Failure {
    /// The error as Linux gives it.
    pub fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::Io => 5,
            Self::NoSpace => 28,
            Self::ReadOnly => 30,
        })
    }
}

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// This often.
    Count(u64),
    /// Every time until it is cleared.
    UntilCleared,
}

impl Times {
    /// One time.
    pub const ONCE: Self = Self::Count(1);
}

/// Names one fault that was switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultId(pub(super) u64);

/// One fault that is switched on.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) id: FaultId,
    pub(super) pattern: String,
    pub(super) on: On,
    pub(super) bytes: Range<u64>,
    pub(super) failure: Failure,
    pub(super) times: Times,
}

/// An operation, as far as faults tell them apart.
#[derive(Clone, Debug)]
pub(super) struct Attempt<'a> {
    pub(super) path: &'a str,
    pub(super) on: On,
    pub(super) bytes: Range<u64>,
    /// Whether it needs more space too.
    pub(super) needs_space: bool,
}

impl Fault {
    /// Whether it strikes this time; counts it.
    pub(super) fn strikes(&mut self, attempt: &Attempt<'_>) -> bool {
        let on = self.on == On::Any || self.on == attempt.on || (self.on == On::Space && attempt.needs_space);
        let bytes = attempt.bytes.is_empty()
            || (self.bytes.start < attempt.bytes.end && attempt.bytes.start < self.bytes.end);
        if !on || !bytes || !matches(&self.pattern, attempt.path) {
            return false;
        }
        match &mut self.times {
            Times::UntilCleared => true,
            Times::Count(0) => false,
            Times::Count(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// Whether `text` is as `pattern` says; a `*` stands for any run of characters.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    (0..=text.len()).any(|at| text.is_char_boundary(at) && matches(rest, &text[at..]))
}

/// One process that uses the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Process {
    /// Handles of another incarnation belong to a dead one.
    pub(super) incarnation: u64,
    /// Changes that it may still make before it dies.
    pub(super) fuse: Option<u64>,
    pub(super) dead: bool,
    /// Changes that it attempted since it started.
    pub(super) changes: u64,
}

/// What becomes of an operation.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It happens.
    Go,
    /// It fails, perhaps halfway.
    Fail(io::Error),
    /// The process dies in it, perhaps halfway.
    Die,
}

/// Why an operation of a dead process fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dead;

impl std::fmt::Display for Dead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the process that opened this is dead")
    }
}

impl std::error::Error for Dead {}

/// What an operation of a dead process returns.
pub(super) fn dead() -> io::Error {
    io::Error::other(Dead)
}

/// Pages in `bytes`, rounded down: a budget is not exceeded by a part of a page.
pub(super) fn whole_pages(bytes: u64) -> u64 {
    bytes / PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run() {
        assert!(matches("*", ""));
        assert!(matches("state/*", "state/bitmap"));
        assert!(matches("*/segment-*.log", "journal/segment-17.log"));
        assert!(!matches("state/*", "journal/bitmap"));
        assert!(!matches("state/bit", "state/bitmap"));
    }
}
