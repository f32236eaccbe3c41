//! What can go wrong with a journal.

use std::io;
use std::sync::Arc;

use afterimage_protocol::Lsn;
use afterimage_protocol::frame::FrameError;

/// Why a journal could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk failed.
    #[error("cannot {op} journal file {file}")]
    Io {
        /// The operation, as a verb.
        op: &'static str,
        /// The file, or `.` for the directory.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// No room for what was to be appended; nothing was. It may be tried again after a trim.
    #[error("the journal is full: {used} of {limit} bytes in use")]
    Full {
        /// Bytes that the journal's segments take on the disk.
        used: u64,
        /// The bound that was set.
        limit: u64,
        /// What the system said, where it was the disk that was full and not the bound that was reached.
        source: Option<io::Error>,
    },
    /// Too many bytes were appended since the last sync; nothing was appended. Sync, then try again.
    #[error("{unsynced} bytes of the journal are not durable yet, and {limit} are the most")]
    Backlog {
        /// Bytes not yet durable.
        unsynced: u64,
        /// The bound that was set.
        limit: u64,
    },
    /// A sync was started and not finished yet.
    #[error("a sync of the journal is under way already")]
    SyncUnderWay,
    /// A frame that a journal does not store; nothing was appended.
    #[error("the frame cannot be stored in a journal")]
    Refused {
        /// Why it could not be read again; none for a compare frame.
        source: Option<FrameError>,
    },
    /// The journal has no entry boundary there.
    #[error("no entry of the journal begins at {lsn}; it holds {start} to {end}")]
    NoEntry {
        /// The place that was asked for.
        lsn: Lsn,
        /// First byte of the journal.
        start: Lsn,
        /// First byte after the journal.
        end: Lsn,
    },
    /// Bytes that were good once are not an entry any more.
    #[error("journal file {file} is damaged at {lsn}")]
    Damaged {
        /// The file.
        file: String,
        /// Where the entry should be.
        lsn: Lsn,
        /// What is wrong with its frame; none where the entry's own header is damaged.
        source: Option<FrameError>,
    },
    /// Made by a version that this one does not know.
    #[error("journal file {file} has format version {version}, which this program does not know")]
    Version {
        /// The file.
        file: String,
        /// Its version.
        version: u32,
    },
    /// An earlier failure left it unknown what is on the disk: the journal must be opened again.
    #[error("the journal failed before and must be opened again")]
    Poisoned {
        /// The failure.
        source: Arc<JournalError>,
    },
}

impl JournalError {
    pub(super) fn io(op: &'static str, file: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let file = file.to_owned();
        move |source| Self::Io { op, file, source }
    }

    /// Whether this is the disk, or the user's share of it, being full.
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// [`JournalError::Full`] where the disk is full, else itself.
    pub(super) fn or_full(self, used: u64, limit: u64) -> Self {
        match self {
            Self::Io { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Self::Full { used, limit, source: Some(source) }
            }
            other => other,
        }
    }
}
