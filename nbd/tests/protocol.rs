//! Conversations with a well-behaved client, byte by byte.

mod support;

use std::{
    os::unix::fs::PermissionsExt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use afterimage_nbd::{BindError, ExportInfo, Limits, Server, TcpEndpoint, UnixEndpoint, wire::codes::*};
use support::*;

#[test]
fn list_names_every_export() {
    let fixture = Fixture::with(vec![info("first"), info("second")], Limits::default());
    let mut client = fixture.client();
    let replies = client.option(OPT_LIST, b"");
    let item = |name: &str| (REP_SERVER, [string(name), format!("the {name}").into_bytes()].concat());
    assert_eq!(replies, [item("first"), item("second"), (REP_ACK, vec![])]);
    assert_eq!(client.option_result(OPT_LIST, b"x"), REP_ERR_INVALID);
    assert_eq!(client.option_result(OPT_ABORT, b""), REP_ACK);
    assert!(client.is_closed());
}

#[test]
fn info_tells_size_flags_names_and_block_sizes() {
    let exports = vec![info("first"), ExportInfo { min_block: 512, read_only: true, ..info("second") }];
    let fixture = Fixture::with(exports, Limits::default());
    let mut client = fixture.client();
    let replies = client.option(OPT_INFO, &info_data("second", &[INFO_NAME, INFO_DESCRIPTION, 77]));
    let flags = FLAG_HAS_FLAGS
        | FLAG_READ_ONLY
        | FLAG_SEND_FLUSH
        | FLAG_SEND_FUA
        | FLAG_CAN_MULTI_CONN
        | FLAG_SEND_CACHE;
    let about_export = [&[0, 0][..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
    assert_eq!(replies[0], (REP_INFO, about_export));
    assert_eq!(replies[1], (REP_INFO, b"\0\x01second".to_vec()));
    assert_eq!(replies[2], (REP_INFO, b"\0\x02the second".to_vec()));
    assert_eq!(replies[3], (REP_INFO, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0".to_vec()));
    assert_eq!(replies[4], (REP_ACK, vec![]));
    // Who does not ask for block sizes does not know that this export has some.
    assert_eq!(client.option_result(OPT_GO, &info_data("second", &[])), REP_ERR_BLOCK_SIZE_REQD);
    assert_eq!(client.option_result(OPT_INFO, &info_data("third", &[])), REP_ERR_UNKNOWN);
    assert_eq!(client.option_result(OPT_INFO, b"\0\0"), REP_ERR_INVALID);
    assert_eq!(client.option_result(OPT_STARTTLS, b""), REP_ERR_UNSUP);
    assert_eq!(client.option_result(4711, b"whatever"), REP_ERR_UNSUP);
    client.go("first");
}

#[test]
fn export_name_enters_with_and_without_padding() {
    let fixture = Fixture::new();
    for (flags, padding) in [(3u32, 0), (1, 124), (0, 124), (2, 0)] {
        let mut client = Client::connect_raw(&fixture.path);
        client.bytes(18);
        client.send(&flags.to_be_bytes());
        client.send_option(OPT_EXPORT_NAME, b"disk");
        assert_eq!(client.u64(), SIZE);
        assert_eq!(client.u16() & (FLAG_HAS_FLAGS | FLAG_READ_ONLY | FLAG_SEND_DF), FLAG_HAS_FLAGS);
        assert_eq!(client.bytes(padding), vec![0; padding]);
        client.request(0, CMD_FLUSH, 5, 0, 0, b"");
        assert_eq!(client.simple_reply(), (0, 5));
    }
    let mut client = fixture.client();
    client.send_option(OPT_EXPORT_NAME, b"no such export");
    assert!(client.is_closed());
}

#[test]
fn requests_sent_behind_the_handshake_without_waiting_are_served() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let data = info_data("disk", &[INFO_BLOCK_SIZE]);
    let mut bytes = [option_bytes(OPT_GO, data.len() as u32), data].concat();
    bytes.extend(request_bytes(0, CMD_WRITE, 1, 0, 3));
    bytes.extend(b"abc");
    bytes.extend(request_bytes(0, CMD_DISC, 2, 0, 0));
    client.send(&bytes);
    while client.option_reply(OPT_GO).0 != REP_ACK {}
    assert_eq!(client.simple_reply(), (0, 1));
    assert!(client.is_closed());
    assert_eq!(&fixture.export.contents()[..4], b"abc\0");
}

#[test]
fn simple_replies_carry_data_and_errors() {
    let fixture = Fixture::new();
    let mut client = fixture.simple();
    let cases = [
        (CMD_READ, SIZE, 1, EINVAL),
        (CMD_READ, 0, (32 << 20) + 1, EINVAL),
        (CMD_TRIM, SIZE - 1, 2, ENOSPC),
        (CMD_WRITE_ZEROES, u64::MAX, 2, ENOSPC),
        (CMD_CACHE, SIZE, 1, EINVAL),
        (CMD_BLOCK_STATUS, 0, 512, EINVAL),
        (99, 0, 0, EINVAL),
        (CMD_FLUSH, 0, 0, 0),
        (CMD_TRIM, 0, 4096, 0),
        (CMD_CACHE, 0, 4096, 0),
        (CMD_READ, SIZE, 0, 0),
        (CMD_TRIM, 0, 0, 0),
    ];
    for (cookie, (command, offset, length, error)) in (0..).zip(cases) {
        client.request(0, command, cookie, offset, length, b"");
        assert_eq!(client.simple_reply(), (error, cookie), "command {command} at {offset} + {length}");
    }
    client.request(0, CMD_WRITE, 90, SIZE - 2, 3, b"abc");
    assert_eq!(client.simple_reply(), (ENOSPC, 90));
    client.request(1 << 9, CMD_WRITE, 91, 0, 3, b"abc");
    assert_eq!(client.simple_reply(), (EINVAL, 91));
    client.request(0, CMD_WRITE, 92, 0, 0, b"");
    assert_eq!(client.simple_reply(), (0, 92));
    client.request(CMD_FLAG_FUA, CMD_WRITE, 93, SIZE - 3, 3, b"abc");
    assert_eq!(client.simple_reply(), (0, 93));
    client.request(CMD_FLAG_FAST_ZERO | CMD_FLAG_NO_HOLE, CMD_WRITE_ZEROES, 94, 0, 4096, b"");
    assert_eq!(client.simple_reply(), (ENOTSUP, 94));
    client.request(CMD_FLAG_FAST_ZERO | CMD_FLAG_FUA, CMD_WRITE_ZEROES, 95, 0, 4096, b"");
    assert_eq!(client.simple_reply(), (0, 95));
    client.request(CMD_FLAG_FUA, CMD_TRIM, 96, 0, 4096, b"");
    assert_eq!(client.simple_reply(), (0, 96));
    assert_eq!(fixture.export.fuas.load(Ordering::SeqCst), 3);
    client.request(0, CMD_READ, 97, SIZE - 4, 4, b"");
    assert_eq!(client.simple_reply(), (0, 97));
    assert_eq!(client.bytes(4), b"\0abc");
}

#[test]
fn structured_replies_are_one_chunk() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.structured();
    client.go("disk");
    client.request(0, CMD_WRITE, 1, 4096, 4, b"data");
    assert_eq!(client.simple_reply(), (0, 1));
    client.request(CMD_FLAG_DF, CMD_READ, 2, 4096, 4, b"");
    assert_eq!(
        client.chunk(),
        (REPLY_FLAG_DONE, REPLY_TYPE_OFFSET_DATA, 2, b"\0\0\0\0\0\0\x10\0data".to_vec())
    );
    client.request(0, CMD_READ, 3, SIZE, 4, b"");
    assert_eq!(client.chunk(), (REPLY_FLAG_DONE, REPLY_TYPE_ERROR, 3, b"\0\0\0\x16\0\0".to_vec()));
    client.request(0, CMD_READ, 4, 0, 0, b"");
    assert_eq!(client.chunk(), (REPLY_FLAG_DONE, REPLY_TYPE_NONE, 4, vec![]));
    // Structured replies alone do not bring contexts with them.
    client.request(0, CMD_BLOCK_STATUS, 5, 0, 4096, b"");
    assert_eq!(client.chunk(), (REPLY_FLAG_DONE, REPLY_TYPE_ERROR, 5, b"\0\0\0\x16\0\0".to_vec()));
}

#[test]
fn contexts_are_listed_by_name_and_namespace() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    assert_eq!(client.option_result(OPT_LIST_META_CONTEXT, &meta_data("disk", &[])), REP_ERR_INVALID);
    client.structured();
    let mut names = |queries: &[&str]| {
        let mut replies = client.option(OPT_LIST_META_CONTEXT, &meta_data("disk", queries));
        assert_eq!(replies.pop(), Some((REP_ACK, vec![])));
        let name = |(_, data): (u32, Vec<u8>)| String::from_utf8(data[4..].to_vec()).unwrap();
        replies.into_iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["base:allocation", "afterimage:dirty"]);
    assert_eq!(names(&["base:"]), ["base:allocation"]);
    assert_eq!(names(&["afterimage:", "qemu:"]), ["afterimage:dirty"]);
    assert_eq!(names(&["afterimage:dirty"]), ["afterimage:dirty"]);
    assert!(names(&["afterimage", "base:alloc", ""]).is_empty());
}

#[test]
fn block_status_answers_for_the_chosen_contexts() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.structured();
    let data = meta_data("", &["afterimage:dirty", "base:allocation", "qemu:x", "base:"]);
    let replies = client.option(OPT_SET_META_CONTEXT, &data);
    assert_eq!(replies.len(), 3);
    client.go("disk");
    client.request(0, CMD_WRITE, 1, 4096, 4, b"data");
    client.simple_reply();
    client.request(0, CMD_BLOCK_STATUS, 2, 0, 16384, b"");
    let extents = |parts: &[u32]| parts.iter().flat_map(|part| part.to_be_bytes()).collect::<Vec<_>>();
    let allocation = extents(&[1, 4096, 3, 4096, 0, 8192, 3]);
    let dirty = extents(&[2, 4096, 0, 4096, 1, 8192, 0]);
    assert_eq!(client.chunk(), (0, REPLY_TYPE_BLOCK_STATUS, 2, allocation));
    assert_eq!(client.chunk(), (REPLY_FLAG_DONE, REPLY_TYPE_BLOCK_STATUS, 2, dirty));
    client.request(CMD_FLAG_REQ_ONE, CMD_BLOCK_STATUS, 3, 100, 16384, b"");
    assert_eq!(client.chunk().3, extents(&[1, 3996, 3]));
    assert_eq!(client.chunk().3, extents(&[2, 3996, 0]));
    client.request(0, CMD_BLOCK_STATUS, 4, 0, 0, b"");
    assert_eq!(client.chunk().1, REPLY_TYPE_ERROR);
}

#[test]
fn contexts_hold_only_for_their_export_and_for_the_last_choice() {
    let fixture = Fixture::with(vec![info("first"), info("second")], Limits::default());
    let enter = |name: &str, choices: &[Vec<u8>]| {
        let mut client = fixture.client();
        client.structured();
        for choice in choices {
            client.option(OPT_SET_META_CONTEXT, choice);
        }
        client.go(name);
        client.request(0, CMD_BLOCK_STATUS, 1, 0, 4096, b"");
        client.chunk().1
    };
    let dirty = |name| meta_data(name, &["afterimage:dirty"]);
    assert_eq!(enter("first", &[dirty("first")]), REPLY_TYPE_BLOCK_STATUS);
    assert_eq!(enter("", &[dirty("first")]), REPLY_TYPE_BLOCK_STATUS);
    assert_eq!(enter("second", &[dirty("first")]), REPLY_TYPE_ERROR);
    assert_eq!(enter("first", &[dirty("first"), meta_data("first", &["nothing:known"])]), REPLY_TYPE_ERROR);
    assert_eq!(enter("first", &[dirty("first"), dirty("no such export")]), REPLY_TYPE_ERROR);
}

#[test]
fn replies_come_as_requests_finish_and_not_in_their_order() {
    let fixture = Fixture::new();
    let mut client = fixture.simple();
    fixture.export.gate.send_replace(false);
    for cookie in 0..100 {
        client.request(0, CMD_WRITE, cookie, cookie * 4096, 4096, &[cookie as u8; 4096]);
    }
    eventually("a hundred requests in flight", || fixture.export.waiting.load(Ordering::SeqCst) == 100);
    client.request(0, CMD_FLUSH, 1000, 0, 0, b"");
    assert_eq!(client.simple_reply(), (0, 1000));
    fixture.export.gate.send_replace(true);
    let mut cookies: Vec<_> = (0..100).map(|_| client.simple_reply().1).collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..100));
    let contents = fixture.export.contents();
    assert!((0..100).all(|block| contents[block * 4096..][..4096] == [block as u8; 4096]));
}

#[test]
fn payloads_of_every_size_arrive_whole() {
    let fixture = Fixture::new();
    let mut client = fixture.simple();
    let mut expected = fixture.export.contents();
    let sizes =
        [1, 511, 4096, 65535, 65536, 65537, 262_143, 262_144, 300_000, 1 << 20, 3, 5 << 20, 28, 512, 70_000];
    for (cookie, size) in (1..).zip(sizes.into_iter().cycle().take(60)) {
        let offset = (cookie * 977) % (SIZE as usize - size);
        let payload: Vec<u8> = (0..size).map(|at| (at * 31 + cookie) as u8).collect();
        client.request(0, CMD_WRITE, cookie as u64, offset as u64, size as u32, &payload);
        assert_eq!(client.simple_reply(), (0, cookie as u64));
        expected[offset..offset + size].copy_from_slice(&payload);
    }
    assert!(fixture.export.contents() == expected);
    client.request(0, CMD_READ, 0, 0, SIZE as u32, b"");
    assert_eq!(client.simple_reply(), (0, 0));
    assert!(client.bytes(SIZE as usize) == expected);
}

#[test]
fn disconnect_finishes_what_is_in_flight() {
    let fixture = Fixture::new();
    let mut client = fixture.simple();
    fixture.export.gate.send_replace(false);
    client.request(0, CMD_WRITE, 1, 0, 3, b"abc");
    client.request(0, CMD_DISC, 2, 0, 0, b"");
    eventually("the write in flight", || fixture.export.waiting.load(Ordering::SeqCst) == 1);
    fixture.export.gate.send_replace(true);
    assert_eq!(client.simple_reply(), (0, 1));
    assert!(client.is_closed());
}

#[test]
fn a_shutdown_drains_and_removes_the_socket() {
    let mut fixture = Fixture::new();
    let mut client = fixture.simple();
    let mut idle = fixture.client();
    fixture.export.gate.send_replace(false);
    client.request(0, CMD_WRITE, 1, 0, 3, b"abc");
    eventually("the write in flight", || fixture.export.waiting.load(Ordering::SeqCst) == 1);
    fixture.stop.send_replace(true);
    eventually("the socket's removal", || !fixture.path.exists());
    // Comes too late to be read, and must not cost the first one its reply.
    client.request(0, CMD_WRITE, 2, 0, 3, b"xyz");
    assert!(idle.is_closed());
    fixture.export.gate.send_replace(true);
    assert_eq!(client.simple_reply(), (0, 1));
    assert!(client.is_closed());
    drop(client);
    fixture.shut_down();
    assert_eq!(&fixture.export.contents()[..3], b"abc");
}

#[test]
fn a_shutdown_gives_up_on_a_backend_that_hangs() {
    let limits = Limits { drain_timeout: Duration::from_millis(200), ..Limits::default() };
    let mut fixture = Fixture::with(vec![info("disk")], limits);
    let mut client = fixture.simple();
    let mut leaving = fixture.simple();
    fixture.export.gate.send_replace(false);
    client.request(0, CMD_WRITE, 1, 0, 3, b"abc");
    leaving.request(0, CMD_WRITE, 1, 0, 3, b"abc");
    leaving.request(0, CMD_DISC, 2, 0, 0, b"");
    eventually("the writes in flight", || fixture.export.waiting.load(Ordering::SeqCst) == 2);
    fixture.shut_down();
    assert!(client.is_closed() && leaving.is_closed());
    assert_eq!(fixture.export.finished.load(Ordering::SeqCst), 0);
}

#[test]
fn the_socket_is_for_owner_and_group_and_replaces_only_a_dead_one() {
    let mut fixture = Fixture::new();
    let mode = std::fs::metadata(&fixture.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    let _context = fixture.runtime.enter();
    assert!(matches!(UnixEndpoint::bind(&fixture.path), Err(BindError::InUse { .. })));
    let file = fixture.directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(UnixEndpoint::bind(&file), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    // A listener of the standard library leaves its file behind, as a killed process does.
    let stale = fixture.directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let endpoint = UnixEndpoint::bind(&stale).unwrap();
    // Another one in its place is not ours to remove.
    std::fs::remove_file(&stale).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&stale).unwrap();
    drop(endpoint);
    assert!(stale.exists());
    drop(_context);
    fixture.shut_down();
}

#[test]
fn tcp_stays_on_this_host_unless_told_otherwise() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809"] {
        let refused = TcpEndpoint::bind(addr.parse().unwrap(), false);
        assert!(matches!(refused, Err(BindError::RemoteNotAllowed { .. })), "{addr}");
    }
    assert!(TcpEndpoint::bind("0.0.0.0:0".parse().unwrap(), true).is_ok());
    assert!(
        TcpEndpoint::bind("127.0.0.1:0".parse().unwrap(), false).unwrap().local_addr().unwrap().port() > 0
    );
}

#[test]
fn serving_can_be_spawned_and_ends_when_the_sender_goes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.sock");
    let server = Arc::new(Server::new(vec![Arc::new(Memory::new(info("disk")))], Limits::default()));
    let (stop, shutdown) = tokio::sync::watch::channel(false);
    let unix = runtime.spawn(Arc::clone(&server).serve_unix(path.clone(), shutdown.clone()));
    let tcp = runtime.spawn(server.serve_tcp("127.0.0.1:0".parse().unwrap(), false, shutdown));
    eventually("the socket", || path.exists());
    drop(stop);
    runtime.block_on(unix).unwrap().unwrap();
    runtime.block_on(tcp).unwrap().unwrap();
    assert!(!path.exists());
}
