//! The link against real sockets in real namespaces. Needs root, iproute2 and `/dev/net/tun`.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use afterimage_wan::{Direction, Line, Profile, Wan, WanConfig, WanError};

const PORT: u16 = 4000;

/// How long a packet that has to arrive is waited for: as long as a busy machine may stand still.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing may arrive for it to be said that nothing does.
const SILENCE: Duration = Duration::from_millis(300);

fn config(name: &str) -> WanConfig {
    WanConfig {
        name_prefix: format!("wantest-{name}"),
        delay: Duration::ZERO,
        loss_pct: 0.0,
        rate_mbit: 0.0,
        seed: 1,
    }
}

/// Connected sockets at both ends.
fn sockets(wan: &Wan) -> (UdpSocket, UdpSocket) {
    let connect = |ns: &str, from: Ipv4Addr, to: Ipv4Addr| {
        wan.run_in(ns, || {
            let socket = UdpSocket::bind((from, PORT)).expect("bind");
            socket.connect((to, PORT)).expect("connect");
            socket
        })
        .expect("enter the namespace")
    };
    let a = connect(wan.ns_a(), wan.address_a(), wan.address_b());
    let b = connect(wan.ns_b(), wan.address_b(), wan.address_a());
    (a, b)
}

/// The next packet, or none within `limit`.
fn receive_within(socket: &UdpSocket, limit: Duration) -> Option<Vec<u8>> {
    socket.set_read_timeout(Some(limit)).expect("set a timeout");
    let mut buffer = [0; 2000];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => return Some(buffer[..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            // A process that was stopped for a while, with its machine, comes back from here.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("receive: {error}"),
        }
    }
}

/// The next packet, which has to arrive.
fn receive(socket: &UdpSocket) -> Vec<u8> {
    receive_within(socket, PATIENCE).expect("a packet arrives")
}

fn nothing_arrives(socket: &UdpSocket) -> bool {
    receive_within(socket, SILENCE).is_none()
}

fn passes(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send(b"probe").expect("send");
    receive(to) == b"probe"
}

fn is_cut(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send(b"probe").expect("send");
    nothing_arrives(to)
}

fn exists(ns: &str) -> bool {
    Path::new("/run/netns").join(ns).exists()
}

/// The fastest of 21 round trips: a busy machine makes some slow, and none too fast.
fn round_trip(a: &UdpSocket, b: &UdpSocket) -> Duration {
    let times = (0..21).map(|_| {
        let start = Instant::now();
        a.send(b"ping").expect("send");
        b.send(&receive(b)).expect("send back");
        receive(a);
        start.elapsed()
    });
    times.min().expect("some")
}

/// How much longer it takes, the machine decides; how exact the line is in its own time, its unit tests show.
fn assert_at_least(measured: Duration, expected: Duration) {
    assert!(measured >= expected, "{measured:?} is less than {expected:?}");
}

#[test]
fn a_round_trip_takes_twice_the_delay_and_follows_a_change() {
    let wan = Wan::up(WanConfig { delay: Duration::from_millis(10), ..config("rtt") }).expect("link");
    let (a, b) = sockets(&wan);
    assert_at_least(round_trip(&a, &b), Duration::from_millis(20));

    let slower = Profile { delay: Duration::from_millis(40), ..Profile::default() };
    wan.set_profile(Direction::BToA, slower).expect("change");
    assert_at_least(round_trip(&a, &b), Duration::from_millis(50));

    wan.set_profile(Direction::Both, Profile::default()).expect("change");
    let fastest = round_trip(&a, &b);
    assert!(fastest < Duration::from_millis(50), "the delay is gone: {fastest:?}");
}

#[test]
fn exactly_the_packets_that_the_seed_tells_are_lost() {
    const PACKETS: u32 = 3000;
    let profile = Profile { loss_pct: 5.0, ..Profile::default() };
    let mut model = Line::new(profile, Wan::line_seed(77, Direction::AToB)).expect("valid profile");
    let wan = Wan::up(WanConfig { loss_pct: 5.0, seed: 77, ..config("loss") }).expect("link");
    let (a, b) = sockets(&wan);
    // One packet at a time: none can be lost to a queue of the kernel's that is full.
    for number in 0..PACKETS {
        model.push(Duration::ZERO, vec![0]);
        a.send(&number.to_le_bytes()).expect("send");
        if model.pop(Duration::ZERO).is_some() {
            assert_eq!(
                receive(&b),
                number.to_le_bytes(),
                "the packet of which the seed says that it arrives"
            );
        }
    }
    assert!(nothing_arrives(&b), "no packet arrives that the seed lets be lost");
    let (ab, ba) = wan.counters().expect("counters");
    assert_eq!((ab.offered, ab.lost), (PACKETS.into(), model.counters().lost));
    assert_eq!(ba.offered, 0, "nothing but the test's packets is on the link");
}

#[test]
fn a_burst_takes_as_long_as_the_rate_says() {
    const PACKETS: u32 = 60;
    const IP_AND_UDP_HEADERS: usize = 28;
    let wan = Wan::up(WanConfig { rate_mbit: 10.0, ..config("rate") }).expect("link");
    let (a, b) = sockets(&wan);
    let start = Instant::now();
    for _ in 0..PACKETS {
        a.send(&[0; 1250 - IP_AND_UDP_HEADERS]).expect("send");
    }
    for _ in 0..PACKETS {
        receive(&b);
    }
    assert_at_least(start.elapsed(), Duration::from_millis(60));
}

#[test]
fn a_cut_stops_the_ways_it_names_until_it_is_healed() {
    let wan = Wan::up(config("cut")).expect("link");
    let (a, b) = sockets(&wan);
    assert!(passes(&a, &b) && passes(&b, &a));

    wan.cut(Direction::AToB).expect("cut");
    assert!(is_cut(&a, &b) && passes(&b, &a));

    wan.cut(Direction::Both).expect("cut");
    assert!(is_cut(&a, &b) && is_cut(&b, &a));

    wan.heal().expect("heal");
    assert!(passes(&a, &b) && passes(&b, &a));
    let (ab, ba) = wan.counters().expect("counters");
    assert_eq!((ab.cut, ba.cut), (2, 1));
}

#[test]
fn a_cut_takes_packets_under_way() {
    let wan = Wan::up(WanConfig { delay: Duration::from_secs(2), ..config("underway") }).expect("link");
    let (a, b) = sockets(&wan);
    a.send(b"lost").expect("send");
    thread::sleep(Duration::from_millis(50));
    wan.cut(Direction::Both).expect("cut");
    wan.heal().expect("heal");
    assert_eq!(receive_within(&b, Duration::from_millis(2500)), None);
}

#[test]
fn a_command_runs_inside_its_namespace() {
    let wan = Wan::up(config("command")).expect("link");
    for (ns, address) in [(wan.ns_a(), wan.address_a()), (wan.ns_b(), wan.address_b())] {
        let output = wan.command_in(ns).args(["ip", "-o", "addr"]).output().expect("run ip");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&format!("inet {address}/24")), "{text}");
        assert!(!text.contains("inet6 fe80"), "no traffic of the kernel's own: {text}");
    }
}

#[test]
fn the_namespaces_go_with_the_link_and_with_a_panic() {
    let wan = Wan::up(config("gone")).expect("link");
    let names = [wan.ns_a().to_owned(), wan.ns_b().to_owned()];
    assert!(names.iter().all(|name| exists(name)));
    drop(wan);
    assert!(!names.iter().any(|name| exists(name)));

    let panicked = thread::spawn(|| {
        let _wan = Wan::up(config("gone")).expect("the name is free again");
        panic!("on purpose");
    })
    .join();
    assert!(panicked.is_err());
    assert!(!names.iter().any(|name| exists(name)));
}

#[test]
fn two_links_live_side_by_side_but_not_under_one_name() {
    let first = Wan::up(config("twins")).expect("link");
    let _other = Wan::up(config("twins-too")).expect("another link");
    assert!(matches!(Wan::up(config("twins")), Err(WanError::InUse(_))));
    let (a, b) = sockets(&first);
    assert!(passes(&a, &b), "the refused run left the first one alone");
}

#[test]
fn names_and_profiles_that_cannot_be_are_refused() {
    for prefix in ["", "a/b", "-a", "a b", &"x".repeat(33)] {
        let refused = Wan::up(WanConfig { name_prefix: prefix.to_owned(), ..config("unused") });
        assert!(matches!(refused, Err(WanError::Prefix(_))), "{prefix:?}");
    }
    let refused = Wan::up(WanConfig { loss_pct: 101.0, ..config("refused") });
    assert!(matches!(refused, Err(WanError::Profile(_))));
    assert!(!exists("wantest-refused-a"));
}
