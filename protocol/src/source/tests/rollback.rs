use super::*;
use crate::frame::Content;
use crate::message::Refusal;
use crate::state::BasePoint;

const PROMOTED: Generation = Generation(8);
const FORK: Sequence = Sequence(40);

/// A host that was promoted and has admitted nothing, with its first state durable.
fn promoted() -> Source {
    let mut state = new_state();
    state.lineage = Lineage::new(GENERATION);
    state.lineage.fork(PROMOTED, FORK);
    state.base = Some(BasePoint { position: Position::new(GENERATION, FORK), lsn: Lsn(9) });
    state.reserved = FORK;
    state.pending = true;
    state.mark = 5;
    let mut source = Source::start(config(Mode::Async, AckLevel::Durable), found(state), Time(1));
    let (state, others) = run(&mut source, true);
    assert!(state.unwrap().pending);
    assert!(others.is_empty(), "{others:?}");
    source
}

/// The last state that was to be written, which `durable` says of it, and what is wanted beside; logs are durable at once.
fn run(source: &mut Source, durable: bool) -> (Option<GroupState>, Vec<Output>) {
    let (mut last, mut others) = (None, Vec::new());
    while let Some(output) = source.poll() {
        match output {
            Output::PersistState { version, state } => {
                last = Some(*state);
                source.state_persisted(Time(1), version, durable);
            }
            Output::PersistHot { transaction, .. } => source.hot_persisted(Time(1), transaction, true),
            Output::SyncBitmap { token, .. } => source.bitmap_synced(Time(1), token, true),
            other => others.push(other),
        }
    }
    (last, others)
}

fn write(source: &mut Source) {
    let write = Write {
        range: ByteRange::new(VolumeIndex(0), 0, 4096),
        content: Content::Zeroes { punch: false },
        fua: false,
    };
    source.write(Time(1), RequestId(1), write);
}

#[test]
fn the_first_write_waits_until_it_is_durable_that_the_generation_is_real() {
    let mut source = promoted();
    write(&mut source);
    let mut notes = Vec::new();
    while let Some(output) = source.poll() {
        match output {
            Output::PersistState { version, state } => notes.push((version, state.pending, state.mark)),
            Output::PersistHot { transaction, .. } => source.hot_persisted(Time(1), transaction, true),
            other => panic!("{other:?}"),
        }
    }
    let [(version, false, 0)] = notes[..] else { panic!("{notes:?}") };
    assert_eq!(source.may_roll_back(), Err(CannotRollBack::Real));
    source.state_persisted(Time(1), version, true);
    let (_, others) = run(&mut source, true);
    assert!(others.iter().any(|o| matches!(o, Output::LocalWrite { .. })), "{others:?}");
    source.roll_back(Time(1));
    let (_, others) = run(&mut source, true);
    assert!(matches!(others[..], [Output::RolledBack(Err(CannotRollBack::Real))]), "{others:?}");
}

#[test]
fn a_rollback_is_told_once_it_is_durable_and_nothing_is_admitted_from_its_beginning() {
    let mut source = promoted();
    source.roll_back(Time(1));
    write(&mut source);
    let Some(Output::PersistState { version, state }) = source.poll() else { panic!() };
    assert!(source.poll().is_none(), "it is not durable");
    assert_eq!(source.may_roll_back(), Err(CannotRollBack::UnderWay));
    assert_eq!((state.role, state.generation(), state.parent()), (Role::Standby, GENERATION, None));
    assert_eq!((state.pending, &state.rolled_back), (false, &vec![PROMOTED]));
    assert_eq!(state.mark, 5, "the old primary knows it");
    assert_eq!(state.base.map(|base| base.position), Some(Position::new(GENERATION, FORK)));
    source.state_persisted(Time(1), version, true);
    let (_, others) = run(&mut source, true);
    assert!(
        matches!(others[..], [Output::RolledBack(Ok(position))] if position.sequence == FORK),
        "{others:?}"
    );
    assert!(source.open(SessionId(5)).is_none());
    assert_eq!(source.may_roll_back(), Err(CannotRollBack::NotPromoted));
}

#[test]
fn a_rollback_that_cannot_be_written_ends_the_service_too() {
    let mut source = promoted();
    source.roll_back(Time(1));
    let (_, others) = run(&mut source, false);
    assert!(
        others.iter().any(|o| matches!(o, Output::RolledBack(Err(CannotRollBack::Failed)))),
        "{others:?}"
    );
    write(&mut source);
    let (_, others) = run(&mut source, false);
    assert!(!others.iter().any(|o| matches!(o, Output::LocalWrite { .. })), "{others:?}");
}

#[test]
fn without_a_state_that_can_be_written_no_write_is_admitted() {
    let mut source = promoted();
    write(&mut source);
    let (_, others) = run(&mut source, false);
    let refused = |o: &Output| matches!(o, Output::Complete { result: Err(LocalError::Io), .. });
    assert!(others.iter().any(refused), "{others:?}");
    write(&mut source);
    let (_, others) = run(&mut source, false);
    assert!(matches!(&others[..], [only] if refused(only)), "{others:?}");
}

#[test]
fn no_standby_follows_before_the_generation_is_real() {
    let mut source = promoted();
    assert!(source.open(SessionId(5)).unwrap().pending);
    let text = "not yet".to_owned();
    source.message(Time(1), TargetMessage::Refused { code: Refusal::Pending, text, standing: None });
    source.disconnected(Time(1));
    assert!(source.open(SessionId(6)).is_none(), "it is not durable");
    let (state, _) = run(&mut source, true);
    assert!(!state.unwrap().pending);
    assert!(!source.open(SessionId(6)).unwrap().pending);
    assert_eq!(source.may_roll_back(), Err(CannotRollBack::Real));
}
