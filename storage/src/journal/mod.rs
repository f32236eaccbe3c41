//! The standby's redo log: frames in the order they were taken in, in append-only segment files in one directory.
//!
//! Owns where entries are, what of them is on stable storage, and what survives a crash. Leaves to the caller what
//! the frames mean, when to sync, and what may be forgotten.
//!
//! Everything that changes the past is the making of a new segment, which supersedes all that lower-numbered ones
//! hold from its base on: see `segment.rs`. So bytes that were once written are never written over, but for zeroes
//! by zeroes, and the bytes of an older history are never taken for those of the current one.
//!
//! - **append** writes to the newest segment, and makes the next one when it is full. After a write that failed, what
//!   is behind the end is unknown, so the next append makes a new segment too.
//! - **a failed sync** makes a segment that begins at the last durable lsn and holds everything after it, which is
//!   kept in memory for that; nothing is fsynced twice (RULES.md 4).
//! - **open** does the same: what lies after the last lsn known to be durable may come from a process whose sync
//!   failed, so it is written again.
//! - **truncate** and **reset** make an empty segment. **trim** removes segments after it noted the new start, and keeps the file
//!   of one for the next segment: places on the disk that were written before are written without changing anything else, and
//!   a sync of them is shorter.
//!
//! Invariant: `start <= durable <= end`, and `end - durable` is at most [`JournalOptions::max_unsynced_bytes`] (or one
//! batch).

mod ahead;
mod bytes;
mod damage;
mod entry;
mod error;
mod mark;
mod quarantine;
mod reader;
mod recent;
mod recovery;
mod segment;
mod sync;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use ::bytes::{Bytes, BytesMut};
use afterimage_memory::{ALIGN_BYTES, aligned};
use afterimage_protocol::frame::{self, Frame};
use afterimage_protocol::rules::{Rule, Rules};
use afterimage_protocol::{ByteRange, Lsn};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use self::damage::{Damage, Lost};
pub use self::error::JournalError;
pub use self::reader::Reader;
pub use self::sync::SyncTicket;

use self::entry::{BLOCK_BYTES, EntryHeader, bond};
use self::mark::Mark;
use self::segment::{Birth, BirthFailed, SEGMENT_HEADER_BYTES, SPARE, Segment, SegmentId, SegmentName};
use crate::io::{Dir, File, Open};

/// What is written before a payload.
const HEADERS_BYTES: u64 = entry::ENTRY_HEADER_BYTES + frame::HEADER_BYTES as u64;
/// Holds what was durable after the last sync; a hint, never synced.
const DURABLE_FILE: &str = "durable";
/// Holds the first lsn; synced before anything in front of it is removed.
const START_FILE: &str = "start";
/// Buffers in one vectored write: what Linux takes at once.
const MAX_VECTORS: usize = 1024;
/// A full trim begins a new segment once the last one is filled to this part, so that a small journal that is often
/// emptied does not make a segment each time.
const TRIM_ROLL_PART: u64 = 4;
/// A journal is at least this many segments at its largest, so that a trim can free a part of it.
const MIN_SEGMENTS: u64 = 4;

/// Sizes of a journal.
#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// Bytes reserved for one segment; no more than a quarter of `max_bytes` is used.
    pub segment_bytes: u64,
    /// Most bytes that all segments may take on the disk. Recovering from a failed sync may exceed it.
    pub max_bytes: u64,
    /// Most bytes that may be appended and not yet durable. They are kept in memory.
    pub max_unsynced_bytes: u64,
    /// Most bytes of the last entries that are kept in memory, for readers that are close behind.
    pub recent_bytes: u64,
    /// Behind what is appended together and is this long, in bytes, the next payload begins at a block of the disk: such writes go
    /// past the page cache where they can, and of whole blocks from where they are in memory.
    pub long_write_bytes: u64,
    /// Not to be guessed by anybody who can write to a volume: what tells entries from what looks like them is made of it.
    pub salt: u64,
    /// Which rules are in force; all, outside the simulator's own tests.
    pub rules: Rules,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            max_bytes: u64::MAX,
            max_unsynced_bytes: 64 << 20,
            recent_bytes: 64 << 20,
            long_write_bytes: 512 << 10,
            salt: 0,
            rules: Rules::default(),
        }
    }
}

/// What was there when a journal was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The first lsn.
    pub start: Lsn,
    /// The first lsn after the last entry. All before it is on stable storage.
    pub end: Lsn,
    /// What of the durable part cannot be read, and was cut. Reported at each open until
    /// [`Journal::acknowledge_damage`].
    pub damage: Option<Damage>,
}

/// An entry that survived.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its lsn.
    pub start: Lsn,
    /// The lsn of the next.
    pub end: Lsn,
    /// Its frame, verified but for the content checksum.
    pub frame: &'a Frame,
}

/// A journal, open for appending by this process only.
pub struct Journal {
    dir: Arc<dyn Dir>,
    options: JournalOptions,
    /// In order, without gaps; the last one is appended to. Never empty.
    segments: Vec<Segment>,
    next_id: SegmentId,
    start: Lsn,
    durable: Lsn,
    /// The frames from `durable` to the end, each with the lsn after it.
    unsynced: VecDeque<(Lsn, Frame)>,
    recent: recent::Recent,
    /// An end, and how many zeroes belong to the entry before it and are there.
    zeroes: (Lsn, u64),
    /// Whether there is a [`SPARE`].
    spare: bool,
    ahead: ahead::Ahead,
    /// Set when what lies behind the end of the last segment is unknown: the next append makes a new one.
    closed: bool,
    sync: sync::SyncState,
    /// The `durable` file.
    hint: Option<Arc<dyn File>>,
    poison: Option<Arc<JournalError>>,
}

impl Journal {
    /// Opens the journal in `dir`, or begins one, and calls `visit` for each entry that survived, in order. All that
    /// is reported is on stable storage on return. `dir` is the journal's alone, and no other process may use it.
    ///
    /// Bytes that were never synced may be missing or torn: the journal then ends before them. Durable entries that
    /// cannot be read are [`Damage`]: the journal is cut in front of them, and a copy of the damaged segment is kept
    /// as `quarantine-<lsn>-<segment>`.
    pub fn open(
        dir: Arc<dyn Dir>,
        options: JournalOptions,
        visit: &mut dyn FnMut(Entry<'_>),
    ) -> Result<(Self, Recovered), JournalError> {
        let segment_bytes = options.segment_bytes.min(options.max_bytes / MIN_SEGMENTS);
        let options = JournalOptions { segment_bytes, ..options };
        let found = recovery::recover(&*dir, visit)?;
        let mut damage = damage::load(&*dir, found.end)?;
        if let Some((new, damaged)) = found.damage {
            if let Some(damaged) = damaged {
                // Best effort: the copy is for people, and a full disk must not keep the journal from opening.
                let _ = quarantine::copy(&*dir, &damaged, new.at);
            }
            damage = Some(damage::store(&*dir, new, damage)?);
        }
        let mut journal = Self {
            dir,
            options,
            segments: found.segments,
            next_id: found.next_id,
            start: found.start,
            durable: found.durable,
            unsynced: VecDeque::new(),
            recent: recent::Recent::new(options.recent_bytes),
            zeroes: (Lsn(0), 0),
            spare: false,
            ahead: ahead::Ahead::default(),
            closed: true,
            sync: sync::SyncState::default(),
            hint: None,
            poison: None,
        };
        journal.spare = journal.dir.exists(SPARE).map_err(JournalError::io("look for", SPARE))?;
        if let Some(mark) = found.start_mark {
            // What lies in front of it must not come back once it was removed, or vouched for by a new segment.
            mark::store(&*journal.dir, START_FILE, mark)?;
        }
        if let Some(last) = journal.segments.last_mut() {
            last.give_back_room(last.end);
        }
        let tail = Reader::new(&journal.segments, found.durable, found.end);
        let mut frames = tail.map(|entry| entry.map(|(_, end, frame)| (end, frame)));
        if options.rules.on(Rule::RecoverFsync) || journal.segments.is_empty() {
            journal
                .supersede(found.durable, found.end, found.end, &mut frames, Room::WhateverThereIs)
                .map_err(|failed| failed.error)?;
        }
        journal.durable = found.end;
        if found.start_mark.is_none() {
            mark::store(&*journal.dir, START_FILE, journal.mark(journal.start))?;
        }
        found.dead.iter().for_each(|name| journal.remove(name));
        journal.hint_durable();
        let recovered = Recovered { start: journal.start, end: found.end, damage };
        Ok((journal, recovered))
    }

    /// Appends one frame: see [`Journal::append_batch`].
    pub fn append(&mut self, frame: &Frame) -> Result<Lsn, JournalError> {
        self.append_batch(std::slice::from_ref(frame)).map(|_| self.end())
    }

    /// Appends `frames`, with one write where they fit; returns the lsn after each. They are visible to readers and survive this
    /// process on return, and are durable after a sync. On an error none of them was appended.
    pub fn append_batch(&mut self, frames: &[Frame]) -> Result<Vec<Lsn>, JournalError> {
        self.usable()?;
        let mut parts = frames.iter().map(Part::new).collect::<Result<Vec<_>, _>>()?;
        let bytes = parts.iter().map(Part::entry_bytes).sum::<u64>();
        let unsynced = self.end().0 - self.durable.0;
        let limit = self.options.max_unsynced_bytes;
        if unsynced > 0 && unsynced.saturating_add(bytes) > limit {
            return Err(JournalError::Backlog { unsynced, limit });
        }
        if bytes == 0 {
            return Ok(Vec::new());
        }
        if self.closed || self.active().room() < bytes {
            self.roll(bytes)?;
        }
        let mut lsn = self.end();
        let bytes = self.pad(&mut parts, bytes);
        self.ahead.writes(self.segments.last().expect("a journal has a segment"), bytes);
        if let Err(error) = self.write(&parts) {
            self.closed = true;
            self.active_mut().suspect = true;
            return Err(error.or_full(self.bytes(), self.options.max_bytes));
        }
        let mut ends = Vec::with_capacity(frames.len());
        for (frame, part) in frames.iter().zip(&parts) {
            let start = lsn;
            lsn.0 += part.entry_bytes();
            self.unsynced.push_back((lsn, frame.clone()));
            self.recent.push(start, lsn, frame);
            ends.push(lsn);
        }
        self.zeroes = (lsn, parts.last().map_or(0, |part| part.padding() as u64));
        self.active_mut().end = lsn;
        Ok(ends)
    }

    /// Bytes that `frame` takes in a journal: from its lsn to that of the next entry.
    pub fn entry_bytes(frame: &Frame) -> u64 {
        entry::entry_bytes(frame.encoded_len() as u64)
    }

    /// The first lsn after the last entry.
    pub fn end(&self) -> Lsn {
        self.active().end
    }

    /// The first lsn after the last entry that is on stable storage.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The lsn of the first entry.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// Bytes that the segments take on the disk, with what is reserved; a spare one is not counted, as it gives way to the next
    /// segment.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.file_bytes).sum()
    }

    /// Count of failed syncs that were made good by writing again.
    pub fn rewrites(&self) -> u64 {
        self.sync.rewrites
    }

    /// The entries from `from`, which is the start of one, up to `to`; also those not yet durable.
    pub fn read(&self, from: Lsn, to: Lsn) -> Reader {
        match self.usable() {
            Ok(()) => Reader::new(&self.segments, from, to).with_recent(self.recent.between(from, to)),
            Err(error) => Reader::failed(error),
        }
    }

    /// Cuts every entry at and after `at`, which is the start of one, or the end. The cut is durable on return;
    /// after a crash in the middle it is done or not. A sync that is under way does not count any more.
    pub fn truncate(&mut self, at: Lsn) -> Result<(), JournalError> {
        self.usable()?;
        let (start, end) = (self.start, self.end());
        if at == end && !self.closed {
            return Ok(());
        }
        let boundary = (start..=end).contains(&at) && (at == end || self.begins_entry(at)?);
        if !boundary {
            return Err(JournalError::NoEntry { lsn: at, start, end });
        }
        let durable = self.durable.min(at);
        self.supersede(at, at, durable, &mut std::iter::empty(), Room::WhateverThereIs).map_err(
            |failed| {
                // Entries appended from now on might be cut by a segment that only shows after a crash.
                if failed.may_exist { self.poison(failed.error) } else { failed.error }
            },
        )?;
        self.durable = durable;
        self.unsynced.retain(|(end, _)| *end <= at);
        self.recent.cut(at);
        self.sync.void();
        self.hint_durable();
        Ok(())
    }

    /// Forgets whole segments whose entries all end at or before `before` and are durable; the start moves, durably,
    /// and the disk space is given back.
    pub fn trim(&mut self, before: Lsn) -> Result<(), JournalError> {
        self.usable()?;
        let before = before.min(self.durable);
        self.recent.forget(before);
        let last = self.segments.len() - 1;
        let count = self.segments.iter().take(last).take_while(|s| s.end <= before).count();
        self.forget(count)?;
        let filled = self.end().0 - self.active().base().0;
        if before >= self.end() && filled >= (self.options.segment_bytes / TRIM_ROLL_PART).max(1) {
            self.begin_empty()?;
            self.forget(self.segments.len() - 1)?;
        }
        Ok(())
    }

    /// Forgets every entry, durable or not; the end stays. Durable on return; after a crash in the middle none of the
    /// entries was forgotten or all were.
    pub fn reset(&mut self) -> Result<(), JournalError> {
        self.usable()?;
        self.begin_empty()?;
        let end = self.end();
        self.forget(self.segments.len() - 1)?;
        self.durable = end;
        self.unsynced.clear();
        self.recent.forget(end);
        self.hint_durable();
        Ok(())
    }

    /// Forgets the damage that was reported when the journal was opened: to be called once all that follows from it
    /// is durable elsewhere.
    pub fn acknowledge_damage(&mut self) -> Result<(), JournalError> {
        self.usable()?;
        damage::clear(&*self.dir)
    }

    fn usable(&self) -> Result<(), JournalError> {
        match &self.poison {
            Some(source) => Err(JournalError::Poisoned { source: Arc::clone(source) }),
            None => Ok(()),
        }
    }

    fn poison(&mut self, error: JournalError) -> JournalError {
        let source = Arc::new(error);
        self.poison = Some(Arc::clone(&source));
        JournalError::Poisoned { source }
    }

    fn active(&self) -> &Segment {
        self.segments.last().expect("a journal has a segment")
    }

    fn active_mut(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("a journal has a segment")
    }

    /// A claim of now.
    fn mark(&self, lsn: Lsn) -> Mark {
        Mark { segment: self.active().name.id, lsn }
    }

    /// Notes what is durable for the next recovery. Best effort: without it, damage to the last synced entries may be
    /// taken for a torn tail, and nothing else.
    fn hint_durable(&mut self) {
        let slot = self.sync.next_slot();
        let file = self.hint.take().or_else(|| self.dir.open(DURABLE_FILE, Open::Any).ok());
        // Opened anew next time if it cannot be written.
        self.hint = file.filter(|file| mark::hint(&**file, self.mark(self.durable), slot).is_ok());
    }

    /// Whether an entry begins at `at`, which is before the end.
    fn begins_entry(&self, at: Lsn) -> Result<bool, JournalError> {
        let Some(segment) = self.segments.iter().find(|s| s.base() <= at && at < s.end) else {
            return Ok(false);
        };
        let mut window = bytes::Window::new(Arc::clone(&segment.file), segment.offset(segment.end));
        let header = reader::read_header(&mut window, segment, at);
        Ok(header.map_err(JournalError::io("read", &segment.name.file()))?.is_some())
    }

    /// Has what is long, of `parts` with so many bytes, end where the payload of the next begins at a block of the disk; their
    /// bytes then.
    fn pad(&self, parts: &mut [Part], bytes: u64) -> u64 {
        let long = self.options.long_write_bytes;
        if bytes < long {
            return bytes;
        }
        let active = self.active();
        let start = active.offset(active.end);
        let (mut at, last) = (start, parts.len() - 1);
        for (nth, part) in parts.iter_mut().enumerate() {
            at += part.entry_bytes();
            if nth == last || part.entry_bytes() >= long {
                part.pad = ((at + HEADERS_BYTES).next_multiple_of(BLOCK_BYTES) - HEADERS_BYTES - at) as u32;
                at += u64::from(part.pad);
            }
        }
        if at - start <= active.room() {
            return at - start;
        }
        parts.iter_mut().for_each(|part| part.pad = 0);
        bytes
    }

    /// Writes `parts`, which fit, behind the end; where zeroes go before in the same block, from its start.
    fn write(&self, parts: &[Part]) -> Result<(), JournalError> {
        let active = self.active();
        let mut lsn = active.end;
        let mut at = active.offset(lsn);
        let in_block = at % BLOCK_BYTES;
        let known = self.zeroes.0 == lsn && self.zeroes.1 >= in_block;
        let mut zeroes = if known { in_block } else { 0 };
        at -= zeroes;
        let mut heads = Heads::new(parts, zeroes);
        for part in parts {
            let header = part.entry_header(active.name.id, lsn, self.durable);
            let mut frame_header = part.header;
            frame::bind(&mut frame_header, bond(active.name.id, active.salt, lsn));
            heads.add(zeroes, &header.encode(active.salt), &frame_header);
            lsn = header.end();
            zeroes = part.padding() as u64;
        }
        let slices = heads.iter().zip(parts).flat_map(|(head, part)| [head, &part.payload[..]]);
        let mut slices: Vec<&[u8]> = slices.filter(|s| !s.is_empty()).collect();
        // The last block is written as a whole: what a segment's file held before need not be read for it.
        let end = active.offset(lsn);
        let rest = (end.next_multiple_of(BLOCK_BYTES) - end).min(active.file_bytes.saturating_sub(end));
        let behind = (zeroes + rest) as usize;
        slices.extend((behind > 0).then(|| &ZEROES.0[..behind]));
        for slices in slices.chunks(MAX_VECTORS) {
            let written = active.file.write_vectored_at(slices, at);
            written.map_err(JournalError::io("write", &active.name.file()))?;
            at += slices.iter().map(|s| s.len() as u64).sum::<u64>();
        }
        Ok(())
    }

    /// Makes the next segment, with room for at least `bytes` of entries.
    fn roll(&mut self, bytes: u64) -> Result<(), JournalError> {
        let end = self.end();
        self.supersede(end, end, self.durable, &mut std::iter::empty(), Room::For(bytes)).map_err(|failed| {
            // A segment that only shows after a crash would cut what the last one gets from now on.
            self.closed |= failed.may_exist;
            failed.error
        })
    }

    /// Makes the next segment without regard to the journal's bound, which is about to be given back more.
    fn begin_empty(&mut self) -> Result<(), JournalError> {
        let end = self.end();
        self.supersede(end, end, self.durable, &mut std::iter::empty(), Room::WhateverThereIs).map_err(
            |failed| {
                self.closed |= failed.may_exist;
                failed.error
            },
        )
    }

    /// Makes a segment that holds `frames`, each with the lsn of the next, as `base..end` and supersedes all else from `base` on; on stable storage
    /// on return, with the claim that all before `durable` is. Changes nothing on an error.
    fn supersede(
        &mut self,
        base: Lsn,
        end: Lsn,
        durable: Lsn,
        frames: &mut dyn Iterator<Item = Result<(Lsn, Frame), JournalError>>,
        room: Room,
    ) -> Result<(), BirthFailed> {
        let used = self.bytes();
        let limit = self.options.max_bytes;
        let entry_bytes = end.0 - base.0;
        let wanted = match room {
            Room::For(bytes) => bytes,
            Room::WhateverThereIs => entry_bytes,
        };
        let file_bytes = self.options.segment_bytes.max(SEGMENT_HEADER_BYTES + wanted);
        if matches!(room, Room::For(_)) && used.saturating_add(file_bytes) > limit {
            let error = JournalError::Full { used, limit, source: None };
            return Err(BirthFailed { error, may_exist: false });
        }
        let name = SegmentName { id: self.next_id, base };
        self.next_id = self.next_id.next();
        let may_be_small = matches!(room, Room::WhateverThereIs);
        let salt = xxh3_64_with_seed(&name.id.0.to_le_bytes(), self.options.salt);
        let spare = std::mem::take(&mut self.spare);
        let birth = Birth { name, durable, entry_bytes, file_bytes, may_be_small, salt, spare };
        let segment = birth
            .make(&*self.dir, frames)
            .map_err(|failed| BirthFailed { error: failed.error.or_full(used, limit), ..failed })?;

        let superseded = self.segments.iter().position(|s| s.base() >= base).unwrap_or(self.segments.len());
        if superseded == self.segments.len()
            && let Some(last) = self.segments.last_mut()
        {
            last.give_back_room(last.end);
        }
        for old in self.segments.split_off(superseded) {
            self.remove(&old.name);
        }
        if let Some(last) = self.segments.last_mut() {
            last.end = last.end.min(base);
        }
        self.segments.push(segment);
        self.closed = false;
        Ok(())
    }

    /// Removes the first `count` segments after their end was noted as the start.
    fn forget(&mut self, count: usize) -> Result<(), JournalError> {
        let Some(first_kept) = self.segments.get(count).filter(|_| count > 0) else {
            return Ok(());
        };
        let start = first_kept.base();
        mark::store(&*self.dir, START_FILE, self.mark(start))?;
        self.start = start;
        for old in self.segments.drain(..count).collect::<Vec<_>>() {
            if !self.keep_spare(&old) {
                self.remove(&old.name);
            }
        }
        Ok(())
    }

    /// Keeps a segment that does not count any more for the next one to be made of it, if nobody reads it.
    fn keep_spare(&mut self, old: &Segment) -> bool {
        let usable = !self.spare && !old.suspect && old.file_bytes <= self.options.segment_bytes;
        let unused = Arc::strong_count(&old.file) == 1;
        self.spare |= usable && unused && self.dir.rename(&old.name.file(), SPARE).is_ok();
        // What was renamed now is not there to be removed.
        usable && unused && self.spare
    }

    /// Removes the file of a segment that does not count any more. Best effort: the next open tries again.
    fn remove(&self, name: &SegmentName) {
        let _ = self.dir.remove(&name.file());
    }
}

/// How large a new segment has to be.
enum Room {
    /// For this many bytes of entries and within the journal's bound, or not at all.
    For(u64),
    /// For the entries that it is born with; more if there is more.
    WhateverThereIs,
}

/// Zeroes in memory that a disk takes as it is: behind the last entry, up to the end of its block.
#[repr(align(4096))]
struct Zeroes([u8; 2 * BLOCK_BYTES as usize]);
static ZEROES: Zeroes = Zeroes([0; 2 * BLOCK_BYTES as usize]);

/// What goes before each payload: the zeroes behind the entry before it, and the headers. A disk takes it as it is in memory where
/// it fills blocks.
struct Heads {
    bytes: BytesMut,
    ranges: Vec<Range<usize>>,
}

impl Heads {
    /// Room for the heads of `parts`, the first of them behind so many zeroes.
    fn new(parts: &[Part], zeroes: u64) -> Self {
        let others = parts.split_last().map_or(&[][..], |(_, others)| others).iter().map(|part| part.pad > 0);
        let padded = others.chain([zeroes > 0]).filter(|padded| *padded).count();
        let blocks = padded * (BLOCK_BYTES as usize + ALIGN_BYTES);
        let headers = parts.len() * HEADERS_BYTES as usize;
        // Short entries fill no block, and are not to wait for aligned memory.
        let bytes = if padded > 0 { aligned(blocks + headers) } else { BytesMut::with_capacity(headers) };
        Self { bytes, ranges: Vec::with_capacity(parts.len()) }
    }

    fn add(&mut self, zeroes: u64, header: &[u8], frame_header: &[u8]) {
        let start = self.bytes.len().next_multiple_of(if zeroes > 0 { ALIGN_BYTES } else { 1 });
        self.bytes.resize(start + zeroes as usize, 0);
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(frame_header);
        self.ranges.push(start..self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.ranges.iter().map(|range| &self.bytes[range.clone()])
    }
}

/// A frame in the parts in which it is written.
struct Part {
    header: [u8; frame::HEADER_BYTES],
    payload: Bytes,
    range: Option<ByteRange>,
    /// Zeroes that are to follow, in bytes.
    pad: u32,
}

impl Part {
    /// Refuses what could not be read again: once acknowledged, that would be damage.
    fn new(frame: &Frame) -> Result<Self, JournalError> {
        if matches!(frame, Frame::Compare(_) | Frame::TakeOver { .. } | Frame::Check(_)) {
            return Err(JournalError::Refused { source: None });
        }
        let part =
            Self { header: frame.header(), payload: frame.payload(), range: frame.written_range(), pad: 0 };
        frame::Header::parse(&part.header)
            .and_then(|header| header.read(part.payload.clone()))
            .map_err(|e| JournalError::Refused { source: Some(e) })?;
        Ok(part)
    }

    fn frame_bytes(&self) -> u64 {
        (self.header.len() + self.payload.len()) as u64
    }

    fn entry_bytes(&self) -> u64 {
        entry::entry_bytes(self.frame_bytes()) + u64::from(self.pad)
    }

    fn padding(&self) -> usize {
        (self.entry_bytes() - entry::ENTRY_HEADER_BYTES - self.frame_bytes()) as usize
    }

    fn entry_header(&self, segment: SegmentId, lsn: Lsn, durable: Lsn) -> EntryHeader {
        EntryHeader {
            segment,
            lsn,
            durable,
            frame_bytes: self.frame_bytes() as u32,
            range: self.range,
            pad: self.pad,
        }
    }
}
