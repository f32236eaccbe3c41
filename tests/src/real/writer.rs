//! A client that writes stamped blocks through NBD exports, several at a time, and keeps the history.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use super::History;
use super::nbd::{Client, Reply};
use super::process::POLL;
use super::stamp::{self, BLOCK_BYTES, Stamp};
use crate::sim::Rng;

/// How long a lane looks for a reply before it looks whether it should end.
const GLANCE: Duration = Duration::from_millis(20);
/// How long [`Writer::stop`] waits for the writes in flight: a server may hold them for good.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a lane tries to connect: an agent serves once it has asked its peer.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// What a writer does.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Decides which blocks are written.
    pub seed: u64,
    /// Connections to each volume, each with a thread of its own.
    pub lanes: usize,
    /// Writes in flight on each connection. With 1, and 1 lane, the history is a total order.
    pub in_flight: usize,
    /// Blocks that are written, from the start of each volume.
    pub blocks: u64,
    /// Longest write, in blocks.
    pub longest: u32,
    /// Chance that a write is followed by a flush.
    pub flush_chance: f64,
    /// Chance that a write asks for FUA; its acknowledgement counts like any other.
    pub fua_chance: f64,
    /// Pause after each write.
    pub pace: Duration,
    /// Most writes in all, so that a history stays small enough to check.
    pub most_writes: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            lanes: 1,
            in_flight: 8,
            blocks: 512,
            longest: 8,
            flush_chance: 0.02,
            fua_chance: 0.02,
            pace: Duration::ZERO,
            most_writes: 200_000,
        }
    }
}

/// Connects to the volume of that place in the group, or fails at once. Called by each lane when it starts, again and
/// again until the volume is served.
pub type Connect = dyn Fn(u32) -> io::Result<Client> + Send + Sync;

/// A writer at work in threads of its own. Dropped, it stops, and its history is lost.
pub struct Writer {
    history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
    lanes: Vec<JoinHandle<io::Result<()>>>,
}

impl Writer {
    /// Starts to write to `volumes` volumes, adding to `history`. A lane whose connection ends stops.
    pub fn start(history: History, volumes: u32, options: &WriterOptions, connect: Arc<Connect>) -> Self {
        let history = Arc::new(Mutex::new(history));
        let stop = Arc::new(AtomicBool::new(false));
        let mut rng = Rng::new(options.seed);
        let mut lanes = Vec::new();
        for volume in 0..volumes {
            for _ in 0..options.lanes {
                let connect = Arc::clone(&connect);
                let (history, stop) = (Arc::clone(&history), Arc::clone(&stop));
                let (options, rng) = (options.clone(), rng.fork());
                lanes.push(spawn(move || {
                    let client = connected(|| connect(volume), &stop)?;
                    Lane {
                        volume,
                        client,
                        history,
                        stop,
                        options,
                        rng,
                        writes: HashMap::new(),
                        flushes: HashMap::new(),
                    }
                    .run()
                }));
            }
        }
        Self { history, stop, lanes }
    }

    /// The history so far. What it says was acknowledged was acknowledged before this call returned.
    pub fn history(&self) -> History {
        lock(&self.history).clone()
    }

    /// Waits until `count` writes are acknowledged, or fails after `limit`.
    pub fn wait_acknowledged(&self, count: usize, limit: Duration) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let acked = lock(&self.history).writes().iter().filter(|write| write.acked.is_some()).count();
            if acked >= count {
                return Ok(());
            }
            let ended = self.lanes.iter().all(JoinHandle::is_finished);
            if ended || started.elapsed() > limit {
                let why = if ended { "the writer ended" } else { "time is up" };
                return Err(format!("{why} with {acked} of {count} writes acknowledged"));
            }
            sleep(POLL);
        }
    }

    /// Stops writing, waits a while for what is in flight, and returns the history and how the lanes ended.
    pub fn stop(mut self) -> (History, Vec<io::Result<()>>) {
        self.stop.store(true, Ordering::SeqCst);
        let ends = std::mem::take(&mut self.lanes).into_iter().map(|lane| match lane.join() {
            Ok(end) => end,
            Err(_) => Err(io::Error::other("the lane panicked")),
        });
        let ends = ends.collect();
        (self.history(), ends)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Connects, unless the writer is to stop: the server may have been killed before it served.
fn connected(connect: impl Fn() -> io::Result<Client>, stop: &AtomicBool) -> io::Result<Client> {
    let started = Instant::now();
    loop {
        match connect() {
            Err(_) if started.elapsed() < CONNECT_LIMIT && !stop.load(Ordering::SeqCst) => sleep(POLL),
            connected => return connected,
        }
    }
}

/// One connection.
struct Lane {
    volume: u32,
    client: Client,
    history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
    options: WriterOptions,
    rng: Rng,
    /// Writes in flight: cookie to number.
    writes: HashMap<u64, u64>,
    /// Flushes in flight: cookie to the tick of their issue.
    flushes: HashMap<u64, u64>,
}

impl Lane {
    fn run(mut self) -> io::Result<()> {
        while !self.stopping() {
            while self.writes.len() + self.flushes.len() >= self.options.in_flight {
                if self.stopping() {
                    break;
                }
                self.take_reply()?;
            }
            if !self.stopping() {
                self.write()?;
            }
        }
        let drained = Instant::now() + DRAIN;
        while !(self.writes.is_empty() && self.flushes.is_empty()) && Instant::now() < drained {
            self.take_reply()?;
        }
        self.client.disconnect()
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst) || lock(&self.history).writes().len() >= self.options.most_writes
    }

    fn write(&mut self) -> io::Result<()> {
        let count = self.rng.between(1, u64::from(self.options.longest).min(self.options.blocks));
        let first = self.rng.below(self.options.blocks - count + 1);
        let mut data = vec![0; count as usize * BLOCK_BYTES];
        let (number, run) = {
            let mut history = lock(&self.history);
            (history.issue(self.volume, first, count as u32), history.run())
        };
        for (block, slot) in (first..).zip(data.as_chunks_mut::<BLOCK_BYTES>().0) {
            stamp::stamp(slot, run, Stamp { number, volume: self.volume, block });
        }
        let fua = self.rng.chance(self.options.fua_chance);
        let cookie = self.client.send_write(first * BLOCK_BYTES as u64, &data, fua)?;
        self.writes.insert(cookie, number);
        if self.rng.chance(self.options.flush_chance) {
            let tick = lock(&self.history).tick();
            let cookie = self.client.send_flush()?;
            self.flushes.insert(cookie, tick);
        }
        if !self.options.pace.is_zero() {
            sleep(self.options.pace);
        }
        Ok(())
    }

    fn take_reply(&mut self) -> io::Result<()> {
        let Some(Reply { cookie, error, .. }) = self.client.reply(GLANCE)? else { return Ok(()) };
        let mut history = lock(&self.history);
        if let Some(number) = self.writes.remove(&cookie) {
            match error {
                0 => history.acknowledge(number),
                _ => history.fail(number),
            }
        } else if let Some(tick) = self.flushes.remove(&cookie)
            && error == 0
        {
            history.flush(self.volume, tick);
        }
        Ok(())
    }
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::check_prefix;
    use crate::real::nbd::fake::Fake;

    fn writer(server: &Fake, history: History, options: &WriterOptions) -> Writer {
        let socket = server.socket().to_owned();
        Writer::start(history, 1, options, Arc::new(move |_| Client::connect_unix(&socket, "disk")))
    }

    #[test]
    fn what_it_wrote_is_what_its_history_says() {
        let server = Fake::start(64 * BLOCK_BYTES);
        let options = WriterOptions { lanes: 2, blocks: 64, flush_chance: 0.2, ..WriterOptions::default() };
        let writer = writer(&server, History::new(5), &options);
        writer.wait_acknowledged(300, Duration::from_secs(30)).unwrap();
        let (history, ends) = writer.stop();
        assert!(ends.iter().all(Result::is_ok), "{ends:?}");
        let acknowledged = history.acknowledged();
        assert!(acknowledged.len() >= 300 && !history.flushed().is_empty());
        let prefix = check_prefix(&mut [&mut server.image()], &history, &acknowledged).unwrap();
        assert_eq!(prefix.writes, acknowledged);

        // A block of an old write, put back, is noticed.
        let mut image = server.image();
        let overwritten =
            history.writes().iter().find(|write| !prefix.shown.contains(&write.number)).unwrap();
        let place = Stamp { number: overwritten.number, volume: 0, block: overwritten.first_block };
        let slot = &mut image[place.block as usize * BLOCK_BYTES..][..BLOCK_BYTES];
        stamp::stamp(slot.try_into().unwrap(), history.run(), place);
        check_prefix(&mut [&mut image], &history, &acknowledged).unwrap_err();
    }

    #[test]
    fn it_goes_on_after_the_server_died() {
        let server = Fake::start(64 * BLOCK_BYTES);
        let options = WriterOptions { blocks: 64, ..WriterOptions::default() };
        let first = writer(&server, History::new(6), &options);
        first.wait_acknowledged(50, Duration::from_secs(30)).unwrap();
        server.die(true);
        let error = first.wait_acknowledged(usize::MAX, Duration::from_secs(30)).unwrap_err();
        assert!(error.starts_with("the writer ended"), "{error}");
        let (mut history, ends) = first.stop();
        assert!(ends[0].is_err());
        history.server_restarted();
        server.die(false);
        let count = history.acknowledged().len() + 50;
        let second = writer(&server, history, &WriterOptions { seed: 2, ..options });
        second.wait_acknowledged(count, Duration::from_secs(30)).unwrap();
        let (history, _) = second.stop();
        check_prefix(&mut [&mut server.image()], &history, &history.acknowledged()).unwrap();
    }

    #[test]
    fn it_ends_by_itself_at_its_bound() {
        let server = Fake::start(64 * BLOCK_BYTES);
        let options = WriterOptions { blocks: 64, most_writes: 20, in_flight: 1, ..WriterOptions::default() };
        let writer = writer(&server, History::new(7), &options);
        writer.wait_acknowledged(20, Duration::from_secs(30)).unwrap();
        let (history, _) = writer.stop();
        assert_eq!(history.writes().len(), 20);
    }
}
