//! The demo's application: one writer that knows which of its writes were acknowledged, and when.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::nbd::Client;

/// Size of the demo's volume in bytes.
pub const VOLUME_BYTES: u64 = 256 << 20;
const BLOCK: usize = 4096;
/// Every so many writes the writer asks for a flush.
const FLUSH_EVERY: u64 = 64;
/// A pause after each write, so that the demo shows a busy volume and not a saturated machine.
const PACE: Duration = Duration::from_micros(150);

/// A small deterministic generator (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Where the write of a number goes, and its blocks.
pub fn place(number: u64) -> (u64, usize) {
    let mut random = Random(number);
    let blocks = 1 + (random.next() % 8) as usize;
    let first = random.next() % (VOLUME_BYTES / BLOCK as u64 - 8);
    (first * BLOCK as u64, blocks * BLOCK)
}

/// The bytes of the write of a number: each block begins with the number.
pub fn content(number: u64, length: usize) -> Vec<u8> {
    let mut random = Random(!number);
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let word = if bytes.len() % BLOCK == 0 { number } else { random.next() % 997 };
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// An acknowledged write: when the acknowledgement came. The number is its place in the list, from 1.
pub type Acknowledged = Vec<Instant>;

/// A running writer.
pub struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<Acknowledged>,
}

impl Load {
    /// Starts writing to the export at `socket`, after `before` writes that were acknowledged already.
    pub fn start(socket: PathBuf, before: Acknowledged) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(before.len() as u64));
        let (stopped, counted) = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            let mut done = before;
            let Ok(mut client) = Client::connect(&socket) else { return done };
            while !stopped.load(Ordering::Relaxed) {
                let number = done.len() as u64 + 1;
                let (offset, length) = place(number);
                if client.write(offset, &content(number, length)).is_err() {
                    break;
                }
                done.push(Instant::now());
                counted.store(number, Ordering::Relaxed);
                if number.is_multiple_of(FLUSH_EVERY) && client.flush().is_err() {
                    break;
                }
                std::thread::sleep(PACE);
            }
            done
        });
        Self { stop, count, thread }
    }

    /// Writes acknowledged so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Stops, if the server has not gone already; returns what was acknowledged.
    pub fn finish(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}
