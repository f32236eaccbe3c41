//! An agent and a target that does what the test says.

mod common;

use std::time::Duration;

use afterimage_contract::admin::Request;
use afterimage_contract::status::{Protection, Role};
use afterimage_protocol::message::Refusal;
use common::*;

/// The target has what the volume has.
async fn assert_equal(host: &Host, peer: &Peer) {
    in_time(async {
        loop {
            let same = std::fs::read(host.volume()).unwrap() == peer.image.lock().unwrap().bytes;
            if same {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn async_writes_arrive_in_order_after_a_first_sync() {
    let mut host = Host::new("");
    let peer = Peer::new(&host);
    host.pair(&peer);
    std::fs::write(host.volume(), vec![3; VOLUME_BYTES as usize]).unwrap();
    let agent = host.start();
    let session = peer.session().await;
    assert_eq!(session.open.group, GROUP);
    let mut client = host.client().await;
    assert_eq!(client.size_bytes, VOLUME_BYTES);
    // During the first sync.
    client.write(4096, &noise(1, 70_000)).await.unwrap();
    let status = agent.until_protected(Protection::AsyncStreaming).await;
    assert_eq!(status.peer.name, "beta");
    assert!(status.peer.connected);
    client.write(1 << 20, &noise(2, 3 << 20)).await.unwrap();
    client.write_zeroes(8192, 4096).await.unwrap();
    client.trim(5 << 20, 30 << 20).await.unwrap();
    client.write_fua(512, &[9; 512]).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(client.read(512, 512).await.unwrap(), [9; 512]);
    assert_equal(&host, &peer).await;
    let status =
        agent.until("clean", |g| g.dirty_bytes == Some(0) && g.lag.is_some_and(|lag| lag.bytes == 0)).await;
    assert_eq!(status.lag.unwrap().seconds, 0.0);
    assert!(status.durable_sequence.is_some());
    assert!(status.catchup.is_none());
    let (wire, raw) = {
        let image = peer.image.lock().unwrap();
        (image.wire_bytes, image.raw_bytes)
    };
    assert!(wire * 2 < raw, "{wire} of {raw}: what shrinks is compressed");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_writes_wait_for_the_acknowledgement_that_is_configured() {
    for (ack, enough, too_little) in
        [("received", Acks::Received, Acks::None), ("durable", Acks::All, Acks::Received)]
    {
        let (host, peer, agent, session) =
            Host::with_peer(&format!("mode = \"sync\"\nack = \"{ack}\"\nsync_timeout = \"60s\"")).await;
        agent.until_protected(Protection::InSync).await;
        session.acks.send_replace(too_little);
        let mut client = host.client().await;
        let mut write = tokio::spawn(async move {
            let result = client.write(0, &[1; 4096]).await;
            (client, result)
        });
        assert!(tokio::time::timeout(SHORT, &mut write).await.is_err(), "answered without the target");
        session.acks.send_replace(enough);
        let (mut client, result) = in_time(write).await.unwrap();
        result.unwrap();
        session.acks.send_replace(Acks::All);
        in_time(client.flush()).await.unwrap();
        in_time(client.write_fua(8192, &[2; 4096])).await.unwrap();
        assert_equal(&host, &peer).await;
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_in_sync_mode_waits_for_durable() {
    let (host, _peer, agent, session) = Host::with_peer("mode = \"sync\"\nsync_timeout = \"60s\"").await;
    agent.until_protected(Protection::InSync).await;
    session.acks.send_replace(Acks::Received);
    let mut client = host.client().await;
    in_time(client.write(0, &[1; 4096])).await.unwrap();
    let mut flush = tokio::spawn(async move { client.flush().await });
    assert!(tokio::time::timeout(SHORT, &mut flush).await.is_err(), "answered before it is durable");
    session.acks.send_replace(Acks::All);
    in_time(flush).await.unwrap().unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_link_loss_writes_go_on_degraded_and_are_caught_up_with() {
    let (host, peer, agent, session) = Host::with_peer("mode = \"sync\"\nsync_timeout = \"500ms\"").await;
    agent.until_protected(Protection::InSync).await;
    agent.call(Request::PauseStream { group: GROUP.to_owned() }).await;
    drop(session);
    let mut client = host.client().await;
    in_time(client.write(0, &noise(3, 1 << 20))).await.unwrap();
    let status = agent.until_protected(Protection::Degraded).await;
    assert!(status.warnings.iter().any(|w| w.id == "stream_paused"));
    in_time(client.write(4 << 20, &noise(4, 4096))).await.unwrap();
    agent.call(Request::ResumeStream { group: GROUP.to_owned() }).await;
    let _session = peer.session().await;
    agent.until_protected(Protection::InSync).await;
    assert_equal(&host, &peer).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_block_writes_wait_for_the_link() {
    let (host, peer, agent, session) =
        Host::with_peer("mode = \"sync\"\nsync_timeout = \"500ms\"\non_link_loss = \"block\"").await;
    agent.until_protected(Protection::InSync).await;
    session.cut().await;
    agent.call(Request::PauseStream { group: GROUP.to_owned() }).await;
    let mut client = host.client().await;
    let mut write = tokio::spawn(async move { client.write(0, &[5; 4096]).await });
    agent.until_protected(Protection::Blocked).await;
    assert!(tokio::time::timeout(SHORT, &mut write).await.is_err());
    agent.call(Request::ResumeStream { group: GROUP.to_owned() }).await;
    let _session = peer.session().await;
    in_time(write).await.unwrap().unwrap();
    agent.until_protected(Protection::InSync).await;
    assert_equal(&host, &peer).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_overflows_becomes_a_catch_up() {
    let (host, peer, agent, session) = Host::with_peer("queue_size = \"1MiB\"").await;
    agent.until_protected(Protection::AsyncStreaming).await;
    session.acks.send_replace(Acks::None);
    let commits = peer.image.lock().unwrap().commits;
    let mut client = host.client().await;
    for n in 0..40 {
        in_time(client.write(n << 20, &noise(n, 256 << 10))).await.unwrap();
    }
    session.acks.send_replace(Acks::All);
    agent.until("clean", |g| g.protection == Protection::AsyncStreaming && g.dirty_bytes == Some(0)).await;
    assert!(peer.image.lock().unwrap().commits > commits);
    assert_equal(&host, &peer).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_taken_up_from_the_queue() {
    let (host, peer, agent, session) = Host::with_peer("").await;
    agent.until_protected(Protection::AsyncStreaming).await;
    let mut client = host.client().await;
    client.write(0, &[1; 4096]).await.unwrap();
    session.cut().await;
    let commits = peer.image.lock().unwrap().commits;
    for n in 0..50 {
        client.write(n * 4096, &noise(n, 4096)).await.unwrap();
    }
    let session = peer.session().await;
    agent.until("clean", |g| g.peer.connected && g.dirty_bytes == Some(0)).await;
    assert_equal(&host, &peer).await;
    assert_eq!(peer.image.lock().unwrap().commits, commits, "no epoch was needed");
    drop(session);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_resumes_with_an_epoch_of_what_changed() {
    let mut host = Host::new("");
    let peer = Peer::new(&host);
    host.pair(&peer);
    std::fs::write(host.volume(), noise(5, VOLUME_BYTES as usize)).unwrap();
    let agent = host.start();
    let session = peer.session().await;
    agent.until("clean", |g| g.protection == Protection::AsyncStreaming && g.dirty_bytes == Some(0)).await;
    let first = session.open;
    agent.stop().await;
    // Without its peer.
    let address = std::mem::replace(&mut host.peer_address, "127.0.0.1:9".to_owned());
    let agent = host.start_alone();
    let mut client = host.client().await;
    in_time(client.write(12_345_600, &noise(6, 512))).await.unwrap();
    agent.stop().await;
    host.peer_address = address;
    let before = peer.image.lock().unwrap().raw_bytes;
    let agent = host.start();
    let session = peer.session().await;
    assert_eq!(session.open.standing.lineage, first.standing.lineage);
    assert_eq!(session.open.incarnation.0, first.incarnation.0 + 2);
    assert!(session.open.standing.sequence > first.standing.sequence);
    agent.until("clean", |g| g.protection == Protection::AsyncStreaming && g.dirty_bytes == Some(0)).await;
    assert_equal(&host, &peer).await;
    let sent = peer.image.lock().unwrap().raw_bytes - before;
    assert!((4096..1 << 20).contains(&sent), "{sent} bytes were sent");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_peer_fences_this_host_for_good() {
    let (host, peer, agent, session) = Host::with_peer("").await;
    agent.until_protected(Protection::AsyncStreaming).await;
    let mut client = host.client().await;
    client.write(0, &[1; 4096]).await.unwrap();
    session.cut().await;
    assert!(in_time(peer.session_with(Answer::Refuse(Refusal::Promoted), Acks::All)).await.is_none());
    let status = agent.until_protected(Protection::Fenced).await;
    assert_eq!(status.role, Role::Fenced);
    assert!(status.warnings.iter().any(|w| w.id == "reinstate_required"));
    assert!(in_time(client.write(0, &[2; 4096])).await.is_err());
    assert!(!host.socket().exists());
    agent.stop().await;
    let agent = host.start();
    agent.until_protected(Protection::Fenced).await;
    assert!(!host.socket().exists());
    assert_eq!(host.bytes(0, 4096), [1; 4096]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_shown_and_asked_about_again() {
    let mut host = Host::new("");
    let peer = Peer::new(&host);
    host.pair(&peer);
    let agent = host.start();
    assert!(in_time(peer.session_with(Answer::Refuse(Refusal::Volumes), Acks::All)).await.is_none());
    let status = agent.until_protected(Protection::Refused).await;
    assert!(status.peer.last_error.unwrap().contains("told to"));
    let _session = peer.session().await;
    agent.until_protected(Protection::AsyncStreaming).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_primary_asks_its_peer_before_it_serves() {
    let (host, peer, agent, _first) = Host::with_peer("").await;
    agent.until("clean", |g| g.protection == Protection::AsyncStreaming && g.dirty_bytes == Some(0)).await;
    agent.stop().await;
    let agent = host.start();
    let status = agent.until("waiting", |g| g.warnings.iter().any(|w| w.id == "waiting_for_peer")).await;
    assert!(status.volumes[0].exports.is_empty());
    tokio::time::sleep(SHORT).await;
    assert!(!host.socket().exists());
    let _second = peer.session().await;
    in_time(host.client().await.write(0, &[1; 4096])).await.unwrap();
    let status = agent.group().await.unwrap();
    assert!(status.warnings.is_empty(), "{status:?}");
    agent.stop().await;
}
