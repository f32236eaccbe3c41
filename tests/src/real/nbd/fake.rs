//! An NBD server in the test's own process: one export named `disk`, in memory, answers in any order.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::*;
use crate::real::Scratch;
use crate::sim::Rng;

/// Bytes of requests that are taken in before one is answered.
const BACKLOG: usize = 6;

pub(crate) struct Fake {
    socket: PathBuf,
    shared: Arc<Shared>,
    _scratch: Scratch,
}

struct Shared {
    disk: Mutex<Vec<u8>>,
    hold: AtomicBool,
    dead: AtomicBool,
}

struct Request {
    command: u16,
    cookie: u64,
    offset: usize,
    length: usize,
    data: Vec<u8>,
}

impl Fake {
    pub(crate) fn start(size: usize) -> Self {
        let scratch = Scratch::new(1 << 20).unwrap();
        let socket = scratch.path().join("nbd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared {
            disk: Mutex::new(vec![0; size]),
            hold: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        });
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for (seed, stream) in (0..).zip(listener.incoming()) {
                let shared = Arc::clone(&server);
                // A client that goes away ends its connection only.
                thread::spawn(move || stream.and_then(|stream| shared.serve(stream, Rng::new(seed))));
            }
        });
        Self { socket, shared, _scratch: scratch }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Answers nothing until switched off.
    pub(crate) fn hold(&self, hold: bool) {
        self.shared.hold.store(hold, Ordering::SeqCst);
    }

    /// Ends all connections as a killed server does, and serves again when `dead` is false.
    pub(crate) fn die(&self, dead: bool) {
        self.shared.dead.store(dead, Ordering::SeqCst);
    }

    pub(crate) fn image(&self) -> Vec<u8> {
        self.shared.disk.lock().unwrap().clone()
    }
}

impl Shared {
    fn serve(&self, mut stream: UnixStream, mut rng: Rng) -> io::Result<()> {
        if self.dead.load(Ordering::SeqCst) {
            return Ok(());
        }
        stream.write_all(&INIT_MAGIC.to_be_bytes())?;
        stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
        stream.write_all(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes())?;
        let head = take(&mut stream, 4 + 16)?;
        let option = take(&mut stream, be32(&head, 16) as usize)?;
        let known = &option[4..4 + be32(&option, 0) as usize] == b"disk";
        let size = self.disk.lock().unwrap().len() as u64;
        let answers: &[(u32, Vec<u8>)] = if known {
            let info = [&INFO_EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &13u16.to_be_bytes()].concat();
            &[(REP_INFO, vec![0, 3, 1, 2, 3, 4]), (REP_INFO, info), (REP_ACK, vec![])]
        } else {
            &[(REP_ERROR + 6, b"there is no such export".to_vec())]
        };
        for (kind, body) in answers {
            stream.write_all(&OPTION_REPLY_MAGIC.to_be_bytes())?;
            stream.write_all(&OPT_GO.to_be_bytes())?;
            stream.write_all(&kind.to_be_bytes())?;
            stream.write_all(&(body.len() as u32).to_be_bytes())?;
            stream.write_all(body)?;
        }
        stream.set_read_timeout(Some(Duration::from_millis(2)))?;
        let mut queue = Vec::new();
        while known && !self.dead.load(Ordering::SeqCst) {
            let more = queue.len() < BACKLOG && self.receive(&mut stream, &mut queue)?;
            if !more && !queue.is_empty() && !self.hold.load(Ordering::SeqCst) {
                let next = queue.swap_remove(rng.index(queue.len()));
                self.answer(&mut stream, next)?;
            }
        }
        Ok(())
    }

    fn receive(&self, stream: &mut UnixStream, queue: &mut Vec<Request>) -> io::Result<bool> {
        let mut head = [0; 28];
        match stream.read(&mut head[..1]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut head[1..])?;
        let (command, length) = (be16(&head, 6), be32(&head, 24) as usize);
        let data = take(stream, if command == CMD_WRITE { length } else { 0 })?;
        stream.set_read_timeout(Some(Duration::from_millis(2)))?;
        if command == CMD_DISC {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        queue.push(Request {
            command,
            cookie: be64(&head, 8),
            offset: be64(&head, 16) as usize,
            length,
            data,
        });
        Ok(true)
    }

    fn answer(&self, stream: &mut UnixStream, request: Request) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        let range = request.offset..request.offset + request.length;
        let mut data = Vec::new();
        let mut error = 0u32;
        match (request.command, disk.get_mut(range)) {
            (CMD_FLUSH, _) => {}
            (CMD_READ, Some(bytes)) => data = bytes.to_vec(),
            (CMD_WRITE, Some(bytes)) => bytes.copy_from_slice(&request.data),
            (CMD_WRITE, None) => error = 28,
            _ => error = 22,
        }
        let head =
            [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &request.cookie.to_be_bytes()];
        stream.write_all(&[&head.concat()[..], &data].concat())
    }
}
