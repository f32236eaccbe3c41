//! Chunks, as a stream codes and opens them, and the index of what was written last, which decides what of a block still counts.

use std::hint::black_box;

use afterimage_protocol::chunk::{
    CHUNK_HEADER_BYTES, ChunkHeader, Coder, Frames, MIN_WINDOW_LOG, Opener, Strength,
};
use afterimage_protocol::codec::{content_checksum, encode};
use afterimage_protocol::frame::{Codec, Content, Frame, Record};
use afterimage_protocol::intervals::Intervals;
use afterimage_protocol::*;
use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;

/// Of a record.
const BYTES: usize = 8 << 10;
/// Records of a chunk.
const RECORDS: u64 = 16;

fn main() {
    divan::main();
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Records of a database's pages: one in four bytes is not zero. Or ones that do not compress.
fn records(kind: &str) -> Vec<Frame> {
    let mut random = Random(88_172_645_463_325_252);
    (1..=RECORDS)
        .map(|sequence| {
            let sparse = kind == "pages";
            let byte = |n: usize, random: &mut Random| {
                if sparse && !n.is_multiple_of(4) { 0 } else { random.next() as u8 }
            };
            let bytes: Bytes = (0..BYTES).map(|n| byte(n, &mut random)).collect();
            let checksum = content_checksum(&bytes);
            Frame::Record(Record {
                position: Position::new(Generation(7), Sequence(sequence)),
                range: ByteRange::new(VolumeIndex(0), sequence * BYTES as u64, BYTES as u64),
                time: Time(sequence),
                content: Content::Data(encode(Codec::Raw, &bytes, checksum)),
                floor: Sequence(0),
            })
        })
        .collect()
}

const STRENGTHS: [(&str, Strength); 3] = [
    ("lz4", Strength::Lz4),
    ("fast", Strength::Zstd { level: -1, window_log: MIN_WINDOW_LOG, long_distance: false }),
    ("dense", Strength::Zstd { level: 1, window_log: MIN_WINDOW_LOG, long_distance: false }),
];

/// Each way to code each kind of records.
fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    STRENGTHS.iter().flat_map(|(name, _)| ["pages", "random"].map(|kind| (*name, kind)))
}

fn coder(name: &str) -> Coder {
    let (_, strength) = STRENGTHS.iter().find(|(known, _)| *known == name).expect("a strength");
    Coder::new(*strength).expect("a coder")
}

fn chunk(coder: &mut Coder, records: &[Frame]) -> Bytes {
    for record in records {
        coder.push(record).expect("room");
    }
    coder.finish().expect("a chunk")
}

#[divan::bench(args = all())]
fn encode_chunk(bencher: Bencher<'_, '_>, (name, kind): (&str, &str)) {
    let records = records(kind);
    let mut coder = coder(name);
    bencher.counter(BytesCount::new(RECORDS as usize * BYTES)).bench_local(|| chunk(&mut coder, &records));
}

/// Each begins a stream, as after a reconnect.
#[divan::bench(args = all())]
fn decode_chunk(bencher: Bencher<'_, '_>, (name, kind): (&str, &str)) {
    let bytes = chunk(&mut coder(name), &records(kind));
    let header = ChunkHeader::parse(&bytes).expect("a chunk").expect("all of its header");
    let mut opener = Opener::default();
    bencher.counter(BytesCount::new(RECORDS as usize * BYTES)).bench_local(|| {
        let raw = opener.open(&header, &bytes.slice(CHUNK_HEADER_BYTES..), MIN_WINDOW_LOG).expect("frames");
        assert_eq!(Frames::of(raw).filter(Result::is_ok).count() as u64, RECORDS);
    });
}

/// An index of so many ranges that were written, anywhere in 1 TiB.
fn index(ranges: u64) -> (Intervals, Random) {
    let mut random = Random(88_172_645_463_325_252);
    let mut index = Intervals::default();
    for sequence in 1..=ranges {
        index.insert(any(&mut random), Sequence(sequence));
    }
    (index, random)
}

fn any(random: &mut Random) -> ByteRange {
    ByteRange::new(VolumeIndex(0), random.next() % (1 << 28) * BLOCK_BYTES, BLOCK_BYTES)
}

#[divan::bench(args = [1_000, 100_000])]
fn index_lookup(bencher: Bencher<'_, '_>, ranges: u64) {
    let (index, mut random) = index(ranges);
    bencher.bench_local(|| index.remaining(black_box(any(&mut random)), Sequence(ranges / 2)));
}

/// And taken out again, so that it stays as large.
#[divan::bench(args = [1_000, 100_000])]
fn index_insert(bencher: Bencher<'_, '_>, ranges: u64) {
    let (mut index, mut random) = index(ranges);
    let mut sequence = ranges;
    bencher.bench_local(|| {
        let range = any(&mut random);
        sequence += 1;
        index.insert(range, Sequence(sequence));
        index.settle(range, Sequence(sequence), |_, _| {});
    });
}
