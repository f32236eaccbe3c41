//! The end where the client writes.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use afterimage_memory::{Buffer, copied};
use afterimage_storage::ring::Ring;
use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use quinn::SendStream;
use tokio::{io::unix::AsyncFd, task::JoinSet, time::Instant};

use super::{
    FLUSH, FLUSH_ALONE, TAKEN, behind_file, frame_header,
    link::Link,
    nbd::{self, REPLY_BYTES, REQUEST_BYTES, Request, WRITE_BYTES_MAX, Wish},
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
    let file = Arc::new(super::disk::open(volume)?);
    let size_bytes = file.metadata().context("ask for the volume's size")?.len();
    let link = match far {
        Some(far) => {
            fs::write(behind_file(far), "0").context("leave how far behind the copy is")?;
            Some((Link::open(far)?, behind_file(far)))
        }
        None => None,
    };
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    loop {
        let (mut client, _) = listener.accept().context("take a client")?;
        let served = nbd::offer(&mut client, size_bytes).and_then(|wants| match &link {
            _ if !wants => Ok(()),
            None => serve(client, &file),
            Some((link, behind)) => {
                link.runtime.block_on(serve_with_copy(client, &file, link, behind, answers_early))
            }
        });
        if let Err(error) = served {
            eprintln!("a client is left: {error:#}");
        }
    }
}

fn serve(mut client: UnixStream, file: &File) -> Result<()> {
    let mut data = Buffer::with_len(WRITE_BYTES_MAX);
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
    volume: &Arc<File>,
    link: &Link,
    behind_file: &Path,
    answers_early: bool,
) -> Result<()> {
    client.set_nonblocking(true).context("set up a client")?;
    let client = tokio::net::UnixStream::from_std(client).context("set up a client")?;
    let (mut records, mut answers) = link.connection.open_bi().await.context("open a stream")?;
    let mut ring = Ring::new().context("there is no io_uring")?;
    let descriptor = ring.descriptor().context("set up the ring")?;
    // SAFETY: it owns the descriptor, and nobody else closes it.
    let ring_fd = unsafe { AsyncFd::register(descriptor) }.context("set up the ring")?;
    let mut flushes: JoinSet<io::Result<u64>> = JoinSet::new();
    let mut waiting = Waiting { answers_early, ..Waiting::default() };
    let (mut came, mut frames) = (BytesMut::new(), BytesMut::new());
    let mut due = None;
    let mut answer = [0; ANSWERS_AT_ONCE];
    let mut leaves = false;
    loop {
        tokio::select! {
            readable = client.readable(), if !leaves => {
                readable.context("wait for a request")?;
                leaves = receive(&client, &mut came)?;
                let mut requests = take_requests(&mut came)?;
                leaves |= requests.pop_if(|(request, _)| request.wish == Wish::Leave).is_some();
                let alone = requests.len() == 1 && waiting.is_empty();
                for (request, data) in &requests {
                    let place = match request.wish {
                        Wish::Write(offset, _) => offset,
                        // It is durable there when it is.
                        Wish::Flush if answers_early => continue,
                        Wish::Flush if alone => FLUSH_ALONE,
                        Wish::Flush => FLUSH,
                        Wish::Read(..) | Wish::Leave => bail!("only what is written is answered here"),
                    };
                    frames.extend_from_slice(&frame_header(place, data.len()));
                    frames.extend_from_slice(data);
                }
                // What nobody waits for goes in larger pieces.
                if !answers_early || leaves || frames.len() >= GATHERED_BYTES {
                    send(&mut records, &mut frames, &mut due).await?;
                } else if !frames.is_empty() {
                    due.get_or_insert_with(|| Instant::now() + GATHER);
                }
                for (request, data) in requests {
                    let number = waiting.push(&request, data.len() as u64);
                    match request.wish {
                        Wish::Write(offset, _) if alone => {
                            volume.write_all_at(&data, offset).context("write")?;
                            waiting.near_done(number);
                        }
                        Wish::Write(offset, _) => ring.push(volume.as_fd(), offset, data, number),
                        _ if alone => {
                            volume.sync_data().context("flush")?;
                            waiting.near_done(number);
                        }
                        _ => {
                            let volume = volume.clone();
                            flushes.spawn_blocking(move || volume.sync_data().map(|()| number));
                        }
                    }
                }
                ring.submit().context("write")?;
                if leaves {
                    records.finish().context("say that the client has left")?;
                    let behind = waiting.behind_bytes().to_string();
                    fs::write(behind_file, behind).context("leave how far behind the copy is")?;
                }
            }
            ready = ring_fd.readable() => {
                ready.context("wait for writes")?.clear_ready();
                for written in ring.take() {
                    written.result.context("write")?;
                    waiting.near_done(written.token);
                }
                ring.submit().context("write")?;
            }
            Some(flushed) = flushes.join_next() => {
                waiting.near_done(flushed.context("flush")?.context("flush")?);
            }
            read = answers.read(&mut answer) => match read.context("hear from the far end")? {
                Some(count) => answer[..count].iter().for_each(|kind| waiting.far_done(*kind)),
                // The copy is complete.
                None => return Ok(()),
            },
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                send(&mut records, &mut frames, &mut due).await?;
            }
        }
        let mut done = waiting.take_done();
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

/// Takes all that has come; whether the client has gone.
fn receive(client: &tokio::net::UnixStream, came: &mut BytesMut) -> Result<bool> {
    loop {
        came.reserve(READ_BYTES);
        match client.try_read_buf(came) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("take a request"),
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

/// The requests that have come whole, with what is to be written.
fn take_requests(came: &mut BytesMut) -> Result<Vec<(Request, Bytes)>> {
    let mut requests = Vec::new();
    while let Some(header) = came.first_chunk() {
        let request = Request::parse(header)?;
        let length = if let Wish::Write(_, length) = request.wish { length } else { 0 };
        if came.len() < REQUEST_BYTES + length {
            break;
        }
        let data = copied(&came[REQUEST_BYTES..REQUEST_BYTES + length]);
        came.advance(REQUEST_BYTES + length);
        requests.push((request, data));
    }
    Ok(requests)
}

/// Requests that are not answered.
#[derive(Default)]
struct Waiting {
    answers_early: bool,
    /// By number, from the first on; those in between that are answered are gone.
    requests: VecDeque<Option<Open>>,
    first: u64,
    /// Numbers and lengths of what the far end has not done.
    records: VecDeque<(u64, u64)>,
    flushes: VecDeque<u64>,
}

struct Open {
    answer: [u8; REPLY_BYTES],
    near: bool,
    far: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    fn push(&mut self, request: &Request, bytes: u64) -> u64 {
        let number = self.first + self.requests.len() as u64;
        match request.wish {
            Wish::Flush if self.answers_early => {}
            Wish::Flush => self.flushes.push_back(number),
            _ => self.records.push_back((number, bytes)),
        }
        self.requests.push_back(Some(Open { answer: request.done(), near: false, far: self.answers_early }));
        number
    }

    fn open(&mut self, number: u64) -> Option<&mut Open> {
        let at = number.checked_sub(self.first)?;
        self.requests.get_mut(at as usize)?.as_mut()
    }

    fn near_done(&mut self, number: u64) {
        if let Some(open) = self.open(number) {
            open.near = true;
        }
    }

    /// The far end has said this.
    fn far_done(&mut self, kind: u8) {
        let number = match kind {
            TAKEN => self.records.pop_front().map(|(number, _)| number),
            _ => self.flushes.pop_front(),
        };
        if let Some(open) = number.and_then(|number| self.open(number)) {
            open.far = true;
        }
    }

    fn behind_bytes(&self) -> u64 {
        self.records.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The answers to what is done.
    fn take_done(&mut self) -> BytesMut {
        let mut answers = BytesMut::new();
        for request in &mut self.requests {
            if let Some(open) = request.take_if(|open| open.near && open.far) {
                answers.extend_from_slice(&open.answer);
            }
        }
        while self.requests.pop_front_if(|request| request.is_none()).is_some() {
            self.first += 1;
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bare::{FLUSHED, nbd::request_bytes};

    fn request(wish: Wish) -> Request {
        Request::parse(&request_bytes(wish, 7)).expect("a request")
    }

    fn answered(waiting: &mut Waiting) -> usize {
        waiting.take_done().len() / REPLY_BYTES
    }

    #[test]
    fn a_client_is_answered_when_both_ends_are_done() {
        let mut waiting = Waiting::default();
        let first = waiting.push(&request(Wish::Write(0, 4096)), 4096);
        let second = waiting.push(&request(Wish::Write(4096, 4096)), 4096);
        let flush = waiting.push(&request(Wish::Flush), 0);
        waiting.near_done(second);
        waiting.far_done(TAKEN);
        waiting.far_done(FLUSHED);
        assert_eq!((answered(&mut waiting), waiting.behind_bytes()), (0, 4096));
        waiting.near_done(flush);
        waiting.far_done(TAKEN);
        assert_eq!((answered(&mut waiting), waiting.behind_bytes()), (2, 0));
        waiting.near_done(first);
        assert_eq!(answered(&mut waiting), 1);
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_client_that_is_answered_early_waits_for_this_end() {
        let mut waiting = Waiting { answers_early: true, ..Waiting::default() };
        let number = waiting.push(&request(Wish::Write(0, 4096)), 4096);
        assert_eq!(answered(&mut waiting), 0);
        waiting.near_done(number);
        assert_eq!((answered(&mut waiting), waiting.behind_bytes()), (1, 4096));
        waiting.far_done(TAKEN);
        assert_eq!(waiting.behind_bytes(), 0);
    }

    #[test]
    fn requests_are_taken_whole_and_in_order() {
        let write = [&request_bytes(Wish::Write(8192, 3), 1)[..], b"abc"].concat();
        let stream = [write, request_bytes(Wish::Flush, 2).to_vec()].concat();
        let mut came = BytesMut::new();
        let mut wishes = Vec::new();
        for byte in stream {
            came.extend_from_slice(&[byte]);
            wishes.extend(
                take_requests(&mut came).expect("requests").into_iter().map(|(r, data)| (r.wish, data)),
            );
        }
        assert_eq!(wishes, [(Wish::Write(8192, 3), Bytes::from("abc")), (Wish::Flush, Bytes::new())]);
    }
}
