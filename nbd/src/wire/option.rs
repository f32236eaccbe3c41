//! The handshake: greeting, client flags, options and their replies.

use bytes::{BufMut, BytesMut};

use super::{DecodeError, codes::*, cursor::Cursor};

/// Bytes of an option before its data.
pub const OPTION_HEADER_BYTES: usize = 16;

/// What stands before the data of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// One of `codes::OPT_*`, or one that this server does not know.
    pub option: u32,
    /// Bytes of data that follow, as the client says; not checked against any limit.
    pub length_bytes: u32,
}

/// The data of `OPT_INFO` and `OPT_GO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export's name; empty means the default export.
    pub export: &'a str,
    /// `INFO_NAME` was asked for.
    pub name: bool,
    /// `INFO_DESCRIPTION` was asked for.
    pub description: bool,
    /// `INFO_BLOCK_SIZE` was asked for: the client promises to keep to the block sizes.
    pub block_size: bool,
}

/// The data of `OPT_LIST_META_CONTEXT` and `OPT_SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaQuery<'a> {
    /// The export's name; empty means the default export.
    pub export: &'a str,
    /// Names or prefixes of metadata contexts, in the client's order.
    pub queries: Vec<&'a str>,
}

/// Decodes the four bytes that a client answers the greeting with. Fails on flags that were not offered.
pub fn decode_client_flags(bytes: &[u8]) -> Result<u32, DecodeError> {
    let mut cursor = Cursor::new(bytes);
    let flags = cursor.u32()?;
    cursor.end()?;
    if flags & !(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES) == 0 {
        Ok(flags)
    } else {
        Err(DecodeError::UnknownClientFlags { flags })
    }
}

/// Decodes the first [`OPTION_HEADER_BYTES`] of `bytes`; what follows is the option's data and is not looked at.
pub fn decode_option_header(bytes: &[u8]) -> Result<OptionHeader, DecodeError> {
    let mut cursor = Cursor::new(bytes);
    let magic = cursor.u64()?;
    if magic != OPTION_MAGIC {
        return Err(DecodeError::BadMagic { found: magic });
    }
    Ok(OptionHeader { option: cursor.u32()?, length_bytes: cursor.u32()? })
}

/// Decodes the data of `OPT_INFO` and `OPT_GO`. Kinds of information that are not known are skipped.
pub fn decode_info(data: &[u8]) -> Result<InfoRequest<'_>, DecodeError> {
    let mut cursor = Cursor::new(data);
    let export = cursor.string()?;
    let mut request = InfoRequest { export, name: false, description: false, block_size: false };
    for _ in 0..cursor.u16()? {
        match cursor.u16()? {
            INFO_NAME => request.name = true,
            INFO_DESCRIPTION => request.description = true,
            INFO_BLOCK_SIZE => request.block_size = true,
            _ => {}
        }
    }
    cursor.end()?;
    Ok(request)
}

/// Decodes the data of `OPT_LIST_META_CONTEXT` and `OPT_SET_META_CONTEXT`.
pub fn decode_meta(data: &[u8]) -> Result<MetaQuery<'_>, DecodeError> {
    let mut cursor = Cursor::new(data);
    let export = cursor.string()?;
    let count = cursor.u32()?;
    // Grows with what is really there, never with what the count claims.
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(cursor.string()?);
    }
    cursor.end()?;
    Ok(MetaQuery { export, queries })
}

/// Appends what the server sends first: both magics and its handshake flags.
pub fn encode_greeting(out: &mut BytesMut) {
    out.put_u64(INIT_MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
}

/// Appends one reply to `option`; `data` must be shorter than 4 GiB, which all data of this server is by far.
pub fn encode_option_reply(out: &mut BytesMut, option: u32, reply: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(reply);
    out.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    out.put_slice(data);
}
