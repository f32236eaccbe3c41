//! What looks like a host of its own: namespaces, and a root directory that begins as this machine's and keeps what is written to it.
//! Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Typed;
use crate::real::process::POLL;
use crate::real::{Process, find_program, run};

/// How long it may take to switch it on or off.
const LIMIT: Duration = Duration::from_secs(30);

/// The first process. Its arguments: the directory of the host, its name, and directories that are this machine's. What is not
/// durable on a host, `/run` and `/tmp`, is in memory.
const FIRST: &str = r#"
set -eu
dir=$1 root=$1/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/disk,workdir=$dir/work" "$root"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
hostname "$2"
exec 3>"$dir/on"
shift 2
for shared in "$@"; do
    mkdir -p "$root$shared"
    mount --rbind "$shared" "$root$shared"
done
cd "$root"
mkdir run/machine
pivot_root . run/machine
umount -l /run/machine
rmdir /run/machine
# All other processes end with this one.
trap 'exit 0' TERM
echo on >&3
exec 3>&-
sleep infinity &
while :; do wait; done
"#;

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

/// A host.
#[derive(Debug)]
pub struct Machine {
    name: &'static str,
    dir: PathBuf,
    /// The `unshare` that waits for the first process, and that process.
    on: Option<(Process, Pid)>,
}

impl Machine {
    /// A host that is off, and whose disk is in `dir`. `files` are put on it.
    pub fn new(name: &'static str, dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<Self> {
        for part in ["disk", "work", "root"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("make {part} of {name}"))?;
        }
        for (path, content) in files {
            let file = dir.join("disk").join(path);
            fs::create_dir_all(file.parent().context("it is in a directory")?)?;
            fs::write(&file, content).with_context(|| format!("write {}", file.display()))?;
        }
        Ok(Self { name, dir: dir.to_owned(), on: None })
    }

    /// Whether it is on.
    pub fn is_on(&mut self) -> bool {
        // When the first process ends it has no program any more, and then the others are killed.
        let has_program =
            |first: &Pid| fs::read_link(format!("/proc/{}/exe", first.as_raw_nonzero())).is_ok();
        self.on.as_mut().is_some_and(|(process, first)| process.is_running() && has_program(first))
    }

    /// Switches it on, in a network namespace. Nothing is started. `shared` are directories of this machine that it can write to.
    pub fn switch_on(&mut self, network: &str, shared: &[PathBuf]) -> Result<()> {
        let (marker, log) = (self.dir.join("on"), self.dir.join("first.log"));
        fs::write(&marker, "").context("write a marker")?;
        // It ends with the test, also when that is killed.
        let mut command = Command::new(find_program("setpriv")?);
        command.args(["--pdeathsig", "KILL", "nsenter", &format!("--net={network}"), "unshare"]);
        command.args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL"]);
        command.args(["sh", "-c", FIRST, "sh"]).arg(&self.dir).arg(self.name).args(shared);
        let mut process = Process::spawn(&mut command, &log)?;
        let began = Instant::now();
        while fs::read_to_string(&marker).context("read the marker")? != "on\n" {
            process.ensure_running()?;
            ensure!(began.elapsed() < LIMIT, "{} is not on: {}", self.name, process.log_tail());
            sleep(POLL);
        }
        let children = format!("/proc/{0}/task/{0}/children", process.pid());
        let children = fs::read_to_string(&children).with_context(|| format!("read {children}"))?;
        let first =
            children.trim().parse().ok().and_then(Pid::from_raw).context("there is one first process")?;
        self.on = Some((process, first));
        Ok(())
    }

    /// Gives commands to a shell on it, which begins in a directory if it is the first one.
    pub fn type_in(&self, dir: &Path, commands: &str, limit: Duration) -> Result<Typed> {
        let (_, first) = self.on.as_ref().with_context(|| format!("{} is off", self.name))?;
        let mut command = Command::new(find_program("nsenter")?);
        command.args(["--target", &first.as_raw_nonzero().to_string(), "--wd"]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "bash", "-ec"]);
        command.args([SHELL, "bash"]).arg(dir).arg(commands);
        let own = std::env::vars_os().map(|(name, _)| name);
        for name in own.filter(|name| !name.to_str().is_some_and(is_kept)) {
            command.env_remove(name);
        }
        command.env("PATH", path()?).env("LANG", "C.UTF-8");
        let done = run(&mut command, limit)?;
        Ok(Typed { success: done.status.success(), printed: done.stdout + &done.stderr })
    }

    /// Waits until it is off; fails if it does not go off.
    pub fn wait_off(&mut self) -> Result<()> {
        let Some((process, _)) = &mut self.on else { return Ok(()) };
        process.wait(LIMIT).with_context(|| format!("wait for the end of {}", self.name))?;
        self.on = None;
        Ok(())
    }

    /// The ends of its daemons' logs.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let logs = self.dir.join("disk").join(super::units::LOG_DIR.trim_start_matches('/'));
        for entry in fs::read_dir(&logs).into_iter().flatten().flatten() {
            let log = fs::read(entry.path()).unwrap_or_default();
            let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(6000)..]).into_owned();
            text += &format!("--- {} on {}:\n{tail}", entry.file_name().to_string_lossy(), self.name);
        }
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((process, first)) = &mut self.on {
            // With it end all processes of the host, and the mounts. There is nobody to tell if it is gone.
            if process.is_running() {
                let _ = kill_process(*first, Signal::KILL);
            }
            let _ = process.wait(LIMIT);
        }
    }
}

/// What a shell there has of this process' environment: what Cargo would build everything anew without, and where it is.
fn is_kept(name: &str) -> bool {
    ["HOME", "CARGO_HOME", "CARGO_INCREMENTAL", "RUSTFLAGS", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"]
        .contains(&name)
}

/// The PATH of Debian's root, and Cargo.
fn path() -> Result<String> {
    let cargo = find_program("cargo")?;
    let cargo = cargo.parent().context("it is in a directory")?;
    Ok(format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", cargo.display()))
}
