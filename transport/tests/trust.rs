//! G8: nobody without the pinned key gets a byte in or out.

mod common;

use afterimage_transport::*;
use common::*;
use rustls::sign::CertifiedKey;
use std::time::Duration;

#[tokio::test]
async fn pinned_peers_talk_in_both_directions() {
    let (alpha, beta) = two_paired();
    let (on_alpha, alpha_at) = alpha.listen();
    let (on_beta, beta_at) = beta.listen();
    for (here, there, to, key, own) in [
        (&on_alpha, &on_beta, beta_at, beta.key(), alpha.key()),
        (&on_beta, &on_alpha, alpha_at, alpha.key(), beta.key()),
    ] {
        let (out, inn) = tokio::join!(in_time(here.connect(to, key)), accept_peer(there));
        let out = out.unwrap();
        assert_eq!((out.peer_fingerprint(), inn.peer_fingerprint()), (key, own));
        assert_eq!(out.remote_address(), to);

        let (mut send, mut receive) = out.open_bi().await.unwrap();
        send.write_all(b"there").await.unwrap();
        let (mut back, mut got) = in_time(inn.accept_bi()).await.unwrap();
        let mut buffer = [0; 5];
        got.read_exact(&mut buffer).await.unwrap();
        back.write_all(&buffer).await.unwrap();
        receive.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"there");

        // The first stream that the application sees is its own, not the transport's.
        let mut send = inn.open_uni().await.unwrap();
        send.write_all(b"back").await.unwrap();
        send.finish().unwrap();
        let mut receive = in_time(out.accept_uni()).await.unwrap();
        assert_eq!(receive.read_to_end(100).await.unwrap(), b"back");

        out.close(CloseCode(300), "enough\x1b[2J");
        let expected =
            ConnectionLost::ClosedByPeer { code: CloseCode(300), text: "enough\\x1b[2J".to_owned() };
        assert_eq!(in_time(inn.closed()).await, expected);
        assert_eq!(out.close_reason(), Some(ConnectionLost::ClosedHere));
    }
    assert_eq!(on_alpha.refused_connections() + on_beta.refused_connections(), 0);
}

#[tokio::test]
async fn an_unpinned_client_is_refused_unseen_and_logged_with_its_key() {
    let log = Log::capture();
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    alpha.pin(&beta); // one way only
    let (on_beta, beta_at) = beta.listen();
    let (on_alpha, _) = alpha.listen();
    for offered in [false, true] {
        if offered {
            beta.offer(beta_at); // lets strangers pair, and nothing else
        }
        let error = in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { own, .. } if own == alpha.key()), "{error}");
        assert!(error.to_string().contains(&alpha.key().to_string()), "{error}");
        accepts_nobody(&on_beta).await;
        log.line_with(&["WARN", "not pinned", &alpha.key().to_string(), "127.0.0.1:"]).await;
    }
    assert_eq!(on_beta.refused_connections(), 2);
}

#[tokio::test]
async fn an_unpinned_client_is_refused_during_the_handshake() {
    let log = Log::capture();
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_beta, beta_at) = beta.listen();
    for (key, alert) in [(Some(alpha.certified_key()), 49), (None, 116)] {
        let client = raw_client(key, &[ALPN_PEER]);
        match turned_away(&client, beta_at).await {
            quinn::ConnectionError::ConnectionClosed(close) => {
                assert_eq!(close.error_code, quinn::TransportErrorCode::crypto(alert), "{close}");
            }
            other => panic!("{other}"),
        }
    }
    log.line_with(&["not pinned", &alpha.key().to_string()]).await;
    log.line_with(&["no certificate", "key=\"none\""]).await;
    assert_eq!(on_beta.refused_connections(), 2);
}

#[tokio::test]
async fn an_unpinned_server_is_refused_with_both_keys_named() {
    let log = Log::capture();
    let (alpha, beta) = two_paired();
    let impostor = Host::new("beta");
    impostor.pin(&alpha);
    let (on_impostor, impostor_at) = impostor.listen();
    let (on_alpha, _) = alpha.listen();
    let error = in_time(on_alpha.connect(impostor_at, beta.key())).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ConnectError::WrongKey { .. }), "{text}");
    assert!(text.contains(&beta.key().to_string()) && text.contains(&impostor.key().to_string()), "{text}");
    accepts_nobody(&on_impostor).await;
    // The other end sees why nothing comes.
    log.line_with(&["does not trust the key of this host"]).await;
}

#[tokio::test]
async fn a_replaced_key_is_refused_with_both_keys_in_the_log() {
    let log = Log::capture();
    let (alpha, beta) = two_paired();
    let (on_beta, beta_at) = beta.listen();
    let old = alpha.key();
    std::fs::remove_file(alpha.dir.path().join(IDENTITY_FILE)).unwrap();
    let alpha = Host { identity: Identity::load_or_create(alpha.dir.path()).unwrap(), ..alpha };
    let (on_alpha, _) = alpha.listen();
    let error = in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    accepts_nobody(&on_beta).await;
    log.line_with(&["not pinned", &alpha.key().to_string(), &format!("alpha={old}")]).await;
}

/// The certificate of one, which is public, with the key of another.
fn stolen(certificate_of: &Host, key_of: &Host) -> CertifiedKey {
    CertifiedKey::new(certificate_of.certified_key().cert, key_of.certified_key().key)
}

#[tokio::test]
async fn a_client_with_the_peers_certificate_but_not_its_key_is_refused() {
    let log = Log::capture();
    let (alpha, beta) = two_paired();
    let (on_beta, beta_at) = beta.listen();
    let thief = Host::new("thief");
    let client = raw_client(Some(stolen(&alpha, &thief)), &[ALPN_PEER]);
    turned_away(&client, beta_at).await;
    accepts_nobody(&on_beta).await;
    log.line_with(&["did not prove", &alpha.key().to_string()]).await;
    // The very same client with the key gets in: it is the signature that counts.
    let client = raw_client(Some(alpha.certified_key()), &[ALPN_PEER]);
    let _connection = client.connect(beta_at, "afterimage").unwrap().await.unwrap();
    assert_eq!(accept_peer(&on_beta).await.peer_fingerprint(), alpha.key());
}

#[tokio::test]
async fn a_server_with_the_peers_certificate_but_not_its_key_is_refused() {
    let (alpha, beta) = two_paired();
    let (server, server_at) = raw_server(stolen(&beta, &Host::new("thief")), ALPN_PEER);
    serve(server);
    let (on_alpha, _) = alpha.listen();
    let error = in_time(on_alpha.connect(server_at, beta.key())).await.unwrap_err();
    assert!(matches!(error, ConnectError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn an_unknown_protocol_is_refused_by_name_on_both_sides() {
    let log = Log::capture();
    let (alpha, beta) = two_paired();
    let (on_beta, beta_at) = beta.listen();
    let client = raw_client(Some(alpha.certified_key()), &[b"afterimage/99", b"h3\x1b"]);
    match turned_away(&client, beta_at).await {
        quinn::ConnectionError::ConnectionClosed(close) => {
            assert_eq!(close.error_code, quinn::TransportErrorCode::crypto(120), "{close}");
        }
        other => panic!("{other}"),
    }
    accepts_nobody(&on_beta).await;
    log.line_with(&["protocol that is not spoken", "afterimage/99 h3\\"]).await;
    assert_eq!(on_beta.refused_connections(), 1);

    let (server, server_at) = raw_server(beta.certified_key(), b"afterimage/99");
    serve(server);
    let (on_alpha, _) = alpha.listen();
    let error = in_time(on_alpha.connect(server_at, beta.key())).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoCommonProtocol { .. }), "{error}");
    assert!(error.to_string().contains("afterimage/3"), "{error}");
}

#[tokio::test]
async fn a_client_without_a_protocol_is_refused() {
    let (alpha, beta) = two_paired();
    let (on_beta, beta_at) = beta.listen();
    turned_away(&raw_client(Some(alpha.certified_key()), &[]), beta_at).await;
    accepts_nobody(&on_beta).await;
}

#[tokio::test]
async fn pins_count_as_they_are_when_a_connection_is_made() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_alpha, _) = alpha.listen();
    let (on_beta, beta_at) = beta.listen();
    for _ in 0..2 {
        assert!(in_time(on_alpha.connect(beta_at, beta.key())).await.is_err());
        beta.pin(&alpha);
        let connected = in_time(on_alpha.connect(beta_at, beta.key())).await;
        assert!(connected.is_ok(), "{connected:?}");
        accept_peer(&on_beta).await;
        PinStore::new(beta.dir.path()).unpin(&alpha.name).unwrap();
    }
}

#[tokio::test]
async fn a_resumed_session_does_not_get_around_the_pins() {
    let (alpha, beta) = two_paired();
    let (on_beta, beta_at) = beta.listen();
    let client = raw_client(Some(alpha.certified_key()), &[ALPN_PEER]);
    let connection = client.connect(beta_at, "afterimage").unwrap().await.unwrap();
    accept_peer(&on_beta).await;
    tokio::time::sleep(SHORT).await; // for tickets to arrive, if there are any
    connection.close(0u32.into(), b"");
    PinStore::new(beta.dir.path()).unpin(&alpha.name).unwrap();
    // Refused in the handshake: the certificate was looked at again.
    match turned_away(&client, beta_at).await {
        quinn::ConnectionError::ConnectionClosed(close) => {
            assert_eq!(close.error_code, quinn::TransportErrorCode::crypto(49), "{close}");
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn pins_that_cannot_be_read_let_nobody_in_and_say_so() {
    let log = Log::capture();
    let (alpha, beta) = two_paired();
    let (on_alpha, _) = alpha.listen();
    let (on_beta, beta_at) = beta.listen();
    std::fs::write(beta.dir.path().join(PINS_FILE), b"garbage").unwrap();
    assert!(in_time(on_alpha.connect(beta_at, beta.key())).await.is_err());
    accepts_nobody(&on_beta).await;
    log.line_with(&["ERROR", "peers.json is damaged"]).await;
}

/// A client that allows no stream towards itself never gets its welcome, and so stays in between.
#[tokio::test]
async fn no_stream_is_allowed_before_the_welcome() {
    let (alpha, beta) = two_paired();
    let options = EndpointOptions { handshake_timeout: Duration::from_secs(2), ..beta.options() };
    let (on_beta, beta_at) = beta.listen_with(options);
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_uni_streams(0u32.into());
    let client = raw_client_with(Some(alpha.certified_key()), &[ALPN_PEER], transport);
    let connection = client.connect(beta_at, "afterimage").unwrap().await.unwrap();
    assert!(tokio::time::timeout(SHORT, connection.open_bi()).await.is_err(), "a stream was allowed");
    assert!(tokio::time::timeout(SHORT, connection.open_uni()).await.is_err(), "a stream was allowed");
    accepts_nobody(&on_beta).await;
    in_time(connection.closed()).await; // and not for ever
}

#[tokio::test]
async fn a_server_that_does_not_say_welcome_is_not_trusted_to_have_let_us_in() {
    let (alpha, beta) = two_paired();
    let (server, server_at) = raw_server(beta.certified_key(), ALPN_PEER);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        for words in [&b"welcome\n and more"[..], b"go away\n", b""] {
            let connection = server.accept().await.unwrap().await.unwrap();
            let mut stream = connection.open_uni().await.unwrap();
            stream.write_all(words).await.unwrap();
            let _ = stream.finish();
            kept.push(connection);
        }
        kept.push(server.accept().await.unwrap().await.unwrap());
        std::future::pending::<()>().await;
    });
    let options = EndpointOptions { handshake_timeout: Duration::from_secs(1), ..alpha.options() };
    let (on_alpha, _) = alpha.listen_with(options);
    for _ in 0..3 {
        let error = in_time(on_alpha.connect(server_at, beta.key())).await.unwrap_err();
        assert!(matches!(error, ConnectError::Lost { .. }), "{error}");
    }
    let error = in_time(on_alpha.connect(server_at, beta.key())).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoAnswer { .. }), "{error}");
}

#[tokio::test]
async fn nobody_there_is_told_after_the_handshake_timeout() {
    let (alpha, beta) = two_paired();
    let options = EndpointOptions { handshake_timeout: Duration::from_millis(500), ..alpha.options() };
    let (on_alpha, _) = alpha.listen_with(options);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = in_time(on_alpha.connect(silent.local_addr().unwrap(), beta.key())).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoAnswer { .. }), "{error}");
}

/// `[::]` is the default address to listen on, and peers may have IPv4 only.
#[tokio::test]
async fn the_ipv6_wildcard_takes_ipv4_and_shows_it_so() {
    let (alpha, beta) = two_paired();
    let pins = std::sync::Arc::new(Pins::open(beta.dir.path()).unwrap());
    let any = "[::]:0".parse().unwrap();
    let on_beta = match Endpoint::bind(any, &beta.identity, pins, beta.options()) {
        Ok(endpoint) => endpoint,
        Err(error) if std::net::UdpSocket::bind(any).is_err() => return eprintln!("no IPv6 here: {error}"),
        Err(error) => panic!("{error}"),
    };
    let (on_alpha, _) = alpha.listen();
    let beta_at = ([127, 0, 0, 1], on_beta.local_address().unwrap().port()).into();
    in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap();
    let inn = accept_peer(&on_beta).await;
    assert_eq!(inn.remote_address(), on_alpha.local_address().unwrap());
}

#[tokio::test]
async fn a_flood_of_strangers_does_not_fill_the_log() {
    let log = Log::capture();
    let (alpha, beta) = two_paired();
    let (on_beta, beta_at) = beta.listen();
    let client = raw_client(Some(Host::new("stranger").certified_key()), &[ALPN_PEER]);
    for _ in 0..50 {
        turned_away(&client, beta_at).await;
    }
    while on_beta.refused_connections() < 50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(log.text().lines().count(), 10);
    let (on_alpha, _) = alpha.listen();
    in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap();
}

#[tokio::test]
async fn random_datagrams_do_no_harm() {
    let (alpha, beta) = two_paired();
    let (on_beta, beta_at) = beta.listen();
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..2000u32 {
        let mut datagram = vec![0; 1 + (round as usize * 7) % 1472];
        for byte in &mut datagram {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        if round % 2 == 0 && datagram.len() > 20 {
            // Looks like the first packet of a QUIC version 1 connection.
            datagram[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            datagram[14] = 0;
        }
        let _ = socket.send_to(&datagram, beta_at).await;
        if round % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let (on_alpha, _) = alpha.listen();
    let connected = in_time(on_alpha.connect(beta_at, beta.key())).await;
    assert!(connected.is_ok(), "{connected:?}");
    accept_peer(&on_beta).await;
}
