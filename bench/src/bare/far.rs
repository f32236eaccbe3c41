//! The end where the copy is.
//!
//! What comes is appended to one file as it comes, and that is what is synced; when the client has gone, it is brought to the copy.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;

use super::{FLUSH, FLUSH_ALONE, FLUSHED, FRAME_HEADER_BYTES, TAKEN, frame, link, nbd::WRITE_BYTES_MAX};

/// More than is written in a turn.
const LOG_BYTES_MAX: u64 = 4 << 30;

/// Keeps `copy` until it is ended; how it is reached, it leaves in `dir`.
pub fn run(copy: &Path, dir: &Path) -> Result<()> {
    let open = |path: &Path, new| {
        let file = OpenOptions::new().read(true).write(true).create(new).truncate(new).open(path);
        file.with_context(|| format!("open {}", path.display()))
    };
    let mut far =
        Far { copy: open(copy, false)?, log: Arc::new(open(&copy.with_extension("log"), true)?), end: 0 };
    link::serve(dir, async move |connection| far.keep(&connection).await)
}

struct Far {
    copy: File,
    log: Arc<File>,
    /// How far the log is written since it was last brought to the copy.
    end: u64,
}

impl Far {
    /// One stream after the other: each is a client.
    async fn keep(&mut self, connection: &Connection) -> Result<()> {
        loop {
            let (mut answers, records) = connection.accept_bi().await.context("take a stream")?;
            self.take(records, &mut answers).await?;
            self.apply()?;
            answers.finish().context("say that the copy is complete")?;
        }
    }

    async fn take(&mut self, mut records: RecvStream, answers: &mut SendStream) -> Result<()> {
        let mut frames = Frames::default();
        let mut syncs: JoinSet<io::Result<()>> = JoinSet::new();
        loop {
            tokio::select! {
                chunk = records.read_chunk(usize::MAX, true) => {
                    let Some(chunk) = chunk.context("take records")? else { break };
                    ensure!(self.end < LOG_BYTES_MAX, "too much is written in one turn");
                    self.log.write_all_at(&chunk.bytes, self.end).context("log")?;
                    self.end += chunk.bytes.len() as u64;
                    let mut done = Vec::new();
                    for place in frames.ended_by(&chunk.bytes) {
                        match place {
                            FLUSH_ALONE => {
                                self.log.sync_data().context("flush")?;
                                done.push(FLUSHED);
                            }
                            FLUSH => {
                                let log = self.log.clone();
                                syncs.spawn_blocking(move || log.sync_data());
                            }
                            _ => done.push(TAKEN),
                        }
                    }
                    answers.write_all(&done).await.context("answer")?;
                }
                Some(synced) = syncs.join_next() => {
                    synced.context("flush")?.context("flush")?;
                    answers.write_all(&[FLUSHED]).await.context("answer")?;
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self) -> Result<()> {
        let mut data = vec![0; WRITE_BYTES_MAX];
        let mut at = 0;
        while at < self.end {
            let mut header = [0; FRAME_HEADER_BYTES];
            self.log.read_exact_at(&mut header, at).context("read the log")?;
            let (place, length) = frame(&header);
            ensure!(length <= WRITE_BYTES_MAX, "a record of {length} bytes is too long");
            at += FRAME_HEADER_BYTES as u64;
            if length > 0 {
                self.log.read_exact_at(&mut data[..length], at).context("read the log")?;
                self.copy.write_all_at(&data[..length], place).context("write")?;
                at += length as u64;
            }
        }
        self.end = 0;
        Ok(())
    }
}

/// Where frames end in what comes piece by piece.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    /// Bytes to come of the frame whose header is whole.
    left: usize,
}

impl Frames {
    /// The places of the frames whose last byte is among these.
    fn ended_by(&mut self, mut bytes: &[u8]) -> Vec<u64> {
        let mut places = Vec::new();
        while !bytes.is_empty() {
            if self.header.len() < FRAME_HEADER_BYTES {
                let (more, rest) = bytes.split_at(bytes.len().min(FRAME_HEADER_BYTES - self.header.len()));
                self.header.extend_from_slice(more);
                bytes = rest;
                let Some(header) = self.header.first_chunk() else { break };
                self.left = frame(header).1;
            }
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            if self.left == 0
                && let Some(header) = self.header.first_chunk()
            {
                places.push(frame(header).0);
                self.header.clear();
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bare::frame_header;

    #[test]
    fn frames_end_where_their_last_byte_is_however_they_come() {
        let lengths = [5, 0, 4096, 0, 1];
        let stream: Vec<u8> = lengths
            .iter()
            .enumerate()
            .flat_map(|(place, length)| {
                [&frame_header(place as u64, *length)[..], &vec![7; *length]].concat()
            })
            .collect();
        for piece in [1, 3, 16, 17, 1000, stream.len()] {
            let mut frames = Frames::default();
            let places: Vec<u64> = stream.chunks(piece).flat_map(|bytes| frames.ended_by(bytes)).collect();
            assert_eq!(places, [0, 1, 2, 3, 4], "in pieces of {piece}");
        }
    }
}
