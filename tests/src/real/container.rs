//! A host that boots: a real systemd as process 1 of namespaces of its own, with a root directory of the test's and what is
//! [`Beneath`] it of this machine.
//!
//! It has its own processes, mounts, name and control groups, and the network and devices that it is given. Needs root, and
//! a kernel with overlayfs and the second version of control groups. Nothing of this machine is changed, and everything ends with
//! the [`Container`], or with the test, however that ends; but for one case: when the test is killed while a file system is mounted
//! on what a process of the host serves through FUSE, that process may hang until its connection in `/sys/fs/fuse` is aborted.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::process::POLL;
use super::{Finished, Process, find_program, run};

/// The script that makes the root directory and becomes systemd.
const BOOT: &str = include_str!("container/boot.sh");
/// Longest wait for a boot, a command or a shutdown: a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// How long what was killed may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How often is looked whether something has come about that takes a command to see.
const COMMAND_POLL: Duration = Duration::from_millis(50);
/// What the names of control groups begin with; the test's process id follows.
const GROUP_PREFIX: &str = "afterimage-test-";
/// Lines of the journal that an error shows.
const JOURNAL_LINES: &str = "60";

/// What a host has of this machine, which it cannot change.
#[derive(Clone, Copy, Debug)]
pub enum Beneath<'a> {
    /// The programs, and else nothing: it is a fresh host.
    Programs {
        /// Block devices that it has, each with its name here.
        devices: &'a [&'a Path],
    },
    /// All that is installed and set up, but for what is started.
    Everything {
        /// Directories that are this machine's own, to be written to.
        shared: &'a [PathBuf],
    },
}

/// A running host; killed when dropped.
#[derive(Debug)]
pub struct Container {
    name: String,
    // All in this order: the control group can go once nothing is in it, and what is mounted once no process is left (see `drop`).
    outside: Process,
    group: ControlGroup,
    _mounts: Option<fs::File>,
    /// Its systemd, as this machine counts processes.
    init: u32,
}

impl Container {
    /// Boots a host whose files are in `root`, a directory that is made for the first boot (its disk is `disk` there), and returns
    /// once everything that starts with it has. `network` is the file of a network namespace, such as [`super::wire::Wire`] has.
    pub fn boot(name: &str, root: &Path, network: &str, beneath: Beneath<'_>) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "only root can boot a host: run this test as root");
        fs::create_dir_all(root).with_context(|| format!("make {}", root.display()))?;
        let script = root.with_extension("boot.sh");
        fs::write(&script, BOOT).with_context(|| format!("write {}", script.display()))?;
        let group = ControlGroup::make(name)?;
        let mut command = Command::new(find_program("setpriv")?);
        // It ends with this thread, and everything in it with it.
        command.args(["--pdeathsig", "KILL"]).arg(find_program("nsenter")?).arg(format!("--net={network}"));
        command.arg(find_program("unshare")?);
        command.args(["--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork"]);
        command.args(["--kill-child", "sh", "-euc", r#"echo 0 >"$0" && exec unshare --cgroup sh -eu "$@""#]);
        command.arg(group.dir.join("cgroup.procs")).arg(&script).arg(root).arg(name);
        match beneath {
            Beneath::Programs { devices } => {
                command.arg("usr");
                for device in devices {
                    let number =
                        fs::metadata(device).with_context(|| format!("look at {}", device.display()))?.rdev();
                    command.arg("device").arg(device.file_name().context("a device has a name")?);
                    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
                    command.args([major.to_string(), minor.to_string()]);
                }
            }
            Beneath::Everything { shared } => {
                command.arg("all");
                for directory in shared {
                    command.arg("share").arg(directory);
                }
            }
        }
        let outside = Process::spawn(&mut command, &root.with_extension("boot.log"))?;
        let mut container = Self { name: name.to_owned(), outside, group, _mounts: None, init: 0 };
        container.wait_booted().with_context(|| format!("boot {name}"))?;
        let mounts = format!("/proc/{}/ns/mnt", container.init);
        container._mounts = Some(fs::File::open(&mounts).with_context(|| format!("open {mounts}"))?);
        Ok(container)
    }

    fn wait_booted(&mut self) -> Result<()> {
        // Where systemd puts itself, and only itself.
        let procs = self.group.dir.join("init.scope/cgroup.procs");
        let started = Instant::now();
        loop {
            self.outside.ensure_running()?;
            let first = fs::read_to_string(&procs).ok().and_then(|text| text.lines().next()?.parse().ok());
            if let Some(init) = first {
                self.init = init;
                // Something of this machine's /usr may fail without harm; what is tested here is looked at by the test.
                let said = self.run(&["systemctl", "is-system-running", "--wait"])?;
                if ["running", "degraded"].contains(&said.stdout.trim()) {
                    return Ok(());
                }
            }
            ensure!(started.elapsed() < LIMIT, "systemd does not come up: {}", self.outside.log_tail());
            sleep(COMMAND_POLL);
        }
    }

    /// A program of the host's, to be run by its root.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(find_program("nsenter")?);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin").env("LANG", "C.UTF-8");
        command.args(["--target", &self.init.to_string(), "--all", "--", program]);
        Ok(command)
    }

    /// Runs a program of the host's to its end.
    pub fn run(&self, words: &[&str]) -> Result<Finished> {
        let (program, arguments) = words.split_first().context("a program has a name")?;
        run(self.command(program)?.args(arguments), LIMIT)
            .with_context(|| format!("{} on {}", words.join(" "), self.name))
    }

    /// What a program of the host's printed, if it ended with exit status 0.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let done = self.run(words)?.success();
        done.with_context(|| format!("{} on {}\n{}", words.join(" "), self.name, self.journal()))
    }

    /// Waits until a program of the host's prints something for which `wanted` holds; what that was. Until then, a failure
    /// counts as not yet.
    pub fn wait_until(&self, words: &[&str], wanted: impl Fn(&str) -> bool) -> Result<String> {
        let started = Instant::now();
        loop {
            let done = self.run(words)?;
            if done.status.success() && wanted(&done.stdout) {
                return Ok(done.stdout);
            }
            if started.elapsed() > LIMIT {
                let (what, name) = (words.join(" "), &self.name);
                bail!("not so within {LIMIT:?} on {name}: {what}: {done:?}\n{}", self.journal());
            }
            sleep(COMMAND_POLL);
        }
    }

    /// A property of a unit, such as `StatusText`.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        let value = self.ask(&["systemctl", "show", "--value", "--property", property, unit])?;
        Ok(value.trim_end().to_owned())
    }

    /// Waits until a property of a unit is as `wanted` says; what it is then.
    pub fn wait_property(&self, unit: &str, property: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let words = ["systemctl", "show", "--value", "--property", property, unit];
        Ok(self.wait_until(&words, |value| wanted(value.trim_end()))?.trim_end().to_owned())
    }

    /// Where a file of the host's, given by its full path there, is reached from here.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Writes a file of the host's; its directory is made.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let here = self.path(path);
        let made = here.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&here, text));
        made.with_context(|| format!("write {path} on {}", self.name))
    }

    /// The end of its journal, for an error message.
    pub fn journal(&self) -> String {
        let words = ["journalctl", "--no-pager", "--lines", JOURNAL_LINES];
        let said = self.run(&words).and_then(Finished::success);
        format!("--- journal of {}\n{}", self.name, said.unwrap_or_else(|error| format!("{error:#}")))
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        // When its systemd ends it has no program any more, and then the others are killed.
        fs::read_link(format!("/proc/{}/exe", self.init)).is_ok()
    }

    /// Waits until it is off, by its own doing.
    pub fn wait_off(mut self) -> Result<()> {
        // What process 1 of a namespace ends with says nothing.
        self.outside.wait(LIMIT).with_context(|| format!("wait for the end of {}", self.name)).map(drop)
    }

    /// Shuts it down in good order, as its root does.
    pub fn power_off(self) -> Result<()> {
        self.run(&["systemctl", "--no-block", "poweroff"])?;
        self.wait_off()
    }
}

impl Drop for Container {
    /// What is mounted there is unmounted when the last one goes that has it. That must not be a process of the host's: it may be
    /// the one that serves the file system, and would wait for itself.
    fn drop(&mut self) {
        // It may be off; there is nobody to tell.
        let _ = self.outside.kill();
        let started = Instant::now();
        // It ends when all others have, even those that are in no control group of the host's.
        while is_alive(self.init) {
            if started.elapsed() > KILL_LIMIT {
                eprintln!("{} does not end", self.name);
                return;
            }
            sleep(POLL);
        }
    }
}

/// Whether there is a process that has not ended.
fn is_alive(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A block device backed by a file. The kernel takes it away once nobody has it open: this, and the hosts that were given it.
#[derive(Debug)]
pub struct Loop {
    path: PathBuf,
    _open: fs::File,
}

impl Loop {
    /// Makes a device of a file.
    pub fn over(file: &Path) -> Result<Self> {
        let losetup = find_program("losetup")?;
        let made = run(Command::new(&losetup).args(["--find", "--show", "--direct-io=on"]).arg(file), LIMIT)?;
        let path = PathBuf::from(made.success().context("make a loop device")?.trim_end());
        let open = fs::File::open(&path).with_context(|| format!("open {}", path.display()));
        // While it is open, this takes effect when it is closed: also by the end of this process.
        let detached = run(Command::new(&losetup).arg("--detach").arg(&path), LIMIT)?.success();
        detached.context("have the loop device end with its use")?;
        Ok(Self { path, _open: open? })
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The control group below which a host has its own.
#[derive(Debug)]
struct ControlGroup {
    dir: PathBuf,
}

impl ControlGroup {
    fn make(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("read what is mounted")?;
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let all = fields
            .filter(|fields| fields.get(2) == Some(&"cgroup2"))
            .find_map(|fields| fields.get(1).copied());
        let all = Path::new(all.context("no control groups of the second version are mounted")?);
        remove_orphans(all);
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = all.join(format!("{GROUP_PREFIX}{}-{number}-{name}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("make the control group {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Ends everything in it and removes it.
    fn remove(&self) -> Result<()> {
        fs::write(self.dir.join("cgroup.kill"), "1").context("kill what is in it")?;
        let started = Instant::now();
        while !fs::read_to_string(self.dir.join("cgroup.events"))?.contains("populated 0") {
            ensure!(started.elapsed() < KILL_LIMIT, "it does not become empty");
            sleep(POLL);
        }
        remove_groups(&self.dir)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the control group {} is left: {error:#}", self.dir.display());
        }
    }
}

/// Removes the control groups, empty by now, of tests that were killed: unlike all else they do not end by themselves.
fn remove_orphans(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_prefix(GROUP_PREFIX).and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        if !Path::new("/proc").join(process).exists() {
            // Another test may be about to do the same.
            let _ = remove_groups(&entry.path());
        }
    }
}

/// Removes a control group and those below it. Their files are the kernel's and go with them.
fn remove_groups(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))
}
