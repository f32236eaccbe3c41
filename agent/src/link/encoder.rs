//! Frames of one stream on their way into it: coded together in chunks, or as they are.

use std::time::Instant;

use afterimage_protocol::chunk::{ChunkError, Coder};
use afterimage_protocol::effort::{Effort, Sent};
use afterimage_protocol::frame::{Codec, Content, Frame, Payload};
use afterimage_protocol::shrink::Shrinks;
use bytes::{Bytes, BytesMut};

/// A payload below this is not worth compressing by itself, and says nothing of whether its like is.
const MIN_COMPRESSED_BYTES: usize = 512;
/// A frame has to lose at least one part in this many.
const WORTHWHILE: usize = 16;
/// Up to here a payload is copied behind its header; a longer one is handed over as it is.
const COPIED_BYTES: usize = 16 << 10;

/// Encodes the frames of one stream. What it remembers is what the other end of the stream does.
#[derive(Debug)]
pub(super) struct Encoder {
    effort: Effort,
    window_log: u32,
    coder: Option<Coder>,
    shrinks: Shrinks,
    /// Whether the last payload was worth coding: what has none goes the same way.
    coding: bool,
}

impl Encoder {
    /// For a stream whose ends may remember as much as `window_log` says, in bytes, as a power of two.
    pub fn new(window_log: u32) -> Self {
        Self { effort: Effort::Plain, window_log, coder: None, shrinks: Shrinks::default(), coding: true }
    }

    /// Goes on with another effort; what was remembered for the old one is forgotten.
    pub fn set_effort(&mut self, effort: Effort) -> Result<(), ChunkError> {
        if effort == self.effort {
            return Ok(());
        }
        self.coder = effort.strength(self.window_log).map(Coder::new).transpose()?;
        self.effort = effort;
        Ok(())
    }

    /// From how many bytes on frames take so long that whoever waits for acknowledgements would notice.
    pub fn long_bytes(&self) -> usize {
        match self.effort {
            Effort::Plain => usize::MAX,
            Effort::Lz4 | Effort::Fast => 64 << 10,
            Effort::Dense => 32 << 10,
            Effort::Densest => 16 << 10,
        }
    }

    /// What to write to the stream for these frames, in few pieces of memory. After an error the stream cannot be gone on
    /// with.
    pub fn encode(&mut self, frames: Vec<Frame>) -> Result<(Vec<Bytes>, Sent), ChunkError> {
        let began = Instant::now();
        let mut pieces = Pieces::default();
        let mut raw_bytes = 0;
        for frame in frames {
            raw_bytes += frame.encoded_len() as u64;
            self.encode_one(frame, &mut pieces)?;
        }
        self.end_chunk(&mut pieces);
        let pieces = pieces.finish();
        let wire_bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        let coding_us = began.elapsed().as_micros() as u64;
        Ok((pieces, Sent { raw_bytes, wire_bytes, coding_us, waiting_us: 0 }))
    }

    fn encode_one(&mut self, mut frame: Frame, pieces: &mut Pieces) -> Result<(), ChunkError> {
        let length = frame.encoded_len();
        let range = frame.written_range();
        let payload = payload_of(&mut frame).filter(|payload| payload.encoded.len() >= MIN_COMPRESSED_BYTES);
        let (Some(payload), Some(range)) = (payload, range) else {
            return match self.coding {
                true => self.code(&frame, pieces).map(drop),
                false => self.as_it_is(&frame, pieces),
            };
        };
        if self.effort == Effort::Plain || payload.codec != Codec::Raw || !self.shrinks.wants_to_try(&range) {
            self.coding = false;
            return self.as_it_is(&frame, pieces);
        }
        let coded = self.code(&frame, pieces)?;
        self.coding = coded < length - length / WORTHWHILE;
        self.shrinks.tried(&range, self.coding);
        Ok(())
    }

    /// Puts a frame into the chunk being made; how many bytes it came to.
    fn code(&mut self, frame: &Frame, pieces: &mut Pieces) -> Result<usize, ChunkError> {
        let length = frame.encoded_len();
        let Some(coder) = &mut self.coder else {
            pieces.push(frame);
            return Ok(length);
        };
        if !coder.has_room(length)
            && let Some(chunk) = coder.finish()
        {
            pieces.push_chunk(chunk);
        }
        coder.push(frame)
    }

    /// Puts a frame behind all that came before it.
    fn as_it_is(&mut self, frame: &Frame, pieces: &mut Pieces) -> Result<(), ChunkError> {
        self.end_chunk(pieces);
        pieces.push(frame);
        Ok(())
    }

    fn end_chunk(&mut self, pieces: &mut Pieces) {
        if let Some(chunk) = self.coder.as_mut().and_then(Coder::finish) {
            pieces.push_chunk(chunk);
        }
    }
}

fn payload_of(frame: &mut Frame) -> Option<&mut Payload> {
    match frame {
        Frame::Record(record) => match &mut record.content {
            Content::Data(payload) => Some(payload),
            Content::Zeroes { .. } => None,
        },
        Frame::Block(block) => match &mut block.content {
            Content::Data(payload) => Some(payload),
            Content::Zeroes { .. } => None,
        },
        _ => None,
    }
}

/// What goes into a stream as few pieces of memory.
#[derive(Default)]
struct Pieces {
    done: Vec<Bytes>,
    last: BytesMut,
}

impl Pieces {
    fn push(&mut self, frame: &Frame) {
        let payload = frame.payload();
        self.last.extend_from_slice(&frame.header());
        if payload.len() <= COPIED_BYTES {
            self.last.extend_from_slice(&payload);
        } else {
            self.done.push(self.last.split().freeze());
            self.done.push(payload);
        }
    }

    fn push_chunk(&mut self, chunk: Bytes) {
        self.done.push(self.last.split().freeze());
        self.done.push(chunk);
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.done.push(self.last.freeze());
        self.done.retain(|piece| !piece.is_empty());
        self.done
    }
}

#[cfg(test)]
mod tests {
    use afterimage_protocol::chunk::{CHUNK_HEADER_BYTES, ChunkHeader, Frames, MIN_WINDOW_LOG, Opener};
    use afterimage_protocol::codec;
    use afterimage_protocol::frame::Record;
    use afterimage_protocol::*;

    use super::*;

    const WINDOW_LOG: u32 = 22;

    fn noise(seed: u64, count: usize) -> Vec<u8> {
        let word = |n: u64| codec::content_checksum(&(seed << 32 | n).to_le_bytes()).to_le_bytes();
        (0..count.div_ceil(8) as u64).flat_map(word).take(count).collect()
    }

    fn record(sequence: u64, offset: u64, raw: Vec<u8>) -> Frame {
        let raw = Bytes::from(raw);
        Frame::Record(Record {
            position: Position::new(Generation(1), Sequence(sequence)),
            range: ByteRange::new(VolumeIndex(0), offset, raw.len() as u64),
            time: Time(0),
            content: Content::Data(codec::encode(Codec::Raw, &raw, codec::content_checksum(&raw))),
            floor: Sequence(0),
        })
    }

    /// What the other end makes of it, with payloads decoded.
    fn decoded(opener: &mut Opener, pieces: &[Bytes]) -> Vec<Frame> {
        let bytes = Bytes::from(pieces.concat());
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            match ChunkHeader::parse(&bytes[at..]).unwrap() {
                Some(header) => {
                    let from = at + CHUNK_HEADER_BYTES;
                    at = from + header.coded_bytes as usize;
                    let raw = opener.open(&header, &bytes.slice(from..at), WINDOW_LOG).unwrap();
                    found.extend(Frames::of(raw).map(|frame| frame.unwrap()));
                }
                None => {
                    let (frame, length) = Frame::decode(&bytes.slice(at..)).unwrap();
                    found.push(frame);
                    at += length;
                }
            }
        }
        for frame in &mut found {
            if let Some(payload) = payload_of(frame) {
                *payload = codec::encode(Codec::Raw, &codec::decode(payload).unwrap(), payload.checksum);
            }
        }
        found
    }

    #[test]
    fn frames_come_out_in_order_whatever_was_done_with_each() {
        let efforts = [Effort::Fast, Effort::Plain, Effort::Dense, Effort::Lz4, Effort::Densest];
        let mut encoder = Encoder::new(WINDOW_LOG);
        let mut opener = Opener::default();
        for round in 0..200u64 {
            if round % 40 == 39 {
                // A new session: neither end knows anything.
                encoder = Encoder::new(WINDOW_LOG);
                opener = Opener::default();
            }
            encoder.set_effort(efforts[(round / 7) as usize % efforts.len()]).unwrap();
            let frames: Vec<Frame> = (0..1 + round % 5)
                .map(|n| match (round * 3 + n) % 6 {
                    0 => Frame::Mark { sequence: Sequence(round), sync: true },
                    1 => record(round, 0, vec![n as u8; 4096]),
                    2 => record(round, 0, noise(n, 65536)),
                    3 => record(round, 1 << 30, noise(round, 20000)),
                    4 => record(round, 4096, noise(n, 100)),
                    _ => record(round, 1 << 31, [noise(round, 100), vec![0; 1 << 18]].concat()),
                })
                .collect();
            let (pieces, sent) = encoder.encode(frames.clone()).unwrap();
            assert_eq!(decoded(&mut opener, &pieces), frames, "round {round}");
            assert_eq!(sent.wire_bytes, pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
            assert_eq!(sent.raw_bytes, frames.iter().map(|frame| frame.encoded_len() as u64).sum::<u64>());
        }
    }

    #[test]
    fn what_does_not_shrink_goes_as_it_is_and_is_not_copied() {
        let mut encoder = Encoder::new(MIN_WINDOW_LOG);
        encoder.set_effort(Effort::Fast).unwrap();
        let mut plain = 0;
        for n in 0..100 {
            let frame = record(n, 0, noise(n, 65536));
            let payload = frame.payload();
            let (pieces, _) = encoder.encode(vec![frame]).unwrap();
            plain += usize::from(pieces.iter().any(|piece| piece.as_ptr() == payload.as_ptr()));
        }
        assert!(plain > 85, "{plain}");
        // What lies elsewhere and shrinks still does.
        let other = (0..2).map(|n| {
            encoder.shrinks.tried(&ByteRange::new(VolumeIndex(0), 1 << 30, 4096), true);
            encoder.encode(vec![record(n, 1 << 30, vec![1; 65536])]).unwrap().1.wire_bytes
        });
        assert!(other.sum::<u64>() < 1000);
    }
}
