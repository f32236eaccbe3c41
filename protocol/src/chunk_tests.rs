use std::io::Write;

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

use super::*;
use crate::codec;
use crate::frame::{Codec, Content, Record};
use crate::ids::*;

const FAST: Strength = Strength::Zstd { level: -3, window_log: MIN_WINDOW_LOG, long_distance: false };
const DENSE: Strength = Strength::Zstd { level: 1, window_log: 24, long_distance: true };

const STRENGTHS: [Strength; 3] = [Strength::Lz4, FAST, DENSE];

/// Repeatable noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        codec::content_checksum(&self.0.to_le_bytes())
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count).collect()
    }
}

fn record(sequence: u64, offset: u64, raw: Vec<u8>) -> Frame {
    let raw = Bytes::from(raw);
    Frame::Record(Record {
        position: Position::new(Generation(7), Sequence(sequence)),
        range: ByteRange::new(VolumeIndex(0), offset, raw.len() as u64),
        time: Time(sequence),
        content: Content::Data(codec::encode(Codec::Raw, &raw, codec::content_checksum(&raw))),
        floor: Sequence(0),
    })
}

fn mark(sequence: u64) -> Frame {
    Frame::Mark { sequence: Sequence(sequence), sync: true }
}

fn chunk_of(coder: &mut Coder, frames: &[Frame]) -> Bytes {
    for frame in frames {
        coder.push(frame).unwrap();
    }
    coder.finish().unwrap()
}

fn open(opener: &mut Opener, chunk: &[u8], window_log: u32) -> Result<Vec<Frame>, String> {
    let header = ChunkHeader::parse(chunk).map_err(|e| e.to_string())?.ok_or("no chunk")?;
    let coded = Bytes::copy_from_slice(&chunk[CHUNK_HEADER_BYTES..]);
    let raw = opener.open(&header, &coded, window_log).map_err(|e| e.to_string())?;
    Frames::of(raw).collect::<Result<_, _>>().map_err(|e| e.to_string())
}

#[test]
fn frames_come_out_as_they_went_in_across_restarts_and_strengths() {
    let mut noise = Noise(1);
    let mut pages: Vec<Vec<u8>> = (0..40).map(|_| noise.bytes(8192)).collect();
    let mut coder = Coder::new(FAST).unwrap();
    let mut opener = Opener::default();
    for n in 0..400u64 {
        // A new connection, and a change of strength on an old one.
        if n % 90 == 50 {
            opener = Opener::default();
        }
        if n % 90 == 50 || n % 35 == 30 {
            coder = Coder::new(STRENGTHS[(noise.next() % 3) as usize]).unwrap();
        }
        let frames: Vec<Frame> = (0..1 + noise.next() % 6)
            .map(|k| {
                let page = (noise.next() % 40) as usize;
                let at = (noise.next() % 8000) as usize;
                pages[page][at..at + 100].copy_from_slice(&noise.bytes(100));
                match noise.next() % 8 {
                    0 => mark(n),
                    1 => record(n * 10 + k, 0, vec![7; (1 + noise.next() % (1 << 20)) as usize]),
                    _ => record(n * 10 + k, page as u64 * 8192, pages[page].clone()),
                }
            })
            .filter(|frame| coder.has_room(frame.encoded_len()))
            .take(2)
            .collect();
        let chunk = chunk_of(&mut coder, &frames);
        assert_eq!(open(&mut opener, &chunk, 24).unwrap(), frames);
    }
}

#[test]
fn a_page_with_a_hundred_changed_bytes_costs_a_few_hundred() {
    let mut noise = Noise(2);
    let mut page = noise.bytes(8192);
    for (strength, between) in [(Strength::Lz4, 1 << 15), (FAST, 1 << 18), (DENSE, 8 << 20)] {
        let mut coder = Coder::new(strength).unwrap();
        assert!(chunk_of(&mut coder, &[record(1, 0, page.clone())]).len() > 8192);
        for n in 0..between / 32768 {
            chunk_of(&mut coder, &[record(2 + n, 32768 * n, noise.bytes(32768))]);
        }
        page[4000..4100].copy_from_slice(&noise.bytes(100));
        let chunk = chunk_of(&mut coder, &[record(999, 0, page.clone())]);
        assert!(chunk.len() < 400, "{strength:?}: {}", chunk.len());
    }
}

#[test]
fn what_does_not_shrink_grows_by_next_to_nothing() {
    for strength in [Strength::Lz4, FAST] {
        let mut coder = Coder::new(strength).unwrap();
        let frame = record(1, 0, Noise(3).bytes(1 << 20));
        let chunk = chunk_of(&mut coder, std::slice::from_ref(&frame));
        assert!(chunk.len() <= frame.encoded_len() + frame.encoded_len() / 1000);
        assert_eq!(open(&mut Opener::default(), &chunk, MIN_WINDOW_LOG).unwrap(), [frame]);
    }
}

#[test]
fn a_chunk_that_depends_on_another_stream_is_refused() {
    for (strength, other) in [(FAST, Strength::Lz4), (Strength::Lz4, FAST)] {
        let mut coder = Coder::new(strength).unwrap();
        let first = chunk_of(&mut coder, &[record(1, 0, vec![1; 4096])]);
        let second = chunk_of(&mut coder, &[record(2, 0, vec![1; 4096])]);
        let refused = open(&mut Opener::default(), &second, MIN_WINDOW_LOG).unwrap_err();
        assert_eq!(refused, ChunkError::NotBegun.to_string());
        // One that was lost in between does not go unnoticed either.
        let mut opener = Opener::default();
        open(&mut opener, &first, MIN_WINDOW_LOG).unwrap();
        let mut page = Noise(4).bytes(4096);
        chunk_of(&mut coder, &[record(3, 0, page.clone())]);
        page[0] ^= 1;
        let fourth = chunk_of(&mut coder, &[record(4, 0, page)]);
        open(&mut opener, &fourth, MIN_WINDOW_LOG).unwrap_err();
        // Nor what was coded in another way.
        let mut opener = Opener::default();
        open(&mut opener, &chunk_of(&mut Coder::new(other).unwrap(), &[mark(1)]), MIN_WINDOW_LOG).unwrap();
        let refused = open(&mut opener, &second, MIN_WINDOW_LOG).unwrap_err();
        assert_eq!(refused, ChunkError::NotBegun.to_string());
    }
}

#[test]
fn a_stream_of_lz4_that_asks_for_other_memory_is_refused() {
    let good = chunk_of(&mut Coder::new(Strength::Lz4).unwrap(), &[mark(1)]);
    open(&mut Opener::default(), &good, MIN_WINDOW_LOG).unwrap();
    let frame = mark(1).to_bytes();
    for size in [BlockSize::Max256KB, BlockSize::Max1MB, BlockSize::Max4MB, BlockSize::Max8MB] {
        for mode in [BlockMode::Linked, BlockMode::Independent] {
            let info = FrameInfo::new().block_size(size).block_mode(mode);
            let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
            encoder.write_all(&frame).unwrap();
            encoder.flush().unwrap();
            let coded = encoder.into_inner();
            let header = ChunkHeader {
                restarts: true,
                coding: Coding::Lz4,
                raw_bytes: frame.len() as u32,
                coded_bytes: coded.len() as u32,
            };
            let chunk = [&header.to_bytes()[..], &coded].concat();
            open(&mut Opener::default(), &chunk, MIN_WINDOW_LOG).unwrap_err();
        }
    }
}

#[test]
fn after_a_chunk_that_cannot_be_opened_none_is_that_continues_it() {
    for strength in [Strength::Lz4, FAST] {
        let mut coder = Coder::new(strength).unwrap();
        let mut opener = Opener::default();
        let mut bad = chunk_of(&mut coder, &[record(1, 0, vec![1; 4096])]).to_vec();
        bad[CHUNK_HEADER_BYTES + 7..].fill(0xff);
        open(&mut opener, &bad, MIN_WINDOW_LOG).unwrap_err();
        let next = chunk_of(&mut coder, &[mark(2)]);
        assert_eq!(open(&mut opener, &next, MIN_WINDOW_LOG).unwrap_err(), ChunkError::NotBegun.to_string());
    }
}

#[test]
fn a_window_beyond_what_the_stream_may_have_is_refused() {
    let chunk = chunk_of(&mut Coder::new(DENSE).unwrap(), &[record(1, 0, vec![1; 4096])]);
    open(&mut Opener::default(), &chunk, 24).unwrap();
    open(&mut Opener::default(), &chunk, 23).unwrap_err();
}

#[test]
fn a_chunk_that_opens_to_more_or_less_than_it_says_is_refused() {
    let chunk = |strength| chunk_of(&mut Coder::new(strength).unwrap(), &[record(1, 0, vec![0; 1 << 20])]);
    for whole in [chunk(Strength::Lz4), chunk(FAST)] {
        assert!(whole.len() < 5000, "a bomb of {} bytes", whole.len());
        let header = ChunkHeader::parse(&whole).unwrap().unwrap();
        let lengths = [4096, header.raw_bytes - 1, header.raw_bytes + 1, MAX_CHUNK_BYTES];
        for raw_bytes in [&[HEADER_BYTES as u32][..], &lengths].concat() {
            let lie = ChunkHeader { raw_bytes, ..header }.to_bytes();
            let bytes = [&lie[..], &whole[CHUNK_HEADER_BYTES..]].concat();
            open(&mut Opener::default(), &bytes, MIN_WINDOW_LOG).unwrap_err();
        }
    }
    // Nor is the rest left to the next one.
    for whole in [chunk(Strength::Lz4), chunk(FAST)] {
        let header = ChunkHeader::parse(&whole).unwrap().unwrap();
        for raw_bytes in header.raw_bytes - 100..header.raw_bytes {
            let lie = ChunkHeader { raw_bytes, ..header };
            let coded = whole.slice(CHUNK_HEADER_BYTES..);
            Opener::default().open(&lie, &coded, MIN_WINDOW_LOG).unwrap_err();
        }
    }
    let header = ChunkHeader::parse(&chunk(FAST)).unwrap().unwrap();
    // Nothing is taken for a length that no chunk may have.
    for raw_bytes in [0, HEADER_BYTES as u32 - 1, MAX_CHUNK_BYTES + 1, u32::MAX] {
        let lie = ChunkHeader { raw_bytes, ..header }.to_bytes();
        assert!(matches!(ChunkHeader::parse(&lie), Err(ChunkError::Field { field: "raw length", .. })));
    }
    for coded_bytes in [0, MAX_CODED_BYTES + 1, u32::MAX] {
        let lie = ChunkHeader { coded_bytes, ..header }.to_bytes();
        assert!(matches!(ChunkHeader::parse(&lie), Err(ChunkError::Field { field: "coded length", .. })));
    }
}

#[test]
fn every_cut_is_noticed_and_every_flipped_bit_is_or_changes_nothing() {
    let frames = [record(1, 0, b"one page and another ".repeat(40)), mark(2)];
    for strength in [Strength::Lz4, FAST] {
        let good = chunk_of(&mut Coder::new(strength).unwrap(), &frames);
        for len in 0..good.len() {
            open(&mut Opener::default(), &good[..len], MIN_WINDOW_LOG).unwrap_err();
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(found) = open(&mut Opener::default(), &bad, MIN_WINDOW_LOG) {
                assert_eq!(found, frames, "bit {bit}");
            }
        }
    }
}

#[test]
fn a_frame_is_told_from_a_chunk() {
    let frame = mark(1).to_bytes();
    assert_eq!(ChunkHeader::parse(&frame[..CHUNK_HEADER_BYTES]), Ok(None));
}
