//! Promotions that are taken back, or not any more: the promoted host serves with its power cut at any step, and the old
//! primary goes on only once the rollback is durable.

use afterimage_protocol::lineage::{Lineage, refuse};
use afterimage_protocol::message::{Refusal, TargetMessage};
use afterimage_protocol::state::{CannotRollBack, GroupState, Role};
use afterimage_protocol::*;
use afterimage_storage::group::GroupStore;

use super::model::History;
use super::primary::Primary;
use super::{Violation, World};

/// Steps in which clients write, the host ends and starts, and a rollback is asked for.
const STEPS: u64 = 120;
/// Steps within which a rollback that was asked for ends, once there are no more faults.
const ROLLBACK_STEPS: u64 = 200;

/// A promoted host, and what is known of it beside its disk.
struct Promoted {
    host: Primary,
    history: History,
    power_cut: bool,
    /// It said that the rollback is done, so the peer may hear of it.
    told: bool,
}

impl World {
    /// The standby was promoted at `position` and nothing was written since. Whether it is the standby again; else its
    /// generation is real.
    pub(super) fn take_back(&mut self, position: Position) -> Result<bool, Violation> {
        let Some(fenced) = self.old_primary_hears()? else { return Ok(false) };
        let mut host = Primary::new(self.rng.next_u64(), self.shape);
        // No other run of a source has had this one.
        host.boot = self.rng.next_u64() | 1 << 63;
        std::mem::swap(&mut host.disk, &mut self.standby.disk);
        let mut promoted = Promoted { host, history: History::default(), power_cut: true, told: false };
        let outcome = self.serve_pending(&mut promoted);
        promoted.host.disk.clear_faults();
        promoted.host.disk.set_fuse(None);
        std::mem::swap(&mut promoted.host.disk, &mut self.standby.disk);
        let state = outcome?;
        if state.role != Role::Standby {
            return Ok(false);
        }
        self.say(|| "the promotion was rolled back".into());
        self.check_promoted(position)?;
        self.standby.disk.kill();
        if fenced {
            self.lift_fence(&state)?;
        }
        Ok(true)
    }

    /// The old primary hears of the promotion, and is fenced, or it does not. `None` if it is the standby by itself now.
    fn old_primary_hears(&mut self) -> Result<Option<bool>, Violation> {
        let Ok((_, Some(peer))) = GroupStore::open(self.standby.disk.dir("group")) else { return Ok(None) };
        self.standby.disk.kill();
        if self.rng.coin() {
            return Ok(Some(false));
        }
        self.primary.disk.clear_faults();
        self.primary.disk.set_fuse(None);
        if self.rng.coin() {
            self.power_primary();
        } else {
            self.kill_primary();
        }
        let opened = GroupStore::open(self.primary.disk.dir("group"));
        let Ok((mut group, Some(mut state))) = opened else { return Ok(None) };
        let own = state.standing(state.reserved);
        match refuse("g", &own, &peer.standing(peer.reserved)) {
            Some(TargetMessage::Refused { code: Refusal::Promoted | Refusal::SplitBrain, .. }) => {}
            // It has lost its state.
            Some(TargetMessage::Refused { code: Refusal::Generation, .. }) => return Ok(None),
            other => return Err(Violation::new("G5", format!("a promoted host does not fence: {other:?}"))),
        }
        state.replaced(Some(Lineage::replaces(&peer.lineage, &state.lineage)));
        if state.role != Role::Fenced {
            // It had handed over at that very place.
            return Ok(None);
        }
        if group.write(&state).is_err() {
            return Err(Violation::new("rest", "a fence cannot be written".into()));
        }
        self.primary.disk.kill();
        self.say(|| "the old primary is fenced".into());
        Ok(Some(true))
    }

    /// The peer has rolled its promotion back, durably.
    fn lift_fence(&mut self, peer: &GroupState) -> Result<(), Violation> {
        let opened = GroupStore::open(self.primary.disk.dir("group"));
        let Ok((mut group, Some(mut state))) = opened else {
            return Err(Violation::new("rest", "the state of a fenced host cannot be read".into()));
        };
        let lost = GroupState { rolled_back: Vec::new(), ..peer.clone() };
        if state.replacement_rolled_back(&lost.rolled_back) {
            return Err(Violation::new("G5", "a peer that has lost its state lifts a fence".into()));
        }
        if !state.replacement_rolled_back(&peer.rolled_back) || group.write(&state).is_err() {
            return Err(Violation::new("rest", format!("the fence is not lifted: {state:?}, {peer:?}")));
        }
        self.primary.disk.kill();
        self.primary.fenced = false;
        Ok(())
    }

    /// The promoted host runs, and ends at any step. The state that it is left with.
    fn serve_pending(&mut self, promoted: &mut Promoted) -> Result<GroupState, Violation> {
        let (writes, asks) = (self.rng.chance(0.4), *self.rng.pick(&[0.0, 0.02, 0.2]));
        for _ in 0..STEPS {
            if !self.promoted_is_up(promoted)? {
                break;
            }
            if writes && self.rng.chance(0.2) {
                promoted.host.client(&mut self.rng, &mut promoted.history, self.now);
            }
            if self.rng.chance(asks) {
                self.ask_for_rollback(promoted);
            }
            if self.rng.chance(0.05) {
                let changes = self.rng.below(12);
                promoted.host.disk.set_fuse(Some(changes));
            }
            self.promoted_steps(promoted)?;
            if promoted.host.disk.dead() || promoted.told || self.rng.chance(0.04) {
                self.promoted_ends(promoted)?;
            }
        }
        promoted.host.disk.clear_faults();
        for _ in 0..ROLLBACK_STEPS {
            promoted.host.disk.set_fuse(None);
            if !self.promoted_is_up(promoted)? || promoted.told {
                break;
            }
            self.ask_for_rollback(promoted);
            self.promoted_steps(promoted)?;
        }
        self.promoted_ends(promoted)
    }

    fn ask_for_rollback(&mut self, promoted: &mut Promoted) {
        if let Some(p) = &mut promoted.host.process {
            p.source.roll_back(self.now);
            promoted.host.drain(&mut promoted.history);
        }
    }

    fn promoted_steps(&mut self, promoted: &mut Promoted) -> Result<(), Violation> {
        self.now.0 += self.rng.below(2_000);
        promoted.host.step(&mut self.rng, &mut promoted.history, self.now);
        if let Some(p) = &mut promoted.host.process
            && p.source.next_timeout().is_some_and(|t| t <= self.now)
        {
            p.source.timeout(self.now);
            promoted.host.drain(&mut promoted.history);
        }
        match promoted.host.rolled_back.take() {
            Some(Ok(at)) if promoted.history.count() > 0 => {
                Err(Violation::new("G5", format!("rolled back to {at}, after writes were admitted")))
            }
            Some(Ok(_)) => {
                promoted.told = true;
                Ok(())
            }
            Some(Err(CannotRollBack::NotPromoted)) => {
                Err(Violation::new("G5", "a promoted host does not know that it was promoted".into()))
            }
            Some(Err(_)) | None => Ok(()),
        }
    }

    /// Starts the host if it is down; `false` if it is the primary no more.
    fn promoted_is_up(&mut self, promoted: &mut Promoted) -> Result<bool, Violation> {
        let host = &mut promoted.host;
        if host.process.is_some() {
            return Ok(true);
        }
        let generation = Generation(self.rng.next_u64() | 1);
        let power_cut = std::mem::take(&mut promoted.power_cut);
        let up = host.start(&self.setup, &mut promoted.history, generation, self.now, power_cut)?;
        if !up {
            host.disk.kill();
        }
        Ok(up || !host.fenced)
    }

    /// The host is killed, or loses its power. What it is left with agrees with what was seen of it.
    fn promoted_ends(&mut self, promoted: &mut Promoted) -> Result<GroupState, Violation> {
        let host = &mut promoted.host;
        host.disk.kill();
        host.ended();
        if self.rng.coin() {
            host.disk.power_cut(&mut self.rng);
            host.boot += 1;
            host.power_lost();
            promoted.power_cut = true;
        }
        host.disk.clear_faults();
        host.disk.set_fuse(None);
        let Ok((_, Some(state))) = GroupStore::open(host.disk.dir("group")) else {
            return Err(Violation::new("rest", "the state of a promoted host cannot be read".into()));
        };
        host.disk.kill();
        let writes = promoted.history.count();
        self.say(|| format!("  the promoted host ends, {writes} writes, told {}: {state:?}", promoted.told));
        if promoted.told && state.role != Role::Standby {
            return Err(Violation::new(
                "G5",
                "two primaries: the peer was told of a rollback that was forgotten".into(),
            ));
        }
        if writes > 0 && (state.role != Role::Primary || state.pending) {
            return Err(Violation::new(
                "G5",
                format!("{writes} writes were admitted in a generation that can be rolled back"),
            ));
        }
        Ok(state)
    }
}
