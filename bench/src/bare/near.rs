//! The end where the client writes.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    os::{
        fd::AsFd,
        unix::{
            fs::{FileExt, OpenOptionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use afterimage_storage::{disk::aligned_buffer, ring::Ring};
use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use quinn::{ClientConfig, Connection, Endpoint, SendStream, TransportConfig};
use rustix::fs::OFlags;
use rustls::{RootCertStore, pki_types::CertificateDer};
use tokio::{
    io::unix::AsyncFd,
    runtime::{Builder, Runtime},
    time::Instant,
};

use crate::bulk::bare::endpoint;

use super::{
    FLUSH, FRAME_HEADER_BYTES, HOST_NAME, behind_file, certificate_file,
    nbd::{self, REPLY_BYTES, REQUEST_BYTES, Request, WRITE_BYTES_MAX, Wish},
    port_file,
};

/// What a client has sent is read in pieces of up to this.
const READ_BYTES: usize = 256 << 10;
const ANSWERS_AT_ONCE: usize = 4096;
/// As much, and as long, as an agent in async mode gathers.
const GATHERED_BYTES: usize = 256 << 10;
const GATHER: Duration = Duration::from_millis(5);

/// Serves `volume` to one client after the other, with the copy whose address is in `far`. With `answers_early` writes and flushes
/// are answered when they are done here.
pub fn run(volume: &Path, socket: &Path, far: Option<&Path>, answers_early: bool) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(volume)
        .with_context(|| format!("open {}", volume.display()))?;
    let size_bytes = file.metadata().context("ask for the volume's size")?.len();
    let link = far.map(Link::open).transpose()?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    loop {
        let (mut client, _) = listener.accept().context("take a client")?;
        let served = nbd::offer(&mut client, size_bytes).and_then(|wants| match &link {
            _ if !wants => Ok(()),
            None => serve(client, &file),
            Some(link) => link.runtime.block_on(serve_with_copy(
                client,
                &file,
                &link.connection,
                answers_early,
                &link.behind,
            )),
        });
        if let Err(error) = served {
            eprintln!("a client is left: {error:#}");
        }
    }
}

/// To the far end.
struct Link {
    runtime: Runtime,
    connection: Connection,
    /// What the copy lacked when the last client left.
    behind: PathBuf,
    _endpoint: Endpoint,
}

impl Link {
    fn open(far: &Path) -> Result<Self> {
        let certificate = fs::read(certificate_file(far)).context("read the far end's certificate")?;
        let port = fs::read_to_string(port_file(far)).context("read the far end's port")?;
        let port = port.parse().context("read the far end's port")?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(certificate)).context("trust the far end")?;
        let mut trusting =
            ClientConfig::with_root_certificates(Arc::new(roots)).context("set up the client")?;
        // Others have turns too, and nothing runs here meanwhile.
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(None);
        trusting.transport_config(Arc::new(transport));
        let runtime = Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let (endpoint, connection) = runtime.block_on(async {
            let endpoint = endpoint(None)?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let connecting = endpoint.connect_with(trusting, address, HOST_NAME).context("connect")?;
            anyhow::Ok((endpoint, connecting.await.context("connect")?))
        })?;
        let behind = behind_file(far);
        fs::write(&behind, "0").context("leave how far behind the copy is")?;
        Ok(Self { runtime, connection, behind, _endpoint: endpoint })
    }
}

fn serve(mut client: UnixStream, file: &File) -> Result<()> {
    let mut data = aligned_buffer(WRITE_BYTES_MAX);
    data.resize(WRITE_BYTES_MAX, 0);
    let mut header = [0; REQUEST_BYTES];
    loop {
        match client.read_exact(&mut header) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read.context("take a request")?,
        }
        let request = Request::parse(&header)?;
        match request.wish {
            Wish::Leave => return Ok(()),
            Wish::Flush => file.sync_data().context("flush")?,
            Wish::Write(offset, length) => {
                client.read_exact(&mut data[..length]).context("take data")?;
                file.write_all_at(&data[..length], offset).context("write")?;
            }
            Wish::Read(offset, length) => {
                file.read_exact_at(&mut data[..length], offset).context("read")?;
                client.write_all(&request.done()).context("answer")?;
                client.write_all(&data[..length]).context("answer")?;
                continue;
            }
        }
        client.write_all(&request.done()).context("answer")?;
    }
}

/// Serves a client that may have many requests under way.
async fn serve_with_copy(
    client: UnixStream,
    file: &File,
    connection: &Connection,
    answers_early: bool,
    behind: &Path,
) -> Result<()> {
    client.set_nonblocking(true).context("set up a client")?;
    let client = tokio::net::UnixStream::from_std(client).context("set up a client")?;
    let (mut records, mut answers) = connection.open_bi().await.context("open a stream")?;
    let mut ring = Ring::new().context("there is no io_uring")?;
    let descriptor = ring.descriptor().context("set up the ring")?;
    // SAFETY: it owns the descriptor, and nobody else closes it.
    let ring_fd = unsafe { AsyncFd::register(descriptor) }.context("set up the ring")?;
    let mut served = Served::default();
    let (mut came, mut frames) = (BytesMut::new(), BytesMut::new());
    let mut due = None;
    let mut answer = [0; ANSWERS_AT_ONCE];
    let mut leaves = false;
    loop {
        tokio::select! {
            readable = client.readable(), if !leaves => {
                readable.context("wait for a request")?;
                while !leaves {
                    came.reserve(READ_BYTES);
                    match client.try_read_buf(&mut came) {
                        Ok(count) => leaves = count == 0,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error).context("take a request"),
                    }
                }
                let mut requests = take_requests(&mut came)?;
                leaves |= requests.pop_if(|(request, _)| request.wish == Wish::Leave).is_some();
                if leaves {
                    fs::write(behind, served.behind_bytes().to_string()).context("leave how far behind the copy is")?;
                }
                requests.iter().for_each(|(request, data)| put_frame(&mut frames, request, data));
                // What nobody waits for goes in larger pieces.
                if !answers_early || leaves || frames.len() >= GATHERED_BYTES {
                    send(&mut records, &mut frames, &mut due).await?;
                } else if !frames.is_empty() {
                    due.get_or_insert_with(|| Instant::now() + GATHER);
                }
                let alone = requests.len() == 1 && served.is_empty();
                for (request, data) in requests {
                    let number = served.push(&request, data.len() as u64);
                    match request.wish {
                        Wish::Read(..) | Wish::Leave => bail!("only what is written is answered here"),
                        Wish::Flush => file.sync_data().context("flush").map(|()| served.is_local(number))?,
                        Wish::Write(offset, _) if alone => {
                            file.write_all_at(&data, offset).context("write")?;
                            served.is_local(number);
                        }
                        Wish::Write(offset, _) => ring.push(file.as_fd(), offset, data, number),
                    }
                }
                ring.submit().context("write")?;
            }
            ready = ring_fd.readable() => {
                ready.context("wait for writes")?.clear_ready();
                for written in ring.take() {
                    written.result.context("write")?;
                    served.is_local(written.token);
                }
                ring.submit().context("write")?;
            }
            read = answers.read(&mut answer) => {
                served.is_far(read.context("hear from the far end")?.context("the far end has gone")?);
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                send(&mut records, &mut frames, &mut due).await?;
            }
        }
        let mut done = served.take_done(answers_early);
        if leaves && served.is_empty() && served.far_lacks.is_empty() {
            return Ok(());
        }
        while !done.is_empty() {
            client.writable().await.context("answer")?;
            match client.try_write(&done) {
                Ok(count) => done.advance(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("answer"),
            }
        }
    }
}

/// Sends what was gathered, and lets it go out, so that both ends work at the same time.
async fn send(records: &mut SendStream, frames: &mut BytesMut, due: &mut Option<Instant>) -> Result<()> {
    *due = None;
    records.write_chunk(frames.split().freeze()).await.context("send")?;
    tokio::task::yield_now().await;
    Ok(())
}

fn put_frame(frames: &mut BytesMut, request: &Request, data: &[u8]) {
    let place = match request.wish {
        Wish::Write(offset, _) => offset,
        _ => FLUSH,
    };
    let header: [u8; FRAME_HEADER_BYTES] = {
        let mut header = [0; FRAME_HEADER_BYTES];
        header[..8].copy_from_slice(&place.to_le_bytes());
        header[8..].copy_from_slice(&(data.len() as u64).to_le_bytes());
        header
    };
    frames.extend_from_slice(&header);
    frames.extend_from_slice(data);
}

/// The requests that have come whole, with what is to be written.
fn take_requests(came: &mut BytesMut) -> Result<Vec<(Request, Bytes)>> {
    let mut requests = Vec::new();
    while let Some(header) = came.first_chunk() {
        let request = Request::parse(header)?;
        let length = if let Wish::Write(_, length) = request.wish { length } else { 0 };
        if came.len() < REQUEST_BYTES + length {
            break;
        }
        let mut data = aligned_buffer(length);
        data.extend_from_slice(&came[REQUEST_BYTES..REQUEST_BYTES + length]);
        came.advance(REQUEST_BYTES + length);
        requests.push((request, data.freeze()));
    }
    Ok(requests)
}

/// Requests that are not answered, in order.
#[derive(Default)]
struct Served {
    waiting: VecDeque<Waiting>,
    /// The number of the first of them, and how many the far end has done.
    first: u64,
    far: u64,
    /// Bytes of each that the far end has not done.
    far_lacks: VecDeque<u64>,
}

struct Waiting {
    done: [u8; REPLY_BYTES],
    is_local: bool,
}

impl Served {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn push(&mut self, request: &Request, bytes: u64) -> u64 {
        self.far_lacks.push_back(bytes);
        self.waiting.push_back(Waiting { done: request.done(), is_local: false });
        self.first + self.waiting.len() as u64 - 1
    }

    /// So many more are done at the far end.
    fn is_far(&mut self, count: usize) {
        self.far += count as u64;
        self.far_lacks.drain(..count.min(self.far_lacks.len()));
    }

    fn behind_bytes(&self) -> u64 {
        self.far_lacks.iter().sum()
    }

    /// It is done at this end.
    fn is_local(&mut self, number: u64) {
        if let Some(waiting) = self.waiting.get_mut((number - self.first) as usize) {
            waiting.is_local = true;
        }
    }

    /// Answers to what is done, in order: what is done before its forerunner waits a little.
    fn take_done(&mut self, answers_early: bool) -> BytesMut {
        let mut answers = BytesMut::new();
        while self.waiting.front().is_some_and(|w| w.is_local && (answers_early || self.first < self.far)) {
            if let Some(waiting) = self.waiting.pop_front() {
                answers.extend_from_slice(&waiting.done);
                self.first += 1;
            }
        }
        answers
    }
}
