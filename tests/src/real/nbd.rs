//! A blocking NBD client: enough of the protocol for a test to write, read and flush, with several in flight.
//!
//! Fixed newstyle negotiation with `NBD_OPT_GO`, and simple replies; see the protocol's description, `doc/proto.md`
//! of <https://github.com/NetworkBlockDevice/nbd>. It is our own so that a test knows exactly when a request was
//! sent and when its answer was read.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::oracle::Blocks;
use super::stamp::{BLOCK_BYTES, Block};

const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
const FLAG_NO_ZEROES: u16 = 1 << 1;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_FLAG_FUA: u16 = 1 << 0;
const SIMPLE_REPLY_BYTES: usize = 16;
/// Longest option reply that is read: an export's description may be 4096 bytes.
const OPTION_REPLY_BYTES_MAX: u32 = 1 << 16;
/// How long a single call waits for the server, unless it says otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to one export.
pub struct Client {
    stream: Box<dyn Stream>,
    /// Bytes read of a reply that is not complete.
    pending: Vec<u8>,
    /// Reads in flight, with their lengths: a simple reply does not say what it answers.
    reads: Vec<(u64, usize)>,
    size_bytes: u64,
    flags: u16,
    cookie: u64,
}

/// The answer to one request.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// What the request was sent with.
    pub cookie: u64,
    /// 0, or the server's error number.
    pub error: u32,
    /// What was read.
    pub data: Vec<u8>,
}

trait Stream: Read + Write + Send {
    fn set_patience(&self, limit: Duration) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn set_patience(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

impl Stream for TcpStream {
    fn set_patience(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

impl Client {
    /// Connects to `export` on a unix socket.
    pub fn connect_unix(path: &Path, export: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Self::negotiate(Box::new(stream), export)
    }

    /// Connects to `export` on a TCP address.
    pub fn connect_tcp(addr: SocketAddr, export: &str) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Self::negotiate(Box::new(stream), export)
    }

    /// The export's size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The export's transmission flags, as the server sent them.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Sends a write; its reply comes by [`Client::reply`]. With `fua` the answer means durable.
    pub fn send_write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<u64> {
        let length = u32::try_from(data.len()).map_err(|_| invalid("a write of more than 4 GiB"))?;
        self.send(CMD_WRITE, if fua { CMD_FLAG_FUA } else { 0 }, offset, length, data)
    }

    /// Sends a read; its reply comes by [`Client::reply`].
    pub fn send_read(&mut self, offset: u64, length: u32) -> io::Result<u64> {
        let cookie = self.send(CMD_READ, 0, offset, length, &[])?;
        self.reads.push((cookie, length as usize));
        Ok(cookie)
    }

    /// Sends a flush; its reply comes by [`Client::reply`].
    pub fn send_flush(&mut self) -> io::Result<u64> {
        self.send(CMD_FLUSH, 0, 0, 0, &[])
    }

    /// The next reply, to whichever request; `None` if none is complete within `limit`.
    pub fn reply(&mut self, limit: Duration) -> io::Result<Option<Reply>> {
        let deadline = Instant::now() + limit;
        if !self.fill(SIMPLE_REPLY_BYTES, deadline)? {
            return Ok(None);
        }
        if be32(&self.pending, 0) != SIMPLE_REPLY_MAGIC {
            return Err(invalid("a reply without the magic of a simple reply"));
        }
        let error = be32(&self.pending, 4);
        let cookie = be64(&self.pending, 8);
        let read = self.reads.iter().position(|&(sent, _)| sent == cookie);
        let length = match read {
            Some(index) if error == 0 => self.reads[index].1,
            _ => 0,
        };
        if !self.fill(SIMPLE_REPLY_BYTES + length, deadline)? {
            return Ok(None);
        }
        if let Some(index) = read {
            self.reads.swap_remove(index);
        }
        let data = self.pending.split_off(SIMPLE_REPLY_BYTES);
        self.pending.clear();
        Ok(Some(Reply { cookie, error, data }))
    }

    /// Writes and waits. Nothing else may be in flight.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let cookie = self.send_write(offset, data, false)?;
        self.wait_for(cookie).map(drop)
    }

    /// Reads and waits. Nothing else may be in flight.
    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        let cookie = self.send_read(offset, length)?;
        self.wait_for(cookie)
    }

    /// Flushes and waits. Nothing else may be in flight.
    pub fn flush(&mut self) -> io::Result<()> {
        let cookie = self.send_flush()?;
        self.wait_for(cookie).map(drop)
    }

    /// Says goodbye, as a client that ends well does.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send(CMD_DISC, 0, 0, 0, &[]).map(drop)
    }

    fn wait_for(&mut self, cookie: u64) -> io::Result<Vec<u8>> {
        match self.reply(PATIENCE)? {
            None => Err(io::Error::new(ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}"))),
            Some(reply) if reply.cookie != cookie => Err(invalid("an answer to another request")),
            Some(Reply { error: 0, data, .. }) => Ok(data),
            // NBD's error numbers are Linux's (doc/proto.md, "Error values").
            Some(reply) => Err(io::Error::from_raw_os_error(reply.error as i32)),
        }
    }

    fn send(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<u64> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        Ok(self.cookie)
    }

    /// Reads until `pending` has `wanted` bytes; false if that lasts past `deadline`.
    fn fill(&mut self, wanted: usize, deadline: Instant) -> io::Result<bool> {
        while self.pending.len() < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            self.stream.set_patience(left.max(Duration::from_millis(1)))?;
            let have = self.pending.len();
            self.pending.resize(wanted, 0);
            let read = self.stream.read(&mut self.pending[have..]);
            self.pending.truncate(have + read.as_ref().map_or(0, |&count| count));
            match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if left.is_zero() {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn negotiate(mut stream: Box<dyn Stream>, export: &str) -> io::Result<Self> {
        stream.set_patience(PATIENCE)?;
        let hello = take(&mut *stream, 18)?;
        if be64(&hello, 0) != INIT_MAGIC || be64(&hello, 8) != OPTION_MAGIC {
            return Err(invalid("a server that does not speak newstyle NBD"));
        }
        let offered = be16(&hello, 16);
        if offered & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(invalid("a server without fixed newstyle negotiation"));
        }
        // The client's flags have the values of the server's.
        stream.write_all(&u32::from(offered & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).to_be_bytes())?;

        let mut option = Vec::new();
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPT_GO.to_be_bytes());
        let name = u32::try_from(export.len()).map_err(|_| invalid("an export name of more than 4 GiB"))?;
        option.extend((name + 6).to_be_bytes());
        option.extend(name.to_be_bytes());
        option.extend(export.as_bytes());
        option.extend(0u16.to_be_bytes());
        stream.write_all(&option)?;

        let mut found = None;
        loop {
            let head = take(&mut *stream, 20)?;
            let (kind, length) = (be32(&head, 12), be32(&head, 16));
            if be64(&head, 0) != OPTION_REPLY_MAGIC || be32(&head, 8) != OPT_GO {
                return Err(invalid("an answer to another option"));
            }
            if length > OPTION_REPLY_BYTES_MAX {
                return Err(invalid("an option reply that is too long"));
            }
            let body = take(&mut *stream, length as usize)?;
            match kind {
                REP_ACK => break,
                REP_INFO if body.len() >= 12 && be16(&body, 0) == INFO_EXPORT => {
                    found = Some((be64(&body, 2), be16(&body, 10)));
                }
                REP_INFO => {}
                error if error & REP_ERROR != 0 => {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    return Err(io::Error::other(format!(
                        "export {export:?} is refused ({error:#x}): {text}"
                    )));
                }
                _ => return Err(invalid("an option reply of an unknown kind")),
            }
        }
        let (size_bytes, flags) = found.ok_or_else(|| invalid("an export without a size"))?;
        Ok(Self { stream, pending: Vec::new(), reads: Vec::new(), size_bytes, flags, cookie: 0 })
    }
}

impl Blocks for Client {
    fn read_block(&mut self, block: u64, buf: &mut Block) -> io::Result<()> {
        let data = self.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32)?;
        buf.copy_from_slice(&data);
        Ok(())
    }
}

fn take(stream: &mut dyn Stream, count: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; count];
    stream.read_exact(&mut buf)?;
    Ok(buf)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// Bytes from `at`; callers have checked that they are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
pub(super) mod fake;

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    #[test]
    fn an_export_is_written_read_and_flushed() {
        let server = Fake::start(1 << 20);
        let mut client = Client::connect_unix(server.socket(), "disk").unwrap();
        assert_eq!(client.size_bytes(), 1 << 20);
        client.write(4096, &[7; 8192]).unwrap();
        client.flush().unwrap();
        assert_eq!(client.read(8192, 5000).unwrap(), [[7; 4096].as_slice(), &[0; 904]].concat());
        let mut block = [0; BLOCK_BYTES];
        client.read_block(1, &mut block).unwrap();
        assert_eq!(block, [7; BLOCK_BYTES]);
        assert_eq!(client.write(1 << 20, &[1]).unwrap_err().raw_os_error(), Some(28));
        client.disconnect().unwrap();
        assert!(Client::connect_unix(server.socket(), "other").is_err());
    }

    #[test]
    fn several_are_in_flight_and_a_wait_has_an_end() {
        let server = Fake::start(1 << 20);
        let mut client = Client::connect_unix(server.socket(), "disk").unwrap();
        let mut cookies: Vec<u64> =
            (0..8).map(|n| client.send_write(n * 4096, &[1; 4096], false).unwrap()).collect();
        cookies.push(client.send_read(0, 100).unwrap());
        while !cookies.is_empty() {
            let reply = client.reply(PATIENCE).unwrap().unwrap();
            assert_eq!((reply.error, reply.data.len() % 100), (0, 0));
            cookies.retain(|&cookie| cookie != reply.cookie);
        }
        assert_eq!(client.reply(Duration::from_millis(20)).unwrap(), None);
        server.hold(true);
        let cookie = client.send_flush().unwrap();
        assert_eq!(client.reply(Duration::from_millis(20)).unwrap(), None);
        server.hold(false);
        assert_eq!(client.reply(PATIENCE).unwrap().unwrap().cookie, cookie);
    }
}
