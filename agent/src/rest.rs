//! Memory of a group that has come to rest goes back to the system.
//!
//! A catch-up goes over the whole of a bitmap and has large buffers under way; both stay in memory after it. What is needed again
//! comes back by itself, page by page, so this is done once nothing was sent for a while, and for the bitmaps now and then in any
//! case: those of a busy group may be of large volumes, of which only little is in use.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use afterimage_contract::daemon::give_back_buffers;

use crate::group::Group;

/// So many looks without anything sent are rest.
const QUIET_LOOKS: u32 = 3;
/// And after so many a bitmap is let go of in any case: what is in use costs a few page faults.
const BUSY_LOOKS: u32 = 60;

/// The allocator's memory is that of all groups: it is gone over no more often than this, whichever of them comes to rest.
const TRIM_INTERVAL: Duration = Duration::from_secs(5);

static TRIMS: Trims = Trims(Mutex::new(None));

/// When the allocator's memory was gone over last.
struct Trims(Mutex<Option<Instant>>);

impl Trims {
    /// Whether it may be now; then it counts as done.
    fn allow(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= TRIM_INTERVAL);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// What the last looks have shown.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    sent_bytes: u64,
    sequence: u64,
    quiet: u32,
    looks: u32,
    /// The allocator's memory is to be gone over once that may be.
    untrimmed: bool,
}

/// What is to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    Nothing,
    Bitmaps,
    All,
}

impl Rest {
    /// Looks at the group once.
    pub fn look(&mut self, group: &Group, sequence: u64) {
        let back = self.seen(group.wire.sent().raw_bytes, sequence);
        let trims = self.untrimmed && TRIMS.allow();
        self.untrimmed &= !trims;
        if back == Back::Nothing && !trims {
            return;
        }
        let bitmaps = group.bitmaps.clone();
        // Nobody waits for it.
        drop(group.blocking.spawn_blocking(move || {
            // A page that could not be written must not be read again from the disk: the next sync is told of that.
            if back != Back::Nothing && bitmaps.sync_all().is_ok() {
                bitmaps.let_go();
            }
            if trims {
                give_back_buffers();
            }
        }));
    }

    fn seen(&mut self, sent_bytes: u64, sequence: u64) -> Back {
        self.looks += 1;
        let rests = (self.sent_bytes, self.sequence) == (sent_bytes, sequence);
        (self.sent_bytes, self.sequence) = (sent_bytes, sequence);
        self.quiet = if rests { self.quiet.saturating_add(1) } else { 0 };
        self.untrimmed &= rests;
        if self.quiet == QUIET_LOOKS {
            self.looks = 0;
            self.untrimmed = true;
            return Back::All;
        }
        // Once at rest, nothing comes back.
        if self.looks < BUSY_LOOKS || self.quiet > QUIET_LOOKS {
            return Back::Nothing;
        }
        self.looks = 0;
        Back::Bitmaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_when_rest_begins_and_seldom_without_it() {
        let mut rest = Rest::default();
        let busy: Vec<Back> = (1..=120).map(|n| rest.seen(n, n)).collect();
        assert_eq!(busy.iter().filter(|back| **back == Back::Bitmaps).count(), 2);
        assert!(!busy.contains(&Back::All));
        let quiet: Vec<Back> = (0..300).map(|_| rest.seen(120, 120)).collect();
        assert_eq!(quiet.iter().filter(|back| **back == Back::All).count(), 1);
        assert!(!quiet.contains(&Back::Bitmaps));
        // A write, and rest again.
        rest.seen(121, 121);
        let again: Vec<Back> = (0..10).map(|_| rest.seen(121, 121)).collect();
        assert!(again.contains(&Back::All));
        assert!(rest.untrimmed, "that is not forgotten while others had the memory gone over");
        rest.seen(122, 122);
        assert!(!rest.untrimmed, "what is busy keeps its buffers");
    }
}
