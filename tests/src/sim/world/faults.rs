//! The faults of a run: which ones, how often, and what each does.

use std::collections::VecDeque;

use afterimage_protocol::Sequence;
use afterimage_storage::group::PrimaryVolume;

use super::copies::Copies;
use super::given::Given;
use super::primary::{HOT_LOG, Process};
use super::theme::Theme;
use super::{Violation, World};
use crate::sim::{Failure, On, Rng, Snapshot, Times};

/// Weights of the eight ordinary actions: client, primary job, send, deliver, standby job, connect, start, timeouts.
const ORDINARY: [u32; 8] = [140, 260, 200, 420, 200, 80, 60, 120];
/// Base weights of the faults.
const FAULTS: [(Fault, u32); 34] = [
    (Fault::CutLink, 8),
    (Fault::OneWay, 5),
    (Fault::Heal, 30),
    (Fault::SourceLetsGo, 4),
    (Fault::KillPrimary, 5),
    (Fault::KillStandby, 5),
    (Fault::FusePrimary, 5),
    (Fault::FuseStandby, 5),
    (Fault::PowerPrimary, 4),
    (Fault::PowerStandby, 4),
    (Fault::DiskPrimary, 3),
    (Fault::DiskStandby, 4),
    (Fault::Damage, 3),
    (Fault::OldCopy, 3),
    (Fault::StandbyTwice, 2),
    (Fault::SyncThenPower, 2),
    (Fault::PrimaryTwice, 2),
    (Fault::OldCopySoon, 1),
    (Fault::DamageLive, 1),
    (Fault::Promote, 1),
    (Fault::LoseRecord, 2),
    (Fault::HotLogFails, 1),
    (Fault::CommitLost, 1),
    (Fault::OpenedLost, 1),
    (Fault::TrackingLost, 1),
    (Fault::VolumeFails, 2),
    (Fault::OldCopyAtNote, 1),
    (Fault::OldSessions, 1),
    (Fault::FlushFails, 1),
    (Fault::SwitchOver, 3),
    (Fault::Verify, 8),
    (Fault::FlipBase, 2),
    (Fault::RollBack, 1),
    (Fault::Grow, 4),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    CutLink,
    OneWay,
    Heal,
    SourceLetsGo,
    KillPrimary,
    KillStandby,
    FusePrimary,
    FuseStandby,
    PowerPrimary,
    PowerStandby,
    DiskPrimary,
    DiskStandby,
    Damage,
    OldCopy,
    /// Killed, started again and then without power, before much else happens.
    StandbyTwice,
    /// A sync of the journal fails, and soon after the power.
    SyncThenPower,
    /// The same for the primary as [`Fault::StandbyTwice`], mostly without a link.
    PrimaryTwice,
    /// An old copy that is restored soon, mostly within the same session.
    OldCopySoon,
    /// A bit flips in an entry that still counts.
    DamageLive,
    /// A promotion, mostly cut short.
    Promote,
    /// A record is lost on its way, as no connection should.
    LoseRecord,
    /// The hot-extent log cannot be written.
    HotLogFails,
    /// The hot-extent log fails when no client waits; then none writes for a while, and the connection ends at a commit.
    TrackingLost,
    /// The connection ends just before a commit arrives.
    CommitLost,
    /// The connection ends just before the answer to a handshake arrives.
    OpenedLost,
    /// A write to one of the primary's volumes fails.
    VolumeFails,
    /// An old copy that is restored while the primary dies.
    OldCopyAtNote,
    /// An old copy that is restored after two more sessions.
    OldSessions,
    /// The operator asks for a switchover.
    SwitchOver,
    /// A flush of one of the primary's volumes fails, and soon after it is killed or without power; then clients are quiet.
    FlushFails,
    /// No fault: a verification begins.
    Verify,
    /// A bit flips in the standby's base.
    FlipBase,
    /// The standby is promoted, and the operator takes that back, unless a client writes first.
    RollBack,
    /// No fault: the volumes grow.
    Grow,
}

/// Steps in which a catch-up of everything ends, mostly.
const HUSH_STEPS: u64 = 600;

/// Steps in which most bits clear.
const QUIET_STEPS: u64 = 300;

/// What follows of a fault that takes several steps.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    KillStandby,
    StartStandby,
    PowerStandby,
    KillPrimary,
    StartPrimary,
    PowerPrimary,
    Restore,
    LetGo,
    Heal,
    Grow,
}

pub struct Faults {
    /// Of all actions, in order: ordinary ones, then faults.
    pub weights: [u32; ORDINARY.len() + FAULTS.len()],
    pub primary_power_cut: bool,
    pub old_copy: Option<(Snapshot, u64)>,
    /// What follows, and after how many steps.
    pub plan: VecDeque<(u64, Next)>,
    /// The next record outside an epoch gets lost.
    pub lose_record: bool,
    /// When the source has lost track, clients are quiet and the connection of the next commit ends.
    hush_at_loss: bool,
    /// Steps in which no client writes.
    pub hush: u64,
    /// The connection of the next commit ends.
    pub lose_commit: bool,
    /// The connection of the next answer to a handshake ends.
    pub lose_opened: bool,
    /// The primary ends when a flush has failed.
    end_unflushed: bool,
    /// The standby is promoted when its newest checkpoint is not durable, and no sync is under way.
    promote_unsynced: bool,
    /// Old copies are out of bounds, or only those of an older session: a rule that they need is off.
    pub copies: Copies,
    /// One file of the primary's state may fail in a run: with two, what must be remembered has no place left.
    pub state_fault_used: bool,
}

impl Faults {
    /// No copy of a disk comes back any more.
    pub fn forget_copy(&mut self) {
        self.old_copy = None;
        self.plan.clear();
    }

    pub fn new(rng: &mut Rng, theme: Option<Theme>, given: Option<Given>) -> Self {
        let mut weights = [0; ORDINARY.len() + FAULTS.len()];
        weights[..ORDINARY.len()].copy_from_slice(&ORDINARY);
        for w in &mut weights[..ORDINARY.len()] {
            *w = *w * rng.between(1, 4) as u32 / 2;
        }
        let calm = *rng.pick(&[1, 1, 2, 5, 10]);
        for (n, (fault, base)) in FAULTS.iter().enumerate() {
            let factor = if *fault == Fault::Heal { 1 } else { *rng.pick(&[0, 0, 1, 1, 3]) };
            weights[ORDINARY.len() + n] =
                if *fault == Fault::Heal { *base } else { base * factor * 10 / calm / 10 };
        }
        if let Some(theme) = theme {
            let others = *rng.pick(&[0, 0, 1]);
            let often = *rng.pick(&[4, 12]);
            for (n, (fault, _)) in FAULTS.iter().enumerate() {
                let weight = &mut weights[ORDINARY.len() + n];
                match fault {
                    Fault::Heal => {}
                    f if theme.faults().contains(f) => *weight = often,
                    _ => *weight *= others,
                }
            }
        }
        if given.is_some_and(|given| !given.loses_records()) {
            for (n, (fault, _)) in FAULTS.iter().enumerate() {
                if *fault == Fault::LoseRecord {
                    weights[ORDINARY.len() + n] = 0;
                }
            }
        }
        Self {
            weights,
            primary_power_cut: false,
            old_copy: None,
            plan: VecDeque::new(),
            lose_record: false,
            lose_commit: false,
            lose_opened: false,
            hush_at_loss: false,
            hush: 0,
            end_unflushed: false,
            promote_unsynced: false,
            copies: given.map_or(Copies::Any, Given::copies),
            state_fault_used: false,
        }
    }

    fn follow(&mut self, rng: &mut Rng, steps: std::ops::Range<u64>, next: Next) {
        let after = rng.between(steps.start, steps.end);
        self.plan.push_back((after, next));
    }
}

impl World {
    pub(super) fn fault(&mut self, index: usize) -> Result<(), Violation> {
        let fault = FAULTS[index].0;
        if fault != Fault::Heal {
            self.say(|| format!("FAULT {fault:?}"));
        }
        match fault {
            Fault::CutLink => self.link = [false; 2],
            Fault::OneWay => {
                let way = self.rng.index(2);
                self.link[way] = false;
            }
            Fault::Heal => self.link = [true; 2],
            Fault::SourceLetsGo => self.source_disconnects(),
            Fault::KillPrimary if self.primary.process.is_some() => self.kill_primary(),
            Fault::KillStandby if self.standby.process.is_some() => {
                self.check()?;
                self.kill_standby();
            }
            Fault::FusePrimary => {
                let after = self.rng.below(12);
                self.primary.disk.set_fuse(Some(after));
            }
            Fault::FuseStandby => {
                let after = self.rng.below(20);
                self.standby.disk.set_fuse(Some(after));
            }
            Fault::PowerPrimary => self.power_primary(),
            Fault::PowerStandby => self.power_standby()?,
            Fault::DiskPrimary => self.fail_primary_disk(),
            Fault::DiskStandby => self.fail_standby_disk(),
            Fault::Damage => self.damage(),
            Fault::OldCopy => self.old_copy(),
            Fault::Verify => self.begin_verification(),
            Fault::FlipBase => self.flip_base(),
            Fault::Promote if self.rng.coin() => self.promote_now(false)?,
            Fault::RollBack => self.promote_now(true)?,
            Fault::Grow if self.faults.plan.is_empty() && self.rng.coin() => {
                // Clients are quiet before, so that few bits are set.
                self.faults.hush = QUIET_STEPS;
                self.faults.follow(&mut self.rng, QUIET_STEPS / 2..QUIET_STEPS, Next::Grow);
            }
            Fault::Grow => self.grow(),
            Fault::Promote => self.faults.promote_unsynced = true,
            Fault::LoseRecord => self.faults.lose_record = true,
            Fault::CommitLost => self.faults.lose_commit = true,
            Fault::OpenedLost => self.faults.lose_opened = true,
            Fault::VolumeFails => {
                let volume = *self.rng.pick(&["volumes/v0", "volumes/v1"]);
                self.primary.disk.fail(volume, On::Write, Failure::Io, Times::Count(1));
            }
            Fault::HotLogFails if !self.faults.state_fault_used => {
                self.faults.state_fault_used = true;
                self.primary.disk.fail(HOT_LOG, On::Write, Failure::Io, Times::Count(1));
            }
            Fault::TrackingLost if !self.faults.state_fault_used || self.primary.fail_cooling => {
                self.faults.state_fault_used = true;
                self.faults.hush_at_loss = true;
                self.faults.hush = HUSH_STEPS / 2;
                self.primary.fail_cooling = true;
            }
            Fault::FlushFails if !self.faults.state_fault_used => {
                self.faults.state_fault_used = true;
                self.faults.end_unflushed = true;
                let volume = *self.rng.pick(&["volumes/v0", "volumes/v1"]);
                self.primary.disk.fail(volume, On::Sync, Failure::Io, Times::Count(1));
            }
            Fault::SwitchOver => self.switch_over(),
            Fault::DamageLive => self.damage_live(),
            _ if self.faults.plan.is_empty() => self.begin_plan(fault),
            _ => {}
        }
        Ok(())
    }

    fn grow(&mut self) {
        let grown = self.primary.grow(&mut self.history, self.now);
        self.say(|| format!("  volumes grow: {grown:?}"));
        if grown.is_err() {
            return;
        }
        match self.rng.below(8) {
            0 => self.faults.follow(&mut self.rng, 0..100, Next::KillPrimary),
            1 => self.faults.follow(&mut self.rng, 0..100, Next::PowerPrimary),
            2 => self.faults.follow(&mut self.rng, 0..100, Next::KillStandby),
            3 => {
                let after = self.rng.below(40);
                self.primary.disk.set_fuse(Some(after));
            }
            _ => {}
        }
    }

    /// Lays out a fault that takes several steps.
    fn begin_plan(&mut self, fault: Fault) {
        let (f, rng) = (&mut self.faults, &mut self.rng);
        match fault {
            Fault::StandbyTwice => {
                f.follow(rng, 0..1, Next::KillStandby);
                f.follow(rng, 0..10, Next::StartStandby);
                f.follow(rng, 0..20, Next::PowerStandby);
            }
            Fault::SyncThenPower => {
                let times = Times::Count(1 + rng.below(2));
                self.standby.disk.fail("journal/*", On::Sync, Failure::Io, times);
                f.follow(rng, 5..80, Next::PowerStandby);
            }
            Fault::PrimaryTwice => {
                if rng.chance(0.7) {
                    self.link = [false; 2];
                }
                f.follow(rng, 0..60, Next::KillPrimary);
                f.follow(rng, 0..10, Next::StartPrimary);
                f.follow(rng, 40..250, Next::PowerPrimary);
                f.follow(rng, 0..10, Next::Heal);
            }
            Fault::OldCopySoon => {
                self.take_copy();
                self.faults.follow(&mut self.rng, 20..300, Next::Restore);
            }
            Fault::OldCopyAtNote => {
                self.take_copy();
                self.faults.follow(&mut self.rng, 20..300, Next::KillPrimary);
                self.faults.follow(&mut self.rng, 0..1, Next::Restore);
            }
            Fault::OldSessions => {
                self.take_copy();
                for _ in 0..2 {
                    self.faults.follow(&mut self.rng, 50..200, Next::LetGo);
                }
                self.faults.follow(&mut self.rng, 50..200, Next::Restore);
            }
            _ => {}
        }
    }

    /// Does what is due of a fault that takes several steps.
    pub(super) fn follow_plan(&mut self) -> Result<(), Violation> {
        self.faults.hush = self.faults.hush.saturating_sub(1);
        let lost = |p: &Process| p.source.status().tracking_lost;
        if self.faults.hush_at_loss && self.primary.process.as_ref().is_some_and(lost) {
            self.faults.hush_at_loss = false;
            self.faults.hush = HUSH_STEPS;
            self.say(|| "  track is lost, clients are quiet".into());
            self.faults.lose_commit = true;
        }
        if self.faults.promote_unsynced && self.standby.has_unsynced() {
            self.faults.promote_unsynced = false;
            return self.promote_now(false);
        }
        let unflushed = |p: &Process| p.volumes.iter().any(PrimaryVolume::flush_failed);
        if self.faults.end_unflushed && self.primary.process.as_ref().is_some_and(unflushed) {
            self.faults.end_unflushed = false;
            let (f, rng) = (&mut self.faults, &mut self.rng);
            f.hush = HUSH_STEPS;
            f.follow(rng, 0..200, Next::KillPrimary);
            f.follow(rng, 0..10, Next::StartPrimary);
            f.follow(rng, 0..300, Next::PowerPrimary);
        }
        let Some((after, next)) = self.faults.plan.front_mut() else { return Ok(()) };
        if *after > 0 {
            *after -= 1;
            return Ok(());
        }
        let next = *next;
        self.faults.plan.pop_front();
        self.say(|| format!("FAULT goes on: {next:?}"));
        match next {
            Next::KillStandby if self.standby.process.is_some() => {
                self.check()?;
                self.kill_standby();
            }
            Next::StartStandby => self.start_standby()?,
            Next::PowerStandby => self.power_standby()?,
            Next::KillPrimary if self.primary.process.is_some() => self.kill_primary(),
            Next::StartPrimary => self.start_primary()?,
            Next::PowerPrimary => self.power_primary(),
            Next::Restore => self.restore_copy(),
            Next::LetGo => self.source_disconnects(),
            Next::Grow => {
                self.faults.hush = 0;
                self.grow();
            }
            Next::Heal => self.link = [true; 2],
            _ => {}
        }
        Ok(())
    }

    pub(super) fn power_primary(&mut self) {
        self.kill_primary();
        self.primary.disk.power_cut(&mut self.rng);
        self.primary.boot += 1;
        self.primary.power_lost();
        self.faults.primary_power_cut = true;
    }

    pub(super) fn power_standby(&mut self) -> Result<(), Violation> {
        self.check()?;
        self.kill_standby();
        self.standby.disk.power_cut(&mut self.rng);
        self.excuse_received();
        Ok(())
    }

    /// What the standby had received and not made durable may be gone.
    pub(super) fn excuse_received(&mut self) {
        if self.setup.config.ack == afterimage_protocol::source::AckLevel::Received {
            self.primary.must = self.primary.must_durable;
            self.primary.unaware = true;
        }
    }

    /// What the standby once said or promised does not count any more.
    pub(super) fn excuse_standby(&mut self) {
        self.primary.must = Sequence(0);
        self.primary.must_durable = Sequence(0);
        self.primary.unaware = true;
        self.claims = Default::default();
    }
}
