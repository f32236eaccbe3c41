//! The client: fio with its NBD engine. Runs it, and reads the part of its JSON that matters.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};

use crate::{
    case::Case,
    cpu, process,
    wait::{self, Interrupt},
};

/// What a run may take longer than asked: opening, the last writes, the last flush.
const GRACE: Duration = Duration::from_secs(120);

/// From here on a write is large.
const LARGE_BYTES: u64 = 64 << 10;

/// What the client saw.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Completed writes per second.
    pub writes_per_second: f64,
    /// MiB per second.
    pub mib_per_second: f64,
    /// Bytes written in all.
    pub written_bytes: u64,
    /// Of a write, from submission to completion.
    pub write_latency: Latency,
    /// Of a flush; none if the case asks for none.
    pub flush_latency: Option<Latency>,
    /// Processor seconds of the client.
    pub cpu_seconds: f64,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// The median.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
}

/// Writes to `uri` as `case` says, for `time`. `seed` fixes which blocks.
pub fn run(
    case: Case,
    uri: &str,
    volume_bytes: u64,
    time: Duration,
    seed: u32,
    dir: &Path,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let output = dir.join("fio.json");
    let log = fs::File::create(dir.join("fio.log")).context("create fio's log")?;
    let workload = case.workload();
    let flushes = workload.fsync_every.map(|writes| format!("--fsync={writes}"));
    let child = Command::new("fio")
        .args([
            format!("--name={}", case.name()),
            "--ioengine=nbd".to_owned(),
            format!("--uri={uri}"),
            format!("--size={volume_bytes}"),
            format!("--rw={}", workload.rw),
            format!("--bs={}", workload.block_bytes),
            format!("--iodepth={}", workload.depth),
            "--time_based".to_owned(),
            format!("--runtime={}", time.as_secs()),
            format!("--randseed={seed}"),
            "--thread".to_owned(),
            // Else each write is nearly the one before, and a link that remembers sends little of it. Large ones are told
            // apart well enough by what fio stamps on them, and to fill them anew takes the client a processor.
            format!("--refill_buffers={}", u8::from(workload.block_bytes < LARGE_BYTES)),
            "--output-format=json".to_owned(),
            format!("--output={}", output.display()),
        ])
        .args(flushes)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("start fio")?;
    let cpu_seconds = Client(child).wait(time + GRACE, dir, interrupt)?;
    let text = fs::read_to_string(&output).context("read fio's output")?;
    parse(&text, cpu_seconds)
}

/// Writes the whole volume once, in order, with bytes that do not compress, and flushes.
pub fn overwrite(uri: &str, volume_bytes: u64, dir: &Path, interrupt: &Interrupt) -> Result<()> {
    let arguments = ["--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers=1"].map(str::to_owned);
    write_once(uri, volume_bytes, &arguments, dir, interrupt)
}

/// Writes `pieces` different pieces of `piece_bytes` bytes, anywhere, and flushes. `seed` fixes which.
pub fn change(
    uri: &str,
    volume_bytes: u64,
    [piece_bytes, pieces]: [u64; 2],
    seed: u32,
    dir: &Path,
    interrupt: &Interrupt,
) -> Result<()> {
    let arguments = [
        "--rw=randwrite".to_owned(),
        format!("--bs={piece_bytes}"),
        "--iodepth=8".to_owned(),
        format!("--number_ios={pieces}"),
        format!("--randseed={seed}"),
        "--refill_buffers=1".to_owned(),
    ];
    write_once(uri, volume_bytes, &arguments, dir, interrupt)
}

fn write_once(
    uri: &str,
    volume_bytes: u64,
    arguments: &[String],
    dir: &Path,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut command = Command::new("fio");
    command
        .args(["--name=once", "--ioengine=nbd", "--thread", "--end_fsync=1"])
        .args([format!("--uri={uri}"), format!("--size={volume_bytes}")])
        .args(arguments);
    process::capture("fio", command, dir, GRACE, interrupt).map(drop)
}

/// fio's process. Dropping it kills it.
struct Client(Child);

impl Client {
    /// Waits for the end and returns the processor seconds.
    fn wait(mut self, timeout: Duration, dir: &Path, interrupt: &Interrupt) -> Result<f64> {
        let pid = Pid::from_child(&self.0);
        // Its processor time can be read for as long as it is not reaped.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        wait::until("fio", timeout, interrupt, || {
            waitid(WaitId::Pid(pid), options).context("wait for fio").map(|status| status.map(drop))
        })?;
        let cpu_seconds = cpu::of_process(pid)?;
        let status = self.0.wait().context("wait for fio")?;
        if !status.success() {
            let log = fs::read_to_string(dir.join("fio.log")).unwrap_or_default();
            bail!("fio failed ({status}): {}", log.trim());
        }
        Ok(cpu_seconds)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Deserialize)]
struct Document {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i64,
    write: Writes,
    sync: Syncs,
}

#[derive(Deserialize)]
struct Writes {
    io_bytes: u64,
    bw_bytes: f64,
    iops: f64,
    clat_ns: Distribution,
}

#[derive(Deserialize)]
struct Syncs {
    total_ios: u64,
    lat_ns: Distribution,
}

#[derive(Deserialize)]
struct Distribution {
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}

impl Distribution {
    fn latency(&self) -> Result<Latency> {
        let us = |percentile: &str| {
            let ns = self.percentile.get(percentile);
            ns.map(|ns| ns / 1000.0).with_context(|| format!("fio gave no percentile {percentile}"))
        };
        Ok(Latency { p50_us: us("50.000000")?, p99_us: us("99.000000")?, p999_us: us("99.900000")? })
    }
}

fn parse(text: &str, cpu_seconds: f64) -> Result<Outcome> {
    // The NBD engine prints a line of its own first.
    let start = text.find('{').context("fio printed no JSON")?;
    let document: Document = serde_json::from_str(&text[start..]).context("understand fio's JSON")?;
    let [job] = &document.jobs[..] else { bail!("fio ran {} jobs, not one", document.jobs.len()) };
    ensure!(job.error == 0, "fio saw error {} from the server", job.error);
    Ok(Outcome {
        writes_per_second: job.write.iops,
        mib_per_second: job.write.bw_bytes / (1 << 20) as f64,
        written_bytes: job.write.io_bytes,
        write_latency: job.write.clat_ns.latency().context("of the writes")?,
        flush_latency: match job.sync.total_ios {
            0 => None,
            _ => Some(job.sync.lat_ns.latency().context("of the flushes")?),
        },
        cpu_seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = r#"fio: connected to NBD server
{ "fio version": "fio-3.33", "jobs": [ { "error": 0,
  "write": { "io_bytes": 8257536, "bw_bytes": 4194304, "iops": 1006.99,
    "clat_ns": { "mean": 1.0, "percentile": { "50.000000": 38144, "99.000000": 399360, "99.900000": 500000 } } },
  "sync": { "total_ios": 2016, "lat_ns": { "percentile": { "50.000000": 378880, "99.000000": 5406720,
    "99.900000": 6000000 } } } } ] }"#;

    #[test]
    fn the_output_is_read() {
        let outcome = parse(OUTPUT, 1.5).expect("parse");
        assert_eq!(outcome.mib_per_second, 4.0);
        assert_eq!(outcome.written_bytes, 8_257_536);
        assert_eq!(outcome.write_latency.p99_us, 399.36);
        assert_eq!(outcome.write_latency.p999_us, 500.0);
        assert_eq!(outcome.flush_latency.map(|latency| latency.p50_us), Some(378.88));
        assert_eq!(outcome.cpu_seconds, 1.5);
    }

    #[test]
    fn without_flushes_there_is_no_latency_of_one() {
        let text = OUTPUT.replace("\"total_ios\": 2016", "\"total_ios\": 0");
        assert!(parse(&text, 0.0).expect("parse").flush_latency.is_none());
    }

    #[test]
    fn an_error_of_the_server_is_not_a_result() {
        let error = parse(&OUTPUT.replace("\"error\": 0", "\"error\": 5"), 0.0).expect_err("an error");
        assert_eq!(error.to_string(), "fio saw error 5 from the server");
        assert!(parse("fio: failed", 0.0).is_err());
    }
}
