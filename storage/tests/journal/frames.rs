//! Frames and randomness for the tests.

use std::sync::Arc;

use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Codec, Content, Frame, Record};
use afterimage_protocol::rules::Rules;
use afterimage_protocol::*;
use afterimage_storage::io::Dir;
use afterimage_storage::journal::{Journal, JournalError, JournalOptions, Recovered};
use bytes::Bytes;

pub const OPTIONS: JournalOptions = JournalOptions {
    segment_bytes: 12 << 10,
    max_bytes: 1 << 20,
    max_unsynced_bytes: 64 << 10,
    recent_bytes: 0,
    long_write_bytes: 3000,
    salt: 7,
    rules: Rules::ALL,
};

pub type Held = (Lsn, Lsn, Frame);

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn bytes(&mut self, len: u64) -> Bytes {
        (0..len).map(|_| self.next() as u8).collect::<Vec<_>>().into()
    }
}

pub fn data(raw: Bytes, codec: Codec) -> Content {
    let checksum = codec::content_checksum(&raw);
    Content::Data(codec::encode(codec, &raw, checksum))
}

pub fn record(sequence: u64, offset: u64, content: Content, length: u64) -> Frame {
    Frame::Record(Record {
        position: Position::new(Generation(1), Sequence(sequence)),
        range: ByteRange::new(VolumeIndex(0), offset, length),
        time: Time(sequence * 1000),
        content,
        floor: Sequence(0),
    })
}

/// A record of `length` random bytes.
pub fn write(random: &mut Random, sequence: u64, offset: u64, length: u64) -> Frame {
    let raw = random.bytes(length);
    record(sequence, offset, data(raw, Codec::Raw), length)
}

/// Some frame that a journal stores.
pub fn any_frame(random: &mut Random, sequence: u64) -> Frame {
    let length = match random.below(8) {
        0 => 4096,
        1 => 1 + random.below(2000),
        _ => 512,
    };
    let offset = random.below(256) * 512;
    let position = Position::new(Generation(1), Sequence(sequence));
    match random.below(10) {
        0 => record(sequence, offset, Content::Zeroes { punch: true }, length),
        1 => Frame::Mark { sequence: Sequence(sequence), sync: true },
        2 => Frame::Point { position, time: Time(sequence) },
        3 => Frame::Block(Block {
            epoch: EpochId(1),
            frame: FrameId(sequence),
            range: ByteRange::new(VolumeIndex(0), offset / 4096 * 4096, length),
            read_at: Sequence(sequence),
            after: Sequence(0),
            content: data(random.bytes(length), Codec::Lz4),
        }),
        _ => write(random, sequence, offset, length),
    }
}

/// Opens the journal in `dir` and returns it with all that it holds.
pub fn open(
    dir: Arc<dyn Dir>,
    options: JournalOptions,
) -> Result<(Journal, Recovered, Vec<Held>), JournalError> {
    let mut held = Vec::new();
    let (journal, recovered) =
        Journal::open(dir, options, &mut |e| held.push((e.start, e.end, e.frame.clone())))?;
    Ok((journal, recovered, held))
}

pub fn held(journal: &Journal) -> Vec<Held> {
    journal.read(journal.start(), journal.end()).collect::<Result<_, _>>().unwrap()
}

pub fn sync(journal: &mut Journal) -> Result<Lsn, JournalError> {
    let ticket = journal.start_sync()?;
    let result = ticket.run();
    journal.finish_sync(ticket, result)
}
