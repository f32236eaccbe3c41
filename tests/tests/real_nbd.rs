//! The exports with the clients that people use.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::real::{Pair, PairOptions, Side, ensure_same, filler, find_program, run};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 32 << 20;

fn pair(options: PairOptions, protection: &str) -> Result<Pair> {
    let pair = Pair::start(options.volume("disk", SIZE))?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;
    pair.connect(Side::Alpha, "disk", LIMIT)?.disconnect()?;
    Ok(pair)
}

fn uri(pair: &Pair, side: Side) -> String {
    format!("nbd+unix:///disk?socket={}", pair.host(side).export("disk").display())
}

fn tool(name: &str, args: &[&str]) -> Result<String> {
    let finished = run(Command::new(find_program(name)?).args(args), LIMIT)?;
    finished.success().with_context(|| format!("{name} {}", args.join(" ")))
}

#[test]
fn qemu_io_reads_its_patterns_back_on_both_hosts() -> Result<()> {
    let mut pair = pair(PairOptions::default().sync(), "in_sync")?;
    let qemu_io = |side: Side, commands: &[&str]| -> Result<()> {
        let uri = uri(&pair, side);
        let mut args = vec!["-f", "raw", "-t", "none", "-d", "unmap"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(&uri);
        let printed = tool("qemu-io", &args)?;
        anyhow::ensure!(!printed.contains("failed"), "{printed}");
        Ok(())
    };
    qemu_io(
        Side::Alpha,
        &[
            "write -P 0x11 0 8M",
            "write -P 0x22 1M 64k",
            "write -P 0x33 1048064 1024",
            "write -f -P 0x44 3M 4k",
            "write -z 4M 1M",
            "write -z -u 5M 64k",
            "discard 6M 1M",
            "aio_write -P 0x55 7M 128k",
            "aio_write -P 0x66 7340544 512",
            "aio_flush",
            "flush",
        ],
    )?;
    let reads = [
        "read -P 0x11 0 1048064",
        "read -P 0x33 1048064 1024",
        "read -P 0x22 1049088 65024",
        "read -P 0x44 3M 4k",
        "read -P 0 4M 1M",
        "read -P 0 5M 64k",
        "read -P 0 6M 1M",
        "read -P 0x11 7602176 524288",
        "read -P 0 8M 24M",
    ];
    qemu_io(Side::Alpha, &reads)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let primary = pair.read_volume(Side::Alpha, "disk")?;
    pair.promote_with(Side::Beta, &["--force"])?;
    qemu_io(Side::Beta, &reads)?;
    ensure_same("the promoted image", &primary, &pair.read_volume(Side::Beta, "disk")?)?;
    pair.host_mut(Side::Alpha).kill()
}

#[test]
fn nbdcopy_copies_in_and_out() -> Result<()> {
    let mut pair = pair(PairOptions::default(), "async_streaming")?;
    let (file, copy) = (pair.host(Side::Alpha).dir.join("in"), pair.host(Side::Alpha).dir.join("out"));
    let mut image = filler(7, SIZE as usize);
    image[3 << 20..9 << 20].fill(0);
    image[20 << 20..24 << 20].fill(0);
    fs::write(&file, &image)?;
    let (uri, file, copy_name) = (uri(&pair, Side::Alpha), text(&file), text(&copy));
    tool("nbdcopy", &["--flush", "--connections=4", &file, &uri])?;
    tool("nbdcopy", &["--connections=4", &uri, &copy_name])?;
    ensure_same("what came out", &image, &fs::read(&copy)?)?;
    fs::remove_file(&file)?;
    fs::remove_file(&copy)?;
    pair.ensure_promoted_is_same("disk")?;
    pair.check_disk()
}

/// The extents of `context` in `[from, to)` that have `flag`, in bytes.
fn mapped_bytes(uri: &str, context: &str, flag: u64, from: u64, to: u64) -> Result<u64> {
    let map: Value = serde_json::from_str(&tool("nbdinfo", &["--json", &format!("--map={context}"), uri])?)?;
    let mut bytes = 0;
    for extent in map.as_array().context("a map")? {
        let number = |key: &str| extent[key].as_u64().with_context(|| format!("{key} in {extent}"));
        if number("type")? & flag != 0 {
            let (start, end) = (number("offset")?, number("offset")? + number("length")?);
            bytes += end.min(to).saturating_sub(start.max(from));
        }
    }
    Ok(bytes)
}

#[test]
fn nbdinfo_maps_holes_and_dirty_blocks() -> Result<()> {
    let mut pair = pair(PairOptions::default(), "async_streaming")?;
    let uri = uri(&pair, Side::Alpha);
    let hole = |from, to| mapped_bytes(&uri, "base:allocation", 1, from, to);
    let dirty = |from, to| mapped_bytes(&uri, "afterimage:dirty", 1, from, to);
    assert_eq!(hole(0, SIZE)?, SIZE);
    if let Some(mut receiver) = pair.host_mut(Side::Beta).receiver.take() {
        receiver.kill()?;
    }
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(8 << 20, &filler(1, 64 << 10))?;
    client.write((9 << 20) + 4000, &[1; 200])?;
    client.flush()?;
    client.disconnect()?;
    assert_eq!(hole(8 << 20, (8 << 20) + (64 << 10))?, 0);
    assert_eq!(hole(12 << 20, SIZE)?, SIZE - (12 << 20));
    assert_eq!(dirty(0, SIZE)?, (64 << 10) + 8192);
    assert_eq!(dirty(8 << 20, (8 << 20) + (64 << 10))?, 64 << 10);
    assert_eq!(dirty(9 << 20, (9 << 20) + 8192)?, 8192);
    pair.start_receiver(Side::Beta)?;
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    pair.wait_for(Side::Alpha, LIMIT, |group| group["dirty_bytes"] == 0)?;
    assert_eq!(dirty(0, SIZE)?, 0);
    pair.ensure_promoted_is_same("disk")?;
    pair.check_disk()
}

#[test]
fn fio_verifies_over_several_connections() -> Result<()> {
    let mut pair = pair(PairOptions::default(), "async_streaming")?;
    let uri = format!("--uri={}", uri(&pair, Side::Alpha));
    let common = [
        "--thread",
        "--ioengine=nbd",
        uri.as_str(),
        "--rw=randwrite",
        "--bsrange=512-32k",
        "--bs_unaligned=0",
        "--iodepth=8",
        "--group_reporting",
    ];
    // Two connections verify a region each; four write over each other in a third, where no one can tell what is
    // right but the comparison of the hosts.
    let jobs = [
        "--name=verified",
        "--numjobs=2",
        "--size=8m",
        "--offset_increment=8m",
        "--bs=4k",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--fsync=64",
        "--name=overlapping",
        "--numjobs=4",
        "--offset=16m",
        "--size=4m",
        "--io_size=8m",
        "--norandommap",
        "--randrepeat=0",
        "--fsync=200",
    ];
    let dir = format!("--aux-path={}", text(&pair.host(Side::Alpha).dir));
    tool("fio", &[&common[..], &jobs[..], &[dir.as_str()]].concat())?;
    pair.ensure_promoted_is_same("disk")?;
    pair.check_disk()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
