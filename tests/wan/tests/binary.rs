//! The `wan` binary: its commands, and that nothing is left however it ends. Needs root, iproute2 and
//! `/dev/net/tun`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{net::UnixStream, process::ExitStatusExt},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    names: [String; 2],
}

impl Running {
    fn start(name: &str, more: &[&str]) -> Self {
        let name = format!("wanbin-{name}");
        let mut child = Command::new(env!("CARGO_BIN_EXE_wan"))
            .args(["--name", &name, "--delay", "1ms"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start wan");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let names = [format!("{name}-a"), format!("{name}-b")];
        let mut running = Self { child, input, output, names };
        let up = running.answer();
        assert_eq!(up, format!("up {name}-a 10.231.0.1 {name}-b 10.231.0.2"));
        running
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read an answer");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("send a command");
        self.answer()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal");
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut text).expect("read errors");
        text
    }

    fn are_names_gone(&self) -> bool {
        !self.names.iter().any(|name| Path::new("/run/netns").join(name).exists())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended already, which is what most tests want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn commands_are_answered_and_quit_ends_it() {
    let mut wan = Running::start("commands", &[]);
    for command in ["delay 20ms", "loss 0.1 ab", "rate 100", "cut both", "heal"] {
        assert_eq!(wan.ask(command), "ok", "{command}");
    }
    assert_eq!(wan.ask("loss 200"), "error: a loss of 200 % is not possible: give 0 to 100");
    assert!(wan.ask("mend").starts_with("error: unknown command `mend`"));
    assert!(wan.ask("counters").starts_with("ab offered=0 "));
    assert!(wan.answer().starts_with("ba offered=0 "));
    assert_eq!(wan.ask("quit"), "ok");
    assert!(wan.child.wait().expect("wait").success());
    assert!(wan.are_names_gone());
}

#[test]
fn the_control_socket_takes_commands_and_goes_away() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("control");
    let mut wan = Running::start("socket", &["--control", path.to_str().expect("a plain path")]);
    let mut stream = UnixStream::connect(&path).expect("connect");
    writeln!(stream, "cut ab").expect("send");
    let mut answer = String::new();
    BufReader::new(stream.try_clone().expect("clone")).read_line(&mut answer).expect("read");
    assert_eq!(answer, "ok\n");
    wan.signal(Signal::TERM);
    assert!(wan.child.wait().expect("wait").success());
    assert!(!path.exists());
}

#[test]
fn signals_end_it_with_counters_and_nothing_left() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut wan = Running::start("signals", &[]);
        wan.signal(signal);
        assert!(wan.child.wait().expect("wait").success());
        assert!(wan.errors().starts_with("ab offered=0 delivered=0"), "{signal:?}");
        assert!(wan.are_names_gone(), "{signal:?}");
    }
}

#[test]
fn a_kill_leaves_nothing_and_the_name_can_be_used_at_once() {
    let mut wan = Running::start("killed", &[]);
    wan.signal(Signal::KILL);
    assert_eq!(wan.child.wait().expect("wait").signal(), Some(Signal::KILL.as_raw()));
    drop(Running::start("killed", &[]));

    let deadline = Instant::now() + Duration::from_secs(5);
    while !wan.are_names_gone() {
        assert!(Instant::now() < deadline, "the namespaces of a killed run stay");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn stale_namespaces_are_replaced() {
    let status = Command::new("ip").args(["netns", "add", "wanbin-stale-a"]).status().expect("run ip");
    assert!(status.success());
    let mut wan = Running::start("stale", &[]);
    assert_eq!(wan.ask("quit"), "ok");
    assert!(wan.child.wait().expect("wait").success());
    assert!(wan.are_names_gone());
}
