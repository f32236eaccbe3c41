//! Opens a group on this host: its state, its volumes, and the source on top of them. Blocks.

use afterimage_events::{Event, event};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use afterimage_contract::config::{self, Ack, FirstSync};
use afterimage_contract::low_latency::Waited;
use afterimage_protocol::message::VolumeInfo;
use afterimage_protocol::pace::Background;
use afterimage_protocol::rules::Rules;
use afterimage_protocol::source::{self, AckLevel, Found, Mode, OnLinkLoss, Source};
use afterimage_protocol::state::{GroupState, MAX_IDENTITY_BYTES, Role, VolumeState};
use afterimage_protocol::{Generation, blocks_in};
use afterimage_storage::disk::RealDir;
use afterimage_storage::group::{GroupError, GroupStore, SourceFiles, SourceStore, VolumeFile};
use afterimage_storage::io::Dir;
use afterimage_storage::lock::{DirLock, LockError};
use afterimage_storage::volume::{Volume, VolumeError, VolumeIdentity};
use anyhow::{Context, anyhow, bail, ensure};
use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::group::Parts;
use crate::link::Wire;
use crate::random;
use crate::volume::LocalVolume;

/// Where the groups' own directories are, in the state directory.
const GROUPS_DIR: &str = "groups";
/// The file that a group's directory has once the group has a state.
const SUPERBLOCK: &str = "superblock";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What opening a group needs to know of its host.
#[derive(Clone)]
pub(crate) struct Host {
    pub node: String,
    pub state_dir: PathBuf,
    pub clock: Clock,
    /// Volumes are served before the peer was asked whether it was promoted.
    pub alone: bool,
    /// The runtime of the NBD connections, and of the threads that may block.
    pub main: Handle,
    /// What clients wait.
    pub waited: Arc<Waited>,
}

/// What this host is for a group.
pub(crate) enum Opened {
    /// The primary.
    Primary(Box<Parts>),
    /// Not the primary, or not any more: somebody else's business.
    Standby,
    /// It was replaced by a promotion, as this state says.
    Fenced(Box<GroupState>),
}

/// Why a group cannot be served.
#[derive(Debug)]
pub(crate) struct OpenError {
    /// The volume that is to blame, by its place in the configuration.
    pub volume: Option<usize>,
    /// It is another volume than the one that was replicated.
    pub wrong: bool,
    pub error: anyhow::Error,
}

impl From<anyhow::Error> for OpenError {
    fn from(error: anyhow::Error) -> Self {
        Self { volume: None, wrong: false, error }
    }
}

/// Looks at the group's state, and takes the group over if this host is its primary.
pub(crate) fn open(host: &Host, group: &config::Group) -> Result<Opened, OpenError> {
    let starts_here = group.starts_as_primary(&host.node);
    let path = group_dir(host, group);
    if !starts_here && !path.join(SUPERBLOCK).exists() {
        return Ok(Opened::Standby);
    }
    make_dir(&path)?;
    let lock = match DirLock::take(&path) {
        Ok(lock) => lock,
        // The receiver has it: this host is the standby.
        Err(LockError::Held { .. }) => return Ok(Opened::Standby),
        Err(error) => return Err(anyhow!(error).into()),
    };
    let dir: Arc<dyn Dir> = Arc::new(RealDir::open(&path).with_context(|| format!("cannot open {path:?}"))?);
    let known = dir.exists(SUPERBLOCK).with_context(|| format!("cannot look into {path:?}"))?;
    if !known && !starts_here {
        return Ok(Opened::Standby);
    }
    let (store, state) = GroupStore::open(dir).context("cannot open the state of the group")?;
    let (state, volumes) = match state {
        Some(state) if state.role == Role::Standby => return Ok(Opened::Standby),
        Some(state) if state.role == Role::Fenced => return Ok(Opened::Fenced(Box::new(state))),
        None if !starts_here => return Ok(Opened::Standby),
        Some(state) => {
            let volumes = open_known(group, &state)?;
            (state, volumes)
        }
        None => new_group(group)?,
    };
    Ok(Opened::Primary(Box::new(start(host, group, lock, store, state, volumes)?)))
}

/// The directory of a group's state.
pub(crate) fn group_dir(host: &Host, group: &config::Group) -> PathBuf {
    host.state_dir.join(GROUPS_DIR).join(&group.name)
}

/// Makes a directory for this user only, and those above it that are missing.
pub(crate) fn make_dir(path: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make the directory {path:?}"))
        }
        _ => Ok(()),
    }
}

fn new_group(group: &config::Group) -> Result<(GroupState, Vec<Volume>), OpenError> {
    let mut volumes = Vec::new();
    let mut states = Vec::new();
    for (index, wanted) in group.volumes.iter().enumerate() {
        let volume = Volume::open(&wanted.device, None).map_err(|error| of_volume(index, error))?;
        let identity = volume.identity().to_string().into_bytes();
        if identity.len() > MAX_IDENTITY_BYTES {
            let error =
                anyhow!("the identity of {:?} is longer than {MAX_IDENTITY_BYTES} bytes", wanted.device);
            return Err(OpenError { volume: Some(index), wrong: false, error });
        }
        states.push(VolumeState { name: wanted.name.clone(), size_bytes: volume.size_bytes(), identity });
        volumes.push(volume);
    }
    let mut state = GroupState::new(Role::Primary, states);
    state.compare_all = group.first_sync == FirstSync::Compare;
    Ok((state, volumes))
}

/// Opens the volumes of a group that has run before: they have to be the same ones.
pub(crate) fn open_known(group: &config::Group, state: &GroupState) -> Result<Vec<Volume>, OpenError> {
    let names = |names: Vec<&str>| names.join(", ");
    let configured: Vec<_> = group.volumes.iter().map(|v| v.name.as_str()).collect();
    let stored: Vec<_> = state.volumes.iter().map(|v| v.name.as_str()).collect();
    if configured != stored {
        let error = anyhow!(
            "the group was made with the volumes {}, and is configured with {}: volumes of a group cannot be added, \
             removed or renamed; put the old list back, or make a new group",
            names(stored),
            names(configured)
        );
        return Err(error.into());
    }
    let mut volumes = Vec::new();
    for (index, (wanted, stored)) in group.volumes.iter().zip(&state.volumes).enumerate() {
        let mut expected =
            identity_of(stored).map_err(|error| OpenError { volume: Some(index), wrong: false, error })?;
        // It may have grown since it was identified; what is replicated has to be there.
        expected.size_bytes = stored.size_bytes;
        volumes.push(Volume::open(&wanted.device, Some(&expected)).map_err(|error| of_volume(index, error))?);
    }
    Ok(volumes)
}

fn identity_of(stored: &VolumeState) -> anyhow::Result<VolumeIdentity> {
    let text = std::str::from_utf8(&stored.identity).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| anyhow!("the stored identity of the volume {} cannot be read", stored.name))
}

fn of_volume(index: usize, error: VolumeError) -> OpenError {
    let wrong = matches!(error, VolumeError::WrongVolume { .. });
    OpenError { volume: Some(index), wrong, error: error.into() }
}

fn start(
    host: &Host,
    group: &config::Group,
    lock: DirLock,
    store: GroupStore,
    mut state: GroupState,
    mut volumes: Vec<Volume>,
) -> anyhow::Result<Parts> {
    if host.alone && state.handing_over.take().is_some() {
        event!(
            Event::ServedAlone,
            group = group.name,
            "the peer may have taken over: it is not asked, as was wanted"
        );
    }
    let boot_id = boot_id()?;
    let hot_capacity = group.hot_extents as usize;
    // Clients have caches of their own, and what is not in this one need not be written out at a flush.
    volumes.iter_mut().for_each(Volume::open_direct);
    let files: Vec<VolumeFile> = volumes.iter().map(Volume::file).collect();
    let opened = SourceStore::open(store, &mut state, boot_id, hot_capacity, &files);
    let (store, SourceFiles { bitmaps, hot, settled }) =
        opened.map_err(|error: GroupError| anyhow!(error)).context("cannot open the group's files")?;
    for (bitmap, volume) in bitmaps.iter().zip(&state.volumes) {
        ensure!(bitmap.blocks() == blocks_in(volume.size_bytes), "a bitmap has another size than its volume");
    }
    let local = group.volumes.iter().zip(&state.volumes).zip(volumes);
    let local = local.map(|((wanted, stored), volume)| {
        LocalVolume::new(&wanted.name, &wanted.device, stored.size_bytes, volume)
    });
    let local = local.collect();
    let config = source_config(group, &state);
    let fresh_generation = Generation(random::nonzero().context("cannot get a random number")?);
    let found = Found { state, bitmaps, hot, settled, boot_id, fresh_generation };
    let mut source = Source::start(config, found, host.clock.now());
    if let Some(report) = store.verification() {
        source.resume_verification(host.clock.now(), report);
    }
    Ok(Parts {
        name: group.name.clone(),
        source,
        store,
        volumes: local,
        hot_capacity,
        lock,
        clock: host.clock,
        wire: Wire::new(group, host.clock),
        blocking: host.main.clone(),
        waited: host.waited.clone(),
    })
}

/// What catch-up and verification leave to clients, as it is configured.
pub(crate) fn background(group: &config::Group) -> Background {
    match group.background {
        config::Background::Gentle => Background::Gentle,
        config::Background::Balanced => Background::Balanced,
        config::Background::Fast => Background::Fast,
    }
}

fn source_config(group: &config::Group, state: &GroupState) -> source::Config {
    let info = |v: &VolumeState| VolumeInfo { name: v.name.clone(), size_bytes: v.size_bytes };
    source::Config {
        group: group.name.clone(),
        mode: match group.mode {
            config::Mode::Sync => Mode::Sync,
            config::Mode::Async => Mode::Async,
        },
        ack: match group.ack {
            Ack::Received => AckLevel::Received,
            Ack::Durable => AckLevel::Durable,
        },
        on_link_loss: match group.on_link_loss {
            config::OnLinkLoss::Degrade => OnLinkLoss::Degrade,
            config::OnLinkLoss::Block => OnLinkLoss::Block,
        },
        sync_timeout_us: u64::try_from(group.sync_timeout.as_micros()).unwrap_or(u64::MAX),
        queue_bytes: group.queue_size.bytes(),
        window_bytes: group.catchup_window.bytes(),
        hot_capacity: group.hot_extents as usize,
        max_rate: group.max_rate.map(|rate| rate.bytes_per_s()),
        background: background(group),
        volumes: state.volumes.iter().map(info).collect(),
        rules: Rules::default(),
    }
}

/// Which boot of the host this is.
pub(crate) fn boot_id() -> anyhow::Result<[u8; 16]> {
    let text = std::fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut id = [0; 16];
    if digits.len() != 2 * id.len() {
        bail!("{BOOT_ID} holds {text:?}, which is no boot id");
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).context("not text")?;
        *byte = u8::from_str_radix(pair, 16).context("not hexadecimal")?;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_boot_has_an_id() {
        assert_ne!(boot_id().unwrap(), [0; 16]);
    }
}
