//! As much of NBD as fio's client needs, for one connection that is waited for.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use anyhow::{Context, Result, bail, ensure};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes; a client answers with the same.
const HANDSHAKE_FLAGS: u16 = 3;
/// Has flags, knows a flush.
const EXPORT_FLAGS: u16 = 1 | 1 << 2;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;
const OPTION_BYTES_MAX: usize = 64 << 10;
/// The longest write that is taken.
pub const WRITE_BYTES_MAX: usize = 32 << 20;
/// Bytes of a request without what is to be written.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of an answer to a write or a flush.
pub const REPLY_BYTES: usize = 16;

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// So many bytes are to be read from here.
    Read(u64, usize),
    /// So many bytes, which follow, are to be written here.
    Write(u64, usize),
    /// What was written is to be made durable.
    Flush,
    /// The client goes.
    Leave,
}

/// A request as it comes.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What is wanted.
    pub wish: Wish,
    handle: [u8; 8],
}

impl Request {
    /// From its bytes on the wire.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self> {
        let number = |from: usize, length: usize| {
            bytes[from..from + length].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        ensure!(number(0, 4) == u64::from(REQUEST_MAGIC), "this is no request");
        let (offset, length) = (number(16, 8), number(24, 4) as usize);
        ensure!(length <= WRITE_BYTES_MAX, "a request of {length} bytes is too long");
        let wish = match number(6, 2) {
            0 => Wish::Read(offset, length),
            1 => Wish::Write(offset, length),
            2 => Wish::Leave,
            3 => Wish::Flush,
            other => bail!("request {other} was not offered"),
        };
        let mut handle = [0; 8];
        handle.copy_from_slice(&bytes[8..16]);
        Ok(Self { wish, handle })
    }

    /// That it is done.
    pub fn done(&self) -> [u8; REPLY_BYTES] {
        let mut reply = [0; REPLY_BYTES];
        reply[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        reply[8..].copy_from_slice(&self.handle);
        reply
    }
}

/// Offers a volume of `size_bytes` bytes, whatever it is asked for by name; `false` if the client only looked.
pub fn offer(client: &mut UnixStream, size_bytes: u64) -> Result<bool> {
    let greeting = [&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()];
    client.write_all(&greeting.concat()).context("greet")?;
    client.read_exact(&mut [0; 4]).context("hear the client's flags")?;
    loop {
        let mut header = [0; 16];
        client.read_exact(&mut header).context("hear an option")?;
        let option = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        let length = u32::from_be_bytes([header[12], header[13], header[14], header[15]]) as usize;
        ensure!(length <= OPTION_BYTES_MAX, "an option of {length} bytes is too long");
        client.read_exact(&mut vec![0; length]).context("hear an option")?;
        match option {
            OPTION_GO => {
                let export =
                    [&INFO_EXPORT.to_be_bytes()[..], &size_bytes.to_be_bytes(), &EXPORT_FLAGS.to_be_bytes()];
                answer(client, option, REPLY_INFO, &export.concat())?;
                answer(client, option, REPLY_ACK, &[])?;
                return Ok(true);
            }
            OPTION_ABORT => {
                answer(client, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => answer(client, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn answer(client: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> Result<()> {
    let length = data.len() as u32;
    let header = [
        &OPTION_REPLY_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ];
    client.write_all(&header.concat()).context("answer an option")
}

/// A request on the wire, as a client sends it.
#[cfg(test)]
pub fn request_bytes(wish: Wish, handle: u64) -> [u8; REQUEST_BYTES] {
    let (kind, offset, length) = match wish {
        Wish::Read(offset, length) => (0u16, offset, length),
        Wish::Write(offset, length) => (1, offset, length),
        Wish::Leave => (2, 0, 0),
        Wish::Flush => (3, 0, 0),
    };
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&handle.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&(length as u32).to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_it_says_or_none() {
        assert!(Request::parse(&[0; REQUEST_BYTES]).is_err());
        let mut bytes = request_bytes(Wish::Write(16, 4096), 3);
        let request = Request::parse(&bytes).expect("a request");
        assert_eq!(request.wish, Wish::Write(16, 4096));
        assert_eq!(request.done()[8..], 3u64.to_be_bytes());
        bytes[7] = 9;
        assert!(Request::parse(&bytes).is_err(), "it was not offered");
    }
}
