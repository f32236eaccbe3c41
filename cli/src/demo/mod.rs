//! `afterimage demo`: the whole story on this machine, with real processes, in a temporary directory.

mod check;
mod hosts;
mod load;
mod nbd;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use afterimage_contract::admin::Request;
use afterimage_contract::status::{GroupStatus, Protection};
use anyhow::{Context, bail};

use self::hosts::{GROUP, Host};
use self::load::{Acknowledged, Load, Random, VOLUME_BYTES};
use crate::args::DemoArgs;
use crate::exit::CommandError;
use crate::progress::{Progress, Work, or_interrupted};

/// Bytes of the volume that hold something before replication begins; the rest is holes.
const FIRST_BYTES: u64 = 96 << 20;
/// Every wait in the demo ends after this long at the latest.
const LIMIT: Duration = Duration::from_secs(40);
const TICK: Duration = Duration::from_millis(100);
const STREAM_FOR: Duration = Duration::from_secs(5);
const CUT_FOR: Duration = Duration::from_secs(3);

/// Runs the demo.
pub async fn run(args: &DemoArgs) -> Result<(), CommandError> {
    let dir = tempfile::Builder::new().prefix("afterimage-demo-").tempdir();
    let dir = dir.map_err(|e| CommandError::failed(format!("cannot make a temporary directory: {e}")))?;
    // The processes end with the story, and the directory goes after them.
    let story = async {
        story(dir.path()).await.map_err(|e| CommandError::failed(format!("the demo failed: {e:#}")))
    };
    let result = or_interrupted(story, || "the demo's processes are ended".to_owned()).await;
    if args.keep {
        let path = dir.keep();
        println!("\nkept: {}", path.display());
    }
    result
}

async fn story(dir: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    step("two hosts, alpha and beta, on this machine: a volume of 256 MiB, 96 MiB of it filled");
    let [mut alpha, mut beta] = hosts::make(dir)?;
    let first = make_images(&alpha, &beta)?;
    alpha.start_receiver().await?;
    beta.start_receiver().await?;
    hosts::pair(&alpha, &beta).await?;
    say("paired: each has pinned the key of the other; QUIC, TLS 1.3 both ways");

    step("first sync, held to 48 MiB/s so that it can be seen; holes are skipped");
    alpha.start_agent().await?;
    beta.start_agent().await?;
    alpha.wait_group().await?;
    progress(&alpha, "first sync").await?;

    step("an application writes; every write streams to beta in order (async)");
    let load = Load::start(alpha.socket.clone(), Acknowledged::new());
    watch_lag(&alpha, &load, STREAM_FOR).await?;

    step("the link is cut; the volume goes on, the bitmap remembers");
    alpha.agent(&Request::PauseStream { group: GROUP.into() }).await?;
    watch_dirty(&alpha, &load, CUT_FOR).await?;
    say("the link is back");
    alpha.agent(&Request::ResumeStream { group: GROUP.into() }).await?;
    progress(&alpha, "catch-up").await?;
    watch_lag(&alpha, &load, Duration::from_secs(2)).await?;

    step("alpha is lost: its processes are killed under load");
    let lost_at = Instant::now();
    alpha.lose();
    let acknowledged = load.finish();
    say(&format!("the application had {} writes acknowledged", acknowledged.len()));

    step("beta is promoted");
    let promotion = beta
        .receiver(&Request::Promote { group: GROUP.into(), dry_run: false, at: None, force: false })
        .await?;
    beta.agent(&Request::Activate { group: GROUP.into() }).await?;
    wait_served(&beta).await?;
    let rto = lost_at.elapsed();
    say(&format!(
        "generation {} serves the volume",
        promotion.get("generation").and_then(|g| g.as_str()).unwrap_or("?")
    ));

    step("every byte of the promoted volume is compared with what the application wrote");
    let verdict = check::verify(&beta.socket, &first, &acknowledged, lost_at)?;
    say(&format!("equal to the primary's image after write {}, a prefix of the write order", verdict.kept));
    println!();
    println!("  RPO measured   {:>8.1} ms  ({} acknowledged writes lost)", ms(verdict.rpo), verdict.lost);
    println!("  RTO measured   {:>8.1} ms  (from the kill to the first byte served)", ms(rto));
    println!("  all of it took {:>8.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

fn step(text: &str) {
    println!("\n▸ {text}");
}

fn say(text: &str) {
    println!("  {text}");
}

/// Makes both images; returns the bytes of alpha's.
fn make_images(alpha: &Host, beta: &Host) -> anyhow::Result<Vec<u8>> {
    let mut first = vec![0; VOLUME_BYTES as usize];
    let mut random = Random(7);
    for (n, chunk) in first.chunks_mut(1 << 20).enumerate() {
        // Spread over the volume, with holes between.
        if (n as u64 * FIRST_BYTES / VOLUME_BYTES) != ((n as u64 + 1) * FIRST_BYTES / VOLUME_BYTES) {
            chunk
                .chunks_exact_mut(8)
                .for_each(|w| w.copy_from_slice(&(random.next() | 1 << 63).to_le_bytes()));
        }
    }
    for host in [alpha, beta] {
        let file = std::fs::File::create(&host.image)
            .with_context(|| format!("cannot make {}", host.image.display()))?;
        file.set_len(VOLUME_BYTES)?;
        if host.name == alpha.name {
            for (n, chunk) in first.chunks(1 << 20).enumerate().filter(|(_, c)| c.iter().any(|b| *b != 0)) {
                file.write_all_at(chunk, (n as u64) << 20)?;
            }
        }
    }
    Ok(first)
}

fn is_streaming(status: &GroupStatus) -> bool {
    matches!(status.protection, Protection::AsyncStreaming | Protection::InSync)
}

/// Shows how far it is until the group streams.
async fn progress(host: &Host, what: &'static str) -> anyhow::Result<()> {
    let mut shown = Progress::new(false);
    let started = Instant::now();
    let (mut sent, mut seen) = (0, 0);
    loop {
        let status = host.status().await?;
        if let Some(c) = &status.catchup {
            (sent, seen) = (c.done_bytes, c.total_bytes);
            shown.show(&Work {
                done_bytes: Some(sent),
                total_bytes: Some(seen),
                rate_bytes_per_s: c.rate_bytes_per_s,
                ..Work::named(what)
            });
        }
        if is_streaming(&status) {
            break;
        }
        if started.elapsed() > LIMIT {
            bail!("{what} did not end: {:?}, {:?}", status.protection, status.warnings);
        }
        tokio::time::sleep(TICK / 2).await;
    }
    shown.abandon();
    let total = seen.max(sent) as f64 / f64::from(1 << 20);
    say(&format!("{what} done: {total:.1} MiB in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// One line that is written over again and again on a terminal, or once at the end elsewhere.
struct Line {
    live: bool,
    last: String,
}

impl Line {
    fn new() -> Self {
        Self { live: std::io::IsTerminal::is_terminal(&std::io::stdout()), last: String::new() }
    }

    fn show(&mut self, text: String) {
        if self.live {
            print!("\r  {text}\x1b[K");
            // A terminal that has gone away is no reason to stop.
            let _ = std::io::stdout().flush();
        }
        self.last = text;
    }

    fn end(self) {
        if self.live {
            println!();
        } else {
            say(&self.last);
        }
    }
}

async fn watch_lag(host: &Host, load: &Load, length: Duration) -> anyhow::Result<()> {
    let (started, before) = (Instant::now(), load.count());
    let mut line = Line::new();
    let mut worst: f64 = 0.0;
    while started.elapsed() < length {
        tokio::time::sleep(TICK).await;
        let status = host.status().await?;
        let rate = (load.count() - before) as f64 / started.elapsed().as_secs_f64();
        let lag = match status.lag {
            Some(lag) => {
                worst = worst.max(lag.seconds);
                format!("lag {:>6.1} ms, {:>5} KiB", lag.seconds * 1000.0, lag.bytes >> 10)
            }
            None => "lag unknown".into(),
        };
        line.show(format!("{rate:>6.0} writes/s   {lag}   worst {:.1} ms", worst * 1000.0));
    }
    line.end();
    Ok(())
}

async fn watch_dirty(host: &Host, load: &Load, length: Duration) -> anyhow::Result<()> {
    let (started, before) = (Instant::now(), load.count());
    let mut line = Line::new();
    while started.elapsed() < length {
        tokio::time::sleep(TICK).await;
        let status = host.status().await?;
        let dirty = status.dirty_bytes.unwrap_or(0) as f64 / f64::from(1 << 20);
        line.show(format!("{} writes acknowledged, {dirty:.1} MiB to be sent", load.count() - before));
    }
    line.end();
    Ok(())
}

/// Waits until the promoted volume can be read.
async fn wait_served(host: &Host) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut block = [0; 4096];
    while nbd::Client::connect(&host.socket).and_then(|mut c| c.read(0, &mut block)).is_err() {
        if started.elapsed() > LIMIT {
            bail!("the promoted volume is not served");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
