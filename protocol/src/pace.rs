//! How fast background work goes: it gives way to clients.
//!
//! Catch-up, first sync and verification read the volumes that clients use and send over the link that they use. What clients
//! wait for their requests while that goes on is compared with what they waited without it, by kind of request and by what nine
//! in ten of them took. While it is more than allowed the rate is cut by a part; while it is not, the rate grows by steps
//! (additive increase, multiplicative decrease). Without requests nothing is held back, and the rate never falls below a floor,
//! so that a catch-up ends.
//!
//! What clients waited without background work is out of date once they do something else. So when they seem to suffer, or
//! nothing is known yet, background work pauses for a moment now and then, and what they wait meanwhile is what counts from
//! there on (`QUIET_US` in `MEASURE_AGAIN_US` at most).

use crate::ids::Time;

/// What clients waited is looked at this often, in microseconds, if enough of them did.
const LOOK_US: u64 = 100_000;
/// Requests of a kind that say something.
const MIN_REQUESTS: u32 = 8;
/// Without a request for this long there are no clients, in microseconds.
const IDLE_US: u64 = 1_000_000;
/// A pause in which is measured what clients wait without background work, at least and at most, in microseconds.
const QUIET_US: u64 = 100_000;
const MAX_QUIET_US: u64 = 300_000;
/// What is under way when it begins comes to its end in this time, in microseconds.
const SETTLE_US: u64 = 20_000;
/// Time between two such pauses, in microseconds.
const MEASURE_AGAIN_US: u64 = 10_000_000;
/// Weight of what was measured between two background works.
const WEIGHT: f64 = 0.25;
/// What is left of the rate when clients suffer, and when they suffer badly.
const CUT: f64 = 0.75;
const DEEP_CUT: f64 = 0.4;
/// So many times more than allowed is badly.
const BADLY: f64 = 3.0;
/// A rate grows by this part of itself, and by at least this many bytes a second.
const GROWTH_PART: u64 = 8;
const GROWTH_BYTES_PER_S: u64 = 4 << 20;
/// This part of what is read in a second may be under way at once, and one read in any case: a low rate comes in no bursts.
const AT_ONCE_PART: u64 = 128;
/// Time that was not used and still counts, in microseconds: what timers are late by.
const CREDIT_US: u64 = 5_000;

/// How much of the clients' time background work may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Background {
    /// They hardly notice it.
    Gentle,
    /// They may wait twice as long as without it.
    #[default]
    Balanced,
    /// It does not ask.
    Fast,
}

impl Background {
    /// What clients may wait, in microseconds, where they wait `usual` without background work.
    fn allows_us(self, usual_us: f64) -> f64 {
        // The constant parts are what a disk or a scheduler adds anyway now and then.
        match self {
            Self::Gentle => usual_us * 1.25 + 100.0,
            Self::Balanced => usual_us * 2.0 + 250.0,
            Self::Fast => f64::INFINITY,
        }
    }

    /// Bytes a second that are never held back: 1 TiB in three days, or in less than one.
    fn floor_bytes_per_s(self) -> u64 {
        match self {
            Self::Gentle => 4 << 20,
            Self::Balanced => 16 << 20,
            Self::Fast => u64::MAX,
        }
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To flush.
    Flush,
}

const KINDS: usize = 3;
/// Four to a doubling: up to 17 minutes.
const BUCKETS: usize = 120;

/// How long requests of one kind took, with an error of a tenth.
#[derive(Clone, Debug)]
pub struct Waits {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Waits {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }
}

impl Waits {
    /// One took so many microseconds.
    pub fn add(&mut self, us: u64) {
        if let Some(count) = self.counts.get_mut(bucket_of(us)) {
            *count = count.saturating_add(1);
            self.total = self.total.saturating_add(1);
        }
    }

    /// Those of `other` too.
    pub fn join(&mut self, other: &Waits) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.total = self.total.saturating_add(other.total);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// What nine in ten took at most, in microseconds.
    fn nine_in_ten_us(&self) -> Option<f64> {
        let rank = u64::from(self.total).checked_sub(u64::from(self.total / 10)).filter(|rank| *rank > 0)?;
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        })?;
        Some(middle_us(bucket))
    }
}

/// The place of a time: its power of two, and the two bits below that.
fn bucket_of(us: u64) -> usize {
    let us = us.max(4);
    let power = us.ilog2();
    let quarter = (us >> (power - 2)) & 3;
    ((power as usize - 2) * 4 + quarter as usize).min(BUCKETS - 1)
}

fn middle_us(bucket: usize) -> f64 {
    let step = (1u64 << (bucket / 4)) as f64;
    (4.0 + (bucket % 4) as f64 + 0.5) * step
}

#[derive(Debug, Default)]
struct Clients {
    recent: Waits,
    /// What nine in ten took without background work, in microseconds.
    usual_us: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Background work goes on, or there is none.
    Open,
    /// It pauses; what clients waited counts from `from` on, and it goes on at `until`.
    Quiet { from: Time, until: Time, latest: Time, settled: bool },
}

/// Who holds background work back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// Clients, who would wait for too long.
    Clients,
    /// The bound that was configured.
    MaxRate,
}

/// The rate of a group's background work.
#[derive(Debug)]
pub struct Pace {
    setting: Background,
    max_rate: Option<u64>,
    clients: [Clients; KINDS],
    last_request: Time,
    /// When the present look began.
    looked: Time,
    /// Whether anything was read since, and how much.
    worked: bool,
    read_bytes: u64,
    /// Bytes a second that clients leave; `None` while that is any number.
    limit: Option<u64>,
    phase: Phase,
    /// When it was last measured what clients wait without background work.
    measured: Option<Time>,
    next_read_at: Time,
    /// The same, for what clients do not hold back.
    next_urgent_at: Time,
}

impl Pace {
    /// A pace that follows `setting`, and `max_rate` in bytes a second.
    pub fn new(setting: Background, max_rate: Option<u64>, now: Time) -> Self {
        Self {
            setting,
            max_rate: max_rate.filter(|rate| *rate > 0),
            clients: Default::default(),
            last_request: Time(0),
            looked: now,
            worked: false,
            read_bytes: 0,
            limit: None,
            phase: Phase::Open,
            measured: None,
            next_read_at: Time(0),
            next_urgent_at: Time(0),
        }
    }

    /// Follows another `setting`, and another `max_rate` in bytes a second. What was put off was put off by the old ones.
    pub fn follow(&mut self, setting: Background, max_rate: Option<u64>, now: Time) {
        self.max_rate = max_rate.filter(|rate| *rate > 0);
        self.next_read_at = self.next_read_at.min(now);
        self.next_urgent_at = self.next_urgent_at.min(now);
        if self.setting != setting {
            self.setting = setting;
            self.limit = None;
            self.phase = Phase::Open;
            self.begin_look(now);
        }
    }

    /// A client's request took so many microseconds.
    pub fn waited(&mut self, now: Time, request: Request, us: u64) {
        self.last_request = self.last_request.max(now);
        self.recent(request).add(us);
    }

    /// Several did.
    pub fn all_waited(&mut self, now: Time, request: Request, waits: &Waits) {
        if !waits.is_empty() {
            self.last_request = self.last_request.max(now);
            self.recent(request).join(waits);
        }
    }

    fn recent(&mut self, request: Request) -> &mut Waits {
        match request {
            Request::Read => &mut self.clients[0].recent,
            Request::Write => &mut self.clients[1].recent,
            Request::Flush => &mut self.clients[2].recent,
        }
    }

    /// Whether a read may start now, while `reading_bytes` are being read. What is `urgent` waits for no client: clients are, or would
    /// be, held until it is done.
    pub fn may_read(&self, now: Time, reading_bytes: u64, urgent: bool) -> bool {
        let at_once = self.limit.filter(|_| !urgent).map_or(u64::MAX, |limit| limit / AT_ONCE_PART);
        now >= self.next_at(urgent) && (reading_bytes == 0 || reading_bytes < at_once)
    }

    /// When the next read may start, if none is under way.
    pub fn next_at(&self, urgent: bool) -> Time {
        match self.phase {
            _ if urgent => self.next_urgent_at,
            Phase::Quiet { until, .. } => self.next_read_at.max(until),
            Phase::Open => self.next_read_at,
        }
    }

    /// A read starts.
    pub fn started(&mut self) {
        self.worked = true;
    }

    /// A read has ended: so many bytes came from the disk, and so many of them go over the link.
    pub fn read(&mut self, now: Time, disk_bytes: u64, sent_bytes: u64) {
        self.worked = true;
        self.read_bytes += disk_bytes;
        let takes = |bytes: u64, rate: Option<u64>| {
            let us = rate.map_or(0, |rate| u128::from(bytes) * 1_000_000 / u128::from(rate.max(1)));
            u64::try_from(us).unwrap_or(u64::MAX)
        };
        let bound = takes(sent_bytes, self.max_rate);
        let earliest = Time(now.0.saturating_sub(CREDIT_US));
        self.next_urgent_at = self.next_urgent_at.max(earliest).plus_us(bound);
        self.next_read_at = self.next_read_at.max(earliest).plus_us(bound.max(takes(disk_bytes, self.limit)));
    }

    /// Thinks over what clients waited; `busy` says that some wait now, and `working` that there is background work.
    pub fn look(&mut self, now: Time, busy: bool, working: bool) {
        if self.setting == Background::Fast {
            return;
        }
        match self.phase {
            Phase::Quiet { from, until, latest, settled } => {
                if now >= from && !settled {
                    self.begin_look(now);
                    self.phase = Phase::Quiet { from, until, latest, settled: true };
                } else if now >= until {
                    self.end_quiet(now, until, latest);
                }
            }
            Phase::Open if now.since_us(self.looked) >= LOOK_US => self.judge(now, busy, working),
            Phase::Open => {}
        }
    }

    fn begin_look(&mut self, now: Time) {
        self.clients.iter_mut().for_each(|c| c.recent = Waits::default());
        self.looked = now;
        self.worked = false;
        self.read_bytes = 0;
    }

    fn is_telling(&self) -> bool {
        self.clients.iter().any(|c| c.recent.total >= MIN_REQUESTS)
    }

    fn end_quiet(&mut self, now: Time, until: Time, latest: Time) {
        if !self.is_telling() && now < latest {
            self.phase =
                Phase::Quiet { from: now, until: until.plus_us(QUIET_US).min(latest), latest, settled: true };
            return;
        }
        for client in &mut self.clients {
            // Few say little, and nothing else does.
            client.usual_us = client.recent.nine_in_ten_us().or(client.usual_us);
        }
        self.measured = Some(now);
        self.phase = Phase::Open;
        self.begin_look(now);
    }

    fn judge(&mut self, now: Time, busy: bool, working: bool) {
        if !busy && now.since_us(self.last_request) >= IDLE_US {
            self.limit = None;
            self.next_read_at = self.next_urgent_at;
            self.begin_look(now);
            return;
        }
        if !self.is_telling() {
            return;
        }
        if !self.worked && !working {
            for client in self.clients.iter_mut().filter(|c| c.recent.total >= MIN_REQUESTS) {
                let Some(now_us) = client.recent.nine_in_ten_us() else { continue };
                client.usual_us =
                    Some(client.usual_us.map_or(now_us, |usual| usual + (now_us - usual) * WEIGHT));
            }
            self.measured = Some(now);
            self.limit = None;
            self.begin_look(now);
            return;
        }
        let suffering = self.suffering();
        let outdated = self.measured.is_none_or(|at| now.since_us(at) >= MEASURE_AGAIN_US);
        if outdated && suffering.is_none_or(|times| times > 1.0) {
            let from = now.plus_us(SETTLE_US);
            let (until, latest) = (from.plus_us(QUIET_US), from.plus_us(MAX_QUIET_US));
            self.phase = Phase::Quiet { from, until, latest, settled: false };
            return;
        }
        let done = u128::from(self.read_bytes) * 1_000_000 / u128::from(now.since_us(self.looked).max(1));
        let done = u64::try_from(done).unwrap_or(u64::MAX);
        if let Some(times) = suffering {
            self.adapt(times, done);
        }
        self.begin_look(now);
    }

    /// How many times as long as allowed the clients wait, by what suffers most; `None` if that cannot be told.
    fn suffering(&self) -> Option<f64> {
        let times = |c: &Clients| Some(c.recent.nine_in_ten_us()? / self.setting.allows_us(c.usual_us?));
        let telling = self.clients.iter().filter(|c| c.recent.total >= MIN_REQUESTS);
        telling.filter_map(times).reduce(f64::max)
    }

    /// Clients wait `times` as long as allowed, at `done` bytes a second.
    fn adapt(&mut self, times: f64, done: u64) {
        let floor = self.setting.floor_bytes_per_s();
        if times > 1.0 {
            let cut = if times > BADLY { DEEP_CUT } else { CUT };
            // What was not reached held nobody up.
            let rate = self.limit.unwrap_or(u64::MAX).min(done.max(floor));
            self.limit = Some(((rate as f64 * cut) as u64).max(floor));
        } else if let Some(limit) = self.limit {
            let grown = limit.saturating_add(GROWTH_BYTES_PER_S.max(limit / GROWTH_PART));
            // A limit far above what is done would take long to come down to what matters.
            self.limit = Some(grown.min(done.saturating_mul(2).max(limit)));
        }
    }

    /// How fast it may go at most now, in bytes a second, and who says so; `None` for as fast as it can.
    pub fn held_back(&self) -> Option<(u64, HeldBy)> {
        let clients = self.limit.map(|limit| (limit, HeldBy::Clients));
        let bound = self.max_rate.map(|rate| (rate, HeldBy::MaxRate));
        [clients, bound].into_iter().flatten().min_by_key(|(rate, _)| *rate)
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
