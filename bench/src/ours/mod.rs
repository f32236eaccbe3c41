//! Afterimage itself, as an operator would run it: two nodes on the loopback, paired by token, one group.
//!
//! The programs are those beside this one; the configuration and the status document are the published ones.
//! `history = "0s"`, so that the copy's file is the newest image once everything is applied.

mod node;
mod status;

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use afterimage_contract::admin::Request;
use anyhow::{Context, Result, ensure};
use rustix::process::Pid;

pub use self::{node::Place, status::Compression};
use self::{
    node::{End, Node},
    status::{behind, is_drained, is_durable},
};
use crate::{
    contender::{Bed, Drained, Running, ServerProcess},
    image,
    process::Server,
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
    let mut pair = prepare_pair(bed, mode, places, [&bed.volume(), &bed.copy()])?;
    pair.start_standby(bed.interrupt)?;
    pair.spawn_agent()?;
    Ok(pair)
}

/// Two nodes that know each other, with a volume and its copy. The agent does not run yet, nor does the standby.
pub fn prepare_pair(
    bed: &Bed<'_>,
    mode: Mode,
    places: [Place; 2],
    [volume, copy]: [&Path; 2],
) -> Result<Pair> {
    let [alpha, beta] = places.map(End::at);
    let (alpha, beta) = (alpha?, beta?);
    let primary = Node::create(bed, "alpha", mode, volume, alpha.clone(), &beta)?;
    let standby = Node::create(bed, "beta", mode, copy, beta, &alpha)?;

    let mut primary_receiver = primary.spawn(RECEIVER)?;
    let token = wait::until_ok("the pairing token", COMMAND_TIMEOUT, bed.interrupt, || {
        primary_receiver.check_alive()?;
        // The receiver may not listen yet.
        Ok(primary.command(&["pair", "--new"], bed.interrupt))
    })?;
    let token = token.split_whitespace().last().context("`pair --new` printed no token")?;
    standby.command(&["pair", token], bed.interrupt)?;
    Ok(Pair { mode, agent: None, primary_receiver, standby_receiver: None, primary, standby })
}

/// A running agent without its peer.
pub struct Alone {
    agent: Server,
    node: Node,
}

impl Alone {
    /// The agent's process id.
    pub fn pid(&self) -> Pid {
        self.agent.pid()
    }
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
    agent: Option<Server>,
    primary_receiver: Server,
    standby_receiver: Option<Server>,
    primary: Node,
    standby: Node,
}

impl Pair {
    /// The socket of the export, and its name.
    pub fn export(&self) -> (PathBuf, &'static str) {
        (self.primary.nbd_socket(), VOLUME)
    }

    /// Starts the agent; the first sync begins if the standby runs.
    pub fn spawn_agent(&mut self) -> Result<()> {
        self.agent = Some(self.primary.spawn(AGENT)?);
        Ok(())
    }

    /// Starts the agent and waits until it serves.
    pub fn start_agent(&mut self, interrupt: &Interrupt) -> Result<()> {
        let socket = self.primary.nbd_socket();
        let agent = self.agent.insert(self.primary.spawn(AGENT)?);
        agent.wait_ready(interrupt, || Ok(UnixStream::connect(&socket).is_ok()))
    }

    /// Starts the receiver of the standby and waits until it answers.
    pub fn start_standby(&mut self, interrupt: &Interrupt) -> Result<()> {
        let standby = &self.standby;
        let receiver = self.standby_receiver.insert(standby.spawn(RECEIVER)?);
        receiver.wait_ready(interrupt, || Ok(standby.target_status().is_ok()))
    }

    /// Ends the agent where it stands.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Ends the receiver of the standby where it stands.
    pub fn kill_standby(&mut self) {
        self.standby_receiver = None;
    }

    /// Ends the stream, as if the link were cut.
    pub fn cut(&self) -> Result<()> {
        self.primary.tell_agent(&Request::PauseStream { group: GROUP.to_owned() })
    }

    /// Lets the stream be again.
    pub fn heal(&self) -> Result<()> {
        self.primary.tell_agent(&Request::ResumeStream { group: GROUP.to_owned() })
    }

    /// What was sent so far.
    pub fn compression(&self) -> Result<Compression> {
        self.primary.source_status()?.compression.context("the status says nothing of compression")
    }

    /// Bytes of the frames that the standby was sent so far, as it stores them.
    pub fn received_bytes(&self) -> Result<u64> {
        self.standby.target_status()?.received_bytes.context("the standby does not say what it received")
    }

    /// The processes of the agent and of the standby's receiver, while both run.
    pub fn busy(&self) -> Result<[Pid; 2]> {
        let pid = |server: &Option<Server>| server.as_ref().map(Server::pid).context("a daemon does not run");
        Ok([pid(&self.agent)?, pid(&self.standby_receiver)?])
    }

    /// Returns when the first sync is complete.
    pub fn wait_first_sync(&mut self, interrupt: &Interrupt) -> Result<()> {
        let wanted = self.mode.protection();
        wait::until_ok("the first sync", FIRST_SYNC_TIMEOUT, interrupt, || {
            self.check_alive()?;
            // The sockets of the daemons may not be there yet.
            Ok(self.primary.source_status().and_then(|group| {
                let found = group.protection;
                ensure!(found == wanted, "the group is {found}, not yet {wanted}");
                Ok(())
            }))
        })
    }

    /// Returns when the standby has everything on stable storage; nothing is written meanwhile.
    pub fn wait_durable(&mut self, interrupt: &Interrupt) -> Result<()> {
        let wanted = self.mode.protection();
        wait::until("the standby to have everything", DRAIN_TIMEOUT, interrupt, || {
            self.check_alive()?;
            let source = self.primary.source_status()?;
            Ok((source.protection == wanted && is_durable(&source)).then_some(()))
        })
    }

    fn check_alive(&mut self) -> Result<()> {
        let optional = [&mut self.agent, &mut self.standby_receiver].into_iter().flatten();
        optional.chain([&mut self.primary_receiver]).try_for_each(Server::check_alive)
    }
}

impl Running for Pair {
    fn uri(&self) -> String {
        self.primary.uri()
    }

    fn servers(&self) -> Vec<ServerProcess> {
        let agent = self.agent.iter().map(|agent| ServerProcess::source("agent", agent.pid()));
        let beside = ServerProcess::source("receiver beside the agent", self.primary_receiver.pid());
        let standby =
            self.standby_receiver.iter().map(|server| ServerProcess::target("receiver", server.pid()));
        agent.chain([beside]).chain(standby).collect()
    }

    fn drain(&mut self, interrupt: &Interrupt) -> Result<Drained> {
        let start = Instant::now();
        let (behind, not_durable) = behind(&self.primary.source_status()?)?;
        wait::until("the standby to apply everything", DRAIN_TIMEOUT, interrupt, || {
            self.check_alive()?;
            let source = self.primary.source_status()?;
            let target = self.standby.target_status()?;
            Ok(is_drained(&source, &target).then_some(()))
        })?;
        Ok(Drained { not_durable_bytes: Some(not_durable), ..Drained::new(behind, start.elapsed()) })
    }

    /// UDP payload of all packets, headers of QUIC included.
    fn sent_bytes(&mut self, _: &Interrupt) -> Result<Option<u64>> {
        thread::sleep(PACKETS_AGE);
        Ok(Some(self.compression()?.packet_bytes))
    }

    fn stop(self: Box<Self>, _: &Interrupt) -> Result<()> {
        let Self { agent, primary_receiver, standby_receiver, .. } = *self;
        agent.into_iter().chain([primary_receiver]).chain(standby_receiver).try_for_each(Server::stop)
    }
}

fn program_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    Ok(program.parent().context("find this program's directory")?.to_owned())
}
