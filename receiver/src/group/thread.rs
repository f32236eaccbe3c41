//! What is behind the lock of a group, and the loop of the thread that takes its inputs: take what is there, let the state machine work, show what is the case, sleep.

mod promotion;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use afterimage_events::{Event, event};
use afterimage_protocol::frame::Frame;
use afterimage_protocol::message::{Open, Ping, Refusal, TargetMessage};
use afterimage_storage::volume::VolumeError;
use tracing::info;

use super::input::Input;
use super::open::{self, Elsewhere, Found, Setup};
use super::promote::{PromoteError, PromoteRequest};
use super::snapshot::{Phase, Shared};
use super::standby::Standby;
use crate::clock;
use crate::link::{Link, SESSION_ENDED};
use afterimage_protocol::Time;

/// Inputs are taken together up to this many bytes before their outputs are performed: enough for one large write to the
/// journal, little enough that an acknowledgement does not wait for long.
const BATCH_BYTES: usize = 1 << 20;
/// A time that has come is not looked at again before this has passed: it may be one for which nothing can be done yet.
const SHORTEST_WAIT: Duration = Duration::from_micros(500);
/// A group that failed is opened again after this long.
const RETRY: Duration = Duration::from_secs(5);
/// What only metrics show is looked at this often, in microseconds, while there is a session: its pings see to it.
const DETAILS_US: u64 = 500_000;

/// The lock of a group.
pub struct Owner(Mutex<Thread>);

impl Owner {
    /// A group that is not open yet.
    pub fn new(setup: Setup, wake: Sender<Input>, shared: Arc<Shared>) -> Self {
        Self(Mutex::new(Thread {
            setup,
            wake,
            shared,
            place: Place::Failed { retry_at: Instant::now() },
            phase: Phase::Opening,
            link: None,
            promotion: None,
            source_seen: None,
            last_error: None,
            refused: false,
            last_refusal: None,
            had_checkpoint: false,
            history_cut: false,
            detailed: Time(0),
            wakes_at: None,
        }))
    }

    /// The group, unless somebody is at work on it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, Thread>> {
        // Whoever panics with it ends the process.
        self.0.try_lock().ok()
    }

    fn lock(&self) -> MutexGuard<'_, Thread> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the group and takes `inputs`, of which `waiting` counts those that are not handled, until [`Input::Stop`].
    pub fn run(&self, inputs: &Receiver<Input>, waiting: &AtomicUsize) {
        let mut thread = self.lock();
        thread.open();
        thread.rest();
        loop {
            let timeout = thread.timeout();
            drop(thread);
            let first = match timeout {
                Some(timeout) => inputs.recv_timeout(timeout),
                None => inputs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            thread = self.lock();
            let mut next = match first {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut bytes = 0;
            while let Some(input) = next {
                if matches!(input, Input::Stop) {
                    thread.close();
                    return;
                }
                bytes += input.bytes();
                let counted = usize::from(input.is_counted());
                thread.take(input);
                waiting.fetch_sub(counted, Ordering::Release);
                next = if bytes < BATCH_BYTES { inputs.try_recv().ok() } else { None };
            }
            // Whoever was to do it may have been held up, or be gone.
            thread.sync_elsewhere();
            thread.rest();
        }
        thread.close();
    }
}

enum Place {
    Standby(Box<Standby>),
    Elsewhere(Elsewhere),
    Failed { retry_at: Instant },
}

/// What the lock of a group holds.
pub struct Thread {
    setup: Setup,
    wake: Sender<Input>,
    shared: Arc<Shared>,
    place: Place,
    phase: Phase,
    link: Option<Arc<Link>>,
    promotion: Option<PromoteRequest>,
    source_seen: Option<Time>,
    last_error: Option<String>,
    refused: bool,
    /// Why a session was refused, since the last one that was not.
    last_refusal: Option<String>,
    had_checkpoint: bool,
    /// The journal has no room for the history that is configured.
    history_cut: bool,
    /// When the details of the snapshot were made.
    detailed: Time,
    /// Until when the group's thread sleeps if nothing comes; `None`: for ever.
    wakes_at: Option<Instant>,
}

impl Thread {
    fn name(&self) -> &str {
        &self.setup.group.name
    }

    /// Whether frames can be handled without waiting for long.
    pub fn is_quick(&self) -> bool {
        matches!(&self.place, Place::Standby(standby) if standby.is_quick())
    }

    /// Takes frames where the group's thread is not; whether [`Thread::sync_now`] is to be called once what has to be said is
    /// on its way.
    pub fn take_all(&mut self, frames: impl Iterator<Item = Input>) -> bool {
        self.syncs_here(true);
        frames.for_each(|frame| self.take(frame));
        self.rest_elsewhere();
        self.syncs_here(false);
        matches!(&self.place, Place::Standby(standby) if standby.sync_due)
    }

    fn sync_elsewhere(&mut self) {
        if let Place::Standby(standby) = &mut self.place {
            standby.sync_elsewhere();
        }
    }

    fn syncs_here(&mut self, may: bool) {
        if let Place::Standby(standby) = &mut self.place {
            standby.may_sync_here = may;
        }
    }

    /// Syncs the journal, if that was left to the caller. Blocks.
    pub fn sync_now(&mut self) {
        if let Place::Standby(standby) = &mut self.place {
            standby.sync_now();
            self.rest_elsewhere();
        }
    }

    /// Comes to rest where the group's thread is not: it has to be told if it is to wake up sooner than it will.
    fn rest_elsewhere(&mut self) {
        self.rest();
        let (wakes_at, timeout) = (self.wakes_at, self.timeout());
        if timeout.is_some() && wakes_at.is_none_or(|at| self.wakes_at.is_some_and(|sooner| sooner < at)) {
            // Fails only if it is gone.
            let _ = self.wake.send(Input::Wake);
        } else {
            self.wakes_at = wakes_at;
        }
    }

    /// How long the group's thread may sleep.
    fn timeout(&mut self) -> Option<Duration> {
        let timeout = match &self.place {
            Place::Standby(s) => {
                let until = |t: Time| Duration::from_micros(t.since_us(clock::now()));
                s.target.next_timeout().map(|t| until(t).max(SHORTEST_WAIT))
            }
            Place::Failed { retry_at } => Some(retry_at.saturating_duration_since(Instant::now())),
            Place::Elsewhere(_) => None,
        };
        self.wakes_at = timeout.map(|timeout| Instant::now() + timeout);
        timeout
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Frame { serial, frame, permit: _permit } => self.frame(serial, *frame),
            other => {
                // Outputs of frames that are waiting come first: the machine is asked about a settled state.
                self.settle();
                self.take_other(other);
            }
        }
    }

    fn take_other(&mut self, input: Input) {
        match input {
            Input::Open { open, link } => self.open_session(*open, link),
            Input::Ping { serial, ping, permit: _permit } => self.ping(serial, ping),
            Input::Measure { serial, permit: _permit } => self.measure(serial),
            Input::Disconnected { serial, reason } => self.disconnected(serial, reason),
            Input::Wake => {
                if let Place::Standby(standby) = &mut self.place {
                    standby.jobs_done();
                }
            }
            Input::Promote(request) => self.promote(request),
            Input::Follow(answer) => {
                self.open_again();
                // Whoever asked may have gone.
                let _ = answer.send(matches!(self.place, Place::Standby(_)));
            }
            Input::Pulse(answer) => answer.give(),
            Input::Frame { .. } | Input::Stop => {}
        }
    }

    /// Records and blocks are taken many at a time, so that they are appended together. Any other frame changes what those
    /// before and behind it mean, and is taken by itself.
    fn frame(&mut self, serial: u64, frame: Frame) {
        let together = matches!(frame, Frame::Record(_) | Frame::Block(_) | Frame::Mark { .. });
        if !together {
            self.settle();
        }
        let Some(link) = self.link.as_ref().filter(|l| l.serial == serial) else { return };
        let session = link.session;
        self.source_seen = Some(clock::now());
        if let Place::Standby(standby) = &mut self.place {
            standby.frame(session, frame);
        }
        if !together {
            self.settle();
        }
    }

    fn ping(&mut self, serial: u64, ping: Ping) {
        let Some(link) = self.link.as_ref().filter(|l| l.serial == serial) else { return };
        let (now, session) = (clock::now(), link.session);
        self.source_seen = Some(now);
        if let Place::Standby(standby) = &mut self.place {
            standby.target.ping(now, session, ping);
        }
    }

    fn measure(&mut self, serial: u64) {
        let Some(link) = self.link.as_ref().filter(|l| l.serial == serial) else { return };
        if let Place::Standby(standby) = &mut self.place {
            link.send(TargetMessage::Measured { sizes: standby.measure() });
        }
    }

    fn open_session(&mut self, open: Open, link: Arc<Link>) {
        self.source_seen = Some(clock::now());
        self.end_session("a newer session begins");
        self.open_again();
        let name = self.setup.group.name.clone();
        let source = open.standing.clone();
        let refusal = match &mut self.place {
            Place::Standby(standby) => {
                standby.measure();
                standby.target.open(clock::now(), open).err()
            }
            Place::Elsewhere(elsewhere) => Some(elsewhere.refusal(&name, &source)),
            Place::Failed { .. } => {
                let why = self.last_error.as_deref().unwrap_or("it failed");
                let text = format!("group {name} cannot take data: {why}");
                Some(TargetMessage::Refused { code: Refusal::NotReady, text, standing: None })
            }
        };
        self.refused = matches!(refusal, Some(TargetMessage::Refused { .. }));
        match refusal {
            None => {
                self.link = Some(link);
                self.last_refusal = None;
                self.publish_sizes();
            }
            Some(message) => {
                if let TargetMessage::Refused { code, text, .. } = &message {
                    self.log_refusal(&link, *code, text);
                    if matches!(self.place, Place::Standby(_)) {
                        self.last_error = Some(text.clone());
                    }
                }
                link.send(message);
            }
        }
    }

    /// A host that is refused asks again every few seconds, for as long as nobody does anything about it.
    fn log_refusal(&mut self, link: &Link, code: Refusal, text: &str) {
        if self.last_refusal.as_deref() != Some(text) {
            event!(Event::SessionRefused, group = self.name(), address = %link.address(), key = %link.fingerprint(), code = code.name(), reason = text, "session refused");
            self.last_refusal = Some(text.to_owned());
        }
    }

    fn disconnected(&mut self, serial: u64, reason: String) {
        if self.link.as_ref().is_some_and(|l| l.serial == serial) {
            event!(Event::LinkDown, group = self.name(), reason, "the session has ended");
            self.end_session(&reason);
            self.last_error = Some(reason);
        }
    }

    /// Ends the session, if there is one, from this side.
    fn end_session(&mut self, reason: &str) {
        let Some(link) = self.link.take() else { return };
        info!(group = self.name(), session = link.session.0, reason, "session ends");
        link.close(SESSION_ENDED, reason);
        if let Place::Standby(standby) = &mut self.place {
            standby.target.disconnected(clock::now(), link.session);
        }
        self.settle();
    }

    fn settle(&mut self) {
        if let Place::Standby(standby) = &mut self.place {
            standby.settle(&mut self.link);
        }
    }

    /// Comes to rest: time passes, outputs are performed, failures are dealt with, and the status shows it.
    fn rest(&mut self) {
        match &mut self.place {
            Place::Standby(standby) => {
                let now = clock::now();
                if standby.target.next_timeout().is_some_and(|t| t <= now) {
                    standby.target.timeout(now);
                }
                standby.settle(&mut self.link);
                self.follow_up();
            }
            Place::Failed { retry_at } if Instant::now() >= *retry_at => {
                self.open_again();
            }
            _ => {}
        }
        self.publish();
    }

    fn follow_up(&mut self) {
        let Place::Standby(standby) = &mut self.place else { return };
        if let Some(reason) = standby.ended.take() {
            self.last_error = Some(reason);
        }
        let newest = standby.target.newest();
        if let Some(point) = newest.filter(|_| !self.had_checkpoint) {
            event!(Event::FirstSyncEnded, group = self.setup.group.name, position = %point.position, "the first sync is over");
        }
        self.had_checkpoint = newest.is_some();
        if std::mem::take(&mut standby.handed_over) {
            self.take_over();
            return;
        }
        if let Some(outcome) = standby.promoted.take() {
            self.promoted(outcome);
            return;
        }
        let failure = standby.target.failure();
        if standby.damaged {
            event!(Event::ChecksumError, group = self.setup.group.name, "the journal is damaged");
            self.give_up("the journal is damaged: opening the group again", Duration::ZERO);
        } else if let Some(reason) = failure {
            self.give_up(reason, RETRY);
        }
    }

    /// Forgets all that is in memory; the group is opened again after `wait`.
    fn give_up(&mut self, reason: &str, wait: Duration) {
        let mut text = reason.to_owned();
        if let Place::Standby(standby) = &mut self.place
            && let Some(trouble) = standby.trouble.take()
        {
            text += &format!(" ({trouble})");
        }
        event!(Event::GroupFailed, group = self.name(), reason = text, "the group failed");
        self.end_session(reason);
        if let Some(request) = self.promotion.take() {
            let _ = request.answer.send(Err(PromoteError::Failed(text.clone())));
        }
        self.place = Place::Failed { retry_at: Instant::now() + wait };
        self.last_error = Some(text.clone());
        self.phase = Phase::Failed { text, wrong_volume: false };
    }

    /// Looks again whether the group is the receiver's: its role may have changed, or what failed was mended.
    fn open_again(&mut self) {
        if !matches!(self.place, Place::Standby(_)) {
            self.open();
            self.settle();
        }
    }

    /// Opens the group, or finds out why not.
    fn open(&mut self) {
        match open::open(&self.setup, &self.wake) {
            Ok(Found::Standby(standby)) => {
                let newest = standby.target.newest();
                let position = newest.map(|p| p.position.to_string());
                event!(Event::StandingBy, group = self.name(), position, "this host is the standby");
                self.had_checkpoint = newest.is_some();
                self.place = Place::Standby(standby);
                self.phase = Phase::Standby;
                self.publish_sizes();
            }
            Ok(Found::Elsewhere(elsewhere)) => {
                if !matches!(&self.place, Place::Elsewhere(now) if *now == elsewhere) {
                    info!(group = self.name(), why = elsewhere.why(), "this host is not the group's standby");
                }
                self.place = Place::Elsewhere(elsewhere);
                self.phase = Phase::Elsewhere;
            }
            Err(error) => {
                let text = format!("{error:#}");
                let wrong_volume = matches!(error.downcast_ref(), Some(VolumeError::WrongVolume { .. }));
                let phase = Phase::Failed { text: text.clone(), wrong_volume };
                if self.phase != phase {
                    let group = self.name();
                    match wrong_volume {
                        true => event!(
                            Event::WrongVolume,
                            group = group,
                            error = text,
                            "the group cannot be opened"
                        ),
                        false => event!(
                            Event::GroupFailed,
                            group = group,
                            error = text,
                            "the group cannot be opened"
                        ),
                    }
                }
                self.place = Place::Failed { retry_at: Instant::now() + RETRY };
                self.phase = phase;
                self.last_error = Some(text);
            }
        }
    }

    /// The sizes of the volumes change with a session, and never else.
    fn publish_sizes(&self) {
        if let Place::Standby(standby) = &self.place {
            let sizes = standby.volume_bytes();
            self.shared.update(|s| s.volume_bytes = sizes);
        }
    }

    fn publish(&mut self) {
        let now = clock::now();
        let details = match &self.place {
            Place::Standby(standby) if self.link.is_none() || now.since_us(self.detailed) >= DETAILS_US => {
                self.detailed = now;
                let cut = standby.cuts_history();
                if cut && !std::mem::replace(&mut self.history_cut, cut) {
                    event!(
                        Event::HistoryCut,
                        group = self.setup.group.name,
                        "the journal has no room for the whole history"
                    );
                }
                self.history_cut = cut;
                Some(standby.details())
            }
            _ => None,
        };
        self.shared.update(|s| {
            if s.phase != self.phase {
                s.phase = self.phase.clone();
                s.since = now;
            }
            if let Place::Standby(standby) = &self.place {
                s.numbers = standby.numbers();
                s.rates.note(now, &s.numbers);
            }
            if let Some(details) = details {
                s.details = details;
            }
            s.link = self.link.clone();
            s.source_seen = self.source_seen;
            s.refused = self.refused;
            if s.last_error != self.last_error {
                s.last_error = self.last_error.clone();
            }
        });
    }

    fn close(&mut self) {
        self.end_session("the receiver stops");
        if let Some(request) = self.promotion.take() {
            let _ = request.answer.send(Err(PromoteError::Stopping));
        }
        if let Place::Standby(standby) = &mut self.place {
            standby.close(&mut self.link);
        }
        self.place = Place::Failed { retry_at: Instant::now() };
        info!(group = self.name(), "closed");
    }
}
