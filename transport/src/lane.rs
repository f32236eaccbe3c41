//! Threads on which connections are driven, each by one of them, together with the tasks that read and write it.
//!
//! What comes in a packet is then taken in, handled and answered without being handed from thread to thread, and a task that
//! waits for a disk holds up the connections of its thread alone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A thread with a runtime of its own; what still runs on it ends when this is dropped.
#[derive(Debug)]
pub struct Lane {
    runtime: Handle,
    _end: oneshot::Sender<()>,
}

impl Lane {
    /// Starts a thread of this name.
    ///
    /// # Errors
    /// If the system gives no more threads or file descriptors.
    pub fn start(name: String) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name(name).spawn(move || {
            // Nothing is ever sent: it ends when the sender is gone.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { runtime: handle, _end: end })
    }

    /// Where to start what belongs on the thread.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

/// Counts the connections of one thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Crowd(Arc<AtomicUsize>);

/// A connection's part in a [`Crowd`].
#[derive(Debug)]
pub(crate) struct InCrowd(Crowd);

impl Crowd {
    pub(crate) fn join(&self) -> InCrowd {
        self.0.fetch_add(1, Ordering::Relaxed);
        InCrowd(self.clone())
    }
}

impl InCrowd {
    pub(crate) fn is_alone(&self) -> bool {
        self.0.0.load(Ordering::Relaxed) == 1
    }
}

impl Drop for InCrowd {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_left_is_alone() {
        let crowd = Crowd::default();
        let first = crowd.join();
        assert!(first.is_alone());
        let second = crowd.join();
        assert!(!first.is_alone() && !second.is_alone());
        drop(first);
        assert!(second.is_alone());
    }

    #[test]
    fn what_runs_on_a_lane_ends_with_it() {
        let lane = Lane::start("lane".to_owned()).unwrap();
        let (held, ended) = oneshot::channel::<()>();
        lane.runtime().spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        drop(lane);
        ended.blocking_recv().unwrap_err();
    }
}
