//! Takes fields off the front of a byte slice, with every bound checked.

use super::{DecodeError, codes::STRING_BYTES_MAX};

/// What has not been decoded yet.
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with a 32-bit length before it.
    pub(super) fn string(&mut self) -> Result<&'a str, DecodeError> {
        let length_bytes = self.u32()?;
        if length_bytes > STRING_BYTES_MAX {
            return Err(DecodeError::StringTooLong { length_bytes });
        }
        let (text, rest) = self.0.split_at_checked(length_bytes as usize).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| DecodeError::NotUtf8)
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*field)
    }
}
