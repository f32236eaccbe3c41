//! A volume as NBD clients see it.

use afterimage_events::{Event, event};
use std::sync::Arc;
use std::time::Instant;

use afterimage_nbd::{Context, Errno, Export, ExportInfo, Extent, ZeroFlags};
use afterimage_protocol::source::LocalError;
use afterimage_protocol::{BLOCK_BYTES, ByteRange, VolumeIndex};
use bytes::Bytes;

use crate::group::Group;
use crate::perform::SHORT_BYTES;
use crate::volume::LocalVolume;

/// Flags of `base:allocation`: a hole that reads as zeroes.
const HOLE_OF_ZEROES: u32 = 3;
/// Flag of `afterimage:dirty`.
const DIRTY: u32 = 1;
/// Runs of dirty blocks that are looked up under one lock.
const DIRTY_RUNS: usize = 256;

/// One volume of a group.
pub(crate) struct VolumeExport {
    group: Arc<Group>,
    index: VolumeIndex,
}

impl VolumeExport {
    pub fn new(group: Arc<Group>, index: VolumeIndex) -> Self {
        Self { group, index }
    }

    fn volume(&self) -> Result<&LocalVolume, Errno> {
        self.group.volumes.get(self.index.0 as usize).ok_or(Errno::Io)
    }

    /// Runs what may wait for the disk where that holds nobody up.
    async fn elsewhere<T: Send + 'static>(
        &self,
        job: impl FnOnce(&LocalVolume) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        let (group, index) = (self.group.clone(), self.index.0 as usize);
        let run = move || group.volumes.get(index).ok_or(Errno::Io).and_then(job);
        self.group.blocking.spawn_blocking(run).await.unwrap_or(Err(Errno::Io))
    }

    fn dirty(&self, offset: u64, end: u64, max: usize) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < max {
            self.group.look(|source| {
                for _ in 0..DIRTY_RUNS {
                    let Some((first, count)) =
                        source.next_dirty(self.index, at / BLOCK_BYTES, (end - at).div_ceil(BLOCK_BYTES) + 1)
                    else {
                        extents.push(Extent { len_bytes: end - at, flags: 0 });
                        at = end;
                        return;
                    };
                    let from = (first * BLOCK_BYTES).clamp(at, end);
                    let to = ((first + count) * BLOCK_BYTES).clamp(from, end);
                    if from > at {
                        extents.push(Extent { len_bytes: from - at, flags: 0 });
                    }
                    if to > from {
                        extents.push(Extent { len_bytes: to - from, flags: DIRTY });
                    }
                    at = to;
                    if at >= end || extents.len() >= max {
                        return;
                    }
                }
            });
        }
        extents
    }
}

impl Export for VolumeExport {
    fn info(&self) -> ExportInfo {
        let volume = self.group.volumes.get(self.index.0 as usize);
        ExportInfo {
            name: volume.map(|v| v.name.clone()).unwrap_or_default(),
            description: format!("group {}", self.group.name),
            size_bytes: volume.map_or(0, |v| v.size_bytes()),
            ..ExportInfo::default()
        }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let began = Instant::now();
        let data = match u64::from(len) <= SHORT_BYTES {
            true => read(self.volume()?, offset, len),
            false => self.elsewhere(move |volume| read(volume, offset, len)).await,
        };
        self.group.has_read(began.elapsed());
        data
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        let began = Instant::now();
        let written = self.group.write(self.index, offset, data, fua).await;
        self.group.waited.add(began.elapsed());
        written.map_err(errno)
    }

    async fn flush(&self) -> Result<(), Errno> {
        let began = Instant::now();
        let flushed = self.group.flush(self.index).await;
        self.group.waited.add(began.elapsed());
        flushed.map_err(errno)
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        let range = ByteRange::new(self.index, offset, len);
        self.group.zero(range, true, fua).await.map_err(errno)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        if flags.fast && !self.volume()?.zeroes_fast {
            return Err(Errno::NotSup);
        }
        let range = ByteRange::new(self.index, offset, len);
        self.group.zero(range, !flags.no_hole, flags.fua).await.map_err(errno)
    }

    async fn cache(&self, _: u64, _: u64) -> Result<(), Errno> {
        Ok(())
    }

    async fn block_status(
        &self,
        context: Context,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, Errno> {
        let end = offset.saturating_add(len).min(self.volume()?.size_bytes());
        match context {
            Context::Dirty => Ok(self.dirty(offset, end, max_extents)),
            Context::Allocation => {
                self.elsewhere(move |volume| allocation(volume, offset, end, max_extents)).await
            }
        }
    }
}

fn read(volume: &LocalVolume, offset: u64, len: u32) -> Result<Bytes, Errno> {
    let mut data = vec![0; len as usize];
    match volume.file().read_at(&mut data, offset) {
        Ok(()) => {
            volume.was_read(len.into());
            Ok(data.into())
        }
        Err(error) => {
            event!(Event::IoFailed, volume = volume.name, offset, len, %error, "a read failed");
            Err(Errno::Io)
        }
    }
}

fn allocation(volume: &LocalVolume, offset: u64, end: u64, max: usize) -> Result<Vec<Extent>, Errno> {
    let mut extents = Vec::new();
    let mut at = offset;
    while at < end && extents.len() < max {
        let (start, stop) = match volume.file().next_data(at) {
            Ok(found) => found.unwrap_or((end, end)),
            Err(error) => {
                event!(Event::IoFailed, volume = volume.name, offset = at, %error, "cannot look for holes");
                return Err(Errno::Io);
            }
        };
        let (start, stop) = (start.clamp(at, end), stop.clamp(at, end));
        if start > at {
            extents.push(Extent { len_bytes: start - at, flags: HOLE_OF_ZEROES });
        }
        if stop > start {
            extents.push(Extent { len_bytes: stop - start, flags: 0 });
        }
        at = stop.max(start);
    }
    extents.truncate(max.max(1));
    Ok(extents)
}

fn errno(error: LocalError) -> Errno {
    match error {
        LocalError::NoSpace => Errno::NoSpc,
        LocalError::Io | LocalError::Flush => Errno::Io,
        LocalError::Ended => Errno::Shutdown,
    }
}
