//! `afterimage status` in each state that a group can be in, with real daemons, as `docs/status-states.md` shows it.

mod page;
mod watch;

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use page::{capture, capture_when, is_key};
use serde_json::Value;
use tests::real::{Pair, PairOptions, Side, filler};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 32 << 20;
const STATUS: &[&str] = &["status"];

fn start(options: PairOptions, protection: &str) -> Result<Pair> {
    let pair = Pair::start(options.volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    Ok(pair)
}

fn kill_receiver(pair: &mut Pair, side: Side) -> Result<()> {
    pair.host_mut(side).receiver.take().context("a receiver runs")?.kill()
}

fn kill_agent(pair: &mut Pair, side: Side) -> Result<()> {
    pair.host_mut(side).agent.take().context("an agent runs")?.kill()
}

fn has_rate(group: &Value) -> bool {
    let positive = |value: &Value| value.as_u64() > Some(0);
    let catchup = &group["catchup"];
    positive(&catchup["rate_bytes_per_s"])
        && positive(&catchup["eta_s"])
        && positive(&group["peer"]["rtt_us"])
}

fn shows_key(text: &str) -> bool {
    text.split([' ', ',', ':']).any(is_key)
}

fn last_error(group: &Value, part: &str) -> bool {
    group["peer"]["last_error"].as_str().is_some_and(|error| error.contains(part))
}

#[test]
fn healthy() -> Result<()> {
    let pair = start(PairOptions::default().sync().set("history", "0s"), "in_sync")?;
    pair.write_blocks(Side::Alpha, "disk", 1, 0..8)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let applied =
        |group: &Value| group["apply_lag"]["seconds"] == 0.0 && group["peer"]["rtt_us"] != Value::Null;
    pair.wait_for(Side::Alpha, LIMIT, |group| applied(group) && group["lag"]["bytes"] != Value::Null)?;
    pair.wait_for(Side::Beta, LIMIT, applied)?;
    for side in Side::BOTH {
        capture(&pair, "Healthy", side, STATUS)?;
        capture(&pair, "Healthy", side, &["status", "-x"])?;
    }
    Ok(())
}

#[test]
fn first_sync() -> Result<()> {
    let options = PairOptions::default().set("max_rate", "1MiB/s").volume("disk", SIZE);
    let mut pair = Pair::prepare(options)?;
    fs::write(pair.host(Side::Alpha).volume("disk"), filler(1, SIZE as usize))?;
    pair.join()?;
    pair.start_host(Side::Beta)?;
    pair.start_agent(Side::Alpha)?;
    pair.wait_for(Side::Alpha, LIMIT, |group| group["protection"] == "first_sync" && has_rate(group))?;
    pair.wait_for(Side::Beta, LIMIT, |group| group["protection"] == "first_sync" && has_rate(group))?;
    for side in Side::BOTH {
        capture(&pair, "First sync", side, STATUS)?;
    }
    Ok(())
}

#[test]
fn catching_up() -> Result<()> {
    let options = PairOptions::default().set("max_rate", "1MiB/s").set("queue_size", "1MiB");
    let mut pair = start(options, "async_streaming")?;
    kill_receiver(&mut pair, Side::Beta)?;
    pair.fill(Side::Alpha, "disk", SIZE / 2, 1)?;
    pair.start_receiver(Side::Beta)?;
    pair.wait_for(Side::Alpha, LIMIT, |group| group["protection"] == "catching_up" && has_rate(group))?;
    pair.wait_protection(Side::Beta, "catching_up", LIMIT)?;
    for side in Side::BOTH {
        let text = capture(&pair, "Catching up", side, STATUS)?;
        ensure!(text.contains("unknown"), "what beta lacks is not known: {text}");
    }
    Ok(())
}

#[test]
fn degraded() -> Result<()> {
    let options = PairOptions::default().sync().set("sync_timeout", "1s");
    let mut pair = start(options, "in_sync")?;
    kill_receiver(&mut pair, Side::Beta)?;
    pair.write_blocks(Side::Alpha, "disk", 1, 0..8)?;
    pair.wait_for(Side::Alpha, LIMIT, |group| {
        group["protection"] == "degraded" && group["peer"]["connected"] == false
    })?;
    capture(&pair, "Degraded", Side::Alpha, STATUS)?;
    capture(&pair, "The receiver does not answer", Side::Beta, STATUS)?;
    Ok(())
}

#[test]
fn blocked() -> Result<()> {
    let options = PairOptions::default().sync().set("sync_timeout", "1s").set("on_link_loss", "block");
    let mut pair = start(options, "in_sync")?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    kill_receiver(&mut pair, Side::Beta)?;
    client.send_write(0, &[1; 4096], false)?;
    pair.wait_for(Side::Alpha, LIMIT, |group| {
        group["protection"] == "blocked" && group["peer"]["connected"] == false
    })?;
    capture(&pair, "Blocked", Side::Alpha, STATUS).map(drop)
}

#[test]
fn disconnected() -> Result<()> {
    let mut pair = start(PairOptions::default(), "async_streaming")?;
    kill_receiver(&mut pair, Side::Beta)?;
    pair.wait_for(Side::Alpha, LIMIT, |group| {
        group["protection"] == "disconnected" && last_error(group, "no answer from")
    })?;
    capture(&pair, "Disconnected", Side::Alpha, STATUS)?;
    capture(&pair, "Disconnected", Side::Alpha, &["status", "-x"])?;
    pair.start_receiver(Side::Beta)?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    kill_agent(&mut pair, Side::Alpha)?;
    pair.wait_protection(Side::Beta, "disconnected", LIMIT)?;
    capture(&pair, "Disconnected", Side::Beta, STATUS)?;
    capture(&pair, "The agent does not answer", Side::Alpha, STATUS)?;
    kill_receiver(&mut pair, Side::Alpha)?;
    capture(&pair, "Neither daemon answers", Side::Alpha, STATUS)?;
    let done = pair.command(Side::Alpha, STATUS)?;
    ensure!(done.status.code() == Some(1), "{done:?}");
    Ok(())
}

#[test]
fn refused_by_the_primary() -> Result<()> {
    let mut pair = start(PairOptions::default(), "async_streaming")?;
    pair.host_mut(Side::Beta).kill()?;
    fs::remove_file(pair.host(Side::Beta).state_dir().join("identity.pem"))?;
    pair.start_host(Side::Beta)?;
    pair.wait_protection(Side::Alpha, "refused", LIMIT)?;
    pair.wait_protection(Side::Beta, "disconnected", LIMIT)?;
    for side in Side::BOTH {
        let text = capture(&pair, "Refused: the standby has another key", side, STATUS)?;
        ensure!(side == Side::Beta || shows_key(&text), "the key is shown: {text}");
    }
    Ok(())
}

#[test]
fn refused_by_the_standby() -> Result<()> {
    let mut pair = start(PairOptions::default(), "async_streaming")?;
    pair.host_mut(Side::Alpha).kill()?;
    fs::remove_file(pair.host(Side::Alpha).state_dir().join("identity.pem"))?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "refused", LIMIT)?;
    let key_refused = |group: &Value| group["warnings"].to_string().contains("key_refused");
    pair.wait_for(Side::Beta, LIMIT, key_refused)?;
    for side in Side::BOTH {
        let text = capture(&pair, "Refused: the primary has another key", side, STATUS)?;
        ensure!(shows_key(&text), "the key is shown: {text}");
    }
    Ok(())
}

#[test]
fn fenced() -> Result<()> {
    let pair = start(PairOptions::default().set("history", "0s"), "async_streaming")?;
    pair.promote_with(Side::Beta, &["--force"])?;
    pair.write_blocks(Side::Beta, "disk", 1, 0..8)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    // Until alpha has noted that it was replaced it says so in other words.
    pair.wait_for(Side::Beta, LIMIT, |group| group["warnings"].to_string().contains("peer_replaced"))?;
    for side in Side::BOTH {
        capture(&pair, "Fenced", side, STATUS)?;
    }
    Ok(())
}

#[test]
fn split_brain() -> Result<()> {
    let mut pair = start(PairOptions::default().set("history", "0s"), "async_streaming")?;
    pair.write_blocks(Side::Alpha, "disk", 1, 0..8)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.host_mut(Side::Beta).kill()?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    pair.write_blocks(Side::Alpha, "disk", 2, 0..8)?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.start_host(Side::Beta)?;
    pair.promote(Side::Beta)?;
    pair.write_blocks(Side::Beta, "disk", 3, 0..8)?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    let split = |group: &Value| group["warnings"].to_string().contains("split_brain");
    for side in Side::BOTH {
        pair.wait_for(side, LIMIT, split)?;
        capture(&pair, "Split brain", side, STATUS)?;
    }
    // The fenced host finds it out anew.
    pair.start_agent(Side::Alpha)?;
    pair.wait_for(Side::Alpha, LIMIT, split)?;
    Ok(())
}

/// Stops what uses a host's volume, changes it, and starts that again.
fn with_volume(
    side: Side,
    protection: &str,
    change: impl Fn(&std::path::Path) -> Result<()>,
) -> Result<Pair> {
    let mut pair = start(PairOptions::default(), "async_streaming")?;
    pair.host_mut(side).kill()?;
    change(&pair.host(side).volume("disk"))?;
    pair.start_host(side)?;
    pair.wait_protection(side, protection, LIMIT)?;
    Ok(pair)
}

#[test]
fn wrong_volume() -> Result<()> {
    for side in Side::BOTH {
        let pair = with_volume(side, "wrong_volume", |path| {
            // Kept until the other is there, so that it is not taken for it.
            let kept = path.with_extension("old");
            fs::rename(path, &kept)?;
            File::create(path)?.set_len(SIZE)?;
            fs::remove_file(kept).map_err(Into::into)
        })?;
        capture(&pair, "Wrong volume", side, STATUS)?;
    }
    Ok(())
}

#[test]
fn missing_volume() -> Result<()> {
    for side in Side::BOTH {
        let pair = with_volume(side, "failed", |path| fs::remove_file(path).map_err(Into::into))?;
        capture(&pair, "Missing volume", side, STATUS)?;
    }
    Ok(())
}

#[test]
fn journal_full() -> Result<()> {
    let options = PairOptions::default().set("queue_size", "1MiB").journal_max_bytes(16 << 20);
    let mut pair = start(options, "async_streaming")?;
    kill_receiver(&mut pair, Side::Beta)?;
    pair.fill(Side::Alpha, "disk", SIZE, 1)?;
    pair.start_receiver(Side::Beta)?;
    pair.wait_protection(Side::Beta, "journal_full", LIMIT)?;
    capture(&pair, "Journal full", Side::Beta, STATUS)?;
    // It is caught up for a moment now and then.
    let again = |text: &str| text.contains("DISCONNECTED") && text.contains("[journal-full]");
    capture_when(&pair, "Journal full", Side::Alpha, STATUS, again)?;
    // Where it is given room, that is made use of at once, however long it would have rested.
    let path = pair.host(Side::Beta).config();
    let small = fs::read_to_string(&path)?;
    let large = small.replace("max_size = \"16MiB\"", "max_size = \"64MiB\"");
    ensure!(large != small, "{small}");
    fs::write(path, large)?;
    kill_receiver(&mut pair, Side::Beta)?;
    pair.start_receiver(Side::Beta)?;
    pair.wait_same(Side::Alpha, "disk")
}

#[test]
fn every_section_of_the_page_is_a_state_that_is_made() -> Result<()> {
    let made = [include_str!("main.rs"), include_str!("watch.rs")].concat();
    for section in page::sections()? {
        ensure!(made.contains(&format!("\"{section}\"")), "no test makes the state {section:?}");
    }
    Ok(())
}
