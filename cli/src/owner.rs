//! Becoming the user of the services, for commands that write into the state directory themselves.
//!
//! The services run as a user of their own, and what root would write there they could not read.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::exit::CommandError;

/// Where this program is found again, whatever has become of its file.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Starts this command again as the owner of `state_dir` if root runs it and the owner is another; returns in every other
/// case, also where there is no such directory yet.
pub fn become_owner(state_dir: &Path) -> Result<(), CommandError> {
    let is_root = rustix::process::geteuid().is_root();
    let Ok(found) = std::fs::metadata(state_dir) else { return Ok(()) };
    if !is_root || found.uid() == 0 {
        return Ok(());
    }
    let mut again = Command::new(THIS_PROGRAM);
    let mut arguments = std::env::args_os();
    again.arg0(arguments.next().unwrap_or_else(|| "afterimage".into())).args(arguments);
    // It returns only if it fails.
    let error = again.gid(found.gid()).uid(found.uid()).exec();
    Err(CommandError::failed(format!(
        "cannot go on as user {}, who owns {}: {error}; run this as that user",
        found.uid(),
        state_dir.display()
    )))
}
