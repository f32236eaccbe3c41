//! What a promotion says that it loses, against what clients were told.

use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::real::nbd::Client;
use tests::real::{Pair, PairOptions, Side};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 16 << 20;
const BLOCK: usize = 4096;
/// Long enough for a lease after the last write: pings go four times as often.
const PINGS: Duration = Duration::from_millis(1500);
/// The lease outlives this after the last ping; so long is nothing under way while the machine stands still.
const STANDSTILL_US: u64 = 1_000_000;
/// No lease lives longer.
const LEASE: Duration = Duration::from_millis(2500);

fn now_us() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}

/// Writes blocks for a while; when each was answered, by the clock of this machine.
fn write_for(client: &mut Client, time: Duration) -> Result<Vec<u64>> {
    let end = now_us()? + u64::try_from(time.as_micros())?;
    let mut answered = Vec::new();
    while answered.last().is_none_or(|at| *at < end) && answered.len() < SIZE as usize / BLOCK {
        let n = answered.len();
        client.write((n * BLOCK) as u64, &[n as u8 | 1; BLOCK])?;
        answered.push(now_us()?);
        sleep(Duration::from_millis(5));
    }
    Ok(answered)
}

fn loss(pair: &Pair, args: &[&str]) -> Result<Value> {
    let document = pair.promote_with(Side::Beta, args)?;
    Ok(document["promotion"]["loss"].clone())
}

/// Which writes `side` has, of as many.
fn present(pair: &Pair, side: Side, count: usize) -> Result<Vec<bool>> {
    let volume = pair.read_volume(side, "disk")?;
    Ok((0..count).map(|n| volume[n * BLOCK..(n + 1) * BLOCK].iter().all(|b| *b == n as u8 | 1)).collect())
}

#[test]
fn a_sync_group_whose_primary_died_just_now_has_lost_nothing_and_says_so() -> Result<()> {
    let mut last = Value::Null;
    // A machine that stands still while the lease runs out makes it true that nobody knows.
    for _ in 0..5 {
        let mut pair = Pair::start(PairOptions::default().sync().volume("disk", SIZE).set("history", "0s"))?;
        pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
        let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
        let answered = write_for(&mut client, PINGS)?;
        pair.host_mut(Side::Alpha).kill()?;
        last = loss(&pair, &[])?;
        let moments: Vec<u64> = answered.iter().copied().chain([now_us()?]).collect();
        let longest_us = moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        ensure!(present(&pair, Side::Beta, answered.len())?.iter().all(|there| *there), "a write is missing");
        pair.check_disk()?;
        if last["kind"] == "nothing" {
            return Ok(());
        }
        ensure!(longest_us >= STANDSTILL_US, "{last}, though nothing took longer than {longest_us} µs");
    }
    bail!("{last}")
}

#[test]
fn a_group_without_a_lease_says_since_when_writes_may_be_missing() -> Result<()> {
    let modes = [(PairOptions::default(), "async_streaming"), (PairOptions::default().sync(), "in_sync")];
    for (options, protection) in modes {
        let mut pair = Pair::start(options.volume("disk", SIZE).set("history", "0s"))?;
        pair.wait_protection(Side::Alpha, protection, LIMIT)?;
        let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
        let answered = write_for(&mut client, PINGS)?;
        pair.wait_caught_up(Side::Alpha, LIMIT)?;
        sleep(PINGS);
        let killed = now_us()?;
        pair.host_mut(Side::Alpha).kill()?;
        sleep(LEASE);
        let loss = loss(&pair, &[])?;
        ensure!(loss["kind"] == "unknown", "{loss}");
        let since = loss["since_us"].as_u64().context("a time")?;
        // An idle primary is not one of which nothing is known: its pings count, and the lease behind the last one.
        let (from, to) = (killed.saturating_sub(1_500_000), killed + 2_500_000);
        ensure!((from..to).contains(&since), "killed at {killed}, unknown since {since}");
        let present = present(&pair, Side::Beta, answered.len())?;
        let missing = answered.iter().zip(present).filter(|(at, there)| **at < since && !there).count();
        ensure!(missing == 0, "{missing} of the writes before {since} are missing");
        pair.check_disk()?;
    }
    Ok(())
}

#[test]
fn a_promotion_beside_a_primary_that_goes_on_alone_does_not_say_that_nothing_is_lost() -> Result<()> {
    let options = PairOptions::default().sync().set("sync_timeout", "1s").volume("disk", SIZE);
    let mut pair = Pair::start(options.set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(0, &[1; BLOCK])?;
    let until = now_us()? + u64::try_from(LIMIT.as_micros())?;
    loop {
        sleep(PINGS);
        let would = loss(&pair, &["--dry-run"])?;
        if would["kind"] == "nothing" {
            break;
        }
        ensure!(now_us()? < until, "{would}");
    }
    // The standby hangs, the primary waits for it and goes on, and the standby is back before anyone has told it.
    pair.host_mut(Side::Beta).receiver.as_mut().context("a receiver runs")?.freeze()?;
    client.write(BLOCK as u64, &[2; BLOCK])?;
    let went_on = now_us()?;
    pair.host_mut(Side::Alpha).agent.as_mut().context("an agent runs")?.freeze()?;
    pair.host_mut(Side::Beta).receiver.as_mut().context("a receiver runs")?.thaw()?;
    let loss = loss(&pair, &["--force"])?;
    let there = present(&pair, Side::Beta, 2)?[1];
    let since = loss["since_us"].as_u64();
    // What was under way may have come; but that it has, nobody can know here.
    ensure!(loss["kind"] == "unknown", "{loss}, write 1 is there: {there}");
    ensure!(since.is_none_or(|since| since < went_on), "unknown since {since:?}, gone on at {went_on}");
    pair.host_mut(Side::Alpha).agent.as_mut().context("an agent runs")?.thaw()?;
    pair.check_disk()
}
