//! The least that replicating costs, beside an agent that replicates nothing.
//!
//! Two processes carry as many bytes as the agent writes: sealed, over one stream of one QUIC connection with the packets of this
//! product, from memory, in as large pieces as come together in [`TICK`]; the far one appends them to a log past the page cache.
//! Nothing is tracked, coded, checked, flushed, or brought to a copy, and nobody waits for it. So no agent can be faster with a copy
//! than this one is beside it, as long as both ends are on one machine.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::{
        fs::FileExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use afterimage_memory::aligned;
use afterimage_protocol::BLOCK_BYTES;
use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use quinn::{RecvStream, SendStream};
use tokio::{task::LocalSet, time};

use super::{DRAIN_TIMEOUT, link, link::Link, port_file, this_program};
use crate::{
    contender::{Bed, Drained, Running, ServerProcess},
    image,
    ours::{self, Alone},
    process::Server,
    wait::Interrupt,
};

/// What the agent has written is looked for this often, and what has come since is sent at once.
const TICK: Duration = Duration::from_millis(2);
/// The same while nothing is written.
const IDLE_TICK: Duration = Duration::from_millis(50);
/// The log begins anew after this much. All of it was written before.
const LOG_BYTES: u64 = 256 << 20;
const PIECE_BYTES: usize = 256 << 10;

/// Serves the volume of `bed` with the agent, its peer not running, and starts the two that carry as much as it writes.
pub fn start(bed: &Bed<'_>) -> Result<Beside> {
    let agent = ours::start_alone(bed)?;
    let log = bed.copies.join("beside.log");
    image::create(&log, LOG_BYTES)?;
    let mut command = this_program()?;
    command.arg("beside-far").arg(&log).arg(bed.dir);
    let mut far = Server::spawn("beside-far", command, bed.dir)?;
    far.wait_ready(bed.interrupt, || Ok(port_file(bed.dir).exists()))?;
    let socket = bed.dir.join("beside.sock");
    let mut command = this_program()?;
    command.arg("beside-near").arg(agent.pid().as_raw_pid().to_string()).arg(&socket).arg(bed.dir);
    let mut near = Server::spawn("beside-near", command, bed.dir)?;
    near.wait_ready(bed.interrupt, || Ok(socket.exists()))?;
    Ok(Beside { agent, near, far, socket })
}

/// The agent, and the two beside it.
pub struct Beside {
    agent: Alone,
    near: Server,
    far: Server,
    socket: PathBuf,
}

impl Running for Beside {
    fn uri(&self) -> String {
        self.agent.uri()
    }

    fn servers(&self) -> Vec<ServerProcess> {
        let mut servers = self.agent.servers();
        servers.push(ServerProcess::source("beside-near", self.near.pid()));
        servers.push(ServerProcess::target("beside-far", self.far.pid()));
        servers
    }

    /// Who connects is told how much was on its way, when all has come.
    fn drain(&mut self, _: &Interrupt) -> Result<Drained> {
        let start = Instant::now();
        let mut asking = UnixStream::connect(&self.socket).context("connect")?;
        asking.set_read_timeout(Some(DRAIN_TIMEOUT)).context("connect")?;
        let mut behind = [0; 8];
        asking.read_exact(&mut behind).context("wait for what is on its way")?;
        Ok(Drained::new(u64::from_le_bytes(behind), start.elapsed()))
    }

    fn stop(self: Box<Self>, interrupt: &Interrupt) -> Result<()> {
        self.near.stop()?;
        self.far.stop()?;
        Box::new(self.agent).stop(interrupt)
    }
}

/// Sends as many bytes as process `agent` writes to the far end whose address is in `far`, until it is ended.
pub fn run_near(agent: u32, socket: &Path, far: &Path) -> Result<()> {
    let link = Link::open(far)?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    listener.set_nonblocking(true).context("listen")?;
    let near = Near { agent, noise: noise(PIECE_BYTES)?, arrived: Rc::default() };
    LocalSet::new().block_on(&link.runtime, async {
        let (mut there, back) = link.connection.open_bi().await.context("open a stream")?;
        tokio::task::spawn_local(hear(back, near.arrived.clone()));
        near.carry(&mut there, &listener).await
    })
}

struct Near {
    agent: u32,
    noise: Bytes,
    /// How much is in the far end's log.
    arrived: Rc<Cell<u64>>,
}

impl Near {
    async fn carry(&self, there: &mut SendStream, listener: &UnixListener) -> Result<()> {
        let (start, mut carried) = (written_bytes(self.agent)?, 0);
        let mut asking: Vec<(UnixStream, u64)> = Vec::new();
        loop {
            let due = (written_bytes(self.agent)? - start - carried) / BLOCK_BYTES * BLOCK_BYTES;
            match listener.accept() {
                Ok((who, _)) => asking.push((who, carried + due - self.arrived.get())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("take a question"),
            }
            let mut left = due;
            while left > 0 {
                let piece = self.noise.slice(..left.min(PIECE_BYTES as u64) as usize);
                left -= piece.len() as u64;
                there.write_chunk(piece).await.context("send")?;
            }
            carried += due;
            if due == 0 && self.arrived.get() == carried {
                for (mut who, behind) in asking.drain(..) {
                    who.write_all(&behind.to_le_bytes()).context("answer a question")?;
                }
            }
            time::sleep(if due == 0 && asking.is_empty() { IDLE_TICK } else { TICK }).await;
        }
    }
}

async fn hear(mut back: RecvStream, arrived: Rc<Cell<u64>>) -> Result<()> {
    let mut total = [0; 8];
    loop {
        back.read_exact(&mut total).await.context("hear from the far end")?;
        arrived.set(u64::from_le_bytes(total));
    }
}

/// Bytes that a process has caused to be written to disks.
fn written_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).with_context(|| format!("find write_bytes in {path}"))
}

/// What no packet can carry in fewer bytes.
fn noise(bytes: usize) -> Result<Bytes> {
    let mut noise = vec![0; bytes];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut noise)).context("get noise")?;
    Ok(noise.into())
}

/// Appends what comes to `log`, from its beginning again where it ends, until it is ended; how it is reached, it leaves in `dir`.
pub fn run_far(log: &Path, dir: &Path) -> Result<()> {
    let mut far = Far { log: super::disk::open(log)?, at: 0, arrived: 0, held: aligned(PIECE_BYTES) };
    link::serve(dir, async move |connection| {
        let (mut back, mut coming) = connection.accept_bi().await.context("take a stream")?;
        while let Some(chunk) = coming.read_chunk(PIECE_BYTES, true).await.context("receive")? {
            far.take(&chunk.bytes)?;
            // As much as is there already goes with it.
            while let Some(more) = coming.read_chunk(PIECE_BYTES, true).now_or_never() {
                let Some(chunk) = more.context("receive")? else { break };
                far.take(&chunk.bytes)?;
            }
            far.write_blocks()?;
            back.write_all(&far.arrived.to_le_bytes()).await.context("answer")?;
        }
        Ok(())
    })
}

struct Far {
    log: File,
    /// Where the log goes on.
    at: u64,
    /// All that was ever appended.
    arrived: u64,
    /// What is not in the log yet.
    held: BytesMut,
}

impl Far {
    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (more, rest) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.held.len()));
            self.held.extend_from_slice(more);
            bytes = rest;
            if self.held.len() == PIECE_BYTES {
                self.write_blocks()?;
            }
        }
        Ok(())
    }

    /// Appends all whole blocks that are held.
    fn write_blocks(&mut self) -> Result<()> {
        let length = self.held.len() - self.held.len() % BLOCK_BYTES as usize;
        if length == 0 {
            return Ok(());
        }
        if self.at + length as u64 > LOG_BYTES {
            self.at = 0;
        }
        self.log.write_all_at(&self.held[..length], self.at).context("append to the log")?;
        self.at += length as u64;
        self.arrived += length as u64;
        self.held.copy_within(length.., 0);
        self.held.truncate(self.held.len() - length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_are_appended_and_the_log_begins_anew_at_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        image::create(&path, LOG_BYTES).expect("a log");
        let log = crate::bare::disk::open(&path).expect("the log");
        let mut far = Far { log, at: LOG_BYTES - 4096, arrived: 0, held: aligned(PIECE_BYTES) };
        far.take(&[&[6; 4096][..], &[7; 904]].concat()).expect("taken");
        far.write_blocks().expect("written");
        far.take(&[8; 4096]).expect("taken");
        far.write_blocks().expect("written");
        assert_eq!((far.at, far.arrived, far.held.len()), (4096, 8192, 904));
        let log = File::open(&path).expect("the log");
        let mut block = [0; 4096];
        log.read_exact_at(&mut block, LOG_BYTES - 4096).expect("the last block");
        assert_eq!(block, [6; 4096]);
        log.read_exact_at(&mut block, 0).expect("the first block");
        assert_eq!((block[0], block[903], block[904], block[4095]), (7, 7, 8, 8));
    }
}
