//! Something that carries bytes over the link, and how many a second.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::wait::Interrupt;

const POLL: Duration = Duration::from_millis(20);
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running transfer. Dropping it ends it.
pub trait Flow {
    /// Bytes that have come out at the far end so far, without headers.
    fn received_bytes(&self) -> Result<u64>;
}

/// Mbit/s at the far end, over `time`, beginning `warm_up` after the first bytes came out.
pub fn goodput_mbit(
    flow: &dyn Flow,
    warm_up: Duration,
    time: Duration,
    interrupt: &Interrupt,
) -> Result<f64> {
    let start = Instant::now();
    let first = flow.received_bytes()?;
    while flow.received_bytes()? == first {
        ensure!(start.elapsed() < START_TIMEOUT, "nothing came out at the far end within {START_TIMEOUT:?}");
        sleep(POLL, interrupt)?;
    }
    sleep(warm_up, interrupt)?;
    let (before, start) = (flow.received_bytes()?, Instant::now());
    sleep(time, interrupt)?;
    let (after, elapsed) = (flow.received_bytes()?, start.elapsed());
    ensure!(after > before, "nothing came out at the far end for {time:?}");
    Ok((after - before) as f64 * 8.0 / 1e6 / elapsed.as_secs_f64())
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
