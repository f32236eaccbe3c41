//! A salvage file as it was found.

use std::path::{Path, PathBuf};

use afterimage_storage::salvage::{Head, SalvageError, UNFINISHED_SUFFIX};

/// Whether all of a file can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wholeness {
    /// Every piece is there and has its checksum.
    Whole,
    /// Pieces are damaged or missing.
    Damaged,
    /// The reinstatement that made it did not come to its end, and the host gave up nothing.
    Unfinished,
    /// A newer version of this product made it.
    OtherVersion,
    /// It cannot be opened or listed.
    Unreadable,
}

/// What was saved of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedVolume {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of it that were saved, and are whole.
    pub bytes: u64,
}

/// A salvage file, read through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its path.
    pub file: PathBuf,
    /// The group in whose directory it is.
    pub group: String,
    /// What it is about; `None` where that cannot be read.
    pub head: Option<Head>,
    /// Pieces that are whole, up to the first that is not.
    pub pieces: u64,
    /// What they are of.
    pub volumes: Vec<SavedVolume>,
    /// Whether that is all.
    pub wholeness: Wholeness,
    /// What is wrong with it.
    pub error: Option<String>,
}

impl Found {
    /// Reads a file through. What is wrong with it is in what is returned.
    pub fn look(group: &str, file: &Path) -> Self {
        let mut found = Self::empty(group, file);
        if file.as_os_str().to_string_lossy().ends_with(UNFINISHED_SUFFIX) {
            found.wholeness = Wholeness::Unfinished;
            found.error = Some("the reinstatement did not come to its end, and gave up nothing".to_owned());
        }
        if let Err(error) = found.read() {
            if found.wholeness != Wholeness::Unfinished {
                found.wholeness = wholeness(&error);
            }
            found.error.get_or_insert(with_cause(&error));
        }
        found
    }

    /// What cannot even be listed.
    pub fn unreadable(group: &str, path: &Path, error: String) -> Self {
        Self { wholeness: Wholeness::Unreadable, error: Some(error), ..Self::empty(group, path) }
    }

    /// Bytes of volumes that are whole.
    pub fn bytes(&self) -> u64 {
        self.volumes.iter().map(|volume| volume.bytes).sum()
    }

    fn empty(group: &str, file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            group: group.to_owned(),
            head: None,
            pieces: 0,
            volumes: Vec::new(),
            wholeness: Wholeness::Whole,
            error: None,
        }
    }

    fn read(&mut self) -> Result<(), SalvageError> {
        let salvage = super::open(&self.file)?;
        let volumes = salvage.head.volumes.iter();
        self.volumes = volumes
            .map(|(name, size)| SavedVolume { name: name.clone(), size_bytes: *size, bytes: 0 })
            .collect();
        self.head = Some(salvage.head.clone());
        for piece in salvage {
            let range = piece?.range;
            if let Some(volume) = self.volumes.get_mut(range.volume.0 as usize) {
                volume.bytes += range.length;
            }
            self.pieces += 1;
        }
        Ok(())
    }
}

fn wholeness(error: &SalvageError) -> Wholeness {
    match error {
        SalvageError::Damaged { .. } => Wholeness::Damaged,
        SalvageError::Version { .. } => Wholeness::OtherVersion,
        SalvageError::Io { .. } | SalvageError::Volume { .. } => Wholeness::Unreadable,
    }
}

/// An error with what caused it.
pub(super) fn with_cause(error: &SalvageError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
