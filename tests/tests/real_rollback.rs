//! Promotions at older points, promotions that are taken back, and those that cannot be any more.

use std::time::Duration;

use afterimage_wan::{Wan, WanConfig};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::real::{Pair, PairOptions, Side, ensure_same};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 32 << 20;
const FILLED: u64 = 16 << 20;
const BLOCK: u64 = 4096;
/// Room for handshakes, questions, heartbeats and acknowledgements of a few seconds, each way.
const TALK_BYTES: u64 = 512 << 10;

fn roll_back(pair: &Pair, side: Side) -> Result<Value> {
    let text = pair.command(side, &["promote", "orders", "--rollback", "--json"])?.success()?;
    serde_json::from_str(&text).with_context(|| format!("read the outcome of the rollback: {text}"))
}

#[test]
fn a_fenced_primary_serves_again_after_a_rollback_and_nothing_is_sent_again() -> Result<()> {
    let wan = Wan::up(WanConfig::lossless("real-back", Duration::from_millis(2)))?;
    let options = PairOptions::default().volume("disk", SIZE).set("history", "0s");
    let options = options.over(&wan);
    let pair = Pair::start(options)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.fill(Side::Alpha, "disk", FILLED, 0)?;
    pair.wait_same(Side::Alpha, "disk")?;
    pair.wait_noted(Side::Alpha, LIMIT)?;
    let bytes = || -> Result<u64> {
        let counters = wan.counters()?;
        Ok(counters.0.delivered_bytes + counters.1.delivered_bytes)
    };
    for round in 0..3 {
        let before = bytes()?;
        // Beside a primary that answers: it is fenced while the promotion stands.
        pair.promote_with(Side::Beta, &["--force"])?;
        pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
        let mut reader = pair.connect(Side::Beta, "disk", LIMIT)?;
        reader.read(0, BLOCK as u32)?;

        let would = pair.command(Side::Beta, &["promote", "orders", "--rollback", "--dry-run"])?.success()?;
        ensure!(would.contains("nothing was changed"), "{would}");
        pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
        let done = roll_back(&pair, Side::Beta)?;
        ensure!(done["standby"] == true, "{done:#}");
        ensure!(reader.read(0, BLOCK as u32).is_err(), "it is still served");
        pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
        pair.write_scattered(Side::Alpha, "disk", 100 * round + 1, 20)?;
        pair.wait_same(Side::Alpha, "disk")?;
        let sent = bytes()? - before;
        println!("round {round}: {sent} bytes on the wire");
        ensure!(sent <= 40 * BLOCK + 2 * TALK_BYTES, "{sent} bytes on the wire for 20 blocks");
    }
    let refused = pair.command(Side::Alpha, &["promote", "orders", "--rollback"])?;
    ensure!(refused.status.code() == Some(3), "{refused:?}");
    pair.check_disk()
}

#[test]
fn a_primary_that_never_heard_of_the_promotion_goes_on() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.write_scattered(Side::Alpha, "disk", 1, 50)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.promote(Side::Beta)?;
    // The promoted host ends and starts in between.
    pair.host_mut(Side::Beta).kill()?;
    pair.start_host(Side::Beta)?;
    roll_back(&pair, Side::Beta)?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.write_scattered(Side::Alpha, "disk", 1000, 50)?;
    pair.wait_same(Side::Alpha, "disk")?;
    // And it can be promoted again.
    pair.host_mut(Side::Alpha).kill()?;
    pair.promote(Side::Beta)?;
    pair.write_scattered(Side::Beta, "disk", 2000, 1)?;
    pair.check_disk()
}

#[test]
fn after_a_write_a_promotion_stands() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.write_scattered(Side::Alpha, "disk", 1, 50)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.promote(Side::Beta)?;
    pair.write_scattered(Side::Beta, "disk", 500, 1)?;
    let ensure_refused = |pair: &Pair| -> Result<()> {
        for args in
            [&["promote", "orders", "--rollback"][..], &["promote", "orders", "--rollback", "--dry-run"]]
        {
            let refused = pair.command(Side::Beta, args)?;
            ensure!(refused.status.code() == Some(3), "{refused:?}");
            ensure!(refused.stderr.contains("its generation is real"), "{refused:?}");
        }
        Ok(())
    };
    ensure_refused(&pair)?;
    pair.host_mut(Side::Beta).kill()?;
    pair.start_host(Side::Beta)?;
    drop(pair.connect(Side::Beta, "disk", LIMIT)?);
    ensure_refused(&pair)?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    pair.command(Side::Alpha, &["reinstate", "orders"])?.success()?;
    pair.wait_same(Side::Beta, "disk")?;
    pair.check_disk()
}

#[test]
fn once_a_standby_follows_a_promotion_stands() -> Result<()> {
    let pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.write_scattered(Side::Alpha, "disk", 1, 50)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.promote_with(Side::Beta, &["--force"])?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    pair.command(Side::Alpha, &["reinstate", "orders"])?.success()?;
    pair.wait_same(Side::Beta, "disk")?;
    let refused = pair.command(Side::Beta, &["promote", "orders", "--rollback"])?;
    ensure!(refused.status.code() == Some(3), "{refused:?}");
    // Nor is a switchover taken back so.
    pair.command(Side::Beta, &["switchover", "orders"])?.success()?;
    drop(pair.connect(Side::Alpha, "disk", LIMIT)?);
    let refused = pair.command(Side::Alpha, &["promote", "orders", "--rollback"])?;
    ensure!(refused.status.code() == Some(3), "{refused:?}");
    pair.check_disk()
}

#[test]
fn writes_alone_before_the_promotion_are_kept_by_a_rollback() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.write_scattered(Side::Alpha, "disk", 1, 20)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.host_mut(Side::Beta).kill()?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    pair.write_scattered(Side::Alpha, "disk", 100, 20)?;
    let image = pair.read_volume(Side::Alpha, "disk")?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.start_host(Side::Beta)?;
    pair.promote(Side::Beta)?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    roll_back(&pair, Side::Beta)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.wait_same(Side::Alpha, "disk")?;
    ensure_same("the primary", &image, &pair.read_volume(Side::Alpha, "disk")?)?;
    pair.check_disk()
}

/// The primary's image after some writes, which the standby has durably; with the sequence.
fn phase(pair: &Pair, seed: u64) -> Result<(u64, Vec<u8>)> {
    pair.write_scattered(Side::Alpha, "disk", seed, 30)?;
    let status = pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let sequence = status["position"]["sequence"].as_u64().context("a position")?;
    Ok((sequence, pair.read_volume(Side::Alpha, "disk")?))
}

fn with_history() -> Result<Pair> {
    let pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "1h"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    Ok(pair)
}

#[test]
fn an_older_point_is_served_as_it_was_and_the_old_primary_gets_back_to_it() -> Result<()> {
    let mut pair = with_history()?;
    let (_, _) = phase(&pair, 1)?;
    let (wanted, image) = phase(&pair, 1000)?;
    let (newest, later) = phase(&pair, 2000)?;
    ensure!(image != later);
    let at = wanted.to_string();
    let would = pair.promote_with(Side::Beta, &["--at", &at, "--dry-run"])?;
    let discarded = &would["promotion"]["discarded"];
    ensure!(discarded["records"] == newest - wanted && discarded["newest_sequence"] == newest, "{would:#}");
    ensure!(discarded["bytes"] == 30 * BLOCK && would["promotion"]["time_us"].is_u64(), "{would:#}");
    pair.host_mut(Side::Alpha).kill()?;
    // The receiver has to find it after a start too.
    pair.host_mut(Side::Beta).kill()?;
    pair.start_host(Side::Beta)?;
    let beyond = (newest + 1).to_string();
    for point in ["0", &beyond, "1990-01-01T00:00:00Z", "before-upgrade"] {
        for dry_run in [&[][..], &["--dry-run"]] {
            let args = [&["promote", "orders", "--at", point], dry_run].concat();
            let refused = pair.command(Side::Beta, &args)?;
            ensure!(refused.status.code() == Some(3), "{refused:?}");
            ensure!(refused.stderr.contains(&format!("to {newest}")), "{refused:?}");
        }
    }
    let done = pair.promote_with(Side::Beta, &["--at", &at])?;
    ensure!(done["promotion"]["position"]["sequence"] == wanted, "{done:#}");
    ensure!(done["promotion"]["discarded"]["records"] == newest - wanted, "{done:#}");
    ensure_same("the promoted host", &image, &pair.read_volume(Side::Beta, "disk")?)?;

    pair.write_scattered(Side::Beta, "disk", 3000, 10)?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    let text = pair.command(Side::Alpha, &["reinstate", "orders", "--json"])?.success()?;
    ensure!(text.contains("\"compares_all\": false"), "{text}");
    pair.wait_caught_up(Side::Beta, LIMIT)?;
    // Home again, to look at what the old primary has got to.
    let mut expected = pair.read_volume(Side::Beta, "disk")?;
    pair.command(Side::Beta, &["switchover", "orders"])?.success()?;
    ensure_same("the old primary", &expected, &pair.read_volume(Side::Alpha, "disk")?)?;
    pair.write_scattered(Side::Alpha, "disk", 4000, 10)?;
    expected = pair.read_volume(Side::Alpha, "disk")?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.promote(Side::Beta)?;
    ensure_same("both", &expected, &pair.read_volume(Side::Beta, "disk")?)?;
    pair.check_disk()
}

#[test]
fn a_point_is_chosen_by_the_primary_s_clock() -> Result<()> {
    let mut pair = with_history()?;
    let (wanted, image) = phase(&pair, 1)?;
    std::thread::sleep(Duration::from_millis(20));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let time = afterimage_contract::admin::format_time(now.as_micros() as u64);
    std::thread::sleep(Duration::from_millis(20));
    phase(&pair, 1000)?;
    pair.host_mut(Side::Alpha).kill()?;
    let done = pair.promote_with(Side::Beta, &["--at", &time])?;
    ensure!(done["promotion"]["position"]["sequence"] == wanted, "{done:#}");
    ensure_same("the promoted host", &image, &pair.read_volume(Side::Beta, "disk")?)?;
    pair.check_disk()
}

#[test]
fn a_promotion_at_an_older_point_is_rolled_back_and_everything_comes_again() -> Result<()> {
    let pair = with_history()?;
    let (wanted, image) = phase(&pair, 1)?;
    let (_, later) = phase(&pair, 1000)?;
    let at = wanted.to_string();
    pair.promote_with(Side::Beta, &["--at", &at, "--force"])?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    ensure_same("the promoted host", &image, &pair.read_volume(Side::Beta, "disk")?)?;
    roll_back(&pair, Side::Beta)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    ensure_same("the old primary", &later, &pair.read_volume(Side::Alpha, "disk")?)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.promote_with(Side::Beta, &["--force"])?;
    ensure_same("the standby", &later, &pair.read_volume(Side::Beta, "disk")?)?;
    pair.check_disk()
}
