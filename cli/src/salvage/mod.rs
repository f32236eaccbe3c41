//! `afterimage salvage`: what reinstatements saved on this host. Reads files only: no daemon is asked.
//!
//! | module | noun |
//! |---|---|
//! | `found` | a salvage file as it was found: what it is about, and whether it is whole |
//! | `image`, `blocks` | the two shapes of an export |
//! | `render` | both commands' output, for people and programs |

mod blocks;
mod found;
mod image;
pub mod render;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use afterimage_contract::config::Config;
use afterimage_storage::disk::RealFile;
use afterimage_storage::salvage::{Head, Piece, SUFFIX, Salvage, SalvageError, UNFINISHED_SUFFIX};

use crate::args::{SalvageExportArgs, SalvageListArgs};
use crate::exit::CommandError;
use crate::host;
use crate::progress::{Progress, Work, interrupted};
use crate::text::emit;

pub use found::{Found, SavedVolume, Wholeness};

/// Version of the JSON that `salvage list --json` and `salvage export --json` print.
pub const JSON_VERSION: u32 = 1;
/// Below the state directory: a directory for each group, and in that one for what was saved.
pub(crate) const GROUPS_DIR: &str = "groups";
pub(crate) const SALVAGE_DIR: &str = "salvage";

/// An export that takes less is not shown.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// What an export has made.
#[derive(Debug, PartialEq, Eq)]
pub struct Exported {
    /// Files that were made.
    pub files: Vec<PathBuf>,
    /// Pieces of volumes in them.
    pub pieces: u64,
    /// Bytes of volumes that the pieces cover.
    pub bytes: u64,
    /// What is wrong with the salvage file behind that; `None` if all of it was exported.
    pub damage: Option<String>,
}

/// Where pieces go.
trait Sink {
    /// Takes one piece.
    fn take(&mut self, piece: &Piece) -> Result<(), CommandError>;
    /// All of it and its names are on stable storage on return.
    fn finish(&mut self) -> Result<(), CommandError>;
    /// The files that were made.
    fn files(&self) -> Vec<PathBuf>;
    /// Removes what was made.
    fn discard(self: Box<Self>);
}

/// Lists the salvage files of this host.
pub fn list(config: &Path, args: &SalvageListArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    let found = find(&config, args.group.as_deref())?;
    if args.json { emit(&render::list_json(&found)) } else { emit(&render::list(&found)) }
}

/// Takes the data out of a salvage file. Interrupted, or when it fails, it leaves nothing behind.
pub async fn export(args: &SalvageExportArgs) -> Result<(), CommandError> {
    let stop = Arc::new(AtomicBool::new(false));
    let work = tokio::task::spawn_blocking({
        let (args, stop) = (args.clone(), stop.clone());
        move || export_until(&args, &stop)
    });
    let mut work = std::pin::pin!(work);
    let done = tokio::select! {
        biased;
        done = &mut work => done,
        () = interrupted() => {
            stop.store(true, Ordering::Relaxed);
            work.await
        }
    };
    done.unwrap_or_else(|panic| Err(CommandError::failed(format!("the export ended badly: {panic}"))))
}

/// Exports unless `stop` is set before it is done.
fn export_until(args: &SalvageExportArgs, stop: &AtomicBool) -> Result<(), CommandError> {
    let salvage = open(&args.file).map_err(|error| not_exported(&error))?;
    let sink: Box<dyn Sink> = match (&args.to.image, &args.to.blocks) {
        (Some(dir), _) => Box::new(image::Images::make(dir, &salvage.head)?),
        (_, Some(out)) => Box::new(blocks::Blocks::make(out, &salvage.head)?),
        // The command line has one of them.
        _ => return Err(CommandError::wrong_use("say where to: --image DIR or --blocks OUT")),
    };
    let size = fs::metadata(&args.file).map(|found| found.len()).ok();
    let name = format!("export of {}", args.file.display());
    let mut progress = Progress::after(SHOWN_AFTER, false);
    let shown = |done_bytes| {
        let done_bytes = Some(done_bytes);
        progress.show(&Work { done_bytes, total_bytes: size, ..Work::named(name.clone()) });
    };
    let done = pour(salvage, sink, stop, shown)?;
    progress.end();
    if args.json {
        emit(&render::export_json(&done))?
    } else {
        emit(&render::export(&done))?
    }
    match done.damage {
        None => Ok(()),
        Some(damage) => Err(CommandError::failed(format!(
            "{damage}\nonly what was whole before that was exported; it is not known what is missing"
        ))),
    }
}

fn not_exported(error: &SalvageError) -> CommandError {
    CommandError::failed(format!("{}; nothing was exported", found::with_cause(error)))
}

/// Moves the pieces one by one: one of them is in memory at a time. `shown` hears how many bytes of the file were moved.
fn pour(
    salvage: Salvage,
    mut sink: Box<dyn Sink>,
    stop: &AtomicBool,
    shown: impl FnMut(u64),
) -> Result<Exported, CommandError> {
    match pour_into(salvage, &mut *sink, stop, shown) {
        Ok(done) => Ok(done),
        Err(mut error) => {
            sink.discard();
            error.message += "; what was made so far was removed";
            Err(error)
        }
    }
}

fn pour_into(
    salvage: Salvage,
    sink: &mut dyn Sink,
    stop: &AtomicBool,
    mut shown: impl FnMut(u64),
) -> Result<Exported, CommandError> {
    let (mut pieces, mut bytes, mut damage, mut moved) = (0, 0, None, 0);
    for piece in salvage {
        if stop.load(Ordering::Relaxed) {
            return Err(CommandError::failed("interrupted: nothing was exported"));
        }
        match piece {
            Ok(piece) => {
                sink.take(&piece)?;
                pieces += 1;
                bytes += piece.range.length;
                moved += piece.data.as_ref().map_or(0, |data| data.len() as u64);
                shown(moved);
            }
            Err(error) => damage = Some(found::with_cause(&error)),
        }
    }
    sink.finish()?;
    Ok(Exported { files: sink.files(), pieces, bytes, damage })
}

/// Opens a salvage file for reading only.
fn open(path: &Path) -> Result<Salvage, SalvageError> {
    let name = path.display().to_string();
    let file = File::open(path).and_then(RealFile::new);
    let file = file.map_err(|source| SalvageError::Io { action: "open", name: name.clone(), source })?;
    Salvage::read_from(Arc::new(file), &name)
}

/// The salvage files of one group, or of all that have a directory here: by group, the oldest first.
fn find(config: &Config, group: Option<&str>) -> Result<Vec<Found>, CommandError> {
    let groups_dir = config.node.state_dir.join(GROUPS_DIR);
    let groups = match group {
        Some(group) if plain(group) && groups_dir.join(group).is_dir() => vec![group.to_owned()],
        // One that has never run here is known all the same.
        Some(group) => return host::ensure_group(config, group).map(|()| Vec::new()),
        None => names(&groups_dir)?,
    };
    let mut found = Vec::new();
    for group in groups {
        let dir = groups_dir.join(&group).join(SALVAGE_DIR);
        match names(&dir) {
            Ok(names) => {
                let unfinished = format!("{SUFFIX}{UNFINISHED_SUFFIX}");
                let ours = names.iter().filter(|n| n.ends_with(SUFFIX) || n.ends_with(&unfinished));
                found.extend(ours.map(|name| Found::look(&group, &dir.join(name))));
            }
            // The other groups are listed all the same.
            Err(error) => found.push(Found::unreadable(&group, &dir, error.message)),
        }
    }
    Ok(found)
}

/// The names in a directory in their order; none if it does not exist.
fn names(dir: &Path) -> Result<Vec<String>, CommandError> {
    let failed = |error| CommandError::failed(format!("cannot list {}: {error}", dir.display()));
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // No file of this product has another kind of name.
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Whether a name can be that of one file in a directory.
fn plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/') && !name.contains(char::is_control)
}

/// The names of a file's volumes, which become names of files or parts of lines.
fn volume_names(head: &Head) -> Result<Vec<&str>, CommandError> {
    let names: Vec<&str> = head.volumes.iter().map(|(name, _)| name.as_str()).collect();
    match names.iter().find(|name| !plain(name)) {
        Some(name) => {
            Err(CommandError::failed(format!("the salvage file names a volume {name:?}, which is no name")))
        }
        None => Ok(names),
    }
}

/// Makes a new file; one that exists is left alone.
fn new_file(path: &Path) -> Result<File, CommandError> {
    File::create_new(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => exists(path),
        _ => CommandError::failed(format!("cannot make {}: {error}", path.display())),
    })
}

/// Removes a file that was made here and is not whole. One that cannot be removed is named.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        eprintln!("afterimage: {} is not whole and cannot be removed: {error}", path.display());
    }
}

fn exists(path: &Path) -> CommandError {
    CommandError::failed(format!(
        "{} exists already, and is left as it is; nothing was exported: name another place",
        path.display()
    ))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> CommandError {
    CommandError::failed(format!("cannot {what} {}: {error}", path.display()))
}

/// The names in a directory are on stable storage on return.
fn sync_dir(dir: &Path) -> Result<(), CommandError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| cannot("sync", dir, &error))
}

#[cfg(test)]
mod tests;
