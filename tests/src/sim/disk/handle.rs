//! What storage code holds: a directory, a file or a mapping, opened by one incarnation of one process.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};

use afterimage_storage::io::{Dir, File, Mapping, Open};

use super::fault::{Attempt, Failure, On, Verdict, dead};
use super::image::{PAGE_BYTES, SECTOR_BYTES, pages_of};
use super::inode::Inode;
use super::lock;
use super::names::Ino;
use super::state::State;
use crate::sim::Rng;

/// Who opened a handle.
#[derive(Clone)]
pub(super) struct Owner {
    pub(super) shared: Arc<Mutex<State>>,
    pub(super) process: u32,
    pub(super) incarnation: u64,
}

impl Owner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }

    fn begin(&self, state: &mut State, attempt: &Attempt<'_>, data: &[u8]) -> io::Result<Verdict> {
        state.begin((self.process, self.incarnation), attempt, data)
    }

    /// An operation that only looks.
    fn look<T>(
        &self,
        attempt: &Attempt<'_>,
        look: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.state();
        match self.begin(&mut state, attempt, &[])? {
            Verdict::Go => look(&mut state),
            Verdict::Fail(error) => Err(error),
            Verdict::Die => Err(dead()),
        }
    }

    /// A change that happens or not, as a whole.
    fn change<T>(
        &self,
        attempt: &Attempt<'_>,
        apply: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.state();
        match self.begin(&mut state, attempt, &[])? {
            Verdict::Go => apply(&mut state),
            Verdict::Fail(error) => Err(error),
            Verdict::Die => {
                if state.rng.coin() {
                    apply(&mut state)?;
                }
                Err(dead())
            }
        }
    }
}

/// A directory.
pub(super) struct SimDir {
    pub(super) owner: Owner,
    pub(super) name: String,
}

impl SimDir {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    fn attempt<'a>(&self, on: On, path: &'a str, needs_space: bool) -> Attempt<'a> {
        Attempt { path, on, bytes: 0..0, needs_space }
    }

    fn file(&self, state: &State, name: &str, ino: Ino) -> io::Result<SimFile> {
        let token = state.inodes.get(&ino).map(|inode| Arc::clone(&inode.token)).ok_or_else(dead)?;
        let ino = Held { ino, _token: Some(token) };
        Ok(SimFile { owner: self.owner.clone(), path: self.path(name).into(), ino })
    }
}

impl Dir for SimDir {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn File>> {
        let path = self.path(name);
        let found = self.owner.state().names(&self.name).get(name);
        let file = match (found, how) {
            (None, Open::New | Open::Any) => {
                valid(name)?;
                self.owner.change(&self.attempt(On::Name, &path, false), |state| {
                    let ino = state.add_inode(Inode::file());
                    state.names(&self.name).link(name, ino);
                    self.file(state, name, ino)
                })?
            }
            _ => self.owner.look(&self.attempt(On::Read, &path, false), |state| match found {
                Some(_) if how == Open::New => Err(io::ErrorKind::AlreadyExists.into()),
                Some(ino) => self.file(state, name, ino),
                None => Err(io::ErrorKind::NotFound.into()),
            })?,
        };
        Ok(Arc::new(file))
    }

    fn map(&self, name: &str, words: usize) -> io::Result<Box<dyn Mapping>> {
        valid(name)?;
        let path = self.path(name);
        let len = words as u64 * 8;
        let process = self.owner.process;
        let found = self.owner.state().names(&self.name).get(name);
        let mapping = self.owner.change(&self.attempt(On::Name, &path, found.is_none()), |state| {
            let ino = match found {
                Some(ino) => ino,
                None => {
                    let inode = Inode::file();
                    state.check_space(inode.space_missing(0, len))?;
                    let ino = state.add_inode(inode);
                    state.inode(ino)?.allocate(len);
                    state.names(&self.name).link(name, ino);
                    ino
                }
            };
            let inode = state.inode(ino)?;
            if inode.len() != len {
                let why = format!("{path} has {} bytes instead of {len}", inode.len());
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            let missing = inode.space_missing(0, len);
            state.check_space(missing)?;
            let inode = state.inode(ino)?;
            inode.allocate(len);
            let words = inode.map(process);
            Ok(SimMapping { file: self.file(state, name, ino)?, words })
        })?;
        Ok(Box::new(mapping))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.owner.look(&self.attempt(On::Read, &self.path(""), false), |state| {
            Ok(state.names(&self.name).iter().map(|(name, _)| name.to_owned()).collect())
        })
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.owner.look(&self.attempt(On::Read, &self.path(name), false), |state| {
            Ok(state.names(&self.name).get(name).is_some())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.owner.change(&self.attempt(On::Name, &self.path(name), false), |state| {
            let names = state.names(&self.name);
            names.get(name).ok_or(io::ErrorKind::NotFound)?;
            names.unlink(name);
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        valid(to)?;
        self.owner.change(&self.attempt(On::Name, &self.path(from), false), |state| {
            let names = state.names(&self.name);
            let ino = names.get(from).ok_or(io::ErrorKind::NotFound)?;
            if from != to {
                names.rename(from, to, ino);
            }
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        let path = self.path("");
        let mut guard = self.owner.state();
        let state = &mut *guard;
        let verdict = self.owner.begin(state, &self.attempt(On::Sync, &path, false), &[])?;
        let State { dirs, rng, .. } = state;
        let names = dirs.entry(self.name.clone()).or_default();
        match verdict {
            Verdict::Go => {
                names.sync();
                state.drop_unlinked();
                Ok(())
            }
            Verdict::Fail(error) => {
                let forgotten = rng.coin();
                names.sync_partly(rng, forgotten);
                Err(error)
            }
            Verdict::Die => {
                names.sync_partly(rng, false);
                Err(dead())
            }
        }
    }
}

/// A name that a directory takes.
fn valid(name: &str) -> io::Result<()> {
    if name.is_empty() || name.contains('/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a file name")));
    }
    Ok(())
}

/// A file that stays while the handle does.
pub(super) struct Held {
    ino: Ino,
    _token: Option<Arc<()>>,
}

impl From<Ino> for Held {
    fn from(ino: Ino) -> Self {
        Self { ino, _token: None }
    }
}

/// A file or a device.
pub(super) struct SimFile {
    pub(super) owner: Owner,
    pub(super) path: Arc<str>,
    pub(super) ino: Held,
}

impl SimFile {
    fn attempt(&self, on: On, offset: u64, len: u64) -> Attempt<'_> {
        Attempt { path: &self.path, on, bytes: offset..offset.saturating_add(len), needs_space: false }
    }

    /// An operation that only looks.
    fn look<T>(
        &self,
        offset: u64,
        len: u64,
        look: impl FnOnce(&mut Inode) -> io::Result<T>,
    ) -> io::Result<T> {
        self.owner.look(&self.attempt(On::Read, offset, len), |state| look(state.inode(self.ino.ino)?))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let len = bytes.len() as u64;
        let mut state = self.owner.state();
        let inode = state.inode(self.ino.ino)?;
        let missing = inode.space_missing(offset, len);
        let past_end = offset.checked_add(len).is_none_or(|end| end > inode.len());
        let device_full = inode.device && past_end;
        let needs_space = !inode.device && (missing > 0 || past_end);
        let attempt = Attempt { needs_space, ..self.attempt(On::Write, offset, len) };
        let verdict = self.owner.begin(&mut state, &attempt, bytes)?;
        if device_full {
            return Err(Failure::NoSpace.error());
        }
        let part = match verdict {
            Verdict::Go => bytes,
            _ => &bytes[..sector_prefix(offset, len, &mut state.rng) as usize],
        };
        let full = state.check_space(missing);
        let part = if full.is_ok() { part } else { &part[..self.fitting(&mut state, offset, part.len())?] };
        if !part.is_empty() {
            state.inode(self.ino.ino)?.write(part, offset);
        }
        match verdict {
            Verdict::Go => full,
            Verdict::Fail(error) => Err(error),
            Verdict::Die => Err(dead()),
        }
    }

    /// How many of `len` bytes from `offset` the free space is enough for.
    fn fitting(&self, state: &mut State, offset: u64, len: usize) -> io::Result<usize> {
        let free = state.free_pages().unwrap_or(u64::MAX);
        let inode = state.inode(self.ino.ino)?;
        let end = offset + len as u64;
        let mut fits = offset;
        for page in pages_of(offset, len as u64) {
            let next = ((page + 1) * PAGE_BYTES).min(end);
            if inode.space_missing(offset, next - offset) > free {
                break;
            }
            fits = next;
        }
        Ok((fits - offset) as usize)
    }

    fn sync_as(
        &self,
        sync: impl FnOnce(&mut Inode) -> u64,
        partly: impl FnOnce(&mut Inode, &mut Rng, bool),
    ) -> io::Result<()> {
        let mut guard = self.owner.state();
        let state = &mut *guard;
        let verdict = self.owner.begin(state, &self.attempt(On::Sync, 0, 0), &[])?;
        let State { inodes, rng, trace, failed_syncs, .. } = state;
        let inode = inodes.get_mut(&self.ino.ino).ok_or_else(dead)?;
        match verdict {
            Verdict::Go => {
                trace.fold(sync(inode));
                Ok(())
            }
            Verdict::Fail(error) => {
                *failed_syncs += 1;
                let forgotten = rng.chance(0.75);
                partly(inode, rng, forgotten);
                Err(error)
            }
            Verdict::Die => {
                partly(inode, rng, false);
                Err(dead())
            }
        }
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let len = buf.len() as u64;
        self.look(offset, len, |inode| {
            if offset.checked_add(len).is_none_or(|end| end > inode.len()) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            inode.read(buf, offset);
            Ok(())
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write(buf, offset)
    }

    fn write_vectored_at(&self, bufs: &[&[u8]], offset: u64) -> io::Result<()> {
        match bufs {
            [one] => self.write(one, offset),
            many => self.write(&many.concat(), offset),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_as(Inode::sync, Inode::sync_partly)
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.look(0, 0, |inode| {
            inode.forget_lost();
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.look(0, 0, |inode| Ok(inode.len()))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let ino = self.ino.ino;
        let attempt = Attempt { needs_space: true, ..self.attempt(On::Space, 0, len) };
        self.owner.change(&attempt, |state| {
            let inode = state.inode(ino)?;
            if inode.device {
                return if len <= inode.len() { Ok(()) } else { Err(Failure::NoSpace.error()) };
            }
            let missing = inode.space_missing(0, len);
            state.check_space(missing)?;
            state.inode(ino)?.allocate(len);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let ino = self.ino.ino;
        self.owner.change(&self.attempt(On::Write, len, 0), |state| {
            let inode = state.inode(ino)?;
            if (inode.device || inode.is_mapped()) && len != inode.len() {
                let why = "a device, or a mapped file, keeps its length";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            inode.set_len(len);
            Ok(())
        })
    }

    fn zero(&self, offset: u64, len: u64, punch: bool) -> io::Result<()> {
        let ino = self.ino.ino;
        let mut state = self.owner.state();
        let inode = state.inode(ino)?;
        let end = offset.saturating_add(len).min(inode.len());
        let missing = if punch { 0 } else { inode.space_missing(offset, end.saturating_sub(offset)) };
        let attempt = Attempt { needs_space: missing > 0, ..self.attempt(On::Write, offset, len) };
        match self.owner.begin(&mut state, &attempt, &[u8::from(punch)])? {
            Verdict::Go => {
                state.check_space(missing)?;
                state.inode(ino)?.zero(offset, len, punch);
                Ok(())
            }
            verdict => {
                let part = sector_prefix(offset, len, &mut state.rng);
                if state.check_space(missing).is_ok() {
                    state.inode(ino)?.zero(offset, part, punch);
                }
                match verdict {
                    Verdict::Fail(error) => Err(error),
                    _ => Err(dead()),
                }
            }
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.look(offset, 0, |inode| Ok(inode.next_data(offset)))
    }
}

/// A mapped file.
struct SimMapping {
    file: SimFile,
    words: Arc<[AtomicU64]>,
}

impl Mapping for SimMapping {
    fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    fn sync(&self, range: Range<usize>) -> io::Result<()> {
        if range.end > self.words.len() || range.start > range.end {
            let why = format!("words {range:?} of a mapping of {}", self.words.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let pages = pages_of(range.start as u64 * 8, range.len() as u64 * 8);
        self.file.sync_as(|inode| inode.sync_pages(pages), Inode::sync_partly)
    }
}

/// A part of `len` bytes from `offset` that ends where a sector does: none, some or all of it.
fn sector_prefix(offset: u64, len: u64, rng: &mut Rng) -> u64 {
    let sectors = (offset % SECTOR_BYTES + len).div_ceil(SECTOR_BYTES);
    let whole = rng.between(0, sectors);
    (whole * SECTOR_BYTES).saturating_sub(offset % SECTOR_BYTES).min(len)
}
