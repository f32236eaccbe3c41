//! Two hosts on this machine: alpha, the first primary, and beta, its standby, with the product's own programs.
//!
//! Each host has a directory with its configuration, state, journal, volumes, export sockets and logs. Everything is
//! killed and removed when the [`Pair`] is dropped.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use afterimage_wan::Wan;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::nbd::Client;
use super::process::{Finished, POLL};
use super::stamp::BLOCK_BYTES;
use super::writer::Connect;
use super::{
    Notified, Process, Scratch, ensure_same, filler, find_program, ports, product_program, read_image, run,
};

/// How long the operator's command may take: promotions fsync what may be gigabytes.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a daemon may take until it answers: a debug build on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for anything that has to happen some day.
const LIMIT: Duration = Duration::from_secs(60);
/// How often the status is asked for while waiting for it to change.
const STATUS_POLL: Duration = Duration::from_millis(50);
/// Disk that a pair may take beyond its volumes and journals: logs and state.
const OVERHEAD_BYTES: u64 = 256 << 20;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first primary.
    Alpha,
    /// The first standby.
    Beta,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Alpha, Self::Beta];

    /// The host's `node.name`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpha => "alpha",
            Self::Beta => "beta",
        }
    }

    /// The other host.
    pub fn peer(self) -> Self {
        match self {
            Self::Alpha => Self::Beta,
            Self::Beta => Self::Alpha,
        }
    }
}

/// What the two hosts replicate, and how.
#[derive(Clone, Debug)]
pub struct PairOptions {
    group: String,
    settings: Vec<(String, String)>,
    volumes: Vec<(String, u64)>,
    /// Other groups of the same hosts.
    others: Vec<PairOptions>,
    journal_max_bytes: u64,
    routes: [Option<SocketAddr>; 2],
    /// The network namespace of each host, and its address there.
    places: [Option<(String, IpAddr)>; 2],
    bin_dir: Option<PathBuf>,
    metrics: bool,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self::new("orders")
    }
}

impl PairOptions {
    /// An asynchronous group without volumes.
    pub fn new(group: &str) -> Self {
        Self {
            group: group.to_owned(),
            settings: Vec::new(),
            volumes: Vec::new(),
            others: Vec::new(),
            journal_max_bytes: 64 << 20,
            routes: [None, None],
            places: [None, None],
            bin_dir: None,
            metrics: false,
        }
    }

    /// Adds a volume, an image file on each host.
    pub fn volume(mut self, name: &str, size_bytes: u64) -> Self {
        self.volumes.push((name.to_owned(), size_bytes));
        self
    }

    /// Adds another group, of which the settings and volumes count. Names of volumes differ between groups too.
    pub fn and(mut self, other: Self) -> Self {
        self.others.push(other);
        self
    }

    /// Sets a key of the group to a string.
    pub fn set(self, key: &str, value: &str) -> Self {
        let value = quote(value);
        self.set_raw(key, &value)
    }

    /// Sets a key of the group to a value as TOML has it.
    pub fn set_raw(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Makes the group synchronous.
    pub fn sync(self) -> Self {
        self.set("mode", "sync")
    }

    /// Bounds each host's journal; 64 MiB by default.
    pub fn journal_max_bytes(mut self, bytes: u64) -> Self {
        self.journal_max_bytes = bytes;
        self
    }

    /// Lets `from` reach its peer at `address`, where a relay of the test listens (see [`Pair::prepare`]).
    pub fn route(mut self, from: Side, address: SocketAddr) -> Self {
        self.routes[from as usize] = Some(address);
        self
    }

    /// Runs everything of `side` in a network namespace, where it listens on `address`.
    fn within(mut self, side: Side, namespace: &str, address: IpAddr) -> Self {
        self.places[side as usize] = Some((namespace.to_owned(), address));
        self
    }

    /// Alpha at one end of a line, beta at the other.
    pub fn over(self, wan: &Wan) -> Self {
        self.within(Side::Alpha, wan.ns_a(), wan.address_a().into()).within(
            Side::Beta,
            wan.ns_b(),
            wan.address_b().into(),
        )
    }

    /// Has each host show its metrics ([`Host::metrics`]).
    pub fn metrics(mut self) -> Self {
        self.metrics = true;
        self
    }

    /// Takes the product's programs from a directory.
    pub fn bin_dir(mut self, dir: &Path) -> Self {
        self.bin_dir = Some(dir.to_owned());
        self
    }

    /// One of the product's programs, where `side` runs.
    fn program(&self, side: Side, name: &str) -> Result<Command> {
        let program = match &self.bin_dir {
            Some(dir) => dir.join(name),
            None => product_program(name)?,
        };
        let Some((namespace, _)) = &self.places[side as usize] else { return Ok(Command::new(program)) };
        // It becomes the program, so that the process id is the program's.
        let mut command = Command::new(find_program("ip")?);
        command.args(["netns", "exec", namespace]).arg(program);
        Ok(command)
    }

    fn listen(&self, side: Side) -> Result<SocketAddr> {
        let mut address = ports::free_udp()?;
        if let Some((_, ip)) = &self.places[side as usize] {
            address.set_ip(*ip);
        }
        Ok(address)
    }

    fn config(&self, host: &Host, peer_listen: SocketAddr) -> String {
        let address = self.routes[host.side as usize].unwrap_or(peer_listen);
        let mut text = format!(
            "[node]\nname = {}\nlisten = {}\nstate_dir = {}\n\n[peer]\nname = {}\naddress = {}\n",
            quote(host.side.name()),
            quote(&host.listen.to_string()),
            quote_path(&host.state_dir()),
            quote(host.side.peer().name()),
            quote(&address.to_string()),
        );
        if let Some(metrics) = host.metrics {
            let line = format!("[node]\nmetrics = {}\n", quote(&metrics.to_string()));
            text = text.replacen("[node]\n", &line, 1);
        }
        for group in self.groups() {
            text.push_str(&group.group_config(host));
        }
        text
    }

    fn group_config(&self, host: &Host) -> String {
        let mut text = format!("\n[group.{}]\nprimary = \"alpha\"\n", self.group);
        for (key, value) in &self.settings {
            text.push_str(&format!("{key} = {value}\n"));
        }
        let journal = quote_path(&host.dir.join("journal"));
        let max_size = self.journal_max_bytes >> 20;
        text.push_str(&format!("journal = {{ dir = {journal}, max_size = \"{max_size}MiB\" }}\n"));
        for (name, _) in &self.volumes {
            text.push_str(&format!(
                "\n[[group.{}.volume]]\nname = {}\ndevice = {}\nexport = {{ nbd = {} }}\n",
                self.group,
                quote(name),
                quote_path(&host.volume(name)),
                quote_path(&host.export(name)),
            ));
        }
        text
    }

    /// This group and the others.
    fn groups(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    fn all_volumes(&self) -> impl Iterator<Item = &(String, u64)> {
        self.groups().flat_map(|group| &group.volumes)
    }

    fn disk_bytes(&self) -> u64 {
        let volumes: u64 = self.all_volumes().map(|&(_, size)| size).sum();
        let journals: u64 = self.groups().map(|group| group.journal_max_bytes).sum();
        2 * (volumes + journals) + OVERHEAD_BYTES
    }
}

/// One host.
#[derive(Debug)]
pub struct Host {
    /// Which of the two.
    pub side: Side,
    /// Where everything of it is.
    pub dir: PathBuf,
    /// Where its receiver listens.
    pub listen: SocketAddr,
    /// Where its agent shows its metrics, and on the next port its receiver; nowhere unless that was asked for.
    pub metrics: Option<SocketAddr>,
    /// Its agent, while there is one.
    pub agent: Option<Process>,
    /// Its receiver, while there is one.
    pub receiver: Option<Process>,
}

impl Host {
    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("afterimage.toml")
    }

    /// Puts `to` in the place of the first `from` in its configuration file.
    pub fn reconfigure(&self, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(self.config())?;
        ensure!(text.contains(from), "{from} is not in {text}");
        fs::write(self.config(), text.replacen(from, to, 1)).context("change the configuration")
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The image file of a volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.img"))
    }

    /// The NBD socket of a volume, served while this host is the primary.
    pub fn export(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sock"))
    }

    /// What the agent or receiver logs.
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.dir.join(format!("{daemon}.log"))
    }

    /// Kills agent and receiver at once, as far as they run: the end of a host, but for its page cache.
    pub fn kill(&mut self) -> Result<()> {
        for process in [self.agent.take(), self.receiver.take()].iter_mut().flatten() {
            process.kill()?;
        }
        Ok(())
    }
}

/// The two hosts.
#[derive(Debug)]
pub struct Pair {
    options: PairOptions,
    // Before the directory, so that nothing writes into it when it is removed.
    hosts: [Host; 2],
    scratch: Scratch,
}

impl Pair {
    /// Makes both hosts, pairs them and starts all four daemons. Returns once each answers.
    pub fn start(options: PairOptions) -> Result<Self> {
        let mut pair = Self::prepare(options)?;
        pair.join()?;
        for side in Side::BOTH {
            if pair.host(side).receiver.is_none() {
                pair.start_receiver(side)?;
            }
            pair.start_agent(side)?;
        }
        Ok(pair)
    }

    /// Makes the directories, the volumes and the configurations, and starts nothing. [`Host::listen`] is fixed from
    /// here on: a test with a relay takes it from here, and then sets the way by [`Pair::route`].
    pub fn prepare(options: PairOptions) -> Result<Self> {
        let scratch = Scratch::new(options.disk_bytes())?;
        let host = |side: Side| -> Result<Host> {
            let dir = scratch.path().join(side.name());
            let metrics = options.metrics.then(ports::free_tcp_twice).transpose()?;
            Ok(Host { side, dir, listen: options.listen(side)?, metrics, agent: None, receiver: None })
        };
        let hosts = [host(Side::Alpha)?, host(Side::Beta)?];
        for host in &hosts {
            for dir in [host.dir.clone(), host.state_dir(), host.dir.join("journal")] {
                fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
            }
            for (name, size) in options.all_volumes() {
                let path = host.volume(name);
                let made = File::create(&path).and_then(|file| file.set_len(*size));
                made.with_context(|| format!("make the volume {}", path.display()))?;
            }
        }
        let pair = Self { options, hosts, scratch };
        for side in Side::BOTH {
            pair.write_config(side)?;
        }
        Ok(pair)
    }

    /// Lets `from` reach its peer at `address`; its daemons know after their next start.
    pub fn route(&mut self, from: Side, address: SocketAddr) -> Result<()> {
        self.options.routes[from as usize] = Some(address);
        self.write_config(from)
    }

    /// Makes the hosts know each other: a token of alpha's, used by beta. Leaves alpha's receiver running.
    pub fn join(&mut self) -> Result<()> {
        self.start_receiver(Side::Alpha)?;
        let printed = self.command(Side::Alpha, &["pair", "--new"])?.success().context("make a token")?;
        let token = printed.lines().map(str::trim).rfind(|line| !line.is_empty());
        let token = token.ok_or_else(|| anyhow!("`pair --new` printed no token"))?;
        self.command(Side::Beta, &["pair", token])?.success().context("use the token")?;
        Ok(())
    }

    /// A host.
    pub fn host(&self, side: Side) -> &Host {
        &self.hosts[side as usize]
    }

    /// A host, to start and end its daemons.
    pub fn host_mut(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[side as usize]
    }

    /// Starts a host's agent, and waits until it answers. A running one is killed first.
    pub fn start_agent(&mut self, side: Side) -> Result<()> {
        self.host_mut(side).agent = None;
        let process = self.start_daemon(side, "agent")?;
        self.host_mut(side).agent = Some(process);
        Ok(())
    }

    /// Starts a host's receiver, and waits until it answers. A running one is killed first.
    pub fn start_receiver(&mut self, side: Side) -> Result<()> {
        self.host_mut(side).receiver = None;
        let process = self.start_daemon(side, "receiver")?;
        self.host_mut(side).receiver = Some(process);
        Ok(())
    }

    /// Like [`Pair::start_agent`], with a service manager that hears what the agent says, and takes it for dead after
    /// `watchdog` without a ping.
    pub fn start_agent_under(&mut self, side: Side, manager: &Notified, watchdog: Duration) -> Result<()> {
        self.host_mut(side).agent = None;
        let process = self.start_daemon_with(side, "agent", |command| manager.give_to(command, watchdog))?;
        self.host_mut(side).agent = Some(process);
        Ok(())
    }

    /// Like [`Pair::start_receiver`], under a service manager as [`Pair::start_agent_under`] says.
    pub fn start_receiver_under(&mut self, side: Side, manager: &Notified, watchdog: Duration) -> Result<()> {
        self.host_mut(side).receiver = None;
        let process =
            self.start_daemon_with(side, "receiver", |command| manager.give_to(command, watchdog))?;
        self.host_mut(side).receiver = Some(process);
        Ok(())
    }

    /// Starts a host's receiver and agent.
    pub fn start_host(&mut self, side: Side) -> Result<()> {
        self.start_receiver(side)?;
        self.start_agent(side)
    }

    /// Runs the operator's command on a host, with the host's configuration.
    pub fn command(&self, side: Side, args: &[&str]) -> Result<Finished> {
        run(&mut self.command_line(side, args)?, COMMAND_LIMIT).with_context(|| format!("on {}", side.name()))
    }

    /// What [`Pair::command`] runs.
    pub fn command_line(&self, side: Side, args: &[&str]) -> Result<Command> {
        let mut command = self.options.program(side, "afterimage")?;
        command.arg("--config").arg(self.host(side).config()).args(args);
        Ok(command)
    }

    /// What `afterimage status --json` prints on a host.
    pub fn status_json(&self, side: Side) -> Result<Value> {
        let printed = self.command(side, &["status", "--json"])?.success()?;
        serde_json::from_str(&printed)
            .with_context(|| format!("read the status of {}: {printed}", side.name()))
    }

    /// Waits until the status of this pair's group on a host is as `wanted` says, and returns it. Until then a host
    /// whose status cannot be read counts as not there yet.
    pub fn wait_for(&self, side: Side, limit: Duration, wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        self.wait_for_group(&self.options.group, side, limit, wanted)
    }

    /// Like [`Pair::wait_for`], for one of several groups.
    pub fn wait_for_group(
        &self,
        name: &str,
        side: Side,
        limit: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let started = Instant::now();
        loop {
            let seen = self.status_json(side).and_then(|status| group_of(&status, name));
            match seen {
                Ok(group) if wanted(&group) => return Ok(group),
                seen if started.elapsed() > limit => {
                    let seen = seen.map_or_else(|error| format!("{error:#}"), |group| format!("{group:#}"));
                    bail!("not so within {limit:?} on {}: {seen}\n{}", side.name(), self.logs());
                }
                _ => sleep(STATUS_POLL),
            }
        }
    }

    /// Waits until the group's `protection` on a host is as said, such as `in_sync`.
    pub fn wait_protection(&self, side: Side, protection: &str, limit: Duration) -> Result<Value> {
        self.wait_for(side, limit, |group| group["protection"] == protection)
            .with_context(|| format!("wait for protection {protection}"))
    }

    /// Makes a host the primary; what `afterimage promote --json` prints.
    pub fn promote(&self, side: Side) -> Result<Value> {
        self.promote_with(side, &[])
    }

    /// Like [`Pair::promote`], with more arguments, such as `--at`.
    pub fn promote_with(&self, side: Side, args: &[&str]) -> Result<Value> {
        let group = self.options.group.clone();
        let args = [&["promote", &group, "--json"], args].concat();
        let printed = self.command(side, &args)?.success().with_context(|| format!("promote {group}"))?;
        serde_json::from_str(&printed)
            .with_context(|| format!("read the outcome of the promotion: {printed}"))
    }

    /// Connects to a volume's export on a host; tries again until `limit`, since the agent makes it when it may serve.
    pub fn connect(&self, side: Side, volume: &str, limit: Duration) -> Result<Client> {
        let path = self.host(side).export(volume);
        let started = Instant::now();
        loop {
            match Client::connect_unix(&path, volume) {
                Ok(client) => return Ok(client),
                Err(error) if started.elapsed() > limit => {
                    let logs = self.logs();
                    return Err(error).with_context(|| format!("connect to {}\n{logs}", path.display()));
                }
                Err(_) => sleep(POLL),
            }
        }
    }

    /// What a [`Writer`](super::Writer) connects with: the group's volumes, in their order, on a host.
    pub fn connector(&self, side: Side) -> Arc<Connect> {
        let names: Vec<String> = self.options.volumes.iter().map(|(name, _)| name.clone()).collect();
        let paths: Vec<PathBuf> = names.iter().map(|name| self.host(side).export(name)).collect();
        Arc::new(move |volume| {
            let index = volume as usize;
            Client::connect_unix(&paths[index], &names[index])
        })
    }

    /// Waits until the standby of `side` durably has all that was written there so far.
    pub fn wait_caught_up(&self, side: Side, limit: Duration) -> Result<Value> {
        self.wait_group_caught_up(&self.options.group, side, limit)
    }

    /// Like [`Pair::wait_caught_up`], for one of several groups.
    pub fn wait_group_caught_up(&self, name: &str, side: Side, limit: Duration) -> Result<Value> {
        let streams =
            |group: &Value| matches!(group["protection"].as_str(), Some("in_sync" | "async_streaming"));
        self.wait_for_group(name, side, limit, |group| {
            streams(group) && group["durable_sequence"].as_u64() >= group["position"]["sequence"].as_u64()
        })
        .with_context(|| format!("wait until the standby has everything of {name}"))
    }

    /// Waits until the primary on `side` has noted that its standby has what was written: up to a second after it has. What is not
    /// noted counts as different if the primary is killed or replaced.
    pub fn wait_noted(&self, side: Side, limit: Duration) -> Result<Value> {
        self.wait_for(side, limit, |group| group["dirty_bytes"] == 0)
            .context("wait until the primary has noted what its standby has")
    }

    /// The whole of a volume, read through its export on a host.
    pub fn read_volume(&self, side: Side, volume: &str) -> Result<Vec<u8>> {
        let mut client = self.connect(side, volume, START_LIMIT)?;
        let image = read_image(&mut client).with_context(|| format!("read {volume} on {}", side.name()))?;
        client.disconnect().context("end the connection")?;
        Ok(image)
    }

    /// Writes the first `bytes` of a volume on a host, a whole number of MiB, in pieces that depend on `seed`; flushed.
    pub fn fill(&self, side: Side, volume: &str, bytes: u64, seed: u64) -> Result<()> {
        let mut client = self.connect(side, volume, LIMIT)?;
        for offset in (0..bytes).step_by(1 << 20) {
            client.write(offset, &filler(seed + offset, 1 << 20))?;
        }
        client.flush()?;
        client.disconnect().context("end the connection")
    }

    /// Writes these blocks of a volume on a host, each with something that depends on `seed` and its place; flushed.
    pub fn write_blocks(
        &self,
        side: Side,
        volume: &str,
        seed: u64,
        blocks: impl IntoIterator<Item = u64>,
    ) -> Result<()> {
        let mut client = self.connect(side, volume, LIMIT)?;
        for block in blocks {
            client.write(block * BLOCK_BYTES as u64, &filler(seed + block, BLOCK_BYTES))?;
        }
        client.flush()?;
        client.disconnect().context("end the connection")
    }

    /// Like [`Pair::write_blocks`], with `count` blocks here and there.
    pub fn write_scattered(&self, side: Side, volume: &str, seed: u64, count: u64) -> Result<()> {
        let blocks = self.blocks(volume);
        self.write_blocks(side, volume, seed, (0..count).map(|n| (seed * 7919 + n * 131) % blocks))
    }

    /// Waits until a standby's volume is `expected`: what it has durably gets there a little later.
    pub fn wait_base(&self, standby: Side, volume: &str, expected: &[u8]) -> Result<()> {
        let started = Instant::now();
        loop {
            let found = fs::read(self.host(standby).volume(volume))?;
            match ensure_same("the standby's base", expected, &found) {
                Err(error) if started.elapsed() > LIMIT => return Err(error),
                Err(_) => sleep(STATUS_POLL),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Waits until the standby of `primary` has all of a volume.
    pub fn wait_same(&self, primary: Side, volume: &str) -> Result<()> {
        self.wait_caught_up(primary, LIMIT)?;
        self.wait_base(primary.peer(), volume, &self.read_volume(primary, volume)?)
    }

    /// Loses alpha once beta has everything, promotes beta, and compares what they serve.
    pub fn ensure_promoted_is_same(&mut self, volume: &str) -> Result<()> {
        self.wait_caught_up(Side::Alpha, LIMIT)?;
        let primary = self.read_volume(Side::Alpha, volume)?;
        self.host_mut(Side::Alpha).kill()?;
        self.promote(Side::Beta)?;
        ensure_same("the promoted image", &primary, &self.read_volume(Side::Beta, volume)?)
    }

    /// Blocks in a volume.
    pub fn blocks(&self, volume: &str) -> u64 {
        let found = self.options.all_volumes().find(|(name, _)| name == volume);
        found.map_or(0, |&(_, size)| size / BLOCK_BYTES as u64)
    }

    /// Fails if the pair takes more disk than it said.
    pub fn check_disk(&self) -> Result<()> {
        self.scratch.check()
    }

    /// The end of every daemon's log, for an error message.
    pub fn logs(&self) -> String {
        let daemons = self.hosts.iter().flat_map(|host| {
            let daemons = [("agent", &host.agent), ("receiver", &host.receiver)];
            daemons.map(|(daemon, process)| (host.side.name(), daemon, process))
        });
        let tails = daemons.map(|(host, daemon, process)| match process {
            Some(process) => format!("--- {daemon} of {host}\n{}", process.log_tail()),
            None => format!("--- {daemon} of {host} is not running\n"),
        });
        tails.collect()
    }

    fn write_config(&self, side: Side) -> Result<()> {
        let host = self.host(side);
        let text = self.options.config(host, self.host(side.peer()).listen);
        let path = host.config();
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn start_daemon(&self, side: Side, daemon: &str) -> Result<Process> {
        self.start_daemon_with(side, daemon, |_| ())
    }

    fn start_daemon_with(&self, side: Side, daemon: &str, set: impl Fn(&mut Command)) -> Result<Process> {
        let host = self.host(side);
        let mut command = self.options.program(side, &format!("afterimage-{daemon}"))?;
        command.arg("--config").arg(host.config());
        set(&mut command);
        let mut process = Process::spawn(&mut command, &host.log(daemon))?;
        let socket = host.state_dir().join(format!("{daemon}.sock"));
        let started = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            process.ensure_running().with_context(|| format!("start the {daemon} of {}", side.name()))?;
            if started.elapsed() > START_LIMIT {
                let log = process.log_tail();
                bail!("the {daemon} of {} does not answer after {START_LIMIT:?}: {log}", side.name());
            }
            sleep(POLL);
        }
        Ok(process)
    }
}

fn group_of(status: &Value, name: &str) -> Result<Value> {
    let found = status["groups"].as_array().into_iter().flatten().find(|group| group["name"] == name);
    found.cloned().ok_or_else(|| anyhow!("no group {name} in {status}"))
}

/// A TOML string. What JSON escapes, TOML reads alike.
fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

fn quote_path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

#[cfg(test)]
mod tests;
