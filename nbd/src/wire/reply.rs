//! Heads of replies in the transmission phase: simple replies and the chunks of structured ones.
//!
//! A head is a short array on the stack, so that a reply costs no allocation and its data goes out from where the
//! backend left it. Every structured reply of this server ends with the last chunk that it sends; the caller says
//! which one that is.

use bytes::BufMut;

use super::codes::*;

/// The longest head: a chunk header (20 bytes) and the fixed fields of an `OFFSET_DATA` chunk (8 bytes).
pub const HEAD_BYTES_MAX: usize = 28;

/// What stands before the data of a reply or a chunk.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    length: u8,
}

impl Head {
    /// The bytes to send.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    /// Lets `fill` write at most [`HEAD_BYTES_MAX`] bytes.
    fn build(fill: impl FnOnce(&mut &mut [u8])) -> Self {
        let mut bytes = [0; HEAD_BYTES_MAX];
        let mut free = bytes.as_mut_slice();
        fill(&mut free);
        let left = free.len();
        // At most 28, so the cast keeps the value.
        Self { bytes, length: (HEAD_BYTES_MAX - left) as u8 }
    }

    fn chunk(
        flags: u16,
        kind: u16,
        cookie: u64,
        length_bytes: u32,
        fields: impl FnOnce(&mut &mut [u8]),
    ) -> Self {
        Self::build(|out| {
            out.put_u32(STRUCTURED_REPLY_MAGIC);
            out.put_u16(flags);
            out.put_u16(kind);
            out.put_u64(cookie);
            out.put_u32(length_bytes);
            fields(out);
        })
    }
}

/// A simple reply; after error 0 to a read its data follows.
pub fn encode_simple(cookie: u64, error: u32) -> Head {
    Head::build(|out| {
        out.put_u32(SIMPLE_REPLY_MAGIC);
        out.put_u32(error);
        out.put_u64(cookie);
    })
}

/// The last chunk with `data_bytes` of the export from `offset_bytes` on; the data follows.
///
/// `data_bytes` is at most the largest block, far from where the sum could overflow.
pub fn encode_data_chunk(cookie: u64, offset_bytes: u64, data_bytes: u32) -> Head {
    Head::chunk(REPLY_FLAG_DONE, REPLY_TYPE_OFFSET_DATA, cookie, data_bytes.saturating_add(8), |out| {
        out.put_u64(offset_bytes);
    })
}

/// The last chunk, with nothing in it: success without data.
pub fn encode_none_chunk(cookie: u64) -> Head {
    Head::chunk(REPLY_FLAG_DONE, REPLY_TYPE_NONE, cookie, 0, |_| {})
}

/// A `BLOCK_STATUS` chunk of one context; `descriptors_bytes` of extent descriptors follow.
pub fn encode_status_chunk(cookie: u64, context_id: u32, descriptors_bytes: u32, done: bool) -> Head {
    let flags = if done { REPLY_FLAG_DONE } else { 0 };
    Head::chunk(flags, REPLY_TYPE_BLOCK_STATUS, cookie, descriptors_bytes.saturating_add(4), |out| {
        out.put_u32(context_id);
    })
}

/// The last chunk, with an error and no message.
pub fn encode_error_chunk(cookie: u64, error: u32) -> Head {
    Head::chunk(REPLY_FLAG_DONE, REPLY_TYPE_ERROR, cookie, 6, |out| {
        out.put_u32(error);
        out.put_u16(0);
    })
}
