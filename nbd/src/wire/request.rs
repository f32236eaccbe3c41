//! The header of a request in the transmission phase.

use super::{DecodeError, codes::REQUEST_MAGIC, cursor::Cursor};

/// Bytes of a request before its payload.
pub const REQUEST_HEADER_BYTES: usize = 28;

/// A request as the client sent it; nothing but the magic has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// `codes::CMD_FLAG_*`.
    pub flags: u16,
    /// `codes::CMD_*`.
    pub command: u16,
    /// The client's name for the request, repeated in the reply.
    pub cookie: u64,
    /// Where in the export, in bytes.
    pub offset_bytes: u64,
    /// How much of the export; for `CMD_WRITE` also how much payload follows.
    pub length_bytes: u32,
}

/// Decodes the first [`REQUEST_HEADER_BYTES`] of `bytes`; what follows is not looked at.
pub fn decode_request(bytes: &[u8]) -> Result<RequestHeader, DecodeError> {
    let mut cursor = Cursor::new(bytes);
    let magic = cursor.u32()?;
    if magic != REQUEST_MAGIC {
        return Err(DecodeError::BadMagic { found: magic.into() });
    }
    Ok(RequestHeader {
        flags: cursor.u16()?,
        command: cursor.u16()?,
        cookie: cursor.u64()?,
        offset_bytes: cursor.u64()?,
        length_bytes: cursor.u32()?,
    })
}
