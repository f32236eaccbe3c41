//! The worst day and the way home: the primary is lost, its peer promoted, and the old primary brought back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use afterimage_wan::{Wan, WanConfig};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tests::real::{Blocks, History, Pair, PairOptions, Side, Writer, WriterOptions, check_prefix};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 64 << 20;
const FILLED: u64 = 32 << 20;
const BLOCK: u64 = 4096;
/// Room for handshakes, heartbeats and acknowledgements of a few seconds, each way.
const TALK_BYTES: u64 = 256 << 10;

fn reinstate(pair: &Pair, side: Side) -> Result<Value> {
    let text = pair.command(side, &["reinstate", "orders", "--json"])?.success()?;
    Ok(serde_json::from_str::<Value>(&text)?["reinstatement"].clone())
}

#[test]
fn an_old_primary_comes_home_with_what_differs_and_nothing_else() -> Result<()> {
    let wan = Wan::up(WanConfig::lossless("real-fail", Duration::from_millis(2)))?;
    let options = PairOptions::default().volume("disk", SIZE).set("history", "0s").over(&wan);
    let mut pair = Pair::start(options)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.fill(Side::Alpha, "disk", FILLED, 0)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;

    let mut primary = Side::Alpha;
    for round in 0..3 {
        pair.wait_noted(primary, LIMIT)?;
        // A tail that never arrives: the receiver is frozen, and the clients know nothing of it.
        let standby = primary.peer();
        pair.host_mut(standby).receiver.as_mut().context("a receiver runs")?.freeze()?;
        pair.write_scattered(primary, "disk", 1_000 * round + 1, 20)?;
        let tail = pair.read_volume(primary, "disk")?;
        pair.host_mut(primary).kill()?;
        pair.host_mut(standby).receiver.as_mut().context("a receiver runs")?.thaw()?;
        pair.promote(standby)?;
        pair.write_scattered(standby, "disk", 1_000 * round + 500, 20)?;

        // The old primary is fenced, whatever it has.
        pair.start_host(primary)?;
        pair.wait_protection(primary, "fenced", LIMIT)?;
        let counters = wan.counters()?;
        let before = counters.0.delivered_bytes + counters.1.delivered_bytes;
        let done = reinstate(&pair, primary)?;
        ensure!(done["compares_all"] == false, "{done:#}");
        let blocks = done["blocks"].as_u64().unwrap_or(u64::MAX);
        ensure!((20..200).contains(&blocks), "{done:#}");
        let salvage = done["salvage"].as_str().context("what only it had was saved")?;
        ensure!(std::fs::metadata(salvage)?.len() >= 20 * BLOCK / 2, "{done:#}");
        ensure!(tail != pair.read_volume(standby, "disk")?, "nothing differed");
        pair.wait_same(standby, "disk")?;
        let counters = wan.counters()?;
        let sent = counters.0.delivered_bytes + counters.1.delivered_bytes - before;
        let bound = 2 * (blocks + 20) * BLOCK + 2 * TALK_BYTES;
        ensure!(
            sent <= bound,
            "round {round}: {sent} bytes on the wire, for {blocks} blocks that may differ"
        );
        primary = standby;
    }
    pair.check_disk()
}

/// What the standby has, and a client's view of the primary, after everything has got across.
fn same_hashes(pair: &Pair, side: Side) -> Result<u64> {
    pair.wait_same(side, "disk")?;
    let image = std::fs::read(pair.host(side.peer()).volume("disk"))?;
    Ok(xxhash_rust::xxh3::xxh3_64(&image))
}

/// Bytes of the blocks that differ between the two hosts' volumes.
fn differing_bytes(pair: &Pair) -> Result<u64> {
    let images = [Side::Alpha, Side::Beta].map(|side| std::fs::read(pair.host(side).volume("disk")));
    let [alpha, beta] = images;
    let (alpha, beta) = (alpha?, beta?);
    let blocks = alpha.chunks(BLOCK as usize).zip(beta.chunks(BLOCK as usize));
    Ok(blocks.filter(|(a, b)| a != b).count() as u64 * BLOCK)
}

/// A writer that has had some more writes answered.
fn load(pair: &Pair, side: Side, history: History, seed: u64) -> Result<Writer> {
    let wanted = history.acknowledged().len() + 100;
    let options = WriterOptions { seed, pace: Duration::from_millis(1), ..WriterOptions::default() };
    let writer = Writer::start(history, 1, &options, pair.connector(side));
    writer.wait_acknowledged(wanted, LIMIT).map_err(|error| anyhow!(error))?;
    Ok(writer)
}

/// That `side` shows a prefix of what was written, with every write that was acknowledged; in async mode the last ones
/// may be missing, and are given up.
fn check_image(pair: &Pair, side: Side, history: &mut History, sync: bool) -> Result<()> {
    let held = if sync { history.acknowledged() } else { BTreeSet::new() };
    let mut image = pair.connect(side, "disk", LIMIT)?;
    let mut images: [&mut dyn Blocks; 1] = [&mut image];
    let found = check_prefix(&mut images, history, &held).map_err(|error| anyhow!(error))?;
    if !sync {
        history.give_up_all_but(&found.writes);
    }
    image.disconnect().context("end the connection")
}

/// Out by a loss under load, home by a reinstatement and a switchover under load; the hashes of both copies each time.
fn rounds(sync: bool, rounds: u64) -> Result<()> {
    let name = if sync { "rounds-s" } else { "rounds-a" };
    let wan = Wan::up(WanConfig::lossless(name, Duration::from_millis(1)))?;
    let mut options = PairOptions::default().volume("disk", SIZE).set("history", "0s");
    if sync {
        options = options.sync();
    }
    let options = options.over(&wan);
    let mut pair = Pair::start(options)?;
    let protection = if sync { "in_sync" } else { "async_streaming" };
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    let mut history = History::new(1);
    for round in 0..rounds {
        let writer = load(&pair, Side::Alpha, history, 3 * round)?;
        let began = Instant::now();
        pair.host_mut(Side::Alpha).kill()?;
        (history, _) = writer.stop();
        history.server_replaced();
        pair.promote(Side::Beta)?;
        drop(pair.connect(Side::Beta, "disk", LIMIT)?);
        let failover = began.elapsed();
        check_image(&pair, Side::Beta, &mut history, sync)?;
        let writer = load(&pair, Side::Beta, history, 3 * round + 1)?;
        (history, _) = writer.stop();

        pair.start_host(Side::Alpha)?;
        pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
        let differing = differing_bytes(&pair)?;
        let counters = wan.counters()?;
        let before = counters.0.delivered_bytes + counters.1.delivered_bytes;
        reinstate(&pair, Side::Alpha)?;
        pair.wait_protection(Side::Beta, protection, LIMIT)?;
        let first = same_hashes(&pair, Side::Beta)?;
        let counters = wan.counters()?;
        let sent = counters.0.delivered_bytes + counters.1.delivered_bytes - before;
        println!(
            "round {round}: served again after {failover:?}; reinstated with {sent} bytes on the wire for {differing} \
             that differed ({:.2})",
            sent as f64 / differing.max(1) as f64
        );
        ensure!(sent <= 2 * differing + 2 * TALK_BYTES, "{sent} bytes for {differing} that differed");

        let writer = load(&pair, Side::Beta, history, 3 * round + 2)?;
        pair.command(Side::Beta, &["switchover", "orders"])?.success()?;
        (history, _) = writer.stop();
        history.server_replaced();
        pair.wait_protection(Side::Alpha, protection, LIMIT)?;
        // Nothing that was answered is lost on the way home, whatever the mode.
        check_image(&pair, Side::Alpha, &mut history, true)?;
        ensure!(same_hashes(&pair, Side::Alpha)? != first, "nothing was written");
    }
    pair.check_disk()
}

#[test]
fn ten_rounds_out_and_home_in_sync_mode() -> Result<()> {
    rounds(true, 10)
}

#[test]
fn ten_rounds_out_and_home_in_async_mode() -> Result<()> {
    rounds(false, 10)
}

#[test]
fn nothing_acknowledged_in_sync_is_lost_on_the_way_out_and_home() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().sync().volume("disk", 16 << 20))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let options = WriterOptions { pace: Duration::from_millis(1), ..WriterOptions::default() };
    let writer = Writer::start(History::new(1), 1, &options, pair.connector(Side::Alpha));
    writer.wait_acknowledged(300, LIMIT).map_err(|error| anyhow!(error))?;
    pair.host_mut(Side::Alpha).kill()?;
    let (mut history, _) = writer.stop();
    pair.promote(Side::Beta)?;
    history.server_replaced();
    let held: BTreeSet<u64> = history.acknowledged();
    ensure!(held.len() >= 300);
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    reinstate(&pair, Side::Alpha)?;
    pair.wait_protection(Side::Beta, "in_sync", LIMIT)?;
    pair.wait_caught_up(Side::Beta, LIMIT)?;
    pair.host_mut(Side::Beta).kill()?;
    pair.promote(Side::Alpha)?;
    let mut image = pair.connect(Side::Alpha, "disk", LIMIT)?;
    let mut images: [&mut dyn Blocks; 1] = [&mut image];
    check_prefix(&mut images, &history, &held).map(drop).map_err(|error| anyhow!(error))?;
    pair.check_disk()
}

#[test]
fn a_primary_that_served_alone_is_not_reinstated_by_itself() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.write_scattered(Side::Alpha, "disk", 1, 20)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    // The standby's host is lost for a while; clients go on, then the primary is lost too.
    pair.host_mut(Side::Beta).kill()?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    pair.write_scattered(Side::Alpha, "disk", 100, 20)?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.start_host(Side::Beta)?;
    pair.promote(Side::Beta)?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    let refused = pair.command(Side::Alpha, &["reinstate", "orders"])?;
    ensure!(refused.status.code() == Some(3), "{refused:?}");
    ensure!(refused.stderr.contains("resolve orders --keep peer"), "{refused:?}");
    pair.command(Side::Alpha, &["resolve", "orders", "--keep", "peer"])?.success()?;
    pair.wait_same(Side::Beta, "disk")?;
    pair.check_disk()
}
