use std::fs::{Permissions, set_permissions, write};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::status::{Protection, Role};

/// A directory of hooks, and the host that has them.
struct Host {
    dir: TempDir,
    hooks: Hooks,
}

impl Host {
    fn new(section: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let text = format!(
            "[node]\nname = \"alpha\"\n[peer]\nname = \"beta\"\naddress = \"beta:7789\"\n\
             [group.orders]\nprimary = \"alpha\"\nobjectives = {{ rpo = \"5s\" }}\n\
             [[group.orders.volume]]\nname = \"v\"\ndevice = \"/v\"\n[hooks]\ndir = \"{}\"\n{section}",
            dir.path().display()
        );
        let config = Config::parse(&text, "a.toml").unwrap();
        let hooks = Hooks::new(&config, Handle::current());
        Self { dir, hooks }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a script there; `$HERE` is the directory.
    fn script(&self, event: Event, text: &str) {
        let text = format!("#!/bin/sh\nset -eu\nHERE='{}'\n{text}\n", self.dir.path().display());
        self.put(event, &text);
    }

    /// By a process of its own: a file that this one has open to write cannot be run by another thread's child.
    fn put(&self, event: Event, text: &str) {
        let mut sh = Command::new("sh");
        sh.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(self.path(event.name())).stdin(Stdio::piped());
        let mut sh = sh.spawn().unwrap();
        sh.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(sh.wait().unwrap().success());
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    async fn run(&self, event: Event) -> Result<(), HookError> {
        self.hooks.run(event, &Facts::new("orders")).await
    }

    async fn wait_for(&self, what: impl Fn() -> bool) {
        for _ in 0..1000 {
            if what() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it did not happen");
    }
}

fn runs(pid: &str) -> bool {
    // A killed process that nobody has waited for yet runs no more.
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    status.is_ok_and(|text| !text.contains(") Z "))
}

#[tokio::test]
async fn a_hook_is_told_everything_and_what_is_unknown_is_empty() {
    let host = Host::new("");
    host.script(Event::ProtectionLost, "env | grep ^AFTERIMAGE_ | sort >\"$HERE/env\"");
    let facts = Facts {
        role: Some(Role::Primary),
        generation: Some("5f0c".to_owned()),
        sequence: Some(42),
        protection: Some(Protection::CatchingUp),
        lag_seconds: Some(0.25),
        reason: Some("a\0b\nAFTERIMAGE_ROLE=standby".to_owned()),
        ..Facts::new("orders")
    };
    host.hooks.run(Event::ProtectionLost, &facts).await.unwrap();
    let told = host.read("env");
    // What this process has itself is none of the hook's facts.
    let own = |line: &&str| line.split_once('=').is_some_and(|(name, _)| std::env::var_os(name).is_none());
    let told: String = told.lines().filter(own).map(|line| format!("{line}\n")).collect();
    let (time, rest): (Vec<_>, Vec<_>) = told.lines().partition(|line| line.starts_with("AFTERIMAGE_TIME=2"));
    assert_eq!(time.len(), 1, "{told}");
    let expected = "AFTERIMAGE_EVENT=protection-lost
AFTERIMAGE_EXPORTS=
AFTERIMAGE_GENERATION=5f0c
AFTERIMAGE_GROUP=orders
AFTERIMAGE_LAG_SECONDS=0.250
AFTERIMAGE_NODE=alpha
AFTERIMAGE_PEER=beta
AFTERIMAGE_PROTECTION=catching_up
AFTERIMAGE_REASON=a?b?AFTERIMAGE_ROLE=standby
AFTERIMAGE_ROLE=primary
AFTERIMAGE_RPO_SECONDS=5.000
AFTERIMAGE_SEQUENCE=42";
    assert_eq!(rest.join("\n"), expected);
    let page = include_str!("../../../../docs/hooks.md");
    for name in told.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
        assert!(page.contains(&format!("| `{name}` |")), "{name} is not documented");
    }
    for event in Event::ALL {
        assert!(page.contains(&format!("| `{}` |", event.name())), "{} is not documented", event.name());
    }
}

#[tokio::test]
async fn no_hook_is_no_failure() {
    let host = Host::new("");
    host.run(Event::BeforePromotion).await.unwrap();
    std::fs::remove_dir(host.dir.path()).unwrap();
    host.run(Event::BeforePromotion).await.unwrap();
    let unknown = Facts::new("bills");
    host.hooks.run(Event::BeforePromotion, &unknown).await.unwrap();
}

#[tokio::test]
async fn a_failure_stops_what_it_is_run_before_unless_the_policy_says_otherwise() {
    let host = Host::new("before_switchover.on_failure = \"continue\"\n");
    let script = "touch \"$HERE/ran-$AFTERIMAGE_EVENT\"; echo 'no such zone' >&2; exit 7";
    for event in [Event::BeforePromotion, Event::BeforeSwitchover, Event::AfterPromotion] {
        host.script(event, script);
    }
    let error = host.run(Event::BeforePromotion).await.unwrap_err().to_string();
    let path = host.path("before-promotion").display().to_string();
    assert_eq!(error, format!("{path} failed with exit status: 7: no such zone"));
    host.run(Event::BeforeSwitchover).await.unwrap();
    host.run(Event::AfterPromotion).await.unwrap();
    assert!(host.path("ran-before-switchover").exists() && host.path("ran-after-promotion").exists());
}

#[tokio::test]
async fn a_hook_that_does_not_end_is_killed_with_all_that_it_started() {
    let host = Host::new("timeout = \"1s\"\n");
    let script = "sleep 1000 & echo $! >\"$HERE/child\"\necho $$ >\"$HERE/leader\"\necho waiting; sleep 1000";
    host.script(Event::BeforePromotion, script);
    let began = Instant::now();
    let error = host.run(Event::BeforePromotion).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(matches!(error, HookError::TimedOut { .. }), "{error}");
    assert!(error.to_string().ends_with("did not end within 1s and was killed: waiting"), "{error}");
    for name in ["child", "leader"] {
        host.wait_for(|| !runs(&host.read(name))).await;
    }
}

#[tokio::test]
async fn nothing_that_a_hook_started_outlives_it() {
    let host = Host::new("timeout = \"20s\"\n");
    host.script(Event::AfterPromotion, "sleep 1000 & echo $! >\"$HERE/child\"");
    let began = Instant::now();
    host.run(Event::AfterPromotion).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "it was waited for");
    host.wait_for(|| !runs(&host.read("child"))).await;
}

#[tokio::test]
async fn of_much_output_the_end_is_kept() {
    let host = Host::new("");
    let script = "i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done; exit 1";
    host.script(Event::BeforePromotion, script);
    match host.run(Event::BeforePromotion).await.unwrap_err() {
        HookError::Failed { output, .. } => {
            assert!(output.ends_with(" | line-19998 | line-19999"), "{output}");
            assert!(output.starts_with('…') && output.len() < 8192, "{}", output.len());
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn output_without_end_does_not_prolong_a_run() {
    let host = Host::new("timeout = \"1s\"\n");
    host.script(Event::BeforePromotion, "exec yes");
    let error = host.run(Event::BeforePromotion).await.unwrap_err();
    assert!(matches!(error, HookError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn what_others_could_have_written_is_not_run() {
    let host = Host::new("");
    let path = host.path("before-promotion");
    let refusal = async |why: &str| {
        let error = host.run(Event::BeforePromotion).await.unwrap_err();
        assert!(matches!(error, HookError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert!(!host.path("ran").exists());
    };
    host.script(Event::BeforePromotion, "touch \"$HERE/ran\"");
    let chmod = |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for mode in [0o775, 0o757] {
        chmod(&path, mode);
        refusal("others can write to it; run: chmod go-w").await;
    }
    chmod(&path, 0o644);
    refusal("it is not executable; run: chmod 755").await;
    chmod(&path, 0o755);
    chmod(host.dir.path(), 0o777);
    refusal("others can write to it; run: chmod go-w").await;
    chmod(host.dir.path(), 0o755);
    std::fs::rename(&path, host.path("script")).unwrap();
    std::os::unix::fs::symlink("script", &path).unwrap();
    refusal("it is not a regular file").await;
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refusal("it is not a regular file").await;
}

#[tokio::test]
async fn what_cannot_be_executed_says_so() {
    let host = Host::new("");
    let path = host.path("before-promotion");
    host.put(Event::BeforePromotion, "#!/no/such/interpreter\n");
    let error = host.run(Event::BeforePromotion).await.unwrap_err();
    assert!(matches!(error, HookError::Run { .. }), "{error}");
    assert!(error.to_string().starts_with(&format!("cannot run {}: ", path.display())), "{error}");
}

#[tokio::test]
async fn events_are_told_in_order_and_one_that_waits_counts_once() {
    let host = Host::new("");
    let script = "echo $AFTERIMAGE_EVENT $AFTERIMAGE_SEQUENCE >>\"$HERE/log\"
        while [ ! -e \"$HERE/go\" ]; do sleep 0.01; done";
    host.script(Event::ProtectionLost, script);
    host.script(Event::ProtectionRegained, script);
    let tell = |event, n| host.hooks.tell(event, Facts { sequence: Some(n), ..Facts::new("orders") });
    tell(Event::ProtectionLost, 0);
    host.wait_for(|| !host.read("log").is_empty()).await;
    for n in 0..1000 {
        tell(Event::ProtectionRegained, 2 * n + 1);
        tell(Event::ProtectionLost, 2 * n + 2);
    }
    tell(Event::ProtectionRegained, 2001);
    write(host.path("go"), "").unwrap();
    host.wait_for(|| host.read("log").lines().count() >= 3).await;
    tell(Event::ProtectionLost, 2002);
    host.wait_for(|| host.read("log").contains("2002")).await;
    let expected =
        "protection-lost 0\nprotection-lost 2000\nprotection-regained 2001\nprotection-lost 2002\n";
    assert_eq!(host.read("log"), expected);
}

#[tokio::test]
async fn one_event_of_a_group_has_one_run_at_a_time() {
    let host = Host::new("");
    let script = "mkdir \"$HERE/busy\"; sleep 0.2; rmdir \"$HERE/busy\"";
    host.script(Event::BeforePromotion, script);
    let (first, second) = tokio::join!(host.run(Event::BeforePromotion), host.run(Event::BeforePromotion));
    first.unwrap();
    second.unwrap();
}

#[tokio::test]
async fn a_caller_is_not_held_up() {
    let host = Host::new("timeout = \"1s\"\n");
    host.script(Event::BeforePromotion, "sleep 1000");
    let mut turns = 0;
    let mut run = std::pin::pin!(host.run(Event::BeforePromotion));
    // The hook, and the thread that runs it, leave the only thread of this runtime free.
    while tokio::time::timeout(Duration::from_millis(10), &mut run).await.is_err() {
        turns += 1;
    }
    assert!(turns > 20, "{turns}");
}
