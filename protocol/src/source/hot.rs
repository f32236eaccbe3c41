//! The hot extents: those that may hold writes which a power cut would lose without a trace in the bitmap.
//!
//! An extent is durable in the log before the first write to it starts (rule 8: all extents of a write in one
//! transaction), and leaves only when a local flush that started after its last write has finished and its bits are
//! clear or on stable storage (rule 6).
//!
//! While there is plenty of room, those behind one that is written to for the first time come with it: a client that goes on
//! there does not wait for the log at each of them.

use super::*;

/// Cool when the set is this full, in eighths, so that an admission seldom waits for it.
const COOL_AT_EIGHTHS: usize = 7;
/// And that large a part of the set at a time.
const COOL_PART: usize = 4;
/// So many extents come with one that is written to for the first time, at most.
const MOST_AHEAD: usize = 8;
/// And no larger a part of the set.
const AHEAD_PART: usize = 8;
/// Nor do any once the set is this full: the others are for what is written.
const FULL_PART: usize = 2;

#[derive(Debug)]
struct Hot {
    durable: bool,
    writes: u32,
    /// Stamp of the last completed write.
    written: u64,
    /// Stamp of the last use; 0 if there was none in this run.
    used: u64,
}

#[derive(Debug)]
struct Cooling {
    stamp: u64,
    extents: Vec<Extent>,
    flushes: Vec<u64>,
    sync: Option<u64>,
}

#[derive(Debug)]
pub(super) struct HotSet {
    capacity: usize,
    set: BTreeMap<Extent, Hot>,
    stamp: u64,
    transaction: u64,
    persisting: Option<(u64, Vec<Extent>)>,
    changed: bool,
    full: bool,
    cooling: Option<Cooling>,
    /// Per volume: a flush that started at this stamp has finished.
    flushed: Vec<u64>,
}

impl HotSet {
    pub fn new(capacity: usize, inherited: Vec<Extent>, volumes: usize) -> Self {
        let set = inherited
            .into_iter()
            .map(|e| (e, Hot { durable: true, writes: 0, written: 1, used: 0 }))
            .collect();
        Self {
            capacity: capacity.max(2),
            set,
            stamp: 1,
            transaction: 0,
            persisting: None,
            changed: false,
            full: false,
            cooling: None,
            flushed: vec![0; volumes],
        }
    }

    /// A moment that comes after everything that completed before.
    pub fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// A flush of `volume` that started at `stamp` has finished.
    pub fn flushed(&mut self, volume: VolumeIndex, stamp: u64) {
        if let Some(f) = self.flushed.get_mut(volume.0 as usize) {
            *f = (*f).max(stamp);
        }
    }

    /// Whether a write to `range` may start as far as the log goes; asks for what is missing. Its volume has so many `blocks`.
    pub fn admit(&mut self, range: BlockRange, blocks: u64, together: bool) -> bool {
        let extents = range.extents();
        let (mut all, mut first_use) = (true, None);
        for (n, extent) in extents.enumerate() {
            if n > 0 && !together {
                break;
            }
            let has_room = self.set.len() < self.capacity;
            match self.set.get_mut(&extent) {
                Some(hot) => {
                    if hot.used == 0 {
                        first_use = Some(extent);
                    }
                    all &= hot.durable;
                }
                None if has_room => {
                    self.set.insert(extent, Hot { durable: false, writes: 0, written: 0, used: self.stamp });
                    self.changed = true;
                    (all, first_use) = (false, Some(extent));
                }
                None => {
                    self.full = true;
                    all = false;
                }
            }
        }
        if let Some(extent) = first_use {
            self.take_along(extent, blocks);
        }
        all
    }

    /// Has the extents behind `extent` ready before they are needed, if one of the nearest is not.
    fn take_along(&mut self, extent: Extent, blocks: u64) {
        let ahead = (self.capacity / AHEAD_PART).min(MOST_AHEAD);
        let behind = |n: usize| Extent { index: extent.index + n as u64, ..extent };
        let exists = |extent: &Extent| extent.blocks().first < blocks;
        let nearest = (1..=ahead.div_ceil(2)).map(behind);
        if self.set.len() + ahead > self.capacity / FULL_PART
            || nearest.filter(exists).all(|extent| self.set.contains_key(&extent))
        {
            return;
        }
        for extent in (1..=ahead).map(behind).filter(exists) {
            self.set.entry(extent).or_insert(Hot { durable: false, writes: 0, written: 0, used: 0 });
        }
        self.changed = true;
    }

    pub fn write_started(&mut self, range: BlockRange) {
        let stamp = self.next_stamp();
        for extent in range.extents() {
            if let Some(hot) = self.set.get_mut(&extent) {
                hot.writes += 1;
                hot.used = stamp;
            }
        }
    }

    pub fn write_ended(&mut self, range: BlockRange) {
        let stamp = self.next_stamp();
        for extent in range.extents() {
            if let Some(hot) = self.set.get_mut(&extent) {
                hot.writes = hot.writes.saturating_sub(1);
                hot.written = stamp;
            }
        }
    }

    /// Whether nothing is being written for it, or on its behalf.
    pub fn is_at_rest(&self) -> bool {
        self.persisting.is_none() && self.cooling.is_none()
    }

    /// What it does, for a person.
    pub fn activity(&self) -> String {
        format!(
            "{} of {}, writing {}, cooling {:?}, full {}",
            self.set.len(),
            self.capacity,
            self.persisting.is_some(),
            self.cooling,
            self.full
        )
    }

    /// Extents that could leave, least recently used first; none that `wanted` covers.
    fn candidates(&self, wanted: Option<BlockRange>) -> Vec<Extent> {
        let is_wanted = |e: &Extent| wanted.is_some_and(|range| range.overlaps(&e.blocks()));
        let idle = self.set.iter().filter(|(e, h)| h.durable && h.writes == 0 && !is_wanted(e));
        let mut idle: Vec<_> = idle.map(|(e, h)| (h.used, *e)).collect();
        idle.sort_unstable();
        let want = (self.capacity / COOL_PART).max(1);
        idle.into_iter().take(want).map(|(_, e)| e).collect()
    }
}

impl Source {
    /// The hot-extent log was written, or not.
    pub fn hot_persisted(&mut self, now: Time, transaction: u64, ok: bool) {
        if let Some((t, extents)) = self.hot.persisting.take() {
            debug_assert_eq!(t, transaction);
            if ok {
                for extent in extents {
                    if let Some(hot) = self.hot.set.get_mut(&extent) {
                        hot.durable = true;
                    }
                }
            } else {
                self.lose_tracking();
            }
        }
        self.pump(now);
    }

    /// The bitmap's pages were synced, or not.
    pub fn bitmap_synced(&mut self, now: Time, token: u64, ok: bool) {
        if self.first_bits == Some(token) {
            self.first_bits = None;
            if !ok {
                self.lose_tracking();
            }
        }
        self.handover_synced(token, ok);
        if let Some(c) = self.hot.cooling.as_mut().filter(|c| c.sync == Some(token)) {
            c.sync = None;
            if !ok {
                self.lose_tracking();
            }
        }
        self.pump(now);
    }

    /// A flush that the log asked for has ended.
    pub(super) fn cooling_flushed(&mut self, token: u64) {
        if let Some(c) = &mut self.hot.cooling {
            c.flushes.retain(|t| *t != token);
        }
    }

    /// The log's disk, or a flush of a volume, failed. The group goes on with every block counted as dirty (section 4.3),
    /// and says so durably where it still can.
    pub(super) fn lose_tracking(&mut self) {
        if self.tracking_lost {
            return;
        }
        self.tracking_lost = true;
        self.state.compare_all = true;
        self.loss_noted_by = Some(self.persist());
        set_all(&mut self.bitmaps);
        self.fall_to_catch_up();
    }

    pub(super) fn pump_hot(&mut self) {
        if self.tracking_lost {
            return;
        }
        self.end_cooling();
        let crowded = self.hot.set.len() * 8 >= self.hot.capacity * COOL_AT_EIGHTHS;
        // A bitmap that is being replaced is not synced.
        if self.hot.cooling.is_none() && !self.is_resizing() && (self.hot.full || crowded) {
            self.hot.full = false;
            self.begin_cooling();
            // It may have nothing to wait for, and then nothing else would end it.
            self.end_cooling();
        }
        if self.hot.changed && self.hot.persisting.is_none() {
            self.hot.changed = false;
            self.hot.transaction += 1;
            let transaction = self.hot.transaction;
            let extents: Vec<Extent> = self.hot.set.keys().copied().collect();
            self.hot.persisting = Some((transaction, extents.clone()));
            self.outputs.push_back(Output::PersistHot { transaction, extents });
        }
    }

    fn begin_cooling(&mut self) {
        // The oldest waiting write keeps what it has got, or two that want the same room would never get all of it.
        let extents = self.hot.candidates(self.waiting.front().map(|w| w.blocks));
        if extents.is_empty() {
            return;
        }
        let stamp = self.hot.next_stamp();
        let mut flushes = Vec::new();
        if self.rules.on(Rule::CoolAfterFlush) {
            for volume in 0..self.bitmaps.len() as u32 {
                let volume = VolumeIndex(volume);
                let flushed = self.hot.flushed[volume.0 as usize];
                let unflushed =
                    extents.iter().any(|e| e.volume == volume && self.hot.set[e].written > flushed);
                if unflushed {
                    let token = self.start_local_flush(volume, None);
                    flushes.push(token);
                }
            }
        }
        let dirty: Vec<BlockRange> = extents
            .iter()
            .map(|e| e.blocks())
            .filter(|r| self.bitmaps[r.volume.0 as usize].any(r.first, r.count))
            .collect();
        let mut sync = None;
        if !dirty.is_empty() && self.rules.on(Rule::CoolSyncsBitmap) {
            let token = self.token();
            sync = Some(token);
            let words = self.words_of(&dirty);
            self.outputs.push_back(Output::SyncBitmap { token, words });
        }
        self.hot.cooling = Some(Cooling { stamp, extents, flushes, sync });
    }

    fn end_cooling(&mut self) {
        let done = self.hot.cooling.as_ref().is_some_and(|c| c.flushes.is_empty() && c.sync.is_none());
        if !done {
            return;
        }
        let Some(c) = self.hot.cooling.take() else { return };
        for extent in c.extents {
            let idle = self.hot.set.get(&extent).is_some_and(|h| {
                h.writes == 0 && (h.used <= c.stamp || !self.rules.on(Rule::CoolAfterFlush))
            });
            if idle {
                self.hot.set.remove(&extent);
                self.hot.changed = true;
            }
        }
    }
}
