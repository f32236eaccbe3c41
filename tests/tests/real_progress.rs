//! Long work shows itself, and Ctrl-C stops nothing but the waiting.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::real::{Pair, PairOptions, Process, Side, ensure_same, filler, find_program};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 8 << 20;
const POLL: Duration = Duration::from_millis(10);

/// Runs a command beside the test, until its output has `text`.
fn begin(pair: &Pair, name: &str, mut command: Command, text: &str) -> Result<Process> {
    let mut process = Process::spawn(&mut command, &pair.host(Side::Alpha).dir.join(name))?;
    let started = Instant::now();
    while !process.log()?.contains(text) {
        process.ensure_running()?;
        ensure!(started.elapsed() < LIMIT, "no {text:?}: {}\n{}", process.log()?, pair.logs());
        sleep(POLL);
    }
    Ok(process)
}

/// What it had printed when it had ended with `status`.
fn end(mut process: Process, status: i32) -> Result<String> {
    let ended = process.wait(LIMIT)?;
    let log = process.log()?;
    ensure!(ended.code() == Some(status), "{ended}: {log}");
    Ok(log)
}

fn interrupt(mut process: Process) -> Result<String> {
    process.interrupt()?;
    end(process, 1)
}

/// A pair whose primary has data from before its first sync, which is slow.
fn filled(max_rate: &str) -> Result<Pair> {
    let mut pair = Pair::prepare(PairOptions::default().volume("disk", SIZE).set("max_rate", max_rate))?;
    let image = File::options().write(true).open(pair.host(Side::Alpha).volume("disk"))?;
    image.write_all_at(&filler(1, SIZE as usize), 0)?;
    pair.join()?;
    pair.start_receiver(Side::Beta)?;
    pair.start_agent(Side::Alpha)?;
    pair.start_agent(Side::Beta)?;
    Ok(pair)
}

#[test]
fn first_sync_and_catch_up_are_waited_for() -> Result<()> {
    // Slow enough that all of this is in the middle of it, whatever else the machine does.
    let mut pair = filled("128KiB/s")?;
    let first = pair.command_line(Side::Alpha, &["wait", "orders"])?;
    let printed = interrupt(begin(&pair, "first", first, "first sync of orders: ")?)?;
    ensure!(printed.contains("interrupted: orders is not protected yet; the daemons go on"), "{printed}");
    let late = pair.command(Side::Alpha, &["wait", "orders", "--timeout", "1500ms", "--json"])?;
    ensure!(late.status.code() == Some(1), "{}", late.stderr);
    ensure!(late.stderr.contains("orders is not protected after 1500ms: first sync"), "{}", late.stderr);
    let outcome: Value = serde_json::from_str(&late.stdout).context("the outcome")?;
    ensure!(outcome["outcome"] == "timeout" && outcome["event"] == "first-sync-begun", "{outcome:#}");
    ensure!(outcome["status"]["protection"] == "first_sync", "{outcome:#}");
    let quiet = pair.command(Side::Alpha, &["wait", "orders", "--timeout", "600ms", "--quiet"])?;
    ensure!(quiet.status.code() == Some(1) && !quiet.stderr.contains("sync of orders:"), "{}", quiet.stderr);
    // The standby knows how fast it goes too.
    pair.wait_for(Side::Beta, LIMIT, |group| group["catchup"]["rate_bytes_per_s"].is_u64())?;

    // Nothing of it was stopped: as fast as it can, it ends.
    reconfigure(&pair, Side::Alpha, "max_rate = \"128KiB/s\"", "max_rate = \"1MiB/s\"")?;
    pair.command(Side::Alpha, &["config", "reload", "agent"])?.success()?;
    let done = pair.command(Side::Alpha, &["wait", "orders", "--json"])?;
    let outcome: Value = serde_json::from_str(&done.stdout).with_context(|| done.stderr.clone())?;
    ensure!(done.status.code() == Some(0) && outcome["outcome"] == "reached", "{outcome:#}");
    ensure!(
        outcome["event"].is_null() && outcome["status"]["protection"] == "async_streaming",
        "{outcome:#}"
    );

    // A catch-up of what was written without a standby.
    pair.host_mut(Side::Beta).receiver.as_mut().context("a receiver runs")?.kill()?;
    pair.fill(Side::Alpha, "disk", SIZE, 3)?;
    pair.start_receiver(Side::Beta)?;
    let done = pair.command(Side::Alpha, &["wait", "orders"])?;
    ensure!(done.status.code() == Some(0) && done.stdout.starts_with("orders streams"), "{done:?}");
    pair.wait_same(Side::Alpha, "disk")?;
    pair.check_disk()
}

#[test]
fn a_verification_is_seen_and_goes_on_without_the_command() -> Result<()> {
    let pair = Pair::start(PairOptions::default().volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.fill(Side::Alpha, "disk", SIZE, 0)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let slow = ["verify", "orders", "--rate", "256KiB/s"];
    let lines = begin(&pair, "verify", pair.command_line(Side::Alpha, &slow)?, "verification of orders: ")?;
    let printed = interrupt(lines)?;
    ensure!(printed.contains("the verification of orders goes on in the agent"), "{printed}");
    ensure!(printed.contains("afterimage verify orders --cancel") && !printed.contains('\r'), "{printed}");
    pair.wait_for(Side::Alpha, LIMIT, |group| group["verification"]["state"] == "running")?;

    // On a terminal it joins, with a bar.
    let bar = begin(&pair, "bar", on_terminal(&pair, &slow)?, "8 MiB")?;
    let cancelled = pair.command(Side::Alpha, &["verify", "orders", "--cancel"])?;
    ensure!(cancelled.status.code() == Some(0), "{}", cancelled.stderr);
    let printed = end(bar, 1)?;
    ensure!(printed.contains("\x1b[2K") && printed.contains("was given up"), "{printed:?}");

    let whole = pair.command(Side::Alpha, &["verify", "orders", "--rate", "1GiB/s", "--json"])?;
    let outcome: Value = serde_json::from_str(&whole.stdout).with_context(|| whole.stderr.clone())?;
    ensure!(whole.status.code() == Some(0) && outcome["verification"]["state"] == "finished", "{outcome:#}");
    pair.check_disk()
}

#[test]
fn applying_is_waited_for_and_a_promotion_ends_it() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "1h"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.fill(Side::Alpha, "disk", SIZE, 5)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let expected = pair.read_volume(Side::Alpha, "disk")?;
    let refused = pair.command(Side::Beta, &["wait", "orders", "--for", "applied"])?;
    ensure!(refused.status.code() == Some(1) && refused.stderr.contains("history"), "{}", refused.stderr);

    // The receiver keeps its history, and the command waits for what it is not told that it cannot have.
    reconfigure(&pair, Side::Beta, "history = \"1h\"", "history = \"0s\"")?;
    let wait = ["wait", "orders", "--for", "applied"];
    let first = begin(&pair, "apply", pair.command_line(Side::Beta, &wait)?, "applying of orders: 0%")?;
    let printed = interrupt(first)?;
    ensure!(printed.contains("interrupted: orders is not applied yet"), "{printed}");
    let second = begin(&pair, "again", pair.command_line(Side::Beta, &wait)?, "applying of orders: 0%")?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.promote(Side::Beta)?;
    let printed = end(second, 0)?;
    ensure!(printed.contains("is served here"), "{printed}");
    ensure_same("the promoted volume", &expected, &fs::read(pair.host(Side::Beta).volume("disk"))?)?;

    // Without a history it comes by itself; and the old primary is not waited for.
    pair.start_host(Side::Alpha)?;
    let fenced = pair.command(Side::Alpha, &["wait", "orders", "--json"])?;
    let outcome: Value = serde_json::from_str(&fenced.stdout).with_context(|| fenced.stderr.clone())?;
    ensure!(fenced.status.code() == Some(1) && outcome["outcome"] == "impossible", "{outcome:#}");
    ensure!(outcome["event"] == "fenced" && fenced.stderr.contains("do: "), "{}", fenced.stderr);
    reconfigure(&pair, Side::Alpha, "history = \"1h\"", "history = \"0s\"")?;
    pair.start_receiver(Side::Alpha)?;
    pair.command(Side::Alpha, &["reinstate", "orders"])?.success()?;
    pair.command(Side::Beta, &["wait", "orders"])?.success()?;
    pair.fill(Side::Beta, "disk", SIZE, 6)?;
    pair.wait_caught_up(Side::Beta, LIMIT)?;
    pair.command(Side::Alpha, &wait)?.success()?;
    let written = pair.read_volume(Side::Beta, "disk")?;
    ensure_same("the standby's volume", &written, &fs::read(pair.host(Side::Alpha).volume("disk"))?)?;
    pair.check_disk()
}

#[test]
fn a_switchover_goes_on_without_the_command() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().sync().volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    pair.fill(Side::Alpha, "disk", SIZE, 9)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let expected = pair.read_volume(Side::Alpha, "disk")?;
    pair.host_mut(Side::Beta).receiver.as_mut().context("a receiver runs")?.freeze()?;
    let command = pair.command_line(Side::Alpha, &["switchover", "orders"])?;
    let printed = interrupt(begin(&pair, "switchover", command, "beta")?)?;
    ensure!(printed.contains("take the switchover of orders to its end, or abandon it"), "{printed}");
    pair.host_mut(Side::Beta).receiver.as_mut().context("a receiver runs")?.thaw()?;

    // Either way one host serves it and could hand it over, since nothing of that is under way any more; the other is its standby.
    let started = Instant::now();
    let primary = loop {
        let roles = Side::BOTH.map(|side| role(&pair, side));
        let primary = match roles.each_ref().map(|role| role.as_deref()) {
            [Some("primary"), Some("standby")] => Some(Side::Alpha),
            [Some("standby"), Some("primary")] => Some(Side::Beta),
            _ => None,
        };
        if let Some(primary) = primary {
            let asked = pair.command(primary, &["switchover", "orders", "--dry-run"])?;
            if asked.status.success() {
                break primary;
            }
        }
        ensure!(started.elapsed() < LIMIT, "{roles:?}\n{}", pair.logs());
        sleep(POLL);
    };
    pair.command(primary, &["wait", "orders"])?.success()?;
    ensure_same("what is served", &expected, &pair.read_volume(primary, "disk")?)?;
    pair.wait_same(primary, "disk")?;
    pair.check_disk()
}

fn role(pair: &Pair, side: Side) -> Option<String> {
    let status = pair.status_json(side).ok()?;
    status["groups"][0]["role"].as_str().map(str::to_owned)
}

/// Changes a line of a host's configuration; daemons know after their next start.
fn reconfigure(pair: &Pair, side: Side, from: &str, to: &str) -> Result<()> {
    let path = pair.host(side).config();
    let text = fs::read_to_string(&path)?;
    ensure!(text.contains(from), "{text}");
    Ok(fs::write(path, text.replace(from, to))?)
}

/// The operator's command on a pseudo terminal.
fn on_terminal(pair: &Pair, args: &[&str]) -> Result<Command> {
    let line = pair.command_line(Side::Alpha, args)?;
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_string_lossy());
    let line: Vec<String> = std::iter::once(line.get_program()).chain(line.get_args()).map(quoted).collect();
    let mut command = Command::new(find_program("script")?);
    command.args(["-qefc", &line.join(" ")]).arg(Path::new("/dev/null")).env("TERM", "xterm");
    Ok(command)
}
