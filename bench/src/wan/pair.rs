//! The product over the link: its first sync, and its clients.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use afterimage_wan::Wan;
use anyhow::{Context, Result, ensure};

use super::flow::Flow;
use crate::{
    case::Case,
    contender::{Bed, Running},
    fio, image,
    ours::{self, Mode, Place},
    wait::Interrupt,
};

fn places(wan: &Wan) -> [Place; 2] {
    let place = |namespace: &str, address: std::net::Ipv4Addr| Place {
        address: address.into(),
        namespace: Some(namespace.to_owned()),
    };
    [place(wan.ns_a(), wan.address_a()), place(wan.ns_b(), wan.address_b())]
}

/// A first sync of data that does not compress.
pub struct FirstSync {
    pair: ours::Pair,
    copy: PathBuf,
}

impl FirstSync {
    /// Begins one. The volume of `bed` has to be there.
    pub fn start(wan: &Wan, bed: &Bed<'_>) -> Result<Self> {
        let copy = File::create(bed.copy()).and_then(|file| file.set_len(bed.volume_bytes));
        copy.context("make a copy without content")?;
        let pair = ours::launch_pair(bed, Mode::Async, places(wan))?;
        Ok(Self { pair, copy: bed.copy() })
    }

    /// Waits until the copy is complete, ends both nodes and compares.
    pub fn finish(mut self, bed: &Bed<'_>) -> Result<()> {
        self.pair.wait_first_sync(bed.interrupt)?;
        Box::new(self.pair).stop(bed.interrupt)?;
        let difference = image::first_difference(&bed.volume(), &bed.copy())?;
        ensure!(difference.is_none(), "the copy differs at byte {difference:?}");
        Ok(())
    }

    /// Ends both nodes.
    pub fn abandon(self, interrupt: &Interrupt) -> Result<()> {
        Box::new(self.pair).stop(interrupt)
    }
}

impl Flow for FirstSync {
    /// What the copy, which began without any, has of blocks: they are written where they belong as they come.
    fn received_bytes(&self) -> Result<u64> {
        let copy = self.copy.metadata().with_context(|| format!("look at {}", self.copy.display()))?;
        Ok(copy.blocks() * 512)
    }
}

/// What a client sees while the group replicates over the link.
pub fn client(
    wan: &Wan,
    bed: &Bed<'_>,
    mode: Mode,
    case: Case,
    time: Duration,
    seed: u32,
) -> Result<fio::Outcome> {
    image::create_empty(&bed.volume(), bed.volume_bytes)?;
    image::create_empty(&bed.copy(), bed.volume_bytes)?;
    let mut pair = ours::launch_pair(bed, mode, places(wan))?;
    pair.wait_first_sync(bed.interrupt)?;
    let outcome = fio::run(case, &pair.uri(), bed.volume_bytes, time, seed, bed.dir, bed.interrupt)?;
    pair.drain(bed.interrupt)?;
    Box::new(pair).stop(bed.interrupt)?;
    let difference = image::first_difference(&bed.volume(), &bed.copy())?;
    ensure!(difference.is_none(), "the copy differs at byte {difference:?}");
    Ok(outcome)
}

/// Writes a volume of random bytes.
pub fn create_noise(path: &Path, bytes: u64) -> Result<()> {
    let noise = File::open("/dev/urandom").context("open /dev/urandom")?;
    let written = File::create(path).and_then(|mut file| {
        io::copy(&mut noise.take(bytes), &mut file)?;
        file.sync_all()
    });
    written.with_context(|| format!("write {}", path.display()))
}
