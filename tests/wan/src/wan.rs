//! The link as its user holds it.

use std::{io, net::Ipv4Addr, process, time::Duration};

use crate::{
    control::Command,
    line::{Counters, Line, splitmix64},
    netns::{self, Namespaces},
    profile::{Direction, Profile, ProfileError},
    pump::{Lines, Pump},
};

const ADDRESS_A: Ipv4Addr = Ipv4Addr::new(10, 231, 0, 1);
const ADDRESS_B: Ipv4Addr = Ipv4Addr::new(10, 231, 0, 2);

/// What a link is made from. Both ways begin equal.
#[derive(Clone, Debug)]
pub struct WanConfig {
    /// The namespaces are called `PREFIX-a` and `PREFIX-b`. Links with different prefixes live side by side.
    pub name_prefix: String,
    /// One-way delay; a round trip takes twice as long.
    pub delay: Duration,
    /// Packets lost each way, in percent.
    pub loss_pct: f64,
    /// Mbit/s each way; 0 for no limit.
    pub rate_mbit: f64,
    /// Decides which packets are lost.
    pub seed: u64,
}

impl WanConfig {
    /// A link that only takes its time: nothing is lost, and there is no limit.
    pub fn lossless(name_prefix: &str, delay: Duration) -> Self {
        Self { name_prefix: name_prefix.to_owned(), delay, loss_pct: 0.0, rate_mbit: 0.0, seed: 1 }
    }
}

/// A link that is up. Dropping it removes the namespaces; processes that still run inside lose their network.
#[derive(Debug)]
pub struct Wan {
    // The devices have to be closed before the namespaces can go.
    pump: Pump,
    namespaces: Namespaces,
}

impl Wan {
    /// Makes the namespaces and starts forwarding. What a killed run with the same prefix left is removed; a
    /// run that is still alive is an error.
    pub fn up(config: WanConfig) -> Result<Self, WanError> {
        let profile = Profile { delay: config.delay, loss_pct: config.loss_pct, rate_mbit: config.rate_mbit };
        let line = |direction| Line::new(profile, Self::line_seed(config.seed, direction));
        let lines = Lines { ab: line(Direction::AToB)?, ba: line(Direction::BToA)? };
        let namespaces = Namespaces::create(&config.name_prefix)?;
        let tun_a = netns::open_tun(namespaces.name_a(), ADDRESS_A)?;
        let tun_b = netns::open_tun(namespaces.name_b(), ADDRESS_B)?;
        let pump = Pump::start(tun_a, tun_b, lines)?;
        Ok(Self { pump, namespaces })
    }

    /// The name of the namespace of side a.
    pub fn ns_a(&self) -> &str {
        self.namespaces.name_a()
    }

    /// The name of the namespace of side b.
    pub fn ns_b(&self) -> &str {
        self.namespaces.name_b()
    }

    /// The address of side a.
    pub fn address_a(&self) -> Ipv4Addr {
        ADDRESS_A
    }

    /// The address of side b.
    pub fn address_b(&self) -> Ipv4Addr {
        ADDRESS_B
    }

    /// `ip netns exec NS`, to which the caller adds a program and its arguments. The child's pid is the
    /// program's: `ip` becomes it.
    pub fn command_in(&self, ns: &str) -> process::Command {
        let mut command = process::Command::new("ip");
        command.args(["netns", "exec", ns]);
        command
    }

    /// Runs `work` on a thread inside namespace `ns`. A socket made there stays there and can be handed out,
    /// so one process can hold both ends of the link.
    pub fn run_in<T: Send>(&self, ns: &str, work: impl FnOnce() -> T + Send) -> Result<T, WanError> {
        netns::run_in(ns, work)
    }

    /// Loses everything that way, also what is on its way. When this returns nothing passes any more.
    pub fn cut(&self, direction: Direction) -> Result<(), WanError> {
        self.pump.with_lines(move |lines| lines.select(direction).for_each(Line::cut))
    }

    /// Ends every cut.
    pub fn heal(&self) -> Result<(), WanError> {
        self.pump.with_lines(|lines| lines.select(Direction::Both).for_each(Line::heal))
    }

    /// Changes the line for the packets to come.
    pub fn set_profile(&self, direction: Direction, profile: Profile) -> Result<(), WanError> {
        profile.check()?;
        self.change(direction, move |now| *now = profile)
    }

    /// Does what a line of control says.
    pub fn apply(&self, command: Command) -> Result<(), WanError> {
        match command {
            Command::Delay(delay, direction) => self.change(direction, move |now| now.delay = delay),
            Command::Loss(loss_pct, direction) => self.change(direction, move |now| now.loss_pct = loss_pct),
            Command::Rate(rate_mbit, direction) => {
                self.change(direction, move |now| now.rate_mbit = rate_mbit)
            }
            Command::Cut(direction) => self.cut(direction),
            Command::Heal => self.heal(),
            Command::Counters => Ok(()),
        }
    }

    /// What has happened so far: from a to b, from b to a.
    pub fn counters(&self) -> Result<(Counters, Counters), WanError> {
        self.pump.with_lines(|lines| (lines.ab.counters(), lines.ba.counters()))
    }

    /// The seed of the [`Line`] one way of a link with `seed`: a test can tell beforehand what will be lost.
    pub fn line_seed(seed: u64, direction: Direction) -> u64 {
        match direction {
            Direction::AToB | Direction::Both => splitmix64(seed),
            Direction::BToA => splitmix64(!seed),
        }
    }

    fn change(
        &self,
        direction: Direction,
        edit: impl Fn(&mut Profile) + Send + 'static,
    ) -> Result<(), WanError> {
        self.pump.with_lines(move |lines| {
            lines.select(direction).try_for_each(|line| {
                let mut profile = line.profile();
                edit(&mut profile);
                line.set_profile(profile)
            })
        })??;
        Ok(())
    }
}

impl Lines {
    fn select(&mut self, direction: Direction) -> impl Iterator<Item = &mut Line> {
        let ways = [(Direction::AToB, &mut self.ab), (Direction::BToA, &mut self.ba)];
        ways.into_iter().filter_map(move |(way, line)| direction.covers(way).then_some(line))
    }
}

/// A link that could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum WanError {
    /// Namespaces and TUN devices belong to root.
    #[error("making network namespaces needs root: run this as root")]
    NotRoot,
    /// `ip` is missing.
    #[error("the command `ip` was not found: install iproute2")]
    NoIproute2,
    /// The kernel or the container has no TUN.
    #[error("/dev/net/tun is missing: load the module `tun`, or give the container that device")]
    NoTun,
    /// Another process has a link of this name.
    #[error("a link with the prefix `{0}` is up already: choose another prefix, or end the other one")]
    InUse(String),
    /// Not usable as a name.
    #[error("`{0}` cannot be a prefix: use 1 to 32 letters, digits and `-`, not `-` first")]
    Prefix(String),
    /// No line can be like this.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// `ip` refused.
    #[error("`ip {command}` failed: {message}")]
    Ip {
        /// Its arguments.
        command: String,
        /// What it said.
        message: String,
    },
    /// The forwarding thread has ended; what happened was printed by it.
    #[error("the link is down: its forwarding has stopped")]
    Stopped,
    /// The system refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl WanError {
    pub(crate) fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}
