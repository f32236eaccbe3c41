//! The systemd units and what installs them: systemd finds nothing wrong with them, they are as shut off as is promised, and
//! installing again changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::real::{Finished, Scratch, find_program, product_program, run};

const LIMIT: Duration = Duration::from_secs(60);
/// What `systemd-analyze security` may say at most, in tenths.
const MAX_EXPOSURE: &str = "20";
const UNITS: [&str; 3] =
    ["afterimage-agent.service", "afterimage-receiver.service", "afterimage-verify@.service"];

/// A tree that things are installed to.
struct Tree {
    scratch: Scratch,
}

impl Tree {
    fn new() -> Result<Self> {
        Ok(Self { scratch: Scratch::new(2 << 30)? })
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    fn install(&self, arguments: &[&str]) -> Result<Finished> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/install");
        let program = product_program("afterimage")?;
        let bin_dir = program.parent().context("it is in a directory")?;
        let mut command = Command::new(script);
        command.arg("--destdir").arg(self.root()).arg("--bin-dir").arg(bin_dir).args(arguments);
        run(&mut command, LIMIT)
    }

    /// Every file with its mode and contents.
    fn files(&self) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![self.root()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let mode = path.metadata()?.permissions().mode() & 0o7777;
                    let name = path.strip_prefix(self.root())?.to_owned();
                    files.insert(name, (mode, fs::read(&path)?));
                }
            }
        }
        Ok(files)
    }

    fn unit(&self, name: &str) -> PathBuf {
        self.root().join("usr/lib/systemd/system").join(name)
    }
}

#[test]
fn installing_twice_is_installing_once_and_uninstalling_leaves_what_is_the_operators() -> Result<()> {
    let tree = Tree::new()?;
    let said = tree.install(&[])?.success()?;
    ensure!(said.contains(" 0 were up to date"), "{said}");
    let first = tree.files()?;
    for (file, mode) in [
        ("usr/bin/afterimage", 0o755),
        ("usr/bin/afterimage-agent", 0o755),
        ("usr/bin/afterimage-receiver", 0o755),
        ("usr/lib/systemd/system/afterimage-agent.service", 0o644),
        ("usr/lib/systemd/system/afterimage-receiver.service", 0o644),
        ("usr/lib/systemd/system/afterimage-verify@.timer", 0o644),
        ("usr/lib/sysusers.d/afterimage.conf", 0o644),
        ("usr/lib/tmpfiles.d/afterimage.conf", 0o644),
        ("usr/lib/udev/rules.d/60-afterimage.rules", 0o644),
        ("usr/lib/ocf/resource.d/afterimage/afterimage", 0o755),
        ("usr/share/man/man1/afterimage.1", 0o644),
        ("usr/share/man/man1/afterimage-config-reload.1", 0o644),
        ("usr/share/man/man8/afterimage-agent.8", 0o644),
        ("usr/share/man/man8/afterimage-receiver.8", 0o644),
        ("usr/share/bash-completion/completions/afterimage", 0o644),
        ("usr/share/zsh/vendor-completions/_afterimage", 0o644),
        ("usr/share/fish/vendor_completions.d/afterimage-agent.fish", 0o644),
        ("usr/share/doc/afterimage/afterimage.example.toml", 0o644),
    ] {
        let found = first.get(Path::new(file)).with_context(|| format!("{file} is not installed"))?;
        ensure!(found.0 == mode, "{file} has mode {:o}", found.0);
    }
    ensure!(tree.root().join("etc/afterimage/hooks").is_dir());

    let said = tree.install(&[])?.success()?;
    ensure!(said.starts_with("installed 0 files, "), "{said}");
    ensure!(tree.files()? == first, "the second time has changed something");

    // What is out of date is brought up to date, and nothing else is touched.
    fs::write(tree.unit("afterimage-agent.service"), "old")?;
    let configuration = tree.root().join("etc/afterimage/afterimage.toml");
    fs::write(&configuration, "mine")?;
    let said = tree.install(&[])?.success()?;
    ensure!(said.starts_with("installed 1 files, "), "{said}");
    let mut third = tree.files()?;
    ensure!(
        third.remove(Path::new("etc/afterimage/afterimage.toml")).is_some_and(|(_, text)| text == b"mine")
    );
    ensure!(third == first);

    tree.install(&["--uninstall"])?.success()?;
    let left: Vec<PathBuf> = tree.files()?.into_keys().collect();
    ensure!(left == [Path::new("etc/afterimage/afterimage.toml")], "{left:?}");

    for (arguments, said) in
        [(["--prefix", "/usr"], "unknown argument"), (["--destdir", ""], "needs a directory")]
    {
        let wrong = tree.install(&arguments)?;
        ensure!(wrong.status.code() == Some(2) && wrong.stderr.contains(said), "{wrong:?}");
    }
    tree.scratch.check()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() -> Result<()> {
    let tree = Tree::new()?;
    tree.install(&[])?.success()?;
    let bin = format!("={}/", tree.root().join("usr/bin").display());
    for unit in UNITS.iter().chain(&["afterimage-verify@.timer"]) {
        // The programs are where they are installed to, and not in /usr/bin of this machine.
        let path = tree.unit(unit);
        let text = fs::read_to_string(&path)?;
        fs::write(&path, text.replace("=/usr/bin/", &bin))?;
    }
    for unit in UNITS.iter().chain(&["afterimage-verify@.timer"]) {
        let mut verify = Command::new(find_program("systemd-analyze")?);
        verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(tree.unit(unit));
        let done = run(&mut verify, LIMIT)?;
        ensure!(done.status.success() && done.stderr.is_empty(), "{unit}: {done:?}");
    }
    Ok(())
}

#[test]
fn the_units_are_shut_off_and_reach_block_devices() -> Result<()> {
    let tree = Tree::new()?;
    tree.install(&[])?.success()?;
    for unit in UNITS {
        let mut security = Command::new(find_program("systemd-analyze")?);
        security.args(["security", "--offline=true", "--no-pager", "--threshold", MAX_EXPOSURE]);
        let done = run(security.arg(tree.unit(unit)), LIMIT)?;
        let score = done.stdout.lines().last().unwrap_or_default();
        ensure!(done.status.success(), "{unit} is over {MAX_EXPOSURE} tenths: {score}\n{}", done.stderr);
        println!("{score}");
    }
    for daemon in &UNITS[..2] {
        let text = fs::read_to_string(tree.unit(daemon))?;
        let has = |line: &str| text.lines().any(|known| known == line);
        // ProtectClock= makes a list of devices of it, on which these have to be.
        ensure!(has("ProtectClock=yes") && has("DeviceAllow=block-* rw"), "{daemon}");
        ensure!(has("DeviceAllow=/dev/cpu_dma_latency w"), "{daemon}");
        ensure!(has("SupplementaryGroups=disk") && !has("PrivateDevices=yes"), "{daemon}");
        ensure!(has("Type=notify") && has("WatchdogSec=30"), "{daemon}");
    }
    Ok(())
}

#[test]
fn the_user_and_the_directories_are_made() -> Result<()> {
    let tree = Tree::new()?;
    tree.install(&[])?.success()?;
    let root = format!("--root={}", tree.root().display());
    for program in ["systemd-sysusers", "systemd-tmpfiles"] {
        let mut command = Command::new(find_program(program)?);
        command.arg(&root);
        if program == "systemd-tmpfiles" {
            command.arg("--create");
        }
        command.arg("afterimage.conf");
        run(&mut command, LIMIT)?.success().with_context(|| format!("run {program}"))?;
    }
    let passwd = fs::read_to_string(tree.root().join("etc/passwd"))?;
    ensure!(passwd.lines().any(|line| line.starts_with("afterimage:")), "{passwd}");
    let groups = fs::read_to_string(tree.root().join("etc/group"))?;
    ensure!(groups.lines().any(|line| line.starts_with("disk:")), "{groups}");
    for (dir, mode) in [("var/lib/afterimage", 0o700), ("run/afterimage", 0o755)] {
        let found = tree.root().join(dir).metadata().with_context(|| format!("{dir} is not made"))?;
        ensure!(found.permissions().mode() & 0o7777 == mode, "{dir}");
    }
    Ok(())
}
