//! A TCP stream over the link, and its round trips: what the kernel makes of the same line.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use afterimage_wan::Wan;
use anyhow::{Context, Result, anyhow};

use super::flow::Flow;
use crate::stats::median;

const PIECE_BYTES: usize = 256 << 10;
const PINGS: usize = 100;

/// An endless stream from side a to side b.
pub struct Stream {
    received: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    socket: TcpStream,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Starts one with the congestion control that the kernel knows by `name`.
    pub fn start(wan: &Wan, name: &str) -> Result<Self> {
        let (out, inn) = connected(wan, Some(name))?;
        let received = Arc::new(AtomicU64::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        let socket = out.try_clone().context("share the socket")?;
        let over = is_over.clone();
        let sender = thread::spawn(move || {
            let (mut out, piece) = (out, vec![0x5a; PIECE_BYTES]);
            while !over.load(Ordering::Relaxed) && out.write_all(&piece).is_ok() {}
        });
        let counter = received.clone();
        let receiver = thread::spawn(move || {
            let (mut inn, mut piece) = (inn, vec![0; PIECE_BYTES]);
            while let Ok(length @ 1..) = inn.read(&mut piece) {
                counter.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        Ok(Self { received, is_over, socket, threads: vec![sender, receiver] })
    }
}

impl Flow for Stream {
    fn received_bytes(&self) -> Result<u64> {
        Ok(self.received.load(Ordering::Relaxed))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Fails only if the connection has ended.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The median time of a byte there and back.
pub fn round_trip(wan: &Wan) -> Result<Duration> {
    let (mut out, mut inn) = connected(wan, None)?;
    for socket in [&out, &inn] {
        socket.set_nodelay(true).context("send at once")?;
    }
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while inn.read_exact(&mut byte).is_ok() && inn.write_all(&byte).is_ok() {}
    });
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let start = Instant::now();
        let mut byte = [1];
        out.write_all(&byte)
            .and_then(|()| out.read_exact(&mut byte))
            .context("send a byte there and back")?;
        times.push(start.elapsed().as_secs_f64());
    }
    drop(out);
    echo.join().map_err(|_| anyhow!("the echo ended with a panic"))?;
    Ok(Duration::from_secs_f64(median(times).unwrap_or_default()))
}

/// Both ends of a connection from side a to side b.
fn connected(wan: &Wan, congestion: Option<&str>) -> Result<(TcpStream, TcpStream)> {
    let (from, to) = (wan.address_a(), wan.address_b());
    let listener = wan.run_in(wan.ns_b(), || TcpListener::bind((to, 0)))?.context("listen at the far end")?;
    let port = listener.local_addr().context("find the port")?.port();
    let out = wan.run_in(wan.ns_a(), || TcpStream::connect(SocketAddr::from((to, port))))?;
    let out = out.with_context(|| format!("connect from {from} to {to}"))?;
    if let Some(name) = congestion {
        rustix::net::sockopt::set_tcp_congestion(&out, name)
            .with_context(|| format!("the kernel has no congestion control {name:?}"))?;
    }
    let (inn, _) = listener.accept().context("accept at the far end")?;
    Ok((out, inn))
}
