//! Brings a host home that was replaced: what only it has is saved, then it is a standby. Or, in a split brain,
//! makes it the primary again; or after a rollback of the promotion that had replaced it. Blocks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use afterimage_contract::admin::Reinstatement;
use afterimage_contract::config;
use afterimage_protocol::Generation;
use afterimage_protocol::state::{CannotKeep, GroupState, Role};
use afterimage_storage::disk::RealDir;
use afterimage_storage::group::{GroupStore, reinstate as reinstate_group};
use afterimage_storage::lock::{DirLock, LockError};
use anyhow::{Context, anyhow};

use crate::open::{Host, boot_id, group_dir, make_dir, open_known};
use crate::random;

/// The directory of a group's salvage files, in the group's own.
pub(crate) const SALVAGE_DIR: &str = "salvage";
/// How long another look at the group may hold its lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Why a host is not reinstated. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It is not fenced.
    #[error("this host is not fenced: it is the {role} of {group}")]
    NotFenced { group: String, role: &'static str },
    /// Clients were answered here for writes that the peer never saw.
    #[error(
        "{group} was served here while the peer could not be reached, and the peer was promoted: both hosts have writes \
         that clients were answered for"
    )]
    SplitBrain { group: String },
    /// Its own history cannot be the one that stays.
    #[error("the history of {group} on this host is not kept: {why}")]
    NotKept { group: String, why: CannotKeep },
    /// It was tried.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Makes this host the group's standby. With `divergent`, also where clients were answered for writes that the other host
/// never saw: they are saved like all that only this host has. Durable on return.
pub(crate) fn reinstate(
    host: &Host,
    group: &config::Group,
    divergent: bool,
) -> Result<Reinstatement, Refused> {
    let (_lock, store, state) = open_locked(host, group)?;
    let state = state.ok_or_else(|| Refused::NotFenced { group: group.name.clone(), role: "stranger" })?;
    check(&state, group, divergent)?;
    let volumes = open_known(group, &state).map_err(|error| error.error)?;
    let files: Vec<_> = volumes.iter().map(|volume| volume.file()).collect();
    let salvage_path = group_dir(host, group).join(SALVAGE_DIR);
    make_dir(&salvage_path)?;
    let salvage = RealDir::open(&salvage_path).with_context(|| format!("cannot open {salvage_path:?}"))?;
    let boot = boot_id()?;
    let done = reinstate_group(store, state, &salvage, &files, boot, host.clock.now())
        .map_err(|error| anyhow!(error).context("cannot reinstate the group"))?;
    let saved: Option<PathBuf> = done.saved.name.map(|name| salvage_path.join(name));
    Ok(Reinstatement {
        group: group.name.clone(),
        salvage: saved.map(|path| path.display().to_string()),
        saved_bytes: done.saved.bytes,
        blocks: done.blocks,
        compares_all: done.all,
    })
}

/// In a split brain, makes this host the primary again, with a generation that goes on from its own history. Durable on
/// return; nothing is served before that.
pub(crate) fn keep_own(host: &Host, group: &config::Group) -> Result<Generation, Refused> {
    let (_lock, mut store, state) = open_locked(host, group)?;
    let not_kept = |why| Refused::NotKept { group: group.name.clone(), why };
    let mut state = state.ok_or_else(|| not_kept(CannotKeep::NotFenced))?;
    let generation = Generation(random::nonzero().context("cannot get a random number")?);
    state.keep_own(generation).map_err(not_kept)?;
    store.write(&state).map_err(|error| anyhow!(error).context("cannot write the state of the group"))?;
    Ok(generation)
}

/// Where one of `rolled_back`, which the peer has rolled back, is the generation that had replaced this host's: makes this
/// host the primary again. Whether it is; durable on return.
pub(crate) fn lift_fence(
    host: &Host,
    group: &config::Group,
    rolled_back: &[Generation],
) -> anyhow::Result<bool> {
    let (_lock, mut store, state) = open_locked(host, group)?;
    let Some(mut state) = state else { return Ok(false) };
    if !state.replacement_rolled_back(rolled_back) {
        return Ok(false);
    }
    store.write(&state).map_err(|error| anyhow!(error).context("cannot write the state of the group"))?;
    Ok(true)
}

fn check(state: &GroupState, group: &config::Group, divergent: bool) -> Result<(), Refused> {
    let group = group.name.clone();
    match state.role {
        Role::Fenced if state.alone && !divergent => Err(Refused::SplitBrain { group }),
        Role::Fenced => Ok(()),
        Role::Primary => Err(Refused::NotFenced { group, role: "primary" }),
        Role::Standby => Err(Refused::NotFenced { group, role: "standby" }),
    }
}

/// The state of a group that is not served here, and its lock, which may have to be waited for.
pub(crate) fn open_locked(
    host: &Host,
    group: &config::Group,
) -> anyhow::Result<(DirLock, GroupStore, Option<GroupState>)> {
    let path = group_dir(host, group);
    let lock = lock(&path, group)?;
    let dir = Arc::new(RealDir::open(&path).with_context(|| format!("cannot open {path:?}"))?);
    let (store, state) = GroupStore::open(dir).context("cannot open the state of the group")?;
    Ok((lock, store, state))
}

fn lock(path: &Path, group: &config::Group) -> anyhow::Result<DirLock> {
    let began = Instant::now();
    loop {
        match DirLock::take(path) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if began.elapsed() < LOCK_TIMEOUT => std::thread::sleep(LOCK_POLL),
            Err(error) => return Err(anyhow!(error).context(format!("{} is in use", group.name))),
        }
    }
}
