//! Something that carries bytes over the link, and how many a second.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::wait::Interrupt;

const POLL: Duration = Duration::from_millis(20);
/// How often it is looked for more bytes where the measured time begins and ends.
const EDGE_POLL: Duration = Duration::from_millis(1);
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);

/// A running transfer. Dropping it ends it.
pub trait Flow {
    /// Bytes that have come out at the far end so far, without headers.
    fn received_bytes(&self) -> Result<u64>;
}

/// Mbit/s at the far end, over `time` and a little, beginning `warm_up` after the first bytes came out. It is counted from one
/// arrival to another: bytes may come out a MiB at a time.
pub fn goodput_mbit(
    flow: &dyn Flow,
    warm_up: Duration,
    time: Duration,
    interrupt: &Interrupt,
) -> Result<f64> {
    arrival(flow, interrupt)?;
    sleep(warm_up, interrupt)?;
    let (before, start) = arrival(flow, interrupt)?;
    sleep(time, interrupt)?;
    let (after, end) = arrival(flow, interrupt)?;
    Ok((after - before) as f64 * 8.0 / 1e6 / (end - start).as_secs_f64())
}

/// Waits until more bytes have come out; how many, and when.
fn arrival(flow: &dyn Flow, interrupt: &Interrupt) -> Result<(u64, Instant)> {
    let start = Instant::now();
    let before = flow.received_bytes()?;
    loop {
        let (bytes, now) = (flow.received_bytes()?, Instant::now());
        if bytes > before {
            return Ok((bytes, now));
        }
        ensure!(
            now - start < ARRIVAL_TIMEOUT,
            "nothing more came out at the far end within {ARRIVAL_TIMEOUT:?}"
        );
        sleep(EDGE_POLL, interrupt)?;
    }
}

fn sleep(time: Duration, interrupt: &Interrupt) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        interrupt.check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(POLL));
    }
}
