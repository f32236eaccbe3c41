//! Planned changes of roles, in the middle of a run: asked for like any fault, and cut short by any other.

use afterimage_protocol::lineage::refuse;
use afterimage_protocol::message::{Refusal, TargetMessage};
use afterimage_protocol::source::RolesStay;
use afterimage_protocol::state::Role;
use afterimage_protocol::*;
use afterimage_storage::group::GroupStore;

use super::model::read_image;
use super::primary::Process;
use super::standby::check_point;
use super::{Claims, Violation, World, setup};

/// How long the source may hold its clients before it has asked the target, in microseconds.
const TIMEOUT_US: u64 = 5_000_000;
/// Steps in which clients try to get a write through to a source that has handed over.
const TRIES: u64 = 40;

impl World {
    /// The operator asks for a switchover.
    pub(super) fn switch_over(&mut self) {
        self.settle_flips();
        let Some(p) = &mut self.primary.process else { return };
        if !self.flips.is_empty() {
            // Nobody can tell any more which side is right.
            return;
        }
        p.source.hand_over(self.now, TIMEOUT_US);
        self.primary.drain(&mut self.history);
    }

    /// A switchover is under way.
    pub(super) fn switches_over(&self) -> bool {
        let handing = |p: &Process| p.source.may_hand_over() == Err(RolesStay::UnderWay);
        self.taking_over || self.standby.handed_over || self.primary.process.as_ref().is_none_or(handing)
    }

    /// What comes of a switchover that was asked for.
    pub(super) fn follow_switchover(&mut self) -> Result<(), Violation> {
        if std::mem::take(&mut self.standby.handed_over) {
            let refuses = self.rng.chance(0.1);
            let generation = Generation(self.rng.next_u64() | 1);
            let Some(p) = &mut self.standby.process else { return Ok(()) };
            if refuses {
                p.target.do_not_take_over("chance has it".into());
            } else {
                p.target.take_over(self.now, generation);
                self.taking_over = true;
            }
            self.standby.drain(self.now);
        }
        if !self.taking_over {
            return Ok(());
        }
        let promoted = self.standby.promoted.take();
        if promoted.is_none() && self.standby.process.is_some() {
            return Ok(());
        }
        self.taking_over = false;
        self.say(|| format!("the take-over ends: {promoted:?}"));
        if matches!(promoted, Some(Err(_))) {
            return Ok(());
        }
        if self.rng.coin() {
            self.standby.disk.clear_faults();
            self.power_standby()?;
        } else {
            self.kill_standby();
        }
        self.standby.disk.clear_faults();
        self.standby.disk.set_fuse(None);
        let Ok((_, Some(state))) = GroupStore::open(self.standby.disk.dir("group")) else { return Ok(()) };
        self.standby.disk.kill();
        match (state.role, promoted) {
            (Role::Standby, None) => Ok(()),
            (Role::Standby, Some(_)) => Err(Violation::new("G1", "the take-over was forgotten".into())),
            _ => self.change_places(&state.lineage, &state.standing(state.reserved)),
        }
    }

    /// The target has taken over: the source finds out, and is the standby.
    fn change_places(
        &mut self,
        peer: &lineage::Lineage,
        standing: &lineage::Standing,
    ) -> Result<(), Violation> {
        self.say(|| "the standby has taken over".into());
        self.primary.disk.clear_faults();
        self.primary.disk.set_fuse(None);
        if self.rng.coin() {
            self.kill_primary();
            if self.rng.coin() {
                self.power_primary();
            }
        }
        self.start_primary()?;
        self.nothing_is_admitted()?;
        let Some(p) = &mut self.primary.process else {
            return Err(Violation::new("rest", "the old primary does not start".into()));
        };
        p.source.disconnected(self.now);
        for _ in 0..200 {
            self.now.0 += 10_000;
            self.primary.step(&mut self.rng, &mut self.history, self.now);
            self.timeouts();
        }
        let session = SessionId(self.rng.next_u64() | 1);
        let Some(open) = self.primary.process.as_mut().and_then(|p| p.source.open(session)) else {
            // Its state cannot be written, and only a restart mends that.
            self.over = true;
            return Ok(());
        };
        let refusal = refuse("g", &open.standing, standing);
        if !matches!(&refusal, Some(TargetMessage::Refused { code: Refusal::Promoted, .. })) {
            return Err(Violation::new("G5", format!("two primaries: {refusal:?}")));
        }
        let ours = open.standing.lineage.current();
        let Some(left_at) = peer.left_at(ours) else {
            return Err(Violation::new("G5", "the new generation did not leave the old one".into()));
        };
        let state = self.primary.demote((peer.current(), left_at))?;
        self.kill_primary();
        if self.rng.coin() {
            self.primary.disk.power_cut(&mut self.rng);
        }
        if left_at < self.primary.must {
            let detail = format!("taken over at {left_at}, {} was acknowledged in sync", self.primary.must);
            return Err(Violation::new("G2", detail));
        }
        let position = Position::new(ours, left_at);
        for disk in [&self.primary.disk, &self.standby.disk] {
            let unsure = std::ptr::eq(disk, &self.primary.disk) && state.base.is_none();
            let image = read_image(&setup::open_volumes(disk))
                .map_err(|e| Violation::new("rest", format!("a volume cannot be read: {e}")))?;
            if !unsure {
                check_point(&image, position, &self.history)?;
            }
        }
        self.swap_hosts();
        self.claims = Claims::default();
        if state.base.is_some() {
            (self.claims.promotable, self.claims.durable) = (true, left_at);
        }
        self.say(|| format!("the hosts have changed places at {left_at}"));
        Ok(())
    }

    /// Clients try to write to a source that has handed over.
    fn nothing_is_admitted(&mut self) -> Result<(), Violation> {
        let writes = self.history.count();
        for _ in 0..TRIES {
            self.now.0 += 1_000;
            self.primary.client(&mut self.rng, &mut self.history, self.now);
            self.primary.step(&mut self.rng, &mut self.history, self.now);
            self.timeouts();
        }
        if self.history.count() != writes {
            return Err(Violation::new("G5", "two hosts admit writes".into()));
        }
        Ok(())
    }

    /// The hosts change places.
    pub(super) fn swap_hosts(&mut self) {
        std::mem::swap(&mut self.primary.disk, &mut self.standby.disk);
        self.primary.boot += 1;
        self.primary.fenced = false;
        self.connections.clear();
        self.flips.forget();
        self.standby.promoted = None;
        self.faults.forget_copy();
        self.faults.primary_power_cut = false;
        self.setup.compare = false;
        self.primary.unaware = false;
        self.over = false;
        self.given_up = false;
    }
}
