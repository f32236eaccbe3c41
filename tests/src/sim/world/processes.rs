//! The two processes: how they start and how they end.

use afterimage_protocol::*;

use super::{Violation, World};

impl World {
    /// A process whose disk said that it is dead is dead.
    pub(super) fn notice_deaths(&mut self) {
        if self.primary.disk.dead() {
            self.kill_primary();
        }
        let broken = self.standby.process.as_ref().is_some_and(|p| p.broken);
        if self.standby.disk.dead() || broken {
            let failure = self.standby.process.as_ref().and_then(|p| p.target.failure());
            if let Some(failure) = failure {
                self.say(|| format!("standby has failed: {failure}"));
                if failure == target::JOURNAL_SYNC_FAILED {
                    self.excuse_received();
                }
            }
            self.kill_standby();
        }
    }

    pub(super) fn kill_primary(&mut self) {
        self.say(|| "primary is killed".into());
        self.primary.disk.kill();
        self.primary.ended();
        for c in &mut self.connections {
            c.source_gone = true;
        }
    }

    pub(super) fn kill_standby(&mut self) {
        self.say(|| "standby is killed".into());
        self.standby.disk.kill();
        self.standby.process = None;
        self.standby.handed_over = false;
        self.standby.outbox.clear();
        self.standby.ended.clear();
        for c in &mut self.connections {
            c.target_gone = true;
            c.to_source.clear();
        }
    }

    pub(super) fn start(&mut self) -> Result<(), Violation> {
        if self.primary.process.is_none() && !self.primary.fenced && self.rng.coin() {
            self.start_primary()?;
        }
        if self.standby.process.is_none() && self.rng.coin() {
            self.start_standby()?;
        }
        Ok(())
    }

    pub(super) fn start_primary(&mut self) -> Result<(), Violation> {
        if self.primary.process.is_some() {
            return Ok(());
        }
        let generation = Generation(self.rng.next_u64() | 1);
        let cut = self.faults.primary_power_cut;
        let up = self.primary.start(&self.setup, &mut self.history, generation, self.now, cut)?;
        self.say(|| format!("primary starts: {up}"));
        if up {
            self.outcome.starts += 1;
            self.faults.primary_power_cut = false;
            self.check_asks()?;
            let position = self.primary.process.as_ref().map(|p| p.source.position());
            self.say(|| format!("  recovery at {position:?}"));
        } else {
            self.primary.failed_to_start();
            self.primary.disk.kill();
        }
        Ok(())
    }

    pub(super) fn start_standby(&mut self) -> Result<(), Violation> {
        if self.standby.process.is_some() {
            return Ok(());
        }
        let up = self.standby.start(self.now);
        self.say(|| format!("standby starts: {up}"));
        if !up {
            self.standby.disk.kill();
            return Ok(());
        }
        self.outcome.starts += 1;
        let failed = self.standby.disk.failed_syncs();
        if std::mem::replace(&mut self.standby.failed_syncs, failed) < failed {
            // They may have taken it from the page cache, and the process that would have written it again has ended.
            self.excuse_received();
        }
        let newest = self.standby.newest();
        self.say(|| format!("  newest {newest:?}"));
        self.check()
    }

    /// Whoever starts while its peer could be promoted, or may have been, asks it first.
    fn check_asks(&self) -> Result<(), Violation> {
        let promotable = self.standby.process.as_ref().is_some_and(|p| p.target.may_promote().is_ok());
        let asks = self.primary.process.as_ref().is_some_and(|p| p.source.may_be_replaced());
        if promotable && !asks && !self.primary.first_run {
            return Err(Violation::new(
                "G5",
                "a primary starts without asking a peer that can be promoted".into(),
            ));
        }
        Ok(())
    }
}
