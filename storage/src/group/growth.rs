//! The bitmaps of volumes that grow: made beside those in use, in their place once the state has the new sizes.
//!
//! | step | what is durable before the next one | what a restart finds |
//! |---|---|---|
//! | [`SourceStore::prepare_growth`] | the new files, beside the old | the old sizes and files; the new ones are removed |
//! | the state is written | the new sizes | the new sizes, and files that it puts in their place |
//! | [`SourceStore::growth_noted`] | the new files under the names of the old | the new sizes and files |
//!
//! Until the last step both files of a volume are synced, whichever a restart would find.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use afterimage_protocol::bitmap::Bitmap;
use afterimage_protocol::source::Growth;
use afterimage_protocol::{BLOCK_BYTES, VolumeIndex, blocks_in};

use super::source::{SourceStore, bitmap_name, report};
use crate::bitmap::{BitmapError, BitmapFile, BitmapSync, adopt_grown, forget_grown, prepare_grown};

/// Makes words of a group's bitmaps durable, from any thread, while their owner goes on changing them.
#[derive(Clone)]
pub struct BitmapSyncs(Arc<Mutex<Vec<Files>>>);

/// The file of a bitmap, and the one that is to take its place.
struct Files {
    current: BitmapSync,
    grown: Option<BitmapSync>,
}

/// A bitmap that is prepared.
pub(super) struct Growing {
    volume: VolumeIndex,
    size_bytes: u64,
    sync: BitmapSync,
}

impl BitmapSyncs {
    pub(super) fn new(syncs: Vec<BitmapSync>) -> Self {
        let files = syncs.into_iter().map(|current| Files { current, grown: None });
        Self(Arc::new(Mutex::new(files.collect())))
    }

    /// Returns once these words of a volume's bitmap are on stable storage, see [`BitmapSync::sync`].
    pub fn sync(&self, volume: VolumeIndex, range: Range<usize>) -> io::Result<()> {
        let files = self.lock().get(volume.0 as usize).map(Files::all).ok_or(io::ErrorKind::NotFound)?;
        files.iter().try_for_each(|file| file.sync(range.clone()))
    }

    /// Returns once all bitmaps are on stable storage; each is tried.
    pub fn sync_all(&self) -> io::Result<()> {
        let files: Vec<BitmapSync> = self.lock().iter().flat_map(Files::all).collect();
        let results: Vec<_> = files.iter().map(BitmapSync::sync_all).collect();
        results.into_iter().collect()
    }

    /// Lets go of the memory that the bitmaps take, see [`BitmapSync::let_go`].
    pub fn let_go(&self) {
        let files: Vec<BitmapSync> = self.lock().iter().flat_map(Files::all).collect();
        files.iter().for_each(BitmapSync::let_go);
    }

    fn change(&self, volume: VolumeIndex, change: impl FnOnce(&mut Files)) {
        if let Some(files) = self.lock().get_mut(volume.0 as usize) {
            change(files);
        }
    }

    /// Held for no I/O.
    fn lock(&self) -> MutexGuard<'_, Vec<Files>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn all(&self) -> Vec<BitmapSync> {
        [Some(&self.current), self.grown.as_ref()].into_iter().flatten().cloned().collect()
    }
}

impl SourceStore {
    /// Makes the bitmaps for volumes that grow, on stable storage on return, and syncs them from then on too. No bit of the
    /// bitmaps in use may be set meanwhile. After an error nothing has changed.
    pub fn prepare_growth(&mut self, growth: &[Growth]) -> Result<Vec<Bitmap>, BitmapError> {
        let mut prepared = Vec::new();
        for growth in growth {
            match self.prepare(growth) {
                Ok(file) => prepared.push((growth, file)),
                Err(error) => {
                    for (growth, file) in prepared {
                        self.forget(growth.volume, growth.to_bytes, file);
                    }
                    return Err(error);
                }
            }
        }
        let (mut bitmaps, mut growing) = (Vec::new(), Vec::new());
        for (growth, BitmapFile { bitmap, sync, .. }) in prepared {
            let Growth { volume, to_bytes: size_bytes, .. } = *growth;
            self.bitmaps.change(volume, |files| files.grown = Some(sync.clone()));
            growing.push(Growing { volume, size_bytes, sync });
            bitmaps.push(bitmap);
        }
        self.growing = growing;
        Ok(bitmaps)
    }

    /// The state with the new sizes is on stable storage: the new bitmaps take the place of the old ones. Should that fail, it
    /// is done when the group is opened the next time.
    pub fn growth_noted(&mut self) {
        for Growing { volume, size_bytes, sync } in std::mem::take(&mut self.growing) {
            let adopted = adopt_grown(&*self.group.dir, &bitmap_name(volume.0 as usize), size_bytes);
            report(adopted, "the name of a bitmap that has grown");
            self.bitmaps.change(volume, |files| *files = Files { current: sync, grown: None });
        }
    }

    /// The volumes do not grow: takes the bitmaps back that were made for it. It may not be known whether the state has the
    /// new sizes; then a restart finds every block dirty.
    pub fn forget_growth(&mut self, bitmaps: Vec<Bitmap>) {
        for (Growing { volume, size_bytes, sync }, bitmap) in
            std::mem::take(&mut self.growing).into_iter().zip(bitmaps)
        {
            self.bitmaps.change(volume, |files| files.grown = None);
            self.forget(volume, size_bytes, BitmapFile { bitmap, sync, created: true });
        }
    }

    fn prepare(&self, growth: &Growth) -> Result<BitmapFile, BitmapError> {
        let name = bitmap_name(growth.volume.0 as usize);
        let old = self.bitmaps.lock().get(growth.volume.0 as usize).map(|files| files.current.clone());
        let missing =
            || BitmapError::Io { action: "find", name: name.clone(), source: io::ErrorKind::NotFound.into() };
        let old = old.ok_or_else(missing)?;
        // Nothing was replicated of a short last block beyond the old end.
        let dirty_from = growth.from_bytes / BLOCK_BYTES;
        let old_blocks = blocks_in(growth.from_bytes);
        prepare_grown(&*self.group.dir, &name, growth.to_bytes, (&old, old_blocks), dirty_from)
    }

    fn forget(&self, volume: VolumeIndex, size_bytes: u64, file: BitmapFile) {
        let name = bitmap_name(volume.0 as usize);
        let forgotten = forget_grown(&*self.group.dir, &name, size_bytes, file);
        report(forgotten, "that a bitmap does not grow");
    }
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
