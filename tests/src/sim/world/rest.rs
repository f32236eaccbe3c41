//! Times without faults: the first sync of most runs, and the end of every run, when the pair has to come to rest.

use afterimage_protocol::*;

use super::model::read_image;
use super::{Violation, World};

/// Rounds that are given to a first sync without faults.
const FIRST_SYNC_ROUNDS: u64 = 2_000;
/// Rounds within which the standby follows a source that has lost track.
const FOLLOW_ROUNDS: u64 = 4_000;
/// Steps that a run may take to come to rest.
const REST_STEPS: u64 = 20_000;

impl World {
    /// A round in which everything that can go on does.
    pub(super) fn round(&mut self) -> Result<(), Violation> {
        self.start()?;
        self.connect();
        for _ in 0..4 {
            self.primary.step(&mut self.rng, &mut self.history, self.now);
            self.standby.step(&mut self.rng, self.now);
            self.send();
            for _ in 0..4 {
                self.deliver()?;
                self.collect();
            }
        }
        self.timeouts();
        self.after_step()?;
        Ok(())
    }

    /// The first sync, before the faults begin: most of the rules are about what comes after it.
    pub(super) fn first_sync(&mut self) -> Result<(), Violation> {
        for _ in 0..FIRST_SYNC_ROUNDS {
            self.now.0 += 500;
            self.primary.client(&mut self.rng, &mut self.history, self.now);
            self.round()?;
            if self.standby.newest().is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Everything is mended; the pair must come to rest.
    pub(super) fn come_to_rest(&mut self) -> Result<(), Violation> {
        self.say(|| "everything is mended".into());
        self.mend();
        self.follow()?;
        self.restart_failed();
        let (verifies, mut verified) = (self.rng.chance(0.2), false);
        let clients_until = if self.rng.chance(0.3) { 400 } else { 0 };
        for step in 0..REST_STEPS {
            self.now.0 += 500;
            if step < clients_until {
                self.primary.client(&mut self.rng, &mut self.history, self.now);
            }
            if step % 100 == 0 {
                self.restart_failed();
            }
            self.round()?;
            if step >= clients_until && self.unrest().is_none() {
                self.check_rest()?;
                self.settle_flips();
                if verified || (self.flips.is_empty() && !verifies) {
                    return Ok(());
                }
                verified = true;
                self.verify_all()?;
            }
        }
        let detail = format!(
            "no rest, {}: {}; {}; {:?}; target newest {:?}, jobs {} and {}, {} requests",
            self.unrest().unwrap_or("but a restart is due"),
            self.standby.process.as_ref().map(|p| p.target.activity()).unwrap_or_default(),
            self.primary.process.as_ref().map(|p| p.source.activity()).unwrap_or_default(),
            self.primary.process.as_ref().map(|p| p.source.status()),
            self.standby.newest(),
            self.primary.jobs(),
            self.standby.jobs(),
            self.primary.requests()
        );
        Err(Violation::new("rest", detail))
    }

    /// A source that has lost track of what the target lacks goes on, and its target follows: before the restart that will
    /// send everything again.
    fn follow(&mut self) -> Result<(), Violation> {
        let fails = |s: source::Status| s.state_failed || !(s.tracking_lost || s.unreadable_blocks > 0);
        if self.primary.process.as_ref().is_none_or(|p| fails(p.source.status())) {
            return Ok(());
        }
        for round in 0..FOLLOW_ROUNDS {
            self.now.0 += 500;
            if round < FOLLOW_ROUNDS / 10 {
                self.primary.client(&mut self.rng, &mut self.history, self.now);
            }
            self.round()?;
            let Some(p) = &self.primary.process else { return Ok(()) };
            let status = p.source.status();
            let newest = self.standby.newest();
            if fails(status.clone()) || (status.streaming && newest == Some(p.source.position())) {
                return Ok(());
            }
        }
        let status = self.primary.process.as_ref().map(|p| p.source.status());
        let newest = self.standby.newest();
        Err(Violation::new(
            "G7",
            format!("the standby stays at {newest:?} while the primary goes on: {status:?}"),
        ))
    }

    /// What keeps the pair from being at rest.
    fn unrest(&self) -> Option<&'static str> {
        let (Some(p), Some(t)) = (&self.primary.process, &self.standby.process) else {
            return Some("a process is down");
        };
        let status = p.source.status();
        let sync = self.setup.config.mode == source::Mode::Async || status.in_sync;
        let newest = t.target.newest();
        let conditions = [
            (!self.taking_over, "the standby is taking over"),
            (self.primary.requests() == 0, "clients wait"),
            (status.streaming, "the catch-up does not end"),
            (newest.is_some_and(|c| c.position == p.source.position()), "the standby stays behind"),
            (t.target.durable() == newest, "the standby's journal is not synced"),
            (sync, "the group is not in sync"),
            (p.source.is_clean(), "blocks stay dirty"),
            (t.target.state().lost.is_none(), "blocks that the standby lost stay lost"),
        ];
        conditions.into_iter().find(|(met, _)| !met).map(|(_, what)| what)
    }

    pub(super) fn check_rest(&mut self) -> Result<(), Violation> {
        self.check()?;
        let Some(p) = &self.primary.process else { return Ok(()) };
        let volumes: Vec<_> = p.volumes.iter().map(|v| v.file().clone()).collect();
        let image = read_image(&volumes)
            .map_err(|e| Violation::new("rest", format!("the primary cannot be read: {e}")))?;
        if image != *self.history.now() {
            return Err(Violation::new("G4", "the primary's disk is not what its order says".into()));
        }
        Ok(())
    }

    /// No more faults; what failed for good is started again.
    pub(super) fn mend(&mut self) {
        self.link = [true; 2];
        self.faults.plan.clear();
        self.faults.lose_record = false;
        self.primary.fail_cooling = false;
        self.faults.lose_commit = false;
        self.faults.lose_opened = false;
        for disk in [&self.primary.disk, &self.standby.disk] {
            disk.clear_faults();
            disk.set_fuse(None);
        }
        // What is under way on an older connection may still come, in the middle of the last one.
        let again = self.rng.chance(0.3);
        if again || self.connections.iter().any(|c| c.lossy && !c.source_gone) {
            self.source_disconnects();
        }
    }

    /// What only a restart mends.
    pub(super) fn restart_failed(&mut self) {
        let failed = self.primary.process.as_ref().is_some_and(|p| {
            let status = p.source.status();
            status.state_failed || status.tracking_lost || status.unreadable_blocks > 0
        });
        if failed {
            self.kill_primary();
        }
    }
}
