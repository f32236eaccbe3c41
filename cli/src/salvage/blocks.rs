//! The saved ranges as a list, and their bytes one behind the other (docs/salvage.md, "Block list").

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use afterimage_storage::salvage::{Head, Piece};

use super::{Sink, cannot, exists, new_file, remove, sync_dir, volume_names};
use crate::exit::CommandError;

/// The list, in its directory.
const LIST: &str = "blocks.tsv";
/// The bytes, beside it.
const DATA: &str = "data";
const FIRST_LINE: &str = "# afterimage salvage blocks 1";

/// A list under way, and the bytes that it points to.
pub(super) struct Blocks {
    dir: PathBuf,
    list: BufWriter<File>,
    data: File,
    at: u64,
    names: Vec<String>,
}

impl Blocks {
    /// Makes the directory, which may not exist, and both files.
    pub fn make(dir: &Path, head: &Head) -> Result<Self, CommandError> {
        let names = volume_names(head)?.into_iter().map(str::to_owned).collect();
        fs::create_dir(dir).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(dir),
            _ => cannot("make", dir, &error),
        })?;
        let list = BufWriter::new(new_file(&dir.join(LIST))?);
        let data = new_file(&dir.join(DATA))?;
        let mut blocks = Self { dir: dir.to_owned(), list, data, at: 0, names };
        blocks.line(FIRST_LINE)?;
        for (name, size) in &head.volumes {
            blocks.line(&format!("# volume\t{name}\t{size}"))?;
        }
        Ok(blocks)
    }

    fn paths(&self) -> [PathBuf; 2] {
        [LIST, DATA].map(|name| self.dir.join(name))
    }

    fn line(&mut self, line: &str) -> Result<(), CommandError> {
        writeln!(self.list, "{line}").map_err(|error| cannot("write", &self.dir.join(LIST), &error))
    }
}

impl Sink for Blocks {
    fn take(&mut self, piece: &Piece) -> Result<(), CommandError> {
        let range = piece.range;
        let name = self.names.get(range.volume.0 as usize).cloned().unwrap_or_default();
        let at = match &piece.data {
            Some(data) => {
                self.data.write_all(data).map_err(|error| cannot("write", &self.dir.join(DATA), &error))?;
                let at = self.at;
                self.at += range.length;
                at.to_string()
            }
            None => "-".to_owned(),
        };
        self.line(&format!("{name}\t{}\t{}\t{at}", range.offset, range.length))
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        let [list, data] = self.paths();
        let flushed = self.list.flush().and_then(|()| self.list.get_ref().sync_all());
        flushed.map_err(|error| cannot("write", &list, &error))?;
        self.data.sync_all().map_err(|error| cannot("sync", &data, &error))?;
        sync_dir(&self.dir)
    }

    fn files(&self) -> Vec<PathBuf> {
        self.paths().into()
    }

    fn discard(self: Box<Self>) {
        self.paths().iter().for_each(|path| remove(path));
        // It was made here; what somebody has put there since keeps it.
        let _ = std::fs::remove_dir(&self.dir);
    }
}
