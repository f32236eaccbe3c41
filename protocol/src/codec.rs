//! Payload compression: encode on the source, decode where the bytes are needed raw.
//!
//! Owns the choice of raw when a payload does not shrink. Leaves to the caller when to compress at all.

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::frame::{Codec, FrameError, Payload};
use crate::ids::MAX_PAYLOAD_BYTES;

/// A payload must lose at least one part in this many to be worth decoding again at every read.
const WORTHWHILE: usize = 16;

/// XXH3-64 of the raw bytes: taken once, where a write is admitted.
pub fn content_checksum(raw: &[u8]) -> u64 {
    xxh3_64(raw)
}

/// The same of bytes that come one after the other: each part is best summed up while a processor still has it at hand.
#[derive(Default)]
pub struct ContentSum(Xxh3);

impl ContentSum {
    /// Takes the next bytes.
    pub fn add(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    /// The [`content_checksum`] of all that was added.
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

/// The payload for `raw` with `codec`, or raw where that does not save a sixteenth. `checksum` is the
/// [`content_checksum`] taken at admission. `raw` is at most [`MAX_PAYLOAD_BYTES`] long.
pub fn encode(codec: Codec, raw: &Bytes, checksum: u64) -> Payload {
    debug_assert!(raw.len() as u64 <= MAX_PAYLOAD_BYTES);
    let encoded = match codec {
        Codec::Raw => None,
        Codec::Lz4 => Some(lz4_flex::block::compress(raw)),
        Codec::Zstd => zstd::bulk::compress(raw, 1).ok(),
    };
    let limit = raw.len() - raw.len() / WORTHWHILE;
    let raw_bytes = raw.len() as u32;
    match encoded {
        Some(e) if e.len() < limit => Payload { codec, raw_bytes, checksum, encoded: e.into() },
        _ => Payload { codec: Codec::Raw, raw_bytes, checksum, encoded: raw.clone() },
    }
}

/// The raw bytes of `payload`, verified against the checksum taken at admission.
pub fn decode(payload: &Payload) -> Result<Bytes, FrameError> {
    let raw = decode_opened(payload)?;
    if payload.codec == Codec::Raw && content_checksum(&raw) != payload.checksum {
        return Err(FrameError::Content);
    }
    Ok(raw)
}

/// The same of a payload that came out of [`crate::frame::Header::open`], where one that is raw was verified.
pub fn decode_opened(payload: &Payload) -> Result<Bytes, FrameError> {
    let len = payload.raw_bytes as usize;
    if u64::from(payload.raw_bytes) > MAX_PAYLOAD_BYTES {
        return Err(FrameError::Field { field: "raw length", value: payload.raw_bytes.into() });
    }
    let raw = match payload.codec {
        Codec::Raw => payload.encoded.clone(),
        Codec::Lz4 => {
            let mut out = vec![0; len];
            let n = lz4_flex::block::decompress_into(&payload.encoded, &mut out)
                .map_err(|_| FrameError::Content)?;
            out.truncate(n);
            out.into()
        }
        Codec::Zstd => zstd::bulk::decompress(&payload.encoded, len).map_err(|_| FrameError::Content)?.into(),
    };
    let known = payload.codec == Codec::Raw;
    if raw.len() != len || (!known && content_checksum(&raw) != payload.checksum) {
        return Err(FrameError::Content);
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_returns_the_same_bytes() {
        let raw = Bytes::from((0..8192u32).flat_map(|i| (i / 7).to_le_bytes()).collect::<Vec<_>>());
        for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
            let p = encode(codec, &raw, content_checksum(&raw));
            assert_eq!(p.codec, codec);
            assert_eq!(decode(&p).unwrap(), raw);
        }
    }

    #[test]
    fn a_sum_of_parts_is_that_of_the_whole() {
        let raw: Vec<u8> = (0..10_000u32).map(|n| (n * n) as u8).collect();
        for step in [1, 100, 4096, 10_000] {
            let mut sum = ContentSum::default();
            raw.chunks(step).for_each(|part| sum.add(part));
            assert_eq!(sum.finish(), content_checksum(&raw), "{step}");
        }
    }

    #[test]
    fn a_payload_that_does_not_shrink_stays_raw() {
        let raw =
            Bytes::from((0..4096u64).map(|i| (xxh3_64(&i.to_le_bytes()) & 0xff) as u8).collect::<Vec<_>>());
        assert_eq!(encode(Codec::Lz4, &raw, content_checksum(&raw)).codec, Codec::Raw);
    }

    #[test]
    fn damage_is_noticed_in_every_codec() {
        let raw = Bytes::from(vec![7u8; 4096]);
        for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
            let mut p = encode(codec, &raw, content_checksum(&raw));
            p.checksum ^= 1;
            assert_eq!(decode(&p), Err(FrameError::Content));
        }
    }
}
