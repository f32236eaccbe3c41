//! The saved bytes at their places: a sparse image of each volume.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use afterimage_storage::salvage::{Head, Piece};

use super::{Sink, cannot, exists, new_file, remove, sync_dir, volume_names};
use crate::exit::CommandError;

/// The images, in the order of the volumes.
pub(super) struct Images {
    dir: PathBuf,
    files: Vec<(PathBuf, File)>,
}

impl Images {
    /// Makes the images, each of its volume's size and all hole. Where one of them exists none is made.
    pub fn make(dir: &Path, head: &Head) -> Result<Self, CommandError> {
        let names = volume_names(head)?;
        fs::create_dir_all(dir).map_err(|error| cannot("make", dir, &error))?;
        let paths: Vec<PathBuf> = names.iter().map(|name| dir.join(format!("{name}.img"))).collect();
        // A name that is taken, also by a link to nowhere.
        if let Some(path) = paths.iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(exists(path));
        }
        let mut images = Self { dir: dir.to_owned(), files: Vec::new() };
        for (path, (_, size)) in paths.into_iter().zip(&head.volumes) {
            let file = match new_file(&path) {
                Ok(file) => file,
                Err(error) => {
                    Box::new(images).discard();
                    return Err(error);
                }
            };
            let sized = file.set_len(*size).map_err(|error| cannot("extend", &path, &error));
            images.files.push((path, file));
            if let Err(error) = sized {
                Box::new(images).discard();
                return Err(error);
            }
        }
        Ok(images)
    }
}

impl Sink for Images {
    fn take(&mut self, piece: &Piece) -> Result<(), CommandError> {
        // Zeroes are there already.
        let (Some((path, file)), Some(data)) = (self.files.get(piece.range.volume.0 as usize), &piece.data)
        else {
            return Ok(());
        };
        file.write_all_at(data, piece.range.offset).map_err(|error| cannot("write", path, &error))
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        for (path, file) in &self.files {
            file.sync_all().map_err(|error| cannot("sync", path, &error))?;
        }
        sync_dir(&self.dir)
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(path, _)| path.clone()).collect()
    }

    fn discard(self: Box<Self>) {
        for (path, _) in &self.files {
            remove(path);
        }
    }
}
