use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::*;

/// A running server and the directory of its socket.
struct Running {
    path: PathBuf,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

async fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let server = Server::bind(&path).unwrap();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(server.run(answer, async {
        let _ = stopped.await;
    }));
    Running { path, stop, task, _dir: dir }
}

async fn answer(request: Request) -> Response {
    match request {
        Request::Ping => Response::done(),
        Request::Activate { group } => {
            Response::ok(&Activation { group, serving: true, exports: vec!["/run/x.sock".into()] })
        }
        Request::PauseStream { .. } => std::future::pending().await,
        Request::Verify { .. } | Request::Verification { .. } | Request::CancelVerification { .. } => {
            Response::ok(&None::<crate::status::VerificationStatus>)
        }
        Request::ResumeStream { .. } => panic!("as asked"),
        Request::Promote { group, .. }
        | Request::RollBack { group, .. }
        | Request::Follow { group }
        | Request::Switchover { group, .. }
        | Request::Resize { group, .. }
        | Request::Reinstate { group, .. }
        | Request::Divergence { group }
        | Request::KeepLocal { group } => Response::unknown_group(&group),
        Request::Reload => {
            Response::ok(&Reloaded { applied: vec!["log.level".into()], restart: vec![], warnings: vec![] })
        }
        Request::Status => Response::ok(&"x".repeat(MAX_RESPONSE_LEN.bytes() as usize)),
    }
}

fn activate() -> Request {
    Request::Activate { group: "orders".into() }
}

/// Sends bytes and returns everything that comes back until the end.
async fn raw(path: &PathBuf, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // The server may have closed already: what it said counts.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[test]
fn messages_have_the_documented_shape() {
    for (request, json) in [
        (Request::Status, r#""status""#),
        (Request::Reload, r#""reload""#),
        (activate(), r#"{"activate":{"group":"orders"}}"#),
        (
            Request::Promote { group: "o".into(), dry_run: true, at: None, force: false },
            r#"{"promote":{"group":"o","dry_run":true,"at":null,"force":false}}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&request).unwrap(), json);
        assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
    }
    for (response, json) in [
        (Response::done(), r#"{"version":1,"ok":null}"#),
        (Response::ok(&1), r#"{"version":1,"ok":1}"#),
        (
            Response::error(ErrorCode::Refused, "m", "a"),
            r#"{"version":1,"error":{"code":"refused","message":"m","action":"a"}}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&response).unwrap(), json);
        assert_eq!(serde_json::from_str::<Response>(json).unwrap(), response);
    }
    let newer =
        r#"{"version":2,"took_us":5,"error":{"code":"shy","message":"m","action":"a","more":[]},"x":{}}"#;
    let newer: Response = serde_json::from_str(newer).unwrap();
    assert!(matches!(newer.outcome, Outcome::Error(Failure { code: ErrorCode::Unrecognized, .. })));
    assert!(serde_json::from_str::<Response>(r#"{"version":1}"#).is_err());
    assert!(serde_json::from_str::<Request>(r#"{"promote":{"group":"o","dryrun":true}}"#).is_err());
}

#[tokio::test]
async fn a_request_gets_its_answer() {
    let server = start().await;
    let answer: Activation = call(&server.path, &activate()).await.unwrap().into_answer().unwrap();
    assert_eq!((answer.group.as_str(), answer.serving), ("orders", true));
    call(&server.path, &Request::Ping).await.unwrap().into_answer::<()>().unwrap();

    let promote = Request::Promote { group: "x".into(), dry_run: false, at: None, force: false };
    let refused = call(&server.path, &promote).await.unwrap().into_answer::<Promotion>().unwrap_err();
    assert!(
        matches!(refused, AdminError::Failed(Failure { code: ErrorCode::UnknownGroup, .. })),
        "{refused}"
    );
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_server() {
    let server = start().await;
    let mode = std::fs::metadata(&server.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.stop.send(()).unwrap();
    server.task.await.unwrap();
    assert!(!server.path.exists());
    assert_eq!(std::fs::read_dir(server.path.parent().unwrap()).unwrap().count(), 0);
}

#[tokio::test]
async fn only_a_stale_socket_is_replaced() {
    let server = start().await;
    assert_eq!(Server::bind(&server.path).unwrap_err().kind(), ErrorKind::AddrInUse);
    call(&server.path, &Request::Ping).await.unwrap();

    let stale = server.path.with_file_name("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    drop(Server::bind(&stale).unwrap());

    let file = server.path.with_file_name("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(Server::bind(&file).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (socket, unit) in [("agent.sock", "afterimage-agent"), ("receiver.sock", "afterimage-receiver")] {
        let path = dir.path().join(socket);
        let absent = call(&path, &Request::Ping).await.unwrap_err().to_string();
        assert_eq!(
            absent,
            format!(
                "{unit} is not running: nothing listens on {}; start it with: systemctl start {unit}",
                path.display()
            )
        );
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(call(&path, &Request::Ping).await.unwrap_err().to_string(), absent);
    }
}

#[tokio::test]
async fn a_daemon_that_hangs_or_dies_is_told_apart() {
    let server = start().await;
    let pause = Request::PauseStream { group: "g".into() };
    let hung = call_within(&server.path, &pause, std::time::Duration::from_millis(50)).await.unwrap_err();
    assert!(hung.to_string().starts_with("afterimage-agent did not answer within 50ms"), "{hung}");
    let died = call(&server.path, &Request::ResumeStream { group: "g".into() }).await.unwrap_err();
    assert!(matches!(died, AdminError::Broken { .. }), "{died}");
    call(&server.path, &Request::Ping).await.unwrap();
}

#[tokio::test]
async fn an_answer_over_the_limit_becomes_an_error() {
    let server = start().await;
    let error = call(&server.path, &Request::Status).await.unwrap().into_answer::<String>().unwrap_err();
    assert!(matches!(error, AdminError::Failed(Failure { code: ErrorCode::Internal, .. })), "{error}");
}

#[tokio::test]
async fn garbage_is_refused_and_the_server_goes_on() {
    let server = start().await;
    let long = vec![b'a'; MAX_REQUEST_LEN.bytes() as usize + 1];
    for (bytes, code) in [
        (&b"hello\n"[..], "bad_request"),
        (b"\n", "bad_request"),
        (b"\xff\xfe\x00\n", "bad_request"),
        (br#"{"version":1,"request":"explode"}"#, ""),
        (b"{\"version\":1,\"request\":\"explode\"}\n", "bad_request"),
        (b"{\"version\":99,\"request\":\"later\"}\n", "version"),
        (b"{\"version\":1,\"request\":{\"activate\":{\"group\":5}}}\n", "bad_request"),
        (&long, "bad_request"),
    ] {
        let answer = raw(&server.path, bytes).await;
        assert_eq!(answer.is_empty(), code.is_empty(), "{answer}");
        assert!(answer.is_empty() || answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
    }
    let deep = [vec![b'['; 60_000], vec![b'\n']].concat();
    assert!(raw(&server.path, &deep).await.contains("bad_request"));
    let two =
        raw(&server.path, b"{\"version\":1,\"request\":\"ping\"}\n{\"version\":1,\"request\":\"ping\"}\n")
            .await;
    assert_eq!(two.lines().count(), 2);
}

#[tokio::test]
async fn clients_that_hang_cannot_take_more_than_their_places() {
    let server = start().await;
    let mut hanging = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = UnixStream::connect(&server.path).await.unwrap();
        stream.write_all(b"{\"version\"").await.unwrap();
        hanging.push(stream);
    }
    let busy = call(&server.path, &Request::Ping).await.unwrap().into_answer::<()>().unwrap_err();
    assert!(matches!(busy, AdminError::Failed(Failure { code: ErrorCode::Busy, .. })), "{busy}");
    hanging.pop();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    call(&server.path, &Request::Ping).await.unwrap().into_answer::<()>().unwrap();

    // They do not hold up the end either.
    server.stop.send(()).unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(2), server.task).await.unwrap().unwrap();
}
