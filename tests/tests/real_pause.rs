//! A primary that stood still while its peer was promoted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::real::{Pair, PairOptions, Side};

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than the primary may stand still without noticing.
const STANDSTILL: Duration = Duration::from_millis(2500);
const SIZE: u64 = 16 << 20;

#[test]
fn a_primary_that_wakes_up_replaced_writes_nothing() -> Result<()> {
    let modes = [(PairOptions::default(), "async_streaming"), (PairOptions::default().sync(), "in_sync")];
    for (options, protection) in modes {
        let mut pair = Pair::start(options.volume("disk", SIZE).set("history", "0s"))?;
        pair.wait_protection(Side::Alpha, protection, LIMIT)?;
        let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
        client.write(0, &[1; 4096])?;
        pair.wait_caught_up(Side::Alpha, LIMIT)?;
        pair.host_mut(Side::Alpha).agent.as_mut().context("an agent runs")?.freeze()?;
        client.send_write(4096, &[2; 4096], false)?;
        std::thread::sleep(STANDSTILL);
        pair.promote(Side::Beta)?;
        pair.host_mut(Side::Alpha).agent.as_mut().context("an agent runs")?.thaw()?;
        // An error that says so, or the end of the connection.
        let answer = client.reply(LIMIT);
        ensure!(
            !matches!(&answer, Ok(Some(reply)) if reply.error == 0),
            "a fenced primary answers {answer:?}"
        );
        pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
        let volume = std::fs::read(pair.host(Side::Alpha).volume("disk"))?;
        ensure!(volume[..4096] == [1; 4096] && volume[4096..8192] == [0; 4096], "it wrote all the same");
        pair.check_disk()?;
    }
    Ok(())
}

#[test]
fn a_primary_that_wakes_up_and_is_still_one_goes_on() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().sync().volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    for round in 0..3 {
        pair.host_mut(Side::Alpha).agent.as_mut().context("an agent runs")?.freeze()?;
        client.send_write(round * 4096, &[round as u8 + 1; 4096], false)?;
        std::thread::sleep(STANDSTILL);
        pair.host_mut(Side::Alpha).agent.as_mut().context("an agent runs")?.thaw()?;
        let reply = client.reply(LIMIT)?.context("an answer")?;
        ensure!(reply.error == 0, "{reply:?}");
    }
    // Without its peer it goes on as after any loss of the link.
    pair.host_mut(Side::Beta).kill()?;
    pair.host_mut(Side::Alpha).agent.as_mut().context("an agent runs")?.freeze()?;
    client.send_write(0, &[9; 4096], false)?;
    std::thread::sleep(STANDSTILL);
    pair.host_mut(Side::Alpha).agent.as_mut().context("an agent runs")?.thaw()?;
    let reply = client.reply(LIMIT)?.context("an answer")?;
    ensure!(reply.error == 0, "{reply:?}");
    pair.check_disk()
}
