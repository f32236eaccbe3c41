//! The lane of a group: one thread on which its clients' connections and its link take turns.
//!
//! A write then goes from the socket through the group to the network, and its acknowledgement back, without being handed
//! from thread to thread. What may wait for a disk for long does so elsewhere; should a volume hang all the same, its group's
//! link falls silent with it, and no other's.

use anyhow::Context;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The thread of a group; what still runs on it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Lane {
    runtime: Handle,
    _end: oneshot::Sender<()>,
}

impl Lane {
    /// Starts the thread.
    pub fn start(group: &str) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(format!("lane-{group}"));
        let run = move || {
            // Nothing is ever sent: it ends when the sender is gone.
            let _ = runtime.block_on(ended);
        };
        thread.spawn(run).with_context(|| format!("cannot start a thread for group {group}"))?;
        Ok(Self { runtime: handle, _end: end })
    }

    /// Where to start what belongs on the thread.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}
