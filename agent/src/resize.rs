//! Volumes that have grown, as the operator has them replicated.

use std::sync::Arc;
use std::time::{Duration, Instant};

use afterimage_contract::admin::{ErrorCode, Resize, ResizedVolume, Response};
use afterimage_protocol::source::{CannotGrow, Growth};
use anyhow::Context;

use crate::group::Group;
use crate::supervisor::{Phase, Supervisor};

/// How long the standby may take to say how large its volumes are.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the standby is waited for to take the new sizes over.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(10);
const KNOWN_POLL: Duration = Duration::from_millis(20);

/// Replicates all of the volume `wanted`, or of every one, as far as they have grown.
pub(crate) async fn resize(
    supervisor: &Supervisor,
    peer: &str,
    wanted: Option<&str>,
    dry_run: bool,
) -> Response {
    let name = &supervisor.config.name;
    let Phase::Served { group, .. } = supervisor.phase() else {
        return Response::error(
            ErrorCode::Refused,
            format!("this host is not the primary of {name}"),
            format!("a resize is asked for on the primary; see: afterimage status {name}"),
        );
    };
    if let Some(volume) = wanted.filter(|wanted| !group.volumes.iter().any(|v| v.name == *wanted)) {
        return Response::error(
            ErrorCode::BadRequest,
            format!("{name} has no volume {volume}"),
            format!("leave out --volume for all of them; see: afterimage status {name}"),
        );
    }
    match try_resize(supervisor, &group, peer, wanted, dry_run).await {
        Ok(done) => Response::ok(&done),
        Err(NotDone::Cannot(why)) => refusal(name, peer, &why),
        Err(NotDone::Failed(error)) => Response::error(
            ErrorCode::Failed,
            format!("{name} was not resized: {error:#}"),
            "mend the cause, then try again",
        ),
    }
}

enum NotDone {
    Cannot(CannotGrow),
    Failed(anyhow::Error),
}

impl From<CannotGrow> for NotDone {
    fn from(why: CannotGrow) -> Self {
        NotDone::Cannot(why)
    }
}

async fn try_resize(
    supervisor: &Supervisor,
    group: &Arc<Group>,
    peer: &str,
    wanted: Option<&str>,
    dry_run: bool,
) -> Result<Resize, NotDone> {
    let sizes = measure(group, wanted).map_err(NotDone::Failed)?;
    group.look(|source| source.may_grow(&sizes, None))?;
    let target_sizes = supervisor.link.measure_peer(MEASURE_TIMEOUT).await;
    let target_sizes = target_sizes
        .with_context(|| format!("{peer} did not say how large its volumes are"))
        .map_err(NotDone::Failed)?;
    let growth = group.look(|source| source.may_grow(&sizes, Some(&target_sizes)))?;
    if dry_run {
        return Ok(answer(group, &growth, None, None));
    }
    make_room(group, growth).await.map_err(NotDone::Failed)?;
    let held_since = Instant::now();
    let growth = group.grow(&sizes, &target_sizes).await?;
    let known = is_known(group).await;
    let held_us = u64::try_from(held_since.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(answer(group, &growth, Some(known), Some(held_us)))
}

/// The sizes of the volumes now; `None` for one that is not wanted.
fn measure(group: &Group, wanted: Option<&str>) -> anyhow::Result<Vec<Option<u64>>> {
    let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    let measured = group.volumes.iter().map(|volume| {
        let size = is_wanted(&volume.name).then(|| volume.measure()).transpose();
        size.with_context(|| format!("volume {}", volume.name))
    });
    measured.collect()
}

/// Has the volumes as large as they are on stable storage: after a loss of power they must not be smaller than the state
/// says.
async fn make_room(group: &Arc<Group>, growth: Vec<Growth>) -> anyhow::Result<()> {
    let local = group.clone();
    let made = group.blocking.spawn_blocking(move || {
        growth.iter().try_for_each(|growth| {
            let volume = local.volumes.get(growth.volume.0 as usize).context("a volume is gone")?;
            let made = volume.make_room(growth.to_bytes);
            made.with_context(|| format!("cannot make the size of volume {} durable", volume.name))
        })
    });
    made.await.context("the size of a volume cannot be made durable")?
}

/// Whether the standby has begun a session with the new sizes.
async fn is_known(group: &Group) -> bool {
    let began = Instant::now();
    while began.elapsed() < KNOWN_TIMEOUT {
        if group.status().connected {
            return true;
        }
        tokio::time::sleep(KNOWN_POLL).await;
    }
    false
}

fn answer(group: &Group, growth: &[Growth], standby_knows: Option<bool>, held_us: Option<u64>) -> Resize {
    let resized = |growth: &Growth| ResizedVolume {
        name: group.volumes.get(growth.volume.0 as usize).map(|v| v.name.clone()).unwrap_or_default(),
        from_bytes: growth.from_bytes,
        to_bytes: growth.to_bytes,
    };
    Resize {
        group: group.name.clone(),
        dry_run: standby_knows.is_none(),
        volumes: growth.iter().map(resized).collect(),
        standby_knows,
        held_us,
    }
}

fn refusal(name: &str, peer: &str, why: &CannotGrow) -> Response {
    let code = match why {
        CannotGrow::UnderWay => ErrorCode::Busy,
        CannotGrow::Failed | CannotGrow::NoBitmaps | CannotGrow::TooSlow => ErrorCode::Failed,
        _ => ErrorCode::Refused,
    };
    let action = match why {
        CannotGrow::TargetTooSmall { name: volume, wanted_bytes, .. } => format!(
            "make the volume {volume} at least {wanted_bytes} bytes long on {peer}, then run this again"
        ),
        CannotGrow::NothingGrew => {
            format!("make the volume larger on {peer} first, then here, then run this again")
        }
        CannotGrow::Shrank { .. } => "give the volume its size back".to_owned(),
        CannotGrow::NotConnected => {
            format!("bring {peer} or the link back, then run this again; see: afterimage status {name}")
        }
        _ => format!("try again once that is over; see: afterimage status {name}"),
    };
    Response::error(code, format!("{name} was not resized, and is served as before: {why}"), action)
}
