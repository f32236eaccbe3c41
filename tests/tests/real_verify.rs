//! Verification: what differs is found and repaired, and nothing else is ever called different.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tests::real::{History, Pair, PairOptions, Side, Writer, WriterOptions};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 24 << 20;
/// What is on the volume before; the rest are holes.
const FILLED: u64 = 16 << 20;
const BLOCK: u64 = 4096;

/// A pair whose copies are equal.
fn start(options: PairOptions, protection: &str) -> Result<Pair> {
    let pair = Pair::start(options.volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    pair.fill(Side::Alpha, "disk", FILLED, 0)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    Ok(pair)
}

/// Runs `afterimage verify`; its exit status, and what it printed.
fn verify(pair: &Pair, args: &[&str]) -> Result<(Option<i32>, Value)> {
    let args: Vec<&str> = ["verify", "orders", "--json"].into_iter().chain(args.iter().copied()).collect();
    let finished = pair.command(Side::Alpha, &args)?;
    let document: Value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("{} {}\n{}", finished.stdout, finished.stderr, pair.logs()))?;
    Ok((finished.status.code(), document["verification"].clone()))
}

/// Waits until what was written is in beta's volume.
fn wait_applied(pair: &Pair) -> Result<()> {
    let newest = pair.wait_caught_up(Side::Alpha, LIMIT)?["position"]["sequence"].as_u64();
    pair.wait_for(Side::Beta, LIMIT, |group| group["journal"]["applied_sequence"].as_u64() >= newest)
        .map(drop)
}

/// Flips bits of beta's volume behind its receiver's back.
fn flip(pair: &mut Pair, bytes: &[u64]) -> Result<()> {
    wait_applied(pair)?;
    pair.host_mut(Side::Beta).receiver.as_mut().context("beta's receiver runs")?.kill()?;
    let file = OpenOptions::new().read(true).write(true).open(pair.host(Side::Beta).volume("disk"))?;
    for at in bytes {
        let mut byte = [0];
        file.read_exact_at(&mut byte, *at)?;
        file.write_all_at(&[byte[0] ^ 4], *at)?;
    }
    file.sync_all()?;
    pair.start_receiver(Side::Beta)?;
    pair.wait_caught_up(Side::Alpha, LIMIT).map(drop)
}

fn ensure_clean(outcome: &(Option<i32>, Value)) -> Result<()> {
    let (status, report) = outcome;
    ensure!(report["state"] == "finished" && report["mismatched_blocks"] == 0, "{report:#}");
    ensure!(report["done_bytes"] == SIZE && *status == Some(0), "{status:?} {report:#}");
    Ok(())
}

#[test]
fn a_flipped_bit_is_found_and_repaired() -> Result<()> {
    let mut pair = start(PairOptions::default().sync(), "in_sync")?;
    ensure_clean(&verify(&pair, &[])?)?;
    // In data, and in a hole.
    let flipped = [37 * BLOCK + 5, FILLED + 100 * BLOCK];
    flip(&mut pair, &flipped)?;
    let (status, report) = verify(&pair, &["--rate", "200MiB/s"])?;
    let found: Vec<_> = report["differing"].as_array().into_iter().flatten().collect();
    let blocks: Vec<_> = found.iter().map(|d| (d["first_block"].as_u64(), d["blocks"].as_u64())).collect();
    let wanted = flipped.map(|at| (Some(at / BLOCK), Some(1)));
    ensure!(
        blocks == wanted && report["mismatched_blocks"] == 2 && status == Some(1),
        "{status:?} {report:#}"
    );
    let warned = |group: &Value| group["warnings"].to_string().contains("copies_differ");
    pair.wait_for(Side::Alpha, LIMIT, warned)?;

    let (status, report) = verify(&pair, &["--repair"])?;
    ensure!(report["mismatched_blocks"] == 2 && report["repaired_blocks"] == 2, "{report:#}");
    ensure!(status == Some(0), "{status:?}");
    pair.wait_for(Side::Alpha, LIMIT, |group| !warned(group))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    ensure_clean(&verify(&pair, &[])?)?;

    pair.ensure_promoted_is_same("disk")?;
    pair.check_disk()
}

#[test]
fn nothing_is_called_different_under_load() -> Result<()> {
    let options = PairOptions::default().set_raw("verify", "{ rate = \"1GiB/s\" }");
    let mut pair = start(options, "async_streaming")?;
    let options = WriterOptions { pace: Duration::from_millis(1), ..WriterOptions::default() };
    let writer = Writer::start(History::new(1), 1, &options, pair.connector(Side::Alpha));
    for round in 0..8 {
        if round == 4 {
            let receiver = pair.host_mut(Side::Beta).receiver.as_mut().context("beta's receiver runs")?;
            receiver.kill()?;
            pair.start_receiver(Side::Beta)?;
        }
        let before = writer.history().acknowledged().len();
        ensure_clean(&verify(&pair, &[])?)?;
        writer.wait_acknowledged(before + 20, LIMIT).map_err(|error| anyhow!("{error}\n{}", pair.logs()))?;
    }
    writer.stop();
    pair.check_disk()
}

#[test]
fn a_verification_goes_on_after_a_restart_until_it_is_given_up() -> Result<()> {
    let options = PairOptions::default().set_raw("verify", "{ rate = \"2MiB/s\" }");
    let mut pair = start(options, "async_streaming")?;
    let under_way = |group: &Value| {
        let report = &group["verification"];
        report["state"] == "running" && report["done_bytes"].as_u64() > Some(0)
    };
    // The command ends with the agent.
    let begun = std::thread::scope(|scope| {
        let waits = scope.spawn(|| pair.command(Side::Alpha, &["verify", "orders"]));
        let begun = pair.wait_for(Side::Alpha, LIMIT, under_way);
        let agent = pair.host(Side::Alpha).agent.as_ref().context("alpha's agent runs")?;
        ensure!(Command::new("kill").arg("-9").arg(agent.pid().to_string()).status()?.success());
        let interrupted = waits.join().map_err(|_| anyhow!("the command's thread panicked"))??;
        ensure!(interrupted.status.code() == Some(1), "{}", interrupted.stderr);
        begun
    })?;
    pair.host_mut(Side::Alpha).agent.as_mut().context("alpha's agent runs")?.kill()?;
    pair.start_agent(Side::Alpha)?;
    let finished = |group: &Value| group["verification"]["state"] == "finished";
    let ended = pair.wait_for(Side::Alpha, LIMIT, finished)?;
    let (begun, ended) = (&begun["verification"], &ended["verification"]);
    ensure!(begun["started_us"] == ended["started_us"], "{begun:#} {ended:#}");
    ensure!(ended["mismatched_blocks"] == 0 && ended["done_bytes"] == SIZE, "{ended:#}");

    std::thread::scope(|scope| {
        let waits = scope.spawn(|| pair.command(Side::Alpha, &["verify", "orders"]));
        pair.wait_for(Side::Alpha, LIMIT, under_way)?;
        let (status, report) = verify(&pair, &["--cancel"])?;
        ensure!(status == Some(0) && report["state"] == "cancelled", "{status:?} {report:#}");
        let given_up = waits.join().map_err(|_| anyhow!("the command's thread panicked"))??;
        ensure!(
            given_up.status.code() == Some(1) && given_up.stderr.contains("given up"),
            "{}",
            given_up.stderr
        );
        Ok(())
    })?;
    pair.check_disk()
}
