//! A split brain that ends with the old primary's history: the promoted host gives way, and what it wrote is saved.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::real::{Pair, PairOptions, Side, ensure_same};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 16 << 20;
const BLOCK: usize = 4096;

fn write(pair: &Pair, side: Side, byte: u8, blocks: &[usize]) -> Result<()> {
    let mut client = pair.connect(side, "disk", LIMIT)?;
    for block in blocks {
        client.write((block * BLOCK) as u64, &[byte; BLOCK])?;
    }
    client.flush()?;
    client.disconnect().context("end the connection")
}

fn fill(image: &mut [u8], byte: u8, blocks: &[usize]) {
    blocks.iter().for_each(|block| image[block * BLOCK..][..BLOCK].fill(byte));
}

fn refused(pair: &Pair, side: Side, keep: &str, what_to_do: &str) -> Result<()> {
    let done = pair.command(side, &["resolve", "orders", "--keep", keep])?;
    ensure!(done.status.code() == Some(3) && done.stderr.contains(what_to_do), "{done:?}");
    Ok(())
}

/// What `resolve` shows on `side`: its own blocks, among others, and the role of the other host with the times.
fn divergence(pair: &Pair, side: Side, own: &[u64], other: &str) -> Result<()> {
    let document = pair.command(side, &["resolve", "orders", "--json"])?.success()?;
    let document: serde_json::Value = serde_json::from_str(&document)?;
    let found = &document["divergence"];
    ensure!(found["split_brain"] == true && found["peer"]["role"] == other, "{found:#}");
    ensure!(found["local"]["parted_us"].is_u64() && found["peer"]["parted_us"].is_u64(), "{found:#}");
    ensure!(found["common"]["sequence"].is_u64(), "{found:#}");
    let ranges = found["volumes"][0]["ranges"].as_array().context("ranges")?;
    let holds = |block: &u64| {
        let within = |range: &serde_json::Value| {
            let offset = range["offset"].as_u64()?;
            Some((offset..offset + range["length"].as_u64()?).contains(&(block * BLOCK as u64)))
        };
        ranges.iter().any(|range| within(range) == Some(true))
    };
    ensure!(own.iter().all(holds), "not all of {own:?} in {ranges:?}");
    let text = pair.command(side, &["resolve", "orders"])?.success()?;
    ensure!(text.contains("split brain: clients were answered on both hosts"), "{text}");
    ensure!(text.contains("--keep local; then on beta"), "{text}");
    Ok(())
}

#[test]
fn the_old_primary_keeps_its_history_and_the_promoted_host_gives_way() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    write(&pair, Side::Alpha, 1, &[1, 2, 3, 4, 5])?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    for side in Side::BOTH {
        refused(&pair, side, "local", "only the fenced side of a split brain")?;
    }
    refused(&pair, Side::Alpha, "peer", "on the other host: afterimage resolve orders --keep local")?;

    // Alpha goes on alone, and is then lost; beta is promoted, and both have writes of their own.
    pair.host_mut(Side::Beta).kill()?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    write(&pair, Side::Alpha, 2, &[2, 10, 11])?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.start_host(Side::Beta)?;
    pair.promote(Side::Beta)?;
    write(&pair, Side::Beta, 3, &[2, 3, 20])?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    // Beta does not give way to a host that serves nothing.
    pair.wait_protection(Side::Beta, "refused", LIMIT)?;
    refused(&pair, Side::Beta, "peer", "on the other host: afterimage resolve orders --keep local")?;
    write(&pair, Side::Beta, 3, &[21])?;

    // Before anything is decided, each host shows what it has.
    for (side, own, other) in
        [(Side::Alpha, vec![2, 10, 11], "primary"), (Side::Beta, vec![2, 3, 20, 21], "fenced")]
    {
        divergence(&pair, side, &own, other)?;
    }

    let kept = pair.command(Side::Alpha, &["resolve", "orders", "--keep", "local"])?.success()?;
    ensure!(kept.contains("then, on beta: afterimage resolve orders --keep peer"), "{kept}");
    // One host serves: alpha waits until beta has given way, also after a start.
    pair.start_agent(Side::Alpha)?;
    pair.wait_for(Side::Alpha, LIMIT, |group| {
        group["role"] == "primary" && group["warnings"].to_string().contains("waiting_for_peer")
    })?;
    write(&pair, Side::Beta, 3, &[22])?;

    pair.command(Side::Beta, &["resolve", "orders", "--keep", "peer"])?.success()?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    let mut expected = vec![0; SIZE as usize];
    fill(&mut expected, 1, &[1, 2, 3, 4, 5]);
    fill(&mut expected, 2, &[2, 10, 11]);
    ensure_same("what alpha serves", &expected, &pair.read_volume(Side::Alpha, "disk")?)?;
    write(&pair, Side::Alpha, 4, &[30])?;
    fill(&mut expected, 4, &[30]);
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.wait_base(Side::Beta, "disk", &expected)?;

    // What beta wrote is in its salvage.
    let list = pair.command(Side::Beta, &["salvage", "list", "--json"])?.success()?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let file = list["salvage"][0]["file"].as_str().context("it was saved")?;
    let out = pair.host(Side::Beta).dir.join("saved");
    let out_arg = out.display().to_string();
    pair.command(Side::Beta, &["salvage", "export", file, "--image", &out_arg])?.success()?;
    let saved = fs::read(out.join("disk.img"))?;
    for block in [2, 3, 20, 21, 22] {
        ensure!(saved[block * BLOCK..][..BLOCK] == [3; BLOCK], "block {block} was not saved as beta had it");
    }

    // And the pair is a pair: the standby takes over, and comes home.
    pair.host_mut(Side::Alpha).kill()?;
    pair.promote(Side::Beta)?;
    ensure_same("what beta serves", &expected, &pair.read_volume(Side::Beta, "disk")?)?;
    pair.check_disk()
}
