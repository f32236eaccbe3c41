//! Disks that fail and bits that flip.

use afterimage_protocol::Lsn;

use super::World;
use crate::sim::{Failure, On, Times};

impl World {
    /// A bit flips in one of the last entries that the standby still needs: of a batch under way, if there is one.
    pub(super) fn damage_live(&mut self) {
        let Some(p) = &self.standby.process else { return };
        let Some(base) = p.target.state().base else { return };
        let journal = p.store.journal();
        let applying = p.target.applied_to().is_none();
        let (from, to) = if applying { (journal.start(), base.lsn) } else { (base.lsn, journal.durable()) };
        let entries = journal.read(from.max(journal.start()), to).flatten();
        let entries: Vec<(Lsn, Lsn)> = entries.map(|(start, end, _)| (start, end)).collect();
        let late = if self.rng.coin() { entries.len().saturating_sub(4) } else { 0 };
        let Some(recent) = entries.get(late..).filter(|e| !e.is_empty()) else { return };
        let (start, end) = *self.rng.pick(recent);
        self.kill_standby();
        let at = Lsn(self.rng.between(start.0, end.0 - 1));
        let Some((file, byte)) = self.place_of(at) else { return };
        self.say(|| format!("  a bit flips in {file} at {byte}, lsn {at}"));
        self.standby.disk.flip(&file, byte, 5);
        self.excuse_standby();
    }

    /// The newest journal file that holds `lsn`, and the byte in it.
    pub(super) fn place_of(&self, lsn: Lsn) -> Option<(String, u64)> {
        const HEADER_BYTES: u64 = 4096;
        let named = |file: &String| {
            let (rest, base) = file.rsplit_once('-')?;
            let id = rest.rsplit_once('-')?.1;
            Some((u64::from_str_radix(base, 16).ok()?, u64::from_str_radix(id, 16).ok()?))
        };
        let files = self.standby.disk.files().into_iter().filter(|f| f.starts_with("journal/segment-"));
        let holds = files.filter_map(|f| named(&f).filter(|(base, _)| *base <= lsn.0).map(|n| (n, f)));
        let ((base, _), file) = holds.max()?;
        Some((file, lsn.0 - base + HEADER_BYTES))
    }

    pub(super) fn fail_primary_disk(&mut self) {
        let volume = self.rng.coin();
        let pattern = if volume {
            *self.rng.pick(&["volumes/v0", "volumes/v1"])
        } else {
            *self.rng.pick(&["group/superblock*", "group/hot-extents*", "group/bitmap-0*", "group/bitmap-1*"])
        };
        let on = *self.rng.pick(&[On::Write, On::Sync, On::Read, On::Space]);
        // A volume whose sync fails has lost writes that nobody can name: that has to be noted.
        if !volume || on == On::Sync {
            if self.faults.state_fault_used {
                return;
            }
            self.faults.state_fault_used = true;
        }
        let failure = if on == On::Space { Failure::NoSpace } else { Failure::Io };
        self.say(|| format!("  {pattern} {on:?} {failure:?}"));
        let times = Times::Count(1 + self.rng.below(2));
        self.primary.disk.fail(pattern, on, failure, times);
    }

    pub(super) fn fail_standby_disk(&mut self) {
        let pattern =
            *self.rng.pick(&["volumes/v0", "volumes/v1", "group/superblock*", "journal/*", "journal/*"]);
        let on = *self.rng.pick(&[On::Write, On::Sync, On::Read, On::Space]);
        let failure = if on == On::Space { Failure::NoSpace } else { Failure::Io };
        self.say(|| format!("  {pattern} {on:?} {failure:?}"));
        let times = Times::Count(1 + self.rng.below(3));
        self.standby.disk.fail(pattern, on, failure, times);
    }

    /// Bits flip in a file that no process uses now: on the standby in the journal, on either in one slot or copy of
    /// what is kept twice.
    pub(super) fn damage(&mut self) {
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
        self.excuse_standby();
    }

    pub(super) fn flip_primary(&mut self) {
        let file = *self.rng.pick(&["group/superblock", "group/hot-extents"]);
        let Some(len) = self.primary.disk.file_len(file).filter(|l| *l > 0) else { return };
        let byte = self.rng.below(len);
        self.say(|| format!("  a bit flips in the primary's {file} at {byte}"));
        self.primary.disk.flip(file, byte, 3);
    }
}
