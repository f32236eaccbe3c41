//! The link of a group: finds the peer, holds one session with it, and begins anew when that ends.
//!
//! | module | noun |
//! |---|---|
//! | `ask` | the question of a fenced host whether it is still replaced |
//! | `dial` | one attempt to reach the peer |
//! | `session` | one connection: handshake, control messages, liveness, end |
//! | `sender` | the ordered stream and the block streams |
//! | `encoder` | frames on their way into one of them |
//! | `wire` | how they are coded, and how much it is |

mod ask;
mod dial;
mod encoder;
mod sender;
mod session;
mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use afterimage_protocol::lineage::{Lineage, Standing};
use afterimage_protocol::message::Refusal;
use tokio::sync::{Notify, watch};

pub(crate) use dial::Dialer;
use session::End;
pub(crate) use wire::Wire;

use crate::group::Group;
use crate::random;

/// Pause before the first redial, and the longest. An attempt is a packet or two until somebody answers, so that even a host with
/// the most groups sends little while its peer is away, and a link that comes back is noticed at once.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A peer that is there and opens its group, or ends an older session, is asked again this soon at first.
const ALMOST: Duration = Duration::from_millis(20);
/// And one that is taking over, or whose turn it is, this often.
const TURN: Duration = Duration::from_millis(100);
/// A peer that is not paired, or that refuses, is asked again this often, and so is one that is not ready for long.
const PATIENCE: Duration = Duration::from_secs(1);
/// A question to the peer that was not answered is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A session that held for this long shows that the link is good: the next redial is quick again.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// What is known of a group's link.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkState {
    pub address: Option<String>,
    pub fingerprint: Option<String>,
    pub rtt_us: Option<u64>,
    /// Why the last attempt or session ended.
    pub last_error: Option<String>,
    /// One side refuses the other; mending that takes a person.
    pub refused: bool,
    /// The peer refuses because both hosts have writes of their own.
    pub split_brain: bool,
    /// The peer refuses because it was replaced by the promotion of this host.
    pub reinstate: bool,
    /// What the peer said of its image when it last refused a session.
    pub standing: Option<Standing>,
    /// This host has given way in a split brain, and is about to serve no more.
    pub gave_way: bool,
    /// There is no pinned key of the peer.
    pub unpaired: bool,
}

/// The link of one group: its state, and the switch that an operator has.
pub(crate) struct Link {
    /// The group's name.
    group: String,
    state: Mutex<LinkState>,
    paused: watch::Sender<bool>,
    /// Whether the peer has agreed to a session since the group was opened: then it was not promoted.
    agreed: watch::Sender<bool>,
    /// The peer is asked for the sizes of its volumes.
    pub(super) measure: Notify,
    /// What it last said, and how often it has.
    pub(super) measured: watch::Sender<(u64, Vec<u64>)>,
    /// An operator wants the peer's history kept in a split brain.
    gives_way: AtomicBool,
}

/// Whether the peer's history went on from this host's own.
fn left_by(group: &Group, peer: &Standing) -> bool {
    let ours = group.look(|source| source.state().generation());
    peer.lineage.left_at(ours).is_some()
}

/// Why a link has ended for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was asked to.
    Stopped,
    /// The peer was promoted; its history, if it told.
    Fenced(Option<Lineage>),
}

impl Link {
    /// Of a group, by its name.
    pub fn new(group: &str) -> Self {
        Self {
            group: group.to_owned(),
            state: Mutex::default(),
            paused: watch::Sender::new(false),
            agreed: watch::Sender::new(false),
            measure: Notify::new(),
            measured: watch::Sender::default(),
            gives_way: AtomicBool::new(false),
        }
    }

    pub fn state(&self) -> LinkState {
        self.lock().clone()
    }

    /// Ends the session, if there is one, and begins none until [`Link::resume`].
    pub fn pause(&self) {
        self.paused.send_replace(true);
    }

    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Becomes true with the first session from now on.
    pub fn agreement(&self) -> watch::Receiver<bool> {
        self.agreed.send_replace(false);
        self.agreed.subscribe()
    }

    /// What each volume has room for at the peer now, in bytes; `None` without a session, or if it does not answer within
    /// `timeout`.
    pub async fn measure_peer(&self, timeout: Duration) -> Option<Vec<u64>> {
        let mut measured = self.measured.subscribe();
        let began = Instant::now();
        while began.elapsed() < timeout {
            // A question may be lost with its session.
            self.measure.notify_one();
            if let Ok(answer) = tokio::time::timeout(ASK_AGAIN, measured.changed()).await {
                answer.ok()?;
                let (_, sizes) = &*measured.borrow();
                return Some(sizes.clone());
            }
        }
        None
    }

    /// In a split brain, gives way to a peer that was told to keep its own history, until that is taken back.
    pub fn give_way(&self, wanted: bool) {
        self.gives_way.store(wanted, Ordering::Release);
    }

    fn may_give_way(&self, group: &Group, peer: &Standing) -> bool {
        self.gives_way.load(Ordering::Acquire) && group.look(|source| source.state().may_give_way(peer))
    }

    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut LinkState)) {
        change(&mut self.lock());
    }

    /// Keeps a session with the peer until `stop` is true or the peer turns out to be promoted.
    pub async fn run(&self, group: &Arc<Group>, dialer: &Dialer, mut stop: watch::Receiver<bool>) -> Outcome {
        let mut backoff = BACKOFF_MIN;
        let mut almost = ALMOST;
        self.note(|state| state.gave_way = false);
        loop {
            let mut paused = self.paused.subscribe();
            let stopped = stop.wait_for(|stop| *stop);
            tokio::select! {
                _ = stopped => return Outcome::Stopped,
                _ = paused.wait_for(|paused| !*paused) => {}
            }
            let began = Instant::now();
            let end = tokio::select! {
                end = self.attempt(group, dialer) => end,
                _ = stop.wait_for(|stop| *stop) => End::Stopped,
            };
            let pause = match end {
                End::Stopped => return Outcome::Stopped,
                End::Refused(Refusal::Promoted, standing) => {
                    return Outcome::Fenced(standing.map(|s| s.lineage));
                }
                // In a split brain the side whose history was left gives way. The one that was promoted serves on,
                // unless its operator wants it otherwise.
                End::Refused(Refusal::SplitBrain, Some(peer))
                    if left_by(group, &peer) || self.may_give_way(group, &peer) =>
                {
                    self.note(|state| state.gave_way = true);
                    return Outcome::Fenced(Some(peer.lineage));
                }
                End::Paused => continue,
                // It is being promoted, and clients wait for it to be done.
                End::Refused(Refusal::NotReady, _) if group.is_handed_over() => TURN,
                // It follows once this host's promotion cannot be rolled back any more.
                End::Refused(Refusal::Pending, _) => TURN,
                End::Refused(Refusal::NotReady, _) => {
                    let pause = jittered(almost);
                    almost = (almost * 2).min(PATIENCE);
                    pause
                }
                End::Refused(..) | End::Unpaired => PATIENCE,
                End::Restarted => {
                    (backoff, almost) = (BACKOFF_MIN, ALMOST);
                    jittered(backoff)
                }
                End::Lost => {
                    if began.elapsed() >= GOOD_SESSION {
                        (backoff, almost) = (BACKOFF_MIN, ALMOST);
                    }
                    let pause = jittered(backoff);
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return Outcome::Stopped,
            }
        }
    }
}

/// Between half of `pause` and all of it, so that many groups do not redial together.
fn jittered(pause: Duration) -> Duration {
    let part = random::nonzero().unwrap_or(u64::MAX) as u32;
    pause / 2 + (pause / 2).mul_f64(f64::from(part) / f64::from(u32::MAX))
}
