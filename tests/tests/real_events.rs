//! What happens to a pair is in its log, each with its id.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use afterimage_events::Event;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::real::{Pair, PairOptions, Process, Side, product_program};

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const SIZE: u64 = 8 << 20;

/// The ids in a log of text, in order.
fn ids(log: &str) -> Vec<&str> {
    let id = |line: &'_ str| -> Option<(usize, usize)> {
        let start = line.find("event=\"")? + 7;
        Some((start, start + line[start..].find('"')?))
    };
    log.lines().filter_map(|line| id(line).map(|(start, end)| &line[start..end])).collect()
}

/// Waits until a log has these events, in this order; others may be between them.
fn wait_logged(log: &Path, wanted: &[Event]) -> Result<String> {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        let mut found = ids(&text).into_iter();
        if wanted.iter().all(|event| found.any(|id| id == event.id())) {
            return Ok(text);
        }
        ensure!(started.elapsed() < LIMIT, "{wanted:?} were not logged: {text}");
        sleep(POLL);
    }
}

#[test]
fn a_link_cut_and_a_promotion_are_in_the_log() -> Result<()> {
    let options = PairOptions::default().sync().set("sync_timeout", "1s").set("queue_size", "1MiB");
    let mut pair = Pair::start(options.volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let agent = pair.host(Side::Alpha).log("agent");
    let receiver = pair.host(Side::Beta).log("receiver");
    let begun = [Event::Started, Event::Serving, Event::LinkUp, Event::FirstSyncEnded, Event::InSync];
    wait_logged(&agent, &begun)?;
    wait_logged(&receiver, &[Event::Started, Event::StandingBy, Event::LinkUp, Event::FirstSyncEnded])?;

    pair.host_mut(Side::Beta).receiver.as_mut().context("beta's receiver runs")?.freeze()?;
    pair.wait_protection(Side::Alpha, "degraded", LIMIT)?;
    pair.fill(Side::Alpha, "disk", 4 << 20, 1)?;
    wait_logged(&agent, &[Event::InSync, Event::Degraded, Event::LinkDown])?;
    let status = pair.command(Side::Alpha, &["status"])?.success()?;
    ensure!(status.contains("[degraded]"), "{status}");
    pair.host_mut(Side::Beta).receiver.as_mut().context("beta's receiver runs")?.thaw()?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let text = wait_logged(&agent, &[Event::LinkDown, Event::LinkUp, Event::InSync])?;
    let lines = |id: &str| ids(&text).iter().filter(|found| **found == id).count();
    ensure!(lines("link-down") < 20, "a link that stays down fills no log: {text}");
    let line =
        text.lines().find(|line| line.contains("event=\"link-down\"")).context("link-down is logged")?;
    ensure!(line.contains("group=\"orders\"") && line.contains("reason="), "{line}");

    pair.host_mut(Side::Alpha).kill()?;
    wait_logged(&receiver, &[Event::LinkUp, Event::LinkDown])?;
    pair.promote(Side::Beta)?;
    wait_logged(&receiver, &[Event::LinkDown, Event::Promoted])?;
    wait_logged(&pair.host(Side::Beta).log("agent"), &[Event::Serving])?;
    for log in [agent, receiver] {
        let text = fs::read_to_string(log)?;
        for id in ids(&text) {
            ensure!(Event::by_id(id).is_some(), "{id} is not an event");
        }
    }
    pair.check_disk()
}

/// Starts alpha's receiver by itself and returns its first line.
fn first_line(pair: &Pair, name: &str, args: &[&str], journal: bool) -> Result<String> {
    let host = pair.host(Side::Alpha);
    let log = host.dir.join(name).with_extension("log");
    let file = File::create(&log)?.metadata()?;
    let mut command = Command::new(product_program("afterimage-receiver")?);
    command.arg("--config").arg(host.config()).args(args);
    if journal {
        command.env("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()));
    }
    let mut process = Process::spawn(&mut command, &log)?;
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(&log)?;
        if let Some(line) = text.lines().find(|line| line.contains("started")) {
            process.kill()?;
            return Ok(line.to_owned());
        }
        process.ensure_running()?;
        ensure!(started.elapsed() < LIMIT, "nothing was logged: {text}");
        sleep(POLL);
    }
}

#[test]
fn lines_are_made_for_whoever_reads_them() -> Result<()> {
    let pair = Pair::prepare(PairOptions::default().volume("disk", SIZE))?;
    let text = first_line(&pair, "text", &[], false)?;
    ensure!(text.contains(" INFO ") && text.contains("event=\"started\""), "{text}");
    let journal = first_line(&pair, "journal", &[], true)?;
    ensure!(journal.starts_with("<6>afterimage_receiver"), "{journal}");
    ensure!(journal.contains("event=\"started\""), "{journal}");
    for (name, in_journal) in [("json", false), ("json-journal", true)] {
        let line = first_line(&pair, name, &["--log", "json"], in_journal)?;
        let json = if in_journal { line.strip_prefix("<6>").context("no priority")? } else { &line };
        let object: Value = serde_json::from_str(json).with_context(|| format!("read {line}"))?;
        ensure!(object["fields"]["event"] == "started" && object["level"] == "INFO", "{line}");
        ensure!(object["fields"]["message"] == "the receiver starts", "{line}");
        ensure!(object["fields"]["node"] == "alpha", "{line}");
    }
    Ok(())
}
