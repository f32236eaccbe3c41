use afterimage_contract::config::Mode;
use afterimage_contract::status::{CatchUp, JournalStatus, PeerStatus, Warning};
use afterimage_events::Event;

use super::*;

const MIB: u64 = 1 << 20;

fn status(role: Role, protection: Protection) -> GroupStatus {
    let peer = PeerStatus { name: "beta".into(), ..PeerStatus::default() };
    GroupStatus::new("orders", role, Mode::Sync, protection, peer)
}

fn standby(received: u64, applied: Option<u64>, unapplied_bytes: u64) -> GroupStatus {
    let mut status = status(Role::Standby, Protection::AsyncStreaming);
    status.received_sequence = Some(received);
    status.journal = Some(JournalStatus {
        bytes: 64 * MIB,
        limit_bytes: 64 * MIB,
        oldest: None,
        newest: None,
        applied_sequence: applied,
        unapplied_bytes: Some(unapplied_bytes),
        apply_rate_bytes_per_s: None,
    });
    status
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn waits(verdict: Verdict) -> Work {
    match verdict {
        Verdict::Wait(work, _) => work,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_first_sync_is_shown_until_the_group_is_protected() {
    let mut judge = Judge::new("orders", Goal::Protected);
    let mut first = status(Role::Primary, Protection::FirstSync);
    first.catchup = Some(CatchUp {
        done_bytes: 3 * MIB,
        total_bytes: 9 * MIB,
        rate_bytes_per_s: None,
        eta_s: None,
        first: true,
    });
    let work = waits(judge.look(at(0), Some(&first), None));
    assert_eq!((work.name.as_str(), work.done_bytes), ("first sync of orders", Some(3 * MIB)));
    assert_eq!(work.rate_bytes_per_s, None);
    let catching_up = status(Role::Primary, Protection::CatchingUp);
    let work = waits(judge.look(at(1), Some(&catching_up), None));
    assert_eq!((work.name.as_str(), work.total_bytes), ("catch-up of orders", None));
    assert_eq!(judge.look(at(2), Some(&status(Role::Primary, Protection::InSync)), None), Verdict::Reached);
}

#[test]
fn what_only_a_person_ends_is_given_up_once_it_has_lasted() {
    for (protection, event) in [
        (Protection::Fenced, Event::Fenced),
        (Protection::WrongVolume, Event::WrongVolume),
        (Protection::Failed, Event::GroupFailed),
        (Protection::Refused, Event::PeerRefuses),
    ] {
        let mut judge = Judge::new("orders", Goal::Protected);
        let role = if protection == Protection::Fenced { Role::Fenced } else { Role::Primary };
        let status = status(role, protection);
        waits(judge.look(at(0), Some(&status), None));
        let Verdict::Never(obstacle) = judge.look(SETTLED, Some(&status), None) else {
            panic!("{protection:?} is waited for")
        };
        assert_eq!(obstacle.event, Some(event));
        assert!(obstacle.action.is_some(), "{obstacle:?}");
    }
}

#[test]
fn what_passes_in_between_is_not_given_up() {
    let mut judge = Judge::new("orders", Goal::Protected);
    let refused = status(Role::Primary, Protection::Refused);
    let apart = status(Role::Primary, Protection::Disconnected);
    for second in (0..60).step_by(4) {
        waits(judge.look(at(second), Some(&refused), None));
        let work = waits(judge.look(at(second + 2), Some(&apart), None));
        assert!(work.note.is_some_and(|note| note.contains("no connection to beta")));
    }
}

#[test]
fn a_paused_stream_is_given_up() {
    let mut judge = Judge::new("orders", Goal::Protected);
    let mut paused = status(Role::Primary, Protection::Disconnected);
    paused.warnings.push(Warning::new("stream_paused", "the stream was paused", "resume it"));
    waits(judge.look(at(0), Some(&paused), None));
    assert!(matches!(judge.look(at(9), Some(&paused), None), Verdict::Never(_)));
}

#[test]
fn daemons_that_start_again_are_waited_for() {
    let mut judge = Judge::new("orders", Goal::Protected);
    waits(judge.look(at(0), None, Some("the agent is not running")));
    waits(judge.look(at(14), None, Some("the agent is not running")));
    waits(judge.look(at(15), Some(&status(Role::Primary, Protection::CatchingUp)), None));
    waits(judge.look(at(16), None, Some("the agent is not running")));
    let Verdict::Never(obstacle) = judge.look(at(31), None, Some("the agent is not running")) else {
        panic!("silence is waited for")
    };
    assert_eq!(obstacle.text, "the agent is not running");
}

#[test]
fn applying_counts_what_was_there_at_first_and_not_what_came_since() {
    let mut judge = Judge::new("orders", Goal::Applied);
    let work = waits(judge.look(at(0), Some(&standby(50, Some(10), 40 * MIB)), None));
    assert_eq!((work.done_bytes, work.total_bytes), (Some(0), Some(40 * MIB)));
    // While a batch is written it is not known what is applied.
    let work = waits(judge.look(at(1), Some(&standby(60, None, 30 * MIB)), None));
    assert_eq!((work.done_bytes, work.total_bytes), (Some(10 * MIB), Some(40 * MIB)));
    let work = waits(judge.look(at(2), Some(&standby(90, Some(49), 45 * MIB)), None));
    assert_eq!((work.done_bytes, work.total_bytes), (Some(10 * MIB), Some(55 * MIB)));
    assert_eq!(judge.look(at(3), Some(&standby(99, Some(50), 45 * MIB)), None), Verdict::Reached);
}

#[test]
fn a_promotion_has_applied_everything() {
    let mut judge = Judge::new("orders", Goal::Applied);
    waits(judge.look(at(0), Some(&standby(50, Some(10), 40 * MIB)), None));
    let primary = status(Role::Primary, Protection::Disconnected);
    assert_eq!(judge.look(at(1), Some(&primary), None), Verdict::Reached);
}
