//! The demo's client: just enough NBD to write, flush and read over a unix socket, one request at a time.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_EXPORT_NAME: u32 = 1;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_FLUSH: u16 = 3;
/// A server that does not answer for so long is lost.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to one export.
pub struct Client {
    stream: UnixStream,
    handle: u64,
}

impl Client {
    /// Connects to the default export of the server at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        // Fixed newstyle, no trailing zeroes; then the default export by its empty name.
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(OPT_EXPORT_NAME.to_be_bytes());
        hello.extend(0u32.to_be_bytes());
        stream.write_all(&hello)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        Ok(Self { stream, handle: 0 })
    }

    /// Writes; done when the server says so.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(CMD_WRITE, offset, data.len(), data)?;
        self.reply()
    }

    /// Makes what was written durable.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(CMD_FLUSH, 0, 0, &[])?;
        self.reply()
    }

    /// Fills `buf` from `offset`.
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.request(CMD_READ, offset, buf.len(), &[])?;
        self.reply()?;
        self.stream.read_exact(buf)
    }

    fn request(&mut self, command: u16, offset: u64, length: usize, data: &[u8]) -> io::Result<()> {
        self.handle += 1;
        let length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut out = Vec::with_capacity(28 + data.len());
        out.extend(REQUEST_MAGIC.to_be_bytes());
        out.extend(0u16.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(self.handle.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(length.to_be_bytes());
        out.extend(data);
        self.stream.write_all(&out)
    }

    fn reply(&mut self) -> io::Result<()> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let (magic, rest) = reply.split_at(4);
        let (error, _) = rest.split_at(4);
        if magic != REPLY_MAGIC.to_be_bytes() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if error != [0; 4] {
            return Err(io::Error::other("the server refused the request"));
        }
        Ok(())
    }
}
