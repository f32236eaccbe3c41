//! Promotions: the one that ends every run at rest, and those in the middle of one, mostly cut short.

use afterimage_protocol::state::Role;
use afterimage_protocol::target::{Promotion, Wanted};
use afterimage_protocol::*;
use afterimage_storage::group::GroupStore;

use super::model::read_image;
use super::standby::check_point;
use super::{Violation, World, setup};

/// Steps that a promotion without faults may take.
const PROMOTION_STEPS: u64 = 2_000;

impl World {
    /// The end of every run: the standby is promoted and serves the image.
    pub(super) fn promote(&mut self) -> Result<(), Violation> {
        // Times may choose nothing, and a run ends with a promotion.
        let wanted = self.wanted_point().filter(|wanted| matches!(wanted, Wanted::Sequence(_)));
        if !self.begin_promotion(wanted) {
            return Ok(());
        }
        for _ in 0..2_000 {
            self.now.0 += 10_000;
            self.standby.step(&mut self.rng, self.now);
            self.timeouts();
            if self.standby.promoted.is_some() {
                break;
            }
        }
        match &self.standby.promoted {
            Some(Ok(promotion)) => {
                self.outcome.promoted = true;
                let (position, loss, had) = (promotion.position, promotion.loss, had(promotion));
                self.check_loss(loss, had)?;
                self.check_promoted(position)
            }
            other => {
                let activity = self.standby.process.as_ref().map(|p| p.target.activity());
                Err(Violation::new("rest", format!("the promotion did not end: {other:?}, {activity:?}")))
            }
        }
    }

    /// An older point to promote at, now and then: one that is there, or any time.
    fn wanted_point(&mut self) -> Option<Wanted> {
        self.settle_flips();
        if !self.flips.is_empty() {
            // What the journal has put right is wrong before.
            return None;
        }
        let p = self.standby.process.as_ref()?;
        let (base, newest) = (p.target.state().base?.position.sequence, p.target.newest()?.position.sequence);
        if !self.shape.older_points {
            return None;
        }
        if self.rng.chance(0.2) {
            return Some(Wanted::Time(Time(self.now.0.saturating_sub(self.rng.below(1_000_000)))));
        }
        // Mostly near the end: sequences make leaps at each start of a source.
        let reach = *self.rng.pick(&[10, 100, u64::MAX]);
        let back = self.rng.below(newest.0.saturating_sub(base.0).min(reach).saturating_add(1));
        Some(Wanted::Sequence(Sequence(newest.0 - back)))
    }

    /// Whether there is a standby that can be promoted.
    fn begin_promotion(&mut self, wanted: Option<Wanted>) -> bool {
        let generation = Generation(self.rng.next_u64() | 1);
        self.say(|| format!("the standby is promoted at {wanted:?}"));
        let Some(p) = &mut self.standby.process else { return false };
        match wanted {
            None => p.target.promote(self.now, generation),
            Some(wanted) => {
                p.target.promote_at(self.now, generation, wanted);
                // What lies behind that point is given up, whoever was promised what.
                self.given_up = true;
                self.excuse_standby();
            }
        }
        self.standby.drain(self.now);
        true
    }

    pub(super) fn check_promoted(&mut self, position: Position) -> Result<(), Violation> {
        let must = self.primary.must;
        if position.sequence < must {
            return Err(Violation::new(
                "G2",
                format!("promoted at {position}, {must} was acknowledged in sync"),
            ));
        }
        // What the promoted host serves survives its power.
        self.standby.disk.clear_faults();
        self.standby.disk.power_cut(&mut self.rng);
        let volumes = setup::open_volumes(&self.standby.disk);
        let image = read_image(&volumes)
            .map_err(|e| Violation::new("rest", format!("the base cannot be read: {e}")))?;
        if let Ok((_, Some(state))) = GroupStore::open(self.standby.disk.dir("group")) {
            let (sizes, needed) = (setup::sizes_in(&state), self.history.sizes_at(position.sequence));
            if sizes.iter().zip(needed).any(|(size, needed)| *size < needed) {
                let detail = format!("promoted at {position} with volumes of {sizes:?} bytes");
                return Err(Violation::new("G1", detail));
            }
        }
        check_point(&image, position, &self.history)?;
        self.fork = image;
        Ok(())
    }

    /// A promotion in the middle of a run; mostly, unless it is to be `taken_back`, the process is killed or the power cut on the
    /// way. Afterwards the host is either a standby, and the run goes on, or a primary with the image of its position.
    pub(super) fn promote_now(&mut self, taken_back: bool) -> Result<(), Violation> {
        self.check()?;
        // Whoever promotes a damaged copy has a damaged copy.
        if !self.flips.is_empty() {
            return Ok(());
        }
        let Some(p) = &mut self.standby.process else { return Ok(()) };
        if self.standby.disk.dead() || p.broken || p.target.may_promote().is_err() {
            return Ok(());
        }
        let wanted = self.wanted_point();
        if !self.begin_promotion(wanted) {
            return Ok(());
        }
        let cut_short = !taken_back && self.rng.chance(0.85);
        let steps = if cut_short { self.rng.below(25) } else { PROMOTION_STEPS };
        let pace_us = *self.rng.pick(&[100, 100, 10_000]);
        for _ in 0..steps {
            self.now.0 += pace_us;
            self.standby.step(&mut self.rng, self.now);
            self.timeouts();
            if self.standby.promoted.is_some() || self.standby.disk.dead() {
                break;
            }
        }
        let promoted = self.standby.promoted.take();
        let activity = self.standby.process.as_ref().map(|p| p.target.activity());
        self.say(|| format!("  {promoted:?}, {activity:?}"));
        if let Some(Ok(promotion)) = &promoted {
            let must = self.primary.must;
            if promotion.position.sequence < must {
                let detail = format!("promoted at {}, {must} was acknowledged in sync", promotion.position);
                return Err(Violation::new("G2", detail));
            }
            let (loss, had) = (promotion.loss, had(promotion));
            self.check_loss(loss, had)?;
            self.check_refusal()?;
        }
        if self.rng.coin() {
            self.power_standby()?;
        } else {
            self.kill_standby();
        }
        if wanted.is_some() {
            // The journal was cut, or not: what it had in the end counts no more than what it had before.
            self.excuse_standby();
        }
        self.standby.ended.clear();
        // What became durable is looked at with a disk that can be read.
        self.standby.disk.clear_faults();
        self.standby.disk.set_fuse(None);
        let Ok((_, Some(state))) = GroupStore::open(self.standby.disk.dir("group")) else { return Ok(()) };
        if state.role == Role::Standby {
            self.standby.disk.kill();
            return match promoted {
                Some(Ok(p)) => {
                    Err(Violation::new("G1", format!("the promotion at {} was forgotten", p.position)))
                }
                _ => Ok(()),
            };
        }
        let Some(position) = state.parent() else {
            return Err(Violation::new("G1", "a promoted host does not know its position".into()));
        };
        self.check_promoted(position)?;
        self.over = !taken_back || !self.take_back(position)?;
        Ok(())
    }

    /// The old primary is refused.
    fn check_refusal(&mut self) -> Result<(), Violation> {
        let Some(source) = &mut self.primary.process else { return Ok(()) };
        source.source.disconnected(self.now);
        let open = source.source.open(SessionId(self.rng.next_u64() | 1));
        source.source.disconnected(self.now);
        self.connections.iter_mut().for_each(|c| c.source_gone = true);
        self.primary.drain(&mut self.history);
        let (Some(open), Some(p)) = (open, &mut self.standby.process) else { return Ok(()) };
        match p.target.open(self.now, open) {
            Err(_) => Ok(()),
            Ok(()) => Err(Violation::new("G3", "a promoted host takes the old primary's session".into())),
        }
    }
}

/// The last write that the standby had when it was promoted, also where it was given up by choice.
fn had(promotion: &Promotion) -> Sequence {
    let given_up = promotion.discarded.as_ref().and_then(|discarded| discarded.newest);
    given_up.map_or(promotion.position.sequence, |newest| newest.sequence)
}
