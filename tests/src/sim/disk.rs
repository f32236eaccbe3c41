//! The disk of one simulated host: deterministic, in memory, and as unkind as the contract of storage's `io` allows.
//!
//! [`SimDisk`] gives out directories and volumes that implement the traits of [`afterimage_storage::io`], and holds
//! the switches of a fault injector: killing a process, cutting the power, failing operations, filling the disk,
//! flipping bits and going back to an old copy. Every file has the path `directory/name`; volumes are in the
//! directory `volumes`.
//!
//! A disk outlives the processes that use it. Each process of the host gets its own [`SimDisk`] by
//! [`SimDisk::process`]; a handle belongs to the incarnation of the process that opened it, and once that is dead it
//! returns errors and changes nothing.

mod fault;
mod handle;
mod image;
mod inode;
mod names;
mod ranges;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use afterimage_storage::io::{Dir, File};

use self::fault::Fault;
pub use self::fault::{Failure, FaultId, On, Times};
use self::handle::{Owner, SimDir, SimFile};
use self::image::PAGE_BYTES;
use self::inode::{Inode, Loss};
use self::state::State;
use crate::sim::Rng;

/// The directory that volumes are in.
pub const VOLUMES: &str = "volumes";

/// One host's disk as one of the host's processes sees it. A clone is the same disk and the same process.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Mutex<State>>,
    process: u32,
}

/// All files of a disk as they were, with what was unsynced then.
#[derive(Debug)]
pub struct Snapshot {
    files: BTreeMap<(String, String), Inode>,
}

impl SimDisk {
    /// An empty disk, seen by process 0. `seed` decides what operations that fail halfway leave behind.
    pub fn new(seed: u64) -> Self {
        Self { shared: Arc::new(Mutex::new(State::new(seed))), process: 0 }
    }

    /// The same disk as another process of the host sees it.
    pub fn process(&self, process: u32) -> Self {
        Self { shared: Arc::clone(&self.shared), process }
    }

    /// The directory `name`, made durably if it does not exist, for this incarnation of the process.
    pub fn dir(&self, name: &str) -> Arc<dyn Dir> {
        self.state().make_dir(name);
        Arc::new(SimDir { owner: self.owner(), name: name.to_owned() })
    }

    /// The volume `name`, made durably if it does not exist, for this incarnation of the process. One of another
    /// size is resized.
    pub fn volume(&self, name: &str, size_bytes: u64) -> Arc<dyn File> {
        let ino = self.state().make_volume(name, size_bytes);
        Arc::new(SimFile { owner: self.owner(), path: format!("{VOLUMES}/{name}").into(), ino: ino.into() })
    }

    // What ends processes.

    /// Kills the process: its handles are dead, the disk and its cache lose nothing.
    pub fn kill(&self) {
        self.state().kill(self.process);
    }

    /// Cuts the power: every process is dead, and of each unsynced page, length and name a version is left that
    /// `rng` chooses: the durable one, any later one, or sectors of several.
    pub fn power_cut(&self, rng: &mut Rng) {
        self.state().power_cut(rng);
    }

    /// Lets the process make `changes` more changes (writes, syncs, names; reads do not count); the next one kills
    /// it halfway, and it is [`SimDisk::dead`]. `None` takes the fuse away.
    pub fn set_fuse(&self, changes: Option<u64>) {
        self.state().process_mut(self.process).fuse = changes;
    }

    /// Whether the process died of its fuse. It stays so until [`SimDisk::kill`] or [`SimDisk::power_cut`], after
    /// which it may open files again.
    pub fn dead(&self) -> bool {
        self.state().process_mut(self.process).dead
    }

    /// Changes that the process attempted since it started: what a fuse counts.
    pub fn changes(&self) -> u64 {
        self.state().process_mut(self.process).changes
    }

    /// Count of syncs of files that failed, each of which may have lost what was not synced.
    pub fn failed_syncs(&self) -> u64 {
        self.state().failed_syncs
    }

    // Faults.

    /// From now on operations `on` files whose path matches `pattern` (`*` for any run of characters; a directory's
    /// own path ends in `/`) fail.
    ///
    /// A write that fails may have changed a part of its range, up to a sector. After a failed sync a part of what
    /// was unsynced may be durable, and the rest may count as clean, so that a second sync succeeds without it.
    pub fn fail(&self, pattern: &str, on: On, failure: Failure, times: Times) -> FaultId {
        self.fail_range(pattern, on, 0..u64::MAX, failure, times)
    }

    /// Like [`SimDisk::fail`], for operations that touch a byte of `bytes` only.
    pub fn fail_range(
        &self,
        pattern: &str,
        on: On,
        bytes: Range<u64>,
        failure: Failure,
        times: Times,
    ) -> FaultId {
        let mut state = self.state();
        let id = state.next_fault();
        state.faults.push(Fault { id, pattern: pattern.to_owned(), on, bytes, failure, times });
        id
    }

    /// Switches one fault off.
    pub fn clear_fault(&self, id: FaultId) {
        self.state().faults.retain(|fault| fault.id != id);
    }

    /// Switches all faults off; the fuse and the space stay.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Leaves `bytes` free for all files together (volumes need none); `None` for as much as they want.
    pub fn set_free(&self, bytes: Option<u64>) {
        let mut state = self.state();
        state.capacity_pages = bytes.map(|bytes| state.used_pages() + fault::whole_pages(bytes));
    }

    /// Bytes that all files together may still take, `None` for as much as they want.
    pub fn free(&self) -> Option<u64> {
        self.state().free_pages().map(|pages| pages * PAGE_BYTES)
    }

    // What a fault injector looks at and damages. None of it counts as an operation or fails.

    /// The paths of all files and volumes, in order.
    pub fn files(&self) -> Vec<String> {
        self.state().files()
    }

    /// Bytes in a file.
    pub fn file_len(&self, path: &str) -> Option<u64> {
        self.state().inode_at(path).map(|inode| inode.len())
    }

    /// Where a file has content, in bytes.
    pub fn file_data(&self, path: &str) -> Vec<Range<u64>> {
        let mut state = self.state();
        let Some(inode) = state.inode_at(path) else { return Vec::new() };
        let mut at = 0;
        let runs = std::iter::from_fn(|| {
            let (start, end) = inode.next_data(at)?;
            at = end;
            Some(start..end)
        });
        runs.collect()
    }

    /// Fills `buf` with what programs see from `offset` on, 0 past the end; false when there is no such file.
    pub fn peek(&self, path: &str, buf: &mut [u8], offset: u64) -> bool {
        let mut state = self.state();
        let Some(inode) = state.inode_at(path) else { return false };
        inode.read(buf, offset);
        true
    }

    /// Count of pages that a power cut would choose for.
    pub fn unsynced_pages(&self, path: &str) -> usize {
        self.state().inode_at(path).map_or(0, Inode::dirty_pages)
    }

    /// Flips bit `bit` (from 0) of a byte, on the disk and in its cache; false when there is no such byte.
    pub fn flip(&self, path: &str, byte: u64, bit: u8) -> bool {
        let mut state = self.state();
        match state.inode_at(path) {
            Some(inode) if byte < inode.len() => inode.flip(byte, bit),
            _ => return false,
        }
        state.trace.event(b'F', path, byte, u64::from(bit), 0);
        true
    }

    /// Ends a file at `len`, durably, as if the rest had never been written; false when there is no such file.
    pub fn truncate(&self, path: &str, len: u64) -> bool {
        let mut state = self.state();
        match state.inode_at(path) {
            Some(inode) if !inode.device => inode.cut_to(len),
            _ => return false,
        }
        state.trace.event(b'T', path, len, 0, 0);
        true
    }

    /// Takes the files whose path matches `pattern` away, durably.
    pub fn lose(&self, pattern: &str) {
        self.state().lose(pattern);
    }

    /// Lets two volumes change their names: the wrong device behind each.
    pub fn swap_volumes(&self, a: &str, b: &str) {
        self.state().swap(VOLUMES, a, b);
    }

    // Copies.

    /// A copy of all files as they are now. It shares pages with the disk, so that it costs little.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { files: self.state().copy_files() }
    }

    /// Makes the files whose path matches `pattern` those of `snapshot` (also by taking away what it does not
    /// have), their names durably, their bytes as durable as they were. Every process is dead afterwards.
    pub fn restore(&self, snapshot: &Snapshot, pattern: &str) {
        self.state().restore(&snapshot.files, pattern);
    }

    /// A digest of all operations so far, their order, arguments, bytes and outcomes.
    pub fn trace(&self) -> u64 {
        self.state().trace.value()
    }

    fn owner(&self) -> Owner {
        let incarnation = self.state().process_mut(self.process).incarnation;
        Owner { shared: Arc::clone(&self.shared), process: self.process, incarnation }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

/// Whether an operation failed because its process is dead, not because of the disk.
pub fn is_dead(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<fault::Dead>())
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
