//! The worst day and the way home: the primary is lost, its peer promoted, and the old primary brought back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use afterimage_wan::{Wan, WanConfig};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tests::real::{History, Pair, PairOptions, Side, Writer, WriterOptions, ensure_same, filler};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 64 << 20;
const FILLED: u64 = 32 << 20;
const BLOCK: u64 = 4096;
/// Room for handshakes, heartbeats and acknowledgements of a few seconds, each way.
const TALK_BYTES: u64 = 256 << 10;

fn fill(pair: &Pair) -> Result<()> {
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    for offset in (0..FILLED).step_by(1 << 20) {
        client.write(offset, &filler(offset, 1 << 20))?;
    }
    client.disconnect().context("end the connection")
}

fn write_blocks(pair: &Pair, side: Side, seed: u64, count: u64) -> Result<()> {
    let mut client = pair.connect(side, "disk", LIMIT)?;
    for n in 0..count {
        let block = (seed * 7919 + n * 131) % (SIZE / BLOCK);
        client.write(block * BLOCK, &filler(seed + n, BLOCK as usize))?;
    }
    client.flush()?;
    client.disconnect().context("end the connection")
}

fn start(pair: &mut Pair, side: Side) -> Result<()> {
    pair.start_receiver(side)?;
    pair.start_agent(side)
}

fn reinstate(pair: &Pair, side: Side) -> Result<Value> {
    let text = pair.command(side, &["reinstate", "orders", "--json"])?.success()?;
    Ok(serde_json::from_str::<Value>(&text)?["reinstatement"].clone())
}

fn same_on_both(pair: &mut Pair, side: Side) -> Result<()> {
    pair.wait_caught_up(side, LIMIT)?;
    let ours = pair.read_volume(side, "disk")?;
    // What the standby has durably gets to its base a little later.
    let began = Instant::now();
    loop {
        let theirs = std::fs::read(pair.host(side.peer()).volume("disk"))?;
        match ensure_same("the standby's base", &ours, &theirs) {
            Err(error) if began.elapsed() > LIMIT => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

#[test]
fn an_old_primary_comes_home_with_what_differs_and_nothing_else() -> Result<()> {
    let wan = Wan::up(WanConfig {
        name_prefix: "real-fail".to_owned(),
        delay: Duration::from_millis(2),
        loss_pct: 0.0,
        rate_mbit: 0.0,
        seed: 1,
    })?;
    let (alpha, beta) = (IpAddr::from(wan.address_a()), IpAddr::from(wan.address_b()));
    let options = PairOptions::default().volume("disk", SIZE).set("history", "0s");
    let options = options.within(Side::Alpha, wan.ns_a(), alpha).within(Side::Beta, wan.ns_b(), beta);
    let mut pair = Pair::start(options)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    fill(&pair)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;

    let mut primary = Side::Alpha;
    for round in 0..3 {
        // A tail that never arrives: the receiver is frozen, and the clients know nothing of it.
        let standby = primary.peer();
        pair.host_mut(standby).receiver.as_mut().context("a receiver runs")?.freeze()?;
        write_blocks(&pair, primary, 1_000 * round + 1, 20)?;
        let tail = pair.read_volume(primary, "disk")?;
        pair.host_mut(primary).kill()?;
        pair.host_mut(standby).receiver.as_mut().context("a receiver runs")?.thaw()?;
        pair.promote(standby)?;
        write_blocks(&pair, standby, 1_000 * round + 500, 20)?;

        // The old primary is fenced, whatever it has.
        start(&mut pair, primary)?;
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
        same_on_both(&mut pair, standby)?;
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
    start(&mut pair, Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    reinstate(&pair, Side::Alpha)?;
    pair.wait_protection(Side::Beta, "in_sync", LIMIT)?;
    pair.wait_caught_up(Side::Beta, LIMIT)?;
    pair.host_mut(Side::Beta).kill()?;
    pair.promote(Side::Alpha)?;
    let mut image = pair.connect(Side::Alpha, "disk", LIMIT)?;
    let mut images: [&mut dyn tests::real::Blocks; 1] = [&mut image];
    tests::real::check_prefix(&mut images, &history, &held).map(drop).map_err(|error| anyhow!(error))?;
    pair.check_disk()
}

#[test]
fn a_primary_that_served_alone_is_not_reinstated_by_itself() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    write_blocks(&pair, Side::Alpha, 1, 20)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    // The standby's host is lost for a while; clients go on, then the primary is lost too.
    pair.host_mut(Side::Beta).kill()?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    write_blocks(&pair, Side::Alpha, 100, 20)?;
    pair.host_mut(Side::Alpha).kill()?;
    start(&mut pair, Side::Beta)?;
    pair.promote(Side::Beta)?;
    start(&mut pair, Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    let refused = pair.command(Side::Alpha, &["reinstate", "orders"])?;
    ensure!(refused.status.code() == Some(3), "{refused:?}");
    ensure!(refused.stderr.contains("resolve orders --keep peer"), "{refused:?}");
    pair.command(Side::Alpha, &["resolve", "orders", "--keep", "peer"])?.success()?;
    same_on_both(&mut pair, Side::Beta)?;
    pair.check_disk()
}
