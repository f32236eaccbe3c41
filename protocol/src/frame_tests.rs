use super::*;
use crate::codec;

fn samples() -> Vec<Frame> {
    let raw = Bytes::from(vec![9u8; 8192]);
    let data = Content::Data(codec::encode(Codec::Lz4, &raw, codec::content_checksum(&raw)));
    let as_it_is = Content::Data(codec::encode(Codec::Raw, &raw, codec::content_checksum(&raw)));
    let position = Position::new(Generation(7), Sequence(42));
    let range = ByteRange::new(VolumeIndex(1), 4096, 8192);
    vec![
        Frame::Record(Record {
            position,
            range,
            time: Time(5),
            content: as_it_is.clone(),
            floor: Sequence(3),
        }),
        Frame::Block(Block {
            epoch: EpochId(3),
            frame: FrameId(1),
            range,
            read_at: Sequence(41),
            after: Sequence(40),
            content: as_it_is,
        }),
        Frame::Record(Record { position, range, time: Time(5), content: data.clone(), floor: Sequence(3) }),
        Frame::Record(Record {
            position,
            range,
            time: Time(5),
            content: Content::Zeroes { punch: true },
            floor: Sequence(0),
        }),
        Frame::Mark { sequence: Sequence(9), sync: true },
        Frame::EpochBegin { epoch: EpochId(3), generation: Generation(7), incarnation: Incarnation(2) },
        Frame::Block(Block {
            epoch: EpochId(3),
            frame: FrameId(1),
            range,
            read_at: Sequence(41),
            after: Sequence(40),
            content: data,
        }),
        Frame::Compare(Compare {
            epoch: EpochId(3),
            frame: FrameId(2),
            range,
            read_at: Sequence(41),
            after: Sequence(0),
            hashes: Bytes::from(vec![1u8; 32]),
        }),
        Frame::EpochCommit { epoch: EpochId(3), position, time: Time(8), frames: 2, digest: 77 },
        Frame::EpochAbort { epoch: EpochId(3) },
        Frame::Point { position, time: Time(1) },
        Frame::TakeOver { position },
    ]
}

#[test]
fn every_kind_survives_the_wire() {
    for frame in samples() {
        let bytes = frame.to_bytes();
        assert_eq!(Frame::decode(&bytes).unwrap(), (frame, bytes.len()));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for frame in samples() {
        let good = frame.to_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&bad.into()).is_err(), "{frame:?}: bit {bit} went unnoticed");
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    for frame in samples() {
        let good = frame.to_bytes();
        for len in 0..good.len() {
            assert!(Frame::decode(&good.slice(..len)).is_err());
        }
    }
}

/// The header of `frame`, with what `change` does to it and a checksum that is right for it.
fn forged(frame: &Frame, change: impl Fn(&mut [u8; HEADER_BYTES])) -> Header {
    let mut bytes = frame.header();
    change(&mut bytes);
    let sum = checksum(&bytes, &frame.payload());
    put64(&mut bytes, AT_CHECKSUM, sum);
    Header::parse(&bytes).unwrap()
}

#[test]
fn raw_data_of_version_1_is_read_and_verified() {
    let frame = &samples()[0];
    let old = forged(frame, |bytes| bytes[AT_VERSION] = VERSION);
    assert_eq!(old.open(frame.payload()).as_ref(), Ok(frame));
    let mut damaged = frame.payload().to_vec();
    damaged[4711] ^= 1;
    assert_eq!(old.open(damaged.into()), Err(FrameError::Checksum));
}

#[test]
fn only_raw_data_leaves_its_payload_to_the_content_checksum() {
    for frame in samples().iter().skip(2) {
        let header = forged(frame, |bytes| bytes[AT_VERSION] = VERSION_RAW);
        assert_eq!(
            header.open(frame.payload()),
            Err(FrameError::Field { field: "version", value: 2 }),
            "{frame:?}"
        );
    }
}
