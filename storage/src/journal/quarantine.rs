//! Keeping a damaged segment for people to look at.

use afterimage_protocol::Lsn;

use super::error::JournalError;
use super::segment::{Segment, UNFINISHED};
use crate::io::{Dir, Open};

const COPY_BYTES: u64 = 1 << 20;

/// Copies `segment`, damaged at `at`, to `quarantine-<at>-<segment>`, unless that is there already. Its name is
/// durable after the next sync of the directory.
pub(super) fn copy(dir: &dyn Dir, segment: &Segment, at: Lsn) -> Result<(), JournalError> {
    let name = format!("quarantine-{:016x}-{:016x}", at.0, segment.name.id.0);
    if dir.exists(&name).map_err(JournalError::io("look for", &name))? {
        return Ok(());
    }
    let unfinished = format!("{name}{UNFINISHED}");
    let copied = write(dir, segment, &unfinished);
    if copied.is_err() {
        // What stays is removed when the journal is opened again.
        let _ = dir.remove(&unfinished);
    }
    copied?;
    dir.rename(&unfinished, &name).map_err(JournalError::io("rename", &name))
}

fn write(dir: &dyn Dir, segment: &Segment, name: &str) -> Result<(), JournalError> {
    let copy = dir.open(name, Open::New).map_err(JournalError::io("create", name))?;
    let mut buf = Vec::new();
    let mut at = 0;
    while at < segment.file_bytes {
        buf.resize(COPY_BYTES.min(segment.file_bytes - at) as usize, 0);
        segment.file.read_at(&mut buf, at).map_err(JournalError::io("read", &segment.name.file()))?;
        copy.write_at(&buf, at).map_err(JournalError::io("write", name))?;
        at += buf.len() as u64;
    }
    copy.sync().map_err(JournalError::io("sync", name))
}
