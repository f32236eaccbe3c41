//! The OCF resource agent on a real pair: the cluster is played by the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tests::real::{Finished, Pair, PairOptions, Side, find_program, product_program, run};

const LIMIT: Duration = Duration::from_secs(60);
/// ocf-tester starts, promotes and demotes over and over.
const TESTER_LIMIT: Duration = Duration::from_secs(300);
const SIZE: u64 = 16 << 20;
const SUCCESS: i32 = 0;
const GENERIC: i32 = 1;
const UNIMPLEMENTED: i32 = 3;
const NOT_INSTALLED: i32 = 5;
const NOT_CONFIGURED: i32 = 6;
const NOT_RUNNING: i32 = 7;
const PROMOTED: i32 = 8;
/// Where the resource agents' package keeps the grammar of their metadata.
const DTD: &str = "/usr/share/resource-agents/ra-api-1.dtd";

/// What starts and stops the daemons of a host here, in the place of systemd. Two arguments: the action and a
/// directory.
const DAEMONS: &str = r#"#!/bin/sh
set -u
for name in receiver agent; do
    pid=$(cat "$2/$name.pid" 2>/dev/null || echo none)
    case $1 in
    start)
        [ -e "/proc/$pid/exe" ] && continue
        "$BIN_DIR/afterimage-$name" --config "$2/afterimage.toml" </dev/null >>"$2/$name.log" 2>&1 &
        echo $! >"$2/$name.pid"
        ;;
    stop | kill)
        [ "$pid" = none ] && continue
        if [ "$1" = kill ]; then kill -KILL "$pid"; else kill -TERM "$pid"; fi 2>/dev/null
        # A process that nobody waited for keeps its number, and has no program any more.
        while [ -n "$(readlink "/proc/$pid/exe")" ]; do sleep 0.05; done
        rm -f "$2/$name.pid"
        ;;
    esac
done
"#;
/// In the place of the cluster's own: keeps its last arguments.
const CRM_MASTER: &str = "#!/bin/sh\necho \"$@\" >\"$HA_RSCTMP/score\"\n";

fn agent() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/ocf/afterimage")
}

/// A pair whose daemons are the resource agent's to start and stop.
struct Cluster {
    pair: Pair,
}

impl Cluster {
    fn new() -> Result<Self> {
        let options = PairOptions::default().sync().volume("disk", SIZE).set("history", "0s");
        let mut pair = Pair::prepare(options)?;
        pair.join()?;
        pair.host_mut(Side::Alpha).kill()?;
        for side in Side::BOTH {
            let dir = pair.host(side).dir.join("cluster");
            fs::create_dir(&dir)?;
            for (name, script) in [("daemons", DAEMONS), ("crm_master", CRM_MASTER)] {
                fs::write(dir.join(name), script)?;
                fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755))?;
            }
        }
        Ok(Self { pair })
    }

    fn daemons(&self, side: Side, action: &str) -> String {
        let dir = &self.pair.host(side).dir;
        format!("'{}' {action} '{}'", dir.join("cluster/daemons").display(), dir.display())
    }

    /// What the cluster gives the agent with every action.
    fn environment(&self, side: Side) -> Result<Vec<(String, String)>> {
        let host = self.pair.host(side);
        let cluster = host.dir.join("cluster").display().to_string();
        let binary = product_program("afterimage")?;
        let bin_dir = binary.parent().context("programs are in a directory")?;
        let path = std::env::var("PATH").context("there is a PATH")?;
        let pairs = [
            ("OCF_RESOURCE_INSTANCE", "orders".to_owned()),
            ("OCF_RESKEY_group", "orders".to_owned()),
            ("OCF_RESKEY_config", host.config().display().to_string()),
            ("OCF_RESKEY_binary", binary.display().to_string()),
            ("OCF_RESKEY_start_daemons", self.daemons(side, "start")),
            ("OCF_RESKEY_stop_daemons", self.daemons(side, "stop")),
            ("OCF_RESKEY_CRM_meta_timeout", "30000".to_owned()),
            ("OCF_RESKEY_CRM_meta_interval", "10000".to_owned()),
            ("HA_RSCTMP", cluster.clone()),
            ("BIN_DIR", bin_dir.display().to_string()),
            ("PATH", format!("{cluster}:{path}")),
        ];
        Ok(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn act_with(&self, side: Side, action: &str, changes: &[(&str, &str)]) -> Result<Finished> {
        let mut command = Command::new(agent());
        command.arg(action).envs(self.environment(side)?).envs(changes.iter().copied());
        run(&mut command, LIMIT)
    }

    /// Fails unless an action ends with `code`.
    fn act(&self, side: Side, action: &str, code: i32) -> Result<()> {
        self.expect(side, action, &[], code)
    }

    fn probe(&self, side: Side, code: i32) -> Result<()> {
        self.expect(side, "monitor", &[("OCF_RESKEY_CRM_meta_interval", "0")], code)
    }

    fn expect(&self, side: Side, action: &str, changes: &[(&str, &str)], code: i32) -> Result<()> {
        let done = self.act_with(side, action, changes)?;
        ensure!(done.status.code() == Some(code), "{action} on {side:?}, {code} was expected: {done:?}");
        Ok(())
    }

    /// The last that the cluster was told of a host's fitness.
    fn score(&self, side: Side) -> Result<String> {
        let path = self.pair.host(side).dir.join("cluster/score");
        Ok(fs::read_to_string(path)?.trim().to_owned())
    }

    /// The end of a host.
    fn kill(&self, side: Side) -> Result<()> {
        let mut command = Command::new("sh");
        run(command.arg("-c").arg(self.daemons(side, "kill")), LIMIT)?.success().map(drop)
    }

    /// Both started, alpha promoted and its standby in sync.
    fn up(&self) -> Result<()> {
        self.act(Side::Beta, "start", SUCCESS)?;
        self.act(Side::Alpha, "start", SUCCESS)?;
        self.act(Side::Alpha, "promote", SUCCESS)?;
        self.pair.wait_protection(Side::Alpha, "in_sync", LIMIT).map(drop)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for side in Side::BOTH {
            // There is nobody to tell.
            let _ = self.kill(side);
        }
    }
}

#[test]
fn the_metadata_is_valid() -> Result<()> {
    let printed = run(Command::new(agent()).arg("meta-data").env_clear(), LIMIT)?.success()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("metadata.xml");
    fs::write(&file, &printed)?;
    let mut lint = Command::new(find_program("xmllint")?);
    lint.args(["--noout", "--nonet"]);
    if Path::new(DTD).exists() {
        lint.args(["--dtdvalid", DTD]);
    }
    run(lint.arg(&file), LIMIT)?.success()?;
    for action in ["start", "stop", "promote", "demote", "monitor", "notify", "validate-all", "meta-data"] {
        ensure!(printed.contains(&format!("<action name=\"{action}\"")), "{action}");
    }
    Ok(())
}

#[test]
fn wrong_parameters_have_their_codes() -> Result<()> {
    let cluster = Cluster::new()?;
    let expect = |action, name, value, code| cluster.expect(Side::Beta, action, &[(name, value)], code);
    cluster.act(Side::Beta, "validate-all", SUCCESS)?;
    cluster.act(Side::Beta, "dance", UNIMPLEMENTED)?;
    for group in ["", "others", "../orders"] {
        expect("validate-all", "OCF_RESKEY_group", group, NOT_CONFIGURED)?;
        expect("start", "OCF_RESKEY_group", group, NOT_CONFIGURED)?;
    }
    for parameter in ["OCF_RESKEY_binary", "OCF_RESKEY_config"] {
        expect("validate-all", parameter, "/nowhere/afterimage", NOT_INSTALLED)?;
        expect("monitor", parameter, "/nowhere/afterimage", NOT_INSTALLED)?;
        let probe = [(parameter, "/nowhere/afterimage"), ("OCF_RESKEY_CRM_meta_interval", "0")];
        cluster.expect(Side::Beta, "monitor", &probe, NOT_RUNNING)?;
    }
    Ok(())
}

#[test]
fn a_group_goes_through_its_life_in_a_cluster() -> Result<()> {
    let cluster = Cluster::new()?;
    let pair = &cluster.pair;
    for side in Side::BOTH {
        cluster.act(side, "monitor", NOT_RUNNING)?;
        cluster.probe(side, NOT_RUNNING)?;
        cluster.act(side, "stop", SUCCESS)?;
    }
    cluster.act(Side::Beta, "start", SUCCESS)?;
    cluster.act(Side::Alpha, "start", SUCCESS)?;
    // It serves, and the cluster has not promoted it yet.
    cluster.act(Side::Alpha, "monitor", SUCCESS)?;
    ensure!(cluster.score(Side::Alpha)?.ends_with("-v 1000"), "{}", cluster.score(Side::Alpha)?);
    cluster.act(Side::Alpha, "promote", SUCCESS)?;
    cluster.act(Side::Alpha, "monitor", PROMOTED)?;
    cluster.act(Side::Beta, "monitor", SUCCESS)?;
    cluster.act(Side::Beta, "notify", SUCCESS)?;
    pair.wait_protection(Side::Alpha, "in_sync", LIMIT)?;
    cluster.probe(Side::Beta, SUCCESS)?;
    ensure!(cluster.score(Side::Beta)?.ends_with("-v 100"), "{}", cluster.score(Side::Beta)?);
    let mut client = pair.connect(Side::Alpha, "disk", LIMIT)?;
    client.write(0, &[7; 4096])?;
    client.disconnect().context("end the connection")?;

    // The primary is lost.
    cluster.kill(Side::Alpha)?;
    cluster.act(Side::Alpha, "monitor", NOT_RUNNING)?;
    pair.wait_protection(Side::Beta, "disconnected", LIMIT)?;
    cluster.act(Side::Beta, "monitor", SUCCESS)?;
    ensure!(cluster.score(Side::Beta)?.ends_with("-v 5"), "{}", cluster.score(Side::Beta)?);
    cluster.act(Side::Beta, "promote", SUCCESS)?;
    cluster.act(Side::Beta, "monitor", PROMOTED)?;
    cluster.act(Side::Beta, "promote", SUCCESS)?;
    ensure!(pair.read_volume(Side::Beta, "disk")?[..4096] == [7; 4096]);
    // Nobody could take over.
    let hurry = [("OCF_RESKEY_CRM_meta_timeout", "10000")];
    cluster.expect(Side::Beta, "demote", &hurry, GENERIC)?;
    cluster.act(Side::Beta, "monitor", PROMOTED)?;

    // The old primary is back, and fenced: it counts as demoted, and cannot be promoted.
    cluster.act(Side::Alpha, "start", SUCCESS)?;
    pair.wait_protection(Side::Alpha, "fenced", LIMIT)?;
    cluster.act(Side::Alpha, "demote", SUCCESS)?;
    cluster.act(Side::Alpha, "monitor", SUCCESS)?;
    ensure!(cluster.score(Side::Alpha)?.ends_with("-D"), "{}", cluster.score(Side::Alpha)?);
    cluster.act(Side::Alpha, "promote", GENERIC)?;
    pair.command(Side::Alpha, &["reinstate", "orders"])?.success()?;

    // Moved home: the demotion waits until the other one can take over.
    cluster.act(Side::Beta, "demote", SUCCESS)?;
    cluster.act(Side::Beta, "monitor", SUCCESS)?;
    cluster.act(Side::Alpha, "promote", SUCCESS)?;
    cluster.act(Side::Alpha, "monitor", PROMOTED)?;
    ensure!(pair.read_volume(Side::Alpha, "disk")?[..4096] == [7; 4096]);
    for side in [Side::Beta, Side::Alpha] {
        cluster.act(side, "stop", SUCCESS)?;
        cluster.act(side, "monitor", NOT_RUNNING)?;
        cluster.act(side, "stop", SUCCESS)?;
    }
    Ok(())
}

#[test]
fn a_cluster_that_forgot_everything_finds_what_is_served() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.up()?;
    let others = [("OCF_RESKEY_start_daemons", "none"), ("OCF_RESKEY_stop_daemons", "none")];
    let probe = [others[0], others[1], ("OCF_RESKEY_CRM_meta_interval", "0")];
    // Somebody else's daemons: a stop leaves them, and the one that serves cannot be stopped.
    cluster.expect(Side::Alpha, "stop", &others, GENERIC)?;
    cluster.expect(Side::Beta, "stop", &others, SUCCESS)?;
    cluster.expect(Side::Beta, "monitor", &others, NOT_RUNNING)?;
    cluster.act(Side::Beta, "monitor", SUCCESS)?;
    for name in ["started", "promoted"] {
        fs::remove_file(
            cluster.pair.host(Side::Alpha).dir.join(format!("cluster/afterimage-orders.{name}")),
        )?;
    }
    cluster.expect(Side::Alpha, "monitor", &probe, PROMOTED)?;
    cluster.expect(Side::Alpha, "monitor", &others, PROMOTED)?;
    cluster.expect(Side::Beta, "monitor", &probe, NOT_RUNNING)
}

#[test]
fn ocf_tester_has_no_complaint() -> Result<()> {
    let tester = find_program("ocf-tester")?;
    let cluster = Cluster::new()?;
    cluster.up()?;
    let over = AtomicBool::new(false);
    let tested = std::thread::scope(|scope| {
        // The tester looks after beta alone. Alpha is brought home whenever beta was promoted.
        scope.spawn(|| {
            let began = Instant::now();
            while !over.load(Ordering::Relaxed) && began.elapsed() < TESTER_LIMIT {
                // Refused unless it is fenced.
                let _ = cluster.pair.command(Side::Alpha, &["reinstate", "orders"]);
                sleep(Duration::from_millis(200));
            }
        });
        let environment = cluster.environment(Side::Beta);
        let tested = environment.and_then(|mut environment| {
            // It promotes beta beside alpha, as no cluster does.
            environment.push(("OCF_RESKEY_force".to_owned(), "true".to_owned()));
            let mut command = Command::new(tester);
            command.args(["-n", "orders"]).envs(environment).arg(agent());
            run(&mut command, TESTER_LIMIT)
        });
        over.store(true, Ordering::Relaxed);
        tested
    })?;
    let text = format!("{}{}", tested.stdout, tested.stderr);
    println!("{text}");
    ensure!(tested.status.success(), "{text}");
    ensure!(text.contains("passed all tests"), "{}", anyhow!(text));
    Ok(())
}
