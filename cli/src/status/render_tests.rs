use afterimage_contract::status::{
    ApplyLag, BackgroundStatus, CatchUp, HeldBackBy, JournalStatus, Lag, PeerStatus, Warning,
};

use afterimage_contract::config::Background;

use super::*;

const NOW_US: u64 = 1_790_000_000_000_000;

fn group(role: Role, protection: Protection) -> GroupStatus {
    let peer = PeerStatus {
        name: "beta".into(),
        connected: true,
        address: Some("192.0.2.2:7789".into()),
        rtt_us: Some(1_234),
        ..PeerStatus::default()
    };
    let mut group = GroupStatus::new("orders", role, Mode::Sync, protection, peer);
    group.since_us = Some(NOW_US - 11_520_000_000);
    group
}

fn disconnected(mut group: GroupStatus) -> GroupStatus {
    group.peer.connected = false;
    group.peer.rtt_us = None;
    group.peer.last_error = Some("timed out".into());
    group
}

#[test]
fn both_lags_are_shown_apart() {
    let mut group = group(Role::Standby, Protection::AsyncStreaming);
    group.lag = Some(Lag { seconds: 0.5, bytes: 4096 });
    group.apply_lag = Some(ApplyLag { seconds: 90.0 });
    assert_text(
        group,
        "orders  standby  sync  streaming   3h 12m  0.5s, 4 KiB    1m 30s     beta (1.2 ms)\n",
    );
}

#[test]
fn a_split_brain_stands_in_the_place_of_the_state() {
    let mut group = disconnected(group(Role::Primary, Protection::Refused));
    group.warnings.push(Warning::new("split_brain", "both went on", "name the side that stays"));
    assert_text(
        group,
        "\
orders  primary  sync  SPLIT BRAIN  3h 12m  unknown        unknown    beta (not connected)
  ! both went on [split-brain]
    do: name the side that stays
",
    );
}

#[test]
fn a_catch_up_that_the_standby_has_no_room_for_says_so() {
    let mut group = group(Role::Primary, Protection::CatchingUp);
    group.peer.last_error = Some("the journal is full".into());
    assert_text(
        group,
        "\
orders  primary  sync  catching up  3h 12m  unknown        unknown    beta (1.2 ms)
  ! the journal of beta has no room for the catch-up, which begins again and again, ever more rarely [journal-full]
    do: raise journal.max_size on beta and restart the receiver; `afterimage status` there shows how full it is
",
    );
}

fn with(groups: Vec<GroupStatus>) -> Status {
    Status { groups, ..Status::new("alpha", NOW_US) }
}

/// A group in a state that is only possible with it, and the text that it must give.
fn assert_text(group: GroupStatus, expected: &str) {
    let text = render(&with(vec![group]), false, Paint::PLAIN);
    let (_, lines) = text.split_once('\n').unwrap();
    assert_eq!(lines, expected);
}

#[test]
fn a_healthy_host_has_one_line_for_each_group() {
    let mut orders = group(Role::Primary, Protection::InSync);
    orders.lag = Some(Lag { seconds: 0.0, bytes: 0 });
    let mut mail = group(Role::Standby, Protection::AsyncStreaming);
    mail.name = "mail-archive".into();
    mail.mode = Mode::Async;
    mail.lag = Some(Lag { seconds: 0.25, bytes: 65_536 });
    mail.since_us = None;
    assert_eq!(
        render(&with(vec![mail, orders]), false, Paint::PLAIN),
        "\
GROUP         ROLE     MODE   PROTECTION  FOR     TRANSPORT LAG  APPLY LAG  PEER
mail-archive  standby  async  streaming   -       0.2s, 64 KiB   unknown    beta (1.2 ms)
orders        primary  sync   in sync     3h 12m  none           unknown    beta (1.2 ms)
"
    );
}

#[test]
fn catching_up_shows_how_far_it_is() {
    let mut group = group(Role::Primary, Protection::CatchingUp);
    group.catchup = Some(CatchUp {
        done_bytes: 3 << 30,
        total_bytes: 4 << 30,
        rate_bytes_per_s: Some(100 << 20),
        eta_s: Some(10),
        first: false,
    });
    assert_text(
        group,
        "\
orders  primary  sync  catching up  3h 12m  unknown        unknown    beta (1.2 ms)
  ~ catch-up 75% of 4 GiB, 100 MiB/s, 10s to go [catch-up-begun]
    do: nothing; it ends by itself, and faster the less is written meanwhile
",
    );
}

#[test]
fn a_catch_up_that_gives_way_says_so() {
    let mut group = group(Role::Primary, Protection::CatchingUp);
    group.catchup = Some(CatchUp {
        done_bytes: 3 << 30,
        total_bytes: 4 << 30,
        rate_bytes_per_s: Some(16 << 20),
        eta_s: Some(64),
        first: false,
    });
    group.background = Some(BackgroundStatus {
        setting: Background::Balanced,
        held_back_by: Some(HeldBackBy::Clients),
        limit_bytes_per_s: Some(16 << 20),
    });
    assert_text(
        group,
        "\
orders  primary  sync  catching up  3h 12m  unknown        unknown    beta (1.2 ms)
  ~ catch-up 75% of 4 GiB, 16 MiB/s, 1m 4s to go, held back for clients [catch-up-begun]
    do: nothing; it ends by itself, and faster the less is written meanwhile
",
    );
}

#[test]
fn first_sync_says_that_there_is_nothing_to_promote() {
    let mut group = group(Role::Standby, Protection::FirstSync);
    group.catchup = Some(CatchUp {
        done_bytes: 1000,
        total_bytes: 1000,
        rate_bytes_per_s: None,
        eta_s: None,
        first: true,
    });
    assert_text(
        group,
        "\
orders  standby  sync  first sync  3h 12m  unknown        unknown    beta (1.2 ms)
  ~ first sync 99% of 1000 B, time to go unknown; the standby cannot be promoted before it ends [first-sync-begun]
    do: nothing; it ends by itself, and faster the less is written meanwhile
",
    );
}

#[test]
fn degraded_says_what_is_at_risk() {
    let mut group = group(Role::Primary, Protection::Degraded);
    group.lag = Some(Lag { seconds: 75.0, bytes: 12 << 20 });
    assert_text(
        disconnected(group),
        "\
orders  primary  sync  DEGRADED    3h 12m  1m 15s, 12 MiB  unknown    beta (not connected)
  ! protection lost since 2026-09-21T11:01:20Z: writes are acknowledged that beta does not have; at risk: 1m 15s, 12 MiB [degraded]
    do: run `afterimage status` on beta, and check the link to it
",
    );
}

#[test]
fn blocked_says_who_asked_for_it() {
    assert_text(
        disconnected(group(Role::Primary, Protection::Blocked)),
        "\
orders  primary  sync  BLOCKED     3h 12m  unknown        unknown    beta (not connected)
  ! writes wait until beta has them, as on_link_loss = \"block\" asks [blocked]
    do: bring beta or the link back; or set on_link_loss = \"degrade\" and restart afterimage-agent
",
    );
}

#[test]
fn disconnected_differs_by_role() {
    assert_text(
        disconnected(group(Role::Primary, Protection::Disconnected)),
        "\
orders  primary  sync  DISCONNECTED  3h 12m  unknown        unknown    beta (not connected)
  ! no connection to beta at 192.0.2.2:7789: timed out [link-down]
    do: check that beta is up, runs afterimage-receiver, and can be reached by UDP
",
    );
    assert_text(
        disconnected(group(Role::Standby, Protection::Disconnected)),
        "\
orders  standby  sync  DISCONNECTED  3h 12m  unknown        unknown    beta (not connected)
  ! beta does not connect: timed out [link-down]
    do: check afterimage-agent on beta; if beta is lost: afterimage promote orders --dry-run
",
    );
}

#[test]
fn refused_gives_the_reason() {
    let mut group = disconnected(group(Role::Primary, Protection::Refused));
    group.peer.last_error = Some("the key of the peer is not the pinned one".into());
    assert_text(
        group,
        "\
orders  primary  sync  REFUSED     3h 12m  unknown        unknown    beta (not connected)
  ! no session with beta, one side refuses the other: the key of the peer is not the pinned one [peer-refuses]
    do: if a key was replaced on purpose: `afterimage pair --new` on one host, and what it says on the other; if not, find out who answers in the place of beta
",
    );
}

#[test]
fn fenced_says_where_the_volumes_are() {
    assert_text(
        group(Role::Fenced, Protection::Fenced),
        "\
orders  fenced  sync  FENCED      3h 12m  unknown        unknown    beta (1.2 ms)
  ! this host was replaced by a promotion on beta, and serves nothing [fenced]
    do: use the volumes on beta; to make this host its standby: afterimage reinstate orders
",
    );
}

#[test]
fn wrong_volume_names_the_device() {
    let mut group = group(Role::Standby, Protection::WrongVolume);
    let mut volume = volume();
    volume.error = Some("the superblock belongs to volume wal".into());
    group.volumes.push(volume);
    assert_text(
        group,
        "\
orders  standby  sync  WRONG VOLUME  3h 12m  unknown        unknown    beta (1.2 ms)
  ! volume pgdata: the superblock belongs to volume wal [wrong-volume]
    do: put the right volume back at /dev/vg0/pgdata, or mend its `device` in the configuration; it is tried again every few seconds
",
    );
}

#[test]
fn journal_full_gives_the_numbers() {
    let mut group = group(Role::Standby, Protection::JournalFull);
    group.journal = Some(journal());
    assert_text(
        group,
        "\
orders  standby  sync  JOURNAL FULL  3h 12m  unknown        unknown    beta (1.2 ms)
  ! the standby's journal is full: 8 GiB of 8 GiB [journal-full]
    do: raise journal.max_size or shorten history on the standby; check that its volume's disk keeps up
",
    );
}

#[test]
fn failed_names_the_log() {
    assert_text(
        group(Role::Standby, Protection::Failed),
        "\
orders  standby  sync  FAILED      3h 12m  unknown        unknown    beta (1.2 ms)
  ! the group stopped on an error [group-failed]
    do: read the log: journalctl -u afterimage-receiver; after the repair: systemctl restart afterimage-receiver
",
    );
}

#[test]
fn a_newer_daemon_is_not_called_healthy() {
    assert_text(
        group(Role::Unrecognized, Protection::Unrecognized),
        "\
orders  ?     sync  ?           3h 12m  unknown        unknown    beta (1.2 ms)
  ! the daemon reports a state that this command does not know
    do: use the command and the daemons of one release; status --json has the details
",
    );
}

#[test]
fn every_state_that_is_not_healthy_has_a_note() {
    for protection in Protection::ALL {
        let lines =
            render(&with(vec![group(Role::Primary, protection)]), false, Paint::PLAIN).lines().count();
        assert_eq!(lines > 2, !protection.is_healthy(), "{protection:?}");
    }
}

#[test]
fn every_warning_of_the_documentation_has_an_event() {
    let page = include_str!("../../../docs/status.md");
    let (_, table) = page.split_once("The agent warns of a group with").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let ids = rows
        .flat_map(|line| line.split('|').nth(1).unwrap().split(',').map(|id| id.trim().trim_matches('`')));
    let mut found = 0;
    for id in ids {
        let mut group = group(Role::Primary, Protection::InSync);
        group.warnings.push(Warning::new(id, "text", "action"));
        let text = render(&with(vec![group]), false, Paint::PLAIN);
        assert!(text.contains("  ! text ["), "{id}: {text}");
        found += 1;
    }
    assert!(found >= 9, "only {found} warnings were found");
}

#[test]
fn warnings_come_with_what_to_do_and_cannot_drive_the_terminal() {
    let mut status = with(vec![group(Role::Primary, Protection::InSync)]);
    status.warnings.push(Warning::new("receiver_silent", "afterimage-receiver is not running", "start it"));
    status.groups[0].warnings.push(Warning::new("x", "a\x1b[2Jb", "c"));
    let mut volume = volume();
    volume.unreadable_blocks = Some(3);
    status.groups[0].volumes.push(volume);
    assert_eq!(
        render(&status, false, Paint::PLAIN),
        "\
! afterimage-receiver is not running [stopped]
  do: start it
GROUP   ROLE     MODE  PROTECTION  FOR     TRANSPORT LAG  APPLY LAG  PEER
orders  primary  sync  in sync     3h 12m  unknown        unknown    beta (1.2 ms)
  ! volume pgdata: 3 blocks cannot be read, and the standby lacks them [unreadable-blocks]
    do: replace the disk behind /dev/vg0/pgdata, or restore these blocks by writing them
  ! a?[2Jb
    do: c
"
    );
}

#[test]
fn the_detail_of_a_group_shows_what_is_known() {
    let mut group = group(Role::Standby, Protection::InSync);
    group.position = Some(Position { generation: "5f0c".into(), sequence: 42 });
    group.parent = Some(Position { generation: "11aa".into(), sequence: 7 });
    group.received_sequence = Some(42);
    group.queued_bytes = Some(4096);
    group.queue_limit_bytes = Some(64 << 20);
    group.compression = Some(CompressionStatus {
        setting: Compression::Auto,
        effort: CompressionEffort::ZstdFast,
        window_bytes: 64 << 20,
        raw_bytes: 1 << 30,
        wire_bytes: 48 << 20,
        packet_bytes: 52 << 20,
        coding_us: 760_000,
        waiting_us: 0,
    });
    group.journal = Some(journal());
    group.volumes.push(volume());
    assert_eq!(
        render(&with(vec![group]), true, Paint::PLAIN),
        "\
GROUP   ROLE     MODE  PROTECTION  FOR     TRANSPORT LAG  APPLY LAG  PEER
orders  standby  sync  in sync     3h 12m  unknown        unknown    beta (1.2 ms)
  position    sequence 42 of generation 5f0c
  forked from sequence 7 of generation 11aa
  received    sequence 42
  durable     unknown
  dirty       unknown
  queue       4 KiB of 64 MiB
  compression zstd, fast (auto), 1 GiB sent as 48 MiB
  key of peer not paired
  journal     8 GiB of 8 GiB
    oldest    sequence 12, 2026-09-21T14:13:20.000000Z
    newest    unknown
    applied   sequence 30
  volume      pgdata, /dev/vg0/pgdata, 1 GiB, dirty unknown, /run/afterimage/pgdata.sock
"
    );
}

#[test]
fn a_host_without_groups_says_so() {
    assert_eq!(render(&with(vec![]), false, Paint::PLAIN), "no group to show\n");
}

fn volume() -> VolumeStatus {
    VolumeStatus {
        name: "pgdata".into(),
        device: "/dev/vg0/pgdata".into(),
        size_bytes: Some(1 << 30),
        dirty_bytes: None,
        unreadable_blocks: Some(0),
        exports: vec!["/run/afterimage/pgdata.sock".into()],
        error: None,
    }
}

fn journal() -> JournalStatus {
    JournalStatus {
        bytes: 8 << 30,
        limit_bytes: 8 << 30,
        oldest: Some(JournalPoint { sequence: 12, time_us: Some(NOW_US) }),
        newest: None,
        applied_sequence: Some(30),
        unapplied_bytes: Some(1 << 20),
        apply_rate_bytes_per_s: None,
    }
}
