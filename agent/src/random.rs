//! Random numbers of the kernel.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// A random number other than 0.
pub(crate) fn nonzero() -> io::Result<u64> {
    loop {
        let mut bytes = [0u8; 8];
        // Up to 256 bytes are never cut short once the kernel has its seed.
        if getrandom(&mut bytes, GetRandomFlags::empty())? < bytes.len() {
            continue;
        }
        match u64::from_le_bytes(bytes) {
            0 => {}
            number => return Ok(number),
        }
    }
}
