//! What goes over a group's link: how it is coded, and how much it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use afterimage_contract::config::{self, Compression};
use afterimage_protocol::Time;
use afterimage_protocol::effort::{Chooser, Effort, Sent};
use afterimage_transport::Connection;

use crate::clock::Clock;

/// Pause between two looks at what was sent, in microseconds.
const LOOK_US: u64 = 250_000;

/// What the sending tasks of a group share, over all of its sessions.
#[derive(Debug)]
pub(crate) struct Wire {
    setting: Compression,
    window_log: u32,
    clock: Clock,
    raw_bytes: AtomicU64,
    wire_bytes: AtomicU64,
    coding_us: AtomicU64,
    waiting_us: AtomicU64,
    packets: Mutex<Packets>,
    choice: Mutex<Choice>,
}

/// Bytes of the packets of all sessions.
#[derive(Debug, Default)]
struct Packets {
    ended: u64,
    current: u64,
}

#[derive(Debug)]
struct Choice {
    chooser: Chooser,
    looked: Time,
    /// What the chooser was told of.
    told: Sent,
}

impl Wire {
    pub fn new(config: &config::Group, clock: Clock) -> Self {
        let now = clock.now();
        Self {
            setting: config.compression,
            window_log: config.compression_window.bytes().ilog2(),
            clock,
            raw_bytes: AtomicU64::new(0),
            wire_bytes: AtomicU64::new(0),
            coding_us: AtomicU64::new(0),
            waiting_us: AtomicU64::new(0),
            packets: Mutex::default(),
            choice: Mutex::new(Choice { chooser: Chooser::new(now), looked: now, told: Sent::default() }),
        }
    }

    /// What both ends of an ordered stream may remember, in bytes, as a power of two.
    pub fn window_log(&self) -> u32 {
        self.window_log
    }

    /// How much is done now.
    pub fn effort(&self) -> Effort {
        match self.setting {
            Compression::Auto => self.lock().chooser.effort(),
            Compression::None => Effort::Plain,
            Compression::Lz4 => Effort::Lz4,
            Compression::Zstd => Effort::Dense,
        }
    }

    /// Frames were coded.
    pub fn coded(&self, sent: Sent) {
        self.raw_bytes.fetch_add(sent.raw_bytes, Ordering::Relaxed);
        self.wire_bytes.fetch_add(sent.wire_bytes, Ordering::Relaxed);
        self.coding_us.fetch_add(sent.coding_us, Ordering::Relaxed);
    }

    /// Frames were taken by a stream, which took so long; now and then, what that says of the link is thought over.
    pub fn written(&self, waiting_us: u64, connection: &Connection) {
        self.waiting_us.fetch_add(waiting_us, Ordering::Relaxed);
        if self.setting != Compression::Auto {
            return;
        }
        let now = self.clock.now();
        let mut choice = self.lock();
        if now.since_us(choice.looked) < LOOK_US {
            return;
        }
        let sent = self.sent();
        let told = std::mem::replace(&mut choice.told, sent);
        choice.looked = now;
        let rtt_us = connection.rtt().as_micros().max(1) as u64;
        let link = connection.stats().congestion_window_bytes.saturating_mul(1_000_000) / rtt_us;
        let fresh = Sent {
            raw_bytes: sent.raw_bytes - told.raw_bytes,
            wire_bytes: sent.wire_bytes - told.wire_bytes,
            coding_us: sent.coding_us - told.coding_us,
            waiting_us: sent.waiting_us - told.waiting_us,
        };
        choice.chooser.look(now, fresh, link);
    }

    /// What the packets of this session come to so far, in bytes; a smaller number is that of a new session.
    pub fn packets_sent(&self, bytes: u64) {
        let mut packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes < packets.current {
            packets.ended += packets.current;
        }
        packets.current = bytes;
    }

    /// Bytes of all packets since the group was opened, as of the last look at the session.
    pub fn packet_bytes(&self) -> u64 {
        let packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
        packets.ended + packets.current
    }

    /// What was sent since the group was opened.
    pub fn sent(&self) -> Sent {
        Sent {
            raw_bytes: self.raw_bytes.load(Ordering::Relaxed),
            wire_bytes: self.wire_bytes.load(Ordering::Relaxed),
            coding_us: self.coding_us.load(Ordering::Relaxed),
            waiting_us: self.waiting_us.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
