//! Free ports on the loopback address.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

/// Ports given out by this process: nobody listens on them yet.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Below those that the kernel gives to sockets that ask for any: such a socket of another test would be where somebody is to
/// listen a moment later.
const PORTS: Range<u16> = 12_000..32_000;
/// Tries before giving up.
const TRIES: usize = 1000;

/// An address on which a UDP socket can listen; not given out twice by this process.
pub fn free_udp() -> Result<SocketAddr> {
    free(|address| UdpSocket::bind(address).is_ok())
}

/// An address on which a TCP socket can listen; not given out twice by this process.
pub fn free_tcp() -> Result<SocketAddr> {
    free(|address| TcpListener::bind(address).is_ok())
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

fn free(is_free: impl Fn(SocketAddr) -> bool) -> Result<SocketAddr> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..TRIES {
        // At random, since other processes look for ports too.
        let draw = RandomState::new().build_hasher().finish() % PORTS.len() as u64;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.start + draw as u16));
        if !given.contains(&address.port()) && is_free(address) {
            given.insert(address.port());
            return Ok(address);
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
        assert!([a, b, c].iter().all(|address| PORTS.contains(&address.port())));
        UdpSocket::bind(a).unwrap();
        TcpListener::bind(c).unwrap();
        let d = free_tcp_twice().unwrap();
        let next = SocketAddr::new(d.ip(), d.port() + 1);
        let _held = [TcpListener::bind(d).unwrap(), TcpListener::bind(next).unwrap()];
    }
}
