//! Volumes that grow while they are served.
//!
//! The volumes themselves were made larger before, at the target first. The session is ended, admission is held, new
//! bitmaps are made in which the new area is dirty, and the state with the new sizes makes it come true. The next handshake
//! tells the target, and a catch-up carries the new area. What a kill leaves before the state is durable is the old sizes
//! with the old bitmaps, afterwards the new sizes with the new ones (`storage::group`).

use super::*;

/// Clients are held this long at most until the new bitmaps are there, in microseconds.
const PREPARE_US: u64 = 10_000_000;
/// And this long for the session to be back, so that nothing is acknowledged that no session carries.
const REOPEN_US: u64 = 2_000_000;

/// A volume that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Which one.
    pub volume: VolumeIndex,
    /// Its size until now, in bytes.
    pub from_bytes: u64,
    /// Its size from now on, in bytes.
    pub to_bytes: u64,
}

/// Why volumes keep their sizes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotGrow {
    /// There is no session.
    #[error("the standby is not connected")]
    NotConnected,
    /// The roles are being changed.
    #[error("a switchover is under way")]
    ChangingRoles,
    /// It is being done.
    #[error("a resize is under way already")]
    UnderWay,
    /// The target has nothing that could grow.
    #[error("the first sync is not over")]
    FirstSync,
    /// What the target lacks is not known.
    #[error("both copies are being compared")]
    Comparing,
    /// A disk failed.
    #[error("a disk of this host failed: what it has cannot be vouched for")]
    Failed,
    /// The new bitmaps cannot be made.
    #[error("the new bitmaps cannot be made")]
    NoBitmaps,
    /// Clients had to wait for too long.
    #[error("the disk with the state of the group is too slow: clients are held for {} s at most", PREPARE_US / 1_000_000)]
    TooSlow,
    /// A volume is smaller than before.
    #[error("volume {name} had {had_bytes} bytes and has {has_bytes} now: volumes cannot be made smaller")]
    Shrank {
        /// The volume.
        name: String,
        /// Its size as it is replicated.
        had_bytes: u64,
        /// Its size now.
        has_bytes: u64,
    },
    /// None is larger than before.
    #[error("no volume has grown")]
    NothingGrew,
    /// The target has no room for it.
    #[error("volume {name} has {wanted_bytes} bytes here, and {has_bytes} at the standby")]
    TargetTooSmall {
        /// The volume.
        name: String,
        /// Its size here.
        wanted_bytes: u64,
        /// Its size at the target.
        has_bytes: u64,
    },
}

#[derive(Debug)]
pub(super) struct Growing {
    volumes: Vec<Growth>,
    step: Step,
}

enum Step {
    /// The session ends, and what the hot-extent log does comes to rest: nothing sets or syncs a bit any more.
    Settle { until: Time },
    /// The new bitmaps are being made.
    Prepare { until: Time },
    /// Given up; the new bitmaps are still being made, for nothing.
    GivenUp,
    /// The new sizes become durable.
    Note { version: u64, bitmaps: Vec<Bitmap> },
    /// It is done; the session comes back.
    Reopen { until: Time },
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Step::Settle { .. } => "settle",
            Step::Prepare { .. } => "prepare",
            Step::GivenUp => "given up",
            Step::Note { .. } => "note",
            Step::Reopen { .. } => "reopen",
        })
    }
}

impl Source {
    /// What would grow if the volumes had `sizes` here (`None` for one that is to stay as it is), and the target had room
    /// for `target_sizes`; all in bytes, in the order of the volumes.
    pub fn may_grow(
        &self,
        sizes: &[Option<u64>],
        target_sizes: Option<&[u64]>,
    ) -> Result<Vec<Growth>, CannotGrow> {
        if self.growing.is_some() {
            return Err(CannotGrow::UnderWay);
        }
        if self.handover.is_some() || self.state.handing_over.is_some() {
            return Err(CannotGrow::ChangingRoles);
        }
        if self.state_failed || self.tracking_lost || self.flush_failed.contains(&true) {
            return Err(CannotGrow::Failed);
        }
        let mut growth = Vec::new();
        for (index, (ours, size)) in self.config.volumes.iter().zip(sizes).enumerate() {
            let (name, from_bytes) = (&ours.name, ours.size_bytes);
            match *size {
                Some(has_bytes) if has_bytes < from_bytes => {
                    return Err(CannotGrow::Shrank { name: name.clone(), had_bytes: from_bytes, has_bytes });
                }
                Some(to_bytes) if to_bytes > from_bytes => {
                    growth.push(Growth { volume: VolumeIndex(index as u32), from_bytes, to_bytes });
                }
                _ => {}
            }
        }
        if growth.is_empty() {
            return Err(CannotGrow::NothingGrew);
        }
        if !self.session.is_active() {
            return Err(CannotGrow::NotConnected);
        }
        if self.is_first_sync() {
            return Err(CannotGrow::FirstSync);
        }
        if self.state.compare_all {
            return Err(CannotGrow::Comparing);
        }
        for Growth { volume, to_bytes: wanted_bytes, .. } in &growth {
            let at = volume.0 as usize;
            let has_bytes = target_sizes.map_or(*wanted_bytes, |sizes| sizes.get(at).copied().unwrap_or(0));
            if has_bytes < *wanted_bytes {
                let name = self.config.volumes.get(at).map(|v| v.name.clone()).unwrap_or_default();
                return Err(CannotGrow::TargetTooSmall { name, wanted_bytes: *wanted_bytes, has_bytes });
            }
        }
        Ok(growth)
    }

    /// Makes volumes grow, see [`Source::may_grow`]. Ends with [`Output::Grown`] or [`Output::NotGrown`], unless it is
    /// refused here. The volumes have these sizes on stable storage.
    pub fn grow(&mut self, now: Time, sizes: &[Option<u64>], target_sizes: &[u64]) -> Result<(), CannotGrow> {
        self.now = self.now.max(now);
        let volumes = self.may_grow(sizes, Some(target_sizes))?;
        for growth in &volumes {
            // Also in the old bitmap: should it not be known which of the two sizes is durable, the one counts with it.
            let short = growth.from_bytes / BLOCK_BYTES;
            self.set_bits(BlockRange { volume: growth.volume, first: short, count: 1 });
        }
        let until = self.now.plus_us(PREPARE_US);
        self.growing = Some(Growing { volumes, step: Step::Settle { until } });
        self.outputs.push_back(Output::Disconnect { reason: "volumes grow, and the standby has to know" });
        self.pump(now);
        Ok(())
    }

    /// Whether admission is held while volumes grow.
    pub(super) fn holds_for_growth(&self) -> bool {
        let holds = |step: &Step| match step {
            Step::GivenUp => false,
            Step::Reopen { .. } => true,
            Step::Settle { .. } | Step::Prepare { .. } | Step::Note { .. } => self.rules.on(Rule::GrowHolds),
        };
        self.growing.as_ref().is_some_and(|g| holds(&g.step))
    }

    /// Whether there can be no session: the sizes that it would tell are about to change.
    pub(super) fn is_resizing(&self) -> bool {
        let step = self.growing.as_ref().map(|g| &g.step);
        matches!(step, Some(Step::Settle { .. } | Step::Prepare { .. } | Step::Note { .. }))
    }

    /// When clients are held no more.
    pub(super) fn growth_ends_at(&self) -> Option<Time> {
        match self.growing.as_ref()?.step {
            Step::Settle { until } | Step::Prepare { until } | Step::Reopen { until } => Some(until),
            Step::GivenUp | Step::Note { .. } => None,
        }
    }

    /// Goes on with a growth; whether clients are held no more.
    pub(super) fn pump_growth(&mut self) -> bool {
        let failed = self.state_failed || self.tracking_lost;
        let rest =
            matches!(self.session, Session::None) && self.hot.is_at_rest() && self.first_bits.is_none();
        let late = self.growth_ends_at().is_some_and(|until| until <= self.now);
        let Some(growing) = &mut self.growing else { return false };
        match growing.step {
            Step::Settle { .. } if failed || late => {
                self.growing = None;
                self.not_grown(if failed { CannotGrow::Failed } else { CannotGrow::TooSlow });
            }
            Step::Settle { until } if rest => {
                growing.step = Step::Prepare { until };
                self.outputs.push_back(Output::PrepareGrowth(growing.volumes.clone()));
                return false;
            }
            Step::Prepare { .. } if late => {
                growing.step = Step::GivenUp;
                self.not_grown(CannotGrow::TooSlow);
            }
            Step::Reopen { .. } if late || self.session.is_active() => self.growing = None,
            _ => return false,
        }
        true
    }

    /// The bitmaps of [`Output::PrepareGrowth`] are on stable storage, in its order; `None`: they cannot be made.
    pub fn growth_prepared(&mut self, now: Time, bitmaps: Option<Vec<Bitmap>>) {
        self.now = self.now.max(now);
        let Some(Growing { volumes, step }) = self.growing.take() else { return };
        let given_up = matches!(step, Step::GivenUp);
        match bitmaps {
            Some(bitmaps) if !given_up && !self.state_failed && !self.tracking_lost => {
                for growth in &volumes {
                    self.set_stored_size(growth.volume, growth.to_bytes);
                }
                let version = self.persist();
                self.growing = Some(Growing { volumes, step: Step::Note { version, bitmaps } });
                if !self.rules.on(Rule::GrowNoted) {
                    self.growth_noted(version);
                }
            }
            Some(bitmaps) => {
                self.outputs.push_back(Output::ForgetGrowth(Unused(bitmaps)));
                if !given_up {
                    self.not_grown(CannotGrow::Failed);
                }
            }
            None if given_up => {}
            None => self.not_grown(CannotGrow::NoBitmaps),
        }
        self.pump(now);
    }

    /// The state of `version` is durable: the new sizes are, with it.
    pub(super) fn growth_noted(&mut self, version: u64) {
        let noted = |g: &mut Growing| matches!(g.step, Step::Note { version: v, .. } if v <= version);
        let Some(Growing { volumes, step: Step::Note { bitmaps, .. } }) = self.growing.take_if(noted) else {
            return;
        };
        for (growth, mut bitmap) in volumes.iter().zip(bitmaps) {
            let at = growth.volume.0 as usize;
            if self.tracking_lost {
                bitmap.set_from(0);
            }
            if let (Some(place), Some(info)) = (self.bitmaps.get_mut(at), self.config.volumes.get_mut(at)) {
                *place = bitmap;
                info.size_bytes = growth.to_bytes;
            }
        }
        if self.rules.on(Rule::GrowTakesSequence) {
            // The new area is a write that no record carries (rule 2).
            self.sequence = self.sequence.next();
            self.fall_to_catch_up();
        }
        self.outputs.push_back(Output::Grown(volumes.clone()));
        self.growing = Some(Growing { volumes, step: Step::Reopen { until: self.now.plus_us(REOPEN_US) } });
    }

    /// The state cannot be written: which sizes are durable is not known, and the volumes keep those they had.
    pub(super) fn growth_not_noted(&mut self) {
        let noting = |g: &mut Growing| matches!(g.step, Step::Note { .. });
        let Some(Growing { volumes, step: Step::Note { bitmaps, .. } }) = self.growing.take_if(noting) else {
            return;
        };
        for growth in &volumes {
            self.set_stored_size(growth.volume, growth.from_bytes);
        }
        self.outputs.push_back(Output::ForgetGrowth(Unused(bitmaps)));
        self.not_grown(CannotGrow::Failed);
    }

    fn not_grown(&mut self, why: CannotGrow) {
        // The bits that were set for it go like any other.
        self.sequence = self.sequence.next();
        self.fall_to_catch_up();
        self.outputs.push_back(Output::NotGrown(why));
    }

    fn set_stored_size(&mut self, volume: VolumeIndex, size_bytes: u64) {
        if let Some(stored) = self.state.volumes.get_mut(volume.0 as usize) {
            stored.size_bytes = size_bytes;
        }
    }
}
