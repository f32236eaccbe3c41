//! Frames on their way into the journal: together where they fit, one by one where not, and what is done when there is no room.

use afterimage_events::{Event, event};
use afterimage_protocol::Lsn;
use afterimage_protocol::frame::Frame;
use afterimage_protocol::target::Output;
use afterimage_storage::journal::{JournalError, SyncTicket};

use super::{Standby, chain};
use crate::clock;

impl Standby {
    /// Writes the frames that wait for it to the journal, and reports each.
    pub(super) fn append(&mut self) {
        let frames = std::mem::take(&mut self.appends);
        self.append_bytes = 0;
        if frames.is_empty() {
            return;
        }
        if let Ok(ends) = self.try_append(&frames) {
            self.journal_full = false;
            for (frame, end) in frames.iter().zip(ends) {
                self.target.appended(clock::now(), frame, Some(end));
            }
            return;
        }
        // One by one, so that what fits is kept and the one that does not is known.
        for frame in &frames {
            match self.try_append(std::slice::from_ref(frame)) {
                Ok(ends) => self.target.appended(clock::now(), frame, ends.first().copied()),
                Err(error @ JournalError::Full { .. }) => {
                    event!(Event::JournalFull, group = self.group, error = %chain(&error), "the journal is full");
                    self.journal_full = true;
                    self.journal_full_at = Some(clock::now());
                    // What comes after it must not be appended without it.
                    self.deferred.retain(|o| !matches!(o, Output::Append(_)));
                    self.target.appended(clock::now(), frame, None);
                    return;
                }
                Err(error) => {
                    self.fail("the journal cannot be written", &error);
                    return;
                }
            }
        }
    }

    fn try_append(&mut self, frames: &[Frame]) -> Result<Vec<Lsn>, JournalError> {
        loop {
            match self.store.append_batch(frames) {
                Err(JournalError::Backlog { .. }) => self.sync_journal()?,
                Err(JournalError::Full { .. }) if self.wait_for_room() => {}
                result => return result,
            }
        }
    }

    /// Waits until what is being applied has given room; `false` when nothing is. The applier alone goes on meanwhile, so
    /// that a base that is slower than the link slows the source down and does not end the session.
    fn wait_for_room(&mut self) -> bool {
        while let Some(done) = self.jobs.wait() {
            self.done(done);
            let mut trimmed = false;
            while let Some(output) = self.target.poll() {
                match output {
                    Output::Apply { .. }
                    | Output::SyncBase
                    | Output::Verify(_)
                    | Output::SyncJournal { .. }
                    | Output::PersistState { .. }
                    | Output::Trim { .. } => {
                        trimmed |= matches!(output, Output::Trim { .. });
                        self.perform(output, &mut None);
                    }
                    other => self.deferred.push_back(other),
                }
            }
            if trimmed {
                return true;
            }
        }
        false
    }

    /// Makes the journal durable and returns then; a sync that is under way is waited for first.
    pub(super) fn sync_journal(&mut self) -> Result<(), JournalError> {
        let ticket: SyncTicket = loop {
            match self.store.start_sync() {
                Ok(ticket) => break ticket,
                Err(JournalError::SyncUnderWay) => match self.jobs.wait() {
                    Some(done) => self.done(done),
                    None => return Err(JournalError::SyncUnderWay),
                },
                Err(error) => return Err(error),
            }
        };
        let result = ticket.run();
        self.store.finish_sync(ticket, result).map(drop)
    }
}
