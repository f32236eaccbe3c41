use super::*;

fn peer() -> PeerStatus {
    PeerStatus {
        name: "beta".into(),
        connected: true,
        address: Some("192.0.2.2:7789".into()),
        fingerprint: Some("SHA256:9f3c".into()),
        rtt_us: Some(1_200),
        last_error: None,
    }
}

fn group(name: &str, role: Role) -> GroupStatus {
    GroupStatus::new(name, role, Mode::Sync, Protection::InSync, peer())
}

fn full() -> Status {
    let position = |sequence| Position { generation: "5f0c".into(), sequence };
    let mut status = Status::new("alpha", 1_790_000_000_000_000);
    status.agent = Some(Daemon { release: "0.1.0".into(), since_us: Some(1_789_990_000_000_000) });
    status.warnings.push(Warning::new(
        "receiver_silent",
        "afterimage-receiver is not running: nothing listens on /var/lib/afterimage/receiver.sock",
        "start it with: systemctl start afterimage-receiver",
    ));
    let mut group = group("orders", Role::Primary);
    group.protection = Protection::CatchingUp;
    group.generation = Some("5f0c".into());
    group.parent = Some(Position { generation: "11aa".into(), sequence: 7 });
    group.since_us = Some(1_789_999_000_000_000);
    group.position = Some(position(42));
    group.lag = Some(Lag { seconds: 0.25, bytes: 4096 });
    group.apply_lag = Some(ApplyLag { seconds: 3.5 });
    group.received_sequence = Some(41);
    group.durable_sequence = Some(40);
    group.dirty_bytes = Some(8 << 20);
    group.queued_bytes = Some(4096);
    group.queue_limit_bytes = Some(64 << 20);
    group.written_bytes = Some(1_610_612_736);
    group.compression = Some(CompressionStatus {
        setting: Compression::Auto,
        effort: CompressionEffort::ZstdFast,
        window_bytes: 64 << 20,
        raw_bytes: 1 << 30,
        wire_bytes: 48 << 20,
        packet_bytes: 52 << 20,
        coding_us: 760_000,
        waiting_us: 1000,
    });
    group.catchup = Some(CatchUp {
        done_bytes: 1 << 20,
        total_bytes: 9 << 20,
        rate_bytes_per_s: Some(4 << 20),
        eta_s: Some(2),
        first: false,
    });
    group.background = Some(BackgroundStatus {
        setting: Background::Balanced,
        held_back_by: Some(HeldBackBy::Clients),
        limit_bytes_per_s: Some(16 << 20),
    });
    group.verification = Some(VerificationStatus {
        state: VerificationState::Finished,
        repair: false,
        started_us: 1_789_990_100_000_000,
        finished_us: Some(1_789_990_200_000_000),
        done_bytes: 1 << 30,
        total_bytes: 1 << 30,
        unchecked_bytes: 0,
        mismatched_blocks: 2,
        repaired_blocks: 0,
        differing: vec![DifferingBlocks { volume: "pgdata".into(), first_block: 7, blocks: 2 }],
        rate_limit_bytes_per_s: Some(50 << 20),
    });
    group.journal = Some(JournalStatus {
        bytes: 10 << 20,
        limit_bytes: 8 << 30,
        oldest: Some(JournalPoint { sequence: 12, time_us: Some(1_789_999_000_000_000) }),
        newest: None,
        applied_sequence: Some(30),
        unapplied_bytes: Some(1 << 20),
        apply_rate_bytes_per_s: Some(4 << 20),
    });
    group.volumes.push(VolumeStatus {
        name: "pgdata".into(),
        device: "/dev/vg0/pgdata".into(),
        size_bytes: Some(1 << 30),
        dirty_bytes: Some(8 << 20),
        unreadable_blocks: Some(0),
        exports: vec!["/run/afterimage/pgdata.sock".into()],
        error: None,
    });
    status.groups.push(group);
    status
}

/// The first JSON block of the documentation: what is documented is what is tested, and a difference is a
/// change of the contract.
fn golden() -> &'static str {
    let page = include_str!("../../../../docs/status.md");
    let (_, block) = page.split_once("```json\n").unwrap();
    block.split_once("\n```").unwrap().0
}

#[test]
fn the_document_has_the_documented_shape() {
    assert_eq!(serde_json::to_string_pretty(&full()).unwrap(), golden());
    assert_eq!(serde_json::from_str::<Status>(golden()).unwrap(), full());
}

#[test]
fn what_is_unknown_is_null_and_present() {
    let json = serde_json::to_value(group("orders", Role::Primary)).unwrap();
    for key in [
        "generation",
        "parent",
        "since_us",
        "position",
        "lag",
        "apply_lag",
        "received_sequence",
        "durable_sequence",
        "dirty_bytes",
        "queued_bytes",
        "queue_limit_bytes",
        "written_bytes",
        "received_bytes",
        "compression",
        "catchup",
        "background",
        "journal",
        "verification",
    ] {
        assert_eq!(json.get(key), Some(&serde_json::Value::Null), "{key}");
    }
}

#[test]
fn a_newer_daemon_is_still_understood() {
    let newer = golden().replace("\"catching_up\"", "\"quantum\"").replace("\"node\"", "\"x\": 1, \"node\"");
    let status: Status = serde_json::from_str(&newer).unwrap();
    assert_eq!(status.groups[0].protection, Protection::Unrecognized);
}

fn report(groups: Vec<GroupStatus>) -> DaemonReport {
    DaemonReport::Answered(Status { groups, ..Status::new("alpha", 0) })
}

fn silent() -> DaemonReport {
    DaemonReport::Silent { text: "the receiver is not running".into(), action: "start it".into() }
}

#[test]
fn groups_of_both_daemons_are_sorted_into_one_list() {
    let merged = merge(
        "alpha",
        5,
        &["a", "b"],
        report(vec![group("b", Role::Primary)]),
        report(vec![group("a", Role::Standby)]),
    );
    let names: Vec<_> = merged.groups.iter().map(|g| (g.name.as_str(), g.role)).collect();
    assert_eq!(names, [("a", Role::Standby), ("b", Role::Primary)]);
    assert_eq!((merged.time_us, merged.warnings.len()), (5, 0));
}

#[test]
fn a_silent_daemon_and_its_groups_are_named() {
    let merged = merge("alpha", 0, &["a", "b"], report(vec![group("a", Role::Primary)]), silent());
    let ids: Vec<_> = merged.warnings.iter().map(|w| w.id.as_str()).collect();
    assert_eq!(ids, ["receiver_silent", "group_not_reported"]);
    assert!(merged.warnings[1].text.contains("group b"));
}

#[test]
fn the_daemon_whose_work_the_role_is_comes_first_and_numbers_are_not_mixed() {
    let journal = JournalStatus {
        bytes: 1,
        limit_bytes: 2,
        oldest: None,
        newest: None,
        applied_sequence: None,
        unapplied_bytes: None,
        apply_rate_bytes_per_s: None,
    };
    let mut agent = group("a", Role::Primary);
    agent.generation = Some("02".into());
    let mut receiver = group("a", Role::Primary);
    receiver.lag = Some(Lag { seconds: 0.0, bytes: 0 });
    receiver.dirty_bytes = Some(0);
    receiver.journal = Some(journal.clone());
    let merged = merge("alpha", 0, &["a"], report(vec![agent]), report(vec![receiver]));
    assert_eq!((merged.groups[0].lag, merged.groups[0].dirty_bytes), (None, None));
    assert_eq!(merged.groups[0].journal, Some(journal));
    assert_eq!(merged.groups[0].warnings, vec![]);
}

#[test]
fn a_disagreement_about_the_role_is_shown() {
    for (agent, receiver, expected) in [
        (Role::Primary, Role::Standby, Role::Primary),
        (Role::Standby, Role::Primary, Role::Primary),
        (Role::Fenced, Role::Standby, Role::Fenced),
    ] {
        let merged =
            merge("alpha", 0, &["a"], report(vec![group("a", agent)]), report(vec![group("a", receiver)]));
        assert_eq!(merged.groups[0].role, expected);
        assert_eq!(merged.groups[0].warnings[0].id, "roles_disagree");
    }
}

#[test]
fn a_state_is_called_the_same_in_logs_and_in_the_document() {
    for protection in Protection::ALL.into_iter().filter(|p| *p != Protection::Unrecognized) {
        assert_eq!(serde_json::to_value(protection).unwrap(), protection.name());
    }
}
