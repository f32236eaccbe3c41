//! A group that is served: the source, and everything that it has to be driven with.
//!
//! Every call takes the lock, feeds the source, takes what it wants done, lets go of the lock, and only then does it
//! ([`Group::perform`], in `perform`). No disk or network is touched under the lock.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use afterimage_contract::config;
use afterimage_contract::low_latency::Waited;
use afterimage_events::{Event, event};
use afterimage_memory::copied;
use afterimage_protocol::frame::{Content, Frame};
use afterimage_protocol::lineage::Lineage;
use afterimage_protocol::pace::Waits;
use afterimage_protocol::source::{CannotGrow, Growth, LocalError, Output, RolesStay, Source, Status, Write};
use afterimage_protocol::state::{CannotRollBack, GroupState, Role};
use afterimage_protocol::*;
use afterimage_storage::group::{BitmapSyncs, SourceStore, content_of};
use afterimage_storage::lock::DirLock;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};

use crate::clock::Clock;
use crate::link::Wire;
use crate::locals::Locals;
use crate::perform::Readings;
use crate::volume::LocalVolume;
use crate::waiters::{Answer, Waiters};

/// The source is called at least this often.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Not called for this long, this process stood still (stopped by a signal, asleep, or not scheduled): less than a
/// promotion and the start of its clients take.
const STANDSTILL_US: u64 = 2_000_000;
/// A timer that is due at once still leaves others this long, in microseconds.
const TIMER_PAUSE_US: u64 = 500;
/// Pieces of one request of zeroes that are under way at once.
const ZERO_PIECES: usize = 4;
/// A request of zeroes may make this part of the hot extents hot at once: several must fit beside each other.
const ZERO_PART: u64 = 8;
/// Below this a payload is a slice of a buffer that many requests share, which a record in the queue would hold on to.
const OWN_BUFFER_BYTES: usize = 64 << 10;

/// The volumes that grew, or why none did.
type Grown = Result<Vec<Growth>, CannotGrow>;

/// What opening a group found, and a source is driven with.
pub(crate) struct Parts {
    pub name: String,
    pub source: Source,
    pub store: SourceStore,
    pub volumes: Vec<LocalVolume>,
    pub hot_capacity: usize,
    pub lock: DirLock,
    pub clock: Clock,
    pub wire: Wire,
    /// Where blocking jobs run.
    pub blocking: Handle,
    /// What clients wait, of all groups.
    pub waited: Arc<Waited>,
}

/// A group whose primary is this host.
pub(crate) struct Group {
    pub name: String,
    pub volumes: Vec<LocalVolume>,
    pub clock: Clock,
    /// What goes over its link.
    pub wire: Wire,
    pub(crate) blocking: Handle,
    /// What clients wait, of all groups.
    pub(crate) waited: Arc<Waited>,
    inner: Mutex<Inner>,
    pub(crate) store: Mutex<SourceStore>,
    pub(crate) bitmaps: BitmapSyncs,
    /// There is a frame for the ordered stream.
    pub frames: Notify,
    /// There is a frame for a block stream.
    pub blocks: Notify,
    timer: Notify,
    /// Counts the times that the source wanted its session ended, with the last reason.
    hang_up: watch::Sender<(u64, &'static str)>,
    /// Nothing is admitted any more.
    closed: AtomicBool,
    /// Once the peer was promoted: its generation, and where that left this host's, if it told. Every state that is written
    /// from then on says so.
    fenced: Mutex<Option<Option<(Generation, Sequence)>>>,
    /// Whoever waits for a change of roles.
    switchover: Mutex<Option<oneshot::Sender<Result<Sequence, RolesStay>>>>,
    /// Whoever waits for a rollback.
    rollback: Mutex<Option<oneshot::Sender<Result<Position, CannotRollBack>>>>,
    /// Whether the promotion of this host was rolled back, or may have been.
    taken_back: watch::Sender<bool>,
    /// Whoever waits for volumes to grow.
    resize: Mutex<Option<oneshot::Sender<Grown>>>,
    max_zero_bytes: u64,
    flushes_asked: AtomicUsize,
    /// How long clients' reads took, since the source was last told.
    reads: Mutex<Waits>,
    /// Reads for a catch-up or a verification.
    pub(crate) readings: Mutex<Readings>,
    pub(crate) locals: Locals,
    _lock: DirLock,
}

/// Counts while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) struct Inner {
    pub source: Source,
    waiters: Waiters,
    timer_at: Option<Time>,
    /// When the source was last called.
    last_step: Time,
}

/// A request that the group was given; resolves to how it ended.
type Pending = oneshot::Receiver<Answer>;

impl Group {
    /// Takes the source over and does what it wanted at its start.
    pub fn start(parts: Parts) -> Arc<Self> {
        let Parts { name, source, store, volumes, hot_capacity, lock, clock, wire, blocking, waited } = parts;
        let max_zero_bytes = (hot_capacity as u64 / ZERO_PART).max(1) * EXTENT_BYTES;
        let group = Arc::new(Self {
            locals: Locals::new(&name),
            bitmaps: store.bitmap_syncs(),
            store: Mutex::new(store),
            inner: Mutex::new(Inner {
                source,
                waiters: Waiters::default(),
                timer_at: None,
                last_step: clock.now(),
            }),
            frames: Notify::new(),
            blocks: Notify::new(),
            timer: Notify::new(),
            hang_up: watch::Sender::new((0, "")),
            closed: AtomicBool::new(false),
            fenced: Mutex::new(None),
            switchover: Mutex::new(None),
            rollback: Mutex::new(None),
            taken_back: watch::Sender::new(false),
            resize: Mutex::new(None),
            max_zero_bytes: max_zero_bytes.min(MAX_ZERO_BYTES),
            name,
            flushes_asked: AtomicUsize::new(0),
            reads: Mutex::default(),
            readings: Mutex::default(),
            volumes,
            clock,
            wire,
            blocking,
            waited,
            _lock: lock,
        });
        group.feed(|_, _| ());
        group
    }

    /// Writes `data`; with `fua` it is on stable storage on return, at both ends in sync mode.
    pub async fn write(
        self: &Arc<Self>,
        volume: VolumeIndex,
        offset: u64,
        data: Bytes,
        fua: bool,
    ) -> Result<(), LocalError> {
        let data = if data.len() < OWN_BUFFER_BYTES { copied(&data) } else { data };
        let range = ByteRange::new(volume, offset, data.len() as u64);
        let cut = |piece: &ByteRange| {
            let start = (piece.offset - offset) as usize;
            content_of(data.slice(start..start + piece.length as usize))
        };
        let writes: Vec<Write> = pieces(range, MAX_PAYLOAD_BYTES)
            .map(|piece| Write { range: piece, content: cut(&piece), fua })
            .collect();
        let pending = self.admit(writes)?;
        self.run_locals_later().await;
        all(pending).await
    }

    /// Makes a range read as zeroes.
    pub async fn zero(self: &Arc<Self>, range: ByteRange, punch: bool, fua: bool) -> Result<(), LocalError> {
        let mut pieces = pieces(range, self.max_zero_bytes).peekable();
        while pieces.peek().is_some() {
            let writes = pieces
                .by_ref()
                .take(ZERO_PIECES)
                .map(|range| Write { range, content: Content::Zeroes { punch }, fua })
                .collect();
            all(self.admit(writes)?).await?;
        }
        Ok(())
    }

    /// Returns once all writes to `volume` that completed before the call are on stable storage, at both ends in sync
    /// mode.
    pub async fn flush(self: &Arc<Self>, volume: VolumeIndex) -> Result<(), LocalError> {
        self.check_open()?;
        let _asked = Counted::new(&self.flushes_asked);
        // What arrived with the flush is taken first, and other flushes are counted: one answers them all.
        tokio::task::yield_now().await;
        let (pending, outputs) = self.step(|inner, now| {
            let (request, pending) = inner.waiters.add();
            inner.source.flush(now, request, volume);
            pending
        });
        self.perform(outputs, true);
        all(vec![pending]).await
    }

    /// Gives the writes to the source in one go, so that they follow each other in its order.
    fn admit(self: &Arc<Self>, writes: Vec<Write>) -> Result<Vec<Pending>, LocalError> {
        self.check_open()?;
        let (pending, outputs) = self.step(|inner, now| {
            let mut pending = Vec::with_capacity(writes.len());
            for write in writes {
                let (request, answer) = inner.waiters.add();
                inner.source.write(now, request, write);
                pending.push(answer);
            }
            pending
        });
        self.perform(outputs, true);
        Ok(pending)
    }

    fn check_open(&self) -> Result<(), LocalError> {
        if self.closed.load(Ordering::Acquire) { Err(LocalError::Ended) } else { Ok(()) }
    }

    /// Feeds the source, from any thread: it does not wait for a disk.
    pub fn feed<R>(self: &Arc<Self>, input: impl FnOnce(&mut Source, Time) -> R) -> R {
        let (result, outputs) = self.step(|inner, now| input(&mut inner.source, now));
        self.perform(outputs, false);
        result
    }

    /// Looks at the source.
    pub fn look<R>(&self, at: impl FnOnce(&Source) -> R) -> R {
        at(&self.lock().source)
    }

    /// The source's own account of itself.
    pub fn status(&self) -> Status {
        self.look(Source::status)
    }

    /// Whether no more than one client waits for a flush.
    pub fn flushes_are_few(&self) -> bool {
        self.flushes_asked.load(Ordering::Relaxed) <= 1
    }

    /// A client's read took so long. The source is told later, so that reads do not wait for each other.
    pub fn has_read(&self, took: Duration) {
        self.waited.add(took);
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).add(took.as_micros() as u64);
    }

    /// What clients' reads took since the last call.
    pub(crate) fn take_reads(&self) -> Waits {
        std::mem::take(&mut *self.reads.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Frames for the ordered stream, of about `bytes` together; none while nothing is to be sent.
    pub fn take_frames(self: &Arc<Self>, bytes: usize) -> Vec<Frame> {
        self.feed(|source, now| {
            let mut frames = Vec::new();
            let mut taken = 0;
            if !source.frames_are_due() {
                return frames;
            }
            while taken < bytes && source.has_frame() {
                let Some(frame) = source.next_frame(now) else { break };
                taken += frame.encoded_len();
                frames.push(frame);
            }
            frames
        })
    }

    /// Frames for a block stream, of about `bytes` together or a single one; none while there is nothing to send.
    pub fn take_blocks(self: &Arc<Self>, bytes: usize) -> Vec<Frame> {
        self.feed(|source, now| {
            let mut frames = Vec::new();
            let mut taken = 0;
            while taken < bytes {
                let Some(frame) = source.next_block(now) else { break };
                taken += frame.encoded_len();
                frames.push(frame);
            }
            frames
        })
    }

    /// Changes when the source wants its session ended.
    pub fn hang_ups(&self) -> watch::Receiver<(u64, &'static str)> {
        self.hang_up.subscribe()
    }

    pub(crate) fn hang_up(&self, reason: &'static str) {
        self.hang_up.send_modify(|(count, last)| {
            *count += 1;
            *last = reason;
        });
    }

    /// Admits nothing any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// As [`Group::close`], and what waits fails: nobody may wait for a peer that will never answer.
    pub fn abandon(&self) {
        self.close();
        self.lock().waiters.abandon();
    }

    /// Calls the source when it wants to be called, and so often that a standstill is told from quiet. Never returns.
    pub async fn run_timer(self: Arc<Self>) {
        loop {
            let at = self.lock().timer_at;
            let woken = self.timer.notified();
            let pause = at.map_or(HEARTBEAT, |at| self.clock.until(at).min(HEARTBEAT));
            tokio::select! {
                () = woken => continue,
                () = tokio::time::sleep(pause) => {}
            }
            let reads = self.take_reads();
            self.feed(|source, now| {
                source.clients_read(now, &reads);
                source.timeout(now);
            });
        }
    }

    /// Feeds the source and takes what it wants done. Answers and wake-ups are given on the way.
    pub(crate) fn step<R>(&self, input: impl FnOnce(&mut Inner, Time) -> R) -> (R, Vec<Output>) {
        let mut inner = self.lock();
        // Under the lock: nothing may slip past that was read from the clock before a standstill.
        let now = self.clock.now();
        let stood_still_us = now.since_us(inner.last_step);
        inner.last_step = now;
        if stood_still_us > STANDSTILL_US {
            event!(
                Event::StoodStill,
                group = self.name,
                stood_still_us,
                "this host stood still: clients wait until the peer was heard of"
            );
            inner.source.doubt(now);
        }
        let result = input(&mut inner, now);
        let mut outputs = Vec::new();
        let mut answers = Vec::new();
        while let Some(output) = inner.source.poll() {
            match output {
                Output::Complete { request, result } => {
                    answers.extend(inner.waiters.take(request).map(|waiter| (waiter, result)));
                }
                Output::Grown(growth) => {
                    // Under the lock: what is asked for next counts with the new sizes.
                    self.set_sizes(&growth);
                    outputs.push(Output::Grown(growth));
                }
                other => outputs.push(other),
            }
        }
        let (frame, block) = (inner.source.frames_are_due(), inner.source.has_block());
        let wanted = inner.source.next_timeout().map(|at| at.max(now.plus_us(TIMER_PAUSE_US)));
        // A timer that rings too early does no harm; only an earlier time has to be told.
        let earlier = wanted.is_some_and(|at| inner.timer_at.is_none_or(|set| at < set || set <= now));
        if earlier || wanted.is_none() {
            inner.timer_at = wanted;
        }
        drop(inner);
        if frame {
            self.frames.notify_one();
        }
        if block {
            self.blocks.notify_one();
        }
        if earlier {
            self.timer.notify_one();
        }
        for (waiter, result) in answers {
            // The client may have gone.
            let _ = waiter.send(result);
        }
        (result, outputs)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic inside the source leaves it in a state that nobody knows: going on could lose writes.
        match self.inner.lock() {
            Ok(inner) => inner,
            Err(_) => {
                event!(
                    Event::Panicked,
                    group = self.name,
                    "the source of the group is broken: the process ends"
                );
                std::process::abort();
            }
        }
    }

    /// Writes what only memory knows to the disks: volumes, bitmaps, state. Blocks. Whether all of it is durable.
    pub fn sync_all(&self) -> bool {
        // All of them, also after one has failed.
        let volumes = self.volumes.iter().filter(|volume| !volume.flush()).count() == 0;
        let bitmaps = self.bitmaps.sync_all().is_ok();
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.look(|source| source.state().clone());
        self.note_fence(&mut state);
        volumes && bitmaps && store.persist_state(&state)
    }

    /// At the end of a stop: [`Group::sync_all`], and then notes that no extent is hot, so that the next start has nothing to
    /// read again, even after a power cut. Not if a request was left that a server has given up: it may still be admitted, or its
    /// write may have ended after the volumes were synced, and then its extent has to be hot. Blocks. Whether all of it is
    /// durable.
    pub fn end_clean(&self) -> bool {
        // The group is closed and its clients are gone. What ended before the sync is covered by it; a request that had passed
        // the door before it was closed may still have come in meanwhile.
        let rest = || self.look(|source| source.is_idle().then(|| source.position().sequence));
        let before = rest();
        let is_durable = self.sync_all();
        let is_idle = before.is_some() && rest() == before;
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        is_durable && (!is_idle || store.persist_hot(&[]))
    }

    /// What can be changed while it is served is as configured from now on.
    pub fn retune(self: &Arc<Self>, config: &config::Group) {
        let sync_timeout_us = u64::try_from(config.sync_timeout.as_micros()).unwrap_or(u64::MAX);
        let (background, max_rate) =
            (crate::open::background(config), config.max_rate.map(|rate| rate.bytes_per_s()));
        self.feed(|source, now| {
            source.set_sync_timeout(now, sync_timeout_us);
            source.set_pace(now, background, max_rate);
        });
    }

    /// After the fence was written nothing else may be: to be called under the store's lock.
    pub(crate) fn note_fence(&self, state: &mut GroupState) {
        if let Some(by) = *self.fenced.lock().unwrap_or_else(PoisonError::into_inner) {
            state.replaced(by);
        }
    }

    /// Holds clients and has the peer take over; the sequence at which it did, once this host is its standby.
    pub async fn hand_over(self: &Arc<Self>, timeout: Duration) -> Result<Sequence, RolesStay> {
        let (ended, end) = oneshot::channel();
        {
            let mut waits = self.switchover.lock().unwrap_or_else(PoisonError::into_inner);
            if waits.is_some() {
                return Err(RolesStay::UnderWay);
            }
            *waits = Some(ended);
        }
        let timeout_us = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        self.feed(|source, now| source.hand_over(now, timeout_us));
        // Without an answer the agent stops.
        end.await.unwrap_or(Err(RolesStay::ConnectionLost))
    }

    pub(crate) fn end_switchover(&self, outcome: Result<Sequence, RolesStay>) {
        let waits = self.switchover.lock().unwrap_or_else(PoisonError::into_inner).take();
        match &outcome {
            Ok(sequence) => {
                event!(Event::HandedOver, group = self.name, %sequence, "the peer has taken over: this host is its standby");
            }
            Err(why) => event!(Event::NotHandedOver, group = self.name, %why, "the roles stay as they are"),
        }
        if let Some(waits) = waits {
            // Whoever asked may have gone.
            let _ = waits.send(outcome);
        }
    }

    /// Takes the promotion of this host back; resolves once that is durable. From then on the group is not to be served
    /// any more ([`Group::taken_back`]).
    pub fn roll_back(self: &Arc<Self>) -> oneshot::Receiver<Result<Position, CannotRollBack>> {
        let (ended, end) = oneshot::channel();
        let mut waits = self.rollback.lock().unwrap_or_else(PoisonError::into_inner);
        if waits.is_some() {
            // Nobody can have left yet.
            let _ = ended.send(Err(CannotRollBack::UnderWay));
            return end;
        }
        *waits = Some(ended);
        drop(waits);
        self.feed(Source::roll_back);
        end
    }

    pub(crate) fn end_rollback(&self, outcome: Result<Position, CannotRollBack>) {
        match &outcome {
            Ok(position) => {
                event!(Event::RolledBack, group = self.name, %position, "the promotion is rolled back")
            }
            Err(why) => {
                event!(Event::NotRolledBack, group = self.name, %why, "the promotion is not rolled back")
            }
        }
        // Where the disk failed, only what is on it tells.
        if self.look(|source| source.state().role) != Role::Primary {
            self.taken_back.send_replace(true);
        }
        if let Some(waits) = self.rollback.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Whoever asked may have gone.
            let _ = waits.send(outcome);
        }
    }

    /// Makes volumes grow to `sizes` (`None` for one that is to stay as it is), while clients are held; those that did. The
    /// volumes have these sizes durably, and the target has room for `target_sizes`.
    pub async fn grow(self: &Arc<Self>, sizes: &[Option<u64>], target_sizes: &[u64]) -> Grown {
        let (ended, end) = oneshot::channel();
        {
            let mut waits = self.resize.lock().unwrap_or_else(PoisonError::into_inner);
            if waits.is_some() {
                return Err(CannotGrow::UnderWay);
            }
            *waits = Some(ended);
        }
        if let Err(why) = self.feed(|source, now| source.grow(now, sizes, target_sizes)) {
            self.end_resize(Err(why));
        }
        // Without an answer the group is served here no more.
        end.await.unwrap_or(Err(CannotGrow::NotConnected))
    }

    pub(crate) fn end_resize(&self, outcome: Grown) {
        match &outcome {
            Ok(growth) => {
                let volumes = growth.iter().map(|g| {
                    let name = self.volumes.get(g.volume.0 as usize).map_or("?", |volume| &volume.name);
                    format!("{name} from {} to {} bytes", g.from_bytes, g.to_bytes)
                });
                let volumes = volumes.collect::<Vec<_>>().join(", ");
                event!(Event::Resized, group = self.name, volumes, "volumes have grown");
            }
            Err(why) => event!(Event::NotResized, group = self.name, %why, "no volume has grown"),
        }
        if let Some(waits) = self.resize.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Whoever asked may have gone.
            let _ = waits.send(outcome);
        }
    }

    /// Becomes true when the group is to be served no more because its promotion was rolled back.
    pub fn taken_back(&self) -> watch::Receiver<bool> {
        self.taken_back.subscribe()
    }

    fn set_sizes(&self, growth: &[Growth]) {
        for Growth { volume, to_bytes, .. } in growth {
            if let Some(local) = self.volumes.get(volume.0 as usize) {
                local.set_size(*to_bytes);
            }
        }
    }

    /// The peer was promoted: nothing is served any more. What this host is from now on, and whether that is durable.
    /// Blocks.
    pub fn fence(&self, peer: Option<&Lineage>) -> (Role, bool) {
        let mut state = self.look(|source| source.state().clone());
        let by = peer.map(|line| line.replaces(&state.lineage));
        *self.fenced.lock().unwrap_or_else(PoisonError::into_inner) = Some(by);
        self.abandon();
        self.note_fence(&mut state);
        (state.role, self.sync_all())
    }

    /// Whether only the peer knows who serves.
    pub fn is_handed_over(&self) -> bool {
        self.look(Source::is_handed_over)
    }
}

/// `range` in pieces of at most `max` bytes that end on whole multiples of `max`, so that no two share a block.
fn pieces(range: ByteRange, max: u64) -> impl Iterator<Item = ByteRange> {
    let mut at = range.offset;
    std::iter::from_fn(move || {
        let left = range.end().saturating_sub(at);
        if left == 0 {
            return None;
        }
        let length = (max - at % max).min(left);
        let piece = ByteRange::new(range.volume, at, length);
        at += length;
        Some(piece)
    })
}

/// Waits for all; the first error is what counts.
async fn all(pending: Vec<Pending>) -> Result<(), LocalError> {
    let mut result = Ok(());
    for answer in pending {
        // Without an answer the group was closed.
        result = result.and(answer.await.unwrap_or(Err(LocalError::Ended)));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_and_share_no_block() {
        let range = ByteRange::new(VolumeIndex(0), MAX_PAYLOAD_BYTES - 512, 2 * MAX_PAYLOAD_BYTES);
        let cut: Vec<_> = pieces(range, MAX_PAYLOAD_BYTES).map(|p| (p.offset, p.length)).collect();
        let whole = MAX_PAYLOAD_BYTES;
        assert_eq!(cut, [(whole - 512, 512), (whole, whole), (2 * whole, whole - 512)]);
        assert_eq!(pieces(ByteRange::new(VolumeIndex(0), 0, 4096), whole).count(), 1);
    }
}
