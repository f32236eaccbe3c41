//! The way home: after a promotion the old primary is fenced and reinstated, and the promoted host streams to it. Or both
//! go on, and it is the promoted host that gives way.

use afterimage_protocol::Generation;
use afterimage_protocol::state::Role;
use afterimage_storage::group::{GroupStore, reinstate, settle};
use afterimage_storage::salvage::{self, Salvage};

use super::model::{block_values, is_within, peek_image, sectors, sectors_in};
use super::{Violation, World};

/// Steps in which the old primary serves beside the one that was promoted.
const ALONE_STEPS: u64 = 300;

impl World {
    /// The hosts change places. Whether there is a way home: a host whose state was lost has none without a new first
    /// sync.
    pub(super) fn fail_back(&mut self) -> Result<bool, Violation> {
        self.stop_both();
        if !self.bring_home()? {
            return Ok(false);
        }
        self.change_sides();
        Ok(true)
    }

    /// The old primary goes on alone, beside the one that was promoted, and it is its history that stays: the other host
    /// gives way. Whether it came to that.
    pub(super) fn split_brain(&mut self, steps: u64) -> Result<bool, Violation> {
        for disk in [&self.primary.disk, &self.standby.disk] {
            disk.clear_faults();
            disk.set_fuse(None);
        }
        self.kill_standby();
        self.source_disconnects();
        self.start_primary()?;
        self.clients_write(ALONE_STEPS);
        self.stop_both();
        let Ok((_, Some(peer))) = GroupStore::open(self.standby.disk.dir("group")) else { return Ok(false) };
        let Ok((mut group, Some(mut state))) = GroupStore::open(self.primary.disk.dir("group")) else {
            return Ok(false);
        };
        // The old primary hears of it, and so does whoever decides.
        state.replaced(Some(peer.lineage.replaces(&state.lineage)));
        if state.role != Role::Fenced || !state.alone || group.write(&state).is_err() {
            return Ok(false);
        }
        drop(group);
        self.change_sides();
        self.wander(steps)?;
        if self.over {
            return Ok(false);
        }
        self.stop_both();
        let Ok((mut group, Some(mut state))) = GroupStore::open(self.standby.disk.dir("group")) else {
            return Ok(false);
        };
        let generation = Generation(self.rng.next_u64() | 1);
        if let Err(why) = state.keep_own(generation) {
            return Err(Violation::new("G5", format!("the old primary cannot keep its history: {why}")));
        }
        if group.write(&state).is_err() {
            return Ok(false);
        }
        drop(group);
        self.say(|| format!("the old primary keeps its history as {generation}"));
        if !self.bring_home()? {
            return Ok(false);
        }
        self.change_sides();
        Ok(true)
    }

    fn clients_write(&mut self, steps: u64) {
        for _ in 0..steps {
            self.now.0 += 100_000;
            self.primary.client(&mut self.rng, &mut self.history, self.now);
            self.primary.step(&mut self.rng, &mut self.history, self.now);
            self.timeouts();
        }
    }

    fn stop_both(&mut self) {
        self.kill_primary();
        self.kill_standby();
        for disk in [&self.primary.disk, &self.standby.disk] {
            disk.clear_faults();
            disk.set_fuse(None);
        }
        if self.rng.coin() {
            self.primary.disk.power_cut(&mut self.rng);
            self.primary.boot += 1;
        }
    }

    /// What was the standby serves from now on, with the image that it has.
    fn change_sides(&mut self) {
        self.excuse_standby();
        self.swap_hosts();
        self.primary.server_replaced();
        self.history.forked();
    }

    /// The host that was replaced is fenced and reinstated. Whatever only it has, and had not when the histories parted,
    /// is in a file then.
    fn bring_home(&mut self) -> Result<bool, Violation> {
        let disk = &self.primary.disk;
        let Ok((_, Some(peer))) = GroupStore::open(self.standby.disk.dir("group")) else { return Ok(false) };
        let Ok((mut group, Some(mut state))) = GroupStore::open(disk.dir("group")) else { return Ok(false) };
        if state.role == Role::Primary {
            state.replaced(Some(peer.lineage.replaces(&state.lineage)));
            if state.role != Role::Fenced || group.write(&state).is_err() {
                return Ok(false);
            }
        }
        let volumes = super::setup::open_volumes(disk);
        // What a failed flush had dropped is lost already, whatever the cache shows.
        if settle(&volumes).is_err() {
            return Ok(false);
        }
        let (mine, theirs) = (peek_image(disk), peek_image(&self.standby.disk));
        let mut boot_id = [0; 16];
        boot_id[..8].copy_from_slice(&self.primary.boot.to_le_bytes());
        let sizes = super::setup::sizes_in(&state);
        let dir = disk.dir("salvage");
        let done = reinstate(group, state, &*dir, &volumes, boot_id, self.now);
        self.say(|| format!("the old primary is reinstated: {done:?}"));
        let Ok(done) = done else { return Ok(false) };
        let mut saved = vec![None; sectors()];
        if let Some(name) = &done.saved.name {
            let broken = |e: salvage::SalvageError| Violation::new("G5", format!("the salvage: {e}"));
            for piece in Salvage::open(&*self.primary.disk.dir("salvage"), name).map_err(broken)? {
                let piece = piece.map_err(broken)?;
                let bytes = piece.data.unwrap_or_else(|| vec![0; piece.range.length as usize]);
                // Pieces are whole blocks, so sectors come in order.
                let values: Vec<u64> = block_values(&bytes).collect();
                for index in sectors_in(piece.range) {
                    let at = super::model::sector_offset(index) - piece.range.offset;
                    saved[index] = values.get((at / super::model::SECTOR_BYTES) as usize).copied();
                }
            }
        }
        let own = |n: &usize| is_within(*n, &sizes) && mine[*n] != theirs[*n] && mine[*n] != self.fork[*n];
        let missing = (0..sectors()).find(|n| own(n) && saved[*n] != Some(mine[*n]));
        match missing.filter(|_| !self.given_up) {
            Some(n) => Err(Violation::new(
                "G5",
                format!(
                    "sector {n} has {} on the old primary and {} on the new one, and was not saved",
                    mine[n], theirs[n]
                ),
            )),
            None => Ok(true),
        }
    }
}
