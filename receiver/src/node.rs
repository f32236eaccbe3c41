//! This host: its groups, its UDP port and its administration socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use afterimage_contract::admin::Server;
use afterimage_contract::config::{Config, Daemon};
use afterimage_contract::hooks::Hooks;
use afterimage_contract::low_latency::{self, Waited};
use afterimage_contract::reload::{Reloader, Source};
use afterimage_contract::service::{self, Doing, Manager, Pulses};
use afterimage_events::{Event, event};
use afterimage_metrics::Pages;
use afterimage_protocol::Time;
use afterimage_storage::lock::DirLock;
use afterimage_transport::{
    Accepted, CloseCode, Connection, Endpoint, EndpointOptions, Fingerprint, Identity, NodeName,
    PairingConnection, Pins, RefusedKeys,
};
use anyhow::Context;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::group::{Group, Input, Phase, Setup, make_private_dir};
use crate::link::SESSION_ENDED;

use crate::{admin, clock, session, status};

/// Below the state directory: what belongs to the receiver alone, and the lock that keeps a second one away.
const OWN_DIR: &str = "receiver";
/// Below the state directory: a directory for each group.
const GROUPS_DIR: &str = "groups";
/// How long the peers may take to hear that their connections are closed.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// What sessions and the administration share.
pub struct Node {
    /// The configuration.
    pub config: Config,
    /// The keys that are trusted.
    pub pins: Arc<Pins>,
    /// The operator's programs.
    pub hooks: Hooks,
    /// The key that was last refused.
    pub refused_keys: RefusedKeys,
    /// How the configuration is read again.
    pub reloader: Arc<Reloader>,
    /// When the receiver started.
    pub started: Time,
    groups: BTreeMap<String, Arc<Group>>,
}

impl Node {
    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        self.groups.get(name)
    }

    /// All groups, by name.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }

    /// Whether this key is the configured peer's: others may be pinned that have no business here.
    fn is_the_peer(&self, key: Fingerprint) -> bool {
        let pinned = self.pins.by_fingerprint(key);
        pinned.is_ok_and(|pin| pin.is_some_and(|pin| pin.name.as_str() == self.config.peer.name))
    }
}

/// [`run_with`] no configuration file that could be read again.
///
/// # Errors
/// As [`run_with`].
pub async fn run(config: Config, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    run_with(config, Source::default(), shutdown).await
}

/// Runs the receiver until `shutdown` says so; its configuration is read again from `source`. Returns once everything that
/// was taken is on stable storage.
///
/// # Errors
/// If the host's own state (its directory, its key, its sockets) cannot be used. A group that cannot is reported in the
/// status and leaves the others alone.
pub async fn run_with(
    config: Config,
    source: Source,
    mut shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    for warning in &config.warnings {
        event!(Event::ConfigDoubtful, "{warning}");
    }
    let state_dir = config.node.state_dir.clone();
    let own_dir = state_dir.join(OWN_DIR);
    make_private_dir(&state_dir)?;
    make_private_dir(&own_dir)?;
    let _lock = DirLock::take(&own_dir)?;
    let identity = Identity::load_or_create(&state_dir)?;
    let pins = Arc::new(Pins::open(&state_dir)?);
    let options = EndpointOptions {
        // Each group has one connection, and a few may come and go beside them.
        lanes: config.groups.len().max(1),
        pairing_state_dir: Some(state_dir.clone()),
        ..EndpointOptions::default()
    };
    let endpoint = Endpoint::bind(config.node.listen, &identity, pins.clone(), options)?;
    let server = Server::bind(config.receiver_socket())
        .with_context(|| format!("cannot listen on {}", config.receiver_socket().display()))?;

    let hooks = Hooks::new(&config, Handle::current());
    let waited = Arc::<Waited>::default();
    let groups = start_groups(&config, &hooks, &waited)?;
    let manager = Arc::new(Manager::new());
    let (low_latency, setting) = watch::channel(config.node.low_latency);
    let reloader = {
        let hooks = hooks.clone();
        let apply = move |config: &Config| {
            hooks.set(config);
            low_latency.send_replace(config.node.low_latency);
        };
        Arc::new(Reloader::new(Daemon::Receiver, source, manager.clone(), config.clone(), apply))
    };
    let pulses = pulses(&endpoint, &groups);
    let node = Arc::new(Node {
        hooks,
        config,
        pins,
        refused_keys: endpoint.refused_keys(),
        reloader,
        started: clock::now(),
        groups,
    });
    event!(
        Event::Started,
        node = node.config.node.name,
        listen = %node.config.node.listen,
        key = %identity.fingerprint(),
        groups = node.groups.len(),
        "the receiver starts"
    );
    let handler = {
        let node = node.clone();
        move |request| admin::answer(node.clone(), request)
    };
    let stop = shutdown.clone();
    let beside = async {
        tokio::select! {
            () = manager.attend(pulses, || doing(&node)) => {}
            () = node.reloader.run() => {}
            () = low_latency::run(waited, setting) => {}
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
        manager.stopping();
    };
    let metrics = {
        let pages =
            node.config.receiver_metrics().map(|at| (at, Pages::of_receiver(&node.config, node.clone())));
        let shutdown = stop.clone();
        async move {
            if let Some((address, pages)) = pages {
                afterimage_metrics::serve(address, pages, shutdown).await;
            }
        }
    };
    let asking = {
        let stop = stop.clone();
        async {
            stopped(stop).await;
            manager.ask_for_time().await;
        }
    };
    let stopping_node = node.clone();
    let running = async {
        // Not tasks of their own: dropping this future ends them, and with them the groups.
        tokio::join!(
            accept(endpoint, node.clone(), stop.clone()),
            server.run(handler, stopped(stop)),
            beside,
            metrics
        );
        let groups = tokio::task::spawn_blocking(move || {
            stopping_node.groups().for_each(|group| group.begin_stop());
            stopping_node.groups().for_each(|group| group.stop());
        });
        groups.await.context("cannot stop the groups")
    };
    // From the moment it is to stop: a peer's connection may be at a disk that takes its time.
    tokio::select! {
        ended = running => ended?,
        () = asking => {}
    }
    event!(Event::Stopped, "the receiver has stopped");
    Ok(())
}

/// The threads that have to answer for the receiver to count as alive.
fn pulses(endpoint: &Endpoint, groups: &BTreeMap<String, Arc<Group>>) -> Pulses {
    let mut pulses = Pulses::new();
    for (n, lane) in endpoint.lanes().enumerate() {
        pulses.add_runtime(format!("thread {n} of the network"), lane.clone());
    }
    for (name, group) in groups {
        let group = Arc::downgrade(group);
        let ask = move |answer| {
            if let Some(group) = group.upgrade() {
                group.send(Input::Pulse(answer));
            }
        };
        pulses.add_worker(format!("the thread of group {name}"), ask);
    }
    pulses
}

/// For the service manager. The receiver has started once it has looked at each group.
fn doing(node: &Node) -> Doing {
    let text = service::line(&status::report(node), "this host is the standby of no group");
    let started = node.groups().all(|group| group.snapshot().phase != Phase::Opening);
    Doing { text, started }
}

/// Memory for what was received last and is about to be applied, over all groups and for one of them, in bytes: two batches of the
/// applier, one being applied and one coming in.
const RECENT_BYTES: u64 = 128 << 20;
const GROUP_RECENT_BYTES: u64 = 64 << 20;

fn start_groups(
    config: &Config,
    hooks: &Hooks,
    waited: &Arc<Waited>,
) -> anyhow::Result<BTreeMap<String, Arc<Group>>> {
    let recent_bytes = GROUP_RECENT_BYTES.min(RECENT_BYTES / config.groups.len().max(1) as u64);
    let start = |(name, group): (&String, &afterimage_contract::config::Group)| {
        let setup = Setup {
            node: config.node.name.clone(),
            group: group.clone(),
            dir: config.node.state_dir.join(GROUPS_DIR).join(name),
            agent_socket: config.agent_socket(),
            runtime: Handle::current(),
            hooks: hooks.clone(),
            recent_bytes,
            waited: waited.clone(),
        };
        Ok((name.clone(), Group::start(setup)?))
    };
    config.groups.iter().map(start).collect()
}

/// Completes when the receiver is to stop, also when nobody is left who could say so.
async fn stopped(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

async fn accept(endpoint: Endpoint, node: Arc<Node>, shutdown: watch::Receiver<bool>) {
    let mut tasks = JoinSet::new();
    let mut stop = std::pin::pin!(stopped(shutdown));
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_) = tasks.join_next() => continue,
            accepted = endpoint.accept() => accepted,
        };
        match accepted {
            Some(Accepted::Peer(connection)) => {
                let runtime = connection.runtime().cloned().unwrap_or_else(Handle::current);
                tasks.spawn_on(peer(node.clone(), connection), &runtime);
            }
            Some(Accepted::Pairing(pairing)) => {
                tasks.spawn(pair(node.clone(), pairing));
            }
            None => break,
        }
    }
    endpoint.close(SESSION_ENDED, "the receiver stops");
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, endpoint.wait_idle()).await;
    while tasks.join_next().await.is_some() {}
}

async fn peer(node: Arc<Node>, connection: Connection) {
    let (address, key) = (connection.remote_address(), connection.peer_fingerprint());
    if !node.is_the_peer(key) {
        let text = format!("the peer of this host is {}", node.config.peer.name);
        event!(
            Event::KeyRefused,
            %address,
            %key,
            "refused: the key is pinned, but not as that of the configured peer {}",
            node.config.peer.name
        );
        connection.close(CloseCode::NOT_PINNED, &text);
        return;
    }
    session::serve(node, connection).await;
}

async fn pair(node: Arc<Node>, pairing: PairingConnection) {
    let (address, joiner) = (pairing.remote_address(), pairing.joiner());
    let name: NodeName = match node.config.node.name.parse() {
        Ok(name) => name,
        Err(error) => {
            event!(Event::PairingFailed, %address, %error, "cannot pair under this node's name");
            return;
        }
    };
    match pairing.answer(&name).await {
        Ok(paired) => {
            event!(Event::Paired, %address, peer = %paired.peer.name, key = %paired.peer.fingerprint, "paired");
        }
        Err(error) => event!(Event::PairingFailed, %address, key = %joiner, %error, "pairing failed"),
    }
}
