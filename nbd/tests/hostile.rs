//! Clients that lie, hang, flood and vanish: they may harm themselves and nobody else.

mod support;

use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use afterimage_nbd::{ExportInfo, Limits, wire::codes::*};
use support::*;

#[test]
fn a_wrong_magic_closes_the_connection() {
    let fixture = Fixture::new();
    let mut client = Client::connect_raw(&fixture.path);
    client.bytes(18);
    client.send(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n");
    assert!(client.is_closed());
    let mut client = fixture.client();
    client.send(&[0x55; 64]);
    assert!(client.is_closed());
    fixture.assert_serving();
}

#[test]
fn flags_that_were_not_offered_close_the_connection() {
    let fixture = Fixture::new();
    let mut client = Client::connect_raw(&fixture.path);
    client.bytes(18);
    client.send(&0x8000_0003u32.to_be_bytes());
    assert!(client.is_closed());
}

#[test]
fn a_client_without_fixed_newstyle_may_only_name_its_export() {
    let fixture = Fixture::new();
    let mut client = Client::connect_raw(&fixture.path);
    client.bytes(18);
    client.send(&0u32.to_be_bytes());
    client.send_option(OPT_LIST, b"");
    assert!(client.is_closed());
}

#[test]
fn a_hanging_handshake_is_cut_off() {
    let limits = Limits { handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let fixture = Fixture::with(vec![info("disk")], limits);
    let start = Instant::now();
    let mut silent = Client::connect_raw(&fixture.path);
    let mut halfway = fixture.client();
    halfway.send(&option_bytes(OPT_GO, 100));
    let mut slow = fixture.client();
    silent.bytes(18);
    assert!(silent.is_closed() && halfway.is_closed());
    // A trickle of good options does not buy more time.
    while start.elapsed() < PATIENCE && slow.0.write_all(&option_bytes(OPT_LIST, 0)).is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(start.elapsed() < PATIENCE);
    fixture.assert_serving();
}

#[test]
fn oversized_options_are_refused_or_closed() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    assert_eq!(client.option_result(OPT_GO, &vec![0; 65537]), REP_ERR_TOO_BIG);
    assert_eq!(client.option_result(OPT_LIST, &vec![0; 1 << 20]), REP_ERR_TOO_BIG);
    // The connection is still in step.
    assert_eq!(client.option_result(OPT_LIST, b""), REP_ACK);
    client.send(&option_bytes(OPT_GO, u32::MAX));
    assert!(client.is_closed());
    fixture.assert_serving();
}

#[test]
fn a_flood_of_options_is_cut_off() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut reader = Client(client.0.try_clone().unwrap());
    let drain = std::thread::spawn(move || {
        let mut answered = 0;
        let mut header = [0; 20];
        while reader.0.read_exact(&mut header).is_ok() {
            let length = u32::from_be_bytes(header[16..].try_into().unwrap());
            reader.bytes(length as usize);
            answered += 1;
        }
        answered
    });
    for _ in 0..5000 {
        if client.0.write_all(&option_bytes(4711, 0)).is_err() {
            break;
        }
    }
    assert_eq!(drain.join().unwrap(), 1024);
    fixture.assert_serving();
}

#[test]
fn lies_inside_options_get_an_error() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.structured();
    for option in [OPT_GO, OPT_INFO, OPT_SET_META_CONTEXT, OPT_LIST_META_CONTEXT] {
        for data in [
            &b""[..],
            b"\0\0\0\x09disk\0\0",
            b"\xff\xff\xff\xffdisk",
            b"\0\0\0\0\xff\xff\xff\xff",
            b"\0\0\0\x01\xff\0\0",
        ] {
            assert_eq!(client.option_result(option, data), REP_ERR_INVALID, "option {option}, {data:?}");
        }
    }
    client.go("disk");
}

#[test]
fn a_write_that_is_too_long_is_drained_and_refused() {
    let exports = vec![ExportInfo { max_block: 65536, ..info("disk") }];
    let limits = Limits { max_discard_bytes: 1 << 20, ..Limits::default() };
    let fixture = Fixture::with(exports, limits);
    let mut client = fixture.simple();
    client.request(0, CMD_WRITE, 1, 0, 1 << 20, &vec![0xaa; 1 << 20]);
    client.request(0, CMD_READ, 2, 0, 4, b"");
    assert_eq!(client.simple_reply(), (EINVAL, 1));
    assert_eq!(client.simple_reply(), (0, 2));
    assert_eq!(client.bytes(4), [0; 4]);
    client.request(0, CMD_WRITE, 3, 0, (1 << 20) + 1, b"");
    assert!(client.is_closed());
    fixture.assert_serving();
}

#[test]
fn a_request_with_a_wrong_magic_still_lets_earlier_ones_finish() {
    let fixture = Fixture::new();
    let mut client = fixture.simple();
    let mut bytes = request_bytes(0, CMD_WRITE, 1, 0, 3);
    bytes.extend(b"abc");
    bytes.extend([0x11; 100_000]);
    client.send(&bytes);
    assert_eq!(client.simple_reply(), (0, 1));
    assert!(client.is_closed());
    fixture.assert_serving();
}

#[test]
fn half_a_request_is_never_carried_out() {
    let fixture = Fixture::new();
    for sent in [1, 27, 28, 29, 4000] {
        for length in [4096u32, 1 << 20] {
            let mut client = fixture.simple();
            let mut bytes = request_bytes(0, CMD_WRITE, 1, 0, length);
            bytes.resize(28 + length as usize, 0xee);
            client.send(&bytes[..sent]);
        }
    }
    fixture.assert_serving();
    assert_eq!(fixture.export.contents()[..4096], [0; 4096]);
    assert_eq!(fixture.export.finished.load(Ordering::SeqCst), 1);
}

#[test]
fn a_client_that_stops_sending_still_gets_its_replies() {
    let fixture = Fixture::new();
    let mut client = fixture.simple();
    client.request(0, CMD_WRITE, 1, 0, 3, b"abc");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.simple_reply(), (0, 1));
    assert!(client.is_closed());
}

#[test]
fn writes_of_a_client_that_vanished_run_to_their_end() {
    let fixture = Fixture::new();
    let mut client = fixture.simple();
    fixture.export.gate.send_replace(false);
    for cookie in 0..10 {
        client.request(0, CMD_WRITE, cookie, cookie * 4096, 3, b"abc");
    }
    eventually("ten writes in flight", || fixture.export.waiting.load(Ordering::SeqCst) == 10);
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    fixture.export.gate.send_replace(true);
    eventually("ten writes finished", || fixture.export.finished.load(Ordering::SeqCst) == 10);
    fixture.assert_serving();
}

#[test]
fn a_client_that_never_reads_comes_to_a_halt() {
    let limits = Limits {
        max_in_flight_bytes: 4 << 20,
        drain_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let mut fixture = Fixture::with(vec![info("disk")], limits);
    let mut client = fixture.simple();
    client.0.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let request = request_bytes(0, CMD_READ, 1, 0, 1 << 20);
    // 28 bytes ask for a MiB each time, until the server reads no more.
    while client.0.write_all(&request).is_ok() {}
    // Four fill the limit; a fifth may have left some of them in the socket.
    let reads = fixture.export.reads.load(Ordering::SeqCst);
    assert!((4..=5).contains(&reads), "{reads} reads");
    fixture.assert_serving();
    fixture.shut_down();
}

#[test]
fn requests_of_a_client_that_never_reads_run_to_their_end() {
    let fixture = Fixture::new();
    let mut client = fixture.simple();
    fixture.export.gate.send_replace(false);
    // The reads are far more than a socket buffer takes.
    for cookie in 0..30 {
        client.request(0, CMD_READ, cookie, 0, 1 << 20, b"");
        client.request(0, CMD_WRITE, cookie, 0, 3, b"abc");
    }
    eventually("all in flight", || fixture.export.waiting.load(Ordering::SeqCst) == 60);
    fixture.export.gate.send_replace(true);
    // They may hold locks that another connection waits for.
    eventually("the writes' end", || fixture.export.finished.load(Ordering::SeqCst) == 30);
}

#[test]
fn requests_in_flight_are_bounded_in_number_and_in_bytes() {
    let limits = Limits { max_in_flight_requests: 8, max_in_flight_bytes: 1 << 20, ..Limits::default() };
    let fixture = Fixture::with(vec![info("disk")], limits);
    for (size, expected) in [(512u32, 8), (400_000, 2), (2 << 20, 1)] {
        fixture.export.gate.send_replace(false);
        let mut client = fixture.simple();
        for cookie in 0..20 {
            client.request(0, CMD_READ, cookie, 0, size, b"");
        }
        let waiting = || fixture.export.waiting.load(Ordering::SeqCst);
        eventually("the limit", || waiting() == expected);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(waiting(), expected);
        fixture.export.gate.send_replace(true);
        for _ in 0..20 {
            assert_eq!(client.simple_reply().0, 0);
            client.bytes(size as usize);
        }
    }
}

#[test]
fn one_connection_too_many_is_turned_away() {
    let limits = Limits { max_connections: 2, ..Limits::default() };
    let fixture = Fixture::with(vec![info("disk")], limits);
    let first = fixture.simple();
    let _second = fixture.client();
    assert!(Client::connect_raw(&fixture.path).is_closed());
    assert!(Client::connect_raw(&fixture.path).is_closed());
    drop(first);
    eventually("room for another one", || {
        let mut client = Client::connect_raw(&fixture.path);
        client.0.read_exact(&mut [0; 18]).is_ok()
    });
}

#[test]
fn noise_in_any_phase_does_no_harm() {
    let fixture = Fixture::new();
    let mut state = 0x0123_4567_89ab_cdefu64;
    let mut random = move || {
        // Xorshift (Marsaglia 2003): every failure comes again.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let mut client = fixture.client();
        if round % 3 == 0 {
            client.structured();
            client.option(OPT_SET_META_CONTEXT, &meta_data("", &["afterimage:dirty", "base:allocation"]));
        }
        let mut bytes = Vec::new();
        if round % 2 == 0 {
            client.go("");
            for cookie in 0..random() % 50 {
                // Small offsets and lengths are right often enough to get deep.
                let (flags, command) = (random() as u16 & 0x1f, (random() % 9) as u16);
                let length = (random() % 20_000) as u32;
                bytes.extend(request_bytes(flags, command, cookie, random() % (SIZE + 10_000), length));
                if command == CMD_WRITE && random() % 8 > 0 {
                    bytes.resize(bytes.len() + length as usize, 7);
                }
            }
        } else {
            for _ in 0..random() % 50 {
                let data: Vec<u8> = (0..random() % 40).map(|_| (random() % 5) as u8).collect();
                bytes.extend(option_bytes((random() % 12) as u32, data.len() as u32));
                bytes.extend(data);
            }
        }
        for _ in 0..random() % 3 {
            let at = random() as usize % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (random() % 8);
            }
        }
        // The server may have closed already; that is its right.
        let _ = client.0.set_write_timeout(Some(Duration::from_millis(20)));
        let _ = client.0.write_all(&bytes);
    }
    fixture.assert_serving();
}
