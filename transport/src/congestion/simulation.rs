//! A link with one bottleneck in virtual time, for tests: rate, delay, a queue that drops what does not fit, random loss.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use super::model::Model;

const PACKET: u64 = 1500;
/// As quinn paces: bursts of this long, this much faster than the window needs.
const BURST: Duration = Duration::from_millis(2);
const PACE: f64 = 1.25;

#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// Bytes per second.
    pub(super) rate: u64,
    /// One way.
    pub(super) delay: Duration,
    pub(super) queue_bytes: u64,
    pub(super) loss: f64,
    /// Acknowledgements come back only so often.
    pub(super) ack_every: Duration,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            rate: 0,
            delay: Duration::ZERO,
            queue_bytes: 10 << 20,
            loss: 0.0,
            ack_every: Duration::from_nanos(1),
        }
    }
}

/// What decides the window of a flow.
pub(super) trait Control {
    fn on_sent(&mut self, now: Instant, bytes: u64);
    fn on_acks(
        &mut self,
        now: Instant,
        acked: &[(Instant, u64)],
        in_flight: u64,
        is_app_limited: bool,
        smoothed_rtt: Duration,
    );
    fn on_loss(&mut self, now: Instant, sent_at: Instant, bytes: u64);
    fn window(&self) -> u64;
}

impl Control for Model {
    fn on_sent(&mut self, now: Instant, bytes: u64) {
        Model::on_sent(self, now, bytes);
    }

    fn on_acks(
        &mut self,
        now: Instant,
        acked: &[(Instant, u64)],
        in_flight: u64,
        is_app_limited: bool,
        smoothed_rtt: Duration,
    ) {
        for &(at, bytes) in acked {
            self.on_ack(at, bytes);
        }
        self.on_acks_end(now, in_flight, is_app_limited, smoothed_rtt);
    }

    fn on_loss(&mut self, _: Instant, _: Instant, bytes: u64) {
        Model::on_loss(self, bytes, false);
    }

    fn window(&self) -> u64 {
        Model::window(self)
    }
}

/// Slow start, a packet a round trip, half for each round with loss (RFC 9002 section 7).
#[derive(Debug, Default)]
pub(super) struct Reno {
    window: u64,
    threshold: Option<u64>,
    recovery_began: Option<Instant>,
}

impl Control for Reno {
    fn on_sent(&mut self, _: Instant, _: u64) {}

    fn on_acks(&mut self, _: Instant, acked: &[(Instant, u64)], _: u64, _: bool, _: Duration) {
        let acked: u64 = acked.iter().map(|&(_, bytes)| bytes).sum();
        self.window = self.window();
        self.window += match self.threshold {
            Some(threshold) if self.window >= threshold => PACKET * acked / self.window,
            _ => acked,
        };
    }

    fn on_loss(&mut self, now: Instant, sent_at: Instant, _: u64) {
        if self.recovery_began.is_some_and(|began| sent_at <= began) {
            return;
        }
        self.recovery_began = Some(now);
        self.window = (self.window() / 2).max(2 * PACKET);
        self.threshold = Some(self.window);
    }

    fn window(&self) -> u64 {
        self.window.max(10 * PACKET)
    }
}

/// A sender with endless data, and its receiver.
pub(super) struct Flow {
    control: Box<dyn Control>,
    begins: Duration,
    /// What the application lets be under way, in bytes.
    pub(super) at_most: Option<u64>,
    next: u64,
    /// Sent and neither acknowledged nor lost.
    outstanding: BTreeMap<u64, Instant>,
    tokens: f64,
    refilled: Instant,
    wakes: Option<Instant>,
    smoothed_rtt: Option<Duration>,
    last_ack: Instant,
    acks: Vec<u64>,
    delivered: u64,
}

impl Flow {
    pub(super) fn ours() -> Self {
        Self::new(Box::new(Model::new(Instant::now(), PACKET)))
    }

    pub(super) fn new(control: Box<dyn Control>) -> Self {
        let now = Instant::now();
        Self {
            control,
            begins: Duration::ZERO,
            at_most: None,
            next: 0,
            outstanding: BTreeMap::new(),
            tokens: 0.0,
            refilled: now,
            wakes: None,
            smoothed_rtt: None,
            last_ack: now,
            acks: Vec::new(),
            delivered: 0,
        }
    }

    pub(super) fn after(mut self, begins: Duration) -> Self {
        self.begins = begins;
        self
    }

    fn in_flight(&self) -> u64 {
        self.outstanding.len() as u64 * PACKET
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Send(usize),
    /// A packet comes to its receiver.
    Arrive(usize, u64),
    /// The receiver's acknowledgement comes back.
    Ack(usize, u64),
    /// What was collected is handed over.
    Handover(usize),
    Timeout(usize),
}

pub(super) struct Simulation {
    pub(super) link: Link,
    pub(super) flows: Vec<Flow>,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    count: u64,
    busy_until: Instant,
    random: Random,
    waited: Duration,
    queued: u64,
    dropped: u64,
}

impl Simulation {
    pub(super) fn new(link: Link, mut flows: Vec<Flow>) -> Self {
        // The models were made a moment before.
        let now = Instant::now();
        for flow in &mut flows {
            (flow.refilled, flow.last_ack) = (now, now);
        }
        let begins: Vec<Duration> = flows.iter().map(|flow| flow.begins).collect();
        let mut simulation = Self {
            link,
            flows,
            now,
            events: BinaryHeap::new(),
            count: 0,
            busy_until: now,
            random: Random(42),
            waited: Duration::ZERO,
            queued: 0,
            dropped: 0,
        };
        for (flow, begins) in begins.into_iter().enumerate() {
            simulation.at(now + begins, Event::Send(flow));
            simulation.at(now + begins + Duration::from_secs(1), Event::Timeout(flow));
        }
        simulation
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        for flow in 0..self.flows.len() {
            if self.flows[flow].next > 0 {
                self.send(flow);
            }
        }
        while let Some(&Reverse((at, _, event))) = self.events.peek() {
            if at > end {
                break;
            }
            self.events.pop();
            self.now = at;
            self.handle(event);
        }
        self.now = end;
    }

    pub(super) fn forget_counts(&mut self) {
        self.flows.iter_mut().for_each(|flow| flow.delivered = 0);
        (self.waited, self.queued, self.dropped) = (Duration::ZERO, 0, 0);
    }

    /// Bytes that arrived.
    pub(super) fn delivered(&self, flow: usize) -> u64 {
        self.flows[flow].delivered
    }

    /// How long a packet waited for those before it, on average.
    pub(super) fn mean_wait(&self) -> Duration {
        self.waited / u32::try_from(self.queued.max(1)).expect("few packets")
    }

    /// The share of the packets that found the queue full.
    pub(super) fn overflowed(&self) -> f64 {
        self.dropped as f64 / (self.dropped + self.queued).max(1) as f64
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, event)));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Send(flow) => {
                self.flows[flow].wakes = None;
                self.send(flow);
            }
            Event::Arrive(flow, number) => {
                self.flows[flow].delivered += PACKET;
                let back = self.now + self.link.delay;
                self.at(back, Event::Ack(flow, number));
            }
            Event::Ack(flow, number) => {
                if self.flows[flow].acks.is_empty() {
                    let at = self.now + self.link.ack_every;
                    self.at(at, Event::Handover(flow));
                }
                self.flows[flow].acks.push(number);
            }
            Event::Handover(flow) => self.acknowledge(flow),
            Event::Timeout(flow) => {
                let state = &mut self.flows[flow];
                if self.now.saturating_duration_since(state.last_ack) > Duration::from_secs(1) {
                    let bytes = state.in_flight();
                    state.outstanding.clear();
                    state.control.on_loss(self.now, self.now, bytes);
                    self.send(flow);
                }
                let next = self.now + Duration::from_secs(1);
                self.at(next, Event::Timeout(flow));
            }
        }
    }

    fn acknowledge(&mut self, flow: usize) {
        let now = self.now;
        let state = &mut self.flows[flow];
        let numbers = std::mem::take(&mut state.acks);
        let acked: Vec<(Instant, u64)> = numbers
            .iter()
            .filter_map(|number| state.outstanding.remove(number).map(|at| (at, PACKET)))
            .collect();
        let Some(newest) = acked.iter().map(|&(at, _)| at).max() else { return };
        state.last_ack = now;
        let is_app_limited = state.at_most.is_some_and(|most| most < state.control.window());
        let smoothed = state.smoothed_rtt.unwrap_or_default();
        let in_flight = state.in_flight();
        state.control.on_acks(now, &acked, in_flight, is_app_limited, smoothed);
        let rtt = now - newest;
        state.smoothed_rtt = Some(state.smoothed_rtt.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
        let largest = numbers.into_iter().max().unwrap_or_default();
        let lost: Vec<(u64, Instant)> =
            state.outstanding.range(..largest.saturating_sub(2)).map(|(&number, &at)| (number, at)).collect();
        if let Some(&(_, last)) = lost.last() {
            for (number, _) in &lost {
                state.outstanding.remove(number);
            }
            state.control.on_loss(now, last, lost.len() as u64 * PACKET);
        }
        self.send(flow);
    }

    fn send(&mut self, flow: usize) {
        loop {
            let state = &mut self.flows[flow];
            let window = state.control.window();
            let allowed = state.at_most.map_or(window, |most| window.min(most + 1));
            if state.in_flight() + PACKET >= allowed {
                return;
            }
            if let Some(rtt) = state.smoothed_rtt {
                let rate = window as f64 * PACE / rtt.as_secs_f64();
                let most = (rate * BURST.as_secs_f64()).clamp(10.0 * PACKET as f64, 256.0 * PACKET as f64);
                let passed = self.now.saturating_duration_since(state.refilled).as_secs_f64();
                state.tokens = (state.tokens + passed * rate).min(most);
                state.refilled = self.now;
                if state.tokens < PACKET as f64 {
                    if state.wakes.is_none() {
                        let at = self.now + Duration::from_secs_f64((most - state.tokens) / rate);
                        state.wakes = Some(at);
                        self.at(at, Event::Send(flow));
                    }
                    return;
                }
                state.tokens -= PACKET as f64;
            }
            let number = state.next;
            state.next += 1;
            state.outstanding.insert(number, self.now);
            state.control.on_sent(self.now, PACKET);
            self.offer(flow, number);
        }
    }

    fn offer(&mut self, flow: usize, number: u64) {
        if self.random.chance(self.link.loss) {
            return;
        }
        let wait = self.busy_until.saturating_duration_since(self.now);
        if wait.as_secs_f64() * self.link.rate as f64 > self.link.queue_bytes as f64 {
            self.dropped += 1;
            return;
        }
        self.queued += 1;
        self.waited += wait;
        let passes = Duration::from_secs_f64(PACKET as f64 / self.link.rate as f64);
        self.busy_until = self.busy_until.max(self.now) + passes;
        let arrives = self.busy_until + self.link.delay;
        self.at(arrives, Event::Arrive(flow, number));
    }
}

/// Xorshift (Marsaglia 2003).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    fn chance(&mut self, share: f64) -> bool {
        ((self.next() >> 11) as f64 / (1u64 << 53) as f64) < share
    }
}
