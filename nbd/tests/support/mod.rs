//! What the tests share: an export in memory, a server around it, and a client that can misbehave.

#![allow(dead_code, reason = "every test program uses a part of it")]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use afterimage_nbd::{
    Context, Errno, Export, ExportInfo, Extent, Limits, Server, UnixEndpoint, ZeroFlags,
    wire::codes::{self, *},
};
use bytes::Bytes;
use tokio::{runtime::Runtime, sync::watch, task::JoinHandle};

pub const SIZE: u64 = 8 << 20;
const BLOCK: usize = 4096;
/// Longer than anything here should take, shorter than a test run's patience.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An export in memory that counts what happens to it and can be made to hold requests.
pub struct Memory {
    info: ExportInfo,
    bytes: Mutex<Vec<u8>>,
    dirty: Mutex<Vec<bool>>,
    /// While false, reads and writes wait before they do anything.
    pub gate: watch::Sender<bool>,
    pub waiting: AtomicUsize,
    pub reads: AtomicUsize,
    pub finished: AtomicUsize,
    pub flushes: AtomicUsize,
    pub fuas: AtomicUsize,
    pub caches: AtomicUsize,
}

impl Memory {
    pub fn new(info: ExportInfo) -> Self {
        let size = info.size_bytes as usize;
        Self {
            info,
            bytes: Mutex::new(vec![0; size]),
            dirty: Mutex::new(vec![false; size.div_ceil(BLOCK)]),
            gate: watch::channel(true).0,
            waiting: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
            fuas: AtomicUsize::new(0),
            caches: AtomicUsize::new(0),
        }
    }

    pub fn contents(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    async fn pass_gate(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.gate.subscribe().wait_for(|open| *open).await.unwrap();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn store(&self, offset: u64, data: &[u8], fua: bool) {
        let start = offset as usize;
        self.bytes.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
        let mut dirty = self.dirty.lock().unwrap();
        dirty[start / BLOCK..(start + data.len()).div_ceil(BLOCK)].fill(true);
        self.fuas.fetch_add(fua.into(), Ordering::SeqCst);
        self.finished.fetch_add(1, Ordering::SeqCst);
    }
}

impl Export for Memory {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        self.pass_gate().await;
        self.reads.fetch_add(1, Ordering::SeqCst);
        let start = offset as usize;
        Ok(Bytes::copy_from_slice(&self.bytes.lock().unwrap()[start..start + len as usize]))
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        assert!(offset + data.len() as u64 <= self.info.size_bytes && !data.is_empty());
        self.pass_gate().await;
        self.store(offset, &data, fua);
        Ok(())
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.store(offset, &vec![0; len as usize], fua);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        if flags.fast && flags.no_hole {
            return Err(Errno::NotSup);
        }
        self.store(offset, &vec![0; len as usize], flags.fua);
        Ok(())
    }

    async fn cache(&self, _: u64, _: u64) -> Result<(), Errno> {
        self.caches.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn block_status(
        &self,
        context: Context,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<Extent>, Errno> {
        let bytes = self.bytes.lock().unwrap();
        let dirty = self.dirty.lock().unwrap();
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < offset + len && extents.len() < max {
            let block = at as usize / BLOCK;
            let end = (((block + 1) * BLOCK) as u64).min(self.info.size_bytes);
            let zero = bytes[block * BLOCK..end as usize].iter().all(|byte| *byte == 0);
            let flags = match context {
                Context::Allocation => u32::from(zero) * 3,
                Context::Dirty => dirty[block].into(),
            };
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len_bytes += end - at,
                _ => extents.push(Extent { len_bytes: end - at, flags }),
            }
            at = end;
        }
        Ok(extents)
    }
}

pub fn info(name: &str) -> ExportInfo {
    ExportInfo {
        name: name.into(),
        description: format!("the {name}"),
        size_bytes: SIZE,
        ..ExportInfo::default()
    }
}

/// A running server on a unix socket in a directory of its own.
pub struct Fixture {
    pub export: Arc<Memory>,
    pub runtime: Runtime,
    pub path: PathBuf,
    pub stop: watch::Sender<bool>,
    pub server: Option<JoinHandle<()>>,
    pub directory: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(vec![info("disk")], Limits::default())
    }

    pub fn with(infos: Vec<ExportInfo>, limits: Limits) -> Self {
        let exports: Vec<_> = infos.into_iter().map(|info| Arc::new(Memory::new(info))).collect();
        let export = Arc::clone(&exports[0]);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/disk.sock");
        let (stop, shutdown) = watch::channel(false);
        let endpoint = runtime.block_on(async { UnixEndpoint::bind(&path) }).unwrap();
        let server = Arc::new(Server::new(exports, limits));
        let server = runtime.spawn(server.serve_unix_on(endpoint, shutdown));
        Self { export, runtime, path, stop, server: Some(server), directory }
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.path)
    }

    /// A client in the transmission phase, with simple replies.
    pub fn simple(&self) -> Client {
        let mut client = self.client();
        client.go("");
        client
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.path.display())
    }

    /// Asks for a shutdown and waits for its end.
    pub fn shut_down(&mut self) {
        self.stop.send_replace(true);
        if let Some(server) = self.server.take() {
            self.runtime.block_on(async { tokio::time::timeout(PATIENCE, server).await }).unwrap().unwrap();
        }
    }

    /// The server is well: a new client can write and read back.
    pub fn assert_serving(&self) {
        let mut client = self.simple();
        client.request(0, CMD_WRITE, 1, 4096, 5, b"hello");
        assert_eq!(client.simple_reply(), (0, 1));
        client.request(0, CMD_READ, 2, 4096, 5, b"");
        assert_eq!(client.simple_reply(), (0, 2));
        assert_eq!(client.bytes(5), b"hello");
        client.request(0, CMD_DISC, 3, 0, 0, b"");
        assert!(client.is_closed());
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.export.gate.send_replace(true);
        if !std::thread::panicking() {
            self.shut_down();
        }
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A client made of bytes, free to send anything.
pub struct Client(pub UnixStream);

impl Client {
    /// Connects, reads the greeting and sends the usual flags.
    pub fn connect(path: &std::path::Path) -> Self {
        let mut client = Self::connect_raw(path);
        assert_eq!(client.u64(), INIT_MAGIC);
        assert_eq!(client.u64(), OPTION_MAGIC);
        assert_eq!(client.bytes(2), [0, 3]);
        client.send(&3u32.to_be_bytes());
        client
    }

    pub fn connect_raw(path: &std::path::Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().unwrap())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().unwrap())
    }

    /// Whether the server closes without another byte.
    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        self.send(&option_bytes(option, data.len() as u32));
        self.send(data);
    }

    /// One reply: its type and data.
    pub fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.u64(), OPTION_REPLY_MAGIC);
        assert_eq!(self.u32(), option);
        let reply = self.u32();
        let length = self.u32();
        (reply, self.bytes(length as usize))
    }

    /// Sends an option; all replies up to the acknowledgement or the error, which is the last of them.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option);
            let last = reply.0 == REP_ACK || reply.0 >= 1 << 31;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// The type of the last reply to an option.
    pub fn option_result(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data).last().unwrap().0
    }

    pub fn go(&mut self, name: &str) {
        assert_eq!(self.option_result(OPT_GO, &info_data(name, &[INFO_BLOCK_SIZE])), REP_ACK);
    }

    pub fn structured(&mut self) {
        assert_eq!(self.option_result(OPT_STRUCTURED_REPLY, b""), REP_ACK);
    }

    pub fn request(
        &mut self,
        flags: u16,
        command: u16,
        cookie: u64,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) {
        let mut bytes = request_bytes(flags, command, cookie, offset, length);
        bytes.extend_from_slice(payload);
        self.send(&bytes);
    }

    /// Error and cookie.
    pub fn simple_reply(&mut self) -> (u32, u64) {
        assert_eq!(self.u32(), SIMPLE_REPLY_MAGIC);
        (self.u32(), self.u64())
    }

    /// Flags, type, cookie, data.
    pub fn chunk(&mut self) -> (u16, u16, u64, Vec<u8>) {
        assert_eq!(self.u32(), codes::STRUCTURED_REPLY_MAGIC);
        let (flags, kind, cookie, length) = (self.u16(), self.u16(), self.u64(), self.u32());
        (flags, kind, cookie, self.bytes(length as usize))
    }
}

pub fn option_bytes(option: u32, length: u32) -> Vec<u8> {
    [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &length.to_be_bytes()].concat()
}

pub fn request_bytes(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

pub fn info_data(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((kinds.len() as u16).to_be_bytes());
    kinds.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}
