//! The wire format: golden bytes, written down from the specification, and what no input may do to a decoder.

use afterimage_nbd::wire::{
    self, DecodeError, InfoRequest, MetaQuery, OptionHeader, RequestHeader,
    codes::{self, *},
};
use bytes::BytesMut;

#[test]
fn greeting() {
    let mut out = BytesMut::new();
    wire::encode_greeting(&mut out);
    assert_eq!(&out[..], b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn client_flags() {
    assert_eq!(wire::decode_client_flags(&[0, 0, 0, 3]), Ok(3));
    assert_eq!(wire::decode_client_flags(&[0, 0, 0, 7]), Err(DecodeError::UnknownClientFlags { flags: 7 }));
    assert_eq!(wire::decode_client_flags(&[0, 0, 3]), Err(DecodeError::Truncated));
    assert_eq!(wire::decode_client_flags(&[0, 0, 0, 3, 0]), Err(DecodeError::TrailingBytes));
}

#[test]
fn option_header() {
    let bytes = b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x01\x02data";
    assert_eq!(wire::decode_option_header(bytes), Ok(OptionHeader { option: OPT_GO, length_bytes: 0x102 }));
    assert_eq!(wire::decode_option_header(&bytes[..15]), Err(DecodeError::Truncated));
    let found = u64::from_be_bytes(*b"IHAVEOPS");
    assert_eq!(wire::decode_option_header(b"IHAVEOPS\0\0\0\0\0\0\0\0"), Err(DecodeError::BadMagic { found }));
}

#[test]
fn info_request() {
    let data = b"\x00\x00\x00\x04disk\x00\x02\x00\x03\x00\x01";
    let request = InfoRequest { export: "disk", name: true, description: false, block_size: true };
    assert_eq!(wire::decode_info(data), Ok(request));
    assert_eq!(wire::decode_info(&data[..11]), Err(DecodeError::Truncated));
    assert_eq!(wire::decode_info(b"\0\0\0\0\0\0\0"), Err(DecodeError::TrailingBytes));
    assert_eq!(
        wire::decode_info(b"\xff\xff\xff\xff"),
        Err(DecodeError::StringTooLong { length_bytes: u32::MAX })
    );
    assert_eq!(wire::decode_info(b"\0\0\0\x01\xff\0\0"), Err(DecodeError::NotUtf8));
}

#[test]
fn meta_query() {
    let data = b"\0\0\0\0\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x01x";
    let query = MetaQuery { export: "", queries: vec!["base:allocation", "x"] };
    assert_eq!(wire::decode_meta(data), Ok(query));
    // A count that lies must not be believed, neither for memory nor for time.
    assert_eq!(wire::decode_meta(b"\0\0\0\0\xff\xff\xff\xff"), Err(DecodeError::Truncated));
}

#[test]
fn request() {
    let bytes = b"\x25\x60\x95\x13\x00\x01\x00\x06ABCDEFGH\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x00";
    let header = RequestHeader {
        flags: CMD_FLAG_FUA,
        command: CMD_WRITE_ZEROES,
        cookie: u64::from_be_bytes(*b"ABCDEFGH"),
        offset_bytes: 0x0102_0304_0506_0708,
        length_bytes: 0x10000,
    };
    assert_eq!(bytes.len(), wire::REQUEST_HEADER_BYTES);
    assert_eq!(wire::decode_request(bytes), Ok(header));
    assert_eq!(wire::decode_request(&bytes[..27]), Err(DecodeError::Truncated));
    assert_eq!(wire::decode_request(&[0; 28]), Err(DecodeError::BadMagic { found: 0 }));
}

#[test]
fn replies() {
    assert_eq!(wire::encode_simple(0x4142, EIO).as_slice(), b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0AB");
    assert_eq!(
        wire::encode_data_chunk(0x4142, 0x1000, 512).as_slice(),
        b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0AB\0\0\x02\x08\0\0\0\0\0\0\x10\0"
    );
    assert_eq!(
        wire::encode_none_chunk(0x4142).as_slice(),
        b"\x66\x8e\x33\xef\0\x01\0\0\0\0\0\0\0\0AB\0\0\0\0"
    );
    assert_eq!(
        wire::encode_status_chunk(0x4142, 2, 16, false).as_slice(),
        b"\x66\x8e\x33\xef\0\0\0\x05\0\0\0\0\0\0AB\0\0\0\x14\0\0\0\x02"
    );
    assert_eq!(
        wire::encode_error_chunk(0x4142, EINVAL).as_slice(),
        b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0AB\0\0\0\x06\0\0\0\x16\0\0"
    );
    let mut out = BytesMut::new();
    wire::encode_option_reply(&mut out, OPT_LIST, REP_ERR_UNSUP, b"no");
    assert_eq!(&out[..], b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\x80\0\0\x01\0\0\0\x02no");
}

/// SplitMix64 (Steele, Lea, Flood 2014): every failure comes again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// What the decoders promise of any input: no panic, and results that fit inside what was given.
fn decode_everything(bytes: &[u8]) {
    let _ = wire::decode_client_flags(bytes);
    let _ = wire::decode_option_header(bytes);
    let _ = wire::decode_request(bytes);
    if let Ok(request) = wire::decode_info(bytes) {
        assert!(request.export.len() <= bytes.len());
    }
    if let Ok(query) = wire::decode_meta(bytes) {
        assert!(query.queries.len() * 4 <= bytes.len());
        assert!(query.queries.iter().all(|text| text.len() <= codes::STRING_BYTES_MAX as usize));
    }
}

#[test]
fn no_input_breaks_a_decoder() {
    let mut random = Random(0x6e62_6401);
    let seeds: [&[u8]; 4] = [
        b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x01\x02data",
        b"\x00\x00\x00\x04disk\x00\x02\x00\x03\x00\x01",
        b"\0\0\0\0\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x01x",
        b"\x25\x60\x95\x13\x00\x01\x00\x06ABCDEFGH\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x00",
    ];
    for seed in seeds {
        for end in 0..=seed.len() {
            decode_everything(&seed[..end]);
        }
    }
    for _ in 0..200_000 {
        let mut bytes = seeds[random.below(seeds.len())].to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, [0, 0xff, 0x80, 1][random.below(4)]),
            }
        }
        decode_everything(&bytes);
    }
}
