//! Two hosts on one wire.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Typed;
use super::machine::Machine;
use super::wire::{Wire, address};
use crate::real::{Scratch, Side};

/// What the disks of both hosts may take: the programs, and a small volume with its journal.
const DISK_BYTES: u64 = 3 << 30;
/// How long a start of the services may take.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Where Debian's systemctl is looked for before its own directory.
const SYSTEMCTL: &str = "usr/local/sbin/systemctl";

/// Two hosts, alpha and beta, which know each other by name.
#[derive(Debug)]
pub struct Site {
    // Off before the wire and the disks go.
    machines: [Machine; 2],
    wire: Wire,
    shared: Vec<PathBuf>,
    scratch: Scratch,
}

impl Site {
    /// Two hosts that are off. `systemctl` is the program of that name there. Commands are typed in the directory of the sources,
    /// which, like Cargo's directories, is this machine's.
    pub fn new(systemctl: &Path) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "hosts in namespaces are root's to make: run this test as root"
        );
        let scratch = Scratch::new(DISK_BYTES)?;
        // The services' user has to reach the disks.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))
            .context("open the directory")?;
        let systemctl = fs::read(systemctl).with_context(|| format!("read {}", systemctl.display()))?;
        let hosts = Side::BOTH.map(|side| format!("{} {}\n", address(side), side.name())).concat();
        let machine = |side: Side| {
            let files = [
                ("etc/hosts", format!("127.0.0.1 localhost\n{hosts}").into_bytes()),
                ("etc/hostname", format!("{}\n", side.name()).into_bytes()),
                (SYSTEMCTL, systemctl.clone()),
            ];
            let dir = scratch.path().join(side.name());
            let machine = Machine::new(side.name(), &dir, &files)?;
            let file = dir.join("disk").join(SYSTEMCTL);
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).context("make it executable")?;
            anyhow::Ok(machine)
        };
        let machines = [machine(Side::Alpha)?, machine(Side::Beta)?];
        let wire = Wire::lay(scratch.path())?;
        Ok(Self { machines, wire, shared: shared()?, scratch })
    }

    /// Types commands on a host, which is switched on if it is off. Commands that switch it off may do so.
    pub fn type_in(&mut self, side: Side, commands: &str, limit: Duration) -> Result<Typed> {
        let machine = &mut self.machines[side as usize];
        if !machine.is_on() {
            self.wire.plug(side)?;
            machine.switch_on(&self.wire.namespace(side), &self.shared)?;
            // What is enabled is started, as at the end of every boot.
            let started = machine.type_in(sources()?, "systemctl default", START_LIMIT)?;
            ensure!(started.success, "{} does not start its services: {}", side.name(), started.printed);
        }
        let mut typed = machine.type_in(sources()?, commands, limit)?;
        let last = commands.lines().last().unwrap_or_default();
        if last.starts_with("systemctl poweroff") {
            machine.wait_off()?;
            self.wire.unplug(side)?;
            // The shell is gone with everything else.
            typed.success = true;
        } else if !machine.is_on() {
            bail!("{} has gone off:\n{}", side.name(), typed.printed);
        }
        Ok(typed)
    }

    /// The ends of the daemons' logs on both hosts.
    pub fn logs(&self) -> String {
        self.machines.iter().map(Machine::logs).collect()
    }

    /// Fails if the disks have taken more than they may.
    pub fn check_disk(&self) -> Result<()> {
        self.scratch.check()
    }

    /// The disk of a host: what is there of this machine's is not in it.
    pub fn disk(&self, side: Side) -> PathBuf {
        self.scratch.path().join(side.name()).join("disk")
    }
}

/// Where the sources are, and with them `target`.
fn sources() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("it is in a directory")
}

/// Directories that have to be this machine's.
fn shared() -> Result<Vec<PathBuf>> {
    let home = PathBuf::from(env::var_os("HOME").context("there is no HOME")?);
    let cargo =
        |variable: &str, dir: &str| env::var_os(variable).map_or_else(|| home.join(dir), PathBuf::from);
    let all = [sources()?.to_owned(), cargo("CARGO_HOME", ".cargo"), cargo("RUSTUP_HOME", ".rustup")];
    Ok(all.into_iter().filter(|dir| dir.is_dir()).collect())
}
