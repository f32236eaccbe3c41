//! The names in one directory: what programs see, what is on stable storage, and the changes in between.

use std::collections::{BTreeMap, BTreeSet};

use super::inode::Loss;
use crate::sim::Rng;

/// A file's number; never used twice on a disk.
pub(super) type Ino = u64;

/// One directory.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    newest: BTreeMap<String, Ino>,
    durable: BTreeMap<String, Ino>,
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Link(String, Ino),
    Unlink(String),
    Rename(String, String, Ino),
}

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<Ino> {
        self.newest.get(name).copied()
    }

    /// Every name and its file, in the order of the names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Ino)> {
        self.newest.iter().map(|(name, &ino)| (name.as_str(), ino))
    }

    /// Whether a program sees `ino` under some name.
    pub(super) fn shows(&self, ino: Ino) -> bool {
        self.newest.values().any(|&held| held == ino)
    }

    /// Whether a power cut could bring a name for `ino`.
    pub(super) fn may_hold(&self, ino: Ino) -> bool {
        self.shows(ino)
            || self.durable.values().any(|&held| held == ino)
            || self.unsynced.iter().any(|change| match change {
                Change::Link(_, held) | Change::Rename(_, _, held) => *held == ino,
                Change::Unlink(_) => false,
            })
    }

    pub(super) fn link(&mut self, name: &str, ino: Ino) {
        self.change(Change::Link(name.to_owned(), ino));
    }

    pub(super) fn unlink(&mut self, name: &str) {
        self.change(Change::Unlink(name.to_owned()));
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, ino: Ino) {
        self.change(Change::Rename(from.to_owned(), to.to_owned(), ino));
    }

    /// Makes `name` mean `ino`, `None` for nothing, at once and durably, whatever was under way.
    pub(super) fn settle(&mut self, name: &str, ino: Option<Ino>) {
        self.sync();
        for names in [&mut self.newest, &mut self.durable] {
            match ino {
                Some(ino) => drop(names.insert(name.to_owned(), ino)),
                None => drop(names.remove(name)),
            }
        }
    }

    /// Makes every name durable.
    pub(super) fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            apply(&mut self.durable, &change);
        }
    }

    /// A sync that did not end well: changes got durable or not, in an order that each name allows. With `forgotten`
    /// no later sync writes what was missed.
    pub(super) fn sync_partly(&mut self, rng: &mut Rng, forgotten: bool) {
        let missed = self.write_back(Loss::Mixed, rng);
        if !forgotten {
            self.unsynced = missed;
        }
    }

    /// What a power cut leaves: each unsynced change is kept or lost, and with a lost one all later ones that touch
    /// the same name. A rename is one change.
    pub(super) fn cut(&mut self, loss: Loss, rng: &mut Rng) {
        self.write_back(loss, rng);
        self.newest = self.durable.clone();
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.newest, &change);
        self.unsynced.push(change);
    }

    /// Puts some changes on stable storage and returns the others.
    fn write_back(&mut self, loss: Loss, rng: &mut Rng) -> Vec<Change> {
        let mut held_back = BTreeSet::new();
        let mut missed = Vec::new();
        for change in std::mem::take(&mut self.unsynced) {
            let (name, other) = match &change {
                Change::Link(name, _) | Change::Unlink(name) => (name, name),
                Change::Rename(from, to, _) => (from, to),
            };
            let kept = match loss {
                Loss::All => false,
                Loss::None => true,
                Loss::Mixed => rng.coin(),
            };
            if kept && !held_back.contains(name) && !held_back.contains(other) {
                apply(&mut self.durable, &change);
            } else {
                held_back.insert(name.clone());
                held_back.insert(other.clone());
                missed.push(change);
            }
        }
        missed
    }
}

fn apply(names: &mut BTreeMap<String, Ino>, change: &Change) {
    match change {
        Change::Link(name, ino) => drop(names.insert(name.clone(), *ino)),
        Change::Unlink(name) => drop(names.remove(name)),
        Change::Rename(from, to, ino) => {
            names.remove(from);
            names.insert(to.clone(), *ino);
        }
    }
}
