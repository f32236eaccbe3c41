//! Two hosts that come to trust each other through a token, and everybody who must not.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use afterimage_transport::*;
use common::*;

/// Joins, while the issuer's daemon answers the next pairing connection.
async fn pair(
    issuer: &Host,
    daemon: &Endpoint,
    joiner: &Host,
    token: &Token,
) -> (Result<Paired, JoinError>, Result<Paired, PairingError>) {
    let answered = async { accept_pairing(daemon).await.answer(&issuer.name).await };
    in_time(async { tokio::join!(joiner.joiner().join(token, None), answered) }).await
}

fn assert_nothing_pinned(hosts: &[&Host]) {
    for host in hosts {
        assert_eq!(host.pinned(), [], "{}", host.name);
    }
}

#[tokio::test]
async fn a_token_pairs_two_hosts_which_then_connect() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_beta, beta_at) = beta.listen();
    // The token travels as text.
    let token: Token = beta.offer(beta_at).to_string().parse().unwrap();
    let (joined, answered) = pair(&beta, &on_beta, &alpha, &token).await;
    let (joined, answered) = (joined.unwrap(), answered.unwrap());

    let expected_beta = PinnedPeer {
        name: beta.name.clone(),
        fingerprint: beta.key(),
        address: Some(beta_at.to_string()),
        paired_at_unix: NOW,
    };
    let expected_alpha = PinnedPeer {
        name: alpha.name.clone(),
        fingerprint: alpha.key(),
        address: Some("127.0.0.1:7789".to_owned()),
        paired_at_unix: NOW,
    };
    assert_eq!(joined, Paired { peer: expected_beta.clone(), replaced: vec![] });
    assert_eq!(answered, Paired { peer: expected_alpha.clone(), replaced: vec![] });
    assert_eq!(alpha.pinned(), [expected_beta]);
    assert_eq!(beta.pinned(), [expected_alpha]);
    assert!(!beta.dir.path().join(OFFER_FILE).exists());

    // The daemon that was running all along now knows the peer.
    let (on_alpha, _) = alpha.listen();
    in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap();
    assert_eq!(accept_peer(&on_beta).await.peer_fingerprint(), alpha.key());
}

#[tokio::test]
async fn pairing_again_replaces_a_lost_key_and_names_it() {
    let (alpha, beta) = two_paired();
    let renewed = Host::new("alpha");
    let (on_beta, beta_at) = beta.listen();
    let token = beta.offer(beta_at);
    let (joined, answered) = pair(&beta, &on_beta, &renewed, &token).await;
    joined.unwrap();
    assert_eq!(answered.unwrap().replaced[0].fingerprint, alpha.key());
    assert_eq!(beta.pinned().len(), 1);
    let (on_alpha, _) = alpha.listen();
    in_time(on_alpha.connect(beta_at, beta.key())).await.unwrap_err();
}

/// A token of an offer that a newer one replaced: right host, wrong secret.
#[tokio::test]
async fn a_wrong_secret_pins_nothing_on_either_side() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_beta, beta_at) = beta.listen();
    let wrong = beta.offer(beta_at);
    let right = beta.offer(beta_at);
    let (joined, answered) = pair(&beta, &on_beta, &alpha, &wrong).await;
    assert!(matches!(joined, Err(JoinError::WrongProof)), "{joined:?}");
    assert!(
        matches!(answered, Err(PairingError::WrongProof { joiner }) if joiner == alpha.key()),
        "{answered:?}"
    );
    assert_nothing_pinned(&[&alpha, &beta]);
    let (joined, answered) = pair(&beta, &on_beta, &alpha, &right).await;
    joined.unwrap();
    answered.unwrap();
}

#[tokio::test]
async fn an_offer_is_void_after_a_few_wrong_secrets_across_restarts() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let wrong = beta.offer("127.0.0.1:1".parse().unwrap());
    let right = beta.offer("127.0.0.1:1".parse().unwrap());
    for _ in 0..MAX_WRONG_PROOFS {
        let (on_beta, beta_at) = beta.listen();
        let at = beta_at.to_string();
        let answered = async { accept_pairing(&on_beta).await.answer(&beta.name).await };
        let (joined, answered) =
            in_time(async { tokio::join!(alpha.joiner().join(&wrong, Some(&at)), answered) }).await;
        assert!(matches!(joined, Err(JoinError::WrongProof)), "{joined:?}");
        assert!(answered.is_err());
    }
    let (on_beta, beta_at) = beta.listen();
    let joined = in_time(alpha.joiner().join(&right, Some(&beta_at.to_string()))).await;
    assert!(matches!(joined, Err(JoinError::NoOffer { expired: false })), "{joined:?}");
    accepts_nobody(&on_beta).await;
    assert_nothing_pinned(&[&alpha, &beta]);
}

#[tokio::test]
async fn an_expired_token_is_refused_and_named_so() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let late = NOW + OFFER_LIFETIME_SECS;
    let options = EndpointOptions { clock: UnixClock::from_fn(move || late), ..beta.options() };
    let (on_beta, beta_at) = beta.listen_with(options);
    let token = beta.offer(beta_at);
    let joined = in_time(Joiner { now_unix: late, ..alpha.joiner() }.join(&token, None)).await;
    assert!(matches!(joined, Err(JoinError::NoOffer { expired: true })), "{joined:?}");
    assert!(joined.unwrap_err().to_string().contains("it has, by this host's clock"));
    accepts_nobody(&on_beta).await;
    assert_nothing_pinned(&[&alpha, &beta]);
}

/// The offer is open when the handshake asks, and not any more when the handshake is done.
#[tokio::test]
async fn an_offer_that_ends_during_the_handshake_is_not_handed_to_the_application() {
    let log = Log::capture();
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let asked = Arc::new(AtomicU64::new(0));
    let clock = {
        let asked = asked.clone();
        UnixClock::from_fn(move || NOW + asked.fetch_add(1, Ordering::SeqCst) * OFFER_LIFETIME_SECS)
    };
    let (on_beta, beta_at) = beta.listen_with(EndpointOptions { clock, ..beta.options() });
    let token = beta.offer(beta_at);
    let joined = in_time(alpha.joiner().join(&token, None)).await;
    assert!(matches!(joined, Err(JoinError::NoOffer { .. })), "{joined:?}");
    accepts_nobody(&on_beta).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    log.line_with(&["no open pairing offer", &alpha.key().to_string()]).await;
}

/// The offer ends while the joiner is let in but has not spoken yet.
#[tokio::test]
async fn an_offer_that_ends_during_the_exchange_pins_nothing() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_beta, beta_at) = beta.listen();
    let token = beta.offer(beta_at);
    let answered = async {
        let connection = accept_pairing(&on_beta).await;
        std::fs::remove_file(beta.dir.path().join(OFFER_FILE)).unwrap();
        connection.answer(&beta.name).await
    };
    let (joined, answered) =
        in_time(async { tokio::join!(alpha.joiner().join(&token, None), answered) }).await;
    assert!(matches!(joined, Err(JoinError::NoOffer { .. })), "{joined:?}");
    assert!(matches!(answered, Err(PairingError::NoOffer { .. })), "{answered:?}");
    assert_nothing_pinned(&[&alpha, &beta]);
}

#[tokio::test]
async fn a_used_token_is_refused_to_everybody_across_restarts() {
    let (alpha, beta, gamma) = (Host::new("alpha"), Host::new("beta"), Host::new("gamma"));
    let (on_beta, beta_at) = beta.listen();
    let token = beta.offer(beta_at);
    let (joined, _) = pair(&beta, &on_beta, &alpha, &token).await;
    joined.unwrap();
    drop(on_beta);
    let (on_beta, beta_at) = beta.listen();
    for host in [&gamma, &alpha] {
        let joined = in_time(host.joiner().join(&token, Some(&beta_at.to_string()))).await;
        assert!(matches!(joined, Err(JoinError::NoOffer { expired: false })), "{joined:?}");
    }
    accepts_nobody(&on_beta).await;
    assert_nothing_pinned(&[&gamma]);
    assert_eq!(beta.pinned().len(), 1);
}

#[tokio::test]
async fn without_an_offer_or_a_state_directory_nobody_pairs() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let deaf = EndpointOptions { pairing_state_dir: None, ..beta.options() };
    let (on_beta, beta_at) = beta.listen_with(deaf);
    let token = beta.offer(beta_at);
    let joined = in_time(alpha.joiner().join(&token, None)).await;
    assert!(matches!(joined, Err(JoinError::NoOffer { .. })), "{joined:?}");
    accepts_nobody(&on_beta).await;
}

#[tokio::test]
async fn a_man_in_the_middle_with_another_certificate_is_refused_by_the_joiner() {
    let (alpha, beta, mallory) = (Host::new("alpha"), Host::new("beta"), Host::new("beta"));
    let (on_mallory, mallory_at) = mallory.listen();
    mallory.offer(mallory_at);
    let token = beta.offer(mallory_at); // who answers at the address is not who made the token
    let joined = in_time(alpha.joiner().join(&token, None)).await;
    let Err(JoinError::Connect(ConnectError::WrongKey { expected, seen, .. })) = joined else {
        panic!("{joined:?}");
    };
    assert_eq!((expected, seen), (beta.key(), mallory.key()));
    accepts_nobody(&on_mallory).await;
    assert_nothing_pinned(&[&alpha, &mallory]);
}

/// Holds the key of the token, and answers without knowing the secret.
#[tokio::test]
async fn an_issuer_that_does_not_know_the_secret_is_not_pinned() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (server, server_at) = raw_server(beta.certified_key(), ALPN_PAIRING);
    let token = beta.offer(server_at);
    let proofs = ["\"\"".to_owned(), format!("\"{}\"", "00".repeat(32)), "null".to_owned()];
    tokio::spawn(async move {
        let mut kept = Vec::new();
        for proof in proofs.iter().cloned().chain([String::new()]) {
            let connection = server.accept().await.unwrap().await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            let claim = read_message(&mut receive, 4096).await.unwrap().unwrap();
            let grant = if proof.is_empty() {
                claim.to_vec() // the joiner's own proof, sent back
            } else {
                format!("{{\"name\":\"beta\",\"proof\":{proof}}}").into_bytes()
            };
            write_message(&mut send, &grant, 4096).await.unwrap();
            kept.push((connection, send, receive));
        }
        std::future::pending::<()>().await;
    });
    for round in 0..4 {
        let joiner = Joiner { listens_at: None, ..alpha.joiner() };
        let joined = in_time(joiner.join(&token, None)).await;
        match joined {
            Err(JoinError::IssuerUnproved) if round < 2 => {}
            Err(JoinError::BadMessage(_)) if round >= 2 => {}
            other => panic!("round {round}: {other:?}"),
        }
    }
    assert_nothing_pinned(&[&alpha]);
}

/// A proof is for one TLS session: overheard by a host that has the issuer's key, it opens nothing elsewhere.
#[tokio::test]
async fn a_proof_from_another_session_is_wrong() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (server, server_at) = raw_server(beta.certified_key(), ALPN_PAIRING);
    let (on_beta, beta_at) = beta.listen();
    let token = beta.offer(server_at);
    let overheard = async {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (_send, mut receive) = connection.accept_bi().await.unwrap();
        read_message(&mut receive, 4096).await.unwrap().unwrap()
    };
    let (joined, claim) = in_time(async { tokio::join!(alpha.joiner().join(&token, None), overheard) }).await;
    assert!(joined.is_err(), "{joined:?}");

    let client = raw_client(Some(alpha.certified_key()), &[ALPN_PAIRING]);
    let connection = client.connect(beta_at, "afterimage").unwrap().await.unwrap();
    let (mut send, _receive) = in_time(connection.open_bi()).await.unwrap();
    write_message(&mut send, &claim, 4096).await.unwrap();
    let answered = in_time(accept_pairing(&on_beta).await.answer(&beta.name)).await;
    assert!(matches!(answered, Err(PairingError::WrongProof { .. })), "{answered:?}");
    assert_nothing_pinned(&[&beta]);
}

/// A joiner that proves the secret but goes before it has pinned the issuer leaves nothing behind but the claim.
#[tokio::test]
async fn a_pairing_that_breaks_off_can_be_taken_up_by_the_same_host_only() {
    let (alpha, beta, gamma) = (Host::new("alpha"), Host::new("beta"), Host::new("gamma"));
    let (on_beta, beta_at) = beta.listen();
    let token = beta.offer(beta_at);
    // A pin file that cannot be changed: the joiner gives up between the proofs and its pin.
    std::fs::write(alpha.dir.path().join(PINS_FILE), b"garbage").unwrap();
    let (joined, answered) = pair(&beta, &on_beta, &alpha, &token).await;
    assert!(matches!(joined, Err(JoinError::Pin(_))), "{joined:?}");
    assert!(answered.is_err(), "{answered:?}");
    assert_nothing_pinned(&[&beta]);

    let joined = in_time(gamma.joiner().join(&token, None)).await;
    assert!(matches!(joined, Err(JoinError::NoOffer { .. })), "{joined:?}");
    std::fs::remove_file(alpha.dir.path().join(PINS_FILE)).unwrap();
    let (joined, answered) = pair(&beta, &on_beta, &alpha, &token).await;
    joined.unwrap();
    answered.unwrap();
}

/// The issuer cannot pin: the joiner, which has, is told that this is not confirmed.
#[tokio::test]
async fn a_pairing_that_the_issuer_cannot_finish_is_reported_as_unconfirmed() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_beta, beta_at) = beta.listen();
    let token = beta.offer(beta_at);
    std::fs::write(beta.dir.path().join(PINS_FILE), b"garbage").unwrap();
    let (joined, answered) = pair(&beta, &on_beta, &alpha, &token).await;
    assert!(matches!(joined, Err(JoinError::Unconfirmed { .. })), "{joined:?}");
    assert!(matches!(answered, Err(PairingError::Pin(_))), "{answered:?}");
    assert!(beta.dir.path().join(OFFER_FILE).exists(), "the token is still good");
    std::fs::remove_file(beta.dir.path().join(PINS_FILE)).unwrap();
    let (joined, _) = pair(&beta, &on_beta, &alpha, &token).await;
    joined.unwrap();
    assert_eq!((alpha.pinned().len(), beta.pinned().len()), (1, 1));
}

/// The joiner is held up at its pin, by the lock of its state directory, until the issuer has changed its mind.
#[tokio::test]
async fn an_offer_that_is_replaced_during_the_exchange_pins_nothing_and_the_new_one_stays() {
    let (alpha, beta, gamma) = (Host::new("alpha"), Host::new("beta"), Host::new("gamma"));
    let (on_beta, beta_at) = beta.listen();
    let token = beta.offer(beta_at);
    let lock = std::fs::File::open(alpha.dir.path().join("transport.lock")).unwrap();
    lock.lock().unwrap();
    let replaced = async {
        let offer = beta.dir.path().join(OFFER_FILE);
        while !std::fs::read_to_string(&offer).unwrap().contains(&alpha.key().to_string()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let new = beta.offer(beta_at);
        lock.unlock().unwrap();
        new
    };
    let ((joined, answered), new) =
        in_time(async { tokio::join!(pair(&beta, &on_beta, &alpha, &token), replaced) }).await;
    assert!(matches!(joined, Err(JoinError::Unconfirmed { .. })), "{joined:?}");
    assert!(matches!(answered, Err(PairingError::NoOffer { .. })), "{answered:?}");
    assert_nothing_pinned(&[&beta]);
    let (joined, _) = pair(&beta, &on_beta, &gamma, &new).await;
    joined.unwrap();
}

/// The exchange as it is documented, by other means: an issuer that proves the secret but does not confirm.
#[tokio::test]
async fn a_joiner_does_not_take_another_word_for_the_confirmation() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (server, server_at) = raw_server(beta.certified_key(), ALPN_PAIRING);
    let token = beta.offer(server_at);
    let text = token.to_string();
    let bytes = data_encoding::BASE32_NOPAD.decode(&text.as_bytes()[4..]).unwrap();
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &bytes[32..48]);
    let issuer = async {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        read_message(&mut receive, 4096).await.unwrap().unwrap();
        let mut binding = [0; 32];
        connection.export_keying_material(&mut binding, b"EXPORTER-afterimage-pair-1", &[]).unwrap();
        let mut transcript = Vec::new();
        let (issuer, joiner) = (beta.key(), alpha.key());
        for part in [
            &b"afterimage-pair/1 issuer"[..],
            issuer.as_bytes(),
            joiner.as_bytes(),
            &binding,
            b"beta",
            b"alpha",
        ] {
            transcript.extend_from_slice(&(part.len() as u64).to_le_bytes());
            transcript.extend_from_slice(part);
        }
        let proof = data_encoding::HEXLOWER.encode(ring::hmac::sign(&secret, &transcript).as_ref());
        let grant = format!("{{\"name\":\"beta\",\"proof\":\"{proof}\"}}");
        write_message(&mut send, grant.as_bytes(), 4096).await.unwrap();
        assert_eq!(read_message(&mut receive, 4096).await.unwrap().unwrap(), &b"pinned"[..]);
        write_message(&mut send, b"maybe", 4096).await.unwrap();
        connection.closed().await
    };
    let (joined, _) = in_time(async { tokio::join!(alpha.joiner().join(&token, None), issuer) }).await;
    assert!(matches!(joined, Err(JoinError::Unconfirmed { .. })), "{joined:?}");
    assert_eq!(alpha.pinned()[0].fingerprint, beta.key());
}

#[tokio::test]
async fn hosts_of_one_name_and_a_hosts_own_token_are_refused() {
    let (alpha, beta) = (Host::new("same"), Host::new("same"));
    let (on_beta, beta_at) = beta.listen();
    let token = beta.offer(beta_at);
    let (joined, answered) = pair(&beta, &on_beta, &alpha, &token).await;
    assert!(joined.is_err(), "{joined:?}");
    assert!(matches!(answered, Err(PairingError::SameName(_))), "{answered:?}");
    let joined = in_time(beta.joiner().join(&token, None)).await;
    assert!(matches!(joined, Err(JoinError::OwnToken)), "{joined:?}");
    assert_nothing_pinned(&[&alpha, &beta]);
}

/// A stranger who was let in to pair, while an offer is open.
async fn stranger(beta: &Host, on_beta: &Endpoint, alpha: &Host) -> (quinn::Connection, PairingConnection) {
    let client = raw_client(Some(alpha.certified_key()), &[ALPN_PAIRING]);
    let address = on_beta.local_address().unwrap();
    beta.offer(address);
    let connection = client.connect(address, "afterimage").unwrap().await.unwrap();
    (connection, accept_pairing(on_beta).await)
}

#[tokio::test]
async fn a_pairing_connection_has_one_stream_and_nothing_else() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_beta, _) = beta.listen();
    let (connection, pairing) = stranger(&beta, &on_beta, &alpha).await;
    assert_eq!(pairing.joiner(), alpha.key());
    let _one = in_time(connection.open_bi()).await.unwrap();
    assert!(tokio::time::timeout(SHORT, connection.open_bi()).await.is_err(), "a second stream was allowed");
    assert!(tokio::time::timeout(SHORT, connection.open_uni()).await.is_err(), "a second stream was allowed");
    assert!(connection.max_datagram_size().is_none(), "datagrams were allowed");
}

#[tokio::test]
async fn a_stranger_cannot_send_more_than_a_small_window() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_beta, _) = beta.listen();
    let (connection, _pairing) = stranger(&beta, &on_beta, &alpha).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let flood = tokio::spawn(async move { send.write_all(&vec![0; 4 << 20]).await });
    tokio::time::sleep(SHORT).await;
    assert!(connection.stats().udp_tx.bytes < 64 << 10, "{}", connection.stats().udp_tx.bytes);
    flood.abort();
}

#[tokio::test]
async fn bad_claims_are_refused_and_do_not_cost_the_offer() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_beta, _) = beta.listen();
    let message = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    for bytes in [
        vec![],
        vec![1],
        u32::MAX.to_le_bytes().to_vec(),
        message(""),
        message("{}"),
        message(&"[".repeat(2000)),
        message(r#"{"name":"a b","address":null,"proof":"00"}"#),
        message(r#"{"name":"a","address":"x y:1","proof":"00"}"#),
        message(r#"{"name":"a","address":null,"proof":"00","more":1}"#),
    ] {
        let (connection, pairing) = stranger(&beta, &on_beta, &alpha).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        // Nothing at all tells the other side of no stream: at least the header.
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
        let answered = in_time(pairing.answer(&beta.name)).await;
        assert!(matches!(answered, Err(PairingError::BadMessage(_))), "{bytes:?}: {answered:?}");
    }
    let token = beta.offer(on_beta.local_address().unwrap());
    let (joined, _) = pair(&beta, &on_beta, &alpha, &token).await;
    joined.unwrap();
}

#[tokio::test]
async fn a_few_pairings_at_a_time() {
    let (alpha, beta) = (Host::new("alpha"), Host::new("beta"));
    let (on_beta, beta_at) = beta.listen();
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.push(stranger(&beta, &on_beta, &alpha).await);
    }
    let client = raw_client(Some(alpha.certified_key()), &[ALPN_PAIRING]);
    match turned_away(&client, beta_at).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), u64::from(CloseCode::BUSY.0));
        }
        other => panic!("{other}"),
    }
    kept.pop();
    stranger(&beta, &on_beta, &alpha).await;
}
