//! The examples in `docs/hooks`, run with stubs for the commands that they call.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// Notes how it was called and what it was given.
const STUB: &str = "#!/bin/sh\n{ echo \"$(basename \"$0\") $*\"; [ -t 0 ] || cat; } >>\"$LOG\"\n";

/// A machine whose commands are stubs.
struct Machine {
    dir: TempDir,
}

impl Machine {
    fn new(commands: &[&str]) -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        commands.iter().for_each(|command| machine.put(command, STUB));
        machine
    }

    /// By a process of its own: a file that this one has open to write cannot be run by another thread's child.
    fn put(&self, command: &str, text: &str) {
        let script = "cat >\"$0\" && chmod 755 \"$0\"";
        let mut sh = Command::new("sh");
        sh.args(["-c", script]).arg(self.dir.path().join(command)).stdin(Stdio::piped());
        let mut sh = sh.spawn().unwrap();
        sh.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(sh.wait().unwrap().success());
    }

    /// Runs an example and returns how it ended and what the stubs have noted.
    fn run(&self, example: &str, facts: &[(&str, &str)]) -> (Output, String) {
        let log = self.dir.path().join("log");
        let _ = std::fs::remove_file(&log);
        let path = format!("{}:/usr/bin:/bin", self.dir.path().display());
        let mut command = Command::new(examples().join(example));
        command.env_clear().env("PATH", path).env("LOG", &log).stdin(Stdio::null());
        for name in
            ["GENERATION", "SEQUENCE", "PROTECTION", "LAG_SECONDS", "RPO_SECONDS", "EXPORTS", "REASON"]
        {
            command.env(format!("AFTERIMAGE_{name}"), "");
        }
        for (name, value) in [("GROUP", "orders"), ("NODE", "alpha"), ("PEER", "beta"), ("TIME", "now")] {
            command.env(format!("AFTERIMAGE_{name}"), value);
        }
        command.envs(facts.iter().map(|(name, value)| (format!("AFTERIMAGE_{name}"), value)));
        (command.output().unwrap(), std::fs::read_to_string(log).unwrap_or_default())
    }

    /// As [`Machine::run`]; it has to succeed.
    fn done(&self, example: &str, facts: &[(&str, &str)]) -> String {
        let (output, log) = self.run(example, facts);
        assert!(output.status.success(), "{example}: {output:?}");
        log
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/hooks")
}

const PROMOTED: [(&str, &str); 3] =
    [("EVENT", "after-promotion"), ("ROLE", "primary"), ("EXPORTS", "/run/afterimage/pgdata.sock")];
const DEMOTED: [(&str, &str); 2] = [("EVENT", "after-demotion"), ("ROLE", "fenced")];

#[test]
fn the_name_points_to_the_new_primary_and_only_there() {
    let machine = Machine::new(&["nsupdate"]);
    let log = machine.done("dns-update", &PROMOTED);
    assert_eq!(
        log,
        "nsupdate -k /etc/afterimage/dns.key\nserver ns1.example.net\nupdate delete orders.example.net. A\n\
         update add orders.example.net. 30 A 192.0.2.10\nsend\n"
    );
    assert_eq!(machine.done("dns-update", &[("EVENT", "after-switchover"), ("ROLE", "standby")]), "");
    let other: Vec<_> = PROMOTED.into_iter().chain([("GROUP", "bills")]).collect();
    assert_eq!(machine.done("dns-update", &other), "");
    machine.put("nsupdate", "#!/bin/sh\nexit 2\n");
    assert_eq!(machine.run("dns-update", &PROMOTED).0.status.code(), Some(2));
}

#[test]
fn the_address_is_where_the_primary_is() {
    let machine = Machine::new(&["ip", "arping"]);
    assert_eq!(
        machine.done("virtual-address", &PROMOTED),
        "ip address replace 192.0.2.100/24 dev eth0\narping -q -U -c 3 -I eth0 192.0.2.100\n"
    );
    // It has it, or has not.
    let list = "echo '2: eth0    inet 192.0.2.100/24 scope global eth0'";
    machine.put("ip", &format!("{STUB}[ \"$1\" != -o ] || {list}\n"));
    let log = machine.done("virtual-address", &DEMOTED);
    assert!(log.ends_with("ip address del 192.0.2.100/24 dev eth0\n"), "{log}");
    machine.put("ip", STUB);
    assert_eq!(machine.done("virtual-address", &DEMOTED), "ip -o address show dev eth0\n");
}

#[test]
fn units_start_in_order_and_stop_in_reverse() {
    let machine = Machine::new(&["systemctl"]);
    let (mount, database) = ("srv-orders.mount", "postgresql.service");
    let started = format!("systemctl start {mount}\nsystemctl start {database}\n");
    let stopped = format!("systemctl stop {database}\nsystemctl stop {mount}\n");
    assert_eq!(machine.done("systemd-units", &PROMOTED), started);
    assert_eq!(machine.done("systemd-units", &DEMOTED), stopped);
    assert_eq!(
        machine.done("systemd-units", &[("EVENT", "before-switchover"), ("ROLE", "primary")]),
        stopped
    );
    assert_eq!(machine.done("systemd-units", &[("EVENT", "after-switchover"), ("ROLE", "standby")]), stopped);

    let (output, log) = machine.run("systemd-units", &[("EVENT", "after-promotion"), ("ROLE", "primary")]);
    assert!(!output.status.success() && log.is_empty(), "started without a volume: {log}");
    let (output, log) = machine.run("systemd-units", &[("EVENT", "link-lost"), ("ROLE", "primary")]);
    assert!(!output.status.success() && log.is_empty(), "{log}");
    // One that does not start ends it.
    machine.put("systemctl", "#!/bin/sh\necho \"$2\" >>\"$LOG\"\nexit 1\n");
    let (output, log) = machine.run("systemd-units", &PROMOTED);
    assert_eq!((output.status.code(), log), (Some(1), format!("{mount}\n")));
}

#[test]
fn the_webhook_posts_json_whatever_the_reason_says() {
    let machine = Machine::new(&["curl"]);
    let reason = r#"beta said "no" \ and left"#;
    let facts = [("EVENT", "protection-lost"), ("ROLE", "primary"), ("SEQUENCE", "42"), ("REASON", reason)];
    let log = machine.done("webhook", &facts);
    let (call, body) = log.split_once('\n').unwrap();
    assert!(call.starts_with("curl --fail ") && call.ends_with(" https://example.net/afterimage"), "{call}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["event"], "protection-lost");
    assert_eq!(body["sequence"], 42);
    assert_eq!(body["lag_seconds"], Value::Null);
    assert_eq!(body["reason"], reason);
}

#[test]
fn every_example_can_be_run_and_stops_at_the_first_error() {
    let page = std::fs::read_to_string(examples().with_extension("md")).unwrap();
    let mut found = 0;
    for entry in std::fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("#!/bin/sh\n#") && text.contains("\nset -eu\n"), "{name}");
        assert!(text.contains("install -o root -m 755 "), "{name} does not say how to install it");
        assert!(page.contains(&format!("(hooks/{name})")), "{name} is not in docs/hooks.md");
        found += 1;
    }
    assert_eq!(found, 4);
}
