//! What a client knows of the order of its writes: when each was issued, and when it was acknowledged.
//!
//! A tick is taken before a request is sent and after its answer was read. A write whose acknowledgement has a lower
//! tick than another one's issue was certainly admitted before it; all other pairs may be in either order.

use std::collections::{BTreeMap, BTreeSet};

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its number, from 1: its place in the history.
    pub number: u64,
    /// The volume's place in its group.
    pub volume: u32,
    /// The first block written.
    pub first_block: u64,
    /// Count of blocks.
    pub blocks: u32,
    /// The tick before it was sent.
    pub issued: u64,
    /// The tick after it was acknowledged; `None` if it never was.
    pub acked: Option<u64>,
    /// The tick after which it cannot be admitted any more; `None` while it might be.
    pub ended: Option<u64>,
    /// Whether a part of it may be in an image: it failed, or the process that served it died in it.
    pub may_tear: bool,
    /// Whether it was lost with a failover, and must not come back.
    pub given_up: bool,
}

impl Write {
    /// The indices of its blocks.
    pub fn block_range(&self) -> std::ops::Range<u64> {
        self.first_block..self.first_block + u64::from(self.blocks)
    }
}

/// All writes of one run, in the order of their issue.
#[derive(Clone, Debug)]
pub struct History {
    run: u64,
    tick: u64,
    writes: Vec<Write>,
    /// By volume: the tick at which the newest flush was issued that has been acknowledged.
    flushed: BTreeMap<u32, u64>,
}

impl History {
    /// A history without writes; `run` tells its blocks from those of other runs.
    pub fn new(run: u64) -> Self {
        Self { run, tick: 0, writes: Vec::new(), flushed: BTreeMap::new() }
    }

    /// What its blocks are stamped with.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// All writes; write `n` is at `n - 1`.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// The write of that number.
    pub fn write(&self, number: u64) -> Option<&Write> {
        self.writes.get(usize::try_from(number.checked_sub(1)?).ok()?)
    }

    /// Takes the next tick.
    pub fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// Notes a write that is about to be sent; returns its number.
    pub fn issue(&mut self, volume: u32, first_block: u64, blocks: u32) -> u64 {
        let number = self.writes.len() as u64 + 1;
        let issued = self.tick();
        self.writes.push(Write {
            number,
            volume,
            first_block,
            blocks,
            issued,
            acked: None,
            ended: None,
            may_tear: false,
            given_up: false,
        });
        number
    }

    /// Notes that a write was acknowledged.
    pub fn acknowledge(&mut self, number: u64) {
        let tick = self.tick();
        if let Some(write) = self.write_mut(number) {
            write.acked = Some(tick);
            write.ended = Some(tick);
        }
    }

    /// Notes that a write was answered with an error.
    pub fn fail(&mut self, number: u64) {
        let tick = self.tick();
        if let Some(write) = self.write_mut(number) {
            write.ended = Some(tick);
            write.may_tear = true;
        }
    }

    /// Notes that a flush of a volume, which was issued at `tick`, was acknowledged.
    pub fn flush(&mut self, volume: u32, tick: u64) {
        let newest = self.flushed.entry(volume).or_default();
        *newest = tick.max(*newest);
    }

    /// Notes that nothing in flight can be admitted after what is issued from now on, because another host serves
    /// the volume. Each such write is in the image as a whole or not at all.
    pub fn server_replaced(&mut self) {
        self.end_in_flight(false);
    }

    /// Notes that the process which served the volume died, and the volume is served again as it was left. Each write
    /// in flight is there, partly there or not there, and cannot be admitted after what is issued from now on.
    pub fn server_restarted(&mut self) {
        self.end_in_flight(true);
    }

    /// Notes that the image that `kept` was found in is the volume from now on: writes outside of it are gone, and
    /// no later image may show them.
    pub fn give_up_all_but(&mut self, kept: &BTreeSet<u64>) {
        for write in self.writes.iter_mut().filter(|write| !kept.contains(&write.number)) {
            write.given_up = true;
        }
    }

    /// The numbers of all acknowledged writes: what an image must contain while a sync group is in sync.
    pub fn acknowledged(&self) -> BTreeSet<u64> {
        let kept = |write: &&Write| write.acked.is_some() && !write.given_up;
        self.writes.iter().filter(kept).map(|write| write.number).collect()
    }

    /// The numbers of all writes that an acknowledged flush covers.
    pub fn flushed(&self) -> BTreeSet<u64> {
        let covered = |write: &&Write| {
            let flush = self.flushed.get(&write.volume).copied().unwrap_or(0);
            write.acked.is_some_and(|acked| acked < flush) && !write.given_up
        };
        self.writes.iter().filter(covered).map(|write| write.number).collect()
    }

    fn end_in_flight(&mut self, may_tear: bool) {
        let tick = self.tick();
        for write in self.writes.iter_mut().filter(|write| write.ended.is_none()) {
            write.ended = Some(tick);
            write.may_tear = may_tear;
        }
    }

    fn write_mut(&mut self, number: u64) -> Option<&mut Write> {
        self.writes.get_mut(usize::try_from(number.checked_sub(1)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_cover_what_was_acknowledged_before_them() {
        let mut history = History::new(1);
        let first = history.issue(0, 0, 1);
        history.acknowledge(first);
        let second = history.issue(0, 1, 1);
        let other_volume = history.issue(1, 1, 1);
        history.acknowledge(other_volume);
        let flush = history.tick();
        history.acknowledge(second);
        history.flush(0, flush);
        assert_eq!(history.flushed(), BTreeSet::from([first]));
        assert_eq!(history.acknowledged(), BTreeSet::from([first, second, other_volume]));
        assert_eq!(history.write(0), None);
    }

    #[test]
    fn a_restart_ends_what_was_in_flight() {
        let mut history = History::new(1);
        let lost = history.issue(0, 0, 1);
        history.server_restarted();
        let after = history.issue(0, 0, 1);
        let (lost, after) = (history.write(lost).unwrap(), history.write(after).unwrap());
        assert!(lost.ended.unwrap() < after.issued && lost.may_tear && lost.acked.is_none());
        assert_eq!(after.ended, None);
    }
}
