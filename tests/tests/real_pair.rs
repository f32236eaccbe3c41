//! Two hosts with the product's own programs: first sync, streaming, promotion.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use tests::real::{Pair, PairOptions, Side, ensure_same, filler};

const LIMIT: Duration = Duration::from_secs(60);

/// Pairs, syncs a volume with content and holes, streams, promotes; the promoted image is the primary's.
fn smoke(options: PairOptions, protection: &str) -> anyhow::Result<()> {
    let size = 32 << 20;
    let mut pair = Pair::prepare(options.volume("disk", size))?;
    let before = filler(1, 3 << 20);
    let volume = File::options().write(true).open(pair.host(Side::Alpha).volume("disk"))?;
    volume.write_all_at(&before, 5 << 20)?;
    // A piece that ends in the middle of a block, and one at the very end.
    volume.write_all_at(&before[..100_001], 20 << 20)?;
    volume.write_all_at(&before[..4096], size - 4096)?;
    // What the standby has there from before must go.
    let stale = File::options().write(true).open(pair.host(Side::Beta).volume("disk"))?;
    stale.write_all_at(&filler(2, 1 << 20), 12 << 20)?;
    pair.join()?;
    pair.start_receiver(Side::Beta)?;
    pair.start_agent(Side::Alpha)?;
    pair.start_agent(Side::Beta)?;
    pair.wait_protection(Side::Alpha, protection, LIMIT)?;

    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    let written = filler(3, 1 << 20);
    client.write(6 << 20, &written)?;
    client.write(1000, &written[..512])?;
    client.flush()?;
    client.disconnect()?;
    let status = pair.wait_caught_up(Side::Alpha, LIMIT)?;
    assert_eq!(status["role"], "primary", "{status:#}");
    assert_eq!(status["peer"]["connected"], true, "{status:#}");
    let standby = pair.wait_protection(Side::Beta, "async_streaming", LIMIT)?;
    assert_eq!(standby["role"], "standby", "{standby:#}");

    let primary = pair.read_volume(Side::Alpha, "disk")?;
    ensure_same("what was there", &before[..1 << 20], &primary[5 << 20..6 << 20])?;
    ensure_same("what was written", &written, &primary[6 << 20..7 << 20])?;
    ensure_same("what the standby had", &vec![0; 1 << 20], &primary[12 << 20..13 << 20])?;
    pair.ensure_promoted_is_same("disk")?;

    let mut client = pair.connect(Side::Beta, "disk", LIMIT)?;
    client.write(0, &written[..4096])?;
    client.flush()?;
    assert_eq!(client.read(0, 4096)?, written[..4096]);
    client.disconnect()?;
    let status = pair.wait_for(Side::Beta, LIMIT, |group| group["role"] == "primary")?;
    assert!(status["parent"]["sequence"].is_u64(), "{status:#}");
    pair.check_disk()
}

#[test]
fn async_pair_smoke() -> anyhow::Result<()> {
    smoke(PairOptions::default(), "async_streaming")
}

#[test]
fn sync_pair_smoke() -> anyhow::Result<()> {
    smoke(PairOptions::default().sync(), "in_sync")
}
