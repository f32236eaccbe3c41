use std::path::Path;
use std::time::Duration;

use super::*;

const GOOD: &str = r#"[node]
name = "alpha"
state_dir = "/var/lib/afterimage"

[peer]
name = "beta"
address = "beta.example.net:7789"

[group.orders]
mode = "sync"
primary = "alpha"
journal = { max_size = "200GiB" }

[[group.orders.volume]]
name = "pgdata"
device = "/dev/vg0/pgdata"
export = { nbd = "/run/afterimage/pgdata.sock", attach = "/dev/nbd0" }
"#;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    Config::parse(text, "a.toml").map_err(|e| e.to_string().lines().map(str::to_owned).collect())
}

/// `GOOD` with one piece of text replaced, and the messages it must give.
fn assert_messages(from: &str, to: &str, messages: &[&str]) {
    assert!(GOOD.contains(from), "{from:?} is not in the good configuration");
    let found = parse(&GOOD.replacen(from, to, 1)).expect_err(&format!("accepted {to:?}"));
    assert_eq!(found, messages, "{from:?} -> {to:?}");
}

#[test]
fn a_short_file_gets_the_documented_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.warnings, vec![]);
    assert_eq!(config.node.listen, DEFAULT_LISTEN);
    assert_eq!((config.node.metrics, config.node.low_latency), (None, LowLatency::Auto));
    assert_eq!(config.agent_socket(), Path::new("/var/lib/afterimage/agent.sock"));
    let group = &config.groups["orders"];
    assert_eq!((group.mode, group.ack, group.on_link_loss), (Mode::Sync, Ack::Received, OnLinkLoss::Degrade));
    assert_eq!((group.sync_timeout, group.history), (Duration::from_secs(5), Duration::ZERO));
    assert_eq!(group.journal_path(), Path::new("/var/lib/afterimage/journal/orders"));
    assert_eq!((group.queue_size, group.catchup_window), (ByteSize::from_mib(64), ByteSize::from_mib(16)));
    assert_eq!((group.compression, group.compression_window), (Compression::Auto, ByteSize::from_mib(64)));
    assert_eq!((group.hot_extents, group.max_rate, group.first_sync), (1024, None, FirstSync::Copy));
    assert_eq!((group.verify.rate, group.background), (DEFAULT_VERIFY_RATE, Background::Balanced));
    assert!(group.starts_as_primary("alpha") && !group.starts_as_primary("beta"));
    let volume = group.volume("pgdata").unwrap();
    assert_eq!((volume.capture, volume.export.tcp), (Capture::Inline, None));
}

#[test]
fn metrics_take_two_ports() {
    let with = |address: &str| GOOD.replacen("[node]\n", &format!("[node]\nmetrics = \"{address}\"\n"), 1);
    let config = parse(&with("127.0.0.1:9789")).unwrap();
    assert_eq!(config.agent_metrics(), Some("127.0.0.1:9789".parse().unwrap()));
    assert_eq!(config.receiver_metrics(), Some("127.0.0.1:9790".parse().unwrap()));
    for port in [0, 65535] {
        let errors = parse(&with(&format!("127.0.0.1:{port}"))).unwrap_err();
        assert!(errors[0].contains("node.metrics: expected a port from 1 to 65534"), "{errors:?}");
    }
    let taken = with("[::1]:10808").replacen("attach = \"/dev/nbd0\"", "tcp = \"[::1]:10809\"", 1);
    let errors = parse(&taken).unwrap_err();
    assert!(errors[0].contains("\"[::1]:10809\" is already used by node.metrics"), "{errors:?}");
}

#[test]
fn hooks_are_run_only_where_they_are_asked_for() {
    assert_eq!(parse(GOOD).unwrap().hooks, None);
    let with = |section: &str| parse(&format!("{GOOD}{section}")).map(|config| config.hooks.unwrap());
    let default = Hooks {
        dir: "/etc/afterimage/hooks".into(),
        timeout: Duration::from_secs(30),
        before_promotion: OnFailure::Abort,
        before_switchover: OnFailure::Abort,
    };
    assert_eq!(with("[hooks]\n"), Ok(default.clone()));
    let all = "[hooks]\ndir = \"/srv/hooks/\"\ntimeout = \"2m\"\n\
        before_promotion.on_failure = \"continue\"\nbefore_switchover = { on_failure = \"abort\" }\n";
    let read = Hooks {
        dir: "/srv/hooks".into(),
        timeout: Duration::from_secs(120),
        before_promotion: OnFailure::Continue,
        ..default
    };
    assert_eq!(with(all), Ok(read));
    for (section, message) in [
        ("[hooks]\ntimout = \"5s\"\n", "19: hooks.timout: unknown key; did you mean `timeout`?"),
        ("[hooks]\ntimeout = \"3m\"\n", "19: hooks.timeout: 3m is too long; at most 2m"),
        (
            "[hooks]\ndir = \"hooks\"\n",
            "19: hooks.dir: expected an absolute path without \"..\", found \"hooks\"",
        ),
        (
            "[hooks]\nbefore_promotion = { on_failure = \"abrt\" }\n",
            "19: hooks.before_promotion.on_failure: unknown value \"abrt\"; did you mean \"abort\"?",
        ),
        (
            "[hooks]\nafter_promotion = { on_failure = \"abort\" }\n",
            "19: hooks.after_promotion: unknown key; did you mean `before_promotion`?",
        ),
        ("[hook]\n", "18: hook: unknown key; did you mean `hooks`?"),
    ] {
        assert_eq!(with(section), Err(vec![format!("a.toml:{message}")]));
    }
}

#[test]
fn every_key_is_read() {
    let more = r#"
[group.all]
mode = "sync"
ack = "durable"
on_link_loss = "block"
sync_timeout = "2s"
objectives = { rpo = "5s", rto = "1m" }
history = "24h"
journal = { dir = "/journals", max_size = 1_073_741_824 }
primary = "beta"
first_sync = "compare"
queue_size = "1GiB"
catchup_window = "64MiB"
hot_extents = 0x100
compression = "zstd"
compression_window = "32MiB"
max_rate = "100MiB/s"
background = "gentle"
verify = { rate = "10MiB/s" }
volume = [{ name = "v", device = "/v", capture = "inline", export = { tcp = "[::1]:10809", tcp_remote = false } }]
"#;
    let group = parse(&format!("{GOOD}{more}")).unwrap().groups.remove("all").unwrap();
    assert_eq!((group.ack, group.on_link_loss), (Ack::Durable, OnLinkLoss::Block));
    assert_eq!((group.sync_timeout, group.history), (Duration::from_secs(2), Duration::from_secs(86_400)));
    assert_eq!(group.objectives.rpo, Some(Duration::from_secs(5)));
    assert_eq!(group.objectives.rto, Some(Duration::from_secs(60)));
    assert_eq!(
        (group.journal.dir.as_path(), group.journal.max_size),
        (Path::new("/journals"), ByteSize::from_gib(1))
    );
    assert_eq!((group.first_sync, group.hot_extents), (FirstSync::Compare, 256));
    assert_eq!((group.compression, group.compression_window), (Compression::Zstd, ByteSize::from_mib(32)));
    assert_eq!(group.max_rate.unwrap().bytes_per_s(), 100 << 20);
    assert_eq!(group.background, Background::Gentle);
    assert_eq!(group.verify.rate.bytes_per_s(), 10 << 20);
    assert_eq!(group.volumes[0].export.tcp, Some("[::1]:10809".parse().unwrap()));
}

#[test]
fn each_mistake_has_its_message() {
    let table: &[(&str, &str, &str)] = &[
        // Keys.
        (
            "mode = \"sync\"",
            "mode = \"sync\"\nsync_timout = \"5s\"",
            "a.toml:11: group.orders.sync_timout: unknown key; did you mean `sync_timeout`?",
        ),
        (
            "[peer]",
            "[per]",
            "a.toml: `peer` is missing; add a [peer] section\na.toml:5: per: unknown key; did you mean `peer`?",
        ),
        (
            "name = \"pgdata\"",
            "name = \"pgdata\"\ncolour = 1",
            "a.toml:16: group.orders.volume[0].colour: unknown key; known here: name, device, capture, export",
        ),
        (
            "attach =",
            "atach =",
            "a.toml:17: group.orders.volume[0].export.atach: unknown key; did you mean `attach`?",
        ),
        (
            "max_size",
            "maxsize",
            "a.toml:12: group.orders.journal.maxsize: unknown key; did you mean `max_size`?",
        ),
        // What is missing.
        ("name = \"alpha\"\n", "", "a.toml:1: node: `name` is missing; add name = \"alpha\""),
        (
            "primary = \"alpha\"\n",
            "",
            "a.toml:9: group.orders: `primary` is missing; add primary = \"alpha\", the same on both hosts",
        ),
        (
            "device = \"/dev/vg0/pgdata\"\n",
            "",
            "a.toml:14: group.orders.volume[0]: `device` is missing; add device = \"/dev/vg0/pgdata\"",
        ),
        // Syntax.
        ("[node]", "[node", "a.toml:1: unclosed table, expected `]`"),
        ("primary = \"alpha\"", "mode = \"sync\"", "a.toml:11: duplicate key"),
        // Types and choices.
        (
            "mode = \"sync\"",
            "mode = 1",
            "a.toml:10: group.orders.mode: expected text in quotes, found a whole number",
        ),
        (
            "mode = \"sync\"",
            "mode = \"snyc\"",
            "a.toml:10: group.orders.mode: unknown value \"snyc\"; did you mean \"sync\"?",
        ),
        (
            "mode = \"sync\"",
            "mode = \"both\"",
            "a.toml:10: group.orders.mode: expected \"sync\" or \"async\", found \"both\"",
        ),
        (
            "journal = {",
            "journal = 5 #",
            "a.toml:12: group.orders.journal: expected a table, found a whole number",
        ),
        (
            "[[group.orders.volume]]",
            "[group.orders.volume]",
            "a.toml:14: group.orders.volume: expected [[group.orders.volume]]: a list of tables",
        ),
        (
            "attach = \"/dev/nbd0\"",
            "tcp_remote = 1",
            "a.toml:17: group.orders.volume[0].export.tcp_remote: expected true or false, found a whole number",
        ),
        // Names.
        (
            "name = \"pgdata\"",
            "name = \"PG data\"",
            "a.toml:15: group.orders.volume[0].name: \"PG data\" is not a name: 1 to 64 of a-z, 0-9, _ and -, the first a letter or a digit",
        ),
        (
            "name = \"beta\"",
            "name = \"alpha\"",
            "a.toml:6: peer.name: \"alpha\" is this node's own name; the peer is the other host",
        ),
        (
            "primary = \"alpha\"",
            "primary = \"alfa\"",
            "a.toml:11: group.orders.primary: expected \"alpha\" (this node) or \"beta\" (the peer), found \"alfa\"; did you mean \"alpha\"?",
        ),
        // Quantities.
        (
            "200GiB",
            "200GB",
            "a.toml:12: group.orders.journal.max_size: the unit `GB` is ambiguous; write \"200GiB\"",
        ),
        ("200GiB", "1MiB", "a.toml:12: group.orders.journal.max_size: 1MiB is too small; at least 16MiB"),
        (
            "mode =",
            "queue_size = \"9GiB\"\nmode =",
            "a.toml:10: group.orders.queue_size: 9GiB is too large; at most 8GiB",
        ),
        (
            "[peer]",
            "[log]\nlevel = \"inof\"\n[peer]",
            "a.toml:6: log.level: unknown level \"inof\"; did you mean \"info\"?",
        ),
        (
            "[peer]",
            "[log]\nlevel = \"afterimage_agent=loud\"\n[peer]",
            "a.toml:6: log.level: unknown level \"loud\"; known: error, warn, info, debug, trace, off",
        ),
        (
            "mode =",
            "queue_size = -1\nmode =",
            "a.toml:10: group.orders.queue_size: expected a whole number from 0 to 18446744073709551615",
        ),
        (
            "mode =",
            "catchup_window = 1.5\nmode =",
            "a.toml:10: group.orders.catchup_window: expected text in quotes, found a number with a fraction",
        ),
        (
            "mode =",
            "hot_extents = 8\nmode =",
            "a.toml:10: group.orders.hot_extents: 8 is out of range; from 16 to 65536",
        ),
        (
            "mode =",
            "compression = \"zsdt\"\nmode =",
            "a.toml:10: group.orders.compression: unknown value \"zsdt\"; did you mean \"zstd\"?",
        ),
        (
            "mode =",
            "compression_window = \"1GiB\"\nmode =",
            "a.toml:10: group.orders.compression_window: 1GiB is too large; at most 128MiB",
        ),
        (
            "mode =",
            "background = \"gently\"\nmode =",
            "a.toml:10: group.orders.background: unknown value \"gently\"; did you mean \"gentle\"?",
        ),
        (
            "mode =",
            "max_rate = \"1KiB/s\"\nmode =",
            "a.toml:10: group.orders.max_rate: 1KiB/s is too slow; at least 64KiB/s",
        ),
        (
            "mode =",
            "verify = { rate = \"1KiB/s\" }\nmode =",
            "a.toml:10: group.orders.verify.rate: 1KiB/s is too slow; at least 64KiB/s",
        ),
        (
            "mode =",
            "sync_timeout = 5\nmode =",
            "a.toml:10: group.orders.sync_timeout: the unit is missing; write \"5s\" for seconds",
        ),
        (
            "mode =",
            "sync_timeout = \"1ms\"\nmode =",
            "a.toml:10: group.orders.sync_timeout: 1ms is too short; at least 500ms",
        ),
        (
            "mode =",
            "history = \"1M\"\nmode =",
            "a.toml:10: group.orders.history: months and years have no fixed length; use ms, s, m (minutes), h or d",
        ),
        (
            "mode =",
            "history = \"9999d\"\nmode =",
            "a.toml:10: group.orders.history: 9999d is too long; at most 366d",
        ),
        // Paths and addresses.
        (
            "/dev/vg0/pgdata",
            "pgdata.img",
            "a.toml:16: group.orders.volume[0].device: expected an absolute path without \"..\", found \"pgdata.img\"",
        ),
        (
            "/dev/vg0/pgdata",
            "/dev/../pgdata",
            "a.toml:16: group.orders.volume[0].device: expected an absolute path without \"..\", found \"/dev/../pgdata\"",
        ),
        (
            "/dev/nbd0",
            "/dev/sda",
            "a.toml:17: group.orders.volume[0].export.attach: expected a kernel NBD device such as \"/dev/nbd0\", found \"/dev/sda\"",
        ),
        (
            "/dev/vg0/pgdata",
            "/dev/nbd0",
            "a.toml:17: group.orders.volume[0].export.attach: the device \"/dev/nbd0\" is already used by group.orders.volume[0].device (line 16)",
        ),
        (
            "/run/afterimage/pgdata.sock",
            "/var/lib/afterimage//agent.sock",
            "a.toml:17: group.orders.volume[0].export.nbd: the socket \"/var/lib/afterimage/agent.sock\" is already used by node.state_dir",
        ),
        (
            "/var/lib/afterimage",
            "/a-path-of-93-bytes-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "a.toml:3: node.state_dir: the path is too long for the sockets in it; at most 92 bytes",
        ),
        (
            "beta.example.net:7789",
            "beta.example.net",
            "a.toml:7: peer.address: expected host:port, such as \"beta.example.net:7789\" or \"[2001:db8::2]:7789\"",
        ),
        (
            "name = \"alpha\"",
            "name = \"alpha\"\nlisten = \"localhost:1\"",
            "a.toml:3: node.listen: expected an IP address and a port, such as \"127.0.0.1:9789\" or \"[::]:7789\"",
        ),
        (
            "attach = \"/dev/nbd0\"",
            "tcp = \"0.0.0.0:10809\"",
            "a.toml:17: group.orders.volume[0].export.tcp: other hosts could reach this address, and NBD asks for no password; use 127.0.0.1 or [::1], or set tcp_remote = true",
        ),
        // Together.
        (
            "name = \"pgdata\"",
            "name = \"pgdata\"\ncapture = \"live\"",
            "a.toml:16: group.orders.volume[0].capture: \"live\" is not available in this version; use \"inline\"",
        ),
        (
            "mode = \"sync\"",
            "on_link_loss = \"block\"",
            "a.toml:10: group.orders.on_link_loss: an async group never waits for the standby; set mode = \"sync\"",
        ),
    ];
    for (from, to, messages) in table {
        assert_messages(from, to, &messages.lines().collect::<Vec<_>>());
    }
}

#[test]
fn everything_wrong_is_reported_at_once_in_the_order_of_lines() {
    let found = parse("[node]\nname = 1\nspeed = 2\n[peer]\nname = \"b\"\naddress = \"b\"\n").unwrap_err();
    let lines: Vec<_> = found.iter().map(|m| m.split(": ").take(2).collect::<Vec<_>>().join(": ")).collect();
    assert_eq!(lines, ["a.toml:2: node.name", "a.toml:3: node.speed", "a.toml:6: peer.address"]);
}

#[test]
fn nothing_is_claimed_twice_across_groups() {
    let second = GOOD[GOOD.find("[group").unwrap()..].replace("orders", "bills");
    let found = parse(&format!("{GOOD}{second}")).unwrap_err();
    assert_eq!(
        found,
        [
            "a.toml:24: group.bills.volume[0].name: the volume name \"pgdata\" is already used by group.orders.volume[0].name (line 15)",
            "a.toml:25: group.bills.volume[0].device: the device \"/dev/vg0/pgdata\" is already used by group.orders.volume[0].device (line 16)",
            "a.toml:26: group.bills.volume[0].export.nbd: the socket \"/run/afterimage/pgdata.sock\" is already used by group.orders.volume[0].export.nbd (line 17)",
            "a.toml:26: group.bills.volume[0].export.attach: the device \"/dev/nbd0\" is already used by group.orders.volume[0].export.attach (line 17)",
        ]
    );
}

#[test]
fn a_group_has_a_volume() {
    let message = "a.toml:9: group.orders: the group has no volume; add [[group.orders.volume]]";
    let without = &GOOD[..GOOD.find("[[group").unwrap()];
    assert_eq!(parse(without).unwrap_err(), [message]);
    assert_eq!(parse(&format!("{without}volume = []\n")).unwrap_err(), [message]);
}

#[test]
fn groups_and_volumes_are_bounded() {
    let volume =
        |i: usize| format!("[[group.orders.volume]]\nname = \"v{i}\"\ndevice = \"/v{i}\"\nexport = {{}}\n");
    let with = |n| format!("{GOOD}{}", (0..n).map(volume).collect::<String>());
    assert!(parse(&with(MAX_VOLUMES - 1)).is_ok());
    assert_eq!(
        parse(&with(MAX_VOLUMES)).unwrap_err(),
        ["a.toml:9: group.orders: 65 volumes; at most 64 in a group"]
    );

    let group = |i| {
        format!(
            "[group.g{i}]\nprimary = \"alpha\"\n[[group.g{i}.volume]]\nname = \"w{i}\"\ndevice = \"/w{i}\"\n"
        )
    };
    let with = |n| format!("{GOOD}{}", (0..n).map(group).collect::<String>());
    assert!(parse(&with(MAX_GROUPS - 1)).is_ok());
    assert_eq!(parse(&with(MAX_GROUPS)).unwrap_err(), ["a.toml:9: group: 65 groups; at most 64 on a host"]);
}

#[test]
fn the_doubtful_is_accepted_with_a_warning() {
    let warnings = |text: &str| -> Vec<String> {
        parse(text).unwrap().warnings.iter().map(|w| w.to_string().replace("a.toml:", "")).collect()
    };
    let asynchronous = GOOD.replace("mode = \"sync\"", "ack = \"durable\"\nsync_timeout = \"9s\"");
    assert_eq!(
        warnings(&asynchronous),
        [
            "10: group.orders.ack: has no effect unless mode = \"sync\"",
            "11: group.orders.sync_timeout: has no effect unless mode = \"sync\""
        ]
    );
    assert_eq!(
        warnings(&GOOD.replace("attach = \"/dev/nbd0\"", "tcp = \"0.0.0.0:1\", tcp_remote = true")),
        [
            "17: group.orders.volume[0].export.tcp: anyone who can reach this address can read and write the volume"
        ]
    );
    assert_eq!(
        warnings(&GOOD.replace("200GiB", "32MiB")),
        ["12: group.orders.journal: the journal (32MiB) is smaller than queue_size (64MiB)"]
    );
    let no_export = GOOD.lines().filter(|l| !l.starts_with("export")).collect::<Vec<_>>().join("\n");
    assert_eq!(
        warnings(&no_export),
        [
            "14: group.orders.volume[0]: the volume has no export, so nothing can use it; add export = { nbd = … }"
        ]
    );
    assert_eq!(
        warnings(&GOOD[..GOOD.find("[group").unwrap()]),
        [" there is no group, so nothing is replicated; add [group.NAME]"]
    );
}

#[test]
fn files_that_cannot_be_a_configuration_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("afterimage.toml");
    let message = || Config::load(&path).unwrap_err().to_string();
    assert!(message().ends_with("create it or name another with --config"), "{}", message());
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert!(message().ends_with("is not UTF-8 text: this is not a configuration file"), "{}", message());
    std::fs::File::create(&path).unwrap().set_len(MAX_FILE_SIZE.bytes() + 1).unwrap();
    assert!(message().ends_with("is larger than 4MiB: this is not a configuration file"), "{}", message());
    std::fs::write(&path, GOOD).unwrap();
    assert_eq!(Config::load(&path).unwrap(), Config::parse(GOOD, &path.display().to_string()).unwrap());
}

/// Splices, swaps and cuts good files at random. Whatever comes out, parsing it returns, and what it accepts
/// holds the promises of [`Config`].
#[test]
fn random_damage_never_panics() {
    let words = [
        "[",
        "]",
        "{",
        "}",
        "\"",
        "=",
        "\n",
        ".",
        "0",
        "-1",
        "999999999999999999999",
        "'''",
        "\u{1f4a5}",
        "\0",
        "[[group.orders.volume]]",
        "[group.x]",
        "export = 1",
        "nan",
        "1979-05-27",
        "\"\"",
        "/",
        "#",
        "\\u00",
        "5s",
    ];
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below.max(1) as u64) as usize
    };
    for _ in 0..5_000 {
        let mut text: Vec<char> = GOOD.chars().collect();
        for _ in 0..=next(6) {
            let at = next(text.len());
            let until = (at + next(12)).min(text.len());
            let piece: Vec<char> = match next(3) {
                0 => Vec::new(),
                1 => words[next(words.len())].chars().collect(),
                _ => {
                    let from = next(text.len());
                    text[from..(from + next(60)).min(text.len())].to_vec()
                }
            };
            text.splice(at..until, piece);
        }
        let text: String = text.into_iter().collect();
        match Config::parse(&text, "f") {
            Ok(config) => {
                assert!(
                    config
                        .groups
                        .values()
                        .all(|g| is_name(&g.name) && (1..=MAX_VOLUMES).contains(&g.volumes.len()))
                )
            }
            Err(ConfigError::Invalid(problems)) => {
                assert!(!problems.is_empty() && !problems[0].to_string().is_empty())
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn nesting_without_end_is_refused() {
    assert!(Config::parse(&"[".repeat(100_000), "f").is_err());
    assert!(Config::parse(&format!("x = {}", "[".repeat(100_000)), "f").is_err());
    assert!(Config::parse(&format!("x = {}", "{a=".repeat(100_000)), "f").is_err());
    assert!(Config::parse(&format!("x{} = 1", ".a".repeat(100_000)), "f").is_err());
}

#[test]
fn the_example_parses_without_a_warning_and_shows_true_defaults() {
    let example = include_str!("../../../../docs/afterimage.example.toml");
    let config = Config::parse(example, "afterimage.example.toml").unwrap();
    assert_eq!(config.warnings, vec![]);
    // With every commented default written out, nothing changes.
    let explicit: String = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.contains(" = ") && !key.starts_with(char::is_uppercase) => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(explicit.matches("\nqueue_size = ").count(), 1);
    assert_eq!(Config::parse(&explicit, "explicit").unwrap(), config);
}

/// Every key that is read has a row in the documentation.
#[test]
fn every_key_is_documented() {
    let page = include_str!("../../../../docs/configuration.md");
    let mut keys = Vec::new();
    let good = format!("{GOOD}[hooks]\n[log]\n");
    for section in ["node", "peer", "log", "hooks", "group.orders", "group.orders.volume[0]"] {
        let header = match section {
            "group.orders.volume[0]" => "name = \"pgdata\"\n",
            "group.orders" => "[group.orders]\n",
            "peer" => "[peer]\n",
            "hooks" => "[hooks]\n",
            "log" => "[log]\n",
            _ => "[node]\n",
        };
        let text = good.replacen(header, &format!("{header}zzzzzzzzzzzzzzzz = 1\n"), 1);
        let message = parse(&text).unwrap_err().remove(0);
        keys.extend(message.split_once("known here: ").unwrap().1.split(", ").map(str::to_owned));
    }
    assert_eq!(keys.len(), 5 + 2 + 1 + 4 + 18 + 4);
    for key in keys.iter().filter(|key| {
        !matches!(
            key.as_str(),
            "journal" | "verify" | "volume" | "export" | "before_promotion" | "before_switchover"
        )
    }) {
        assert!(page.contains(&format!("| `{key}` |")), "{key} is not documented");
    }
    for key in [
        "before_promotion.on_failure",
        "before_switchover.on_failure",
        "journal.dir",
        "journal.max_size",
        "verify.rate",
        "export.nbd",
        "export.tcp",
        "export.tcp_remote",
        "export.attach",
    ] {
        assert!(page.contains(&format!("| `{key}` |")), "{key} is not documented");
    }
}
