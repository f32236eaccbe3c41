//! Starting and stopping the process of a service.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::LOG_DIR;
use super::unit::Unit;
use crate::real::process::POLL;
use crate::real::{Notified, find_program, run};

/// What is not durable: process ids and sockets.
const RUN_DIR: &str = "/run/systemd-stand-in";
/// How long a program that is no service may take.
const TOOL_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked whether a start goes on.
const GLANCE: Duration = Duration::from_millis(100);

/// What the file system looks like for a service. First the directories that are hidden, then `--`, then those that stay writable,
/// then `--` and the program.
const SANDBOX: &str = r#"
set -eu
strict=$1
shift
while [ "$1" != -- ]; do
    mount -t tmpfs -o "mode=$1" tmpfs "$2"
    shift 2
done
shift
while [ "$1" != -- ]; do
    mount --bind "$1" "$1"
    shift
done
shift
if [ "$strict" = yes ]; then
    mount -o remount,bind,ro /
    mount -o remount,bind,ro /run
fi
exec "$@"
"#;

/// The main process of a service, if it runs.
pub fn main_pid(unit: &Unit) -> Result<Option<Pid>> {
    let Ok(text) = fs::read_to_string(pid_file(unit)) else { return Ok(None) };
    let pid: i32 = text.trim().parse().context("read the number of the main process")?;
    // One that has ended and that nobody has waited for has no program any more.
    let runs = fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    Ok(Pid::from_raw(pid).filter(|_| runs))
}

/// Starts a service; returns once it says that it is ready.
pub fn start(unit: &Unit) -> Result<()> {
    if main_pid(unit)?.is_some() {
        return Ok(());
    }
    ensure!(unit.service("Type") == Some("notify"), "the stand-in starts services with Type=notify only");
    for dir in [RUN_DIR, LOG_DIR] {
        fs::create_dir_all(dir).with_context(|| format!("make {dir}"))?;
    }
    let socket = Path::new(RUN_DIR).join(format!("{}.notify", unit.name));
    let _ = fs::remove_file(&socket);
    let mut notified = Notified::listen(&socket)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).context("open the socket")?;
    let log = Path::new(LOG_DIR).join(&unit.name);
    let open = || File::options().create(true).append(true).open(&log).context("open the log");
    let mut command = prepared(unit, "ExecStart")?;
    command
        .env("NOTIFY_SOCKET", &socket)
        .stdin(Stdio::null())
        .stdout(open()?)
        .stderr(open()?)
        .process_group(0);
    let mut child = command.spawn().context("start it")?;
    fs::write(pid_file(unit), child.id().to_string()).context("note its number")?;
    let (limit, began) = (unit.seconds("TimeoutStartSec")?, Instant::now());
    while notified.again().wait_for(GLANCE, |said| said == "READY=1").is_err() {
        if let Some(status) = child.try_wait().context("look at it")? {
            let log = fs::read_to_string(&log).unwrap_or_default();
            bail!("it has ended ({status}) and was never ready; its log is\n{log}");
        }
        ensure!(began.elapsed() < limit, "it was not ready within {limit:?}");
    }
    Ok(())
}

/// Asks a service to end, and waits until it has.
pub fn stop(unit: &Unit) -> Result<()> {
    let Some(pid) = main_pid(unit)? else { return Ok(()) };
    let limit = unit.seconds("TimeoutStopSec")?;
    for signal in [Signal::TERM, Signal::KILL] {
        kill_process(pid, signal).context("end it")?;
        let began = Instant::now();
        while began.elapsed() < limit {
            if main_pid(unit)?.is_none() {
                return Ok(());
            }
            sleep(POLL);
        }
    }
    bail!("it does not end");
}

/// Runs what the unit says for a reload.
pub fn reload(unit: &Unit) -> Result<()> {
    ensure!(main_pid(unit)?.is_some(), "{} is not active", unit.name);
    run(&mut prepared(unit, "ExecReload")?, TOOL_LIMIT)?.success().map(drop)
}

/// Runs a program to its end.
pub fn tool(name: &str, args: &[&str]) -> Result<()> {
    run(Command::new(find_program(name)?).args(args), TOOL_LIMIT)?
        .success()
        .with_context(|| format!("run {name}"))
        .map(drop)
}

fn pid_file(unit: &Unit) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{}.pid", unit.name))
}

/// A program of a unit, as the user and in the file system that it says; its directories are made.
fn prepared(unit: &Unit, key: &str) -> Result<Command> {
    let program = unit.service(key).with_context(|| format!("{} has no {key}", unit.name))?;
    let user = unit.service("User").context("the stand-in starts nothing as root")?;
    let group = unit.service("Group").unwrap_or(user);
    let mut writable: Vec<String> = Vec::new();
    for (kind, below) in [("State", "/var/lib"), ("Runtime", "/run")] {
        let mode = unit.service(&format!("{kind}DirectoryMode")).unwrap_or("0755");
        for name in unit.words(&format!("{kind}Directory")) {
            let dir = format!("{below}/{name}");
            tool("install", &["-d", "-o", user, "-g", group, "-m", mode, &dir])?;
            writable.push(dir);
        }
    }
    writable.extend(unit.words("ReadWritePaths").into_iter().map(str::to_owned));

    let mut command = Command::new(find_program("unshare")?);
    command.args(["--mount", "sh", "-c", SANDBOX, "sh"]);
    command.arg(if unit.service("ProtectSystem") == Some("strict") { "yes" } else { "no" });
    if unit.says_yes("PrivateTmp") {
        command.args(["1777", "/tmp", "1777", "/var/tmp"]);
    }
    if unit.says_yes("ProtectHome") {
        command.args(["0", "/home", "0", "/root"]);
    }
    command.arg("--").args(writable).arg("--").arg(find_program("setpriv")?);
    command.args(["--reuid", user, "--regid", group]);
    match &unit.words("SupplementaryGroups")[..] {
        [] => command.arg("--clear-groups"),
        groups => command.args(["--groups", &groups.join(",")]),
    };
    if unit.says_yes("NoNewPrivileges") {
        command.arg("--no-new-privs");
    }
    if unit.words("CapabilityBoundingSet").is_empty() {
        command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
    }
    command.args([
        "sh",
        "-c",
        "umask \"$1\"; shift; exec \"$@\"",
        "sh",
        unit.service("UMask").unwrap_or("0022"),
    ]);
    command.args(program.split_whitespace()).current_dir("/").env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    for assignment in unit.words("Environment") {
        let (name, value) = assignment.split_once('=').context("Environment= assigns nothing")?;
        command.env(name, value);
    }
    Ok(command)
}
