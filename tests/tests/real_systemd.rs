//! The systemd units under a real systemd: two hosts that boot, each with what `systemd/install` put there and nothing else.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::real::nbd::Client;
use tests::real::wire::address;
use tests::real::{
    Beneath, Container, Loop, Scratch, Side, Wire, ensure_same, filler, product_program, read_image,
};

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Of each volume.
const SIZE: u64 = 16 << 20;
/// The programs, twice, with what a debugger needs.
const DISK: u64 = 2 << 30;
const AGENT: &str = "afterimage-agent.service";
const RECEIVER: &str = "afterimage-receiver.service";
const DAEMONS: [&str; 2] = [AGENT, RECEIVER];
const CONFIG: &str = "/etc/afterimage/afterimage.toml";
/// Where the image file is: nowhere that the units know of.
const IMAGES: &str = "/srv/images";
const VOLUMES: [&str; 2] = ["image", "disk"];

/// Two hosts with the product installed, paired, and the services enabled.
struct Site {
    // Before what they use.
    hosts: [Container; 2],
    wire: Wire,
    disks: [Loop; 2],
    scratch: Scratch,
}

impl Site {
    /// Does on both hosts what docs/services.md says, up to the first time that the group is in sync.
    fn start() -> Result<Self> {
        let scratch = Scratch::new(DISK)?;
        let disk = |side: Side| -> Result<Loop> {
            let file = scratch.path().join(format!("{}.disk", side.name()));
            File::create(&file)?.set_len(SIZE)?;
            Loop::over(&file)
        };
        let disks = [disk(Side::Alpha)?, disk(Side::Beta)?];
        let wire = Wire::lay(scratch.path())?;
        let boot = |side: Side| boot(&scratch, side, &wire, &disks[side as usize]);
        let hosts = [boot(Side::Alpha)?, boot(Side::Beta)?];
        let site = Self { hosts, wire, disks, scratch };
        for side in Side::BOTH {
            site.install(side)?;
        }
        let [alpha, beta] = &site.hosts;
        let token = alpha.ask(&["afterimage", "pair", "--new"])?;
        alpha.ask(&["systemctl", "enable", "--now", RECEIVER, AGENT])?;
        let token = token.lines().map(str::trim).rfind(|line| !line.is_empty()).context("a token")?;
        beta.ask(&["afterimage", "pair", token])?;
        beta.ask(&["systemctl", "enable", "--now", RECEIVER, AGENT])?;
        site.wait_in_sync(Side::Alpha)?;
        Ok(site)
    }

    fn host(&self, side: Side) -> &Container {
        &self.hosts[side as usize]
    }

    /// Installs, and writes what an operator writes.
    fn install(&self, side: Side) -> Result<()> {
        let host = self.host(side);
        let programs = product_program("afterimage")?;
        let programs = programs.parent().context("it is in a directory")?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // What a host has of the source: what the script installs.
        for part in ["systemd", "systemd/ocf", "docs", "bin"] {
            fs::create_dir_all(host.path("/srv/source").join(part))?;
        }
        for part in ["systemd", "systemd/ocf"] {
            for entry in fs::read_dir(source.join(part))? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    fs::copy(entry.path(), host.path("/srv/source").join(part).join(entry.file_name()))?;
                }
            }
        }
        let example = "docs/afterimage.example.toml";
        fs::copy(source.join(example), host.path("/srv/source").join(example))?;
        for name in ["afterimage", "afterimage-agent", "afterimage-receiver"] {
            fs::copy(programs.join(name), host.path("/srv/source/bin").join(name))?;
        }
        let install = ["/srv/source/systemd/install", "--bin-dir", "/srv/source/bin"];
        let said = host.ask(&install)?;
        ensure!(said.contains(" 0 were up to date") && said.contains("systemctl enable --now"), "{said}");
        // Again, and it stays as it is: sysusers and tmpfiles, too.
        let said = host.ask(&install)?;
        ensure!(said.starts_with("installed 0 files, "), "{said}");
        fs::remove_dir_all(host.path("/srv/source"))?;

        let user = host.ask(&["id", "-u", "afterimage"])?;
        let images = host.path(IMAGES);
        fs::create_dir_all(&images)?;
        let image = images.join("image.raw");
        File::create(&image)?.set_len(SIZE)?;
        host.ask(&["chown", "-R", "afterimage:afterimage", IMAGES])?;
        ensure!(image.metadata()?.uid().to_string() == user.trim(), "the image is not {user}'s");
        host.write(CONFIG, &self.configuration(side))?;
        let drop_in = format!("[Service]\nReadWritePaths={IMAGES}\n");
        let said = host.run(&["afterimage", "config", "check"])?;
        ensure!(format!("{said:?}").contains(&format!("ReadWritePaths={IMAGES}")), "{said:?}");
        for daemon in DAEMONS {
            self.drop_in(side, daemon, "images", &drop_in)?;
        }
        Ok(())
    }

    /// What `systemctl edit` does.
    fn drop_in(&self, side: Side, unit: &str, name: &str, text: &str) -> Result<()> {
        self.host(side).write(&format!("/etc/systemd/system/{unit}.d/{name}.conf"), text)?;
        self.host(side).ask(&["systemctl", "daemon-reload"]).map(drop)
    }

    fn configuration(&self, side: Side) -> String {
        let (name, peer) = (side.name(), side.peer().name());
        let address = address(side.peer());
        let device = self.disks[side as usize].path().display();
        format!(
            r#"[node]
name = "{name}"

[peer]
name = "{peer}"
address = "{address}:7789"

[group.orders]
primary = "alpha"
mode = "sync"
queue_size = "16MiB"
journal = {{ max_size = "32MiB" }}

[[group.orders.volume]]
name = "image"
device = "{IMAGES}/image.raw"
export = {{ nbd = "/run/afterimage/image.sock" }}

[[group.orders.volume]]
name = "disk"
device = "{device}"
export = {{ nbd = "/run/afterimage/disk.sock" }}
"#
        )
    }

    /// Waits until a host is the primary and its group in sync.
    fn wait_in_sync(&self, side: Side) -> Result<()> {
        self.wait_group(side, |group| group["role"] == "primary" && group["protection"] == "in_sync")
    }

    fn wait_group(&self, side: Side, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let holds = |printed: &str| {
            let status: Value = serde_json::from_str(printed).unwrap_or_default();
            wanted(&status["groups"][0])
        };
        self.host(side).wait_until(&["afterimage", "status", "--json"], holds).map(drop)
    }

    /// Fills both volumes with something that depends on `seed`.
    fn fill(&self, side: Side, seed: u64) -> Result<()> {
        for (number, volume) in VOLUMES.iter().enumerate() {
            let mut client = connect_to(self.host(side), volume)?;
            client.write(0, &filler(seed + number as u64, SIZE as usize))?;
            client.flush()?;
            client.disconnect()?;
        }
        Ok(())
    }

    /// Fails unless a host serves what [`Site::fill`] wrote.
    fn ensure_filled(&self, side: Side, seed: u64) -> Result<()> {
        ensure_filled(self.host(side), seed)
    }
}

fn ensure_filled(host: &Container, seed: u64) -> Result<()> {
    for (number, volume) in VOLUMES.iter().enumerate() {
        let served = read_image(&mut connect_to(host, volume)?)?;
        ensure_same(volume, &filler(seed + number as u64, SIZE as usize), &served)?;
    }
    Ok(())
}

/// Connects to a volume that a host serves, or will soon.
fn connect_to(host: &Container, volume: &str) -> Result<Client> {
    let socket = host.path(&format!("/run/afterimage/{volume}.sock"));
    let started = Instant::now();
    loop {
        match Client::connect_unix(&socket, volume) {
            Err(_) if started.elapsed() < LIMIT => sleep(POLL),
            client => return client.with_context(|| format!("connect to {volume}\n{}", host.journal())),
        }
    }
}

fn boot(scratch: &Scratch, side: Side, wire: &Wire, disk: &Loop) -> Result<Container> {
    let (root, devices) = (scratch.path().join(side.name()), [disk.path()]);
    let beneath = Beneath::Programs { devices: &devices };
    Container::boot(side.name(), &root, &wire.namespace(side), beneath)
}

/// A line of a process's `status` in `/proc`.
fn process_status(host: &Container, unit: &str, key: &str) -> Result<String> {
    let process = host.property(unit, "MainPID")?;
    let text = fs::read_to_string(host.path(&format!("/proc/{process}/status")))
        .context("read a process's status")?;
    let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(found.with_context(|| format!("no {key} in {text}"))?.trim().to_owned())
}

#[test]
fn the_services_work_within_their_sandbox() -> Result<()> {
    let site = Site::start()?;
    let alpha = site.host(Side::Alpha);
    let ids =
        |what: &str| -> Result<String> { Ok(alpha.ask(&["id", what, "afterimage"])?.trim().to_owned()) };
    let (user, group) = (ids("-u")?, ids("-g")?);

    // Ready, with a status line, and to be started at every boot.
    for (side, unit, line) in [
        (Side::Alpha, AGENT, "orders: primary, in sync"),
        (Side::Beta, RECEIVER, "orders: standby, "),
        (Side::Alpha, RECEIVER, ""),
        (Side::Beta, AGENT, ""),
    ] {
        let host = site.host(side);
        host.wait_property(unit, "StatusText", |text| text.contains(line))?;
        for (property, value) in [
            ("Type", "notify"),
            ("ActiveState", "active"),
            ("UnitFileState", "enabled"),
            ("WatchdogUSec", "30s"),
            ("NRestarts", "0"),
        ] {
            let found = host.property(unit, property)?;
            ensure!(found == value, "{unit} of {}: {property} is {found}", side.name());
        }
        ensure!(host.property(unit, "WatchdogTimestampMonotonic")? != "0", "no ping of {unit}");
        let shown = host.ask(&["systemctl", "status", "--no-pager", unit])?;
        ensure!(shown.contains("Active: active (running)") && shown.contains(line), "{shown}");
        // Nothing is left of root.
        for (key, value) in [
            ("CapEff", "0000000000000000"),
            ("CapBnd", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ] {
            let found = process_status(host, unit, key)?;
            ensure!(found == value, "{unit} of {}: {key} is {found}", side.name());
        }
        ensure!(process_status(host, unit, "Uid")?.split_whitespace().all(|id| id == user));
    }
    for (dir, mode) in [("/var/lib/afterimage", 0o700), ("/run/afterimage", 0o755)] {
        let found = fs::metadata(alpha.path(dir)).with_context(|| format!("look at {dir}"))?;
        ensure!(
            found.permissions().mode() & 0o7777 == mode,
            "{dir} has mode {:o}",
            found.permissions().mode()
        );
        ensure!(found.uid().to_string() == user && found.gid().to_string() == group, "{dir} is another's");
    }

    // Of devices, block devices only: what anybody may open otherwise is refused to what is in the service.
    let device = site.disks[0].path().display();
    let reach = |path: &str| {
        let open = format!("echo 0 >/sys/fs/cgroup/system.slice/{AGENT}/cgroup.procs && exec 3<{path}");
        alpha.run(&["sh", "-c", &open])
    };
    ensure!(reach(&device.to_string())?.status.success() && reach("/dev/null")?.status.success());
    alpha.ask(&["sh", "-c", "exec 3</dev/loop-control"])?;
    let refused = reach("/dev/loop-control")?;
    ensure!(refused.stderr.contains("Operation not permitted"), "{refused:?}");

    // A client needs the group of the services, and no more.
    let uri = "nbd+unix:///disk?socket=/run/afterimage/disk.sock";
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534"];
    let ask = |groups: &str| alpha.run(&[&nobody[..], &[groups, "nbdinfo", "--size", uri]].concat());
    let said = ask(&format!("--groups={group}"))?.success()?;
    ensure!(said.trim() == SIZE.to_string(), "{said}");
    let refused = ask("--clear-groups")?;
    ensure!(!refused.status.success() && refused.stderr.contains("Permission denied"), "{refused:?}");

    // What the loss of a host costs: nothing. Its end is that of its processes, all at once.
    site.fill(Side::Alpha, 1)?;
    let Site { hosts: [alpha, beta], wire: _wire, disks, scratch } = site;
    drop(alpha);
    let said = beta.ask(&["afterimage", "promote", "orders"])?;
    ensure!(!said.is_empty());
    ensure_filled(&beta, 1)?;
    beta.wait_property(AGENT, "StatusText", |text| text.contains("orders: primary"))?;
    drop((beta, disks));
    scratch.check()
}

#[test]
fn a_daemon_that_dies_or_hangs_is_started_again() -> Result<()> {
    let site = Site::start()?;
    site.fill(Side::Alpha, 2)?;
    for (side, unit) in [(Side::Alpha, AGENT), (Side::Beta, RECEIVER)] {
        let host = site.host(side);
        let kill = |signal: &str| host.ask(&["systemctl", "kill", "--kill-whom=main", signal, unit]);
        let restarted = |times: &str| -> Result<()> {
            host.wait_property(unit, "NRestarts", |count| count == times)?;
            host.wait_property(unit, "ActiveState", |state| state == "active")?;
            site.wait_in_sync(Side::Alpha)
        };
        kill("--signal=SIGKILL")?;
        restarted("1")?;
        // Sooner than after the unit's 30 s, so that the test is short.
        site.drop_in(side, unit, "watchdog", "[Service]\nWatchdogSec=2\n")?;
        host.ask(&["systemctl", "restart", unit])?;
        site.wait_in_sync(Side::Alpha)?;
        kill("--signal=SIGSTOP")?;
        restarted("1")?;
        let said = host.ask(&["journalctl", "--no-pager", "-u", unit])?;
        ensure!(said.contains("Watchdog timeout (limit 2s)!"), "{said}");
    }
    site.ensure_filled(Side::Alpha, 2)?;

    // One that is started wrongly is not.
    let beta = site.host(Side::Beta);
    beta.write(CONFIG, &site.configuration(Side::Beta).replace("primary =", "primry ="))?;
    let wrong = beta.run(&["systemctl", "restart", RECEIVER])?;
    ensure!(!wrong.status.success(), "{wrong:?}");
    ensure!(
        beta.property(RECEIVER, "ActiveState")? == "failed"
            && beta.property(RECEIVER, "ExecMainStatus")? == "2"
    );
    site.scratch.check()
}

#[test]
fn a_reload_a_stop_and_a_boot_do_what_is_written() -> Result<()> {
    let mut site = Site::start()?;
    let alpha = site.host(Side::Alpha);
    let keys = "sync_timeout = \"7s\"\nack = \"durable\"\nprimary =";
    let changed = site.configuration(Side::Alpha).replace("primary =", keys);
    alpha.write(CONFIG, &changed)?;
    alpha.ask(&["systemctl", "reload", AGENT])?;
    alpha.wait_property(AGENT, "StatusText", |text| text.contains("restart to apply group.orders.ack"))?;
    alpha.write(CONFIG, &changed.replace("sync_timeout", "sync_timout"))?;
    let refused = alpha.run(&["systemctl", "reload", AGENT])?;
    ensure!(!refused.status.success(), "{refused:?}");
    let said = alpha.ask(&["journalctl", "--no-pager", "--unit", AGENT])?;
    ensure!(said.contains("did you mean `sync_timeout`?"), "{said}");
    // Asked by the signal, the daemon reads the file itself.
    alpha.ask(&["systemctl", "kill", "--kill-whom=main", "--signal=SIGHUP", AGENT])?;
    alpha.wait_property(AGENT, "StatusText", |text| text.contains("the configuration was not taken over"))?;
    ensure!(alpha.property(AGENT, "ActiveState")? == "active");
    alpha.write(CONFIG, &site.configuration(Side::Alpha))?;
    alpha.ask(&["systemctl", "reload", AGENT])?;

    // The journal has the events by their ids and priorities.
    site.host(Side::Beta).ask(&["systemctl", "stop", RECEIVER])?;
    let find = |args: &[&str]| -> Result<Vec<Value>> {
        let words = [&["journalctl", "--no-pager", "--output", "json", "--unit", AGENT], args].concat();
        let printed = alpha.run(&words)?.stdout;
        printed.lines().map(|line| serde_json::from_str(line).context("read the journal")).collect()
    };
    let started = Instant::now();
    while find(&["-p", "warning", "-g", "event=\"link-down\""])?.is_empty() {
        ensure!(started.elapsed() < LIMIT, "{}", alpha.journal());
        sleep(POLL);
    }
    for (event, priority) in [("started", "6"), ("config-reloaded", "6"), ("link-down", "4")] {
        let pattern = format!("event=\"{event}\"");
        let found = find(&["-g", &pattern])?;
        let entry =
            found.first().with_context(|| format!("no {event} in the journal\n{}", alpha.journal()))?;
        ensure!(entry["PRIORITY"] == priority && entry["SYSLOG_IDENTIFIER"] == "afterimage-agent", "{entry}");
    }
    site.host(Side::Beta).ask(&["systemctl", "start", RECEIVER])?;
    site.wait_in_sync(Side::Alpha)?;

    // A host that is shut down stops its services in good order, and at its next boot they start by themselves.
    site.fill(Side::Alpha, 3)?;
    alpha.ask(&["systemctl", "stop", AGENT])?;
    let stopped = alpha.property(AGENT, "Result")?;
    ensure!(stopped == "success" && alpha.property(AGENT, "ExecMainStatus")? == "0", "{stopped}");
    ensure!(!find(&["-g", "event=\"stopped\""])?.is_empty(), "{}", alpha.journal());
    alpha.ask(&["systemctl", "start", AGENT])?;
    site.wait_in_sync(Side::Alpha)?;
    let Site { hosts: [alpha, beta], wire, disks, scratch } = site;
    alpha.power_off()?;
    let alpha = boot(&scratch, Side::Alpha, &wire, &disks[0])?;
    site = Site { hosts: [alpha, beta], wire, disks, scratch };
    site.wait_in_sync(Side::Alpha)?;
    site.ensure_filled(Side::Alpha, 3)?;
    let alpha = site.host(Side::Alpha);
    ensure!(fs::metadata(alpha.path("/run/afterimage"))?.permissions().mode() & 0o7777 == 0o755);

    // Once the old primary is switched off in good order, the standby has it all.
    site.host(Side::Alpha).ask(&["afterimage", "switchover", "orders"])?;
    site.wait_in_sync(Side::Beta)?;
    site.ensure_filled(Side::Beta, 3)?;
    site.scratch.check()
}

#[test]
fn verification_runs_by_its_timer() -> Result<()> {
    const TIMER: &str = "afterimage-verify@orders.timer";
    const SERVICE: &str = "afterimage-verify@orders.service";
    let site = Site::start()?;
    site.fill(Side::Alpha, 4)?;
    for side in Side::BOTH {
        let host = site.host(side);
        host.ask(&["systemctl", "enable", "--now", TIMER])?;
        ensure!(host.property(TIMER, "ActiveState")? == "active");
        ensure!(!host.property(TIMER, "NextElapseUSecRealtime")?.is_empty(), "it is never");
        // Now instead of within a week.
        let soon = "[Timer]\nOnCalendar=\nOnActiveSec=1ms\nRandomizedDelaySec=0\nAccuracySec=1ms\n";
        site.drop_in(side, TIMER, "soon", soon)?;
        host.ask(&["systemctl", "restart", TIMER])?;
        host.wait_property(SERVICE, "ExecMainExitTimestampMonotonic", |time| time != "0")?;
        // Of the host that is not the primary, it is no failure that it refuses.
        let (result, status) = (host.property(SERVICE, "Result")?, host.property(SERVICE, "ExecMainStatus")?);
        let expected = if side == Side::Alpha { "0" } else { "3" };
        ensure!(result == "success" && status == expected, "{result} {status}\n{}", host.journal());
    }
    site.scratch.check()
}
