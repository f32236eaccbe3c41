use afterimage_contract::admin::{Discarded, ErrorCode, Response, Server};
use afterimage_contract::config::Config;
use afterimage_contract::status::Position;

use super::*;
use crate::exit::Exit;

fn promotion(dry_run: bool) -> Promotion {
    Promotion {
        group: "orders".into(),
        dry_run,
        generation: (!dry_run).then(|| "77aa".into()),
        position: Position { generation: "5f0c".into(), sequence: 42 },
        time_us: Some(1_790_000_000_000_000),
        primary_seen_us: Some(1_790_000_001_000_000),
        loss: Loss::Unknown { since_us: None },
        discarded: None,
        warnings: vec![],
    }
}

fn served() -> Activation {
    Activation { group: "orders".into(), serving: true, exports: vec!["/run/afterimage/pgdata.sock".into()] }
}

#[test]
fn a_promotion_says_what_is_served_and_what_is_lost() {
    let mut promotion = promotion(false);
    promotion.loss = Loss::Nothing;
    assert_eq!(
        render(&promotion, Some(&Ok(served()))),
        "\
orders is promoted: this host is its primary
  image      sequence 42 of generation 5f0c, written 2026-09-21T14:13:20.000000Z
  generation 77aa, new
  lost       nothing: this host has every write that the primary acknowledged
  served     /run/afterimage/pgdata.sock
"
    );
}

#[test]
fn a_dry_run_says_that_nothing_was_changed() {
    let mut promotion = promotion(true);
    promotion.discarded = Some(Discarded {
        records: 3,
        bytes: 12_288,
        newest_sequence: 45,
        newest_time_us: Some(1_790_000_000_500_000),
    });
    promotion.warnings.push("the peer may be alive".into());
    assert_eq!(
        render(&promotion, None),
        "\
orders would be promoted; nothing was changed
  image      sequence 42 of generation 5f0c, written 2026-09-21T14:13:20.000000Z
  lost       unknown: writes that the primary acknowledged may be missing; it was last heard of 2026-09-21T14:13:21.000000Z
  given up   3 writes (12 KiB) after that point, up to sequence 45, written 2026-09-21T14:13:20.500000Z
  note       the peer may be alive
"
    );
}

#[test]
fn an_unknown_loss_is_never_called_nothing() {
    let mut promotion = promotion(true);
    promotion.loss = Loss::Unknown { since_us: Some(1_790_000_000_000_000) };
    let text = render(&promotion, None);
    assert!(text.contains(
        "lost       unknown: writes that the primary acknowledged after 2026-09-21T14:13:20.000000Z"
    ));
    assert!(!text.contains("nothing:"));
}

/// A configuration file in a directory, for daemons whose sockets are in it.
fn configuration(dir: &Path) -> std::path::PathBuf {
    let text = format!(
        "[node]\nname = \"alpha\"\nstate_dir = \"{}\"\n[peer]\nname = \"beta\"\naddress = \"beta:7789\"\n\
         [group.orders]\nprimary = \"beta\"\n[[group.orders.volume]]\nname = \"v\"\ndevice = \"/v\"\n",
        dir.display()
    );
    let path = dir.join("afterimage.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn args(group: &str, dry_run: bool) -> PromoteArgs {
    PromoteArgs { group: group.into(), at: None, dry_run, force: false, rollback: false, json: false }
}

fn daemon(socket: impl AsRef<Path>, answer: impl Fn(Request) -> Response + Send + Sync + 'static) {
    let server = Server::bind(socket).unwrap();
    tokio::spawn(server.run(move |request| std::future::ready(answer(request)), std::future::pending()));
}

#[tokio::test]
async fn each_failure_has_its_exit_status_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = configuration(dir.path());
    let config = Config::load(&path).unwrap();

    let error = run(&path, &args("order", false)).await.unwrap_err();
    assert_eq!(error, CommandError::wrong_use("there is no group order; the configuration has: orders"));

    let error = run(&path, &args("orders", false)).await.unwrap_err();
    assert_eq!(error.exit, Exit::Failed);
    assert!(
        error.message.ends_with("start it with: systemctl start afterimage-receiver"),
        "{}",
        error.message
    );

    daemon(config.receiver_socket(), |request| match request {
        Request::Promote { dry_run: true, .. } => {
            Response::error(ErrorCode::Refused, "the first sync has not finished", "wait for it")
        }
        _ => Response::ok(&promotion(false)),
    });
    let error = run(&path, &args("orders", true)).await.unwrap_err();
    let refused = "the first sync has not finished; wait for it".to_owned();
    assert_eq!(error, CommandError { exit: Exit::Refused, message: refused });

    let error = run(&path, &args("orders", false)).await.unwrap_err();
    assert_eq!(error.exit, Exit::Failed);
    assert!(
        error.message.starts_with("orders is promoted, and not served yet: afterimage-agent is not running")
    );
    assert!(error.message.contains("the promotion stands"), "{}", error.message);

    daemon(config.agent_socket(), |_| Response::ok(&served()));
    run(&path, &args("orders", false)).await.unwrap();
}

#[tokio::test]
async fn an_outcome_that_is_not_known_is_not_called_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let path = configuration(dir.path());
    daemon(dir.path().join("receiver.sock"), |_| panic!("killed in the middle"));
    let error = run(&path, &args("orders", false)).await.unwrap_err();
    assert!(error.message.contains("whether orders was promoted is not known"), "{}", error.message);
}

/// The last JSON block of the documentation.
#[test]
fn the_json_has_the_documented_shape() {
    let page = include_str!("../../../docs/status.md");
    let documented = page.rsplit_once("```json\n").unwrap().1.split_once("\n```").unwrap().0;
    let documented: serde_json::Value = serde_json::from_str(documented).unwrap();
    let text = render_json(&promotion(false), Some(&Ok(served())));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), documented);
}

#[test]
fn the_json_keeps_what_was_done_apart_from_what_was_not() {
    let error = AdminError::NotRunning { daemon: "afterimage-agent", path: "/x".into() };
    let text = render_json(&promotion(false), Some(&Err(error)));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["version"], &json["promotion"]["generation"]), (&json!(1), &json!("77aa")));
    assert_eq!((&json["promotion"]["loss"]["kind"], &json["activation"]), (&json!("unknown"), &json!(null)));
    assert!(json["activation_error"].as_str().unwrap().starts_with("afterimage-agent is not running"));
}
