use super::*;

const G1: Generation = Generation(11);
const G2: Generation = Generation(5);
const G3: Generation = Generation(7);
const G4: Generation = Generation(3);

/// The line that begins with the first and forks to each next one at the sequence beside it.
fn line(first: Generation, forks: &[(u64, Generation)]) -> Lineage {
    let mut line = Lineage::new(first);
    forks.iter().for_each(|(at, generation)| line.fork(*generation, Sequence(*at)));
    line
}

fn host(role: Role, lineage: Lineage, sequence: u64) -> Standing {
    Standing { role, lineage, sequence: Sequence(sequence), alone: false, parted: Time(0) }
}

fn alone(standing: Standing) -> Standing {
    Standing { alone: true, ..standing }
}

/// The verdicts for a source and a target that is standby, primary, fenced.
fn verdicts(source: &Standing, target: &Standing) -> [Verdict; 3] {
    [Role::Standby, Role::Primary, Role::Fenced]
        .map(|role| decide(source, &Standing { role, ..target.clone() }))
}

fn primary(lineage: Lineage, sequence: u64) -> Standing {
    host(Role::Primary, lineage, sequence)
}

#[test]
fn a_blank_standby_takes_everything_and_a_blank_source_gives_nothing_to_a_primary() {
    let blank = primary(Lineage::default(), 0);
    let used = primary(line(G1, &[]), 100);
    assert_eq!(verdicts(&used, &blank), [Verdict::Stream, Verdict::Unrelated, Verdict::Unrelated]);
    assert_eq!(verdicts(&blank, &used), [Verdict::Stream, Verdict::Unrelated, Verdict::Unrelated]);
}

#[test]
fn equal_ahead_or_behind_within_a_generation_streams() {
    let target = primary(line(G1, &[]), 100);
    for sequence in [90, 100, 110] {
        let source = primary(line(G1, &[]), sequence);
        assert_eq!(decide(&source, &Standing { role: Role::Standby, ..target.clone() }), Verdict::Stream);
    }
}

#[test]
fn two_primaries_of_a_generation_are_a_cloned_machine() {
    let one = primary(line(G1, &[]), 100);
    assert_eq!(verdicts(&one, &one), [Verdict::Stream, Verdict::Clone, Verdict::Clone]);
}

#[test]
fn an_old_primary_without_a_tail_was_replaced() {
    let old = primary(line(G1, &[]), 100);
    for fork in [100, 120] {
        let promoted = primary(line(G1, &[(fork, G2)]), 130);
        assert_eq!(relate(&old, &promoted), Relation::Behind { fork: Sequence(fork) });
        assert_eq!(verdicts(&old, &promoted), [Verdict::SourceReplaced; 3]);
        assert_eq!(verdicts(&alone(old.clone()), &promoted), [Verdict::SourceReplaced; 3]);
    }
}

#[test]
fn an_old_primary_with_a_tail_was_replaced_and_keeps_it_for_salvage() {
    let old = primary(line(G1, &[]), 150);
    let promoted = primary(line(G1, &[(100, G2)]), 130);
    assert_eq!(relate(&old, &promoted), Relation::Forked { fork: Sequence(100) });
    assert_eq!(verdicts(&old, &promoted), [Verdict::SourceReplaced; 3]);
}

#[test]
fn an_old_primary_that_served_alone_is_a_split_brain() {
    let old = alone(primary(line(G1, &[]), 150));
    let promoted = primary(line(G1, &[(100, G2)]), 130);
    assert_eq!(verdicts(&old, &promoted), [Verdict::SplitBrain; 3]);
}

#[test]
fn a_promoted_source_streams_to_a_standby_at_or_before_its_fork() {
    let promoted = primary(line(G1, &[(100, G2)]), 130);
    let before = primary(line(G1, &[]), 100);
    assert_eq!(relate(&promoted, &before), Relation::Ahead { fork: Sequence(100) });
    assert_eq!(
        verdicts(&promoted, &before),
        [Verdict::Stream, Verdict::TargetReplaced, Verdict::ReinstateTarget]
    );
}

#[test]
fn a_promoted_source_has_a_target_beyond_its_fork_reinstated() {
    let promoted = primary(line(G1, &[(100, G2)]), 130);
    let beyond = primary(line(G1, &[]), 101);
    assert_eq!(relate(&promoted, &beyond), Relation::Overtaken { fork: Sequence(100) });
    assert_eq!(
        verdicts(&promoted, &beyond),
        [Verdict::ReinstateTarget, Verdict::TargetReplaced, Verdict::ReinstateTarget]
    );
    assert_eq!(
        verdicts(&promoted, &alone(beyond)),
        [Verdict::ReinstateTarget, Verdict::SplitBrain, Verdict::SplitBrain]
    );
}

#[test]
fn two_promotions_of_one_history_are_a_split_brain() {
    let one = primary(line(G1, &[(100, G2)]), 130);
    let other = primary(line(G1, &[(90, G3)]), 95);
    assert_eq!(relate(&one, &other), Relation::BothForked { common: Position::new(G1, Sequence(90)) });
    assert_eq!(verdicts(&one, &other), [Verdict::ReinstateTarget, Verdict::SplitBrain, Verdict::SplitBrain]);
}

#[test]
fn hosts_without_a_common_generation_are_unrelated() {
    let one = primary(line(G1, &[(100, G2)]), 130);
    let other = primary(line(G3, &[(90, G4)]), 130);
    assert_eq!(verdicts(&one, &other), [Verdict::Unrelated; 3]);
}

#[test]
fn a_host_restored_from_an_old_backup_is_seen_by_its_line() {
    let long = line(G1, &[(100, G2), (200, G3), (300, G4)]);
    let now = primary(long.clone(), 350);
    // A standby from before two promotions, within what both share.
    let old = primary(line(G1, &[]), 80);
    assert_eq!(relate(&now, &old), Relation::Ahead { fork: Sequence(100) });
    assert_eq!(decide(&now, &Standing { role: Role::Standby, ..old.clone() }), Verdict::Stream);
    // A primary from back then.
    assert_eq!(decide(&old, &now), Verdict::SourceReplaced);
    assert_eq!(decide(&primary(line(G1, &[(100, G2)]), 201), &now), Verdict::SourceReplaced);
}

#[test]
fn relations_mirror_each_other() {
    let lines = [
        line(G1, &[]),
        line(G1, &[(100, G2)]),
        line(G1, &[(100, G2), (200, G3)]),
        line(G1, &[(90, G4)]),
        line(G3, &[]),
        Lineage::default(),
    ];
    for a in &lines {
        for b in &lines {
            for (x, y) in [(80, 80), (80, 250), (250, 80), (250, 250)] {
                let (a, b) = (primary(a.clone(), x), primary(b.clone(), y));
                let mirrored = match relate(&b, &a) {
                    Relation::Behind { fork } => Relation::Ahead { fork },
                    Relation::Forked { fork } => Relation::Overtaken { fork },
                    Relation::Ahead { fork } => Relation::Behind { fork },
                    Relation::Overtaken { fork } => Relation::Forked { fork },
                    other => other,
                };
                assert_eq!(relate(&a, &b), mirrored, "{a:?} {b:?}");
            }
        }
    }
}

#[test]
fn never_do_two_primaries_stream_to_each_other() {
    for row in TABLE {
        assert_ne!(row.verdicts[1], Verdict::Stream, "{}", row.relation);
        assert_ne!(row.verdicts[2], Verdict::Stream, "{}", row.relation);
    }
}

#[test]
fn a_line_is_bounded_and_can_be_taken_back() {
    let mut long = Lineage::new(G1);
    for n in 0..200 {
        long.fork(Generation(1_000 + n), Sequence(n));
    }
    assert_eq!(long.past().len(), MAX_GENERATIONS);
    assert_eq!(long.parent(), Some(Position::new(Generation(1_198), Sequence(199))));
    assert!(long.unfork());
    assert_eq!(long.current(), Generation(1_198));
    assert!(!Lineage::new(G1).unfork());
}

#[test]
fn the_documentation_shows_the_table() {
    let page = include_str!("../../../docs/roles.md");
    for row in TABLE {
        let [standby, primary, fenced] = row.verdicts;
        let line = format!("| {} | {} | {standby} | {primary} | {fenced} |", row.relation, row.meaning);
        assert!(page.contains(&line), "docs/roles.md lacks the row\n{line}");
    }
}
