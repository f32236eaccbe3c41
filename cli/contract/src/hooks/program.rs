//! The file of a hook: whether there is one, and whether it may be run.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Event, HookError};

/// Write permission of the group and of everybody else.
const WRITABLE_BY_OTHERS: u32 = 0o022;
const EXECUTABLE_BY_OWNER: u32 = 0o100;
const ROOT: u32 = 0;

/// The program in `dir` for an event; `None` if there is none. It runs with the rights of the daemon, so it is refused
/// if anyone but root or the daemon's user could have written it, or put it there. Blocks.
pub fn find(dir: &Path, event: Event) -> Result<Option<PathBuf>, HookError> {
    let path = dir.join(event.name());
    let Some(found) = look(&path)? else { return Ok(None) };
    let refuse = |path: &Path, why: String| Err(HookError::Refused { path: path.to_owned(), why });
    if !found.is_file() {
        return refuse(
            &path,
            "it is not a regular file: copy the program there, or call it from a script".to_owned(),
        );
    }
    if found.mode() & EXECUTABLE_BY_OWNER == 0 {
        return refuse(&path, format!("it is not executable; run: chmod 755 {}", path.display()));
    }
    let around = std::fs::metadata(dir).map_err(|source| HookError::Look { path: dir.to_owned(), source })?;
    for (path, metadata) in [(path.as_path(), &found), (dir, &around)] {
        if let Some(why) = distrust(path, metadata) {
            return refuse(path, why);
        }
    }
    Ok(Some(path))
}

/// What is there; a link is not followed.
fn look(path: &Path) -> Result<Option<Metadata>, HookError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HookError::Look { path: path.to_owned(), source }),
    }
}

/// Why others could have changed it; `None` if they could not.
fn distrust(path: &Path, metadata: &Metadata) -> Option<String> {
    let user = rustix::process::geteuid().as_raw();
    let shown = path.display();
    if ![ROOT, user].contains(&metadata.uid()) {
        let owner = metadata.uid();
        Some(format!("it belongs to user {owner}, not to root or user {user}; run: chown root {shown}"))
    } else if metadata.permissions().mode() & WRITABLE_BY_OTHERS != 0 {
        Some(format!("others can write to it; run: chmod go-w {shown}"))
    } else {
        None
    }
}
