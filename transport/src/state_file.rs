//! Small files in the state directory: replaced as a whole, durably, and recognised when damaged.
//!
//! Owns the lock that makes read-change-write safe between the daemons and the operator's command. What the files
//! say belongs to [`crate::identity`], [`crate::pins`] and [`crate::pairing`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads of these files end here: the largest, a full pin file, is below 64 KiB.
pub(crate) const MAX_BYTES: u64 = 256 * 1024;

/// A file of the state directory that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The operating system refused.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The content is not what this program writes.
    #[error("{} is damaged ({what}): restore it from a copy, or move it away and pair the hosts again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first thing found wrong.
        what: String,
    },
    /// The content was written by a program of another version.
    #[error("{} has format {found}, this program reads {known}", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The format it names.
        found: String,
        /// The format that can be read.
        known: String,
    },
}

/// A JSON value under one header line: `afterimage-KIND VERSION SHA256-OF-THE-REST`.
pub(crate) struct StateFile {
    path: PathBuf,
    kind: &'static str,
}

/// Version in the header line.
const VERSION: &str = "1";

impl StateFile {
    pub(crate) fn new(dir: &Path, name: &str, kind: &'static str) -> Self {
        Self { path: dir.join(name), kind }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The value, or `None` if there is no file.
    pub(crate) fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, StateFileError> {
        let Some(bytes) = read_capped(&self.path)? else { return Ok(None) };
        self.decode(&bytes).map(Some)
    }

    /// Replaces the file; returns once the new content is on stable storage.
    pub(crate) fn save<T: Serialize>(&self, value: &T) -> Result<(), StateFileError> {
        let mut body = serde_json::to_vec_pretty(value)
            .map_err(|error| io_error("write", &self.path, io::Error::other(error)))?;
        body.push(b'\n');
        let mut bytes = format!("{} {VERSION} {}\n", self.kind, checksum(&body)).into_bytes();
        bytes.extend_from_slice(&body);
        replace(&self.path, &bytes)
    }

    /// Deletes the file if there is one; returns once that is on stable storage.
    pub(crate) fn delete(&self) -> Result<(), StateFileError> {
        match fs::remove_file(&self.path) {
            Ok(()) => sync_directory_of(&self.path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("delete", &self.path, error)),
        }
    }

    pub(crate) fn damaged(&self, what: impl Into<String>) -> StateFileError {
        StateFileError::Damaged { path: self.path.clone(), what: what.into() }
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, StateFileError> {
        let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| self.damaged("no header line"))?;
        let (header, rest) = bytes.split_at(end);
        let body = rest.get(1..).unwrap_or_default();
        let header = std::str::from_utf8(header).map_err(|_| self.damaged("header line is not text"))?;
        let mut fields = header.split(' ');
        if fields.next() != Some(self.kind) {
            return Err(self.damaged(format!("does not begin with {}", self.kind)));
        }
        match fields.next() {
            Some(VERSION) => {}
            Some(other)
                if !other.is_empty() && other.len() <= 4 && other.bytes().all(|b| b.is_ascii_digit()) =>
            {
                return Err(StateFileError::UnknownFormat {
                    path: self.path.clone(),
                    found: other.to_owned(),
                    known: VERSION.to_owned(),
                });
            }
            _ => return Err(self.damaged("no version in the header line")),
        }
        if fields.next() != Some(checksum(body).as_str()) || fields.next().is_some() {
            return Err(self.damaged("checksum does not match"));
        }
        serde_json::from_slice(body).map_err(|error| self.damaged(error.to_string()))
    }
}

/// Held while one process reads, changes and writes the files of a state directory. Waits for the others, which hold
/// it for a few fsyncs at most.
pub(crate) struct StateLock {
    _file: File,
}

impl StateLock {
    pub(crate) fn take(dir: &Path) -> Result<Self, StateFileError> {
        let path = dir.join("transport.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io_error("open", &path, error))?;
        file.lock().map_err(|error| io_error("lock", &path, error))?;
        Ok(Self { _file: file })
    }
}

/// The content of a file of at most [`MAX_BYTES`], or `None` if there is none.
pub(crate) fn read_capped(path: &Path) -> Result<Option<Vec<u8>>, StateFileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| io_error("read", path, error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(StateFileError::Damaged {
            path: path.to_owned(),
            what: format!("larger than {MAX_BYTES} bytes"),
        });
    }
    Ok(Some(bytes))
}

/// Replaces `path` by a file of mode 0600 with these bytes, in one step; returns once they are on stable storage.
/// The caller holds the [`StateLock`]: the temporary name is fixed, so that a crash leaves at most one behind.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateFileError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("delete", &new, error)),
        _ => {}
    }
    // create_new, so that the mode is ours from the first byte and a planted link is not followed.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(|error| io_error("create", &new, error))?;
    file.write_all(bytes).map_err(|error| io_error("write", &new, error))?;
    file.sync_all().map_err(|error| io_error("sync", &new, error))?;
    fs::rename(&new, path).map_err(|error| io_error("replace", path, error))?;
    sync_directory_of(path)
}

pub(crate) fn io_error(verb: &'static str, path: &Path, source: io::Error) -> StateFileError {
    StateFileError::Io { verb, path: path.to_owned(), source }
}

fn sync_directory_of(path: &Path) -> Result<(), StateFileError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| io_error("sync", dir, error))
}

fn checksum(body: &[u8]) -> String {
    HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, body).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(dir: &Path) -> StateFile {
        StateFile::new(dir, "x.json", "afterimage-x")
    }

    #[test]
    fn comes_back_private_and_without_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        assert!(file.load::<Vec<u32>>().unwrap().is_none());
        fs::write(dir.path().join("x.json.new"), b"left by a crash").unwrap();
        file.save(&vec![1u32, 2]).unwrap();
        assert_eq!(file.load::<Vec<u32>>().unwrap(), Some(vec![1, 2]));
        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        file.delete().unwrap();
        file.delete().unwrap();
        assert!(file.load::<Vec<u32>>().unwrap().is_none());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        file.save(&vec![1u32, 2]).unwrap();
        let good = fs::read(file.path()).unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(file.decode::<Vec<u32>>(&bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(file.decode::<Vec<u32>>(&good[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = file(dir.path()).decode::<u32>(b"afterimage-x 2 whatever\n{}").unwrap_err();
        assert!(matches!(error, StateFileError::UnknownFormat { ref found, .. } if found == "2"), "{error}");
    }

    #[test]
    fn an_endless_file_is_not_read_to_its_end() {
        let error = read_capped(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("larger than"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let file = file(Path::new("."));
            prop_assert!(file.decode::<u32>(&bytes).is_err());
        }
    }
}
