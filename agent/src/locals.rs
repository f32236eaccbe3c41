//! Local writes between being admitted and being on the volume.
//!
//! They wait until the clients' connections have taken all that has come and records are on their way to the peer. Then a
//! single one is written at once, where the lane is; several are given to the kernel together, and none waits for another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use afterimage_protocol::Sequence;
use afterimage_protocol::source::{LocalError, Write};
use afterimage_storage::ring::Ring;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::group::Group;
use crate::perform::is_short;

/// A kernel that takes nothing is asked again after this long.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// The local writes of a group that are not done.
pub(crate) struct Locals {
    queue: Mutex<Vec<(Sequence, Write)>>,
    /// By place and volume. `None` where the system has none.
    ring: Option<Mutex<Ring<(Sequence, usize)>>>,
    /// There is something in the queue that nobody on the lane has put there.
    wake: Notify,
}

/// Has what is queued written when it is dropped.
struct Queued<'a>(&'a Arc<Group>);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.run_locals();
    }
}

impl Locals {
    pub fn new(group: &str) -> Self {
        let ring = Ring::new();
        if let Err(error) = &ring {
            tracing::info!(group, %error, "no io_uring: writes are done by threads");
        }
        Self { queue: Mutex::default(), ring: ring.ok().map(Mutex::new), wake: Notify::new() }
    }

    fn queue(&self) -> MutexGuard<'_, Vec<(Sequence, Write)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) -> Option<MutexGuard<'_, Ring<(Sequence, usize)>>> {
        Some(self.ring.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Group {
    /// Puts a write where [`Group::run_locals`] finds it, if that is for the lane to do; else gives it back.
    pub(crate) fn queue_local(&self, sequence: Sequence, write: Write, here: bool) -> Option<Write> {
        let volume = self.volumes.get(write.range.volume.0 as usize)?;
        let fits_ring = self.locals.ring.is_some() && volume.for_ring(&write).is_some();
        let is_for_lane = fits_ring || (here && is_short(&write));
        if !is_for_lane {
            return Some(write);
        }
        self.locals.queue().push((sequence, write));
        if !here {
            self.locals.wake.notify_one();
        }
        None
    }

    /// Lets others on the lane go first, and then does what is queued.
    pub(crate) async fn run_locals_later(self: &Arc<Self>) {
        // Also if the client is given up meanwhile.
        let queued = Queued(self);
        tokio::task::yield_now().await;
        drop(queued);
    }

    /// Does, or begins, what is queued. On the lane.
    fn run_locals(self: &Arc<Self>) {
        let queued = std::mem::take(&mut *self.locals.queue());
        let alone = queued.len() == 1 && self.locals.ring().is_none_or(|ring| ring.under_way() == 0);
        let mut done = Vec::new();
        let mut submit = false;
        for (sequence, write) in queued {
            let Some(volume) = self.volumes.get(write.range.volume.0 as usize) else { continue };
            let ring = if alone && is_short(&write) { None } else { self.locals.ring() };
            if let Some((mut ring, (file, bytes))) = ring.zip(volume.for_ring(&write)) {
                let token = (sequence, write.range.volume.0 as usize);
                ring.push(file, write.range.offset, bytes.clone(), token);
                submit = true;
            } else {
                done.push((sequence, volume.write(&write)));
            }
        }
        if submit {
            self.submit();
        }
        self.locals_done(done);
    }

    fn submit(&self) {
        if let Some(mut ring) = self.locals.ring()
            && let Err(error) = ring.submit()
        {
            tracing::debug!(group = self.name, %error, "the kernel takes no writes now");
        }
    }

    fn locals_done(self: &Arc<Self>, done: Vec<(Sequence, Result<(), LocalError>)>) {
        if done.is_empty() {
            return;
        }
        let ((), outputs) = self.step(|inner, now| {
            for (sequence, result) in done {
                inner.source.local_done(now, sequence, result);
            }
        });
        self.perform(outputs, true);
        self.run_locals();
    }

    /// Takes what the kernel has written, and gives it what others than the lane have queued. Never returns; on the lane.
    pub(crate) async fn run_ring(self: Arc<Self>) {
        let descriptor = self.locals.ring().and_then(|ring| ring.descriptor().ok());
        // SAFETY: it owns the descriptor, and nobody else closes it.
        let register = |fd| unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        let opened = descriptor.and_then(|fd| register(fd).ok());
        loop {
            let readable = async {
                match &opened {
                    Some(fd) => fd.readable().await.map(|mut ready| ready.clear_ready()),
                    None => std::future::pending().await,
                }
            };
            let under_way = self.locals.ring().is_some_and(|ring| ring.under_way() > 0);
            tokio::select! {
                _ = readable => {}
                () = self.locals.wake.notified() => {}
                // It may have taken nothing, and then nothing would come of it.
                () = tokio::time::sleep(TRY_AGAIN), if under_way => {}
            }
            let written = self.locals.ring().map(|mut ring| ring.take()).unwrap_or_default();
            let done = written.into_iter().filter_map(|written| {
                let ((sequence, _), result) = self.volumes.get(written.token.1)?.written(written);
                Some((sequence, result))
            });
            self.locals_done(done.collect());
            self.submit();
            self.run_locals();
        }
    }
}
