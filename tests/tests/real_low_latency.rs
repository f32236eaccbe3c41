//! Processors that are kept awake: while clients wait, and no longer, by both daemons.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::real::{Pair, PairOptions, Side};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 16 << 20;
const DEVICE: &str = "/dev/cpu_dma_latency";
const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// What a daemon has asked the kernel for, in order, as its log says.
fn asked(pair: &Pair, side: Side, daemon: &str) -> Result<Vec<String>> {
    let log = fs::read_to_string(pair.host(side).log(daemon))?;
    let of_line = |line: &str| {
        let (_, limit) =
            line.split_once("how long processors may take to wake up")?.1.split_once("limit_us=")?;
        Some(limit.trim().to_owned())
    };
    Ok(log.lines().filter_map(of_line).collect())
}

/// How long a wake-up may take by what all processes ask for, in microseconds.
fn in_force() -> Result<i32> {
    let mut bytes = [0; 4];
    File::open(DEVICE)?.read_exact(&mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

/// Writes one block after the other until `done`.
fn write_until(pair: &Pair, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    for seed in 0.. {
        if done()? {
            break;
        }
        ensure!(began.elapsed() < LIMIT, "it did not come to it\n{}", pair.logs());
        pair.write_scattered(Side::Alpha, "disk", seed, 500)?;
    }
    Ok(())
}

fn wait_until(pair: &Pair, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !done()? {
        ensure!(began.elapsed() < LIMIT, "it did not come to it\n{}", pair.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn processors_do_not_sleep_while_clients_wait_and_do_again_afterwards() -> Result<()> {
    let mut pair = Pair::prepare(PairOptions::default().sync().volume("disk", SIZE))?;
    pair.join()?;
    for side in [Side::Alpha, Side::Beta] {
        pair.host(side).reconfigure(
            "[peer]",
            "low_latency = \"on\"\n[log]\nlevel = \"info,afterimage_contract=debug\"\n[peer]",
        )?;
        pair.start_host(side)?;
    }
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let daemons = [(Side::Alpha, "agent"), (Side::Beta, "receiver")];

    // Where the kernel knows no levels of sleep it is not asked, and without the right to ask one is told so.
    let levels = fs::read_to_string(DRIVER).is_ok_and(|driver| driver.trim() != "none");
    if !levels || OpenOptions::new().write(true).open(DEVICE).is_err() {
        pair.write_scattered(Side::Alpha, "disk", 1, 5_000)?;
        for (side, daemon) in daemons {
            ensure!(asked(&pair, side, daemon)?.is_empty());
            let told = fs::read_to_string(pair.host(side).log(daemon))?.contains("processors may sleep");
            ensure!(told == levels, "{daemon}");
        }
        return Ok(());
    }

    for (side, daemon) in daemons {
        write_until(&pair, || Ok(!asked(&pair, side, daemon)?.is_empty()))?;
        let first = asked(&pair, side, daemon)?.remove(0);
        ensure!(["0", "2"].contains(&first.as_str()), "{daemon}: {first}");
    }
    write_until(&pair, || Ok(in_force()? <= 2))?;
    for (side, daemon) in daemons {
        wait_until(&pair, || Ok(asked(&pair, side, daemon)?.last().is_some_and(|last| last == "-1")))?;
    }

    // And not at all once the operator does not want it.
    for (side, daemon) in daemons {
        pair.host(side).reconfigure("\"on\"", "\"off\"")?;
        let said = pair.command(side, &["config", "reload", daemon])?.success()?;
        ensure!(said.contains("in force now: node.low_latency"), "{said}");
    }
    let asked_all =
        || daemons.iter().map(|&(side, daemon)| asked(&pair, side, daemon)).collect::<Result<Vec<_>>>();
    let before = asked_all()?;
    pair.write_scattered(Side::Alpha, "disk", 1, 5_000)?;
    std::thread::sleep(Duration::from_millis(200));
    let after = asked_all()?;
    ensure!(before == after, "{before:?}, {after:?}");
    pair.wait_same(Side::Alpha, "disk")?;
    pair.check_disk()
}
