//! What a catch-up costs follows what changed, not the size of the volume.

use std::time::Duration;

use afterimage_wan::{Direction, Wan, WanConfig};
use anyhow::{Context, Result, ensure};
use tests::real::{Pair, PairOptions, Side};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 64 << 20;
/// What is on the volume before: none of it may travel twice.
const FILLED: u64 = 32 << 20;
const BLOCK: u64 = 4096;
const CHANGED_BLOCKS: u64 = 40;
/// Room for handshakes, heartbeats and acknowledgements of a few seconds, each way.
const TALK_BYTES: u64 = 256 << 10;

fn write_blocks(pair: &Pair, seed: u64) -> Result<()> {
    let blocks = (0..CHANGED_BLOCKS).map(|n| n * (SIZE / BLOCK / CHANGED_BLOCKS));
    pair.write_blocks(Side::Alpha, "disk", seed, blocks)
}

/// Bytes that left alpha's line towards beta since `before`.
fn sent_since(wan: &Wan, before: u64) -> Result<u64> {
    Ok(wan.counters()?.0.delivered_bytes - before)
}

#[test]
fn a_catch_up_sends_what_changed() -> Result<()> {
    let wan = Wan::up(WanConfig::lossless("real-cost", Duration::from_millis(2)))?;
    let options = PairOptions::default().volume("disk", SIZE).over(&wan);
    let mut pair = Pair::start(options)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.fill(Side::Alpha, "disk", FILLED, 0)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let bound = 2 * CHANGED_BLOCKS * BLOCK + TALK_BYTES;

    // The line is lost and comes back.
    wan.cut(Direction::Both)?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    write_blocks(&pair, 1_000)?;
    let before = wan.counters()?.0.delivered_bytes;
    wan.heal()?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let sent = sent_since(&wan, before)?;
    ensure!(sent <= bound, "{sent} bytes after a lost line, for {CHANGED_BLOCKS} blocks");

    // The agent is killed with writes that the standby lacks.
    wan.cut(Direction::Both)?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    write_blocks(&pair, 2_000)?;
    pair.host_mut(Side::Alpha).agent.as_mut().context("alpha's agent runs")?.kill()?;
    let before = wan.counters()?.0.delivered_bytes;
    wan.heal()?;
    pair.start_agent(Side::Alpha)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let sent = sent_since(&wan, before)?;
    ensure!(sent <= bound, "{sent} bytes after a crash, for {CHANGED_BLOCKS} blocks");

    pair.ensure_promoted_is_same("disk")?;
    pair.check_disk()
}
