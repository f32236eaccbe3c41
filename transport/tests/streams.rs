//! Limits and messages between peers that trust each other.

mod common;

use std::time::{Duration, Instant};

use afterimage_transport::*;
use common::*;

async fn connected() -> (Endpoint, Endpoint, Connection, Connection) {
    let (alpha, beta) = two_paired();
    let (on_alpha, _) = alpha.listen();
    let (on_beta, beta_at) = beta.listen();
    let out = in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap();
    let inn = accept_peer(&on_beta).await;
    (on_alpha, on_beta, out, inn)
}

#[tokio::test]
async fn messages_arrive_whole_and_the_end_is_told() {
    let (_a, _b, out, inn) = connected().await;
    let mut send = out.open_uni().await.unwrap();
    for message in [&b""[..], b"one", &[7; 1000]] {
        write_message(&mut send, message, 1000).await.unwrap();
    }
    send.finish().unwrap();
    let mut receive = in_time(inn.accept_uni()).await.unwrap();
    for message in [&b""[..], b"one", &[7; 1000]] {
        assert_eq!(in_time(read_message(&mut receive, 1000)).await.unwrap().unwrap(), message);
    }
    assert!(read_message(&mut receive, 1000).await.unwrap().is_none());
}

#[tokio::test]
async fn a_message_above_the_cap_is_refused_before_it_is_read() {
    let (_a, _b, out, inn) = connected().await;
    let mut send = out.open_uni().await.unwrap();
    let error = write_message(&mut send, &[0; 101], 100).await.unwrap_err();
    assert!(matches!(error, MessageError::TooLong { length_bytes: 101, cap_bytes: 100 }), "{error}");
    // Only the length is ever sent: the answer must not wait for the rest.
    send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let mut receive = in_time(inn.accept_uni()).await.unwrap();
    let error = in_time(read_message(&mut receive, 100)).await.unwrap_err();
    assert!(matches!(error, MessageError::TooLong { length_bytes: 0xffff_ffff, cap_bytes: 100 }), "{error}");
}

#[tokio::test]
async fn a_cut_message_is_told_from_the_end() {
    let (_a, _b, out, inn) = connected().await;
    for sent in [&[3, 0][..], &[3, 0, 0, 0], &[3, 0, 0, 0, 1, 2]] {
        let mut send = out.open_uni().await.unwrap();
        send.write_all(sent).await.unwrap();
        send.finish().unwrap();
        let mut receive = in_time(inn.accept_uni()).await.unwrap();
        let error = in_time(read_message(&mut receive, 100)).await.unwrap_err();
        assert!(matches!(error, MessageError::Truncated), "{error}");
    }
}

#[tokio::test]
async fn bulk_data_arrives_and_is_counted() {
    let (_a, _b, out, inn) = connected().await;
    let sent = 32usize << 20;
    let receiver = tokio::spawn(async move {
        let mut receive = inn.accept_uni().await.unwrap();
        let mut bytes = 0;
        while let Some(chunk) = receive.read_chunk(1 << 20, true).await.unwrap() {
            bytes += chunk.bytes.len();
        }
        (bytes, inn.stats())
    });
    let mut send = out.open_uni().await.unwrap();
    let block = vec![0x5a; 1 << 20];
    for _ in 0..sent >> 20 {
        send.write_all(&block).await.unwrap();
    }
    send.finish().unwrap();
    let (received, stats) = in_time(receiver).await.unwrap();
    assert_eq!(received, sent);
    assert!(stats.received_bytes > sent as u64);
    // On the loopback, packets become larger than those of which the kernel takes ten at once, and the socket takes them. How
    // large exactly depends on which of those that look for it are lost.
    let stats = out.stats();
    assert!(stats.mtu_bytes > 6_550, "{stats:?}");
    assert!(stats.sent_packets < 2 * sent as u64 / u64::from(stats.mtu_bytes), "{stats:?}");
    assert!(out.stats().sent_bytes > sent as u64 && out.stats().sent_packets > 0);
    assert!(out.rtt() < Duration::from_secs(10));
}

/// Memory for what a peer sends is bounded by the windows, whatever the number of streams.
#[tokio::test]
async fn a_peer_cannot_send_more_than_the_windows_ahead() {
    let (_a, _b, out, inn) = connected().await;
    let options = EndpointOptions::default();
    let mut one = out.open_uni().await.unwrap();
    let block = vec![0; 64 << 10];
    let fill = async |stream: &mut SendStream| {
        let mut taken = 0u64;
        while let Ok(written) = tokio::time::timeout(SHORT, stream.write(&block)).await {
            taken += written.unwrap() as u64;
        }
        taken
    };
    // The send buffer of this side takes some more than goes out.
    let _ = fill(&mut one).await;
    for _ in 0..8 {
        let mut stream = out.open_uni().await.unwrap();
        let _ = fill(&mut stream).await;
    }
    let received = inn.stats().received_bytes;
    let bound = u64::from(options.receive_window_bytes);
    assert!(received > bound / 2, "{received}");
    assert!(received < bound + bound / 4, "{received}"); // headers, keep-alives and retransmissions
}

#[tokio::test]
async fn streams_are_limited() {
    let (alpha, beta) = two_paired();
    let (on_alpha, _) = alpha.listen();
    let options = EndpointOptions { max_bi_streams: 3, max_uni_streams: 2, ..beta.options() };
    let (on_beta, beta_at) = beta.listen_with(options);
    let out = in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap();
    let _inn = accept_peer(&on_beta).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(in_time(out.open_bi()).await.unwrap());
    }
    assert!(tokio::time::timeout(SHORT, out.open_bi()).await.is_err());
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(in_time(out.open_uni()).await.unwrap());
    }
    assert!(tokio::time::timeout(SHORT, out.open_uni()).await.is_err());
}

#[tokio::test]
async fn connections_are_limited_and_places_come_back() {
    let (alpha, beta) = two_paired();
    let (on_alpha, _) = alpha.listen();
    let options = EndpointOptions { max_connections: 1, ..beta.options() };
    let (on_beta, beta_at) = beta.listen_with(options);
    let first = in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap();
    let accepted = accept_peer(&on_beta).await;
    let error = in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap_err();
    assert!(matches!(error, ConnectError::Busy { .. }), "{error}");
    accepts_nobody(&on_beta).await;
    drop((first, accepted));
    in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap();
    accept_peer(&on_beta).await;
}

/// More than the number from which addresses must be proved first.
#[tokio::test]
async fn a_peer_may_open_several_connections_at_once() {
    let (alpha, beta) = two_paired();
    let (on_alpha, _) = alpha.listen();
    let (on_beta, beta_at) = beta.listen();
    let accepting = tokio::spawn(async move {
        let mut kept = Vec::new();
        for _ in 0..12 {
            kept.push(accept_peer(&on_beta).await);
        }
        (on_beta, kept)
    });
    let connects = || async { on_alpha.connect(beta_at, beta.key()).await.unwrap() };
    let kept = in_time(async {
        tokio::join!(
            connects(),
            connects(),
            connects(),
            connects(),
            connects(),
            connects(),
            connects(),
            connects(),
            connects(),
            connects(),
            connects(),
            connects()
        )
    })
    .await;
    in_time(accepting).await.unwrap();
    drop(kept);
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_noticed_within_the_idle_timeout_and_a_quiet_one_is_kept() {
    let (alpha, beta) = two_paired();
    let quick = |host: &Host| EndpointOptions {
        idle_timeout: Duration::from_millis(900),
        keep_alive: Duration::from_millis(200),
        ..host.options()
    };
    let (on_alpha, _) = alpha.listen_with(quick(&alpha));
    let (on_beta, beta_at) = beta.listen_with(quick(&beta));
    let out = in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap();
    let _inn = accept_peer(&on_beta).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(out.close_reason(), None);

    // A server that cannot answer any more: its runtime is gone with a thread of its own.
    let silent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (gamma, at) = runtime.block_on(async {
            let gamma = Host::new("gamma");
            gamma.pin(&alpha);
            let (endpoint, at) = gamma.listen_with(quick(&gamma));
            ((gamma, endpoint, alpha), at)
        });
        (runtime, gamma, at)
    });
    let (runtime, (gamma, endpoint, _alpha), at) = silent.join().unwrap();
    let key = gamma.key();
    let serving = std::thread::spawn(move || {
        let inn = runtime.block_on(accept_peer(&endpoint));
        (runtime, endpoint, inn) // nobody drives the runtime from here on
    });
    let out = in_time(on_alpha.connect(at, key)).await.unwrap();
    let _kept = tokio::task::spawn_blocking(|| serving.join().unwrap()).await.unwrap();
    let began = Instant::now();
    assert_eq!(in_time(out.closed()).await, ConnectionLost::TimedOut);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    std::mem::forget(_kept); // a runtime may not be dropped inside another
}
