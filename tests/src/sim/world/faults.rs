//! The faults of a run: which ones, how often, and what each does.

use afterimage_protocol::Sequence;

use super::{Violation, World};
use crate::sim::{Failure, On, Rng, Snapshot, Times};

/// Weights of the eight ordinary actions: client, primary job, send, deliver, standby job, connect, start, timeouts.
const ORDINARY: [u32; 8] = [140, 260, 200, 420, 200, 80, 60, 120];
/// Base weights of the faults.
const FAULTS: [(Fault, u32); 14] = [
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
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
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
}

pub struct Faults {
    /// Of all actions, in order: ordinary ones, then faults.
    pub weights: [u32; ORDINARY.len() + FAULTS.len()],
    pub primary_power_cut: bool,
    old_copy: Option<Snapshot>,
    /// One file of the primary's state may fail in a run: with two, what must be remembered has no place left.
    state_fault_used: bool,
}

impl Faults {
    pub fn new(rng: &mut Rng) -> Self {
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
        Self { weights, primary_power_cut: false, old_copy: None, state_fault_used: false }
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
            Fault::PowerPrimary => {
                self.kill_primary();
                self.primary.disk.power_cut(&mut self.rng);
                self.primary.boot += 1;
                self.primary.power_lost();
                self.faults.primary_power_cut = true;
            }
            Fault::PowerStandby => {
                self.check()?;
                self.kill_standby();
                self.standby.disk.power_cut(&mut self.rng);
                if self.setup.config.ack == afterimage_protocol::source::AckLevel::Received {
                    self.primary.must = self.primary.must_durable;
                }
            }
            Fault::DiskPrimary => self.fail_primary_disk(),
            Fault::DiskStandby => self.fail_standby_disk(),
            Fault::Damage => self.damage(),
            Fault::OldCopy => self.old_copy(),
            _ => {}
        }
        Ok(())
    }

    fn fail_primary_disk(&mut self) {
        let volume = self.rng.coin();
        let pattern = if volume {
            *self.rng.pick(&["volumes/v0", "volumes/v1"])
        } else if self.faults.state_fault_used {
            return;
        } else {
            self.faults.state_fault_used = true;
            *self.rng.pick(&["group/superblock", "group/hot-extents", "group/bitmap-0", "group/bitmap-1"])
        };
        let on = *self.rng.pick(&[On::Write, On::Sync, On::Read, On::Space]);
        // A volume whose sync fails has lost writes that nobody can name; its file system would be remounted.
        if volume && on == On::Sync {
            return;
        }
        let failure = if on == On::Space { Failure::NoSpace } else { Failure::Io };
        self.say(|| format!("  {pattern} {on:?} {failure:?}"));
        let times = Times::Count(1 + self.rng.below(2));
        self.primary.disk.fail(pattern, on, failure, times);
    }

    fn fail_standby_disk(&mut self) {
        let pattern =
            *self.rng.pick(&["volumes/v0", "volumes/v1", "group/superblock", "journal/*", "journal/*"]);
        let on = *self.rng.pick(&[On::Write, On::Sync, On::Read, On::Space]);
        let failure = if on == On::Space { Failure::NoSpace } else { Failure::Io };
        self.say(|| format!("  {pattern} {on:?} {failure:?}"));
        let times = Times::Count(1 + self.rng.below(3));
        self.standby.disk.fail(pattern, on, failure, times);
    }

    /// Bits flip in a file that no process uses now: on the standby in the journal, on either in one slot or copy of
    /// what is kept twice.
    fn damage(&mut self) {
        if self.rng.coin() {
            if self.primary.process.is_none() {
                self.flip_primary();
            }
            return;
        }
        if self.standby.process.is_some() {
            return;
        }
        let files = self.standby.disk.files();
        let segments: Vec<&String> = files.iter().filter(|f| f.starts_with("journal/")).collect();
        if segments.is_empty() {
            return;
        }
        let file = (*self.rng.pick(&segments)).clone();
        let data = self.standby.disk.file_data(&file);
        if data.is_empty() {
            return;
        }
        let run = data[self.rng.index(data.len())].clone();
        let byte = self.rng.between(run.start, run.end - 1);
        self.say(|| format!("  a bit flips in {file} at {byte}"));
        self.standby.disk.flip(&file, byte, self.rng.clone().below(8) as u8);
        self.primary.must = Sequence(0);
        self.primary.must_durable = Sequence(0);
    }

    fn flip_primary(&mut self) {
        let file = *self.rng.pick(&["group/superblock", "group/hot-extents"]);
        let Some(len) = self.primary.disk.file_len(file).filter(|l| *l > 0) else { return };
        let byte = self.rng.below(len);
        self.say(|| format!("  a bit flips in the primary's {file} at {byte}"));
        self.primary.disk.flip(file, byte, 3);
    }

    /// The standby's host goes back to an old copy of its disk; or the copy is made.
    fn old_copy(&mut self) {
        match &self.faults.old_copy {
            None => self.faults.old_copy = Some(self.standby.disk.snapshot()),
            Some(_) if self.rng.coin() => {
                self.kill_standby();
                if let Some(copy) = self.faults.old_copy.take() {
                    self.standby.disk.restore(&copy, "*");
                }
                self.say(|| "  the standby goes back to an old copy".into());
                self.primary.must = Sequence(0);
                self.primary.must_durable = Sequence(0);
            }
            Some(_) => {}
        }
    }

    /// No more faults; what failed for good is started again.
    pub(super) fn mend(&mut self) {
        self.link = [true; 2];
        for disk in [&self.primary.disk, &self.standby.disk] {
            disk.clear_faults();
            disk.set_fuse(None);
        }
        self.restart_failed();
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
