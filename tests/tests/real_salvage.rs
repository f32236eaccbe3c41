//! What a reinstatement saved can be taken out again, and is what the old primary had.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::real::{Pair, PairOptions, Side, ensure_same};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 16 << 20;
const BLOCK: u64 = 4096;

fn json(pair: &Pair, side: Side, args: &[&str]) -> Result<Value> {
    serde_json::from_str(&pair.command(side, args)?.success()?).context("read what the command printed")
}

/// An image put together from a block list, and a mark for each block that the list has.
fn from_list(dir: &Path) -> Result<(Vec<u8>, Vec<bool>)> {
    let data = fs::read(dir.join("data"))?;
    let (mut image, mut listed) = (vec![0; SIZE as usize], vec![false; (SIZE / BLOCK) as usize]);
    for line in fs::read_to_string(dir.join("blocks.tsv"))?.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        ensure!(fields.len() == 4 && fields[0] == "disk", "{line}");
        let (offset, length): (usize, usize) = (fields[1].parse()?, fields[2].parse()?);
        if fields[3] != "-" {
            let at: usize = fields[3].parse()?;
            image[offset..offset + length].copy_from_slice(&data[at..at + length]);
        }
        listed[offset / BLOCK as usize..(offset + length) / BLOCK as usize].fill(true);
    }
    Ok((image, listed))
}

#[test]
fn what_was_saved_comes_out_as_the_old_primary_had_it() -> Result<()> {
    let mut pair = Pair::start(PairOptions::default().volume("disk", SIZE).set("history", "0s"))?;
    pair.wait_protection(Side::Alpha, "async_streaming", LIMIT)?;
    pair.write_blocks(Side::Alpha, "disk", 1, [5, 6, 100])?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    ensure!(json(&pair, Side::Alpha, &["salvage", "list", "--json"])?["salvage"] == Value::Array(Vec::new()));

    // A tail that never arrives, one block of it zeroes over data.
    let tail = [6, 7, 8, 900, 4095];
    pair.host_mut(Side::Beta).receiver.as_mut().context("a receiver runs")?.freeze()?;
    pair.write_blocks(Side::Alpha, "disk", 50, tail)?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(100 * BLOCK, &[0; BLOCK as usize])?;
    client.disconnect().context("end the connection")?;
    let old = pair.read_volume(Side::Alpha, "disk")?;
    pair.host_mut(Side::Alpha).kill()?;
    pair.host_mut(Side::Beta).receiver.as_mut().context("a receiver runs")?.thaw()?;
    pair.promote(Side::Beta)?;
    pair.start_host(Side::Alpha)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    let generation = pair.status_json(Side::Alpha)?["groups"][0]["generation"].clone();
    pair.command(Side::Alpha, &["reinstate", "orders"])?.success()?;
    pair.wait_caught_up(Side::Beta, LIMIT)?;

    // No daemon is needed.
    pair.host_mut(Side::Alpha).kill()?;
    let listed = json(&pair, Side::Alpha, &["salvage", "list", "orders", "--json"])?["salvage"].clone();
    let entry = &listed[0];
    ensure!(listed.as_array().is_some_and(|files| files.len() == 1), "{listed:#}");
    ensure!(entry["state"] == "whole" && entry["group"] == "orders", "{entry:#}");
    ensure!(generation.is_null() || entry["generation"] == generation, "{generation}: {entry:#}");
    let by = pair.status_json(Side::Beta)?["groups"][0]["generation"].clone();
    ensure!(entry["replaced_by"] == by, "{by}: {entry:#}");
    let human = pair.command(Side::Alpha, &["salvage", "list"])?.success()?;
    ensure!(human.contains("whole") && human.contains("disk"), "{human}");

    let file = entry["file"].as_str().context("a path")?.to_owned();
    let out = |name: &str| pair.host(Side::Alpha).dir.join(name);
    let (images, list) = (out("images"), out("list"));
    let (images_arg, list_arg) = (images.display().to_string(), list.display().to_string());
    pair.command(Side::Alpha, &["salvage", "export", &file, "--image", &images_arg])?.success()?;
    pair.command(Side::Alpha, &["salvage", "export", &file, "--blocks", &list_arg])?.success()?;
    let (from_list, saved) = from_list(&list)?;
    for block in tail.iter().chain(&[100]) {
        ensure!(saved[*block as usize], "block {block} was not saved");
    }
    // Exactly what it had in the saved blocks, and nothing elsewhere.
    let mut expected = old;
    for (block, _) in saved.iter().enumerate().filter(|(_, saved)| !**saved) {
        expected[block * BLOCK as usize..][..BLOCK as usize].fill(0);
    }
    ensure_same("the list and its bytes", &expected, &from_list)?;
    ensure_same("the image", &expected, &fs::read(images.join("disk.img"))?)?;
    let again = pair.command(Side::Alpha, &["salvage", "export", &file, "--image", &images_arg])?;
    ensure!(again.status.code() == Some(1) && again.stderr.contains("exists already"), "{again:?}");

    // Cut in the middle: listed as damaged, and what is whole comes out.
    let whole = fs::read(&file)?;
    fs::write(&file, &whole[..whole.len() / 2])?;
    let entry = json(&pair, Side::Alpha, &["salvage", "list", "--json"])?["salvage"][0].clone();
    ensure!(entry["state"] == "damaged", "{entry:#}");
    let part = out("part").display().to_string();
    let cut = pair.command(Side::Alpha, &["salvage", "export", &file, "--image", &part])?;
    ensure!(cut.status.code() == Some(1) && cut.stderr.contains("damaged or cut short"), "{cut:?}");
    ensure!(out("part/disk.img").metadata()?.len() == SIZE);
    pair.check_disk()
}
