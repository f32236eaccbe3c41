//! The NBD wire format: pure functions over byte slices, no I/O and no state.
//!
//! Every number is big-endian. The source is `doc/proto.md` of the NBD project (fixed newstyle, simple and
//! structured replies; not the extended headers). Nothing in here trusts a length, a count or a string that came
//! from a client: a decoder returns a [`DecodeError`] and never panics or allocates more than its input is long.
//! The decoders are public so that a fuzz target can call them.

pub mod codes;
mod cursor;
mod option;
mod reply;
mod request;

pub use option::{
    InfoRequest, MetaQuery, OPTION_HEADER_BYTES, OptionHeader, decode_client_flags, decode_info, decode_meta,
    decode_option_header, encode_greeting, encode_option_reply,
};
pub use reply::{
    HEAD_BYTES_MAX, Head, encode_data_chunk, encode_error_chunk, encode_none_chunk, encode_simple,
    encode_status_chunk,
};
pub use request::{REQUEST_HEADER_BYTES, RequestHeader, decode_request};

/// Why bytes of a client could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the fixed part, or than a length inside it says.
    #[error("the message is shorter than it says")]
    Truncated,
    /// Bytes were left over after the last field.
    #[error("the message is longer than it says")]
    TrailingBytes,
    /// The magic number is wrong: the stream is out of step and nothing after it can be trusted.
    #[error("wrong magic number {found:#018x}")]
    BadMagic {
        /// What stood in its place.
        found: u64,
    },
    /// A string is longer than [`codes::STRING_BYTES_MAX`].
    #[error("a string of {length_bytes} bytes, the protocol allows {}", codes::STRING_BYTES_MAX)]
    StringTooLong {
        /// The length that the client gave.
        length_bytes: u32,
    },
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// Handshake flags that were not offered.
    #[error("unknown client flags {flags:#010x}")]
    UnknownClientFlags {
        /// All flags that the client sent.
        flags: u32,
    },
}
