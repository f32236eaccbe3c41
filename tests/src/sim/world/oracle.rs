//! What must hold at any time, beyond the images: what either side says of the other is true.

use afterimage_protocol::source::{AckLevel, Mode};
use afterimage_protocol::target::Loss;
use afterimage_protocol::*;

use super::{Violation, World};

/// What the standby has claimed since its host was last damaged or set back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claims {
    /// The newest checkpoint that it called durable.
    pub(super) durable: Sequence,
    /// There was a checkpoint: from the end of the first sync on there always is one.
    pub(super) promotable: bool,
}

impl World {
    pub(super) fn check(&mut self) -> Result<(), Violation> {
        self.settle_flips();
        self.standby.check(&self.history, &self.flips)?;
        self.check_claims()?;
        self.check_zero_loss()?;
        self.check_would_lose()
    }

    /// What the standby would say that a promotion loses, is so.
    fn check_would_lose(&mut self) -> Result<(), Violation> {
        let Some(p) = &mut self.standby.process else { return Ok(()) };
        let Some(point) = p.target.newest() else { return Ok(()) };
        if self.standby.disk.dead() || p.broken {
            return Ok(());
        }
        let loss = p.target.loss(self.now);
        self.check_loss(loss, point.position.sequence)
    }

    /// What a promotion to `image` says that it loses, is so.
    pub(super) fn check_loss(&mut self, loss: Loss, image: Sequence) -> Result<(), Violation> {
        let answered = match loss {
            Loss::Nothing => self.primary.answered_before(None),
            Loss::Unknown { since: None } => return Ok(()),
            Loss::Unknown { since } => self.primary.answered_before(since),
        };
        match loss {
            Loss::Nothing => self.outcome.nothing_lost += 1,
            Loss::Unknown { .. } => self.outcome.unknown_loss += 1,
        }
        if answered > image {
            let detail =
                format!("lost is called {loss:?}; {answered} was acknowledged, the image is {image}");
            return Err(Violation::new("G3", detail));
        }
        Ok(())
    }

    /// What was acknowledged in sync is in the newest checkpoint.
    fn check_zero_loss(&mut self) -> Result<(), Violation> {
        let Some(p) = &self.standby.process else { return Ok(()) };
        if self.standby.disk.dead() || p.broken {
            return Ok(());
        }
        let must = self.primary.must;
        let newest = self.standby.newest().map(|p| p.sequence).unwrap_or_default();
        if newest < must {
            return Err(Violation::new(
                "G2",
                format!("write {must} was acknowledged in sync, the newest checkpoint is {newest}"),
            ));
        }
        Ok(())
    }

    /// What the standby once called durable is still there, and what the source believes of the target is so.
    pub(super) fn check_claims(&mut self) -> Result<(), Violation> {
        let Some(p) = &self.standby.process else { return Ok(()) };
        if self.standby.disk.dead() || p.broken {
            return Ok(());
        }
        let sequence = |c: Option<target::Checkpoint>| c.map(|c| c.position.sequence).unwrap_or_default();
        let (newest, durable) = (sequence(p.target.newest()), sequence(p.target.durable()));
        if p.target.newest().is_none() && self.claims.promotable {
            return Err(Violation::new("G1", "the standby has no checkpoint any more".into()));
        }
        if newest < self.claims.durable {
            let detail =
                format!("{} was called durable, the newest checkpoint is {newest}", self.claims.durable);
            return Err(Violation::new("G1", detail));
        }
        self.claims.durable = self.claims.durable.max(durable);
        self.claims.promotable |= p.target.newest().is_some();
        let session = p.target.session();
        let Some(source) = self.primary.process.as_ref().map(|p| &p.source) else { return Ok(()) };
        let status = source.status();
        if !status.connected || session != Some(source.state().session) || self.primary.disk.dead() {
            return Ok(());
        }
        if status.received > newest || status.durable > durable {
            return Err(Violation::new(
                "G2",
                format!(
                    "the source takes {} for received and {} for durable, the target has {newest} and {durable}",
                    status.received, status.durable
                ),
            ));
        }
        let config = &self.setup.config;
        let level = if config.ack == AckLevel::Durable { durable } else { newest };
        let acknowledged = self.primary.acknowledged;
        if config.mode == Mode::Sync && status.in_sync && level < acknowledged {
            let detail = format!("in sync, {acknowledged} was acknowledged, the target has {level}");
            return Err(Violation::new("G2", detail));
        }
        Ok(())
    }
}
