//! What comes from this host and its operator: the configuration, the administration socket, tokens, and the files of
//! the transport.

use std::cell::OnceCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;

use afterimage_contract::admin::{At, MAX_REQUEST_LEN, Response, Server};
use afterimage_contract::config::Config;
use afterimage_contract::status::Status;
use afterimage_transport::{Fingerprint, IDENTITY_FILE, Identity, NodeName, PINS_FILE, PinStore, Token};
use tempfile::TempDir;

use super::mend;

/// The configuration file.
pub fn config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match Config::parse(text, "afterimage.toml") {
        Ok(_) => true,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// What a client sends to an administration socket, whole lines or not, over a real socket: the server answers every
/// line with one response and goes on with the next client.
pub fn admin_request(bytes: &[u8]) -> bool {
    // Answers to more than this could fill the socket's buffer before they are read.
    let bytes = bytes.get(..MAX_REQUEST_LEN.bytes() as usize + 1024).unwrap_or(bytes);
    let mut stream = UnixStream::connect(admin_socket()).expect("the server listens");
    // The server may hang up on what is too long.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut accepted = false;
    let mut answers = 0;
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(line) = line else { break };
        let response: Response = serde_json::from_slice(&line).expect("every answer is a response");
        answers += 1;
        accepted |= response.into_answer::<serde_json::Value>().is_ok();
    }
    assert!(answers <= bytes.iter().filter(|b| **b == b'\n').count() + 1, "more answers than lines");
    accepted
}

/// The socket of a server that runs as long as the process.
fn admin_socket() -> &'static PathBuf {
    static SOCKET: OnceLock<(PathBuf, TempDir)> = OnceLock::new();
    &SOCKET
        .get_or_init(|| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let path = dir.path().join("s");
            let (ready, wait) = std::sync::mpsc::channel();
            let socket = path.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    let server = Server::bind(socket).expect("the socket can be bound");
                    ready.send(()).expect("somebody waits");
                    server.run(|_| async { Response::done() }, std::future::pending()).await;
                });
            });
            wait.recv().expect("the server starts");
            (path, dir)
        })
        .0
}

/// What a daemon answers, as the operator's command reads it; and a point in time that it names.
pub fn admin_response(bytes: &[u8]) -> bool {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(at) = text.parse::<At>()
    {
        assert_eq!(at.to_string().parse(), Ok(at));
    }
    let Ok(response) = serde_json::from_slice::<Response>(bytes) else { return false };
    let _ = response.clone().into_answer::<afterimage_contract::admin::Promotion>();
    let _ = response.into_answer::<Status>();
    true
}

/// A pairing token as somebody pastes it, and the other texts that an operator copies: a fingerprint, a node's name.
pub fn pairing_token(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if let Ok(fingerprint) = text.parse::<Fingerprint>() {
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
    }
    if let Ok(name) = text.parse::<NodeName>() {
        assert_eq!(name.as_str(), text);
    }
    let Ok(token) = text.parse::<Token>() else { return false };
    assert_eq!(token.to_string().parse(), Ok(token));
    true
}

/// The file of pinned peers.
pub fn pins(bytes: &[u8]) -> bool {
    let load = |bytes: &[u8]| in_state_dir(PINS_FILE, bytes, |dir| PinStore::new(dir).load().is_ok());
    if let Some(mended) = mend::state_file(bytes) {
        load(&mended);
    }
    load(bytes)
}

/// The file with a host's own key and certificate. Damage is never answered with a new identity.
pub fn identity(bytes: &[u8]) -> bool {
    in_state_dir(IDENTITY_FILE, bytes, |dir| {
        let accepted = Identity::load_or_create(dir).is_ok();
        let kept = fs::read(dir.join(IDENTITY_FILE)).expect("the file is still there");
        assert!(kept == bytes, "the identity file was changed");
        accepted
    })
}

/// Calls `check` on a directory, one for each thread, where the file `name` holds `bytes` and only its owner may read it.
fn in_state_dir(name: &str, bytes: &[u8], check: impl FnOnce(&std::path::Path) -> bool) -> bool {
    thread_local!(static DIR: OnceCell<TempDir> = const { OnceCell::new() });
    DIR.with(|dir| {
        let dir = dir.get_or_init(|| tempfile::tempdir().expect("a temporary directory"));
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("the file can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode can be set");
        check(dir.path())
    })
}
