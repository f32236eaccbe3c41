//! The agent of a host: its identity, its groups, and the threads that they live on.
//!
//! Each group has a lane: one thread on which its clients' connections and its link take turns, so that a write goes from a
//! client to the network, and its acknowledgement back, without being handed from thread to thread. In async mode the link
//! has a lane of its own. What may wait for a disk for long is done on threads of the runtime of the caller. Should a volume
//! hang all the same, its group's clients wait, and a link on the same lane falls silent, but no other group's. Supervision,
//! timers and the administration socket are on a thread of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use afterimage_contract::admin;
use afterimage_contract::config::{Config, Daemon};
use afterimage_contract::hooks::Hooks;
use afterimage_contract::low_latency;
use afterimage_contract::reload::{Reloader, Source};
use afterimage_contract::service::{self, Doing, Manager, Pulses};
use afterimage_events::{Event, event};
use afterimage_metrics::Pages;
use afterimage_transport::{Identity, Pins};
use anyhow::Context;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::clock::Clock;
use crate::lanes::Lanes;
use crate::link::Dialer;
use crate::open::{Host, make_dir};
use crate::supervisor::{Looks, Phase, Supervisor};

/// What is not in the configuration, because it is meant for one start.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Serve volumes whose standby could have been promoted without asking it first.
    pub alone: bool,
    /// Where the configuration is read again.
    pub configuration: Source,
}

/// [`run_with`] the default options.
///
/// # Errors
/// As [`run_with`].
pub async fn run(config: Config, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    run_with(config, Options::default(), shutdown).await
}

/// Runs the agent until `shutdown` is true or its sender is gone; then everything is drained and on stable storage as
/// far as that is possible.
///
/// # Errors
/// If the host's own state (its directory, its key, its sockets) cannot be used. A group or a volume that cannot be
/// used is reported in the status and leaves the others alone.
pub async fn run_with(
    config: Config,
    options: Options,
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    for problem in &config.warnings {
        event!(Event::ConfigDoubtful, "{problem}");
    }
    make_dir(&config.node.state_dir)?;
    let main = Handle::current();
    let (ended, end) = oneshot::channel();
    let control = std::thread::Builder::new().name("control".to_owned());
    let thread = control.spawn(move || {
        let result = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")
            .and_then(|runtime| runtime.block_on(control_all(config, options, main, shutdown)));
        // The other end is there, or nobody wants to know.
        let _ = ended.send(result);
    });
    thread.context("cannot start a thread")?;
    end.await.context("the control thread broke down")?
}

async fn control_all(
    config: Config,
    options: Options,
    main: Handle,
    mut shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let state_dir = &config.node.state_dir;
    let identity = Identity::load_or_create(state_dir).context("cannot use the identity of this host")?;
    event!(Event::Started, node = config.node.name, key = %identity.fingerprint(), "the agent starts");
    let pins = Arc::new(Pins::open(state_dir).context("cannot read the pinned peers")?);
    let clock = Clock::start();
    let host = Host {
        node: config.node.name.clone(),
        state_dir: state_dir.clone(),
        clock,
        alone: options.alone,
        main,
        waited: Arc::default(),
    };
    let socket = config.agent_socket();
    let server = admin::Server::bind(&socket).with_context(|| format!("cannot listen on {socket:?}"))?;
    let hooks = Hooks::new(&config, Handle::current());
    let mut pulses = Pulses::new();
    pulses.add_runtime("the runtime of the agent", host.main.clone());
    let mut groups = BTreeMap::new();
    let mut supervised: Vec<(Arc<Supervisor>, Looks, Arc<Dialer>)> = Vec::new();
    for (name, group) in config.groups.clone() {
        let lanes = Lanes::start(&name, group.mode).context("cannot start a thread")?;
        for (thread, runtime) in lanes.threads() {
            pulses.add_runtime(format!("the thread of {thread} of group {name}"), runtime.clone());
        }
        let (supervisor, looks) = Supervisor::new(group, hooks.clone());
        let dialer = Arc::new(Dialer::open(lanes, &identity, pins.clone(), &config.peer)?);
        groups.insert(name, supervisor.clone());
        supervised.push((supervisor, looks, dialer));
    }
    let (stop, stopping) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for (supervisor, looks, dialer) in supervised {
        tasks.spawn(supervisor.run(host.clone(), dialer, looks, stopping.clone()));
    }
    let manager = Arc::new(Manager::new());
    let (low_latency, setting) = watch::channel(config.node.low_latency);
    let keeping_awake = tokio::spawn(low_latency::run(host.waited.clone(), setting));
    let reloader = {
        let groups: Vec<Arc<Supervisor>> = groups.values().cloned().collect();
        let apply = move |config: &Config| {
            hooks.set(config);
            low_latency.send_replace(config.node.low_latency);
            for group in &groups {
                group.retune(config.groups.get(&group.config.name));
            }
        };
        let (source, manager) = (options.configuration, manager.clone());
        Arc::new(Reloader::new(Daemon::Agent, source, manager, config.clone(), apply))
    };
    let reloading = {
        let reloader = reloader.clone();
        tokio::spawn(async move { reloader.run().await })
    };
    let peer = config.peer.clone();
    let admin = Arc::new(Admin { node: config.node.name.clone(), peer, clock, host, groups, reloader });
    let attending = {
        let (manager, admin) = (manager.clone(), admin.clone());
        tokio::spawn(async move { manager.attend(pulses, || doing(&admin)).await })
    };
    let metrics = config.agent_metrics().map(|address| {
        let pages = Pages::of_agent(&config, admin.clone());
        tokio::spawn(afterimage_metrics::serve(address, pages, stopping.clone()))
    });
    let (end_admin, mut admin_stop) = watch::channel(false);
    let answering = tokio::spawn(server.run(
        move |request| {
            let admin = admin.clone();
            async move { admin.answer(request).await }
        },
        async move {
            // Both a value and the end of the sender end it.
            let _ = admin_stop.wait_for(|stop| *stop).await;
        },
    ));
    // Both a value and the end of the sender end it.
    let _ = shutdown.wait_for(|stop| *stop).await;
    tracing::info!("agent stops");
    manager.stopping();
    attending.abort();
    keeping_awake.abort();
    reloading.abort();
    let more_time = tokio::spawn(async move { manager.ask_for_time().await });
    stop.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            event!(Event::Panicked, %error, "the supervision of a group failed");
        }
    }
    end_admin.send_replace(true);
    // A panic was reported where it happened.
    let _ = answering.await;
    if let Some(metrics) = metrics {
        let _ = metrics.await;
    }
    more_time.abort();
    event!(Event::Stopped, "the agent has stopped");
    Ok(())
}

/// For the service manager. The agent has started once it has looked at each group; one that waits for its peer is served
/// when that has answered.
fn doing(admin: &Admin) -> Doing {
    let text = service::line(&admin.status(), "this host is the primary of no group");
    let started = admin.groups.values().all(|group| !matches!(group.phase(), Phase::Starting));
    Doing { text, started }
}
