//! `afterimage config check` beside real daemons: what it finds of keys, of the way to the peer, and of sizes on both hosts.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::real::{Pair, PairOptions, Side};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 8 << 20;

/// What the check says on a host, warnings and errors together, without what depends on whether units are installed here.
fn check(pair: &Pair, side: Side, exit: i32) -> Result<String> {
    let done = pair.command(side, &["config", "check"])?;
    ensure!(done.status.code() == Some(exit), "{done:?}");
    let lines =
        done.stdout.lines().chain(done.stderr.lines()).filter(|line| !line.contains("ReadWritePaths="));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_pair_in_order_passes_and_a_peer_that_is_away_is_told() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    for side in Side::BOTH {
        fs::set_permissions(pair.host(side).state_dir(), fs::Permissions::from_mode(0o700))?;
        let said = check(&pair, side, 0)?;
        ensure!(!said.contains("warning") && said.contains("valid; node "), "{said}");
    }
    // It has not disturbed the session.
    let status = pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    ensure!(status["peer"]["connected"] == true, "{status:#}");

    let log = pair.host(Side::Beta).receiver.as_ref().context("beta's receiver runs")?.log_tail();
    ensure!(!log.contains("protocol-violated"), "{log}");

    pair.host_mut(Side::Beta).kill()?;
    let said = check(&pair, Side::Alpha, 0)?;
    ensure!(said.contains("afterimage.toml:8: peer.address: "), "{said}");
    ensure!(said.contains("is afterimage-receiver running on beta"), "{said}");

    // Beta comes back with another key.
    fs::remove_file(pair.host(Side::Beta).state_dir().join("identity.pem"))?;
    pair.start_receiver(Side::Beta)?;
    let said = check(&pair, Side::Alpha, 1)?;
    ensure!(said.contains("peer.address: "), "{said}");
    ensure!(said.contains("key") && said.contains("pair"), "{said}");
    Ok(())
}

#[test]
fn hosts_that_are_not_paired_and_devices_that_are_not_there_are_told() -> Result<()> {
    let pair = Pair::prepare(PairOptions::default().volume("disk", SIZE))?;
    let said = check(&pair, Side::Alpha, 0)?;
    ensure!(said.contains("afterimage.toml:7: peer.name: this host has no key yet"), "{said}");
    ensure!(said.contains("afterimage pair --new"), "{said}");
    ensure!(!pair.host(Side::Alpha).state_dir().join("identity.pem").exists(), "the check has made a key");
    fs::remove_file(pair.host(Side::Alpha).volume("disk"))?;
    let said = check(&pair, Side::Alpha, 1)?;
    ensure!(said.contains("group.orders.volume[0].device: ") && said.contains("is not there"), "{said}");
    pair.command(Side::Alpha, &["config", "check", "--file-only"])?.success().map(drop)
}

#[test]
fn a_volume_that_is_too_small_at_the_peer_is_told() -> Result<()> {
    let mut pair = Pair::prepare(PairOptions::default().volume("disk", SIZE))?;
    File::create(pair.host(Side::Beta).volume("disk"))?.set_len(SIZE / 2)?;
    pair.join()?;
    pair.start_receiver(Side::Beta)?;
    pair.start_agent(Side::Alpha)?;
    let told = |group: &serde_json::Value| {
        group["peer"]["last_error"].as_str().is_some_and(|error| error.contains(&(SIZE / 2).to_string()))
    };
    let status = pair.wait_for(Side::Alpha, LIMIT, told)?;
    let error = status["peer"]["last_error"].as_str().context("it was told")?;
    let said = check(&pair, Side::Alpha, 0)?;
    ensure!(said.contains(": group.orders: there is no session with beta: "), "{said}");
    ensure!(said.contains(error), "{said}");
    Ok(())
}
