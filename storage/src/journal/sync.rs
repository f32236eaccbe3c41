//! Making appended entries durable, in three steps so that the slow one can run elsewhere.
//!
//! A sync is started and finished by the owner of the journal and run anywhere in between. One at a time: after an
//! fsync failed, another one of the same bytes may report success although they are lost, so no other may run before
//! that failure is known.

use afterimage_events::{Event, event};
use std::io;
use std::sync::Arc;

use afterimage_protocol::Lsn;
use afterimage_protocol::rules::Rule;

use super::error::JournalError;
use super::{Journal, Room};
use crate::io::File;

/// A sync that was started.
#[derive(Debug)]
#[must_use = "a sync that is not run and finished keeps every other from starting"]
pub struct SyncTicket {
    files: Vec<TicketFile>,
    end: Lsn,
    history: u64,
}

struct TicketFile(Arc<dyn File>);

impl std::fmt::Debug for TicketFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("file")
    }
}

impl SyncTicket {
    /// Returns once all that was appended before the sync was started is on stable storage. On any thread.
    pub fn run(&self) -> io::Result<()> {
        self.files.iter().try_for_each(|TicketFile(file)| file.sync())
    }

    /// The end of the journal when the sync was started.
    pub fn end(&self) -> Lsn {
        self.end
    }
}

/// What a journal remembers about its syncs.
#[derive(Default)]
pub(super) struct SyncState {
    under_way: bool,
    /// Goes up when entries are cut or moved: a sync started before then says nothing about those there now.
    history: u64,
    slot: u64,
    pub rewrites: u64,
}

impl SyncState {
    /// Makes the result of a sync that is under way count for nothing, unless it is a failure.
    pub fn void(&mut self) {
        self.history += 1;
    }

    /// The slot of the `durable` file to write next.
    pub fn next_slot(&mut self) -> u64 {
        self.slot += 1;
        self.slot
    }
}

impl Journal {
    /// Starts a sync of all that was appended so far. Appends may go on while it runs.
    pub fn start_sync(&mut self) -> Result<SyncTicket, JournalError> {
        self.usable()?;
        if self.sync.under_way {
            return Err(JournalError::SyncUnderWay);
        }
        self.sync.under_way = true;
        let durable = self.durable;
        if let Some(segment) = self.segments.last().filter(|_| !self.closed) {
            self.ahead.syncs(segment, self.end().0 - durable.0);
        }
        let unsynced = self.segments.iter().filter(|s| s.end > durable);
        let files = unsynced.map(|s| TicketFile(Arc::clone(&s.file))).collect();
        Ok(SyncTicket { files, end: self.end(), history: self.sync.history })
    }

    /// Takes the `result` of running `ticket`; returns up to where the journal is durable now.
    ///
    /// After a failure everything that is not known to be durable is written to a new segment and synced there,
    /// before this returns. If that fails too, the journal is poisoned.
    pub fn finish_sync(&mut self, ticket: SyncTicket, result: io::Result<()>) -> Result<Lsn, JournalError> {
        self.usable()?;
        self.sync.under_way = false;
        match result {
            Ok(()) if ticket.history == self.sync.history => self.durable = self.durable.max(ticket.end),
            Ok(()) => return Ok(self.durable),
            Err(_) if !self.options.rules.on(Rule::RewriteTail) => {
                let _ = ticket.run();
                self.durable = self.durable.max(ticket.end);
            }
            Err(error) => {
                let (durable, end) = (self.durable.0, self.end().0);
                self.segments.iter_mut().filter(|s| s.end.0 > durable).for_each(|s| s.suspect = true);
                event!(Event::JournalFailed, durable, end, %error, "a journal sync failed; writing again");
                self.rewrite_unsynced()?;
            }
        }
        while self.unsynced.front().is_some_and(|(end, _)| *end <= self.durable) {
            self.unsynced.pop_front();
        }
        self.hint_durable();
        Ok(self.durable)
    }

    fn rewrite_unsynced(&mut self) -> Result<(), JournalError> {
        let (base, end) = (self.durable, self.end());
        let frames: Vec<_> = self.unsynced.iter().map(|(end, frame)| Ok((*end, frame.clone()))).collect();
        self.supersede(base, end, end, &mut frames.into_iter(), Room::WhateverThereIs)
            .map_err(|failed| self.poison(failed.error))?;
        self.durable = end;
        self.sync.rewrites += 1;
        Ok(())
    }
}
