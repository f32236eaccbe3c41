//! A link that is lost and comes back.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use afterimage_wan::{Direction, Wan, WanConfig};
use anyhow::{Context, Result, anyhow, ensure};
use tests::real::{Blocks, History, Pair, PairOptions, Process, Side, Writer, WriterOptions, check_prefix};

const LIMIT: Duration = Duration::from_secs(60);
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);
const SIZE: u64 = 16 << 20;

fn start(options: PairOptions, protection: &str) -> Result<(Pair, Writer)> {
    let pair = Pair::start(options.volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    let options = WriterOptions { pace: Duration::from_millis(1), ..WriterOptions::default() };
    let writer = Writer::start(History::new(1), 1, &options, pair.connector(Side::Alpha));
    more_writes(&pair, &writer, 100)?;
    Ok((pair, writer))
}

fn receiver(pair: &mut Pair) -> Result<&mut Process> {
    pair.host_mut(Side::Beta).receiver.as_mut().context("beta's receiver runs")
}

fn acknowledged(writer: &Writer) -> usize {
    writer.history().acknowledged().len()
}

fn more_writes(pair: &Pair, writer: &Writer, count: usize) -> Result<()> {
    let wanted = acknowledged(writer) + count;
    writer.wait_acknowledged(wanted, LIMIT).map_err(|error| anyhow!("{error}\n{}", pair.logs()))
}

/// Loses alpha in the middle of the writes, and looks for all acknowledged ones on beta.
fn ensure_all_on_beta(mut pair: Pair, writer: Writer) -> Result<()> {
    pair.host_mut(Side::Alpha).kill()?;
    let (mut history, _) = writer.stop();
    pair.promote(Side::Beta)?;
    history.server_replaced();
    ensure_holds(&pair, &history, &history.acknowledged())?;
    pair.check_disk()
}

fn ensure_holds(pair: &Pair, history: &History, must_contain: &BTreeSet<u64>) -> Result<()> {
    let mut beta = pair.connect(Side::Beta, "disk", LIMIT)?;
    let mut images: [&mut dyn Blocks; 1] = [&mut beta];
    check_prefix(&mut images, history, must_contain).map(drop).map_err(|error| anyhow!(error))
}

#[test]
fn a_frozen_standby_degrades_the_group_until_it_is_back() -> Result<()> {
    let options = PairOptions::default().sync().set("sync_timeout", "1s").set("on_link_loss", "degrade");
    let (mut pair, writer) = start(options, "in_sync")?;
    receiver(&mut pair)?.freeze()?;
    let lost =
        |group: &serde_json::Value| matches!(group["protection"].as_str(), Some("degraded" | "disconnected"));
    let status = pair.wait_for(Side::Alpha, LIMIT, lost)?;
    ensure!(status["peer"]["connected"] == false || status["protection"] == "degraded", "{status:#}");
    more_writes(&pair, &writer, 300)?;
    let status = pair.wait_for(Side::Alpha, LIMIT, lost)?;
    ensure!(status["lag"]["bytes"] != 0, "the lag is not 0: {status:#}");
    ensure!(status["dirty_bytes"].as_u64() > Some(0), "{status:#}");
    sleep(2 * SYNC_TIMEOUT);
    receiver(&mut pair)?.thaw()?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    more_writes(&pair, &writer, 100)?;
    ensure_all_on_beta(pair, writer)
}

#[test]
fn a_frozen_standby_blocks_writes_where_that_was_asked_for() -> Result<()> {
    let options = PairOptions::default().sync().set("sync_timeout", "1s").set("on_link_loss", "block");
    let (mut pair, writer) = start(options, "in_sync")?;
    receiver(&mut pair)?.freeze()?;
    pair.wait_protection(Side::Alpha, "blocked", LIMIT)?;
    let before = acknowledged(&writer);
    sleep(2 * SYNC_TIMEOUT);
    assert_eq!(acknowledged(&writer), before, "writes are held");
    receiver(&mut pair)?.thaw()?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    more_writes(&pair, &writer, 100)?;
    ensure_all_on_beta(pair, writer)
}

#[test]
fn a_sync_group_regains_sync_under_load_over_a_long_line() -> Result<()> {
    let wan = Wan::up(WanConfig::lossless("real-load", Duration::from_millis(10)))?;
    let options = PairOptions::default().sync().set("sync_timeout", "1s").volume("disk", SIZE).over(&wan);
    let pair = Pair::start(options)?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    // Far less than the line carries, yet never a moment without a write on its way.
    let options = WriterOptions {
        lanes: 4,
        longest: 1,
        in_flight: 4,
        pace: Duration::from_millis(4),
        ..WriterOptions::default()
    };
    let writer = Writer::start(History::new(1), 1, &options, pair.connector(Side::Alpha));
    more_writes(&pair, &writer, 100)?;
    wan.cut(Direction::Both)?;
    pair.wait_protection(Side::Alpha, "degraded", LIMIT)?;
    more_writes(&pair, &writer, 300)?;
    wan.heal()?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    more_writes(&pair, &writer, 100)?;
    ensure_all_on_beta(pair, writer)
}

#[test]
fn a_cut_line_is_caught_up_after_it_healed() -> Result<()> {
    let wan = Wan::up(WanConfig {
        name_prefix: "real-link".to_owned(),
        delay: Duration::from_millis(10),
        loss_pct: 1.0,
        rate_mbit: 200.0,
        seed: 1,
    })?;
    let beta = IpAddr::from(wan.address_b());
    let options = PairOptions::default().over(&wan);
    let (mut pair, writer) = start(options, "async_streaming")?;
    assert_eq!(pair.host(Side::Beta).listen, SocketAddr::new(beta, pair.host(Side::Beta).listen.port()));

    for direction in [Direction::Both, Direction::AToB] {
        wan.cut(direction)?;
        pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
        more_writes(&pair, &writer, 200)?;
        wan.heal()?;
        pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
        more_writes(&pair, &writer, 100)?;
    }
    let (mut history, ends) = writer.stop();
    ensure!(ends.iter().all(std::result::Result::is_ok), "no write failed: {ends:?}");
    pair.ensure_promoted_is_same("disk")?;
    history.server_replaced();
    ensure_holds(&pair, &history, &history.acknowledged())?;
    pair.check_disk()
}
