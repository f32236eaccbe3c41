//! The daemons under a service manager: what they say to it when they start, run, read their configuration again and stop,
//! with clients that write all the time.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tests::real::{
    History, Notified, Pair, PairOptions, Scratch, Side, Writer, WriterOptions, check_prefix, ensure_same,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Pings come five times as often.
const WATCHDOG: Duration = Duration::from_secs(10);
const SIZE: u64 = 16 << 20;

/// Alpha's agent and beta's receiver under a service manager.
struct Managed {
    pair: Pair,
    agent: Notified,
    receiver: Notified,
    _sockets: Scratch,
}

impl Managed {
    fn start(options: PairOptions) -> Result<Self> {
        let sockets = Scratch::new(1 << 20)?;
        let agent = Notified::listen(&sockets.path().join("agent"))?;
        let receiver = Notified::listen(&sockets.path().join("receiver"))?;
        let mut pair = Pair::prepare(options)?;
        pair.join()?;
        pair.start_receiver_under(Side::Beta, &receiver, WATCHDOG)?;
        pair.start_agent(Side::Beta)?;
        pair.start_agent_under(Side::Alpha, &agent, WATCHDOG)?;
        Ok(Self { pair, agent, receiver, _sockets: sockets })
    }
}

fn says(wanted: &str) -> impl Fn(&str) -> bool {
    move |said| said == wanted
}

fn status_with(part: &str) -> impl Fn(&str) -> bool {
    move |said| said.strip_prefix("STATUS=").is_some_and(|status| status.contains(part))
}

#[test]
fn a_daemon_is_ready_says_how_it_is_and_pings() -> Result<()> {
    let mut managed = Managed::start(PairOptions::default().sync().volume("disk", SIZE))?;
    managed.agent.wait_for(LIMIT, says("READY=1"))?;
    managed.receiver.wait_for(LIMIT, says("READY=1"))?;
    managed.agent.again().wait_for(LIMIT, status_with("orders: primary, in sync"))?;
    managed.receiver.again().wait_for(LIMIT, status_with("orders: standby, async streaming"))?;
    for daemon in [&mut managed.agent, &mut managed.receiver] {
        for _ in 0..2 {
            daemon.wait_for(LIMIT, says("WATCHDOG=1"))?;
        }
    }
    // What is wrong is in the line, and the daemon is none the less alive.
    managed.pair.host_mut(Side::Beta).kill()?;
    managed.agent.wait_for(LIMIT, status_with("orders: primary, degraded"))?;
    managed.agent.wait_for(LIMIT, says("WATCHDOG=1"))?;
    Ok(())
}

#[test]
fn a_reload_applies_what_it_can_names_the_rest_and_no_client_notices() -> Result<()> {
    let Managed { mut pair, mut agent, mut receiver, _sockets } =
        Managed::start(PairOptions::default().sync().volume("disk", SIZE))?;
    agent.wait_for(LIMIT, status_with("in sync"))?;
    let writer = Writer::start(History::new(2), 1, &WriterOptions::default(), pair.connector(Side::Alpha));
    let more = |writer: &Writer, count: usize| {
        let before = writer.history().writes().iter().filter(|write| write.acked.is_some()).count();
        writer.wait_acknowledged(before + count, LIMIT).map_err(|error| anyhow!("{error}"))
    };
    more(&writer, 100)?;

    let keys = "ack = \"durable\"\nsync_timeout = \"7s\"\nobjectives = { rpo = \"3s\" }\nprimary";
    pair.host(Side::Alpha).reconfigure("primary", keys)?;
    let said = pair.command(Side::Alpha, &["config", "reload"])?.success()?;
    ensure!(
        said.contains(
            "afterimage-agent: in force now: group.orders.objectives.rpo, group.orders.sync_timeout\n"
        ),
        "{said}"
    );
    ensure!(said.contains("afterimage-agent: needs a restart: group.orders.ack\n"), "{said}");
    ensure!(said.contains("afterimage-receiver: nothing has changed\n"), "{said}");
    agent.wait_for(LIMIT, says("RELOADING=1"))?;
    agent.wait_for(LIMIT, |said| said.starts_with("MONOTONIC_USEC="))?;
    agent.wait_for(LIMIT, says("READY=1"))?;
    agent.wait_for(LIMIT, status_with("restart to apply group.orders.ack"))?;
    more(&writer, 100)?;

    // One that is not valid changes nothing, whoever asks.
    pair.host(Side::Alpha).reconfigure("sync_timeout", "sync_timout")?;
    let refused = pair.command(Side::Alpha, &["config", "reload", "agent"])?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(refused.stderr.contains("did you mean `sync_timeout`?"), "{refused:?}");
    pair.host_mut(Side::Alpha).agent.as_mut().context("alpha's agent runs")?.hang_up()?;
    agent.wait_for(LIMIT, says("RELOADING=1"))?;
    agent.wait_for(LIMIT, says("READY=1"))?;
    agent.wait_for(LIMIT, status_with("the configuration was not taken over"))?;
    more(&writer, 100)?;

    // The restart is not needed any more once the key is as it was.
    pair.host(Side::Alpha).reconfigure("sync_timout", "sync_timeout")?;
    pair.host(Side::Alpha).reconfigure("ack = \"durable\"\n", "")?;
    pair.host_mut(Side::Alpha).agent.as_mut().context("alpha's agent runs")?.hang_up()?;
    agent.wait_for(LIMIT, says("RELOADING=1"))?;
    let status = agent.wait_for(LIMIT, |said| said.starts_with("STATUS="))?;
    ensure!(!status.contains("restart") && !status.contains("taken over"), "{status}");

    pair.host(Side::Beta).reconfigure("[peer]", "[log]\nlevel = \"debug\"\n[hooks]\n[peer]")?;
    let said = pair.command(Side::Beta, &["config", "reload", "receiver", "--json"])?.success()?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(said["daemons"][0]["restart"] == serde_json::json!([]), "{said}");
    ensure!(said["daemons"][0]["applied"].to_string().contains("log.level"), "{said}");
    receiver.wait_for(LIMIT, says("RELOADING=1"))?;
    receiver.wait_for(LIMIT, says("READY=1"))?;
    more(&writer, 100)?;

    let (history, ends) = writer.stop();
    ensure!(ends.iter().all(Result::is_ok), "a client lost its connection: {ends:?}");
    pair.wait_caught_up(Side::Alpha, LIMIT)?;
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    check_prefix(&mut [&mut client], &history, &Default::default()).map_err(|error| anyhow!(error))?;
    pair.check_disk()
}

#[test]
fn a_stop_finishes_what_is_under_way_and_brings_it_to_the_standby() -> Result<()> {
    let Managed { mut pair, mut agent, mut receiver, _sockets } =
        Managed::start(PairOptions::default().volume("disk", SIZE))?;
    agent.wait_for(LIMIT, status_with("async streaming"))?;
    let options = WriterOptions { flush_chance: 0.0, fua_chance: 0.0, ..WriterOptions::default() };
    let writer = Writer::start(History::new(3), 1, &options, pair.connector(Side::Alpha));
    writer.wait_acknowledged(500, LIMIT).map_err(|error| anyhow!("{error}"))?;

    let mut stopped = pair.host_mut(Side::Alpha).agent.take().context("alpha's agent runs")?;
    stopped.terminate()?;
    agent.wait_for(LIMIT, says("STOPPING=1"))?;
    agent.wait_for(LIMIT, |said| said.starts_with("EXTEND_TIMEOUT_USEC="))?;
    let status = stopped.wait(LIMIT)?;
    ensure!(status.success(), "{status}\n{}", stopped.log_tail());
    ensure!(stopped.log_tail().contains("agent has stopped"), "{}", stopped.log_tail());
    let (history, _) = writer.stop();
    let acknowledged = history.writes().iter().filter(|write| write.acked.is_some()).count();
    ensure!(acknowledged >= 500, "{acknowledged}");

    // All of it, although nobody had asked for that: the group is asynchronous.
    let primary = fs::read(pair.host(Side::Alpha).volume("disk"))?;
    let mut standby = pair.host_mut(Side::Beta).receiver.take().context("beta's receiver runs")?;
    standby.terminate()?;
    receiver.wait_for(LIMIT, says("STOPPING=1"))?;
    let status = standby.wait(LIMIT)?;
    ensure!(status.success(), "{status}\n{}", standby.log_tail());
    pair.start_receiver(Side::Beta)?;
    pair.promote(Side::Beta)?;
    let promoted = pair.read_volume(Side::Beta, "disk")?;
    ensure_same("what the standby has", &primary, &promoted)?;
    pair.check_disk()
}

#[test]
fn what_root_writes_into_the_state_of_the_services_belongs_to_their_user() -> Result<()> {
    /// `nobody`, and not the user of this test.
    const USER: u32 = 65534;
    let mut pair = Pair::prepare(PairOptions::default().volume("disk", SIZE))?;
    let (dir, state) = (pair.host(Side::Alpha).dir.clone(), pair.host(Side::Alpha).state_dir());
    for dir in [dir.parent().context("it is in a directory")?, &dir] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    chown(&state, Some(USER), Some(USER)).context("this test has to be run as root")?;
    let said = pair.command(Side::Alpha, &["identity"])?.success()?;
    ensure!(said.starts_with("alpha  "), "{said}");
    let token = pair.command(Side::Alpha, &["pair", "--new"])?.success()?;
    ensure!(!token.trim().is_empty());
    let mut names = Vec::new();
    for entry in fs::read_dir(&state)? {
        let entry = entry?;
        ensure!(entry.metadata()?.uid() == USER, "{:?} is another's", entry.path());
        names.push(entry.file_name());
    }
    ensure!(names.len() >= 2, "{names:?}");
    pair.host_mut(Side::Alpha).kill()
}

#[test]
fn a_daemon_that_is_started_wrongly_says_so_and_is_not_to_be_started_again() -> Result<()> {
    let pair = Pair::prepare(PairOptions::default().volume("disk", SIZE))?;
    pair.host(Side::Alpha).reconfigure("primary", "primry")?;
    let config = pair.host(Side::Alpha).config();
    for daemon in ["afterimage-agent", "afterimage-receiver"] {
        let mut command = std::process::Command::new(tests::real::product_program(daemon)?);
        let done = tests::real::run(command.arg("--config").arg(&config), LIMIT)?;
        ensure!(done.status.code() == Some(2), "{done:?}");
        ensure!(done.stderr.contains("did you mean `primary`?"), "{done:?}");
        ensure!(done.stderr.contains("orders.primry"), "{done:?}");
    }
    Ok(())
}
