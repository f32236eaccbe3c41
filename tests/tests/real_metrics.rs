//! A real Prometheus scrapes a real pair, and what it is asked then is true.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::real::{Pair, PairOptions, Process, Side, find_program, ports};

const LIMIT: Duration = Duration::from_secs(60);
/// Between two questions; Prometheus scrapes as often.
const POLL: Duration = Duration::from_millis(200);
const SIZE: u64 = 32 << 20;
/// What is written while the link is cut: more than a catch-up reads before its rate tells, and than the queue holds.
const MISSED_BYTES: u64 = 24 << 20;

/// A web page: its status and its body.
fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    // Of version 1.0, so that the body comes as it is.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("read {path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let code = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((code, body.to_owned()))
}

/// A Prometheus that scrapes all four daemons of a pair, each under its name, such as `alpha-agent`.
struct Prometheus {
    process: Process,
    address: SocketAddr,
}

impl Prometheus {
    fn start(pair: &Pair) -> Result<Self> {
        let dir = pair.host(Side::Alpha).dir.join("prometheus");
        fs::create_dir(&dir)?;
        let mut config =
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\nscrape_configs:\n".to_owned();
        config += "- job_name: afterimage\n  static_configs:\n";
        for side in Side::BOTH {
            for daemon in ["agent", "receiver"] {
                let target = metrics(pair, side, daemon)?;
                let labels = format!("{{instance: {}-{daemon}}}", side.name());
                config += &format!("  - {{targets: [\"{target}\"], labels: {labels}}}\n");
            }
        }
        let file = dir.join("prometheus.yml");
        fs::write(&file, config)?;
        let address = ports::free_tcp()?;
        let mut command = Command::new(find_program("prometheus")?);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            // What it allocates beforehand, and what it keeps at most.
            .args(["--storage.tsdb.retention.size=16MB", "--storage.tsdb.wal-segment-size=10MB"])
            .arg(format!("--web.listen-address={address}"));
        let mut process = Process::spawn(&mut command, &dir.join("log"))?;
        let started = Instant::now();
        while !get(address, "/-/ready").is_ok_and(|(code, _)| code == 200) {
            process.ensure_running()?;
            ensure!(started.elapsed() < LIMIT, "Prometheus does not answer: {}", process.log_tail());
            sleep(POLL);
        }
        Ok(Self { process, address })
    }

    /// What a query gives: the value of each series, with its labels. The newest values only.
    fn query(&self, query: &str) -> Result<Vec<(Value, f64)>> {
        let (code, body) = get(self.address, &format!("/api/v1/query?query={}", encoded(query)))?;
        let answer: Value = serde_json::from_str(&body).with_context(|| format!("read {body}"))?;
        ensure!(code == 200 && answer["status"] == "success", "{query}: {body}");
        let found = answer["data"]["result"].as_array().context("no result")?;
        let value = |series: &Value| {
            let text = series["value"][1].as_str().context("no value")?;
            Ok((series["metric"].clone(), text.parse()?))
        };
        found.iter().map(value).collect()
    }

    /// Waits until a query that gives one series at most gives what `wanted` says.
    fn wait(&self, query: &str, wanted: impl Fn(Option<f64>) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let found = self.query(query)?;
            ensure!(found.len() <= 1, "{query} gives {found:?}");
            let value = found.first().map(|(_, value)| *value);
            if wanted(value) {
                return Ok(());
            }
            if started.elapsed() > LIMIT {
                bail!("{query} is {value:?} after {LIMIT:?}\n{}", self.process.log_tail());
            }
            sleep(POLL);
        }
    }

    fn wait_is(&self, query: &str, value: f64) -> Result<()> {
        self.wait(query, |found| found == Some(value))
    }

    fn wait_absent(&self, query: &str) -> Result<()> {
        self.wait(query, |found| found.is_none())
    }
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn metrics(pair: &Pair, side: Side, daemon: &str) -> Result<SocketAddr> {
    let mut address = pair.host(side).metrics.context("metrics are shown")?;
    if daemon == "receiver" {
        address.set_port(address.port() + 1);
    }
    Ok(address)
}

/// What both daemons of a host answer to a load balancer; they have to agree.
fn health(pair: &Pair, side: Side, path: &str) -> Result<u16> {
    let [agent, receiver] = ["agent", "receiver"].map(|daemon| get(metrics(pair, side, daemon)?, path));
    let (agent, receiver) = (agent?, receiver?);
    ensure!(agent == receiver, "{path} of {}: {agent:?} and {receiver:?}", side.name());
    Ok(agent.0)
}

const ALPHA: &str = "instance=\"alpha-agent\"";
const BETA: &str = "instance=\"beta-receiver\"";

#[test]
fn prometheus_sees_what_is_the_case() -> Result<()> {
    let options = PairOptions::default()
        .metrics()
        .sync()
        .set("sync_timeout", "1s")
        .set("queue_size", "1MiB")
        .set("max_rate", "2MiB/s")
        .set_raw("objectives", "{ rpo = \"5s\" }")
        .volume("disk", SIZE);
    let mut pair = Pair::start(options)?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    let prometheus = Prometheus::start(&pair)?;
    let beside = |name: &str, labels: &str| format!("{name}{{{labels},group=\"orders\"}}");

    // Healthy.
    pair.write_blocks(Side::Alpha, "disk", 1, 0..16)?;
    prometheus.wait_is(&beside("afterimage_protection", &format!("{ALPHA},state=\"in_sync\"")), 1.0)?;
    prometheus.wait_is(&beside("afterimage_protection", &format!("{ALPHA},state=\"degraded\"")), 0.0)?;
    prometheus.wait_is(&beside("afterimage_level", &format!("{ALPHA},level=\"sync\"")), 1.0)?;
    prometheus.wait_is(&beside("afterimage_role", &format!("{ALPHA},role=\"primary\"")), 1.0)?;
    prometheus.wait_is(&beside("afterimage_role", &format!("{BETA},role=\"standby\"")), 1.0)?;
    prometheus.wait_is(&beside("afterimage_promotable", BETA), 1.0)?;
    prometheus.wait_is(&beside("afterimage_transport_lag_seconds", ALPHA), 0.0)?;
    prometheus.wait_is(&beside("afterimage_resync_remaining_bytes", ALPHA), 0.0)?;
    prometheus.wait_is(&beside("afterimage_apply_lag_seconds", BETA), 0.0)?;
    prometheus.wait_is(
        &beside("afterimage_client_written_bytes_total", &format!("{ALPHA},volume=\"disk\"")),
        65536.0,
    )?;
    prometheus.wait_is(&beside("afterimage_acknowledgement_seconds_count", ALPHA), 16.0)?;
    prometheus.wait_is(&beside("afterimage_durable_seconds_count", ALPHA), 16.0)?;
    prometheus.wait_is(&beside("afterimage_role_changes_total", BETA), 0.0)?;
    prometheus.wait_is("count(afterimage_build_info)", 4.0)?;
    // Nobody writes, and yet it moves on: by what each host says for itself.
    for instance in [ALPHA, BETA] {
        let exposed = format!("time() - {}", beside("afterimage_safe_until_timestamp_seconds", instance));
        sleep(Duration::from_secs(3));
        prometheus.wait(&exposed, |seconds| seconds.is_some_and(|seconds| seconds < 2.5))?;
    }
    for (side, path, code) in [
        (Side::Alpha, "/healthy", 200),
        (Side::Alpha, "/primary", 200),
        (Side::Alpha, "/standby", 503),
        (Side::Beta, "/healthy?group=orders", 200),
        (Side::Beta, "/primary/orders", 503),
        (Side::Beta, "/standby/orders", 200),
        (Side::Beta, "/standby/other", 404),
    ] {
        assert_eq!(health(&pair, side, path)?, code, "{path} of {}", side.name());
    }
    dashboard_can_be_asked(&prometheus)?;

    // The link is cut: once the queue has overflowed nobody knows the lag, and the exposure grows.
    pair.host_mut(Side::Beta).receiver.as_mut().context("beta's receiver runs")?.freeze()?;
    pair.wait_protection(Side::Alpha, "degraded", LIMIT)?;
    pair.fill(Side::Alpha, "disk", MISSED_BYTES, 2)?;
    prometheus.wait_is(&beside("afterimage_protection", &format!("{ALPHA},state=\"degraded\"")), 1.0)?;
    prometheus.wait_is(&beside("afterimage_peer_connected", ALPHA), 0.0)?;
    prometheus.wait_absent(&beside("afterimage_transport_lag_seconds", ALPHA))?;
    prometheus.wait_absent(&beside("afterimage_transport_lag_bytes", ALPHA))?;
    let exposed = format!("time() - {}", beside("afterimage_safe_until_timestamp_seconds", ALPHA));
    prometheus.wait(&exposed, |seconds| seconds > Some(5.0))?;
    prometheus.wait(&beside("afterimage_degraded_seconds_total", ALPHA), |seconds| seconds > Some(1.0))?;
    let dirty = MISSED_BYTES as f64;
    prometheus.wait(&beside("afterimage_dirty_bytes", ALPHA), |bytes| bytes >= Some(dirty))?;
    prometheus.wait_is(&format!("up{{{BETA}}}"), 0.0)?;
    let (code, why) = get(metrics(&pair, Side::Alpha, "agent")?, "/healthy")?;
    assert_eq!((code, why.contains("orders: no, degraded")), (503, true), "{why}");
    assert_eq!(get(metrics(&pair, Side::Alpha, "agent")?, "/primary")?.0, 200);

    // Catch-up.
    pair.host_mut(Side::Beta).receiver.as_mut().context("beta's receiver runs")?.thaw()?;
    prometheus.wait_is(&beside("afterimage_protection", &format!("{ALPHA},state=\"catching_up\"")), 1.0)?;
    let remaining = beside("afterimage_resync_remaining_bytes", ALPHA);
    prometheus.wait(&remaining, |bytes| bytes.is_some_and(|bytes| bytes > 0.0 && bytes < dirty))?;
    prometheus.wait_is(&beside("afterimage_peer_connected", ALPHA), 1.0)?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    prometheus.wait_is(&remaining, 0.0)?;
    prometheus.wait_is(&beside("afterimage_transport_lag_seconds", ALPHA), 0.0)?;
    prometheus.wait(&beside("afterimage_resync_read_bytes_total", ALPHA), |bytes| bytes >= Some(dirty))?;

    // Promoted.
    pair.host_mut(Side::Alpha).kill()?;
    pair.promote(Side::Beta)?;
    let beta = "instance=\"beta-agent\"";
    prometheus.wait_is(&beside("afterimage_role", &format!("{beta},role=\"primary\"")), 1.0)?;
    prometheus.wait_is(&beside("afterimage_serving", beta), 1.0)?;
    prometheus.wait_absent(&beside("afterimage_role", &format!("{BETA},role=\"standby\"")))?;
    prometheus.wait_is(&beside("afterimage_role_changes_total", BETA), 1.0)?;
    prometheus.wait_is(&beside("afterimage_events_total", &format!("{BETA},event=\"promoted\"")), 1.0)?;
    prometheus.wait_is(&format!("up{{{ALPHA}}}"), 0.0)?;
    assert_eq!(health(&pair, Side::Beta, "/primary")?, 200);
    assert_eq!(health(&pair, Side::Beta, "/healthy")?, 503);
    pair.check_disk()
}

/// Every query of the dashboard can be answered, with every variable set.
fn dashboard_can_be_asked(prometheus: &Prometheus) -> Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring/dashboard.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(page)?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let mut answered = 0;
    for target in targets {
        let query = target["expr"].as_str().context("no query")?;
        let query =
            query.replace("$instance", ".*").replace("$group", ".*").replace("$__rate_interval", "10s");
        answered += usize::from(!prometheus.query(&query)?.is_empty());
    }
    // Of a group in good order some have nothing to say, such as those of levels that are not reached.
    ensure!(answered > 30, "only {answered} queries of the dashboard have an answer");
    Ok(())
}
