//! A wire between two network namespaces. Needs root.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::real::process::POLL;
use crate::real::{Process, Side, find_program, run};

const LIMIT: Duration = Duration::from_secs(20);
/// The interface at each end.
const INTERFACE: &str = "eth0";

/// Two network namespaces, without names, that end with this.
#[derive(Debug)]
pub struct Wire {
    /// Processes that do nothing but be in a namespace.
    holders: [Process; 2],
}

impl Wire {
    /// Joins two new namespaces.
    pub fn lay(logs: &Path) -> Result<Self> {
        let hold = |side: Side| {
            // Also gone if the test is killed.
            let mut command = Command::new(find_program("setpriv")?);
            command.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]);
            Process::spawn(&mut command, &logs.join(format!("{}-net.log", side.name())))
        };
        let mut wire = Self { holders: [hold(Side::Alpha)?, hold(Side::Beta)?] };
        let began = Instant::now();
        let own = fs::read_link("/proc/self/ns/net").context("look at the network namespace")?;
        for side in Side::BOTH {
            let namespace = wire.namespace(side);
            // It may be between two programs.
            while fs::read_link(&namespace).map_or(true, |found| found == own) {
                wire.holders[side as usize].ensure_running()?;
                ensure!(began.elapsed() < LIMIT, "there is no network namespace of its own");
                sleep(POLL);
            }
        }
        let [alpha, beta] = Side::BOTH.map(|side| wire.holders[side as usize].pid().to_string());
        let ends = ["netns", &alpha, "type", "veth", "peer", "name", INTERFACE, "netns", &beta];
        run(Command::new(find_program("ip")?).args(["link", "add", INTERFACE]).args(ends), LIMIT)?
            .success()?;
        for side in Side::BOTH {
            wire.ip(side, &["address", "add", &format!("{}/24", address(side)), "dev", INTERFACE])?;
            wire.ip(side, &["link", "set", "lo", "up"])?;
            wire.plug(side)?;
        }
        Ok(wire)
    }

    /// The file that stands for a host's namespace.
    pub fn namespace(&self, side: Side) -> String {
        format!("/proc/{}/ns/net", self.holders[side as usize].pid())
    }

    /// Plugs a host's end in.
    pub fn plug(&self, side: Side) -> Result<()> {
        self.ip(side, &["link", "set", INTERFACE, "up"])
    }

    /// Unplugs a host's end: what is sent to it is lost without a word.
    pub fn unplug(&self, side: Side) -> Result<()> {
        self.ip(side, &["link", "set", INTERFACE, "down"])
    }

    fn ip(&self, side: Side, args: &[&str]) -> Result<()> {
        let mut command = Command::new(find_program("nsenter")?);
        command.arg(format!("--net={}", self.namespace(side))).arg(find_program("ip")?).args(args);
        run(&mut command, LIMIT)?.success().with_context(|| format!("ip {}", args.join(" "))).map(drop)
    }
}

/// The address of a host: set aside for documentation (RFC 5737).
pub fn address(side: Side) -> &'static str {
    match side {
        Side::Alpha => "192.0.2.1",
        Side::Beta => "192.0.2.2",
    }
}
