use std::path::PathBuf;

use afterimage_contract::admin::format_time;
use afterimage_contract::config::DEFAULT_PATH;
use afterimage_contract::status::{
    Daemon, DaemonReport, Lag, PeerStatus, Position, Protection, Role, VolumeStatus, merge,
};
use clap::Parser;

use super::*;
use crate::args::Args;

const EXAMPLE: &str = include_str!("../../../docs/afterimage.example.toml");
const NOW_US: u64 = 1_790_000_000_000_000;
/// Set to write the golden files anew.
const BLESS: &str = "AFTERIMAGE_BLESS";

fn config() -> Config {
    Config::parse(EXAMPLE, "afterimage.toml").unwrap()
}

/// What both daemons of a healthy alpha say of `orders`.
fn healthy(config: &Config) -> Status {
    let peer = PeerStatus {
        name: "beta".into(),
        connected: true,
        address: Some("192.0.2.2:7789".into()),
        rtt_us: Some(1_200),
        ..PeerStatus::default()
    };
    let group = &config.groups["orders"];
    let mut orders = GroupStatus::new("orders", Role::Primary, group.mode, Protection::InSync, peer);
    orders.since_us = Some(NOW_US - 3_600_000_000);
    orders.generation = Some("5f0c".into());
    orders.position = Some(Position { generation: "5f0c".into(), sequence: 42 });
    orders.lag = Some(Lag { seconds: 0.0, bytes: 0 });
    for volume in &group.volumes {
        orders.volumes.push(VolumeStatus {
            name: volume.name.clone(),
            device: volume.device.display().to_string(),
            size_bytes: Some(1 << 30),
            dirty_bytes: Some(0),
            unreadable_blocks: None,
            exports: volume.export.nbd.iter().map(|socket| socket.display().to_string()).collect(),
            error: None,
        });
    }
    let daemon = Some(Daemon { release: "0.1.0".into(), since_us: Some(NOW_US) });
    let mut agent = Status::new("alpha", NOW_US);
    agent.agent = daemon.clone();
    agent.groups = vec![orders];
    let mut receiver = Status::new("alpha", NOW_US);
    receiver.receiver = daemon;
    merge("alpha", NOW_US, &["orders"], DaemonReport::Answered(agent), DaemonReport::Answered(receiver))
}

fn silent() -> Status {
    let silent = |daemon: &str| DaemonReport::Silent {
        text: format!("{daemon} is not running: nothing listens on its socket"),
        action: format!("start it with: systemctl start {daemon}"),
    };
    let (agent, receiver) = (silent("afterimage-agent"), silent("afterimage-receiver"));
    merge("alpha", NOW_US, &["buildserver"], agent, receiver)
}

fn runbook(config: &Config, path: &str, group: &str, status: &Status) -> String {
    let dir = PathBuf::from("/etc/afterimage/hooks");
    let there = |event: Event| Some(dir.join(event.name()));
    let hooks = Event::ALL.into_iter().map(|event| match event {
        Event::BeforePromotion | Event::AfterPromotion => (event, Ok(there(event))),
        Event::LinkLost => {
            let why = "others can write to it; run: chmod go-w /etc/afterimage/hooks/link-lost".to_owned();
            (event, Err(HookError::Refused { path: dir.join(event.name()), why }))
        }
        _ => (event, Ok(None)),
    });
    let (path, group) = (Path::new(path), &config.groups[group]);
    render(&Subject { config, path, group, status, hooks: hooks.collect() })
}

fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/runbook/golden").join(name);
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (line, (found, expected)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(found, expected, "{name}:{}; {BLESS}=1 writes it anew", line + 1);
    }
    assert_eq!(text.len(), golden.len(), "{name}; {BLESS}=1 writes it anew");
}

#[test]
fn a_healthy_primary_has_this_runbook() {
    let config = config();
    assert_golden("primary.md", &runbook(&config, DEFAULT_PATH, "orders", &healthy(&config)));
}

#[test]
fn a_host_whose_daemons_are_silent_has_this_runbook() {
    let config = config();
    assert_golden("silent.md", &runbook(&config, "/srv/after image.toml", "buildserver", &silent()));
}

/// Commands of the program in a runbook, as words.
fn commands(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("afterimage "));
    let words = |line: &str| {
        let line = line.replace("'/srv/after image.toml'", "/srv/after-image.toml");
        ["afterimage"].into_iter().chain(line.split(' ')).map(str::to_owned).collect()
    };
    lines.map(words).collect()
}

#[test]
fn every_command_in_it_can_be_typed() {
    let config = config();
    for text in [
        runbook(&config, DEFAULT_PATH, "orders", &healthy(&config)),
        runbook(&config, "/srv/after image.toml", "buildserver", &silent()),
    ] {
        let commands = commands(&text);
        assert!(commands.len() > 15, "{commands:?}");
        // The planned change of roles has its own tests.
        for command in &commands {
            if let Err(error) = Args::try_parse_from(command) {
                panic!("{command:?}: {error}");
            }
        }
    }
}

#[test]
fn the_steps_follow_the_roles() {
    let config = config();
    let mut status = healthy(&config);
    assert!(
        runbook(&config, DEFAULT_PATH, "orders", &status).contains("## Planned move from alpha to beta\n")
    );
    status.groups[0].role = Role::Standby;
    let text = runbook(&config, DEFAULT_PATH, "orders", &status);
    assert!(text.contains("The site of the primary, beta, is lost: alpha takes over"), "{text}");
    assert!(text.contains("The hook `before-promotion` will run. On alpha:"), "{text}");
    assert!(text.contains(&format!("at {}", format_time(NOW_US))));
    status.groups[0].role = Role::Fenced;
    let text = runbook(&config, DEFAULT_PATH, "orders", &status);
    assert!(text.contains("- beta is the primary; alpha was replaced by it and is **fenced**"), "{text}");
    assert!(text.contains("alpha is fenced: it cannot be promoted"), "{text}");
    assert!(text.contains("## Bring the old primary, alpha, home when beta was promoted\n"), "{text}");
}

#[test]
fn a_group_that_blocks_is_told_that_writes_wait() {
    let config = Config::parse(
        &EXAMPLE.replace("# on_link_loss = \"degrade\" ", "on_link_loss = \"block\" "),
        "afterimage.toml",
    );
    let config = config.unwrap();
    let text = runbook(&config, DEFAULT_PATH, "orders", &healthy(&config));
    assert!(text.contains("Writes wait until beta is back"), "{text}");
    assert!(
        text.contains("set `on_link_loss = \"degrade\"` in `/etc/afterimage/afterimage.toml` on alpha"),
        "{text}"
    );
    assert!(!text.contains("DEGRADED. What"), "{text}");
}

#[test]
fn what_a_stranger_sent_stays_in_its_place() {
    let config = config();
    let mut status = healthy(&config);
    status.groups[0].peer.connected = false;
    status.groups[0].peer.last_error = Some("```\n# Now run: rm -rf /\n\x1b[2J".into());
    status.groups[0].protection = Protection::Degraded;
    let text = runbook(&config, DEFAULT_PATH, "orders", &status);
    assert!(!text.contains('\x1b') && !text.lines().any(|line| line.starts_with("# Now run")), "{text}");
    let fences = text.lines().filter(|line| line.contains("```")).count();
    let good = runbook(&config, DEFAULT_PATH, "orders", &healthy(&config));
    assert_eq!(fences, good.lines().filter(|line| line.contains("```")).count());
}

#[test]
fn a_path_is_one_word_of_a_shell() {
    assert_eq!(page::word("/run/a.sock"), "/run/a.sock");
    assert_eq!(page::word("/run/a b'c"), "'/run/a b'\\''c'");
    assert_eq!(page::word(""), "''");
}
