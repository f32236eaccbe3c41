//! A promotion: the newest checkpoint becomes the image, and everything is left to the agent.

mod common;

use std::sync::Arc;

use afterimage_contract::admin::Loss;
use afterimage_protocol::message::Refusal;
use afterimage_protocol::state::Role;
use afterimage_storage::disk::RealDir;
use afterimage_storage::group::GroupStore;
use afterimage_storage::lock::DirLock;
use afterimage_storage::volume::Volume;

use common::frames::{BLOCK, Epoch, noise, position, record};
use common::source::{Source, open_message};
use common::*;

#[tokio::test]
async fn a_promotion_yields_every_received_record_and_frees_the_volumes() {
    let mut standby = Standby::new();
    standby.history = "1h";
    let receiver = standby.run();
    let mut source = Source::first_sync(&standby, 1).await;
    for sequence in 11..=30 {
        source.send(&record(sequence, sequence * BLOCK, BLOCK)).await;
    }
    source.until_received(30).await;
    // Half a catch-up counts for nothing.
    let mut epoch = Epoch::new(2);
    source.send(&epoch.begin()).await;
    source.blocks(&[epoch.block(0, &noise(99, BLOCK), 35)]).await;
    source.send(&record(36, 100 * BLOCK, BLOCK)).await;
    source.until_staged(36).await;

    let would = standby.promote(true).await.unwrap();
    assert_eq!((would.position.sequence, would.generation.clone()), (30, None));
    assert!(!would.warnings.is_empty(), "the primary is connected");
    let promotion = standby.promote(false).await.unwrap();
    assert_eq!(source.closed().await, "the standby is being promoted");
    assert_eq!(promotion.position.sequence, 30);
    assert_eq!(promotion.time_us, Some(1_000_030));
    assert_eq!(promotion.loss, Loss::Unknown { since_us: Some(1_000_030) });
    assert!(promotion.primary_seen_us.is_some());

    let mut image = noise(1, 1 << 20).to_vec();
    for sequence in 11..=30 {
        let at = (sequence * BLOCK) as usize;
        image[at..at + BLOCK as usize].copy_from_slice(&noise(sequence, BLOCK));
    }
    assert!(standby.bytes()[..1 << 20] == image[..]);
    assert!(standby.bytes()[1 << 20..].iter().all(|b| *b == 0));

    // The agent can take it over at once, and the receiver leaves it alone.
    let dir = standby.host.dir.path().join("groups").join(GROUP);
    let lock = DirLock::take(&dir).unwrap();
    let volume = Volume::open(standby.image(), None).unwrap();
    let (_, state) = GroupStore::open(Arc::new(RealDir::open(&dir).unwrap())).unwrap();
    let state = state.unwrap();
    assert_eq!((state.role, state.parent()), (Role::Primary, Some(position(30))));
    assert_eq!(Some(state.generation().to_string()), promotion.generation);
    let (code, text) = Source::ask(&standby, open_message(2)).await.err().unwrap();
    assert_eq!(code, Refusal::Promoted);
    assert!(text.contains(&state.generation().to_string()), "{text}");
    assert!(standby.promote(false).await.unwrap_err().contains("primary of the group already"));
    assert!(standby.status().await.groups.is_empty());
    drop((lock, volume));
    receiver.stop().await;

    // It stays so after a restart, whether the agent holds the group or not.
    let receiver = standby.run();
    assert_eq!(Source::ask(&standby, open_message(3)).await.err().unwrap().0, Refusal::Promoted);
    let _lock = DirLock::take(&dir).unwrap();
    assert_eq!(Source::ask(&standby, open_message(4)).await.err().unwrap().0, Refusal::Promoted);
    receiver.stop().await;
}

#[tokio::test]
async fn nothing_is_promoted_before_the_first_sync_is_over() {
    let standby = Standby::new();
    let receiver = standby.run();
    let (mut source, _) = Source::open(&standby, 1).await;
    let mut epoch = Epoch::new(1);
    source.send(&epoch.begin()).await;
    source.blocks(&[epoch.block(0, &noise(1, BLOCK), 10)]).await;
    source.next().await;
    for dry_run in [true, false] {
        let refused = standby.promote(dry_run).await.unwrap_err();
        assert!(refused.contains("first sync has not finished"), "{refused}");
    }
    source.send(&epoch.commit(10)).await;
    source.until_durable(10).await;
    assert_eq!(standby.promote(true).await.unwrap().position.sequence, 10);
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_primary_answers_a_promotion_wants_force() {
    let standby = Standby::new();
    let receiver = standby.run();
    let mut source = Source::first_sync(&standby, 1).await;
    let refused = standby.promote_with(false, false).await.unwrap_err();
    assert!(refused.contains("answers") && refused.contains("--force"), "{refused}");
    // Nothing has changed.
    source.send(&record(11, BLOCK, BLOCK)).await;
    source.until_received(11).await;
    drop(source);
    assert_eq!(standby.promote_with(false, false).await.unwrap().position.sequence, 11);
    receiver.stop().await;
}
