//! What is served: the interface between this server and a backend.

use std::future::Future;

use bytes::Bytes;

use crate::wire::codes;

/// What a client is told about an export. Asked for once per connection, when the client arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// At most 4096 bytes, or no client can name it. The first export of a server also answers to "".
    pub name: String,
    /// For people, in listings; cut to 4096 bytes.
    pub description: String,
    /// Bytes that can be read and written. Rounded down to a multiple of `min_block`.
    pub size_bytes: u64,
    /// Every offset and length must be a multiple of it, in bytes. A power of two, 1 to 64 KiB; others are
    /// brought there.
    pub min_block: u32,
    /// What is efficient, in bytes. A power of two, at least 512 and `min_block`; others are brought there.
    pub preferred_block: u32,
    /// The longest read, and the longest payload of a write, in bytes. At least `preferred_block`, at most
    /// 64 MiB; others are brought there. TRIM, WRITE_ZEROES, CACHE and BLOCK_STATUS carry no data and may be
    /// longer.
    pub max_block: u32,
    /// Every command that would write is refused with [`Errno::Perm`].
    pub read_only: bool,
}

impl Default for ExportInfo {
    /// An empty, writable export with no name and with block sizes 1 / 4 KiB / 32 MiB.
    fn default() -> Self {
        Self {
            name: String::new(),
            description: String::new(),
            size_bytes: 0,
            min_block: 1,
            preferred_block: 4096,
            max_block: 32 << 20,
            read_only: false,
        }
    }
}

/// The errors that the protocol can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Errno {
    /// Not allowed: a write to what may only be read.
    #[error("operation not permitted")]
    Perm,
    /// The device failed.
    #[error("input/output error")]
    Io,
    /// No memory for the request.
    #[error("cannot allocate memory")]
    NoMem,
    /// The request makes no sense.
    #[error("invalid argument")]
    Inval,
    /// No space left, or a write past the end.
    #[error("no space left on device")]
    NoSpc,
    /// The request cannot be answered in one piece as it was asked to be.
    #[error("value too large")]
    Overflow,
    /// Cannot be done, or cannot be done fast.
    #[error("operation not supported")]
    NotSup,
    /// The server is about to stop.
    #[error("server is shutting down")]
    Shutdown,
}

impl Errno {
    /// The number on the wire.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Perm => codes::EPERM,
            Self::Io => codes::EIO,
            Self::NoMem => codes::ENOMEM,
            Self::Inval => codes::EINVAL,
            Self::NoSpc => codes::ENOSPC,
            Self::Overflow => codes::EOVERFLOW,
            Self::NotSup => codes::ENOTSUP,
            Self::Shutdown => codes::ESHUTDOWN,
        }
    }
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Space must stay allocated.
    pub no_hole: bool,
    /// Fail at once with [`Errno::NotSup`] where it would be no faster than writing the zeroes out.
    pub fast: bool,
    /// Return only when the zeroes are on stable storage.
    pub fua: bool,
}

/// A kind of metadata that BLOCK_STATUS tells about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: flag 1 is a hole, flag 2 reads as zeroes.
    Allocation,
    /// `afterimage:dirty`: flag 1 is dirty, the standby may lack it.
    Dirty,
}

/// A run of bytes with the same flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long, in bytes; a multiple of the export's `min_block`.
    pub len_bytes: u64,
    /// By the [`Context`].
    pub flags: u32,
}

/// A backend. The server calls it from many connections at once and with many requests of each in flight.
///
/// The server has checked, before it calls: the range lies inside `info().size_bytes`, is aligned to `min_block`,
/// is not empty, no longer than `max_block` where there is data, and the export is writable where it matters.
/// Order: requests in flight together may take effect in any order, as the protocol has it; a backend that wants
/// overlapping writes in one order must see to it.
///
/// All futures of a connection are polled by one task. One that blocks or computes for long holds up that
/// connection, so work of that kind belongs on other threads. A future is polled to its end even when the client
/// has vanished; it is dropped half-way only when a shutdown outlasts
/// [`Limits::drain_timeout`](crate::Limits::drain_timeout), when another request of its connection panics (which ends
/// that connection and no other), or when the runtime goes.
///
/// Errors are sent to the client and not logged here: the backend knows more.
pub trait Export: Send + Sync + 'static {
    /// Name, size and limits. Size and limits hold for a connection as they were when it began.
    fn info(&self) -> ExportInfo;

    /// Exactly `len` bytes from `offset`. Any other number is a bug, told to the client as [`Errno::Io`].
    fn read(&self, offset: u64, len: u32) -> impl Future<Output = Result<Bytes, Errno>> + Send;

    /// Writes `data` at `offset`; with `fua` returns when it is on stable storage.
    ///
    /// `data` may be a slice of a receive buffer of 256 KiB that other requests share, and holds it for as long as
    /// it lives: keep it until the write is done, copy what is to be kept for longer.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> impl Future<Output = Result<(), Errno>> + Send;

    /// Returns when every write that completed before the call, *on whichever connection*, is on stable storage.
    /// That is what the multi-conn flag, which is always offered, promises.
    fn flush(&self) -> impl Future<Output = Result<(), Errno>> + Send;

    /// The bytes are not needed any more; reading them gives anything. May do nothing.
    fn trim(&self, offset: u64, len: u64, fua: bool) -> impl Future<Output = Result<(), Errno>> + Send;

    /// The bytes read as zeroes afterwards.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> impl Future<Output = Result<(), Errno>> + Send;

    /// The bytes will be read soon. May do nothing.
    fn cache(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), Errno>> + Send;

    /// Extents from `offset` on, in order and without gaps; at least one, at most `max_extents`. May stop before
    /// `len`; what goes beyond it is cut off.
    fn block_status(
        &self,
        context: Context,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> impl Future<Output = Result<Vec<Extent>, Errno>> + Send;
}
