//! Whether an image is one that the history of the writes allows: the state after some prefix of the write order.
//!
//! The client knows the order only in part: see [`History`]. An image is right when some set of writes, applied in
//! some order, gives it, such that (1) with each write the set has all writes that were certainly admitted before it,
//! (2) the order agrees with what is certain, and (3) the set has all writes that must be there.
//!
//! Every such set holds the writes that the image shows, those that must be there, and those acknowledged before one
//! of them was issued; and if a larger set works, so does that smallest one, since leaving a write out only removes
//! claims on who was last on a block. So only the smallest set is tried: it works when "certainly before" together
//! with "before the write that the block shows" has no cycle.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::history::{History, Write};
use super::stamp::{self, BLOCK_BYTES, Block};

/// Most complaints that an error lists: more only hide the first.
const MAX_COMPLAINTS: usize = 8;

/// Where the blocks of an image are read.
pub trait Blocks {
    /// Fills `buf` with block `block`.
    fn read_block(&mut self, block: u64, buf: &mut Block) -> io::Result<()>;
}

impl Blocks for File {
    fn read_block(&mut self, block: u64, buf: &mut Block) -> io::Result<()> {
        self.read_exact_at(buf, block * BLOCK_BYTES as u64)
    }
}

impl Blocks for Vec<u8> {
    fn read_block(&mut self, block: u64, buf: &mut Block) -> io::Result<()> {
        let start = block as usize * BLOCK_BYTES;
        let bytes = self.get(start..start + BLOCK_BYTES).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// The smallest set of writes that explains an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// The numbers of its writes.
    pub writes: BTreeSet<u64>,
    /// Those of them that are the last on some block.
    pub shown: BTreeSet<u64>,
}

/// Decides whether `images`, the volumes of a group in their order, are together the state after some prefix of
/// `history` that contains the writes `must_contain`. Blocks that no write touched are not read. The error lists
/// what contradicts it.
pub fn check_prefix(
    images: &mut [&mut dyn Blocks],
    history: &History,
    must_contain: &BTreeSet<u64>,
) -> Result<Prefix, String> {
    let image = Image::read(images, history)?;
    let members = Members::of(&image, history, must_contain)?;
    let order = Order::of(&image, history, &members);
    order.check(history, &members)?;
    Ok(Prefix {
        writes: members.why.keys().copied().collect(),
        shown: image.shown.values().filter_map(|&number| number).collect(),
    })
}

/// A block of a volume of the group.
type Place = (u32, u64);

/// Which write each written block shows; `None` for none.
struct Image {
    shown: BTreeMap<Place, Option<u64>>,
}

impl Image {
    fn read(images: &mut [&mut dyn Blocks], history: &History) -> Result<Self, String> {
        let places: BTreeSet<Place> = history.writes().iter().flat_map(places).collect();
        let mut shown = BTreeMap::new();
        let mut complaints = Vec::new();
        let mut buf = [0; BLOCK_BYTES];
        for (volume, block) in places {
            let image =
                images.get_mut(volume as usize).ok_or(format!("there is no image of volume {volume}"))?;
            let read =
                image.read_block(block, &mut buf).map_err(|error| format!("it cannot be read: {error}"));
            match read.and_then(|()| held(&buf, history, (volume, block))) {
                Ok(number) => drop(shown.insert((volume, block), number)),
                Err(complaint) => complaints.push(format!("{}: {complaint}", name((volume, block)))),
            }
        }
        fail_with(complaints)?;
        Ok(Self { shown })
    }
}

/// Which write a block holds.
fn held(buf: &Block, history: &History, place: Place) -> Result<Option<u64>, String> {
    let Some(stamp) = stamp::read(buf, history.run())? else { return Ok(None) };
    let number = stamp.number;
    if (stamp.volume, stamp.block) != place {
        return Err(format!("it holds write {number} of {}", name((stamp.volume, stamp.block))));
    }
    let write = history.write(number).ok_or(format!("it holds write {number}, which was never issued"))?;
    if write.given_up {
        return Err(format!("it holds write {number}, which was given up in a failover"));
    }
    Ok(Some(number))
}

/// Why a write is in the smallest set.
#[derive(Clone, Copy)]
enum Reason {
    Shown(Place),
    Required,
    AckedBefore(u64),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Shown(place) => write!(f, "{} shows it", name(place)),
            Self::Required => f.write_str("it must be in the image"),
            Self::AckedBefore(number) => {
                write!(f, "it was acknowledged before write {number}, which is in the image, was issued")
            }
        }
    }
}

/// The smallest set.
struct Members {
    why: BTreeMap<u64, Reason>,
}

impl Members {
    fn of(image: &Image, history: &History, must_contain: &BTreeSet<u64>) -> Result<Self, String> {
        let mut why = BTreeMap::new();
        for (&place, number) in &image.shown {
            if let Some(number) = number {
                why.entry(*number).or_insert(Reason::Shown(place));
            }
        }
        for &number in must_contain {
            if history.write(number).is_none() {
                return Err(format!("write {number} must be in the image, and was never issued"));
            }
            why.entry(number).or_insert(Reason::Required);
        }
        // One step is enough: what is certainly before a write is certainly before all that are certainly after it.
        let latest = why.keys().filter_map(|&number| history.write(number)).max_by_key(|write| write.issued);
        if let Some((issued, number)) = latest.map(|write| (write.issued, write.number)) {
            for write in history.writes() {
                if !write.given_up && write.acked.is_some_and(|acked| acked < issued) {
                    why.entry(write.number).or_insert(Reason::AckedBefore(number));
                }
            }
        }
        Ok(Self { why })
    }

    fn writes<'a>(&self, history: &'a History) -> impl Iterator<Item = &'a Write> {
        self.why.keys().filter_map(|&number| history.write(number))
    }
}

/// What each member must come before, because a block shows another write.
struct Order {
    /// Write to the writes that some block shows instead of it, with that block.
    before: BTreeMap<u64, Vec<(u64, Place)>>,
    /// Blocks that show no write, and a member that wrote them.
    missing: Vec<(Place, u64)>,
}

impl Order {
    fn of(image: &Image, history: &History, members: &Members) -> Self {
        let mut order = Self { before: BTreeMap::new(), missing: Vec::new() };
        for write in members.writes(history) {
            for place in places(write) {
                match image.shown.get(&place).copied().flatten() {
                    Some(shown) if shown == write.number => {}
                    // A part of it that is missing says nothing of its order.
                    _ if write.may_tear => {}
                    Some(shown) => order.before.entry(write.number).or_default().push((shown, place)),
                    None => order.missing.push((place, write.number)),
                }
            }
        }
        order
    }

    /// Looks for an order of all members: again and again takes one that nothing left must precede.
    fn check(&self, history: &History, members: &Members) -> Result<(), String> {
        let why = |number: u64| members.why.get(&number).copied().unwrap_or(Reason::Required);
        let mut complaints: Vec<String> = Vec::new();
        for &(place, number) in &self.missing {
            complaints.push(format!("{} lacks write {number}: {}", name(place), why(number)));
        }
        for (&number, blocks) in &self.before {
            for &(shown, place) in blocks {
                if certain(history, shown, number) {
                    let place = name(place);
                    complaints.push(format!(
                        "{place} shows write {shown} instead of the later write {number}: {}",
                        why(number)
                    ));
                }
            }
        }
        fail_with(complaints)?;

        let mut waits_for: BTreeMap<u64, usize> = BTreeMap::new();
        for &(shown, _) in self.before.values().flatten() {
            *waits_for.entry(shown).or_default() += 1;
        }
        let mut ends: BTreeSet<(u64, u64)> =
            members.writes(history).map(|write| (end(write), write.number)).collect();
        let free = |write: &&Write| !waits_for.contains_key(&write.number);
        let mut ready: BinaryHeap<_> = members.writes(history).filter(free).map(earliest_first).collect();
        while let Some(&(earliest_end, _)) = ends.first() {
            let next = ready.pop().filter(|&(std::cmp::Reverse(issued), _)| issued < earliest_end);
            let Some((_, number)) = next else { return Err(stuck(&ends, self)) };
            if let Some(write) = history.write(number) {
                ends.remove(&(end(write), number));
            }
            for &(shown, _) in self.before.get(&number).into_iter().flatten() {
                let Some(left) = waits_for.get_mut(&shown) else { continue };
                *left -= 1;
                if *left == 0 {
                    ready.extend(history.write(shown).map(earliest_first));
                }
            }
        }
        Ok(())
    }
}

/// Explains that the writes left cannot be put in an order.
fn stuck(left: &BTreeSet<(u64, u64)>, order: &Order) -> String {
    let numbers: BTreeSet<u64> = left.iter().map(|&(_, number)| number).collect();
    let mut complaints =
        vec!["no order of the writes gives this image; each block alone could be right:".to_owned()];
    for &number in &numbers {
        for &(shown, place) in order.before.get(&number).into_iter().flatten() {
            if numbers.contains(&shown) {
                complaints
                    .push(format!("{} says that write {number} came before write {shown}", name(place)));
            }
        }
    }
    complaints.truncate(MAX_COMPLAINTS);
    complaints.join("\n")
}

/// Whether `first` was certainly admitted before `second`.
fn certain(history: &History, first: u64, second: u64) -> bool {
    match (history.write(first), history.write(second)) {
        (Some(first), Some(second)) => end(first) < second.issued,
        _ => false,
    }
}

/// The tick after which a write cannot be admitted.
fn end(write: &Write) -> u64 {
    write.ended.unwrap_or(u64::MAX)
}

fn earliest_first(write: &Write) -> (std::cmp::Reverse<u64>, u64) {
    (std::cmp::Reverse(write.issued), write.number)
}

fn places(write: &Write) -> impl Iterator<Item = Place> + use<> {
    let volume = write.volume;
    write.block_range().map(move |block| (volume, block))
}

fn name((volume, block): Place) -> String {
    format!("block {block} of volume {volume}")
}

fn fail_with(mut complaints: Vec<String>) -> Result<(), String> {
    if complaints.is_empty() {
        return Ok(());
    }
    let more = complaints.len().saturating_sub(MAX_COMPLAINTS);
    complaints.truncate(MAX_COMPLAINTS);
    if more > 0 {
        complaints.push(format!("and {more} more"));
    }
    Err(complaints.join("\n"))
}

#[cfg(test)]
mod tests;
