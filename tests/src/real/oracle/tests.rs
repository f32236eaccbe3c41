//! The oracle against images that are known to be right or wrong, and against trying every order.

use super::*;
use crate::real::stamp::Stamp;
use crate::sim::Rng;

const RUN: u64 = 77;
const BLOCKS: u64 = 4;

/// The image of one volume after applying `writes` in this order; `skip` leaves out a part of a write.
fn apply(history: &History, order: &[u64], skip: impl Fn(u64, u64) -> bool) -> Vec<u8> {
    let mut image = vec![0; BLOCKS as usize * BLOCK_BYTES];
    for &number in order {
        let write = history.write(number).unwrap();
        for block in write.block_range().filter(|&block| !skip(number, block)) {
            let slot = &mut image[block as usize * BLOCK_BYTES..][..BLOCK_BYTES];
            stamp::stamp(slot.try_into().unwrap(), RUN, Stamp { number, volume: 0, block });
        }
    }
    image
}

fn image(history: &History, order: &[u64]) -> Vec<u8> {
    apply(history, order, |_, _| false)
}

fn check(history: &History, mut image: Vec<u8>, must: &[u64]) -> Result<Prefix, String> {
    check_prefix(&mut [&mut image], history, &must.iter().copied().collect())
}

/// Writes of one block each, each acknowledged before the next is issued.
fn one_by_one(blocks: &[u64]) -> History {
    let mut history = History::new(RUN);
    for &block in blocks {
        let number = history.issue(0, block, 1);
        history.acknowledge(number);
    }
    history
}

#[test]
fn with_one_write_in_flight_only_exact_prefixes_pass() {
    let history = one_by_one(&[0, 1, 0, 2, 1]);
    for len in 0..=5u64 {
        let order: Vec<u64> = (1..=len).collect();
        let prefix = check(&history, image(&history, &order), &[]).unwrap();
        assert_eq!(prefix.writes, order.into_iter().collect());
    }
    for wrong in [&[1, 3][..], &[2], &[1, 2, 4], &[1, 2, 3, 5], &[1, 2, 3, 5, 4, 1], &[5]] {
        check(&history, image(&history, wrong), &[]).unwrap_err();
    }
}

#[test]
fn errors_say_which_block_and_why() {
    let history = one_by_one(&[0, 1, 0, 2]);
    let error = check(&history, image(&history, &[1, 2, 4]), &[]).unwrap_err();
    assert_eq!(
        error,
        "block 0 of volume 0 shows write 1 instead of the later write 3: it was acknowledged before write 4, \
         which is in the image, was issued"
    );
    let error = check(&history, image(&history, &[1]), &[2]).unwrap_err();
    assert_eq!(error, "block 1 of volume 0 lacks write 2: it must be in the image");
}

#[test]
fn a_sync_group_has_every_acknowledged_write() {
    let mut history = one_by_one(&[0, 1]);
    let last = history.issue(0, 2, 1);
    let must: Vec<u64> = history.acknowledged().into_iter().collect();
    check(&history, image(&history, &[1]), &must).unwrap_err();
    check(&history, image(&history, &[1, 2]), &must).unwrap();
    check(&history, image(&history, &[1, 2, last]), &must).unwrap();
    assert!(check(&history, image(&history, &[]), &[9]).unwrap_err().contains("never issued"));
}

#[test]
fn writes_in_flight_together_may_be_in_any_order_but_the_same_for_all_blocks() {
    let mut history = History::new(RUN);
    let (a, b) = (history.issue(0, 0, 2), history.issue(0, 0, 2));
    history.acknowledge(b);
    history.acknowledge(a);
    for right in [&[][..], &[a], &[b], &[a, b], &[b, a]] {
        check(&history, image(&history, right), &[]).unwrap();
    }
    let mixed = apply(&history, &[a, b], |number, block| number == b && block == 1);
    let error = check(&history, mixed, &[]).unwrap_err();
    assert!(error.contains("no order of the writes"), "{error}");
    assert!(error.contains("block 0 of volume 0 says that write 1 came before write 2"), "{error}");
}

#[test]
fn an_order_that_no_two_writes_contradict_may_still_be_impossible() {
    let mut history = History::new(RUN);
    let long = history.issue(0, 0, 2);
    let early = history.issue(0, 1, 1);
    history.acknowledge(early);
    let late = history.issue(0, 0, 1);
    history.acknowledge(late);
    check(&history, image(&history, &[long, early, late]), &[]).unwrap();
    check(&history, image(&history, &[early, late, long]), &[]).unwrap();
    check(&history, image(&history, &[early, long, late]), &[]).unwrap();
    // Block 0 says late before long, block 1 says long before early; and early was acknowledged before late.
    check(&history, image(&history, &[late, long, early]), &[late]).unwrap_err();
}

#[test]
fn a_write_is_there_as_a_whole_unless_the_server_died_in_it() {
    let mut history = History::new(RUN);
    let whole = history.issue(0, 0, 2);
    history.acknowledge(whole);
    let torn = history.issue(0, 0, 3);
    let half =
        |history: &History| apply(history, &[whole, torn], |number, block| number == torn && block != 0);
    check(&history, half(&history), &[]).unwrap_err();
    let mut replaced = history.clone();
    replaced.server_replaced();
    check(&replaced, half(&replaced), &[]).unwrap_err();
    history.server_restarted();
    check(&history, half(&history), &[]).unwrap();

    let after = history.issue(0, 0, 1);
    history.acknowledge(after);
    check(&history, image(&history, &[whole, after, torn]), &[after]).unwrap_err();
    check(&history, image(&history, &[whole, torn, after]), &[after]).unwrap();
    check(&history, image(&history, &[whole, after]), &[after]).unwrap();
}

#[test]
fn what_a_failover_gave_up_must_not_come_back() {
    let mut history = one_by_one(&[0, 1, 2]);
    let prefix = check(&history, image(&history, &[1, 2]), &[]).unwrap();
    history.give_up_all_but(&prefix.writes);
    assert_eq!(history.acknowledged(), BTreeSet::from([1, 2]));
    let new = history.issue(0, 3, 1);
    history.acknowledge(new);
    check(&history, image(&history, &[1, 2, new]), &[1, 2, new]).unwrap();
    let error = check(&history, image(&history, &[1, 2, 3, new]), &[]).unwrap_err();
    assert_eq!(error, "block 2 of volume 0: it holds write 3, which was given up in a failover");
}

#[test]
fn damage_strange_and_misplaced_blocks_are_named() {
    let history = one_by_one(&[0, 1]);
    let good = image(&history, &[1, 2]);
    let mut flipped = good.clone();
    flipped[100] ^= 1;
    assert!(check(&history, flipped, &[]).unwrap_err().starts_with("block 0 of volume 0: its checksum"));
    let mut swapped = good[BLOCK_BYTES..2 * BLOCK_BYTES].to_vec();
    swapped.extend(&good[..BLOCK_BYTES]);
    let error = check(&history, swapped, &[]).unwrap_err();
    assert!(error.contains("block 0 of volume 0: it holds write 2 of block 1 of volume 0"), "{error}");
    assert!(check(&history, good[..100].to_vec(), &[]).unwrap_err().contains("cannot be read"));
}

#[test]
fn the_order_is_that_of_the_group_not_of_a_volume() {
    let mut history = History::new(RUN);
    for volume in [0, 1] {
        let number = history.issue(volume, 0, 1);
        history.acknowledge(number);
    }
    let mut second = vec![0; BLOCK_BYTES];
    let place = Stamp { number: 2, volume: 1, block: 0 };
    stamp::stamp(second.as_mut_slice().try_into().unwrap(), RUN, place);
    let nothing = vec![0; BLOCK_BYTES];
    let first = image(&history, &[1]);
    let must = BTreeSet::new();
    let check = |a: &Vec<u8>, b: &Vec<u8>| {
        check_prefix(&mut [&mut a.clone(), &mut b.clone()], &history, &must).map(|prefix| prefix.writes.len())
    };
    assert_eq!(check(&first, &second), Ok(2));
    assert_eq!(check(&first, &nothing), Ok(1));
    check(&nothing, &second).unwrap_err();
}

/// A history of a few writes with random overlaps, of which some never ended.
fn random_history(rng: &mut Rng) -> History {
    let mut history = History::new(RUN);
    let mut open = Vec::new();
    for _ in 0..rng.between(1, 5) {
        while !open.is_empty() && rng.coin() {
            let number = open.swap_remove(rng.index(open.len()));
            match rng.below(8) {
                0 => history.fail(number),
                _ => history.acknowledge(number),
            }
        }
        if rng.chance(0.1) {
            if rng.coin() {
                history.server_restarted();
            } else {
                history.server_replaced();
            }
            open.clear();
        }
        let first = rng.below(BLOCKS);
        open.push(history.issue(0, first, rng.between(1, BLOCKS - first).min(3) as u32));
    }
    history
}

/// Calls `visit` with every order of every set of writes that the history allows.
fn every_prefix(history: &History, order: &mut Vec<u64>, visit: &mut dyn FnMut(&[u64])) {
    visit(order);
    for write in history.writes() {
        let earlier_is_in = |other: &Write| {
            other.acked.is_none_or(|acked| acked >= write.issued) || order.contains(&other.number)
        };
        let later_is_out = |other: &u64| end(write) >= history.write(*other).unwrap().issued;
        if !order.contains(&write.number)
            && history.writes().iter().all(earlier_is_in)
            && order.iter().all(later_is_out)
        {
            order.push(write.number);
            every_prefix(history, order, visit);
            order.pop();
        }
    }
}

/// What each block shows.
type Shown = Vec<Option<u64>>;

/// Every image that the history allows, with the largest set of writes behind each order of it.
fn every_image(history: &History) -> BTreeMap<Shown, Vec<BTreeSet<u64>>> {
    let mut images: BTreeMap<Shown, Vec<BTreeSet<u64>>> = BTreeMap::new();
    every_prefix(history, &mut Vec::new(), &mut |order| {
        let mut shown = BTreeSet::from([vec![None; BLOCKS as usize]]);
        for &number in order {
            let write = history.write(number).unwrap();
            let blocks: Vec<u64> = write.block_range().collect();
            let parts = if write.may_tear { 0..1u32 << blocks.len() } else { 0..1 };
            let mut next = BTreeSet::new();
            for before in &shown {
                for part in parts.clone() {
                    let mut after = before.clone();
                    for (bit, &block) in blocks.iter().enumerate() {
                        if part & (1 << bit) == 0 {
                            after[block as usize] = Some(number);
                        }
                    }
                    next.insert(after);
                }
            }
            shown = next;
        }
        for image in shown {
            images.entry(image).or_default().push(order.iter().copied().collect());
        }
    });
    images
}

/// For each block, any of its writers or none.
fn any_writer(history: &History, rng: &mut Rng) -> Shown {
    let pick = |block| {
        let touches = |write: &&Write| write.block_range().contains(&block);
        let writers: Vec<u64> = history.writes().iter().filter(touches).map(|write| write.number).collect();
        (!writers.is_empty() && rng.chance(0.8)).then(|| *rng.pick(&writers))
    };
    (0..BLOCKS).map(pick).collect()
}

/// What some of the writes give in any order, allowed or not.
fn any_order(history: &History, rng: &mut Rng) -> Shown {
    let mut order: Vec<&Write> = history.writes().iter().filter(|_| rng.chance(0.8)).collect();
    rng.shuffle(&mut order);
    let mut shown = vec![None; BLOCKS as usize];
    for write in order {
        for block in write.block_range() {
            shown[block as usize] = Some(write.number);
        }
    }
    shown
}

#[test]
fn it_agrees_with_trying_every_order() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let history = random_history(&mut rng);
        let allowed = every_image(&history);
        for _ in 0..40 {
            let shown =
                if rng.coin() { any_writer(&history, &mut rng) } else { any_order(&history, &mut rng) };
            let must: BTreeSet<u64> =
                history.acknowledged().into_iter().filter(|_| rng.chance(0.2)).collect();
            let mut image = vec![0; BLOCKS as usize * BLOCK_BYTES];
            for (block, number) in (0..).zip(&shown) {
                if let Some(number) = *number {
                    let slot = &mut image[block as usize * BLOCK_BYTES..][..BLOCK_BYTES];
                    stamp::stamp(slot.try_into().unwrap(), RUN, Stamp { number, volume: 0, block });
                }
            }
            let expected = allowed.get(&shown).is_some_and(|sets| sets.iter().any(|set| must.is_subset(set)));
            let got = check_prefix(&mut [&mut image], &history, &must);
            assert_eq!(
                got.is_ok(),
                expected,
                "seed {seed}: {shown:?} must {must:?}: {got:?} of {:#?}",
                history.writes()
            );
            *(if expected { &mut right } else { &mut wrong }) += 1;
        }
    }
    assert!(right > 1000 && wrong > 1000, "{right} right, {wrong} wrong");
}

#[test]
fn a_long_history_is_checked_quickly() {
    let mut history = History::new(RUN);
    let mut open = std::collections::VecDeque::new();
    let mut rng = Rng::new(1);
    for _ in 0..50_000 {
        if open.len() == 16 {
            history.acknowledge(open.pop_front().unwrap());
        }
        open.push_back(history.issue(0, rng.below(BLOCKS), 1));
    }
    let order: Vec<u64> = (1..=49_000).collect();
    let started = std::time::Instant::now();
    check(&history, image(&history, &order), &[]).unwrap();
    // Far below a second when optimized; the bound only catches a quadratic algorithm.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}
