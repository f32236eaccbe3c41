//! The pair with stand-ins for the product's programs, so that the helpers are tested before and without it.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::real::find_program;

/// Takes the place of all three programs: daemons listen on their admin socket, and the command answers from files.
const STAND_IN: &str = r#"
import os, socket, sys, time
name, config = os.path.basename(sys.argv[0]), sys.argv[2]
here = os.path.dirname(config)
def state(path, text=None):
    if text is not None:
        open(os.path.join(here, path), "w").write(text)
    return open(os.path.join(here, path)).read()
if name.startswith("afterimage-"):
    path = os.path.join(here, "state", name.split("-")[1] + ".sock")
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("listening", flush=True)
    time.sleep(1000)
args = sys.argv[3:]
if args == ["pair", "--new"]:
    print("Use this on the other host, once:\n\nTOKEN-7\n")
elif args[0] == "pair":
    state("paired", args[1])
elif args == ["status", "--json"]:
    seen = int(state("asked")) if os.path.exists(os.path.join(here, "asked")) else 0
    state("asked", str(seen + 1))
    protection = "in_sync" if seen > 2 else "first_sync"
    print('{"groups": [{"name": "x"}, {"name": "orders", "protection": "%s"}]}' % protection)
elif args[0] == "promote":
    if "--dry-run" in args:
        print("it would be unsafe", file=sys.stderr)
        sys.exit(3)
    print('{"group": "%s"}' % args[1])
"#;

/// Makes a script that can be run at once.
fn program(path: &Path, script: &str) {
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    // A child that another test is just starting may hold the file open for writing for a moment.
    while let Err(error) = Command::new(path).output() {
        assert_eq!(error.kind(), std::io::ErrorKind::ExecutableFileBusy);
        sleep(POLL);
    }
}

/// A directory with stand-ins; `None` where there is no Python.
fn stand_ins() -> Option<Scratch> {
    let python = find_program("python3").ok()?;
    let scratch = Scratch::new(1 << 20).unwrap();
    for name in ["afterimage", "afterimage-agent", "afterimage-receiver"] {
        program(&scratch.path().join(name), &format!("#!{}\n{STAND_IN}", python.display()));
    }
    Some(scratch)
}

#[test]
fn configurations_follow_the_contract() {
    let relay = SocketAddr::from(([127, 0, 0, 1], 9));
    let options = PairOptions::new("orders")
        .sync()
        .set_raw("objectives", "{ rpo = \"5s\" }")
        .journal_max_bytes(32 << 20)
        .volume("pgdata", 1 << 20)
        .volume("wal", 2 << 20)
        .route(Side::Beta, relay);
    let pair = Pair::prepare(options).unwrap();
    let dir = pair.host(Side::Alpha).dir.display().to_string();
    let (alpha, beta) = (pair.host(Side::Alpha).listen, pair.host(Side::Beta).listen);
    let text = fs::read_to_string(pair.host(Side::Alpha).config()).unwrap();
    let expected = format!(
        r#"[node]
name = "alpha"
listen = "{alpha}"
state_dir = "{dir}/state"

[peer]
name = "beta"
address = "{beta}"

[group.orders]
primary = "alpha"
mode = "sync"
objectives = {{ rpo = "5s" }}
journal = {{ dir = "{dir}/journal", max_size = "32MiB" }}

[[group.orders.volume]]
name = "pgdata"
device = "{dir}/pgdata.img"
export = {{ nbd = "{dir}/pgdata.sock" }}

[[group.orders.volume]]
name = "wal"
device = "{dir}/wal.img"
export = {{ nbd = "{dir}/wal.sock" }}
"#
    );
    assert_eq!(text, expected);
    let text = fs::read_to_string(pair.host(Side::Beta).config()).unwrap();
    assert!(text.contains("name = \"beta\"") && text.contains(&format!("address = \"{relay}\"")), "{text}");
    assert_eq!(fs::metadata(pair.host(Side::Beta).volume("wal")).unwrap().len(), 2 << 20);
    assert_eq!(pair.blocks("wal"), 512);
}

#[test]
fn a_pair_is_joined_started_asked_and_ended() {
    let Some(programs) = stand_ins() else { return };
    let options = PairOptions::new("orders").volume("v", 1 << 20).bin_dir(programs.path());
    let mut pair = Pair::start(options).unwrap();
    let token = fs::read_to_string(pair.host(Side::Beta).dir.join("paired")).unwrap();
    assert_eq!(token, "TOKEN-7");
    let group = pair.wait_protection(Side::Alpha, "in_sync", Duration::from_secs(30)).unwrap();
    assert_eq!(group["name"], "orders");
    let error = pair.wait_protection(Side::Beta, "blocked", Duration::ZERO).unwrap_err();
    assert!(format!("{error:#}").contains("listening"), "{error:#}");
    assert_eq!(pair.promote(Side::Beta).unwrap()["group"], "orders");
    let error = pair.promote_with(Side::Beta, &["--dry-run"]).unwrap_err();
    assert!(format!("{error:#}").contains("it would be unsafe"), "{error:#}");

    pair.host_mut(Side::Alpha).kill().unwrap();
    assert!(pair.logs().contains("agent of alpha is not running"));
    pair.start_host(Side::Alpha).unwrap();
    assert!(pair.host_mut(Side::Alpha).receiver.as_mut().unwrap().is_running());
    assert!(pair.host_mut(Side::Alpha).agent.as_mut().unwrap().is_running());
    pair.check_disk().unwrap();
    let dir = pair.host(Side::Alpha).dir.clone();
    drop(pair);
    assert!(!dir.exists());
}

#[test]
fn a_daemon_that_ends_at_once_shows_its_log() {
    let Ok(shell) = find_program("sh") else { return };
    let programs = Scratch::new(1 << 20).unwrap();
    let script = format!("#!{}\necho the port is taken\nexit 1\n", shell.display());
    program(&programs.path().join("afterimage-receiver"), &script);
    let error = Pair::start(PairOptions::new("orders").bin_dir(programs.path())).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.starts_with("start the receiver of alpha") && text.contains("the port is taken"), "{text}");
}
