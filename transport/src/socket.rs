//! A UDP socket that takes packets of any size from quinn.
//!
//! quinn hands the kernel up to ten packets of one size at once, and the kernel takes no more at once than fits in one datagram:
//! ten packets may have 6,550 bytes each at most. Larger ones, as the loopback and a network with jumbo frames take, cost
//! fewer processors for the same bytes; of those this one asks for fewer at once.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// UDP payload that the kernel takes at once, in one packet or several: that of the largest datagram of IPv4.
const MAX_AT_ONCE_BYTES: usize = 65_507;

/// The socket of an endpoint; to be opened within a runtime.
pub fn open(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let inner = TokioRuntime.wrap_udp_socket(socket)?;
    Ok(Arc::new(Socket { inner, packet_bytes: AtomicUsize::new(1) }))
}

#[derive(Debug)]
struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Of the last packets that came together.
    packet_bytes: AtomicUsize,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(packet_bytes) = transmit.segment_size.filter(|bytes| *bytes > 0) else {
            return self.inner.try_send(transmit);
        };
        self.packet_bytes.store(packet_bytes, Ordering::Relaxed);
        // More than asked for come when the packets have just become larger, and with several connections.
        let parts = transmit.contents.chunks(packets_at_once(packet_bytes) * packet_bytes);
        for (nth, contents) in parts.enumerate() {
            let segment_size = (contents.len() > packet_bytes).then_some(packet_bytes);
            let part = Transmit { contents, segment_size, ..*transmit };
            match self.inner.try_send(&part) {
                // What was sent must not be sent again; the rest counts as lost on the way.
                Err(_) if nth > 0 => break,
                sent => sent?,
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let packets = packets_at_once(self.packet_bytes.load(Ordering::Relaxed));
        self.inner.max_transmit_segments().min(packets)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

fn packets_at_once(packet_bytes: usize) -> usize {
    (MAX_AT_ONCE_BYTES / packet_bytes.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Mutex};

    use super::*;

    #[derive(Debug)]
    struct Never;

    impl UdpPoller for Never {
        fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// Takes so many times what it is given, and then nothing.
    #[derive(Debug)]
    struct Kernel {
        takes: Mutex<usize>,
        taken: Mutex<Vec<(Vec<u8>, Option<usize>)>>,
    }

    impl AsyncUdpSocket for Kernel {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(Never)
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let mut takes = self.takes.lock().unwrap();
            *takes = takes.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
            self.taken.lock().unwrap().push((transmit.contents.to_vec(), transmit.segment_size));
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok((Ipv4Addr::LOCALHOST, 1).into())
        }

        fn max_transmit_segments(&self) -> usize {
            64
        }
    }

    fn socket(takes: usize) -> (Socket, Arc<Kernel>) {
        let kernel = Arc::new(Kernel { takes: Mutex::new(takes), taken: Mutex::default() });
        (Socket { inner: kernel.clone(), packet_bytes: AtomicUsize::new(1) }, kernel)
    }

    fn send(socket: &Socket, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let destination = (Ipv4Addr::LOCALHOST, 2).into();
        socket.try_send(&Transmit { destination, ecn: None, contents, segment_size, src_ip: None })
    }

    #[test]
    fn the_kernel_gets_no_more_at_once_than_it_takes() {
        let contents: Vec<u8> = (0..100_000u32).map(|n| (n / 7) as u8).collect();
        for (packet_bytes, sizes) in [
            (1_200, &[64_800, 35_200][..]),
            (16_376, &[65_504, 34_496]),
            (50_000, &[50_000, 50_000]),
            (65_000, &[65_000, 35_000]),
        ] {
            let (socket, kernel) = socket(9);
            send(&socket, &contents, Some(packet_bytes)).unwrap();
            let taken = kernel.taken.lock().unwrap();
            assert_eq!(taken.iter().map(|(part, _)| part.len()).collect::<Vec<_>>(), sizes);
            assert!(taken.iter().flat_map(|(part, _)| part).eq(&contents), "{packet_bytes}");
            for (part, segment_size) in &*taken {
                assert_eq!(*segment_size, (part.len() > packet_bytes).then_some(packet_bytes));
            }
        }
    }

    #[test]
    fn of_larger_packets_it_asks_for_fewer() {
        let (socket, _) = socket(99);
        assert_eq!(socket.max_transmit_segments(), 64);
        for (packet_bytes, packets) in [(1_200, 54), (16_376, 4), (65_507, 1), (6_550, 10)] {
            send(&socket, &[0; 66_000], Some(packet_bytes)).unwrap();
            assert_eq!(socket.max_transmit_segments(), packets);
            // What comes alone says nothing.
            send(&socket, &[0; 40], None).unwrap();
            assert_eq!(socket.max_transmit_segments(), packets);
        }
    }

    #[test]
    fn what_was_not_taken_at_all_comes_again_and_what_was_in_part_does_not() {
        let (socket, kernel) = socket(1);
        send(&socket, &[0; 100_000], Some(20_000)).unwrap();
        assert_eq!(kernel.taken.lock().unwrap().len(), 1);
        let error = send(&socket, &[0; 100_000], Some(20_000)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
