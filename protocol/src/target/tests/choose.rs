use super::*;

fn at_time(frame: Frame, us: u64) -> Frame {
    match frame {
        Frame::Record(record) => Frame::Record(Record { time: Time(us), ..record }),
        other => other,
    }
}

/// A target with history from 10 on: a record to each of the first blocks, one a second.
fn bench() -> Bench {
    let mut bench = Bench::new(Some(10));
    for n in 1..=5 {
        bench.feed(at_time(record(10 + n, n * BLOCK_BYTES, BLOCK_BYTES), n * 1_000_000));
    }
    bench.run();
    bench
}

fn search(bench: &Bench, wanted: Wanted) -> Result<Choice, NoSuchPoint> {
    bench.fed(bench.target.search(wanted).unwrap())
}

fn sequence(n: u64) -> Wanted {
    Wanted::Sequence(Sequence(n))
}

fn blocks(first: u64, count: u64) -> BlockRange {
    BlockRange { volume: VolumeIndex(0), first, count }
}

#[test]
fn the_newest_checkpoint_at_or_before_what_is_wanted_is_chosen() {
    let bench = bench();
    let chosen = |wanted| search(&bench, wanted).map(|choice| choice.point.position.sequence.0).ok();
    for n in 10..=15 {
        assert_eq!(chosen(sequence(n)), Some(n));
    }
    assert_eq!((chosen(sequence(9)), chosen(sequence(16))), (None, None));
    for (us, expected) in
        [(999_999, None), (1_000_000, Some(11)), (2_500_000, Some(12)), (9_000_000, Some(15))]
    {
        assert_eq!(chosen(Wanted::Time(Time(us))), expected, "{us}");
    }
    let none = search(&bench, Wanted::Bookmark).unwrap_err();
    let point = |n: u64, us: Option<u64>| Point { sequence: Sequence(n), time: us.map(Time) };
    let expected = NoSuchPoint {
        oldest: point(10, None),
        oldest_timed: Some(point(11, Some(1_000_000))),
        newest: point(15, Some(5_000_000)),
    };
    assert_eq!(none, expected);
}

#[test]
fn a_clock_that_was_set_back_yields_nothing_that_is_later_than_wanted() {
    let mut bench = bench();
    bench.feed(at_time(record(16, 0, 512), 1_500_000));
    bench.run();
    let choice = search(&bench, Wanted::Time(Time(2_500_000))).unwrap();
    assert_eq!(choice.point.position, position(12));
}

#[test]
fn what_lies_behind_the_point_is_counted() {
    let bench = bench();
    let choice = search(&bench, sequence(13)).unwrap();
    let Discarded { records, bytes, newest, .. } = choice.discarded.clone();
    assert_eq!((records, bytes), (2, 2 * BLOCK_BYTES));
    assert_eq!(newest, Some(Point { sequence: Sequence(15), time: Some(Time(5_000_000)) }));
    assert_eq!(choice.blocks(), [blocks(4, 2)]);
    let newest = search(&bench, sequence(15)).unwrap();
    assert_eq!((newest.discarded.records, newest.discarded.newest, newest.blocks()), (0, None, vec![]));
}

#[test]
fn nothing_within_an_epoch_is_a_point() {
    let mut bench = bench();
    bench.feed(begin(EPOCH));
    bench.feed(block(EPOCH, 0, 15, 0));
    bench.run();
    bench.feed(record(16, 8 * BLOCK_BYTES, 512));
    bench.run();
    assert_eq!(search(&bench, sequence(16)).unwrap_err().newest.sequence, Sequence(15));
    bench.feed(commit(EPOCH, 17, &[(0, 15)]));
    bench.run();
    assert_eq!(search(&bench, sequence(16)).unwrap().point.position, position(15));
    let commit = search(&bench, sequence(17)).unwrap();
    assert_eq!((commit.point.position, commit.point.lsn), (position(17), bench.end()));
}

#[test]
fn what_is_discarded_is_durably_lost_before_the_journal_is_cut() {
    let mut bench = bench();
    bench.feed(begin(EPOCH));
    bench.feed(block(EPOCH, 0, 15, 0));
    bench.run();
    let staged: Vec<_> = bench.target.epoch.as_ref().unwrap().discarded();
    bench.target.promote_at(Time(1), Generation(8), sequence(13));
    let mut noted = None;
    let cut = loop {
        match bench.target.poll().expect("the promotion goes on") {
            Output::Search(search) => {
                let found = bench.fed(*search);
                bench.target.searched(Time(1), Some(found));
            }
            Output::PersistState { version, state } => {
                noted = Some(state.lost.clone());
                bench.target.state_persisted(Time(1), version, true);
            }
            Output::SyncJournal { .. } => bench.target.journal_synced(Time(1), Some(bench.end())),
            Output::Truncate { at } => break at,
            _ => {}
        }
    };
    let mut expected = LostBlocks::None;
    expected.add(staged);
    expected.add([blocks(4, 2)]);
    assert_eq!(noted, Some(expected));
    assert_eq!(cut, Lsn(300));
    bench.journal.retain(|(end, _)| *end <= cut);
    bench.target.truncated(Time(1), true);
    assert_eq!(bench.target.newest().map(|p| p.position), Some(position(13)));
    bench.run();
    let state = bench.target.state();
    assert_eq!((state.role, state.parent()), (Role::Primary, Some(position(13))));
    assert_eq!(state.base.map(|base| base.position), Some(position(13)));
    assert!(!state.lost.is_none() && state.may_roll_back().is_ok());
    assert_eq!(bench.redone.last().map(|(to, _)| *to), Some(Lsn(300)));
}

#[test]
fn a_promotion_at_a_point_that_is_not_there_changes_nothing_but_the_session() {
    let mut bench = bench();
    bench.target.promote_at(Time(1), Generation(8), sequence(9));
    bench.run();
    assert!(matches!(bench.promoted, Some(Err(CannotPromote::NoSuchPoint(_)))), "{:?}", bench.promoted);
    assert_eq!((bench.target.state().role, bench.records().len()), (Role::Standby, 5));
    assert_eq!(bench.target.newest().map(|p| p.position), Some(position(15)));
    bench.ask(SessionId(10), SESSION);
    assert_eq!(bench.target.session(), Some(SessionId(10)));
}

#[test]
fn the_base_itself_can_be_chosen() {
    let mut bench = bench();
    bench.target.promote_at(Time(1), Generation(8), sequence(10));
    bench.run();
    assert!(matches!(bench.promoted, Some(Ok(_))), "{:?}", bench.promoted);
    assert_eq!(bench.target.state().parent(), Some(position(10)));
    assert!(bench.journal.is_empty());
}
