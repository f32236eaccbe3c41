//! Hooks as the daemons run them.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::real::{Pair, PairOptions, Side, filler};

const LIMIT: Duration = Duration::from_secs(60);
/// The agent looks at a group once a second: in this time it has, also on a busy machine.
const LOOKS: Duration = Duration::from_millis(2500);
const EVENTS: [&str; 8] = [
    "before-promotion",
    "after-promotion",
    "after-demotion",
    "link-lost",
    "protection-lost",
    "protection-regained",
    "split-brain",
    "rpo-breach",
];

fn dir(pair: &Pair, side: Side) -> PathBuf {
    pair.host(side).dir.join("hooks")
}

/// Puts a script there that notes what it is told, and then does `then`.
fn put(pair: &Pair, side: Side, event: &str, then: &str) -> Result<()> {
    let dir = dir(pair, side);
    let log = dir.join("log");
    let note =
        "echo \"$AFTERIMAGE_EVENT $AFTERIMAGE_GROUP $AFTERIMAGE_ROLE $AFTERIMAGE_PEER $AFTERIMAGE_EXPORTS\"";
    let path = dir.join(event);
    fs::write(&path, format!("#!/bin/sh\nset -eu\n{note} >>{}\n{then}\n", log.display()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o755)).context("make a hook executable")
}

/// Two hosts, each with a hook for every event.
fn start() -> Result<Pair> {
    let options = PairOptions::default().volume("disk", 16 << 20).set("history", "0s");
    let mut pair = Pair::prepare(options.set_raw("objectives", "{ rpo = \"2s\" }"))?;
    for side in Side::BOTH {
        let dir = dir(&pair, side);
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
        for event in EVENTS {
            put(&pair, side, event, "")?;
        }
        let mut config = OpenOptions::new().append(true).open(pair.host(side).config())?;
        writeln!(config, "\n[hooks]\ndir = \"{}\"\ntimeout = \"20s\"", dir.display())?;
    }
    pair.join()?;
    for side in Side::BOTH {
        if pair.host(side).receiver.is_none() {
            pair.start_receiver(side)?;
        }
        pair.start_agent(side)?;
    }
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    std::thread::sleep(LOOKS);
    Ok(pair)
}

fn told(pair: &Pair, side: Side) -> String {
    fs::read_to_string(dir(pair, side).join("log")).unwrap_or_default()
}

/// Waits until a line of what the hooks were told begins like this.
fn wait_told(pair: &Pair, side: Side, line: &str) -> Result<()> {
    let began = Instant::now();
    while !told(pair, side).lines().any(|told| told.starts_with(line)) {
        if began.elapsed() > LIMIT {
            bail!("{} was never told {line:?}, but:\n{}\n{}", side.name(), told(pair, side), pair.logs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn write(pair: &Pair, side: Side) -> Result<()> {
    let mut client = pair.connect(side, "disk", LIMIT)?;
    client.write(0, &filler(7, 4096))?;
    client.flush()?;
    client.disconnect().context("end the connection")
}

#[test]
fn a_lost_link_and_a_broken_objective_are_told_and_so_is_their_end() -> Result<()> {
    let mut pair = start()?;
    ensure!(told(&pair, Side::Alpha).is_empty(), "a good start was told: {}", told(&pair, Side::Alpha));
    pair.host_mut(Side::Beta).receiver.take().context("a receiver runs")?.kill()?;
    wait_told(&pair, Side::Alpha, "link-lost orders primary beta ")?;
    wait_told(&pair, Side::Alpha, "protection-lost orders primary beta ")?;
    // Nothing was written: nothing is at risk.
    std::thread::sleep(2 * LOOKS);
    ensure!(!told(&pair, Side::Alpha).contains("rpo-breach"), "{}", told(&pair, Side::Alpha));
    write(&pair, Side::Alpha)?;
    wait_told(&pair, Side::Alpha, "rpo-breach orders primary beta ")?;
    pair.start_receiver(Side::Beta)?;
    wait_told(&pair, Side::Alpha, "protection-regained orders primary beta ")?;
    ensure!(told(&pair, Side::Alpha).lines().count() == 4, "{}", told(&pair, Side::Alpha));
    ensure!(told(&pair, Side::Beta).is_empty(), "{}", told(&pair, Side::Beta));
    pair.check_disk()
}

#[test]
fn a_hook_can_stop_a_promotion_and_nothing_has_changed() -> Result<()> {
    let pair = start()?;
    write(&pair, Side::Alpha)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    put(&pair, Side::Beta, "before-promotion", "echo the fence device is silent; exit 1")?;
    // Neither a dry run nor a promotion that is refused anyway runs it.
    pair.command(Side::Beta, &["promote", "orders", "--dry-run"])?.success()?;
    let refused = pair.command(Side::Alpha, &["promote", "orders"])?;
    ensure!(refused.status.code() == Some(3), "{refused:?}");
    ensure!(told(&pair, Side::Beta).is_empty() && told(&pair, Side::Alpha).is_empty());

    let failed = pair.command(Side::Beta, &["promote", "orders", "--force"])?;
    ensure!(failed.status.code() == Some(1), "{failed:?}");
    ensure!(failed.stderr.contains("the fence device is silent"), "{failed:?}");
    ensure!(failed.stderr.contains("nothing has changed"), "{failed:?}");
    write(&pair, Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;

    put(&pair, Side::Beta, "before-promotion", "")?;
    pair.promote_with(Side::Beta, &["--force"])?;
    let socket = pair.host(Side::Beta).export("disk");
    wait_told(&pair, Side::Beta, &format!("after-promotion orders primary alpha {}", socket.display()))?;
    wait_told(&pair, Side::Alpha, "after-demotion orders fenced beta ")?;
    let on_beta = told(&pair, Side::Beta);
    let events: Vec<_> = on_beta.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(events == ["before-promotion", "before-promotion", "after-promotion"], "{on_beta}");
    pair.check_disk()
}

#[test]
fn a_split_brain_is_told() -> Result<()> {
    let mut pair = start()?;
    write(&pair, Side::Alpha)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.host_mut(Side::Beta).kill()?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    write(&pair, Side::Alpha)?;
    // That clients were answered alone is on the disk soon after, not before.
    std::thread::sleep(LOOKS);
    pair.host_mut(Side::Alpha).kill()?;
    pair.start_host(Side::Beta)?;
    pair.promote(Side::Beta)?;
    pair.start_host(Side::Alpha)?;
    wait_told(&pair, Side::Alpha, "split-brain orders primary beta ")?;
    wait_told(&pair, Side::Alpha, "after-demotion orders fenced beta ")?;
    pair.check_disk()
}
