//! Comparing volumes with the hashes of a verification (the target's `Output::Verify`).
//!
//! A block that the journal holds nothing of is read from its volume. Of every other one a copy is brought up to date in memory,
//! entry by entry up to the place of its check, and compared then: the volume is only read. The caller sees to it that the
//! volumes are not ahead of any of the checks, and are not written meanwhile.

use afterimage_events::{Event, event};
use std::collections::BTreeMap;

use afterimage_protocol::frame::{Block, Check, Content, Frame, HASH_BYTES, Record};
use afterimage_protocol::target::{CheckResult, Comparison, DueCheck};
use afterimage_protocol::*;

use crate::group::{VolumeFile, hashes_of, is_zero};
use crate::journal::{JournalError, Reader};

/// Bytes read at once from a volume.
const READ_BYTES: u64 = MAX_PAYLOAD_BYTES;

/// A copy of a block, as it is before the next entry.
struct Copy {
    at: Lsn,
    bytes: Vec<u8>,
}

/// By volume, block and check: a source that fell behind in between asks for the same blocks again.
type Copies = BTreeMap<(VolumeIndex, u64, CheckId), Copy>;

/// Compares the checks of `comparison` with `volumes` and, where it says so, with what `entries` yields: the journal from the
/// first entry that the volumes may lack. What cannot be read counts as not compared.
pub fn compare(volumes: &[VolumeFile], comparison: &Comparison, entries: Option<Reader>) -> Vec<CheckResult> {
    let mut copies = entries.and_then(|entries| match replayed(volumes, comparison, entries) {
        Ok(copies) => Some(copies),
        Err(error) => {
            // Damage of the journal is the applier's to find and to deal with.
            tracing::warn!(%error, "the journal cannot be read for a verification");
            None
        }
    });
    comparison.checks.iter().map(|due| result(volumes, due, copies.as_mut())).collect()
}

fn result(volumes: &[VolumeFile], due: &DueCheck, mut copies: Option<&mut Copies>) -> CheckResult {
    let check = &due.check;
    let blocks = check.range.blocks();
    let mut result = CheckResult { id: check.id, differing: Vec::new(), unchecked: 0 };
    let run = READ_BYTES / BLOCK_BYTES;
    let mut first = blocks.first;
    while first < blocks.end() {
        let part = BlockRange { first, count: run.min(blocks.end() - first), ..blocks };
        first = part.end();
        let ours = read(volumes, check, part);
        for b in part.iter() {
            let journaled = due.journaled.iter().any(|r| r.first <= b && b < r.end());
            let n = (b - part.first) * BLOCK_BYTES;
            let equal = if journaled {
                let copy = copies.as_mut().and_then(|copies| copies.remove(&(part.volume, b, check.id)));
                copy.map(|copy| is_equal(check, b, &copy.bytes))
            } else {
                ours.as_ref().map(|bytes| {
                    let end = bytes.len().min((n + BLOCK_BYTES) as usize);
                    bytes.get(n as usize..end).is_some_and(|block| is_equal(check, b, block))
                })
            };
            match equal {
                None => result.unchecked += 1,
                Some(true) => {}
                Some(false) => match result.differing.last_mut() {
                    Some(last) if last.end() == b => last.count += 1,
                    _ => result.differing.push(BlockRange { first: b, count: 1, ..blocks }),
                },
            }
        }
    }
    result
}

/// Whether `bytes` are what the check says of a block.
fn is_equal(check: &Check, block: u64, bytes: &[u8]) -> bool {
    if check.hashes.is_empty() {
        return is_zero(bytes);
    }
    let n = (block - check.range.blocks().first) as usize * HASH_BYTES;
    check.hashes.get(n..n + HASH_BYTES).is_some_and(|hash| hashes_of(bytes) == hash)
}

/// The bytes of `part` of a check's range; `None` if they cannot be read.
fn read(volumes: &[VolumeFile], check: &Check, part: BlockRange) -> Option<Vec<u8>> {
    let volume = volumes.get(part.volume.0 as usize)?;
    let offset = part.first * BLOCK_BYTES;
    let length = (part.count * BLOCK_BYTES).min(check.range.end().checked_sub(offset)?);
    let mut bytes = vec![0; length as usize];
    let hole = |(start, _): &(u64, u64)| *start >= offset + length;
    if check.hashes.is_empty() && volume.next_data(offset).is_ok_and(|data| data.as_ref().is_none_or(hole)) {
        return Some(bytes);
    }
    match volume.read_at(&mut bytes, offset) {
        Ok(()) => Some(bytes),
        Err(error) => {
            event!(Event::IoFailed, %error, volume = part.volume.0, block = part.first, "cannot read for a verification");
            None
        }
    }
}

/// The blocks that the journal holds something of, each as it is at the place of its check.
fn replayed(
    volumes: &[VolumeFile],
    comparison: &Comparison,
    entries: Reader,
) -> Result<Copies, JournalError> {
    let mut copies = Copies::new();
    for due in &comparison.checks {
        for range in &due.journaled {
            for b in range.iter() {
                let one = BlockRange { first: b, count: 1, ..*range };
                if let Some(bytes) = read(volumes, &due.check, one) {
                    copies.insert((range.volume, b, due.check.id), Copy { at: due.at, bytes });
                }
            }
        }
    }
    if copies.is_empty() {
        return Ok(copies);
    }
    let skips = |lsn: Lsn| comparison.skip.iter().any(|(start, end)| *start <= lsn && lsn < *end);
    for entry in entries {
        let (start, end, frame) = entry?;
        let (Frame::Record(Record { range, content, .. }) | Frame::Block(Block { range, content, .. })) =
            &frame
        else {
            continue;
        };
        let blocks = range.blocks();
        let key = |b| (blocks.volume, b, CheckId(0));
        let hit = copies.range(key(blocks.first)..key(blocks.end())).any(|(_, copy)| end <= copy.at);
        if !hit || skips(start) {
            continue;
        }
        let raw = match content {
            Content::Zeroes { .. } => None,
            Content::Data(payload) => match codec::decode(payload) {
                Ok(raw) if raw.len() as u64 == range.length => Some(raw),
                _ => {
                    // Nothing is known of what it wrote.
                    let touched: Vec<_> =
                        copies.range(key(blocks.first)..key(blocks.end())).map(|(k, _)| *k).collect();
                    touched.iter().for_each(|k| drop(copies.remove(k)));
                    continue;
                }
            },
        };
        for ((_, b, _), copy) in
            copies.range_mut(key(blocks.first)..key(blocks.end())).filter(|(_, c)| end <= c.at)
        {
            let base = b * BLOCK_BYTES;
            let from = range.offset.max(base);
            let until = range.end().min(base + copy.bytes.len() as u64);
            let Some(target) =
                copy.bytes.get_mut((from - base) as usize..until.max(from).saturating_sub(base) as usize)
            else {
                continue;
            };
            match &raw {
                None => target.fill(0),
                Some(raw) => {
                    let at = (from - range.offset) as usize;
                    target.copy_from_slice(&raw[at..at + target.len()]);
                }
            }
        }
    }
    Ok(copies)
}
