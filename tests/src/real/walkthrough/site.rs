//! Two hosts on one wire.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Typed;
use crate::real::wire::address;
use crate::real::{Beneath, Container, Scratch, Side, Wire, find_program, run};

/// What the disks of both hosts may take: the programs, and a small volume with its journal.
const DISK_BYTES: u64 = 3 << 30;

/// A shell. Its arguments: the directory that it begins in after the host was switched on, and commands; the next one goes on in
/// the directory that this one ended in. What is printed is one stream, as on a terminal. A person goes on after a failure, and
/// has read what it was; this one does not.
const SHELL: &str = r#"
exec 2>&1
cd "$(cat /run/typed-in 2>/dev/null || echo "$1")"
trap 'pwd >/run/typed-in' EXIT
trap 'echo "failed: $BASH_COMMAND"' ERR
eval "$2"
"#;

/// Two hosts, alpha and beta, which know each other by name.
#[derive(Debug)]
pub struct Site {
    // Off before the wire and the disks go.
    hosts: [Option<Container>; 2],
    wire: Wire,
    shared: Vec<PathBuf>,
    scratch: Scratch,
}

impl Site {
    /// Two hosts that are off. Commands are typed in the directory of the sources, which, like Cargo's directories, is this
    /// machine's.
    pub fn new() -> Result<Self> {
        let scratch = Scratch::new(DISK_BYTES)?;
        // The services' user has to reach the disks.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))
            .context("open the directory")?;
        let wire = Wire::lay(scratch.path())?;
        Ok(Self { hosts: [None, None], wire, shared: shared()?, scratch })
    }

    /// Types commands on a host, which is switched on if it is off. Commands that switch it off may do so.
    pub fn type_in(&mut self, side: Side, commands: &str, limit: Duration) -> Result<Typed> {
        if self.hosts[side as usize].is_none() {
            self.hosts[side as usize] = Some(self.switch_on(side)?);
        }
        let host = &mut self.hosts[side as usize];
        let mut typed = type_in(host.as_ref().context("it is on")?, commands, limit)?;
        let last = commands.lines().last().unwrap_or_default();
        if last.starts_with("systemctl poweroff") {
            host.take().map_or(Ok(()), Container::wait_off)?;
            self.wire.unplug(side)?;
            // The shell is gone with everything else.
            typed.success = true;
        } else if !host.as_ref().is_some_and(Container::is_on) {
            bail!("{} has gone off:\n{}", side.name(), typed.printed);
        }
        Ok(typed)
    }

    fn switch_on(&self, side: Side) -> Result<Container> {
        self.wire.plug(side)?;
        let beneath = Beneath::Everything { shared: &self.shared };
        let host = Container::boot(side.name(), &self.root(side), &self.wire.namespace(side), beneath)?;
        let names = Side::BOTH.map(|side| format!("{} {}\n", address(side), side.name())).concat();
        host.write("/etc/hosts", &format!("127.0.0.1 localhost\n{names}"))?;
        Ok(host)
    }

    /// The ends of the journals of the hosts that are on.
    pub fn logs(&self) -> String {
        self.hosts.iter().flatten().map(Container::journal).collect()
    }

    /// Fails if the disks have taken more than they may.
    pub fn check_disk(&self) -> Result<()> {
        self.scratch.check()
    }

    /// The disk of a host: what is there of this machine's is not in it.
    pub fn disk(&self, side: Side) -> PathBuf {
        self.root(side).join("disk")
    }

    fn root(&self, side: Side) -> PathBuf {
        self.scratch.path().join(side.name())
    }
}

/// Gives commands to a shell on a host.
fn type_in(host: &Container, commands: &str, limit: Duration) -> Result<Typed> {
    let mut command = host.command("bash")?;
    command.args(["-ec", SHELL, "bash"]).arg(sources()?).arg(commands);
    for name in KEPT {
        command.envs(env::var_os(name).map(|value| (name, value)));
    }
    command.env("PATH", path()?);
    let done = run(&mut command, limit)?;
    Ok(Typed { success: done.status.success(), printed: done.stdout + &done.stderr })
}

/// What a shell there has of this process' environment: what Cargo would build everything anew without, and where it is.
const KEPT: [&str; 6] =
    ["HOME", "CARGO_HOME", "CARGO_INCREMENTAL", "RUSTFLAGS", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];

/// The PATH of Debian's root, and Cargo.
fn path() -> Result<String> {
    let cargo = find_program("cargo")?;
    let cargo = cargo.parent().context("it is in a directory")?;
    Ok(format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", cargo.display()))
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
