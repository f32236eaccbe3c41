//! Opening a group: finding out whether this host is its standby, and if so taking what belongs to it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use afterimage_contract::config;
use afterimage_contract::hooks::Hooks;
use afterimage_contract::low_latency::Waited;
use afterimage_protocol::lineage::{Standing, refuse};
use afterimage_protocol::message::{Refusal, TargetMessage, VolumeInfo};
use afterimage_protocol::rules::Rules;
use afterimage_protocol::state::{GroupState, Role, VolumeState};
use afterimage_protocol::target::{Config, PATIENCE_US};
use afterimage_protocol::{Generation, MAX_PAYLOAD_BYTES};
use afterimage_storage::disk::RealDir;
use afterimage_storage::group::{GroupStore, TargetStore, settle};
use afterimage_storage::journal::JournalOptions;
use afterimage_storage::lock::{DirLock, LockError};
use afterimage_storage::volume::{Volume, VolumeError, VolumeIdentity};
use anyhow::{Context, bail};
use tokio::runtime::Handle;

use super::input::Input;
use super::jobs::Jobs;
use super::promote::fresh_generation;
use super::standby::Standby;
use crate::clock;

/// A journal is at least this many segments, so that what was applied gives room in good pieces.
const JOURNAL_SEGMENTS: u64 = 4;

/// What a group needs to be opened.
#[derive(Clone)]
pub struct Setup {
    /// This host's name.
    pub node: String,
    /// The group as configured.
    pub group: config::Group,
    /// The directory of the group's state.
    pub dir: PathBuf,
    /// The agent of this host, which serves what is taken over.
    pub agent_socket: PathBuf,
    /// Where the agent is asked.
    pub runtime: Handle,
    /// The hooks of this host.
    pub hooks: Hooks,
    /// Memory for what was received last and is about to be applied, in bytes.
    pub recent_bytes: u64,
    /// What clients of the peer wait, of all groups.
    pub waited: Arc<Waited>,
}

/// What a group turned out to be.
pub enum Found {
    /// This host is its standby, and this process owns it now.
    Standby(Box<Standby>),
    /// It is not the receiver's.
    Elsewhere(Elsewhere),
}

/// Why a group is not the receiver's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// The configuration makes this host its first primary, and it has not run yet.
    Configured,
    /// This host is, or was, its primary.
    Primary(Standing),
}

impl Elsewhere {
    /// As the log says it.
    pub fn why(&self) -> &'static str {
        match self {
            Elsewhere::Configured => "it is its primary as configured",
            Elsewhere::Primary(_) => "it is, or was, its primary",
        }
    }

    /// What a source is told that asks for a session.
    pub fn refusal(&self, group: &str, source: &Standing) -> TargetMessage {
        let refused = |text| TargetMessage::Refused { code: Refusal::Role, text, standing: None };
        match self {
            Elsewhere::Configured => {
                refused(format!("group {group}: this host is its primary as configured"))
            }
            Elsewhere::Primary(standing) => refuse(group, source, standing)
                .unwrap_or_else(|| refused(format!("group {group}: this host is not its standby"))),
        }
    }

    fn of(state: &GroupState) -> Option<Self> {
        match (state.role, state.generation()) {
            (Role::Standby, _) => None,
            (Role::Primary, Generation::NONE) => Some(Elsewhere::Configured),
            // Where exactly its image is, only the agent knows; no write is beyond this.
            (Role::Primary | Role::Fenced, _) => Some(Elsewhere::Primary(state.standing(state.reserved))),
        }
    }
}

/// Makes a directory that only its owner can enter, and those above it.
pub fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Opens the group if this host is its standby. Nothing is held on return otherwise.
pub fn open(setup: &Setup, wake: &mpsc::Sender<Input>) -> anyhow::Result<Found> {
    make_private_dir(&setup.dir)?;
    let dir = Arc::new(RealDir::open(&setup.dir).context("cannot open the group's directory")?);
    let lock = match DirLock::take(&setup.dir) {
        Ok(lock) => lock,
        Err(held @ LockError::Held { .. }) => {
            // Another process has it: the agent, if this host is the primary.
            let state = GroupStore::peek(&*dir)?;
            let elsewhere = state.as_ref().and_then(Elsewhere::of).ok_or(held)?;
            return Ok(Found::Elsewhere(elsewhere));
        }
        Err(error) => return Err(error.into()),
    };
    let elsewhere = match GroupStore::peek(&*dir)? {
        Some(state) => Elsewhere::of(&state),
        None => setup.group.starts_as_primary(&setup.node).then_some(Elsewhere::Configured),
    };
    if let Some(elsewhere) = elsewhere {
        return Ok(Found::Elsewhere(elsewhere));
    }
    let (mut group, state) = GroupStore::open(dir)?;
    let known = state.as_ref().map_or(&[][..], |s| &s.volumes[..]);
    let mut volumes = open_volumes(&setup.group, known)?;
    volumes.iter_mut().for_each(Volume::open_large_direct);
    let bases: Vec<_> = volumes.iter().map(Volume::file).collect();
    settle(&bases).context("cannot make the volumes durable as they are")?;
    let room_bytes = volumes.iter().map(Volume::size_bytes).collect();
    // Before the first session nothing is replicated yet.
    let replicated = state.as_ref().filter(|s| s.generation() != Generation::NONE);
    let found = states_of(&setup.group, &volumes, replicated);
    let mut state = state.unwrap_or_else(|| GroupState::new(Role::Standby, Vec::new()));
    if state.volumes != found {
        state.volumes = found;
        group.write(&state)?;
    }
    let journal_dir = setup.group.journal_path();
    make_private_dir(&journal_dir)?;
    let journal_dir = RealDir::open(journal_dir).context("cannot open the journal's directory")?;
    let max_bytes = setup.group.journal.max_size.bytes();
    let segment_bytes = JournalOptions::default().segment_bytes.min(max_bytes / JOURNAL_SEGMENTS);
    let recent_bytes = setup.recent_bytes;
    // Random, as a generation is.
    let salt = fresh_generation().context("cannot get random bytes")?.0;
    let options =
        JournalOptions { max_bytes, segment_bytes, recent_bytes, salt, ..JournalOptions::default() };
    let info = |v: &VolumeState| VolumeInfo { name: v.name.clone(), size_bytes: v.size_bytes };
    let config = Config {
        group: setup.group.name.clone(),
        volumes: state.volumes.iter().map(info).collect(),
        history_us: u64::try_from(setup.group.history.as_micros()).unwrap_or(u64::MAX),
        patience_us: PATIENCE_US,
        journal_bytes: usable_bytes(max_bytes, segment_bytes),
        rules: Rules::default(),
    };
    let (store, mut target) =
        TargetStore::open(group, Arc::new(journal_dir), options, config, state, clock::now())?;
    target.measured(room_bytes);
    let jobs = Jobs::start(&setup.group.name, wake, lock).context("cannot start the helper threads")?;
    Ok(Found::Standby(Box::new(Standby::new(&setup.group.name, store, target, volumes, jobs, max_bytes))))
}

/// Bytes of entries that a journal surely holds: each segment may end in a gap that was too small for the largest entry.
fn usable_bytes(max_bytes: u64, segment_bytes: u64) -> u64 {
    let gaps = max_bytes.div_ceil(segment_bytes.max(1)).saturating_mul(MAX_PAYLOAD_BYTES);
    max_bytes.saturating_sub(gaps)
}

fn open_volumes(group: &config::Group, known: &[VolumeState]) -> anyhow::Result<Vec<Volume>> {
    let names: Vec<_> = group.volumes.iter().map(|v| v.name.as_str()).collect();
    let known_names: Vec<_> = known.iter().map(|v| v.name.as_str()).collect();
    if !known.is_empty() && names != known_names {
        bail!(
            "the configuration has the volumes {}, the copy here was made of {}: the list of a group's volumes cannot \
             be changed",
            names.join(", "),
            known_names.join(", ")
        );
    }
    let volumes = group.volumes.iter().enumerate().map(|(n, volume)| {
        let known = known.get(n);
        let expected = known.map(|k| identity(&k.identity)).transpose();
        let expected = expected.with_context(|| format!("the stored identity of volume {}", volume.name))?;
        // It may have grown since it was identified; what is replicated has to be there.
        let expected = expected.flatten().map(|mut expected| {
            expected.size_bytes = known.map_or(expected.size_bytes, |known| known.size_bytes);
            expected
        });
        Volume::open(&volume.device, expected.as_ref()).map_err(|error| match error {
            VolumeError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                missing(volume, known.map(|k| k.size_bytes))
            }
            error => anyhow::Error::new(error),
        })
    });
    volumes.collect()
}

/// `None` for a volume whose identity was not noted yet.
fn identity(stored: &[u8]) -> anyhow::Result<Option<VolumeIdentity>> {
    if stored.is_empty() {
        return Ok(None);
    }
    Ok(Some(std::str::from_utf8(stored)?.parse()?))
}

fn missing(volume: &config::Volume, size_bytes: Option<u64>) -> anyhow::Error {
    let path = volume.device.display();
    let size = size_bytes.map_or_else(|| "SIZE".to_owned(), |s| s.to_string());
    let note = if size_bytes.is_some() { "" } else { " with the size in bytes of the volume at the source" };
    anyhow::anyhow!(
        "volume {}: {path} does not exist; attach the device, or create an image file{note}: truncate -s {size} {path}",
        volume.name
    )
}

/// What is to be remembered of the volumes. A volume that is larger than what is `replicated` of it has room to grow.
fn states_of(group: &config::Group, volumes: &[Volume], replicated: Option<&GroupState>) -> Vec<VolumeState> {
    let state = |(index, (config, volume)): (usize, (&config::Volume, &Volume))| {
        let known = replicated.and_then(|state| state.volumes.get(index));
        VolumeState {
            name: config.name.clone(),
            size_bytes: known.map_or(volume.size_bytes(), |known| known.size_bytes),
            identity: volume.identity().to_string().into_bytes(),
        }
    };
    group.volumes.iter().zip(volumes).enumerate().map(state).collect()
}

#[cfg(test)]
mod tests {
    use afterimage_protocol::lineage::Lineage;
    use afterimage_protocol::{Generation, Sequence};

    use super::*;

    fn line(forks: &[(u64, u64)]) -> Lineage {
        let mut line = Lineage::new(Generation(1));
        forks.iter().for_each(|(at, generation)| line.fork(Generation(*generation), Sequence(*at)));
        line
    }

    fn standing(role: Role, lineage: Lineage, sequence: u64) -> Standing {
        Standing {
            role,
            lineage,
            sequence: Sequence(sequence),
            alone: false,
            parted: afterimage_protocol::Time(0),
        }
    }

    #[test]
    fn a_source_that_was_promoted_instead_of_this_host_is_not_fenced() {
        let code = |elsewhere: &Elsewhere, source: Lineage| match elsewhere
            .refusal("g", &standing(Role::Primary, source, 200))
        {
            TargetMessage::Refused { code, .. } => code,
            other => panic!("{other:?}"),
        };
        for role in [Role::Primary, Role::Fenced] {
            let old = Elsewhere::Primary(standing(role, line(&[]), 1 << 20));
            let promoted = if role == Role::Fenced { Refusal::Reinstate } else { Refusal::Role };
            assert_eq!(code(&old, line(&[(100, 2)])), promoted);
            let new = Elsewhere::Primary(standing(role, line(&[(100, 2)]), 1 << 20));
            assert_eq!(code(&new, line(&[])), Refusal::Promoted);
        }
        assert_eq!(code(&Elsewhere::Configured, line(&[])), Refusal::Role);
    }
}
