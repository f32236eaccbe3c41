//! Which volumes and hosts belong together, and what does not.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tests::real::{
    Blocks, History, Pair, PairOptions, Side, Writer, WriterOptions, check_prefix, ensure_same, filler,
};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 8 << 20;

#[test]
fn volumes_of_a_group_keep_one_write_order() -> Result<()> {
    let volumes = ["data", "log", "index"];
    let options = volumes.iter().fold(PairOptions::default(), |options, name| options.volume(name, SIZE));
    let mut pair = Pair::start(options)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    // One write at a time on each volume: much of their order is certain.
    let options = WriterOptions { in_flight: 1, blocks: 256, ..WriterOptions::default() };
    let writer = Writer::start(History::new(4), volumes.len() as u32, &options, pair.connector(Side::Alpha));
    writer.wait_acknowledged(1500, LIMIT).map_err(|error| anyhow!("{error}\n{}", pair.logs()))?;
    // The standby is promoted under the primary's feet.
    let refused = pair.command(Side::Beta, &["promote", "orders"])?;
    ensure!(refused.status.code() == Some(3), "{refused:?}");
    ensure!(refused.stderr.contains("switchover orders"), "{refused:?}");
    pair.promote_with(Side::Beta, &["--force"])?;
    let fenced = pair.wait_for(Side::Alpha, LIMIT, |group| group["role"] == "fenced")?;
    ensure!(has_warning(&fenced, "reinstate_required"), "{fenced:#}");
    let (mut history, ends) = writer.stop();
    ensure!(ends.iter().all(Result::is_err), "a fenced primary takes no writes: {ends:?}");
    history.server_replaced();
    let mut clients = Vec::new();
    for volume in volumes {
        clients.push(pair.connect(Side::Beta, volume, LIMIT)?);
        ensure!(pair.connect(Side::Alpha, volume, Duration::ZERO).is_err(), "alpha still serves {volume}");
    }
    let mut images: Vec<&mut dyn Blocks> =
        clients.iter_mut().map(|client| client as &mut dyn Blocks).collect();
    let shown = check_prefix(&mut images, &history, &Default::default()).map_err(|error| anyhow!(error))?;
    ensure!(!shown.writes.is_empty(), "the promoted image has some of the writes");

    // Both know of each other now; it stays that way over a restart of each.
    pair.start_agent(Side::Beta)?;
    pair.wait_for(Side::Beta, LIMIT, |group| group["role"] == "primary" && group["protection"] == "refused")?;
    pair.connect(Side::Beta, "data", LIMIT)?.disconnect()?;
    pair.start_agent(Side::Alpha)?;
    pair.wait_for(Side::Alpha, LIMIT, |group| group["role"] == "fenced")?;
    ensure!(pair.connect(Side::Alpha, "data", Duration::ZERO).is_err(), "alpha serves after a restart");
    let again = pair.command(Side::Beta, &["promote", "orders"])?;
    ensure!(again.status.code() == Some(3), "{again:?}");
    pair.check_disk()
}

#[test]
fn groups_are_promoted_one_by_one() -> Result<()> {
    let options = PairOptions::new("orders").sync().volume("orders", SIZE);
    let mut pair = Pair::start(options.and(PairOptions::new("mail").volume("mail", SIZE)))?;
    pair.wait_for_group("orders", Side::Alpha, LIMIT, |group| group["protection"] == "in_sync")?;
    pair.wait_for_group("mail", Side::Alpha, LIMIT, |group| group["protection"] == "async_streaming")?;
    for (seed, volume) in [(1, "orders"), (2, "mail")] {
        let mut client = pair.connect(Side::Alpha, volume, LIMIT)?;
        client.write(1 << 20, &filler(seed, 1 << 20))?;
        client.flush()?;
        client.disconnect()?;
        pair.wait_group_caught_up(volume, Side::Alpha, LIMIT)?;
    }
    pair.promote_with(Side::Beta, &["--force"])?;
    ensure_same(
        "orders on beta",
        &filler(1, 1 << 20),
        &pair.read_volume(Side::Beta, "orders")?[1 << 20..2 << 20],
    )?;
    pair.wait_for_group("orders", Side::Alpha, LIMIT, |group| group["role"] == "fenced")?;

    // The other group goes on as it was.
    ensure!(pair.connect(Side::Beta, "mail", Duration::ZERO).is_err(), "beta serves mail");
    let mut client = pair.connect(Side::Alpha, "mail", LIMIT)?;
    client.write(5 << 20, &filler(3, 64 << 10))?;
    client.flush()?;
    client.disconnect()?;
    pair.wait_group_caught_up("mail", Side::Alpha, LIMIT)?;
    let primary = pair.read_volume(Side::Alpha, "mail")?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.command(Side::Beta, &["promote", "mail", "--force"])?.success()?;
    ensure_same("mail on beta", &primary, &pair.read_volume(Side::Beta, "mail")?)?;

    let unknown = pair.command(Side::Beta, &["promote", "male"])?;
    ensure!(unknown.status.code() == Some(2) && unknown.stderr.contains("mail, orders"), "{unknown:?}");
    pair.check_disk()
}

/// Puts another image of the same size behind a volume's name; the right one is kept beside it.
fn swap(pair: &Pair, side: Side) -> Result<()> {
    let path = pair.host(side).volume("disk");
    fs::rename(&path, path.with_extension("right"))?;
    File::create(&path)?.set_len(SIZE)?;
    Ok(())
}

fn swap_back(pair: &Pair, side: Side) -> Result<()> {
    let path = pair.host(side).volume("disk");
    fs::rename(path.with_extension("right"), path).context("put the right image back")
}

fn has_warning(group: &Value, id: &str) -> bool {
    group["warnings"].as_array().into_iter().flatten().any(|warning| warning["id"] == id)
}

#[test]
fn another_volume_behind_the_name_is_refused() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(0, &filler(1, 1 << 20))?;
    client.flush()?;
    client.disconnect()?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;

    let mut agent = pair.host_mut(Side::Alpha).agent.take().context("alpha's agent runs")?;
    agent.kill()?;
    swap(&pair, Side::Alpha)?;
    pair.start_agent(Side::Alpha)?;
    let status = pair.wait_protection(Side::Alpha, "wrong_volume", LIMIT)?;
    let error = status["volumes"][0]["error"].as_str().unwrap_or_default();
    ensure!(error.contains("is not the volume that was replicated before"), "{status:#}");
    ensure!(pair.connect(Side::Alpha, "disk", Duration::ZERO).is_err(), "it is served");
    let told = pair.command(Side::Alpha, &["status"])?.success()?;
    ensure!(told.contains("is not the volume that was replicated before"), "{told}");
    let wrong = pair.host(Side::Alpha).volume("disk");
    ensure_same("the other volume", &vec![0; SIZE as usize], &fs::read(&wrong)?)?;
    swap_back(&pair, Side::Alpha)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;

    let mut receiver = pair.host_mut(Side::Beta).receiver.take().context("beta's receiver runs")?;
    receiver.kill()?;
    swap(&pair, Side::Beta)?;
    pair.start_receiver(Side::Beta)?;
    let status = pair.wait_protection(Side::Beta, "wrong_volume", LIMIT)?;
    ensure!(has_warning(&status, "wrong_volume"), "{status:#}");
    let told = |group: &Value| {
        group["peer"]["last_error"]
            .as_str()
            .is_some_and(|e| e.contains("is not the volume that was replicated"))
    };
    let status = pair.wait_for(Side::Alpha, LIMIT, told)?;
    ensure!(status["peer"]["connected"] == false, "{status:#}");
    let promoted = pair.command(Side::Beta, &["promote", "orders"])?;
    ensure!(promoted.status.code() == Some(1), "{promoted:?}");
    ensure!(promoted.stderr.contains("is not the volume that was replicated before"), "{promoted:?}");
    swap_back(&pair, Side::Beta)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.promote(Side::Beta)?;
    let promoted = pair.read_volume(Side::Beta, "disk")?;
    ensure_same("the promoted image", &filler(1, 1 << 20), &promoted[..1 << 20])?;
    pair.check_disk()
}

#[test]
fn a_peer_without_a_pinned_key_is_refused() -> Result<()> {
    let pair = Pair::start(PairOptions::default().sync().volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;

    // A host that knows beta's key and says that it is alpha, with a key of its own.
    let mut other = Pair::prepare(PairOptions::default().sync().volume("disk", SIZE))?;
    let pins = "peers.json";
    fs::copy(pair.host(Side::Alpha).state_dir().join(pins), other.host(Side::Alpha).state_dir().join(pins))?;
    other.route(Side::Alpha, pair.host(Side::Beta).listen)?;
    other.start_agent(Side::Alpha)?;
    let status = other.wait_protection(Side::Alpha, "refused", LIMIT)?;
    ensure!(status["peer"]["connected"] == false, "{status:#}");
    let error = status["peer"]["last_error"].as_str().unwrap_or_default();
    ensure!(error.contains("pair"), "says what to do: {status:#}");

    // One that knows no key at all.
    let mut stranger = Pair::prepare(PairOptions::default().volume("disk", SIZE))?;
    stranger.route(Side::Alpha, pair.host(Side::Beta).listen)?;
    stranger.start_agent(Side::Alpha)?;
    let unpaired =
        |group: &Value| group["peer"]["last_error"].as_str().is_some_and(|e| e.contains("not paired"));
    stranger.wait_for(Side::Alpha, LIMIT, unpaired)?;

    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(0, &filler(1, 4096))?;
    client.disconnect()?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT).map(drop)
}
