//! What comes over a network: frames and messages of the peer, and the NBD protocol of a client.

use afterimage_nbd::wire::codes::*;
use afterimage_nbd::wire::{self, OPTION_HEADER_BYTES};
use afterimage_protocol::chunk::{CHUNK_HEADER_BYTES, ChunkHeader, Frames, MIN_WINDOW_LOG, Opener};
use afterimage_protocol::codec;
use afterimage_protocol::frame::{Block, Content, Frame, Record};
use afterimage_protocol::message::{self, SourceMessage, TargetMessage};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::mend;

/// A frame, and its payload decompressed.
pub fn frame(bytes: &[u8]) -> bool {
    let accepted = one_frame(Bytes::copy_from_slice(bytes));
    let mut mended = bytes.to_vec();
    mend::frame(&mut mended);
    one_frame(mended.into());
    accepted
}

fn one_frame(bytes: Bytes) -> bool {
    let Ok((frame, taken)) = Frame::decode(&bytes) else { return false };
    assert!(taken <= bytes.len(), "a frame of {taken} bytes in {}", bytes.len());
    assert_eq!(frame.encoded_len(), taken);
    let again = Frame::decode(&frame.to_bytes()).expect("an encoded frame decodes");
    assert_eq!(again, (frame.clone(), taken), "the frame changed on its way");
    match &frame {
        Frame::Record(Record { range, content: Content::Data(payload), .. })
        | Frame::Block(Block { range, content: Content::Data(payload), .. }) => {
            match codec::decode(payload) {
                Ok(raw) => {
                    assert_eq!(raw.len() as u64, range.length);
                    true
                }
                Err(_) => false,
            }
        }
        _ => true,
    }
}

/// What follows the preface of a stream: chunks and frames, and the payloads of both decompressed.
pub fn chunk(bytes: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut opener = Opener::default();
    let mut at = 0;
    while at < bytes.len() {
        match ChunkHeader::parse(&bytes[at..]) {
            Err(_) => return false,
            Ok(None) => {
                let Ok((_, taken)) = Frame::decode(&bytes.slice(at..)) else { return false };
                at += taken;
            }
            Ok(Some(header)) => {
                assert_eq!(ChunkHeader::parse(&header.to_bytes()), Ok(Some(header)));
                let from = at + CHUNK_HEADER_BYTES;
                at = from + header.coded_bytes as usize;
                if at > bytes.len() {
                    return false;
                }
                let coded = bytes.slice(from..at);
                let Ok(raw) = opener.open(&header, &coded, MIN_WINDOW_LOG) else { return false };
                assert_eq!(raw.len(), header.raw_bytes as usize);
                if Frames::of(raw).any(|frame| frame.is_err()) {
                    return false;
                }
            }
        }
    }
    true
}

/// A control message as a target reads it.
pub fn source_message(bytes: &[u8]) -> bool {
    control_message::<SourceMessage>(bytes)
}

/// A control message as a source reads it.
pub fn target_message(bytes: &[u8]) -> bool {
    control_message::<TargetMessage>(bytes)
}

fn control_message<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
    let Ok(found) = message::decode::<M>(bytes) else { return false };
    let again = message::decode::<M>(&message::encode(&found)).expect("an encoded message decodes");
    assert_eq!(again, found);
    true
}

/// What an NBD client says before the transmission phase: its flags, or an option with its data.
pub fn nbd_handshake(bytes: &[u8]) -> bool {
    if let Ok(flags) = wire::decode_client_flags(bytes) {
        assert_eq!(flags & !(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES), 0);
        return true;
    }
    let Ok(header) = wire::decode_option_header(bytes) else { return false };
    let data = bytes.get(OPTION_HEADER_BYTES..).unwrap_or_default();
    // Both on the same data: a client may put any option's number in front of it.
    let info = wire::decode_info(data);
    let meta = wire::decode_meta(data);
    if let Ok(meta) = &meta {
        let text = meta.export.len() + meta.queries.iter().map(|q| q.len() + 4).sum::<usize>();
        assert!(text <= data.len(), "more text was decoded than there is");
    }
    if header.length_bytes as usize != data.len() {
        return false;
    }
    match header.option {
        OPT_INFO | OPT_GO => info.is_ok(),
        OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => meta.is_ok(),
        _ => true,
    }
}

/// The header of an NBD request.
pub fn nbd_request(bytes: &[u8]) -> bool {
    wire::decode_request(bytes).is_ok()
}
