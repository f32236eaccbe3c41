//! What a target has on its disk: the journal and the bases.

use afterimage_events::{Event, event};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use afterimage_protocol::bitmap::Bitmap;
use afterimage_protocol::frame::{Compare, Content, Frame, HASH_BYTES};
use afterimage_protocol::state::{GroupState, LostBlocks, VolumeState};
use afterimage_protocol::target::{Choice, Config, FoundDamage, NoSuchPoint, Search, Target};
use afterimage_protocol::*;

use super::source::{bitmap_name, hashes_of, write_content};
use super::{GroupError, GroupStore, VolumeFile};
use crate::bitmap::{adopt_grown, open_bitmap};
use crate::io::Dir;
use crate::journal::{Journal, JournalError, JournalOptions, Lost, Reader, SyncTicket};

/// The files of a target.
pub struct TargetStore {
    state: StateWriter,
    journal: Journal,
    /// Where the next redo begins. The journal may begin before it, since it forgets whole segments only: what is between
    /// was redone, and which of it counts for nothing is not known any more.
    redo_from: Lsn,
}

impl TargetStore {
    /// Opens, or makes, the files of a target and starts its state machine on what they hold. The journal that was found
    /// is on stable storage on return.
    pub fn open(
        group: GroupStore,
        journal_dir: Arc<dyn Dir>,
        options: JournalOptions,
        config: Config,
        mut state: GroupState,
        now: Time,
    ) -> Result<(Self, Target), GroupError> {
        let lost =
            if state.lost == LostBlocks::Bitmaps { lost_bitmaps(&group, &mut state) } else { Vec::new() };
        let name = config.group.clone();
        let mut recovery = Target::recover(config, state, now);
        recovery.lost_bitmaps(lost);
        let (journal, found) =
            Journal::open(journal_dir, options, &mut |e| recovery.entry(e.start, e.end, e.frame))?;
        let damage = found.damage.map(|d| {
            event!(
                Event::ChecksumError,
                group = name,
                at = d.at.0,
                durable_end = d.durable_end.0,
                "the journal is damaged: it was cut"
            );
            FoundDamage { lost: lost_blocks(d.lost) }
        });
        let target = recovery.finish(found.start, found.end, damage, now);
        let redo_from = journal.start();
        Ok((Self { state: StateWriter(Arc::new(Mutex::new(group))), journal, redo_from }, target))
    }

    /// Writes the state; whether it is durable.
    pub fn persist_state(&mut self, state: &GroupState) -> bool {
        self.state.persist(state)
    }

    /// Writes the state from any thread.
    pub fn state_writer(&self) -> StateWriter {
        self.state.clone()
    }

    /// Appends a frame; returns the place after it.
    pub fn append(&mut self, frame: &Frame) -> Result<Lsn, JournalError> {
        self.journal.append(frame)
    }

    /// Appends frames with as few writes as possible; returns the place after each. None was appended on an error.
    pub fn append_batch(&mut self, frames: &[Frame]) -> Result<Vec<Lsn>, JournalError> {
        self.journal.append_batch(frames)
    }

    /// Starts a sync, to be run anywhere.
    pub fn start_sync(&mut self) -> Result<SyncTicket, JournalError> {
        self.journal.start_sync()
    }

    /// Takes the result of a sync; returns up to where the journal is durable.
    pub fn finish_sync(&mut self, ticket: SyncTicket, result: io::Result<()>) -> Result<Lsn, JournalError> {
        self.journal.finish_sync(ticket, result)
    }

    /// Cuts the journal; durable on return.
    pub fn truncate(&mut self, at: Lsn) -> Result<(), JournalError> {
        self.journal.truncate(at)
    }

    /// Forgets the journal before a place, up to which all was redone.
    pub fn trim(&mut self, before: Lsn) -> Result<(), JournalError> {
        self.redo_from = self.redo_from.max(before);
        self.journal.trim(before)
    }

    /// Forgets the damage that was found.
    pub fn forget_damage(&mut self) -> Result<(), JournalError> {
        self.journal.acknowledge_damage()
    }

    /// The entries up to `to`, from the first one that was not redone; the reader may be used on any thread.
    pub fn read_to(&self, to: Lsn) -> Reader {
        self.journal.read(self.redo_from, to)
    }

    /// All entries, from the first one that was not redone; the reader may be used on any thread.
    pub fn read_all(&self) -> Reader {
        self.read_to(self.journal.end())
    }

    /// Bytes that the journal takes on the disk.
    pub fn journal_bytes(&self) -> u64 {
        self.journal.bytes()
    }

    /// Bytes of the journal that are not known to be on stable storage.
    pub fn unsynced_bytes(&self) -> u64 {
        self.journal.end().0 - self.journal.durable().0
    }

    /// The journal itself, to look at.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }
}

/// The bitmaps of this host's time as a primary, only to be read. Without one of them, all blocks count as lost.
fn lost_bitmaps(group: &GroupStore, state: &mut GroupState) -> Vec<Bitmap> {
    bitmaps_to_read(group, state).unwrap_or_else(|| {
        state.lost = LostBlocks::All;
        Vec::new()
    })
}

/// What a host that was replaced may have of its own, by its bitmaps. Nothing is changed but `state`: where a bitmap cannot be
/// read, everything counts as not known ([`GroupState::compare_all`]).
pub fn divergent_blocks(group: &GroupStore, state: &mut GroupState) -> Vec<Bitmap> {
    bitmaps_to_read(group, state).unwrap_or_else(|| {
        state.compare_all = true;
        Vec::new()
    })
}

fn bitmaps_to_read(group: &GroupStore, state: &GroupState) -> Option<Vec<Bitmap>> {
    let open = |(index, volume): (usize, &VolumeState)| {
        let name = bitmap_name(index);
        let adopted = adopt_grown(&*group.dir, &name, volume.size_bytes);
        let file = adopted.and_then(|()| open_bitmap(&*group.dir, &name, blocks_in(volume.size_bytes), true));
        file.inspect_err(
            |error| event!(Event::TrackingLost, %error, "a bitmap is damaged: every block counts as lost"),
        )
        .ok()
        .filter(|file| !file.created)
        .map(|file| file.bitmap)
    };
    state.volumes.iter().enumerate().map(open).collect()
}

/// Writes the state of a group; one write at a time.
#[derive(Clone)]
pub struct StateWriter(Arc<Mutex<GroupStore>>);

impl StateWriter {
    /// Writes the state; whether it is durable.
    pub fn persist(&self, state: &GroupState) -> bool {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).write(state) {
            Ok(()) => true,
            Err(error) => {
                event!(Event::StateFailed, %error, "the state of a group cannot be made durable");
                false
            }
        }
    }
}

/// Feeds `search` with `entries`.
pub fn search_journal(
    mut search: Search,
    entries: Reader,
) -> Result<Result<Choice, NoSuchPoint>, JournalError> {
    for entry in entries {
        let (start, end, frame) = entry?;
        search.entry(start, end, &frame);
    }
    Ok(search.finish())
}

/// Writes to the base in a first sync. Not durable before a sync.
pub fn write_base(volumes: &[VolumeFile], range: ByteRange, content: &Content) -> io::Result<()> {
    let volume = volumes.get(range.volume.0 as usize).ok_or(io::ErrorKind::NotFound)?;
    write_content(volume, range, content)
}

/// The blocks of a compare frame whose bytes differ from the base, or cannot be read there.
pub fn compare_base(volumes: &[VolumeFile], compare: &Compare) -> Vec<BlockRange> {
    let blocks = compare.range.blocks();
    let one = |n: u64| BlockRange { first: blocks.first + n, count: 1, ..blocks };
    let all = || vec![blocks];
    let Some(volume) = volumes.get(blocks.volume.0 as usize) else { return all() };
    let mut bytes = vec![0; compare.range.length.min(MAX_PAYLOAD_BYTES) as usize];
    if volume.read_at(&mut bytes, compare.range.offset).is_err() {
        return all();
    }
    let ours = hashes_of(&bytes);
    let theirs = compare.hashes.chunks(HASH_BYTES);
    let differing = theirs.zip(ours.chunks(HASH_BYTES)).enumerate().filter(|(_, (a, b))| a != b);
    differing.map(|(n, _)| one(n as u64)).collect()
}

fn lost_blocks(lost: Lost) -> LostBlocks {
    match lost {
        Lost::Unknown => LostBlocks::All,
        Lost::Ranges(ranges) => {
            let mut blocks = LostBlocks::None;
            blocks.add(ranges.iter().map(ByteRange::blocks));
            blocks
        }
    }
}
