//! The planned change of roles, with clients at work, and with processes killed on the way.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tests::real::{
    Blocks, History, Pair, PairOptions, Side, Writer, WriterOptions, check_prefix, product_program, run,
};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 16 << 20;
/// Writes that are answered before each change.
const WRITES: usize = 200;

/// A writer that has had `count` more writes answered.
fn writer(pair: &Pair, side: Side, history: History, seed: u64, count: usize) -> Result<Writer> {
    let wanted = history.acknowledged().len() + count;
    let options = WriterOptions { seed, pace: Duration::from_millis(1), ..WriterOptions::default() };
    let writer = Writer::start(history, 1, &options, pair.connector(side));
    writer.wait_acknowledged(wanted, LIMIT).map_err(|error| anyhow!(error))?;
    Ok(writer)
}

/// That `side` has every write that was answered.
fn ensure_all_there(pair: &Pair, side: Side, history: &History) -> Result<()> {
    let held: BTreeSet<u64> = history.acknowledged();
    let mut image = pair.connect(side, "disk", LIMIT)?;
    let mut images: [&mut dyn Blocks; 1] = [&mut image];
    check_prefix(&mut images, history, &held).map(drop).map_err(|error| anyhow!(error))?;
    image.disconnect().context("end the connection")
}

fn switch_over(pair: &Pair, side: Side) -> Result<Value> {
    let text = pair.command(side, &["switchover", "orders", "--json"])?.success()?;
    Ok(serde_json::from_str::<Value>(&text)?["switchover"].clone())
}

/// A client that waits for `side` to serve, and writes behind what the other clients use.
fn first_write(pair: &Pair, side: Side) -> Result<()> {
    let mut client = pair.connect(side, "disk", LIMIT)?;
    client.write(SIZE - 4096, &[1; 4096])?;
    client.disconnect().context("end the connection")
}

fn there_and_back(options: PairOptions, protection: &str) -> Result<()> {
    let pair = Pair::start(options.volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    let mut primary = Side::Alpha;
    let mut history = History::new(1);
    for round in 0..4 {
        let writer = writer(&pair, primary, history, round + 1, WRITES)?;
        let (began, next) = (Instant::now(), primary.peer());
        let (done, pause) = std::thread::scope(|scope| {
            let command = scope.spawn(|| switch_over(&pair, primary));
            let pause = first_write(&pair, next).map(|()| began.elapsed());
            (command.join(), pause)
        });
        let done = done.map_err(|_| anyhow!("the command's thread has panicked"))??;
        println!("round {round}: {:?} until the first write at {next:?}", pause?);
        (history, _) = writer.stop();
        history.server_replaced();
        println!("round {round}: held for {} us", done["held_us"]);
        ensure!(done["sequence"].as_u64().is_some_and(|n| n >= WRITES as u64), "{done:#}");
        primary = primary.peer();
        pair.wait_protection(primary, protection, LIMIT)?;
        ensure_all_there(&pair, primary, &history)?;
        pair.wait_same(primary, "disk")?;
    }
    pair.check_disk()
}

#[test]
fn a_sync_group_goes_there_and_back_under_load() -> Result<()> {
    there_and_back(PairOptions::default().sync().set("history", "0s"), "in_sync")
}

#[test]
fn an_async_group_goes_there_and_back_under_load() -> Result<()> {
    there_and_back(PairOptions::default().set("history", "0s"), "async_streaming")
}

#[test]
fn a_standby_is_promotable_as_soon_as_it_is_one() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().sync().volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let writer = writer(&pair, Side::Alpha, History::new(1), 1, WRITES)?;
    // Nothing of the new primary's gets here any more.
    pair.host_mut(Side::Beta).agent.as_mut().context("an agent runs")?.freeze()?;
    switch_over(&pair, Side::Alpha)?;
    let (mut history, _) = writer.stop();
    history.server_replaced();
    pair.host_mut(Side::Beta).kill()?;
    pair.promote(Side::Alpha)?;
    ensure_all_there(&pair, Side::Alpha, &history)?;
    pair.check_disk()
}

#[test]
fn without_a_standby_nothing_changes() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.host_mut(Side::Beta).kill()?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    let refused = pair.command(Side::Alpha, &["switchover", "orders"])?;
    ensure!(refused.status.code() == Some(3), "{refused:?}");
    ensure!(refused.stderr.contains("not connected"), "{refused:?}");
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(0, &[7; 4096])?;
    client.disconnect().context("end the connection")?;
    pair.check_disk()
}

/// Which process ends in the middle.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Source,
    Target,
    NewPrimary,
}

#[test]
fn whatever_is_killed_on_the_way_one_host_serves_in_the_end() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().sync().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let mut primary = Side::Alpha;
    let mut history = History::new(1);
    let mut changed = 0;
    for round in 0..12_u64 {
        let victim = [Victim::Source, Victim::Target, Victim::NewPrimary][round as usize % 3];
        let after = Duration::from_millis([2, 8, 20, 60][round as usize / 3]);
        let standby = primary.peer();
        let writer = writer(&pair, primary, history, round + 1, 50)?;
        let config = pair.host(primary).config();
        let command = std::thread::spawn(move || {
            let mut command = Command::new(product_program("afterimage")?);
            run(command.arg("--config").arg(config).args(["switchover", "orders"]), LIMIT)
        });
        std::thread::sleep(after);
        match victim {
            Victim::Source => pair.host_mut(primary).agent.as_mut().context("an agent runs")?.kill()?,
            Victim::Target => pair.host_mut(standby).receiver.as_mut().context("a receiver runs")?.kill()?,
            Victim::NewPrimary => pair.host_mut(standby).agent.as_mut().context("an agent runs")?.kill()?,
        }
        (history, _) = writer.stop();
        match victim {
            Victim::Source => pair.start_agent(primary)?,
            Victim::Target => pair.start_receiver(standby)?,
            Victim::NewPrimary => pair.start_agent(standby)?,
        }
        let outcome = command.join().map_err(|_| anyhow!("the command's thread has panicked"))??;
        let serving = serving(&pair)?;
        println!(
            "round {round}: {victim:?} killed after {after:?}, the command said {:?}, {serving:?} serves",
            outcome.status.code()
        );
        if serving == primary {
            ensure!(outcome.status.code() != Some(0), "{outcome:?}");
            history.server_restarted();
        } else {
            changed += 1;
            history.server_replaced();
        }
        primary = serving;
        ensure_all_there(&pair, primary, &history)?;
    }
    println!("{changed} of 12 changed the roles");
    ensure!(changed > 0, "none came through");
    pair.check_disk()
}

/// The one host that says that it is the primary and has its standby, once there is one.
fn serving(pair: &Pair) -> Result<Side> {
    let began = Instant::now();
    loop {
        let serves = |side| {
            let status = pair.status_json(side).unwrap_or_default();
            status["groups"][0]["role"] == "primary" && status["groups"][0]["protection"] == "in_sync"
        };
        match (serves(Side::Alpha), serves(Side::Beta)) {
            (true, true) => anyhow::bail!("both hosts serve"),
            (true, false) => return Ok(Side::Alpha),
            (false, true) => return Ok(Side::Beta),
            (false, false) => ensure!(began.elapsed() < LIMIT, "neither host serves:\n{}", pair.logs()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
