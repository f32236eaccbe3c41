//! The runbook of real hosts: what it says to type is typed.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::real::{Pair, PairOptions, Side, find_program, run};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 16 << 20;

fn start() -> Result<Pair> {
    let pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.fill(Side::Alpha, "disk", SIZE / 4, 1)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    Ok(pair)
}

fn runbook(pair: &Pair, side: Side) -> Result<String> {
    pair.command(side, &["runbook", "orders"])?.success()
}

/// Runs every line of a runbook that begins with `program`, by a shell; how many there were.
fn type_in(text: &str, program: &str) -> Result<usize> {
    find_program(program)?;
    let mut typed = 0;
    for line in text.lines().filter(|line| line.split(' ').next() == Some(program)) {
        run(Command::new("sh").args(["-euc", line]), LIMIT)?.success().with_context(|| line.to_owned())?;
        typed += 1;
    }
    Ok(typed)
}

fn same(pair: &Pair, primary: Side) -> Result<()> {
    // The standby's word first: what its primary knows may be of the session before.
    pair.wait_protection(primary.peer(), "async_streaming", LIMIT)?;
    pair.wait_same(primary, "disk")
}

#[test]
fn clients_attach_as_it_says_and_it_says_who_cannot_be_asked() -> Result<()> {
    let mut pair = start()?;
    let text = runbook(&pair, Side::Alpha)?;
    ensure!(text.contains("- alpha is the primary, beta is not\n"), "{text}");
    ensure!(type_in(&text, "nbdinfo")? == 1 && type_in(&text, "qemu-img")? == 1, "{text}");
    let text = runbook(&pair, Side::Beta)?;
    ensure!(text.contains("- alpha is the primary, beta is not\n"), "{text}");
    pair.host_mut(Side::Beta).kill()?;
    let text = runbook(&pair, Side::Beta)?;
    ensure!(text.contains("- the agent **cannot be asked**: "), "{text}");
    ensure!(text.contains("- the receiver **cannot be asked**: "), "{text}");
    ensure!(text.contains("**not known here**"), "{text}");
    pair.check_disk()
}

/// The runbook's "make a new standby" of a host that is off: a new disk, and the group forgotten.
fn start_anew(pair: &mut Pair, side: Side) -> Result<()> {
    let volume = pair.host(side).volume("disk");
    fs::remove_file(&volume)?;
    fs::File::create(&volume)?.set_len(SIZE)?;
    let text = runbook(pair, side)?;
    ensure!(type_in(&text, "rm")? == 1, "{text}");
    pair.start_host(side)
}

#[test]
fn a_standby_whose_disk_was_replaced_starts_anew() -> Result<()> {
    let mut pair = start()?;
    pair.host_mut(Side::Beta).kill()?;
    start_anew(&mut pair, Side::Beta)?;
    same(&pair, Side::Alpha)?;
    pair.check_disk()
}

#[test]
fn an_old_primary_whose_disk_was_replaced_starts_anew() -> Result<()> {
    let mut pair = start()?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.promote(Side::Beta)?;
    pair.fill(Side::Beta, "disk", SIZE / 4, 2)?;
    for side in Side::BOTH {
        let path = pair.host(side).config();
        let config = fs::read_to_string(&path)?;
        fs::write(&path, config.replace("primary = \"alpha\"", "primary = \"beta\""))?;
    }
    start_anew(&mut pair, Side::Alpha)?;
    same(&pair, Side::Beta)?;
    pair.check_disk()
}
