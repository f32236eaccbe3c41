//! The life of one configured group on this host: looked for, served while this host is its primary, and given up when
//! it is not any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use afterimage_contract::config;
use afterimage_contract::hooks::{Event, Facts, Hooks};
use afterimage_contract::status::{Protection, Role};
use afterimage_events::{Event as Logged, event};
use afterimage_protocol::state;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::group::Group;
use crate::link::{Dialer, Link, Outcome};
use crate::open::{Host, OpenError, Opened, open};
use crate::reinstate::lift_fence;
use crate::serve::{Exported, Serving, serve};
use crate::watcher::Watched;

/// How often a group that is not served is looked at: a promotion may have made this host its primary.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often a fenced host asks its peer whether it is still replaced.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// How often a group that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long the link may take at a stop to get the last writes to the peer, as long as it gets on with it: a queue of the
/// default size over a slow link. What does not get there is sent after the next start.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Without progress for this long it is given up.
const DRAIN_STALL: Duration = Duration::from_secs(2);
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// How long jobs under way may take until their group's lock is given up.
const JOBS_TIMEOUT: Duration = Duration::from_secs(10);

/// What a group is at the moment.
#[derive(Clone)]
pub(crate) enum Phase {
    /// Not looked at yet.
    Starting,
    /// Not this host's business.
    Standby,
    /// Replaced by a promotion.
    Fenced,
    /// It cannot be served.
    Failed(Arc<OpenError>),
    /// This host is its primary.
    Served {
        group: Arc<Group>,
        /// Where each volume is served, or why it is not; `None` until the peer has said that it was not promoted.
        exports: Option<Arc<[Exported]>>,
        watched: Arc<Watched>,
    },
}

/// One configured group.
pub(crate) struct Supervisor {
    /// As it was when the agent started; what can be changed since is in [`Supervisor::current`].
    pub config: config::Group,
    current: Mutex<config::Group>,
    pub link: Link,
    pub hooks: Hooks,
    phase: Mutex<Phase>,
    looks: mpsc::Sender<oneshot::Sender<()>>,
}

/// The receiving end of requests to look at a group now.
pub(crate) type Looks = mpsc::Receiver<oneshot::Sender<()>>;

impl Supervisor {
    pub fn new(config: config::Group, hooks: Hooks) -> (Arc<Self>, Looks) {
        let (looks, receiver) = mpsc::channel(1);
        let phase = Mutex::new(Phase::Starting);
        let link = Link::new(&config.name);
        let current = Mutex::new(config.clone());
        (Arc::new(Self { config, current, link, hooks, phase, looks }), receiver)
    }

    /// The configuration that is in force now.
    pub fn current(&self) -> config::Group {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has this configuration in force from now on, of which nothing needs a restart. A group that is gone from it stays as
    /// it is.
    pub fn retune(&self, config: Option<&config::Group>) {
        let Some(config) = config else { return };
        config.clone_into(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
        if let Phase::Served { group, watched, .. } = self.phase() {
            group.retune(config);
            watched.set_rpo(config.objectives.rpo);
        }
    }

    pub fn phase(&self) -> Phase {
        self.lock().clone()
    }

    /// Has the group looked at now; returns once that has been done, and the group is served if it is to be.
    pub async fn look_now(&self) {
        if matches!(self.phase(), Phase::Served { .. }) {
            return;
        }
        let (done, looked) = oneshot::channel();
        if self.looks.send(done).await.is_ok() {
            // An error is the end of the agent.
            let _ = looked.await;
        }
    }

    /// Where the group's volumes are served now.
    pub fn exports(&self) -> Vec<String> {
        match self.phase() {
            Phase::Served { exports: Some(exports), .. } => {
                exports.iter().flat_map(|exported| exported.at.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        *self.lock() = phase;
    }

    /// Looks after the group until `stop` is true.
    pub async fn run(
        self: Arc<Self>,
        host: Host,
        dialer: Arc<Dialer>,
        mut looks: Looks,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut asked: Option<oneshot::Sender<()>> = None;
        let mut last_question = None;
        while !*stop.borrow() {
            let (job_host, job_config) = (host.clone(), self.current());
            let opened = host.main.spawn_blocking(move || open(&job_host, &job_config)).await;
            let mut fenced = None;
            let pause = match opened.unwrap_or_else(|panic| Err(anyhow::Error::new(panic).into())) {
                Ok(Opened::Primary(parts)) => {
                    let group = Group::start(*parts);
                    self.serve(&host, group, &dialer, asked.take(), &mut looks, stop.clone()).await;
                    Duration::ZERO
                }
                Ok(Opened::Standby) => {
                    self.enter(Phase::Standby);
                    LOOK_INTERVAL
                }
                Ok(Opened::Fenced(state)) => {
                    self.enter(Phase::Fenced);
                    fenced = Some(state);
                    LOOK_INTERVAL
                }
                Err(error) => {
                    self.failed(error);
                    RETRY_INTERVAL
                }
            };
            asked.take().map(|done| done.send(()));
            tokio::select! {
                () = async {
                    if !self.ask_if_replaced(&host, &dialer, fenced, &mut last_question).await {
                        tokio::time::sleep(pause).await;
                    }
                } => {}
                look = looks.recv() => asked = look,
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
    }

    /// Where a fenced host is due to ask its peer: whether that has rolled its promotion back, and this host is the primary
    /// again.
    async fn ask_if_replaced(
        &self,
        host: &Host,
        dialer: &Dialer,
        fenced: Option<Box<state::GroupState>>,
        last: &mut Option<Instant>,
    ) -> bool {
        let Some(state) = fenced else { return false };
        if self.link.is_paused() || last.is_some_and(|last| last.elapsed() < ASK_INTERVAL) {
            return false;
        }
        *last = Some(Instant::now());
        let Some(generations) = self.link.ask_if_replaced(dialer, &self.config.name, &state).await else {
            return false;
        };
        let (host, config) = (host.clone(), self.config.clone());
        let main = host.main.clone();
        let lifted = main.spawn_blocking(move || lift_fence(&host, &config, &generations)).await;
        match lifted.unwrap_or_else(|panic| Err(anyhow::Error::new(panic))) {
            Ok(true) => {
                let group = &self.config.name;
                event!(
                    Logged::FenceLifted,
                    group = group,
                    "the peer has rolled its promotion back: this host is the primary again"
                );
                true
            }
            Ok(false) => {
                self.link.no_session(
                    "the peer is the standby and does not know of the promotion that replaced this host: one of them has \
                     lost its state"
                        .to_owned(),
                );
                false
            }
            Err(error) => {
                let error = format!("{error:#}");
                event!(
                    Logged::StateFailed,
                    group = self.config.name,
                    error,
                    "that this host is not replaced any more cannot be noted"
                );
                false
            }
        }
    }

    fn failed(&self, error: OpenError) {
        let text = format!("{:#}", error.error);
        let known = matches!(self.phase(), Phase::Failed(last) if format!("{:#}", last.error) == text);
        if !known {
            let group = &self.config.name;
            match error.wrong {
                true => {
                    event!(Logged::WrongVolume, group = group, error = text, "the group cannot be served")
                }
                false => {
                    event!(Logged::GroupFailed, group = group, error = text, "the group cannot be served")
                }
            }
        }
        self.enter(Phase::Failed(Arc::new(error)));
    }

    /// Serves the group until `stop` is true, or the peer turns out to be promoted, or this host's promotion is rolled back.
    async fn serve(
        self: &Arc<Self>,
        host: &Host,
        group: Arc<Group>,
        dialer: &Arc<Dialer>,
        asked: Option<oneshot::Sender<()>>,
        looks: &mut Looks,
        mut stop: watch::Receiver<bool>,
    ) {
        tracing::info!(group = group.name, position = %group.look(|s| s.position()), "this host is the primary");
        let mut agreement = self.link.agreement();
        // A peer that has had a checkpoint may have been promoted while this host was down (section 6 of the design).
        let may_be_replaced = group.look(|source| source.may_be_replaced());
        let mut serving = None;
        let current = self.current();
        // It may have been read again since the group was opened.
        group.retune(&current);
        let watched = Arc::new(Watched::new(group.clock.now(), current.objectives.rpo));
        let phase = |exports| Phase::Served { group: group.clone(), exports, watched: watched.clone() };
        if may_be_replaced && !host.alone {
            event!(
                Logged::WaitingForPeer,
                group = group.name,
                "the peer is asked whether it was promoted before volumes are served"
            );
            self.enter(phase(None));
        } else {
            let now = serve(dialer.lanes().of_clients(), &group, &self.config).await;
            self.enter(phase(Some(now.exported().into())));
            self.retune(Some(&self.current()));
            serving = Some(now);
        }
        asked.map(|done| done.send(()));
        let mut helpers = JoinSet::new();
        helpers.spawn(group.clone().run_timer());
        helpers.spawn_on(group.clone().run_ring(), dialer.lanes().of_clients());
        let (watcher, watched_group) = (self.clone(), group.clone());
        let watching = watched.clone();
        let watch = helpers.spawn(async move { watching.run(&watched_group, &watcher).await });
        let (end_link, link_stop) = watch::channel(false);
        let (supervisor, linked_group, peer) = (self.clone(), group.clone(), dialer.clone());
        let mut link = dialer
            .lanes()
            .of_link()
            .clone()
            .spawn(async move { supervisor.link.run(&linked_group, &peer, link_stop).await });
        let mut taken_back = group.taken_back();
        let outcome = loop {
            tokio::select! {
                () = is_true(&mut taken_back) => break None,
                outcome = &mut link => break outcome.ok(),
                () = is_true(&mut agreement), if serving.is_none() => {
                    let now = serve(dialer.lanes().of_clients(), &group, &self.config).await;
                    self.enter(phase(Some(now.exported().into())));
                    self.retune(Some(&self.current()));
                    serving = Some(now);
                }
                // It is served already.
                Some(done) = looks.recv() => drop(done.send(())),
                () = is_true(&mut stop) => break None,
            }
        };
        if let Some(Outcome::Fenced(peer)) = outcome {
            let (fenced, sequence) = (group.clone(), group.look(|source| source.position().sequence));
            let noted = host.main.spawn_blocking(move || fenced.fence(peer.as_ref())).await;
            let (role, durable) = noted.unwrap_or((state::Role::Fenced, false));
            if !durable {
                event!(
                    Logged::StateFailed,
                    group = group.name,
                    "that the peer was promoted could not be noted"
                );
            }
            if role == state::Role::Standby {
                watch.abort();
                self.hooks.tell(Event::AfterSwitchover, self.facts(&group, Role::Standby));
                self.enter(Phase::Standby);
                group.end_switchover(Ok(sequence));
            } else {
                event!(
                    Logged::Fenced,
                    group = group.name,
                    "the peer was promoted: this host serves the group no more"
                );
                self.enter(Phase::Fenced);
                watched.look(&group, self);
                self.hooks.tell(Event::AfterDemotion, self.facts(&group, Role::Fenced));
            }
            stop_serving(serving).await;
        } else if *taken_back.borrow() {
            watch.abort();
            group.abandon();
            self.enter(Phase::Standby);
            self.hooks.tell(Event::AfterDemotion, self.facts(&group, Role::Standby));
            stop_serving(serving).await;
            end_link.send_replace(true);
            if !link.is_finished() {
                // A panic was reported where it happened.
                let _ = link.await;
            }
        } else {
            // The end of the session is no loss of the link.
            watch.abort();
            stop_serving(serving).await;
            drain(&group).await;
            end_link.send_replace(true);
            if !link.is_finished() {
                // A panic was reported where it happened.
                let _ = link.await;
            }
            group.close();
            let synced = group.clone();
            if !host.main.spawn_blocking(move || synced.end_clean()).await.unwrap_or(false) {
                event!(Logged::StopIncomplete, group = group.name, "not everything is on stable storage");
            }
            self.enter(Phase::Starting);
        }
        helpers.shutdown().await;
        let_go(group).await;
    }
}

impl Supervisor {
    /// What the hooks are told when this host's role changes, or is about to.
    pub fn facts(&self, group: &Group, role: Role) -> Facts {
        let position = group.look(|source| source.position());
        Facts {
            role: Some(role),
            generation: Some(position.generation.to_string()),
            sequence: Some(position.sequence.0),
            protection: (role == Role::Fenced).then_some(Protection::Fenced),
            exports: self.exports(),
            reason: self.link.state().last_error,
            ..Facts::new(&group.name)
        }
    }
}

/// Returns once the value is true, or nobody is left to change it.
async fn is_true(value: &mut watch::Receiver<bool>) {
    let _ = value.wait_for(|value| *value).await;
}

async fn stop_serving(serving: Option<Serving>) {
    if let Some(serving) = serving {
        serving.stop().await;
    }
}

/// Gives the link the time to get the last writes to the peer, if it can. A catch-up that is under way is not waited for: it
/// goes on after the next start.
async fn drain(group: &Group) {
    let started = Instant::now();
    let (mut durable, mut moved) = (None, started);
    while started.elapsed() < DRAIN_TIMEOUT && moved.elapsed() < DRAIN_STALL {
        let status = group.status();
        if !status.connected || (status.streaming && status.durable >= status.position.sequence) {
            return;
        }
        if status.streaming && durable.replace(status.durable) != Some(status.durable) {
            moved = Instant::now();
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
    tracing::info!(
        group = group.name,
        "the peer does not have everything yet: the rest follows after the next start"
    );
}

/// Waits until the last job of the group has ended, so that its lock is free afterwards.
async fn let_go(group: Arc<Group>) {
    let started = Instant::now();
    while Arc::strong_count(&group) > 1 && started.elapsed() < JOBS_TIMEOUT {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}
