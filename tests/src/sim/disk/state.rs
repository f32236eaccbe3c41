//! The whole disk behind one lock: its files, its processes, its faults and its trace.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::fault::{Attempt, Failure, Fault, FaultId, On, Process, Verdict, dead, matches};
use super::names::{Ino, Names};
use super::{Inode, Loss, Rng, VOLUMES};

/// Chance that an operation lets the disk look at what was stored in mappings: a version that a power cut may choose.
const MAPPING_SEEN: f64 = 0.25;

pub(super) struct State {
    pub(super) rng: Rng,
    pub(super) dirs: BTreeMap<String, Names>,
    pub(super) inodes: BTreeMap<Ino, Inode>,
    pub(super) faults: Vec<Fault>,
    /// Pages that all files may take together.
    pub(super) capacity_pages: Option<u64>,
    pub(super) trace: Trace,
    pub(super) failed_syncs: u64,
    processes: BTreeMap<u32, Process>,
    last_id: u64,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            dirs: BTreeMap::new(),
            inodes: BTreeMap::new(),
            faults: Vec::new(),
            capacity_pages: None,
            trace: Trace::default(),
            failed_syncs: 0,
            processes: BTreeMap::new(),
            last_id: 0,
        }
    }

    pub(super) fn process_mut(&mut self, process: u32) -> &mut Process {
        self.processes.entry(process).or_default()
    }

    /// Decides what becomes of an operation and notes it; an error when the process is dead already.
    pub(super) fn begin(
        &mut self,
        (process, incarnation): (u32, u64),
        attempt: &Attempt<'_>,
        data: &[u8],
    ) -> io::Result<Verdict> {
        let caller = self.process_mut(process);
        if caller.dead || caller.incarnation != incarnation {
            return Err(dead());
        }
        let mut fatal = false;
        if attempt.on != On::Read {
            caller.changes += 1;
            if let Some(left) = &mut caller.fuse {
                fatal = *left == 0;
                *left = left.saturating_sub(1);
            }
        }
        self.see_mappings();
        if fatal {
            self.process_mut(process).dead = true;
            self.detach(process);
        }
        let failure =
            self.faults.iter_mut().find_map(|fault| fault.strikes(attempt).then_some(fault.failure));
        let outcome = match failure {
            _ if fatal => b'!',
            Some(_) => b'-',
            None => b'+',
        };
        let data = if data.is_empty() { 0 } else { xxh3_64(data) };
        let length = attempt.bytes.end - attempt.bytes.start;
        self.trace.event(outcome ^ (attempt.on as u8) << 3, attempt.path, attempt.bytes.start, length, data);
        Ok(match failure {
            _ if fatal => Verdict::Die,
            Some(failure) => Verdict::Fail(failure.error()),
            None => Verdict::Go,
        })
    }

    /// Checks that `pages` more pages are free.
    pub(super) fn check_space(&self, pages: u64) -> io::Result<()> {
        match self.free_pages() {
            Some(free) if pages > free => Err(Failure::NoSpace.error()),
            _ => Ok(()),
        }
    }

    pub(super) fn free_pages(&self) -> Option<u64> {
        self.capacity_pages.map(|capacity| capacity.saturating_sub(self.used_pages()))
    }

    pub(super) fn used_pages(&self) -> u64 {
        let named = self.dirs.values().flat_map(Names::iter);
        named.filter_map(|(_, ino)| self.inodes.get(&ino)).map(Inode::space).sum()
    }

    pub(super) fn inode(&mut self, ino: Ino) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(dead)
    }

    pub(super) fn inode_at(&mut self, path: &str) -> Option<&mut Inode> {
        let (dir, name) = path.split_once('/')?;
        let ino = self.dirs.get(dir)?.get(name)?;
        self.inodes.get_mut(&ino)
    }

    pub(super) fn names(&mut self, dir: &str) -> &mut Names {
        self.dirs.entry(dir.to_owned()).or_default()
    }

    pub(super) fn make_dir(&mut self, name: &str) {
        self.names(name);
    }

    pub(super) fn make_volume(&mut self, name: &str, size_bytes: u64) -> Ino {
        if let Some(ino) = self.names(VOLUMES).get(name) {
            if let Some(inode) = self.inodes.get_mut(&ino)
                && inode.len() != size_bytes
            {
                inode.resize_device(size_bytes);
            }
            return ino;
        }
        let ino = self.add_inode(Inode::device(size_bytes));
        self.names(VOLUMES).settle(name, Some(ino));
        ino
    }

    pub(super) fn add_inode(&mut self, inode: Inode) -> Ino {
        self.last_id += 1;
        self.inodes.insert(self.last_id, inode);
        self.last_id
    }

    pub(super) fn next_fault(&mut self) -> FaultId {
        self.last_id += 1;
        FaultId(self.last_id)
    }

    pub(super) fn kill(&mut self, process: u32) {
        self.trace.event(b'K', "", u64::from(process), 0, 0);
        self.detach(process);
        self.end(process);
        let Self { inodes, rng, .. } = self;
        for inode in inodes.values_mut() {
            inode.evict(rng);
        }
        self.drop_unlinked();
    }

    pub(super) fn power_cut(&mut self, rng: &mut Rng) {
        self.trace.event(b'P', "", 0, 0, 0);
        self.end_all();
        // Half of the cuts treat all files alike, so that every file is lost as a whole, and kept as a whole, often.
        let common = rng.coin().then(|| Loss::choose(rng));
        for names in self.dirs.values_mut() {
            names.cut(common.unwrap_or_else(|| Loss::choose(rng)), rng);
        }
        for inode in self.inodes.values_mut() {
            inode.cut(common.unwrap_or_else(|| Loss::choose(rng)), rng);
        }
        self.drop_unlinked();
    }

    /// Drops files that have no name and that nobody has open.
    pub(super) fn drop_unlinked(&mut self) {
        let Self { inodes, dirs, .. } = self;
        inodes.retain(|&ino, inode| {
            Arc::strong_count(&inode.token) > 1 || dirs.values().any(|names| names.may_hold(ino))
        });
    }

    pub(super) fn files(&self) -> Vec<String> {
        let paths = self
            .dirs
            .iter()
            .flat_map(|(dir, names)| names.iter().map(move |(name, _)| format!("{dir}/{name}")));
        paths.collect()
    }

    pub(super) fn lose(&mut self, pattern: &str) {
        for path in self.files() {
            if let Some((dir, name)) = path.split_once('/')
                && matches(pattern, &path)
            {
                self.trace.event(b'L', &path, 0, 0, 0);
                self.names(dir).settle(name, None);
            }
        }
        self.drop_unlinked();
    }

    pub(super) fn swap(&mut self, dir: &str, a: &str, b: &str) {
        let names = self.names(dir);
        let (was_a, was_b) = (names.get(a), names.get(b));
        names.settle(a, was_b);
        names.settle(b, was_a);
        self.trace.event(b'S', a, 0, 0, xxh3_64(b.as_bytes()));
    }

    pub(super) fn copy_files(&mut self) -> BTreeMap<(String, String), Inode> {
        let Self { dirs, inodes, .. } = self;
        let mut files = BTreeMap::new();
        for (dir, names) in dirs.iter() {
            for (name, ino) in names.iter() {
                if let Some(inode) = inodes.get_mut(&ino) {
                    files.insert((dir.clone(), name.to_owned()), inode.copy());
                }
            }
        }
        files
    }

    pub(super) fn restore(&mut self, files: &BTreeMap<(String, String), Inode>, pattern: &str) {
        self.trace.event(b'R', pattern, 0, 0, 0);
        self.end_all();
        self.lose(pattern);
        for ((dir, name), inode) in files {
            if matches(pattern, &format!("{dir}/{name}")) {
                let ino = self.add_inode(inode.duplicate());
                self.names(dir).settle(name, Some(ino));
            }
        }
    }

    fn end_all(&mut self) {
        let processes: Vec<u32> = self.processes.keys().copied().collect();
        for process in processes {
            self.detach(process);
            self.end(process);
        }
    }

    fn end(&mut self, process: u32) {
        let ended = self.process_mut(process);
        *ended = Process { incarnation: ended.incarnation + 1, ..Process::default() };
    }

    /// Takes its mappings away from a process.
    fn detach(&mut self, process: u32) {
        for inode in self.inodes.values_mut() {
            if inode.is_mapped() && inode.mapped_by == process {
                inode.detach();
            }
        }
    }

    fn see_mappings(&mut self) {
        let Self { inodes, rng, trace, .. } = self;
        for inode in inodes.values_mut() {
            if inode.is_mapped() && rng.chance(MAPPING_SEEN) {
                trace.fold(inode.pull());
            }
        }
    }
}

/// A running digest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trace(u64);

impl Trace {
    pub(super) fn event(&mut self, what: u8, path: &str, a: u64, b: u64, data: u64) {
        self.fold(u64::from(what));
        self.fold(xxh3_64(path.as_bytes()));
        self.fold(a);
        self.fold(b);
        self.fold(data);
    }

    pub(super) fn fold(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }

    pub(super) fn value(self) -> u64 {
        self.0
    }
}
