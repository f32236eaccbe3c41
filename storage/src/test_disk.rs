//! A small disk in memory for tests: a write is seen at once and kept only once synced; a crash keeps, drops or tears
//! each write that was not; any operation that writes can be made to fail.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::io::{Dir, File, Mapping, Open};

/// Bytes of a page of a mapped file: each that was not synced is kept or lost by itself.
const PAGE_BYTES: usize = 4096;
const WORD_BYTES: usize = 8;

/// xorshift64*: enough to spread test cases, and the same on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % n.max(1)
    }
}

/// A directory on the disk.
#[derive(Clone, Default)]
pub struct TestDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Contents, never removed: a rename may still be undone.
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Writes and syncs so far.
    operations: u64,
    /// The operation that fails, and all after it while the disk is not repaired.
    fail_at: Option<u64>,
}

#[derive(Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Not synced yet.
    pending: Vec<(usize, Vec<u8>)>,
    /// A sync of these failed: they may be on disk or not, and no later sync writes them.
    limbo: Vec<(usize, Vec<u8>)>,
    /// What is seen of a file that is mapped, as long as it is.
    mapped: Option<Arc<[AtomicU64]>>,
}

impl Content {
    /// What is seen, also of what was stored through a mapping.
    fn look(&mut self) {
        if let Some(words) = &self.mapped {
            self.seen = words.iter().flat_map(|word| word.load(Ordering::SeqCst).to_le_bytes()).collect();
        }
    }

    /// A loss of power comes: every page that differs from what is durable may be written or not.
    fn drop_mapping(&mut self) {
        self.look();
        if self.mapped.take().is_some() {
            let pages = self.seen.chunks(PAGE_BYTES).enumerate();
            let pages = pages.map(|(n, page)| (n * PAGE_BYTES, page.to_vec()));
            let changed: Vec<_> = pages
                .filter(|(at, page)| self.durable.get(*at..at + page.len()) != Some(page.as_slice()))
                .collect();
            self.pending.extend(changed);
        }
    }
}

impl TestDisk {
    /// Fails the `n`th write or sync from now on (0 is the next), and every one after it.
    pub fn fail_after(&self, n: u64) {
        let mut state = self.0.lock().unwrap();
        state.fail_at = Some(state.operations + n);
    }

    /// Lets everything succeed again.
    pub fn repair(&self) {
        self.0.lock().unwrap().fail_at = None;
    }

    pub fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }

    /// A loss of power: each write that was not durable is there, is not, or is torn; names may go back.
    pub fn crash(&self, rng: &mut Rng) {
        let mut state = self.0.lock().unwrap();
        state.fail_at = None;
        if rng.below(2) == 0 {
            state.names = state.durable_names.clone();
        } else {
            state.durable_names = state.names.clone();
        }
        for content in &mut state.files {
            content.drop_mapping();
            let unsure: Vec<_> = content.limbo.drain(..).chain(content.pending.drain(..)).collect();
            for (offset, bytes) in unsure {
                match rng.below(4) {
                    0 => {}
                    1 => apply(&mut content.durable, offset, &bytes),
                    2 => {
                        let end = rng.below(bytes.len() as u64 + 1) as usize;
                        apply(&mut content.durable, offset, &bytes[..end]);
                    }
                    _ => {
                        for (sector, part) in bytes.chunks(512).enumerate() {
                            if rng.below(2) == 0 {
                                apply(&mut content.durable, offset + sector * 512, part);
                            }
                        }
                    }
                }
            }
            content.seen = content.durable.clone();
        }
    }

    /// What `name` holds.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let mut state = self.0.lock().unwrap();
        let id = state.names[name];
        state.files[id].look();
        state.files[id].seen.clone()
    }

    /// Changes what `name` holds, durably and behind everyone's back.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut [u8])) {
        let mut state = self.0.lock().unwrap();
        let id = state.names[name];
        let content = &mut state.files[id];
        assert!(content.pending.is_empty(), "damage what is durable");
        change(&mut content.durable);
        content.seen = content.durable.clone();
    }
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fail_at {
            Some(at) if self.operations > at => Err(io::Error::other("injected")),
            _ => Ok(()),
        }
    }
}

fn apply(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    if bytes.len() < offset + part.len() {
        bytes.resize(offset + part.len(), 0);
    }
    bytes[offset..offset + part.len()].copy_from_slice(part);
}

struct TestFile {
    disk: TestDisk,
    id: usize,
}

impl File for TestFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        state.files[self.id].look();
        let seen = &state.files[self.id].seen;
        let part = seen.get(offset as usize..offset as usize + buf.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        let stepped = state.step();
        let content = &mut state.files[self.id];
        // A write that fails may have written a part.
        let part = if stepped.is_ok() { buf } else { &buf[..buf.len() / 2] };
        apply(&mut content.seen, offset as usize, part);
        content.pending.push((offset as usize, part.to_vec()));
        stepped
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        let stepped = state.step();
        let content = &mut state.files[self.id];
        let pending = std::mem::take(&mut content.pending);
        if stepped.is_err() {
            content.limbo.extend(pending);
            return stepped;
        }
        for (offset, bytes) in pending {
            // What a failed sync left behind cannot come over what was written there since.
            content.limbo.retain(|(at, _)| *at != offset);
            apply(&mut content.durable, offset, &bytes);
        }
        Ok(())
    }

    fn forget_cached(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().unwrap().files[self.id].seen.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let have = self.len()?;
        if have < len { self.write_at(&vec![0; (len - have) as usize], have) } else { Ok(()) }
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn zero(&self, offset: u64, len: u64, _: bool) -> io::Result<()> {
        self.write_at(&vec![0; len as usize], offset)
    }

    fn next_data(&self, _: u64) -> io::Result<Option<(u64, u64)>> {
        Err(ErrorKind::Unsupported.into())
    }
}

struct TestMapping {
    disk: TestDisk,
    id: usize,
    words: Arc<[AtomicU64]>,
}

impl Mapping for TestMapping {
    fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    fn sync(&self, range: Range<usize>) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        state.step()?;
        let content = &mut state.files[self.id];
        for (n, word) in self.words[range.clone()].iter().enumerate() {
            let bytes = word.load(Ordering::SeqCst).to_le_bytes();
            apply(&mut content.durable, (range.start + n) * WORD_BYTES, &bytes);
        }
        Ok(())
    }
}

impl Dir for TestDisk {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn File>> {
        let mut state = self.0.lock().unwrap();
        let id = match (state.names.get(name), how) {
            (Some(_), Open::New) => return Err(ErrorKind::AlreadyExists.into()),
            (None, Open::Existing) => return Err(ErrorKind::NotFound.into()),
            (Some(id), _) => *id,
            (None, _) => {
                state.files.push(Content::default());
                let id = state.files.len() - 1;
                state.names.insert(name.to_owned(), id);
                id
            }
        };
        Ok(Arc::new(TestFile { disk: self.clone(), id }))
    }

    fn map(&self, name: &str, words: usize) -> io::Result<Box<dyn Mapping>> {
        let file = self.open(name, Open::Any)?;
        let len = words * WORD_BYTES;
        if file.is_empty()? {
            // Its length is as durable as its name.
            let mut state = self.0.lock().unwrap();
            state.step()?;
            let id = state.names[name];
            state.files[id].seen = vec![0; len];
            state.files[id].durable = vec![0; len];
        }
        let mut state = self.0.lock().unwrap();
        let id = state.names[name];
        let content = &mut state.files[id];
        content.look();
        if content.seen.len() != len {
            return Err(ErrorKind::InvalidData.into());
        }
        let stored = content.seen.as_chunks::<WORD_BYTES>().0.iter();
        let stored = stored.map(|bytes| AtomicU64::new(u64::from_le_bytes(*bytes)));
        let words = content.mapped.get_or_insert_with(|| stored.collect()).clone();
        Ok(Box::new(TestMapping { disk: self.clone(), id, words }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().names.keys().cloned().collect())
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.0.lock().unwrap().names.contains_key(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = self.0.lock().unwrap().names.remove(name);
        removed.map(|_| ()).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let id = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        state.durable_names = state.names.clone();
        Ok(())
    }
}
