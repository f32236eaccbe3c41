//! A directory in memory with a page cache and a stable storage behind it.
//!
//! A power cut keeps any subset of the sectors and of the name changes that were not synced. After a failed sync, what
//! it should have written is visible until the power cut and never gets to stable storage by a later sync.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use afterimage_storage::io::{Dir, File, Mapping, Open};

use crate::frames::Random;

const SECTOR: u64 = 512;

/// Which operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The n-th from now on, once.
    Once(u64, io::ErrorKind),
    /// The n-th from now on and all after it: the process was killed there.
    From(u64),
    /// The n-th sync (of a file or of the directory) from now on, once.
    Sync(u64),
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Len(u64),
}

#[derive(Default)]
struct Inode {
    visible: Vec<u8>,
    stable: Vec<u8>,
    /// What the next sync brings to stable storage.
    pending: Vec<Change>,
}

#[derive(Default)]
struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    stable_names: BTreeMap<String, usize>,
    /// Each is applied as one.
    pending_names: Vec<Vec<(String, Option<usize>)>>,
    fault: Option<Fault>,
    operations: u64,
    capacity: Option<u64>,
    /// Of each vectored write, its offset, and address and length of each buffer.
    vectored: Vec<(u64, Vec<(usize, usize)>)>,
}

/// The disk; clones are the same one.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<World>>);

struct Handle {
    disk: Disk,
    inode: usize,
}

impl Disk {
    pub fn dir(&self) -> Arc<dyn Dir> {
        Arc::new(self.clone())
    }

    /// A file of `len` zeroes that is durable already.
    pub fn volume(&self, len: u64) -> Arc<dyn File> {
        let mut w = self.world();
        let bytes = vec![0; len as usize];
        w.inodes.push(Inode { visible: bytes.clone(), stable: bytes, pending: Vec::new() });
        Arc::new(Handle { disk: self.clone(), inode: w.inodes.len() - 1 })
    }

    pub fn fail(&self, fault: Fault) {
        self.world().fault = Some(fault);
    }

    /// Operations so far that could have failed.
    pub fn operations(&self) -> u64 {
        self.world().operations
    }

    /// The vectored writes since this was last asked: of each its offset, and address and length of each buffer.
    pub fn take_vectored(&self) -> Vec<(u64, Vec<(usize, usize)>)> {
        std::mem::take(&mut self.world().vectored)
    }

    /// Most bytes of all files.
    pub fn limit(&self, capacity: Option<u64>) {
        self.world().capacity = capacity;
    }

    /// Cuts the power: of what was not synced, about `keep` of 100 sectors and name changes survive.
    pub fn power_cut(&self, random: &mut Random, keep: u64) {
        let mut w = self.world();
        let w = &mut *w;
        w.fault = None;
        for inode in &mut w.inodes {
            for change in std::mem::take(&mut inode.pending) {
                apply_some(&mut inode.stable, change, random, keep);
            }
            inode.visible = inode.stable.clone();
        }
        for change in std::mem::take(&mut w.pending_names) {
            if random.below(100) < keep {
                apply_names(&mut w.stable_names, &change);
            }
        }
        w.names = w.stable_names.clone();
    }

    pub fn names(&self) -> Vec<String> {
        self.world().names.keys().cloned().collect()
    }

    /// Names that begin with `prefix`, in order.
    pub fn names_with(&self, prefix: &str) -> Vec<String> {
        self.names().into_iter().filter(|n| n.starts_with(prefix)).collect()
    }

    pub fn bytes_of(&self, name: &str) -> Vec<u8> {
        let w = self.world();
        w.inodes[w.names[name]].visible.clone()
    }

    /// Changes a byte behind everyone's back.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        let mut w = self.world();
        let inode = w.names[name];
        let inode = &mut w.inodes[inode];
        inode.visible[offset] ^= mask;
        if let Some(b) = inode.stable.get_mut(offset) {
            *b ^= mask;
        }
    }

    /// Removes a name behind everyone's back.
    pub fn lose(&self, name: &str) {
        let mut w = self.world();
        w.names.remove(name);
        w.stable_names.remove(name);
    }

    /// A copy that shares nothing.
    pub fn copy(&self) -> Self {
        let w = self.world();
        let inodes = w.inodes.iter().map(|i| Inode {
            visible: i.visible.clone(),
            stable: i.stable.clone(),
            pending: i.pending.clone(),
        });
        Self(Arc::new(Mutex::new(World {
            inodes: inodes.collect(),
            names: w.names.clone(),
            stable_names: w.stable_names.clone(),
            pending_names: w.pending_names.clone(),
            fault: None,
            operations: 0,
            capacity: w.capacity,
            vectored: Vec::new(),
        })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

impl World {
    fn step(&mut self, sync: bool) -> io::Result<()> {
        self.operations += 1;
        let (fault, failure) = match self.fault.unwrap_or(Fault::None) {
            Fault::None => (Fault::None, None),
            Fault::Once(0, kind) => (Fault::None, Some(kind)),
            Fault::Once(n, kind) => (Fault::Once(n - 1, kind), None),
            Fault::From(0) => (Fault::From(0), Some(io::ErrorKind::Other)),
            Fault::From(n) => (Fault::From(n - 1), None),
            Fault::Sync(0) if sync => (Fault::None, Some(io::ErrorKind::Other)),
            Fault::Sync(n) if sync => (Fault::Sync(n - 1), None),
            other => (other, None),
        };
        self.fault = Some(fault);
        failure.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn used(&self) -> u64 {
        self.names.values().map(|i| self.inodes[*i].visible.len() as u64).sum()
    }

    fn room_for(&self, inode: usize, len: u64) -> io::Result<()> {
        let grown = len.saturating_sub(self.inodes[inode].visible.len() as u64);
        match self.capacity {
            Some(capacity) if grown > 0 && self.used() + grown > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn change(&mut self, inode: usize, change: Change) {
        let inode = &mut self.inodes[inode];
        apply_whole(&mut inode.visible, &change);
        inode.pending.push(change);
    }

    fn rename_all(&mut self, change: Vec<(String, Option<usize>)>) {
        apply_names(&mut self.names, &change);
        self.pending_names.push(change);
    }
}

fn apply_names(names: &mut BTreeMap<String, usize>, change: &[(String, Option<usize>)]) {
    for (name, inode) in change {
        match inode {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

fn apply_whole(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Len(len) => bytes.resize(*len as usize, 0),
        Change::Write { offset, bytes: new } => {
            let (from, to) = (*offset as usize, *offset as usize + new.len());
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            bytes[from..to].copy_from_slice(new);
        }
    }
}

fn apply_some(bytes: &mut Vec<u8>, change: Change, random: &mut Random, keep: u64) {
    match change {
        Change::Len(_) if random.below(100) < keep => apply_whole(bytes, &change),
        Change::Len(_) => {}
        Change::Write { offset, bytes: new } => {
            let mut at = 0;
            while at < new.len() as u64 {
                let sector = (SECTOR - (offset + at) % SECTOR).min(new.len() as u64 - at);
                if random.below(100) < keep {
                    let kept = if random.below(10) == 0 { random.below(sector + 1) } else { sector };
                    let piece = new[at as usize..(at + kept) as usize].to_vec();
                    if !piece.is_empty() {
                        apply_whole(bytes, &Change::Write { offset: offset + at, bytes: piece });
                    }
                }
                at += sector;
            }
        }
    }
}

impl File for Handle {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let w = self.disk.world();
        let bytes = &w.inodes[self.inode].visible;
        let from = offset as usize;
        let Some(found) = from.checked_add(buf.len()).and_then(|to| bytes.get(from..to)) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        buf.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut w = self.disk.world();
        let outcome = w.step(false).and_then(|()| w.room_for(self.inode, offset + buf.len() as u64));
        // A write that fails has written a part.
        let len = if outcome.is_ok() { buf.len() } else { buf.len() * 2 / 3 };
        if outcome.is_ok() || w.room_for(self.inode, offset + len as u64).is_ok() {
            w.change(self.inode, Change::Write { offset, bytes: buf[..len].to_vec() });
        }
        outcome
    }

    fn write_vectored_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        let buffers = bufs.iter().map(|buf| (buf.as_ptr() as usize, buf.len())).collect();
        self.disk.world().vectored.push((offset, buffers));
        self.write_at(&bufs.concat(), offset)
    }

    fn sync(&self) -> io::Result<()> {
        let mut w = self.disk.world();
        let outcome = w.step(true);
        let inode = &mut w.inodes[self.inode];
        for change in std::mem::take(&mut inode.pending) {
            if outcome.is_ok() {
                apply_whole(&mut inode.stable, &change);
            }
        }
        outcome
    }

    fn forget_cached(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.world().inodes[self.inode].visible.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut w = self.disk.world();
        w.step(false)?;
        w.room_for(self.inode, len)?;
        if (w.inodes[self.inode].visible.len() as u64) < len {
            w.change(self.inode, Change::Len(len));
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut w = self.disk.world();
        w.step(false)?;
        w.room_for(self.inode, len)?;
        w.change(self.inode, Change::Len(len));
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, _punch: bool) -> io::Result<()> {
        let mut w = self.disk.world();
        w.step(false)?;
        w.change(self.inode, Change::Write { offset, bytes: vec![0; len as usize] });
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let len = self.len()?;
        Ok((offset < len).then_some((offset, len)))
    }
}

impl Dir for Disk {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn File>> {
        let mut w = self.world();
        w.step(false)?;
        let inode = match (w.names.get(name), how) {
            (Some(_), Open::New) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => *inode,
            (None, Open::Existing) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                w.inodes.push(Inode::default());
                let inode = w.inodes.len() - 1;
                w.rename_all(vec![(name.to_owned(), Some(inode))]);
                inode
            }
        };
        Ok(Arc::new(Handle { disk: self.clone(), inode }))
    }

    fn map(&self, _name: &str, _words: usize) -> io::Result<Box<dyn Mapping>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut w = self.world();
        w.step(false)?;
        Ok(w.names.keys().rev().cloned().collect())
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.world().names.contains_key(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut w = self.world();
        w.step(false)?;
        if !w.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        w.rename_all(vec![(name.to_owned(), None)]);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut w = self.world();
        w.step(false)?;
        let inode = *w.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        w.rename_all(vec![(from.to_owned(), None), (to.to_owned(), Some(inode))]);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut w = self.world();
        w.step(true)?;
        w.pending_names.clear();
        w.stable_names = w.names.clone();
        Ok(())
    }
}
