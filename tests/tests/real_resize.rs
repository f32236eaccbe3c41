//! Volumes that grow on both hosts: under load, with processes killed on the way, and where it has to be refused.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tests::real::{
    Blocks, History, Pair, PairOptions, Side, Writer, WriterOptions, check_prefix, filler, product_program,
    run,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Its last block is short.
const SMALL: u64 = (16 << 20) - 3584;
const LARGE: u64 = (40 << 20) + 512;
/// Writes that are answered before and after each change.
const WRITES: usize = 200;
const BLOCK: u64 = 4096;

fn volume(pair: &Pair, side: Side) -> Result<File> {
    let path = pair.host(side).volume("disk");
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

/// Makes a host's volume larger. What is in the new area is nobody's data, as that of a logical volume is.
fn make_larger(pair: &Pair, side: Side, size: u64) -> Result<()> {
    let file = volume(pair, side)?;
    let old = file.metadata()?.len();
    file.set_len(size)?;
    let litter = filler(size + side as u64, 64 << 10);
    let places = [old, (old + size) / 2, size.saturating_sub(litter.len() as u64).max(old)];
    for at in places {
        file.write_all_at(&litter[..litter.len().min((size - at) as usize)], at)?;
    }
    Ok(file.sync_all()?)
}

fn resize(pair: &Pair, side: Side, args: &[&str]) -> Result<Value> {
    let args = [&["resize", "orders", "--json"], args].concat();
    let text = pair.command(side, &args)?.success().with_context(|| pair.logs())?;
    Ok(serde_json::from_str::<Value>(&text)?["resize"].clone())
}

/// That a resize is refused as unsafe, with this in the message.
fn ensure_refused(pair: &Pair, side: Side, wanted: &str) -> Result<()> {
    for args in [&["resize", "orders"][..], &["resize", "orders", "--dry-run"]] {
        let refused = pair.command(side, args)?;
        ensure!(refused.status.code() == Some(3), "{refused:?}");
        ensure!(refused.stderr.contains(wanted), "{wanted:?} is not in {refused:?}");
    }
    Ok(())
}

fn writer(pair: &Pair, side: Side, history: History, seed: u64) -> Result<Writer> {
    let wanted = history.acknowledged().len() + WRITES;
    let options = WriterOptions { seed, pace: Duration::from_millis(1), ..WriterOptions::default() };
    let writer = Writer::start(history, 1, &options, pair.connector(side));
    writer.wait_acknowledged(wanted, LIMIT).map_err(|error| anyhow!(error))?;
    Ok(writer)
}

fn size_of(pair: &Pair, side: Side) -> Result<u64> {
    let client = pair.connect(side, "disk", LIMIT)?;
    let size = client.size_bytes();
    client.disconnect()?;
    Ok(size)
}

fn shown_size(pair: &Pair, side: Side) -> Result<Option<u64>> {
    Ok(pair.status_json(side)?["groups"][0]["volumes"][0]["size_bytes"].as_u64())
}

/// Writes to the whole of the area behind `from`, in pieces.
fn fill(pair: &Pair, side: Side, from: u64, seed: u64) -> Result<()> {
    let mut client = pair.connect(side, "disk", LIMIT)?;
    let size = client.size_bytes();
    for at in (from.next_multiple_of(BLOCK)..size - (256 << 10)).step_by(3 << 20) {
        client.write(at, &filler(seed + at, 256 << 10))?;
    }
    client.write(size - 512, &filler(seed, 512))?;
    client.flush()?;
    client.disconnect().context("end the connection")
}

fn ensure_all_there(pair: &Pair, side: Side, history: &History) -> Result<()> {
    let held: BTreeSet<u64> = history.acknowledged();
    let mut image = pair.connect(side, "disk", LIMIT)?;
    let mut images: [&mut dyn Blocks; 1] = [&mut image];
    check_prefix(&mut images, history, &held).map(drop).map_err(|error| anyhow!(error))?;
    image.disconnect().context("end the connection")
}

fn grown_under_load(options: PairOptions, protection: &str) -> Result<()> {
    let mut pair = Pair::start(options.volume("disk", SMALL))?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    let running = writer(&pair, Side::Alpha, History::new(1), 1)?;
    let mut connected = pair.connect(Side::Alpha, "disk", LIMIT)?;
    make_larger(&pair, Side::Beta, LARGE)?;
    make_larger(&pair, Side::Alpha, LARGE)?;
    let status = pair.status_json(Side::Alpha)?;
    let warned = status["groups"][0]["warnings"].to_string();
    ensure!(warned.contains("volume_grown") && warned.contains("afterimage resize orders"), "{warned}");
    let would = resize(&pair, Side::Alpha, &["--dry-run"])?;
    ensure!(would["dry_run"] == true && would["volumes"][0]["to_bytes"] == LARGE, "{would:#}");
    ensure!(size_of(&pair, Side::Alpha)? == SMALL, "a dry run has resized");

    let done = resize(&pair, Side::Alpha, &["--volume", "disk"])?;
    println!("{done:#}");
    let resized = &done["volumes"][0];
    ensure!(resized["name"] == "disk" && done["standby_knows"] == true, "{done:#}");
    ensure!(resized["from_bytes"] == SMALL && resized["to_bytes"] == LARGE, "{done:#}");
    let so_far = running.history().acknowledged().len();
    running.wait_acknowledged(so_far + WRITES, LIMIT).map_err(|error| anyhow!(error))?;
    // A connection keeps the size that it began with.
    ensure!(connected.size_bytes() == SMALL && size_of(&pair, Side::Alpha)? == LARGE);
    connected.write(8 << 20, &filler(1, 4096))?;
    connected.disconnect()?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    for side in Side::BOTH {
        ensure!(shown_size(&pair, side)? == Some(LARGE), "the status of {side:?} shows another size");
    }
    fill(&pair, Side::Alpha, SMALL, 10)?;
    let (mut history, _) = running.stop();
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    ensure_refused(&pair, Side::Alpha, "no volume has grown")?;

    // The standby is promoted, the old primary comes home, and the roles change back.
    ensure!(size_of(&pair, Side::Alpha)? == LARGE);
    pair.ensure_promoted_is_same("disk")?;
    history.server_replaced();
    ensure_all_there(&pair, Side::Beta, &history)?;
    fill(&pair, Side::Beta, 0, 20)?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    pair.command(Side::Alpha, &["reinstate", "orders"])?.success()?;
    pair.wait_protection(Side::Beta, protection, LIMIT)?;
    pair.command(Side::Beta, &["switchover", "orders"])?.success()?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    ensure!(size_of(&pair, Side::Alpha)? == LARGE);
    fill(&pair, Side::Alpha, SMALL, 30)?;
    pair.command(Side::Alpha, &["verify", "orders"])?.success()?;
    pair.check_disk()
}

#[test]
fn a_sync_group_grows_under_load() -> Result<()> {
    grown_under_load(PairOptions::default().sync().set("history", "0s"), "in_sync")
}

#[test]
fn an_async_group_with_a_history_grows_under_load() -> Result<()> {
    // What the journal holds of before and after is applied by the promotion.
    grown_under_load(PairOptions::default().set("history", "1h"), "async_streaming")
}

#[test]
fn what_would_be_unsafe_is_refused_and_clients_are_served() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SMALL))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    ensure_refused(&pair, Side::Alpha, "no volume has grown")?;
    ensure_refused(&pair, Side::Beta, "not the primary")?;
    let unknown = pair.command(Side::Alpha, &["resize", "orders", "--volume", "none"])?;
    ensure!(unknown.status.code() == Some(2), "{unknown:?}");
    make_larger(&pair, Side::Alpha, LARGE)?;
    ensure_refused(&pair, Side::Alpha, &format!("{SMALL} at the standby"))?;
    make_larger(&pair, Side::Beta, LARGE - 512)?;
    ensure_refused(&pair, Side::Alpha, &format!("at least {LARGE} bytes long on beta"))?;
    volume(&pair, Side::Alpha)?.set_len(SMALL - 512)?;
    ensure_refused(&pair, Side::Alpha, "cannot be made smaller")?;
    volume(&pair, Side::Alpha)?.set_len(LARGE)?;
    make_larger(&pair, Side::Beta, LARGE)?;
    pair.host_mut(Side::Beta).receiver.as_mut().context("a receiver runs")?.kill()?;
    pair.wait_protection(Side::Alpha, "disconnected", LIMIT)?;
    ensure_refused(&pair, Side::Alpha, "not connected")?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(0, &[7; 4096])?;
    ensure!(client.size_bytes() == SMALL);
    client.disconnect()?;
    // Both volumes are larger by now, and were when the hosts were started again.
    pair.start_receiver(Side::Beta)?;
    pair.start_agent(Side::Alpha)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    ensure!(size_of(&pair, Side::Alpha)? == SMALL);
    resize(&pair, Side::Alpha, &[])?;
    ensure!(size_of(&pair, Side::Alpha)? == LARGE);
    pair.ensure_promoted_is_same("disk")?;
    pair.check_disk()
}

#[test]
fn a_standby_that_is_too_small_takes_nothing_and_the_primary_goes_on() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().sync().volume("disk", SMALL).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    // What the standby's host knew before the growth comes back.
    let shell = |pair: &Pair, script: &str| -> Result<()> {
        let mut shell = Command::new("sh");
        shell.arg("-ec").arg(script).current_dir(&pair.host(Side::Beta).dir);
        run(&mut shell, LIMIT)?.success().map(drop)
    };
    pair.host_mut(Side::Beta).kill()?;
    shell(&pair, "mkdir old && cp -a state journal old")?;
    pair.start_host(Side::Beta)?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    for side in [Side::Beta, Side::Alpha] {
        make_larger(&pair, side, LARGE)?;
    }
    resize(&pair, Side::Alpha, &[])?;
    fill(&pair, Side::Alpha, SMALL, 1)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.host_mut(Side::Beta).kill()?;
    shell(&pair, "rm -r state journal && mv old/* .")?;
    volume(&pair, Side::Beta)?.set_len(SMALL)?;
    pair.start_host(Side::Beta)?;
    fill(&pair, Side::Alpha, SMALL, 2)?;
    pair.wait_for(Side::Alpha, LIMIT, |group| {
        let told = group["peer"]["last_error"].as_str();
        group["protection"] == "refused"
            && told.is_some_and(|text| text.contains("make it at least that large"))
    })?;
    volume(&pair, Side::Beta)?.set_len(LARGE)?;
    // The session begins by itself.
    pair.ensure_promoted_is_same("disk")?;
    pair.check_disk()
}

#[test]
fn whatever_is_killed_on_the_way_the_sizes_and_the_bytes_fit_in_the_end() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().sync().volume("disk", SMALL).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let mut history = History::new(1);
    let mut size = SMALL;
    let (mut done, mut again) = (0, 0);
    for round in 0..12_u64 {
        let source = round % 2 == 0;
        let after = Duration::from_millis([0, 5, 15, 30, 60, 120][round as usize / 2]);
        let running = writer(&pair, Side::Alpha, history, round + 1)?;
        let larger = size + (2 << 20) + 512;
        for side in [Side::Beta, Side::Alpha] {
            make_larger(&pair, side, larger)?;
        }
        let config = pair.host(Side::Alpha).config();
        let command = std::thread::spawn(move || {
            let mut command = Command::new(product_program("afterimage")?);
            run(command.arg("--config").arg(config).args(["resize", "orders"]), LIMIT)
        });
        std::thread::sleep(after);
        match source {
            true => pair.host_mut(Side::Alpha).agent.as_mut().context("an agent runs")?.kill()?,
            false => pair.host_mut(Side::Beta).receiver.as_mut().context("a receiver runs")?.kill()?,
        }
        (history, _) = running.stop();
        match source {
            true => {
                pair.start_agent(Side::Alpha)?;
                history.server_restarted();
            }
            false => pair.start_receiver(Side::Beta)?,
        }
        let outcome = command.join().map_err(|_| anyhow!("the command's thread has panicked"))??;
        pair.wait_caught_up(Side::Alpha, LIMIT)?;
        let now = size_of(&pair, Side::Alpha)?;
        println!("round {round}: {after:?}, {:?}, {size} -> {now}", outcome.status.code());
        ensure!(now == size || now == larger, "{now} bytes");
        ensure!(outcome.status.code() != Some(0) || now == larger, "{outcome:?}");
        if now == size {
            again += 1;
            resize(&pair, Side::Alpha, &[])?;
            pair.wait_caught_up(Side::Alpha, LIMIT)?;
        } else {
            done += 1;
        }
        ensure!(size_of(&pair, Side::Alpha)? == larger);
        fill(&pair, Side::Alpha, size, round)?;
        pair.wait_caught_up(Side::Alpha, LIMIT)?;
        pair.command(Side::Alpha, &["verify", "orders"])?.success()?;
        size = larger;
    }
    println!("{done} came through, {again} were asked for again");
    pair.ensure_promoted_is_same("disk")?;
    history.server_replaced();
    ensure_all_there(&pair, Side::Beta, &history)?;
    pair.check_disk()
}
