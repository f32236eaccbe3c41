//! Keeps processors from sleeping while clients wait for one request after the other.
//!
//! A request that waits for a disk or the peer leaves its processor with nothing to do, and what it then waits for has to wake
//! that up first; in a virtual machine this takes longer than a disk's write. The kernel is asked for short wake-ups
//! (`/dev/cpu_dma_latency`, its PM QoS) for as long as clients spend their time waiting, and no longer; a process that ends has
//! asked for nothing. Described for operators in `docs/services.md`.
//!
//! Owns when that is asked for. Leaves to the daemons what counts as waiting.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::LowLatency;

/// Where the kernel takes such requests.
pub const DEVICE: &str = "/dev/cpu_dma_latency";
/// Above it, a virtual machine's processors are kept awake only if the configuration says so: all of them are, and what they do
/// then is taken from others on the same host.
const MAX_PROCESSORS: usize = 8;
/// Of a processor that is not shared: its first level of sleep, in microseconds, from which it wakes in less.
const SHALLOW_US: i32 = 2;
/// No sleep at all.
const AWAKE_US: i32 = 0;
/// What takes a request back.
const NO_LIMIT_US: i32 = -1;
/// How often is looked whether clients have begun to wait, while they use the volumes.
const LOOK: Duration = Duration::from_millis(10);
/// And whether they have stopped: a look takes a processor from somebody who waits for it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// After so long without a request nobody looks until there is one.
const QUIET: Duration = Duration::from_secs(1);
/// Short wake-ups are asked for from this share of the time that a client waits on, in parts of 1,024.
const LEAST_SHARE: u64 = 128;
/// And up to so many requests that wait at once for each processor: with more, none has nothing to do.
const MOST_WAITING: u64 = 2;
/// So far must the share be beyond one of these to end it.
const MARGIN: u64 = 2;
/// Requests that take longer than this, one with another, hardly notice a wake-up.
const SHORT: Duration = Duration::from_millis(2);
/// It ends after so many looks in a row that were against it: each change wakes all processors.
const LAST_LOOKS: u32 = 2;

/// How long clients have waited, added up over all of them.
#[derive(Debug, Default)]
pub struct Waited {
    ns: AtomicU64,
    requests: AtomicU64,
    asleep: AtomicBool,
    wake: Notify,
}

impl Waited {
    /// A request was waited for so long.
    pub fn add(&self, time: Duration) {
        self.add_all(1, time);
    }

    /// So many requests were waited for, so long each.
    pub fn add_all(&self, requests: usize, each: Duration) {
        let (requests, ns) = (requests as u64, u64::try_from(each.as_nanos()).unwrap_or(u64::MAX));
        self.ns.fetch_add(ns.saturating_mul(requests), Ordering::Relaxed);
        self.requests.fetch_add(requests, Ordering::Relaxed);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    fn take(&self) -> Taken {
        let requests = self.requests.swap(0, Ordering::Relaxed);
        Taken { requests, ns: self.ns.swap(0, Ordering::Relaxed) }
    }

    /// Returns with the next request.
    async fn next(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        self.wake.notified().await;
    }
}

/// What was waited since the last look.
#[derive(Clone, Copy, Debug)]
struct Taken {
    requests: u64,
    ns: u64,
}

/// What of a host decides whether its processors are kept awake, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Host {
    processors: usize,
    is_virtual: bool,
    /// Whether the kernel chooses among levels of sleep at all.
    has_levels: bool,
}

impl Host {
    fn found() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let driver = read("/sys/devices/system/cpu/cpuidle/current_driver");
        let flags = read("/proc/cpuinfo");
        Self {
            processors,
            is_virtual: flags.lines().any(|line| {
                line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "hypervisor")
            }),
            has_levels: !matches!(driver.trim(), "" | "none"),
        }
    }

    /// How long a wake-up may take, in microseconds; `None` if that is left to the kernel. What a virtual machine's levels of
    /// sleep take is not known to it.
    fn limit_us(&self, setting: LowLatency) -> Option<i32> {
        let wanted = match setting {
            LowLatency::Off => false,
            LowLatency::On => true,
            LowLatency::Auto => !self.is_virtual || self.processors <= MAX_PROCESSORS,
        };
        (wanted && self.has_levels).then_some(if self.is_virtual { AWAKE_US } else { SHALLOW_US })
    }
}

/// Asks for short wake-ups for as long as it lives.
#[derive(Debug)]
struct Request<'a> {
    device: &'a Path,
    /// Opened when it is first needed.
    file: Option<File>,
    limit_us: i32,
}

impl<'a> Request<'a> {
    fn new(device: &'a Path) -> Self {
        Self { device, file: None, limit_us: NO_LIMIT_US }
    }

    /// Asks for this from now on.
    fn set(&mut self, limit_us: i32) -> io::Result<()> {
        if limit_us == self.limit_us {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().write(true).open(self.device)?),
        };
        file.write_all(&limit_us.to_ne_bytes())?;
        tracing::debug!(limit_us, "how long processors may take to wake up");
        self.limit_us = limit_us;
        Ok(())
    }
}

/// Whether short wake-ups help, where they are asked for or not, after clients have waited so long within `span`.
fn do_help(are: bool, waited: Taken, span: Duration, processors: usize) -> bool {
    let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
    let share = waited.ns.saturating_mul(1024) / span_ns;
    let margin = if are { MARGIN } else { 1 };
    let most = MOST_WAITING * processors as u64 * 1024;
    let short = u128::from(waited.ns) <= SHORT.as_nanos() * u128::from(waited.requests);
    short && (LEAST_SHARE / margin..=most * margin).contains(&share)
}

/// Keeps processors awake while clients wait, as far as the setting says so. Never returns; does nothing any more once the system
/// has not allowed it.
pub async fn run(waited: Arc<Waited>, setting: watch::Receiver<LowLatency>) {
    run_with(&waited, setting, Host::found(), Path::new(DEVICE)).await;
    std::future::pending().await
}

async fn run_with(waited: &Waited, setting: watch::Receiver<LowLatency>, host: Host, device: &Path) {
    let mut request = Request::new(device);
    loop {
        waited.next().await;
        let mut began = Instant::now();
        let (mut last_request, mut against) = (began, LAST_LOOKS);
        waited.take();
        while last_request.elapsed() < QUIET {
            let helped = against < LAST_LOOKS;
            tokio::time::sleep(if helped { LOOK_AGAIN } else { LOOK }).await;
            let taken = waited.take();
            let helps = do_help(helped, taken, began.elapsed(), host.processors);
            began = Instant::now();
            against = if helps { 0 } else { (against + 1).min(LAST_LOOKS) };
            if taken.requests > 0 {
                last_request = began;
            }
            let limit_us = host.limit_us(*setting.borrow()).filter(|_| against < LAST_LOOKS);
            if let Err(error) = request.set(limit_us.unwrap_or(NO_LIMIT_US)) {
                let device = device.display();
                tracing::info!(%device, %error, "processors may sleep while clients wait: docs/services.md says more");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_millis(25);

    fn host(processors: usize, is_virtual: bool) -> Host {
        Host { processors, is_virtual, has_levels: true }
    }

    #[test]
    fn it_takes_a_client_that_waits_and_ends_where_none_does_or_many_do() {
        let helps = |are, waited_us: u64, processors| {
            do_help(are, Taken { requests: 1_000_000, ns: waited_us.saturating_mul(1000) }, SPAN, processors)
        };
        for (waited_us, begins, goes_on) in [
            (0, false, false),
            (1_500, false, false),
            (1_700, false, true),
            (3_200, true, true),
            (25_000, true, true),
            (100_000, true, true),
            (110_000, false, true),
            (210_000, false, false),
            (u64::MAX / 2_000, false, false),
        ] {
            let found = (helps(false, waited_us, 2), helps(true, waited_us, 2));
            assert_eq!(found, (begins, goes_on), "{waited_us}");
        }
        assert!(helps(false, 210_000, 8), "more of them have room for more");
        assert!(!do_help(true, Taken { requests: 0, ns: u64::MAX }, Duration::ZERO, 2));
        // Over a long line, or on a slow disk.
        let each_ms = |ms: u64| do_help(true, Taken { requests: 5, ns: 5 * ms * 1_000_000 }, SPAN, 2);
        assert_eq!([1, 2, 3, 20].map(each_ms), [true, true, false, false]);
    }

    #[test]
    fn what_is_shared_with_others_is_not_kept_awake_unasked() {
        use LowLatency::{Auto, Off, On};
        for (host, auto, on) in [
            (host(2, true), Some(AWAKE_US), Some(AWAKE_US)),
            (host(8, true), Some(AWAKE_US), Some(AWAKE_US)),
            (host(9, true), None, Some(AWAKE_US)),
            (host(64, false), Some(SHALLOW_US), Some(SHALLOW_US)),
            (Host { has_levels: false, ..host(2, true) }, None, None),
        ] {
            assert_eq!(
                (host.limit_us(Auto), host.limit_us(On), host.limit_us(Off)),
                (auto, on, None),
                "{host:?}"
            );
        }
        assert!(Host::found().processors > 0);
    }

    /// What the device was told.
    fn told(device: &Path) -> Vec<i32> {
        let bytes = std::fs::read(device).unwrap();
        bytes.as_chunks().0.iter().map(|four| i32::from_ne_bytes(*four)).collect()
    }

    async fn wait_for_long(waited: &Waited, looks: u32) {
        for _ in 0..looks {
            tokio::time::sleep(LOOK).await;
            waited.add_all(LOOK.as_millis() as usize, Duration::from_millis(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_kernel_is_asked_while_clients_wait_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        std::fs::write(&device, []).unwrap();
        let waited = Arc::new(Waited::default());
        let (set, setting) = watch::channel(LowLatency::Auto);
        let running = {
            let (waited, device) = (waited.clone(), device.clone());
            tokio::spawn(async move { run_with(&waited, setting, host(2, true), &device).await })
        };
        tokio::time::sleep(SPAN).await;
        wait_for_long(&waited, 3).await;
        assert_eq!(told(&device), [AWAKE_US], "it is noticed at once");
        // Nor does it matter how long they go on, though they wait for less of the time than made it begin.
        for _ in 0..2 * QUIET.as_millis() / LOOK_AGAIN.as_millis() {
            tokio::time::sleep(LOOK_AGAIN).await;
            waited.add_all(5, Duration::from_millis(1));
        }
        assert_eq!(told(&device), [AWAKE_US]);
        // A pause between two requests changes nothing.
        for _ in 0..3 {
            tokio::time::sleep(LOOK_AGAIN).await;
            wait_for_long(&waited, 6).await;
        }
        assert_eq!(told(&device), [AWAKE_US]);
        tokio::time::sleep((LAST_LOOKS + 1) * LOOK_AGAIN).await;
        assert_eq!(told(&device), [AWAKE_US, NO_LIMIT_US]);
        // Also after a long time in which nobody looked.
        tokio::time::sleep(3 * QUIET).await;
        assert!(waited.asleep.load(Ordering::Relaxed));
        wait_for_long(&waited, 10).await;
        assert_eq!(told(&device), [AWAKE_US, NO_LIMIT_US, AWAKE_US]);
        // The setting counts at once, in the middle of it too.
        set.send_replace(LowLatency::Off);
        wait_for_long(&waited, 10).await;
        assert_eq!(told(&device), [AWAKE_US, NO_LIMIT_US, AWAKE_US, NO_LIMIT_US]);
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_system_does_not_allow_is_not_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("nothing");
        let waited = Arc::new(Waited::default());
        let (_set, setting) = watch::channel(LowLatency::On);
        let running = {
            let waited = waited.clone();
            tokio::spawn(async move { run_with(&waited, setting, host(2, true), &device).await })
        };
        wait_for_long(&waited, 10).await;
        assert!(running.is_finished());
    }
}
