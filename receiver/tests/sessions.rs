//! Sessions as they should be: first sync, records, restarts, catch-up.

mod common;

use std::process::{Child, Command, Stdio};

use afterimage_contract::status::Protection;
use afterimage_protocol::message::{Refusal, TargetMessage};
use afterimage_protocol::{SessionId, Time};
use afterimage_storage::lock::DirLock;
use afterimage_transport::{ConnectError, Joiner, create_offer};

use common::frames::{BLOCK, Epoch, noise, position, record};
use common::source::{Source, connect, open_message, stream};
use common::*;

/// The receiver as a process.
struct Process(Child);

impl Process {
    fn start(standby: &Standby) -> Self {
        let config = standby.host.dir.path().join("afterimage.toml");
        std::fs::write(&config, standby.config_text()).unwrap();
        let command = Command::new(env!("CARGO_BIN_EXE_afterimage-receiver"))
            .arg("--config")
            .arg(config)
            .arg("--log-level=warn")
            .stdin(Stdio::null())
            .spawn();
        Self(command.unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    async fn terminate(mut self) -> bool {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        in_time(tokio::task::spawn_blocking(move || self.0.wait().unwrap().success())).await.unwrap()
    }
}

#[tokio::test]
async fn a_killed_receiver_resumes_where_it_was() {
    let standby = Standby::new();
    let process = Process::start(&standby);
    let mut source = Source::first_sync(&standby, 1).await;
    assert!(
        source.messages.iter().any(|m| matches!(m, TargetMessage::Durable { sequence } if sequence.0 == 10))
    );
    for sequence in 11..=40 {
        source.send(&record(sequence, sequence * BLOCK, BLOCK)).await;
    }
    source.until_received(40).await;
    process.kill();

    let process = Process::start(&standby);
    let (mut source, opened) = Source::open(&standby, 2).await;
    assert_eq!(opened.known_session, SessionId(1));
    assert_eq!(opened.received, Some(position(40)));
    assert_eq!(opened.durable, Some(position(40)));
    source.send(&record(41, 0, 512)).await;
    source.until_durable(41).await;
    source.ping(7).await;
    while !matches!(source.next().await, TargetMessage::Pong { time: Time(7), .. }) {}
    standby.status_when(|g| g.journal.as_ref().unwrap().applied_sequence == Some(41)).await;
    assert!(process.terminate().await);

    let mut image = noise(1, 1 << 20).to_vec();
    for sequence in 11..=40 {
        let at = (sequence * BLOCK) as usize;
        image[at..at + BLOCK as usize].copy_from_slice(&noise(sequence, BLOCK));
    }
    image[..512].copy_from_slice(&noise(41, 512));
    assert!(standby.bytes()[..1 << 20] == image[..]);
    assert!(standby.bytes()[1 << 20..].iter().all(|b| *b == 0));
}

#[tokio::test]
async fn acknowledgements_name_what_is_durable() {
    let standby = Standby::new();
    let receiver = standby.run();
    let mut open = open_message(1);
    open.durable_acks = true;
    let (mut source, _) = Source::ask(&standby, open).await.unwrap();
    let mut epoch = Epoch::new(1);
    source.send(&epoch.begin()).await;
    let block = epoch.block(0, &noise(1, BLOCK), 10);
    source.blocks(std::slice::from_ref(&block)).await;
    loop {
        if let TargetMessage::Staged { frames, mark, .. } = source.next().await {
            assert_eq!((frames.len(), mark), (1, Some(1)));
            break;
        }
    }
    assert_eq!(source.received, 0, "a first sync that is under way is no checkpoint");
    source.send(&epoch.commit(10)).await;
    source.until_durable(10).await;
    for sequence in 11..200 {
        source.send(&record(sequence, 0, 512)).await;
        source.until_durable(sequence).await;
    }
    receiver.stop().await;
    assert_eq!(source.closed().await, "the receiver stops");
}

#[tokio::test]
async fn a_commit_waits_for_blocks_that_come_late_and_records_wait_for_the_commit() {
    let standby = Standby::new();
    let receiver = standby.run();
    let mut source = Source::first_sync(&standby, 1).await;
    let mut epoch = Epoch::new(2);
    let late: Vec<_> = (0..4).map(|n| epoch.block(n * BLOCK, &noise(100 + n, BLOCK), 12)).collect();
    source.blocks(&late[..1]).await;
    source.send(&epoch.begin()).await;
    source.send(&epoch.commit(12)).await;
    source.send(&record(13, 0, 512)).await;
    source.blocks(&late[2..]).await;
    while !source.hears_nothing().await {}
    assert_eq!(source.received, 10);
    source.blocks(&late[1..2]).await;
    source.until_durable(13).await;
    standby.status_when(|g| g.journal.as_ref().unwrap().applied_sequence == Some(13)).await;
    receiver.stop().await;
    let image = standby.bytes();
    assert!(image[..512] == noise(13, 512)[..]);
    assert!(image[512..BLOCK as usize] == noise(100, BLOCK)[512..]);
    assert!(image[BLOCK as usize..2 * BLOCK as usize] == noise(101, BLOCK)[..]);
}

#[tokio::test]
async fn a_block_gives_way_to_the_bytes_of_a_newer_record() {
    let standby = Standby::new();
    let receiver = standby.run();
    let mut source = Source::first_sync(&standby, 1).await;
    let mut epoch = Epoch::new(2);
    let block = epoch.block(0, &noise(100, 2 * BLOCK), 11);
    source.send(&epoch.begin()).await;
    source.send(&record(12, 512, 512)).await;
    source.until_staged(12).await;
    source.blocks(&[block]).await;
    source.send(&epoch.commit(12)).await;
    source.until_durable(12).await;
    standby.status_when(|g| g.journal.as_ref().unwrap().applied_sequence == Some(12)).await;
    receiver.stop().await;
    let mut expected = noise(100, 2 * BLOCK).to_vec();
    expected[512..1024].copy_from_slice(&noise(12, 512));
    assert!(standby.bytes()[..expected.len()] == expected[..]);
}

#[tokio::test]
async fn a_newer_session_ends_the_older() {
    let standby = Standby::new();
    let receiver = standby.run();
    let mut old = Source::first_sync(&standby, 1).await;
    let (mut new, opened) = Source::open(&standby, 2).await;
    assert_eq!(opened.received, Some(position(10)));
    assert_eq!(old.closed().await, "a newer session begins");
    new.send(&record(11, 0, 512)).await;
    new.until_received(11).await;
    // A stream of another session is stopped, and the session goes on.
    let mut stray = stream(&new.connection, b'O', SessionId(1)).await;
    let _ = stray.write_all(&record(12, 0, 512).to_bytes()).await;
    assert!(in_time(stray.stopped()).await.unwrap().is_some());
    new.send(&record(12, 512, 512)).await;
    new.until_received(12).await;
    old.received = 0;
    receiver.stop().await;
}

#[tokio::test]
async fn strangers_and_pinned_hosts_that_are_not_the_peer_get_nothing() {
    let standby = Standby::new();
    let receiver = standby.run();
    drop(connect(&standby).await);
    let stranger = Host::new();
    let key = standby.host.identity.fingerprint();
    let refused = in_time(stranger.endpoint().connect(standby.address, key)).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");

    let gamma = Host::new();
    standby.host.pin("gamma", &gamma);
    let endpoint = gamma.endpoint();
    let connection = in_time(endpoint.connect(standby.address, key)).await.unwrap();
    let closed = in_time(connection.closed()).await.to_string();
    assert!(closed.contains("the peer of this host is alpha"), "{closed}");
    receiver.stop().await;
}

#[tokio::test]
async fn a_host_that_was_just_paired_may_open_a_session() {
    let mut standby = Standby::new();
    standby.peer = Host::new();
    let receiver = standby.run();
    standby.status().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let address = standby.address.to_string();
    let token = create_offer(standby.host.dir.path(), &standby.host.identity, Some(&address), now).unwrap();
    let joiner = Joiner {
        identity: &standby.peer.identity,
        state_dir: standby.peer.dir.path(),
        node_name: &"alpha".parse().unwrap(),
        listens_at: None,
        now_unix: now,
    };
    in_time(joiner.join(&token, None)).await.unwrap();
    Source::first_sync(&standby, 1).await;
    receiver.stop().await;
}

#[tokio::test]
async fn a_host_that_is_the_primary_as_configured_takes_no_session() {
    let mut standby = Standby::new();
    standby.primary = "beta";
    let receiver = standby.run();
    let (code, text) = Source::ask(&standby, open_message(1)).await.err().unwrap();
    assert_eq!(code, Refusal::Role);
    assert!(text.contains(GROUP), "{text}");
    assert!(standby.status().await.groups.is_empty());
    // Nothing is kept from the agent.
    DirLock::take(&standby.host.dir.path().join("groups").join(GROUP)).unwrap();
    let mut open = open_message(2);
    open.group = "invoices".to_owned();
    assert_eq!(Source::ask(&standby, open).await.err().unwrap().0, Refusal::UnknownGroup);
    receiver.stop().await;
}

#[tokio::test]
async fn the_status_follows_a_group_from_nothing_to_streaming() {
    let mut standby = Standby::new();
    standby.history = "1h";
    let receiver = standby.run();
    let group = standby.status_when(|g| g.volumes[0].size_bytes.is_some()).await;
    assert_eq!(group.protection, Protection::Disconnected);
    let (mut source, _) = Source::open(&standby, 1).await;
    let mut epoch = Epoch::new(1);
    source.send(&epoch.begin()).await;
    source.blocks(&[epoch.block(0, &noise(1, 1 << 20), 10)]).await;
    let group = standby.status_when(|g| g.catchup.is_some_and(|c| c.done_bytes == 1 << 20)).await;
    assert_eq!(group.protection, Protection::FirstSync);
    assert!(group.position.is_none());
    source.send(&epoch.commit(10)).await;
    source.until_durable(10).await;
    source.send(&record(11, 0, 512)).await;
    source.until_durable(11).await;
    let group = standby.status_when(|g| g.durable_sequence == Some(11)).await;
    assert_eq!(group.protection, Protection::AsyncStreaming);
    assert!(group.peer.connected && group.peer.rtt_us.is_some());
    let journal = group.journal.unwrap();
    assert_eq!(journal.oldest.unwrap().sequence, 10);
    assert_eq!((journal.newest.unwrap().sequence, journal.newest.unwrap().time_us), (11, Some(1_000_011)));
    assert_eq!(journal.applied_sequence, Some(10));
    receiver.stop().await;
}

#[tokio::test]
async fn a_second_receiver_is_told_who_runs() {
    let standby = Standby::new();
    let receiver = standby.run();
    standby.status().await;
    let error = format!("{:#}", standby.run().ended().await.unwrap_err());
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    receiver.stop().await;
}
