//! Puts checksums right, so that a fuzzer gets behind them. Offsets are those of docs/formats.md.
//!
//! Bytes that are too short or lie about their lengths stay as they are.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const FRAME_HEADER_BYTES: usize = 112;
const FRAME_CHECKSUM: usize = 104;
const FRAME_CONTENT: usize = 88;
const SEALED_HEADER_BYTES: usize = 32;
const SEGMENT_HEADER_BYTES: usize = 4096;
const ENTRY_HEADER_BYTES: usize = 64;
const MARK_STEP_BYTES: usize = 4096;

/// A frame: the checksum over header and payload, and that of the content as it is encoded.
pub fn frame(bytes: &mut [u8]) {
    let Some(length) = u32_at(bytes, 8) else { return };
    let Some(end) = FRAME_HEADER_BYTES.checked_add(length as usize).filter(|end| *end <= bytes.len()) else {
        return;
    };
    // Right for a raw payload; a compressed one that was changed stays wrong, or never gets so far.
    if bytes.get(6) == Some(&0) {
        let content = xxh3_64(&bytes[FRAME_HEADER_BYTES..end]);
        put(bytes, FRAME_CONTENT, content);
    }
    let mut sum = Xxh3::new();
    sum.update(&bytes[..FRAME_CHECKSUM]);
    sum.update(&bytes[FRAME_HEADER_BYTES..end]);
    put(bytes, FRAME_CHECKSUM, sum.digest());
}

/// A sealed copy.
pub fn sealed(bytes: &mut [u8]) {
    let Some(length) = u64_at(bytes, 16).and_then(|n| usize::try_from(n).ok()) else { return };
    let Some(end) = SEALED_HEADER_BYTES.checked_add(length).filter(|end| *end <= bytes.len()) else { return };
    let mut sum = Xxh3::new();
    sum.update(&bytes[..24]);
    sum.update(&bytes[SEALED_HEADER_BYTES..end]);
    put(bytes, 24, sum.digest());
}

/// A journal's segment: its header, and the entries and frames that follow one another from its first on.
pub fn segment(bytes: &mut [u8]) {
    mend(bytes, 0..56);
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some(entry) =
        bytes.get_mut(at..).filter(|b| b.len() >= ENTRY_HEADER_BYTES && b.starts_with(b"AIJE"))
    {
        let Some(length) = u32_at(entry, 4) else { return };
        if let Some(bytes) = entry.get_mut(ENTRY_HEADER_BYTES..) {
            frame(bytes);
        }
        mend(entry, 0..56);
        at += (ENTRY_HEADER_BYTES + length as usize).next_multiple_of(8);
    }
}

/// A journal's `start` or `durable`.
pub fn mark(bytes: &mut [u8]) {
    mend(bytes, 0..32);
    if let Some(second) = bytes.get_mut(MARK_STEP_BYTES..) {
        mend(second, 0..32);
    }
}

/// A journal's `damage`.
pub fn damage(bytes: &mut [u8]) {
    if let Some(end) = bytes.len().checked_sub(8) {
        mend(bytes, 0..end);
    }
}

/// A state file of the transport: the SHA-256 at the end of its first line.
pub fn state_file(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let (line, body) = (bytes.get(..end)?, bytes.get(end + 1..)?);
    let sum_at = line.iter().rposition(|b| *b == b' ')? + 1;
    let mut mended = line[..sum_at].to_vec();
    for byte in ring::digest::digest(&ring::digest::SHA256, body).as_ref() {
        mended.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    mended.push(b'\n');
    mended.extend_from_slice(body);
    Some(mended)
}

/// Stores the checksum of `covered` behind it.
fn mend(bytes: &mut [u8], covered: std::ops::Range<usize>) {
    let at = covered.end;
    if let Some(sum) = bytes.get(covered).map(xxh3_64)
        && bytes.len() >= at + 8
    {
        put(bytes, at, sum);
    }
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
