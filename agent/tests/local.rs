//! An agent without a peer.

mod common;

use std::process::Command;

use afterimage_contract::admin::{Activation, Request};
use afterimage_contract::status::Protection;
use common::*;

#[tokio::test(flavor = "multi_thread")]
async fn another_volume_is_refused_and_leaves_other_groups_alone() {
    let host = Host::new("");
    let agent = host.start();
    host.client().await.write(0, &[1; 4096]).await.unwrap();
    agent.stop().await;
    std::fs::rename(host.volume(), host.dir.path().join("old")).unwrap();
    std::fs::File::create(host.volume()).unwrap().set_len(VOLUME_BYTES).unwrap();
    let mut config = host.config();
    let mut other = config.groups[GROUP].clone();
    other.name = "other".to_owned();
    other.volumes[0].name = "second".to_owned();
    other.volumes[0].device = host.dir.path().join("second");
    other.volumes[0].export.nbd = Some(host.dir.path().join("second.sock"));
    std::fs::File::create(host.dir.path().join("second")).unwrap().set_len(VOLUME_BYTES).unwrap();
    config.groups.insert("other".to_owned(), other);
    let agent = host.start_with(config);
    let group = agent.until_protected(Protection::WrongVolume).await;
    assert!(group.volumes[0].error.as_ref().unwrap().contains("not the volume"), "{group:?}");
    assert!(!host.socket().exists());
    let mut client = in_time(async {
        loop {
            if let Ok(client) = Nbd::connect(&host.dir.path().join("second.sock"), "second").await {
                return client;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    client.write(0, &[2; 4096]).await.unwrap();
    assert_eq!(host.bytes(0, 4096), [0; 4096]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_the_primary_serves_nothing_until_it_is() {
    let host = Host::new("");
    let agent = host.start();
    host.client().await.write(0, &[1; 4096]).await.unwrap();
    agent.stop().await;
    // The state says that this host is the primary; the configuration now names the other one.
    let away = host.dir.path().join("away");
    let state = host.state().join("groups").join(GROUP);
    std::fs::rename(&state, &away).unwrap();
    let mut config = host.config();
    config.groups.get_mut(GROUP).unwrap().primary = "beta".to_owned();
    let agent = host.start_with(config);
    let answer = agent.call(Request::Activate { group: GROUP.to_owned() }).await;
    assert!(!answer.into_answer::<Activation>().unwrap().serving);
    assert_eq!(agent.group().await, None);
    std::fs::rename(&away, &state).unwrap();
    let answer = agent.call(Request::Activate { group: GROUP.to_owned() }).await;
    let activation = answer.into_answer::<Activation>().unwrap();
    assert!(activation.serving);
    assert_eq!(activation.exports, [host.socket().display().to_string()]);
    assert_eq!(host.client().await.read(0, 4096).await.unwrap(), [1; 4096]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpaired_peer_is_named() {
    let host = Host::new("");
    let agent = host.start();
    let group = agent.until("not paired", |g| g.peer.last_error.is_some()).await;
    assert_eq!(group.protection, Protection::Disconnected);
    assert!(group.peer.last_error.unwrap().contains("not paired"));
    assert_eq!(group.lag, None);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_past_the_end_is_told_as_no_space() {
    let host = Host::new("");
    let agent = host.start();
    let mut client = host.client().await;
    const ENOSPC: u32 = 28;
    assert_eq!(client.write(VOLUME_BYTES - 512, &[1; 1024]).await, Err(ENOSPC));
    client.write(VOLUME_BYTES - 512, &[1; 512]).await.unwrap();
    agent.stop().await;
}

/// With many requests in flight, and a real client.
#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_reads_what_it_wrote() {
    let host = Host::new("hot_extents = 16");
    let agent = host.start();
    host.client().await;
    let uri = format!("nbd+unix:///data?socket={}", host.socket().display());
    let script = [
        "aio_write -P 1 0 8M",
        "aio_write -P 2 16M 8M",
        "aio_write -P 3 100k 64k",
        "aio_write -z -u 1M 40M",
        "discard 48M 16M",
        "write -P 4 3584 1024",
        "aio_flush",
        "flush",
        "read -P 4 3584 1024",
        "read -P 0 24M 1M",
        "read -P 0 60M 4M",
    ];
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    for line in script {
        command.args(["-c", line]);
    }
    let output = match tokio::task::spawn_blocking(move || command.arg(uri).output()).await.unwrap() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("qemu-io is not installed: not tried");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("failed") && !text.contains("error"), "{text}");
    agent.stop().await;
}

/// The extents that a hot-extent log of this host names.
fn hot_extents(host: &Host) -> usize {
    let state = host.state().join("groups").join(GROUP);
    // A copy: the agent may have it open.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(state.join("hot-extents"), copy.path().join("hot-extents")).unwrap();
    let dir = afterimage_storage::disk::RealDir::open(copy.path()).unwrap();
    let capacity = host.config().groups[GROUP].hot_extents as usize;
    afterimage_storage::hot_log::HotLog::open(&dir, "hot-extents", capacity).unwrap().1.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_clean_stop_no_extent_is_hot() {
    let host = Host::new("");
    let agent = host.start();
    let mut client = host.client().await;
    client.write(0, &[1; 4096]).await.unwrap();
    client.write(VOLUME_BYTES - 4096, &[2; 4096]).await.unwrap();
    assert!(hot_extents(&host) > 0, "what is written is hot");
    drop(client);
    agent.stop().await;
    assert_eq!(hot_extents(&host), 0);
    // And again after the next one.
    let agent = host.start();
    host.client().await.write(0, &[3; 4096]).await.unwrap();
    assert!(hot_extents(&host) > 0);
    agent.stop().await;
    assert_eq!(hot_extents(&host), 0);
    assert_eq!(host.bytes(0, 4096), [3; 4096]);
}
