//! The sizes of the volumes, which each session may change.

use super::*;
use crate::message::{Refusal, VolumeInfo};

const LARGER: u64 = SIZE + 512;

fn open_with(size_bytes: u64) -> Open {
    let volumes = vec![VolumeInfo { name: "v".into(), size_bytes }];
    Open { volumes, ..open(SessionId(SESSION.0 + size_bytes), SESSION) }
}

impl Bench {
    fn refusal(&mut self, open: Open) -> String {
        match self.target.open(Time(1), open) {
            Err(TargetMessage::Refused { code: Refusal::Volumes, text, .. }) => text,
            other => panic!("{other:?}"),
        }
    }

    fn stored_size(&self) -> u64 {
        self.target.state().volumes[0].size_bytes
    }
}

#[test]
fn a_larger_volume_is_taken_where_there_is_room_and_durable_before_the_answer() {
    let mut bench = Bench::new(Some(5));
    let text = bench.refusal(open_with(LARGER));
    assert!(text.contains(&format!("{SIZE} bytes here and {LARGER} at the source")), "{text}");
    assert_eq!(bench.stored_size(), SIZE);
    bench.target.measured(vec![LARGER + 512]);
    bench.sent.clear();
    bench.target.open(Time(1), open_with(LARGER)).unwrap();
    let first = std::iter::from_fn(|| bench.target.poll())
        .find(|o| matches!(o, Output::PersistState { .. } | Output::Send { .. }));
    let Some(Output::PersistState { version, state }) = first else { panic!("{first:?}") };
    assert_eq!(state.volumes[0].size_bytes, LARGER);
    bench.target.state_persisted(Time(1), version, true);
    bench.run();
    assert!(matches!(bench.sent.last(), Some(TargetMessage::Opened(_))), "{:?}", bench.sent);
}

#[test]
fn frames_count_with_the_size_of_their_session() {
    let mut bench = Bench::new(Some(5));
    let session = open_with(LARGER).session;
    let record = |offset| {
        Frame::Record(Record {
            position: position(6),
            range: ByteRange::new(VolumeIndex(0), offset, 512),
            time: Time(1),
            content: Content::Zeroes { punch: false },
            floor: Sequence(0),
        })
    };
    bench.target.frame(Time(1), SESSION, record(SIZE)).unwrap_err();
    let mut bench = Bench::new(Some(5));
    bench.target.measured(vec![2 * LARGER]);
    bench.target.open(Time(1), open_with(LARGER)).unwrap();
    bench.run();
    bench.target.frame(Time(1), session, record(SIZE)).unwrap();
    bench.run();
    assert_eq!(bench.records(), [6]);
    bench.target.frame(Time(1), session, record(LARGER)).unwrap_err();
}

#[test]
fn a_copy_that_is_offered_is_not_made_smaller() {
    let mut bench = Bench::new(Some(5));
    let text = bench.refusal(open_with(SIZE - 512));
    assert!(text.contains("not made smaller"), "{text}");
    assert_eq!(bench.stored_size(), SIZE);
    // What has no checkpoint is nobody's image: a host that is reinstated may have been the larger one.
    let mut bench = Bench::new(None);
    bench.target.open(Time(1), open_with(SIZE - 512)).unwrap();
    bench.run();
    assert_eq!(bench.stored_size(), SIZE - 512);
}

#[test]
fn other_names_are_other_volumes() {
    let mut bench = Bench::new(Some(5));
    let mut open = open_with(SIZE);
    open.volumes[0].name = "w".into();
    assert!(bench.refusal(open).contains("the volumes differ: v here, w at the source"));
    let mut open = open_with(SIZE);
    open.volumes.push(VolumeInfo { name: "w".into(), size_bytes: SIZE });
    bench.refusal(open);
}
