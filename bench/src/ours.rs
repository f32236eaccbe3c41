//! Afterimage itself, as an operator would run it: two nodes on the loopback, paired by token, one group.
//!
//! The programs are those beside this one; the configuration and the status document are the published ones.
//! `history = "0s"`, so that the copy's file is the newest image once everything is applied.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use serde::Deserialize;

use crate::{
    contender::{Bed, Drained, Running, ServerProcess},
    image,
    process::{self, Server, free_port},
    wait::{self, Interrupt},
};

const AGENT: &str = "afterimage-agent";
const RECEIVER: &str = "afterimage-receiver";
const COMMAND: &str = "afterimage";
const GROUP: &str = "bench";
const VOLUME: &str = "vol";
/// Enough that the limit never takes part, little enough to have room for.
pub const JOURNAL_MAX_MIB: u64 = 1024;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_SYNC_TIMEOUT: Duration = Duration::from_secs(300);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);
/// The status' count of packets is a second old; a little more for it to be taken.
const PACKETS_AGE: Duration = Duration::from_millis(1200);

/// When a replicated write completes.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// Once it is written here.
    Async,
    /// Once the standby has received it too.
    Sync,
}

impl Mode {
    fn key(self) -> &'static str {
        match self {
            Mode::Async => "async",
            Mode::Sync => "sync",
        }
    }

    fn protection(self) -> &'static str {
        match self {
            Mode::Async => "async_streaming",
            Mode::Sync => "in_sync",
        }
    }
}

/// Builds the programs with cargo if they are not beside this one, and says so.
pub fn build_if_missing() -> Result<()> {
    let dir = program_dir()?;
    let Some(missing) = [AGENT, RECEIVER, COMMAND].into_iter().find(|name| !dir.join(name).exists()) else {
        return Ok(());
    };
    ensure!(
        dir.ends_with("release"),
        "{missing} is not in {}: use `cargo run --release -p bench`, or --without-ours",
        dir.display()
    );
    eprintln!("{missing} is not in {}: building it with `cargo build --release`", dir.display());
    let target = dir.parent().context("find the target directory")?;
    let status = Command::new("cargo")
        .args(["build", "--release", "--bin", AGENT, "--bin", RECEIVER, "--bin", COMMAND, "--target-dir"])
        .arg(target)
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "cargo build failed ({status}): repair it, or use --without-ours");
    Ok(())
}

/// Where a node runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its address.
    pub address: IpAddr,
    /// The network namespace of its programs, if not that of this one.
    pub namespace: Option<String>,
}

impl Place {
    /// The loopback of this host.
    pub const LOOPBACK: Place = Place { address: IpAddr::V4(Ipv4Addr::LOCALHOST), namespace: None };

    fn program(&self, name: &str) -> Result<Command> {
        let program = program_dir()?.join(name);
        let Some(namespace) = &self.namespace else { return Ok(Command::new(program)) };
        // It becomes the program, so that the process id is the program's.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        Ok(command)
    }
}

/// Serves the volume of `bed`; the peer is configured, and nobody answers there.
pub fn start_alone(bed: &Bed<'_>) -> Result<Alone> {
    let node = Node::create(
        bed,
        "alpha",
        Mode::Async,
        &bed.volume(),
        End::at(Place::LOOPBACK)?,
        &End::at(Place::LOOPBACK)?,
    )?;
    let mut agent = node.spawn(AGENT)?;
    agent.wait_ready(bed.interrupt, || Ok(UnixStream::connect(node.nbd_socket()).is_ok()))?;
    Ok(Alone { agent, node })
}

/// Serves the volume of `bed` and replicates it. Returns when the first sync is complete.
pub fn start_pair(bed: &Bed<'_>, mode: Mode) -> Result<Pair> {
    image::create_empty(&bed.copy(), bed.volume_bytes)?;
    let mut pair = launch_pair(bed, mode, [Place::LOOPBACK, Place::LOOPBACK])?;
    pair.wait_first_sync(bed.interrupt)?;
    Ok(pair)
}

/// Starts both nodes, the primary at the first place. The copy of `bed` has to be there; the first sync begins.
pub fn launch_pair(bed: &Bed<'_>, mode: Mode, places: [Place; 2]) -> Result<Pair> {
    let [alpha, beta] = places.map(End::at);
    let (alpha, beta) = (alpha?, beta?);
    let primary = Node::create(bed, "alpha", mode, &bed.volume(), alpha.clone(), &beta)?;
    let standby = Node::create(bed, "beta", mode, &bed.copy(), beta, &alpha)?;

    let mut primary_receiver = primary.spawn(RECEIVER)?;
    let token = wait::until_ok("the pairing token", COMMAND_TIMEOUT, bed.interrupt, || {
        primary_receiver.check_alive()?;
        // The receiver may not listen yet.
        Ok(primary.command(&["pair", "--new"], bed.interrupt))
    })?;
    let token = token.split_whitespace().last().context("`pair --new` printed no token")?;
    standby.command(&["pair", token], bed.interrupt)?;
    let standby_receiver = standby.spawn(RECEIVER)?;
    let agent = primary.spawn(AGENT)?;
    Ok(Pair { mode, agent, primary_receiver, standby_receiver, primary, standby })
}

/// A running agent without its peer.
pub struct Alone {
    agent: Server,
    node: Node,
}

impl Running for Alone {
    fn uri(&self) -> String {
        self.node.uri()
    }

    fn servers(&self) -> Vec<ServerProcess> {
        vec![ServerProcess::source("agent", self.agent.pid())]
    }

    fn drain(&mut self, _: &Interrupt) -> Result<Drained> {
        Ok(Drained::default())
    }

    fn stop(self: Box<Self>, _: &Interrupt) -> Result<()> {
        self.agent.stop()
    }
}

/// Two running nodes. The receiver of the primary runs as on a real host, and its time counts.
pub struct Pair {
    mode: Mode,
    agent: Server,
    primary_receiver: Server,
    standby_receiver: Server,
    primary: Node,
    standby: Node,
}

impl Pair {
    /// The socket of the export, and its name.
    pub fn export(&self) -> (PathBuf, &'static str) {
        (self.primary.nbd_socket(), VOLUME)
    }

    /// What was sent so far.
    pub fn compression(&self, interrupt: &Interrupt) -> Result<Compression> {
        self.primary.status(interrupt)?.compression.context("the status says nothing of compression")
    }

    /// The processes of the agent and of the standby's receiver.
    pub fn busy(&self) -> [Pid; 2] {
        [self.agent.pid(), self.standby_receiver.pid()]
    }

    /// Returns when the first sync is complete.
    pub fn wait_first_sync(&mut self, interrupt: &Interrupt) -> Result<()> {
        let wanted = self.mode.protection();
        wait::until_ok("the first sync", FIRST_SYNC_TIMEOUT, interrupt, || {
            self.check_alive()?;
            // The sockets of the daemons may not be there yet.
            Ok(self.primary.status(interrupt).and_then(|group| {
                let found = group.protection;
                ensure!(found == wanted, "the group is {found}, not yet {wanted}");
                Ok(())
            }))
        })
    }

    fn check_alive(&mut self) -> Result<()> {
        self.agent.check_alive()?;
        self.primary_receiver.check_alive()?;
        self.standby_receiver.check_alive()
    }
}

impl Running for Pair {
    fn uri(&self) -> String {
        self.primary.uri()
    }

    fn servers(&self) -> Vec<ServerProcess> {
        vec![
            ServerProcess::source("agent", self.agent.pid()),
            ServerProcess::source("receiver beside the agent", self.primary_receiver.pid()),
            ServerProcess::target("receiver", self.standby_receiver.pid()),
        ]
    }

    fn drain(&mut self, interrupt: &Interrupt) -> Result<Drained> {
        let start = Instant::now();
        let status = self.primary.status(interrupt)?;
        // In a catch-up the lag is unknown; the copy lacks no more than the dirty blocks.
        let behind = status.lag.map(|lag| lag.bytes).or(status.dirty_bytes);
        let behind = behind.context("neither the lag nor the dirty blocks are known")?;
        wait::until("the standby to apply everything", DRAIN_TIMEOUT, interrupt, || {
            self.check_alive()?;
            let source = self.primary.status(interrupt)?;
            let target = self.standby.status(interrupt)?;
            Ok(is_drained(&source, &target).then_some(()))
        })?;
        Ok(Drained::new(behind, start.elapsed()))
    }

    /// UDP payload of all packets, headers of QUIC included.
    fn sent_bytes(&mut self, interrupt: &Interrupt) -> Result<Option<u64>> {
        thread::sleep(PACKETS_AGE);
        Ok(Some(self.compression(interrupt)?.packet_bytes))
    }

    fn stop(self: Box<Self>, _: &Interrupt) -> Result<()> {
        self.agent.stop()?;
        self.primary_receiver.stop()?;
        self.standby_receiver.stop()
    }
}

/// One host: its configuration and its state, in a directory of their own.
struct Node {
    dir: PathBuf,
    end: End,
}

/// Where a node is reached.
#[derive(Clone)]
struct End {
    place: Place,
    port: u16,
}

impl End {
    fn at(place: Place) -> Result<Self> {
        Ok(Self { place, port: free_port()? })
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.place.address, self.port)
    }
}

impl Node {
    fn create(bed: &Bed<'_>, name: &str, mode: Mode, device: &Path, end: End, peer: &End) -> Result<Self> {
        let dir = bed.dir.join(name);
        for subdirectory in ["state", "journal"] {
            let path = dir.join(subdirectory);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let node = Self { dir, end };
        let text = node.configuration(name, mode, bed.settings, device, peer.address());
        fs::write(node.config(), text).with_context(|| format!("write {}", node.config().display()))?;
        Ok(node)
    }

    fn configuration(
        &self,
        name: &str,
        mode: Mode,
        settings: &str,
        device: &Path,
        peer_address: SocketAddr,
    ) -> String {
        let peer = if name == "alpha" { "beta" } else { "alpha" };
        let quoted = |path: PathBuf| format!("{:?}", path.display().to_string());
        format!(
            "[node]\n\
             name = \"{name}\"\n\
             listen = \"{listen}\"\n\
             state_dir = {state}\n\
             \n\
             [peer]\n\
             name = \"{peer}\"\n\
             address = \"{peer_address}\"\n\
             \n\
             [group.{GROUP}]\n\
             mode = \"{mode}\"\n\
             ack = \"received\"\n\
             primary = \"alpha\"\n\
             history = \"0s\"\n\
             journal = {{ dir = {journal}, max_size = \"{JOURNAL_MAX_MIB}MiB\" }}\n\
             {settings}\n\
             [[group.{GROUP}.volume]]\n\
             name = \"{VOLUME}\"\n\
             device = {device}\n\
             capture = \"inline\"\n\
             export = {{ nbd = {nbd} }}\n",
            listen = self.end.address(),
            mode = mode.key(),
            state = quoted(self.dir.join("state")),
            journal = quoted(self.dir.join("journal")),
            device = quoted(device.to_owned()),
            nbd = quoted(self.nbd_socket()),
        )
    }

    fn config(&self) -> PathBuf {
        self.dir.join("afterimage.toml")
    }

    fn nbd_socket(&self) -> PathBuf {
        self.dir.join("vol.sock")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///{VOLUME}?socket={}", self.nbd_socket().display())
    }

    fn spawn(&self, program: &str) -> Result<Server> {
        let mut command = self.end.place.program(program)?;
        command.arg("--config").arg(self.config());
        Server::spawn(program, command, &self.dir)
    }

    fn command(&self, arguments: &[&str], interrupt: &Interrupt) -> Result<String> {
        let mut command = self.end.place.program(COMMAND)?;
        command.arg("--config").arg(self.config()).args(arguments);
        process::capture(COMMAND, command, &self.dir, COMMAND_TIMEOUT, interrupt)
    }

    fn status(&self, interrupt: &Interrupt) -> Result<Group> {
        group_of(&self.command(&["status", "--json"], interrupt)?)
    }
}

/// What is used of the status document.
#[derive(Deserialize)]
struct Status {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    protection: String,
    position: Option<Position>,
    lag: Option<Lag>,
    dirty_bytes: Option<u64>,
    journal: Option<Journal>,
    compression: Option<Compression>,
}

/// What was sent, as the agent counts it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Compression {
    /// Bytes written to streams.
    pub wire_bytes: u64,
    /// Bytes of all packets.
    pub packet_bytes: u64,
    /// Time that coding took, in microseconds.
    pub coding_us: u64,
}

#[derive(Deserialize)]
struct Position {
    sequence: u64,
}

#[derive(Deserialize)]
struct Lag {
    bytes: u64,
}

#[derive(Deserialize)]
struct Journal {
    applied_sequence: Option<u64>,
}

fn group_of(text: &str) -> Result<Group> {
    let status: Status = serde_json::from_str(text).context("understand the status")?;
    match status.groups.into_iter().find(|group| group.name == GROUP) {
        Some(group) => Ok(group),
        None => bail!("the status has no group {GROUP}"),
    }
}

/// Whether the standby's file has everything that the primary has admitted. What is unknown is not drained.
fn is_drained(source: &Group, target: &Group) -> bool {
    let admitted = source.position.as_ref().map(|position| position.sequence);
    let applied = target.journal.as_ref().and_then(|journal| journal.applied_sequence);
    let is_delivered = source.lag.as_ref().is_some_and(|lag| lag.bytes == 0);
    is_delivered && admitted.zip(applied).is_some_and(|(admitted, applied)| applied >= admitted)
}

fn program_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    Ok(program.parent().context("find this program's directory")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(text: &str) -> Group {
        group_of(&format!(r#"{{ "version": 1, "groups": [ {{ "name": "bench", {text} }} ] }}"#))
            .expect("a group")
    }

    #[test]
    fn drained_means_delivered_and_applied() {
        let source = |bytes| {
            group(&format!(
                r#""protection": "in_sync", "position": {{ "generation": "a", "sequence": 7 }},
                   "lag": {{ "seconds": 0, "bytes": {bytes} }}, "journal": null"#
            ))
        };
        let target = |applied| {
            group(&format!(
                r#""protection": "in_sync", "position": null, "lag": null,
                   "journal": {{ "bytes": 0, "applied_sequence": {applied} }}"#
            ))
        };
        assert!(is_drained(&source("0"), &target("7")));
        assert!(!is_drained(&source("4096"), &target("7")));
        assert!(!is_drained(&source("0"), &target("6")));
        assert!(!is_drained(&source("0"), &target("null")), "unknown is not drained");
        let unknown = group(r#""protection": "in_sync", "position": null, "lag": null, "journal": null"#);
        assert!(!is_drained(&unknown, &target("7")));
    }

    #[test]
    fn the_configuration_names_both_nodes_and_quotes_its_paths() {
        let end = |port| End { place: Place::LOOPBACK, port };
        let node = Node { dir: PathBuf::from("/t/alpha"), end: end(1000) };
        let text = node.configuration(
            "alpha",
            Mode::Sync,
            "compression = \"zstd\"\n",
            Path::new("/t/a \"b\".img"),
            end(2000).address(),
        );
        for line in [
            "listen = \"127.0.0.1:1000\"",
            "name = \"beta\"",
            "address = \"127.0.0.1:2000\"",
            "mode = \"sync\"",
            "device = \"/t/a \\\"b\\\".img\"",
            "export = { nbd = \"/t/alpha/vol.sock\" }",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
