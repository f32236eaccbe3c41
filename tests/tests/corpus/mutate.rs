//! Deterministic mutations: the usual ones of a fuzzer, without its feedback.

use tests::sim::Rng;

/// Numbers that lengths and counts break at.
const EDGES: &[u64] = &[
    0,
    1,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    4095,
    4096,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    u64::MAX,
];
/// Longer inputs break nothing that shorter ones do not.
const MAX_INPUT_BYTES: usize = 128 << 10;

/// One of `seeds` with one to four changes.
pub fn mutate(rng: &mut Rng, seeds: &[&Vec<u8>]) -> Vec<u8> {
    let mut input = (*rng.pick(seeds)).clone();
    for _ in 0..rng.between(1, 4) {
        change(rng, seeds, &mut input);
    }
    input.truncate(MAX_INPUT_BYTES);
    input
}

fn change(rng: &mut Rng, seeds: &[&Vec<u8>], input: &mut Vec<u8>) {
    let at = place(rng, input.len());
    let room = input.len() - at;
    match rng.below(8) {
        0 if room > 0 => input[at] ^= 1 << rng.below(8),
        1 if room > 0 => input[at] = rng.next_u64() as u8,
        2 => put(input, at, rng.pick(EDGES).to_le_bytes(), *rng.pick(&[1, 2, 4, 8])),
        3 => {
            // Big-endian: the last bytes are the low ones.
            let (bytes, width) = (rng.pick(EDGES).to_be_bytes(), *rng.pick(&[2, 4, 8]));
            input.splice(at..(at + width).min(at + room), bytes[8 - width..].iter().copied());
        }
        4 => input.truncate(at),
        5 => {
            let cut = rng.between(0, room.min(64) as u64) as usize;
            input.drain(at..at + cut);
        }
        6 => {
            let length = rng.between(1, 32);
            let bytes: Vec<u8> = (0..length).map(|_| rng.next_u64() as u8).collect();
            input.splice(at..at, bytes);
        }
        _ => {
            // The end of another seed: headers of one and content of another.
            let other = *rng.pick(seeds);
            let from = place(rng, other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

/// A place in an input, half of the time near its start, where the headers are.
fn place(rng: &mut Rng, length: usize) -> usize {
    let near = if rng.coin() { length.min(128) } else { length };
    rng.index(near + 1)
}

fn put(input: &mut [u8], at: usize, bytes: [u8; 8], width: usize) {
    for (to, from) in input[at..].iter_mut().zip(&bytes[..width]) {
        *to = *from;
    }
}
