//! A node: its configuration, its files, its programs, and what its daemons say.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use afterimage_contract::{
    admin::{Request, call},
    config::{AGENT_SOCKET_NAME, RECEIVER_SOCKET_NAME},
};
use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use tokio::runtime::Builder;

use super::{
    COMMAND, COMMAND_TIMEOUT, GROUP, JOURNAL_MAX_MIB, Mode, VOLUME, program_dir,
    status::{Group, group_of},
};
use crate::{
    contender::Bed,
    process::{self, Server, free_port},
    wait::Interrupt,
};

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

/// One host: its configuration and its state, in a directory of their own.
pub struct Node {
    dir: PathBuf,
    end: End,
}

/// Where a node is reached.
#[derive(Clone)]
pub struct End {
    place: Place,
    port: u16,
}

impl End {
    /// One with a port that is free.
    pub fn at(place: Place) -> Result<Self> {
        Ok(Self { place, port: free_port()? })
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.place.address, self.port)
    }
}

impl Node {
    /// Makes its directories and its configuration below the directory of `bed`.
    pub fn create(
        bed: &Bed<'_>,
        name: &str,
        mode: Mode,
        device: &Path,
        end: End,
        peer: &End,
    ) -> Result<Self> {
        let dir = if name == "alpha" { bed.dir } else { bed.copies }.join(name);
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

    /// The socket of the export.
    pub fn nbd_socket(&self) -> PathBuf {
        self.dir.join("vol.sock")
    }

    /// Where a client connects to.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///{VOLUME}?socket={}", self.nbd_socket().display())
    }

    /// Starts one of its daemons.
    pub fn spawn(&self, program: &str) -> Result<Server> {
        let mut command = self.end.place.program(program)?;
        command.arg("--config").arg(self.config());
        Server::spawn(program, command, &self.dir)
    }

    /// Runs the operator's command.
    pub fn command(&self, arguments: &[&str], interrupt: &Interrupt) -> Result<String> {
        let mut command = self.end.place.program(COMMAND)?;
        command.arg("--config").arg(self.config()).args(arguments);
        process::capture(COMMAND, command, &self.dir, COMMAND_TIMEOUT, interrupt)
    }

    /// What the agent says of the group.
    pub fn source_status(&self) -> Result<Group> {
        group_of(self.ask(AGENT_SOCKET_NAME, &Request::Status)?)
    }

    /// What the receiver says of the group.
    pub fn target_status(&self) -> Result<Group> {
        group_of(self.ask(RECEIVER_SOCKET_NAME, &Request::Status)?)
    }

    /// Asks the agent for something that has no answer.
    pub fn tell_agent(&self, request: &Request) -> Result<()> {
        self.ask::<()>(AGENT_SOCKET_NAME, request)
    }

    /// Over the daemon's socket, as the operator's command does: to start that would take longer than what is waited for.
    fn ask<T: DeserializeOwned>(&self, socket: &str, request: &Request) -> Result<T> {
        let runtime = Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let path = self.dir.join("state").join(socket);
        let response = runtime.block_on(call(&path, request)).context("ask a daemon")?;
        response.into_answer().context("ask a daemon")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
