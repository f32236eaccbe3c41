//! A run without faults whose clients write faster than the link carries: a catch-up must close all the same (rule 15).

use afterimage_protocol::source::Mode;

use super::{Violation, World};

/// Rounds within which an epoch has to close, of [`ROUND_US`] each: several times what admission is held for, and what a
/// sync group rests after its way into sync has failed.
const ROUNDS: u64 = 10_000;
const ROUND_US: u64 = 1_000;

impl World {
    pub(super) fn busy(&mut self) -> Result<(), Violation> {
        self.say(|| "clients write as fast as they can".into());
        self.setup.config.queue_bytes = 12_000;
        self.setup.config.max_rate = None;
        // With less, a target that is as slow as this one is given up too often to be waited for.
        self.setup.config.sync_timeout_us = 1_000_000;
        for _ in 0..ROUNDS {
            self.outcome.steps += 1;
            self.now.0 += ROUND_US;
            self.start()?;
            self.connect();
            for _ in 0..6 {
                self.primary.client(&mut self.rng, &mut self.history, self.now);
                self.primary.step(&mut self.rng, &mut self.history, self.now);
                self.primary.step(&mut self.rng, &mut self.history, self.now);
                self.standby.step(&mut self.rng, self.now);
            }
            self.send();
            for _ in 0..8 {
                self.deliver()?;
                self.collect();
            }
            self.timeouts();
            self.after_step()?;
            let status = self.primary.process.as_ref().map(|p| p.source.status());
            let sync = self.setup.config.mode == Mode::Sync;
            let settled = status.as_ref().is_some_and(|s| s.streaming && (s.in_sync || !sync));
            if settled && self.standby.newest().is_some() {
                return Ok(());
            }
        }
        let status = self.primary.process.as_ref().map(|p| p.source.status());
        let detail = format!("the catch-up does not close, or not in sync, while clients write: {status:?}");
        Err(Violation::new("G7", detail))
    }
}
