//! Free ports on the loopback address.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

/// Ports given out by this process: nobody listens on them yet, so the kernel may name them again.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Tries before giving up: the kernel names a port at random of about 28,000.
const TRIES: usize = 1000;

/// An address on which a UDP socket can listen; not given out twice by this process.
pub fn free_udp() -> Result<SocketAddr> {
    free(|any| UdpSocket::bind(any)?.local_addr())
}

/// An address on which a TCP socket can listen; not given out twice by this process.
pub fn free_tcp() -> Result<SocketAddr> {
    free(|any| TcpListener::bind(any)?.local_addr())
}

/// An address on which a TCP socket can listen, on its port and on the next one; neither is given out twice by this process.
pub fn free_tcp_twice() -> Result<SocketAddr> {
    for _ in 0..TRIES {
        let first = free_tcp()?;
        let Some(port) = first.port().checked_add(1) else { continue };
        let next = SocketAddr::new(first.ip(), port);
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if !given.contains(&port) && TcpListener::bind(next).is_ok() {
            given.insert(port);
            return Ok(first);
        }
    }
    bail!("no two free ports in {TRIES} tries")
}

fn free(bind: impl Fn(SocketAddr) -> std::io::Result<SocketAddr>) -> Result<SocketAddr> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..TRIES {
        let addr = bind(any)?;
        if given.insert(addr.port()) {
            return Ok(addr);
        }
    }
    bail!("no free port in {TRIES} tries")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_can_be_used() {
        let (a, b, c) = (free_udp().unwrap(), free_udp().unwrap(), free_tcp().unwrap());
        assert!(a != b && b.port() != c.port());
        UdpSocket::bind(a).unwrap();
        TcpListener::bind(c).unwrap();
        let d = free_tcp_twice().unwrap();
        let next = SocketAddr::new(d.ip(), d.port() + 1);
        let _held = [TcpListener::bind(d).unwrap(), TcpListener::bind(next).unwrap()];
    }
}
