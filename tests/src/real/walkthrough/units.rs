//! What answers to `systemctl` on a host that has no systemd: it reads the installed units, and starts and stops what they say.
//!
//! Of systemd it knows: `Type=notify`, the user and groups, `UMask=`, `Environment=`, the state and runtime directories, what
//! `ProtectSystem=strict`, `ProtectHome=`, `PrivateTmp=` and `ReadWritePaths=` make of the file system, no capabilities and no new
//! privileges, the time limits of start and stop, drop-ins, and what is enabled. It does not know: `Restart=`, the watchdog,
//! filters of system calls and devices, and dependencies between units. What it does not know in a command, it refuses.

mod process;
mod unit;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use unit::Unit;

/// Where the output of services goes.
pub const LOG_DIR: &str = "/var/log/journal-stand-in";
/// The units that begin when the host does.
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants";

/// Does what a command line of `systemctl` says; the exit status.
pub fn systemctl(args: &[String]) -> Result<u8> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["daemon-reload"] => {}
        ["default"] => {
            if Path::new("/usr/lib/tmpfiles.d/afterimage.conf").exists() {
                process::tool("systemd-tmpfiles", &["--create", "afterimage.conf"])?;
            }
            for name in wanted()? {
                process::start(&Unit::read(&name)?)?;
            }
        }
        ["poweroff", "--force", "--force"] => {
            let first = Pid::from_raw(1).context("there is a first process")?;
            kill_process(first, Signal::TERM).context("end the first process")?;
            // This process ends with it.
            std::thread::park();
        }
        ["is-active", name] => {
            let active = process::main_pid(&Unit::read(name)?)?.is_some();
            println!("{}", if active { "active" } else { "inactive" });
            return Ok(if active { 0 } else { 3 });
        }
        ["is-enabled", name] => {
            let enabled = wanted()?.contains(&Unit::read(name)?.name);
            println!("{}", if enabled { "enabled" } else { "disabled" });
            return Ok(u8::from(!enabled));
        }
        ["enable", "--now", ref names @ ..] if !names.is_empty() => {
            each(names, |unit| enable(unit).and_then(|()| process::start(unit)))?;
        }
        ["enable", ref names @ ..] if !names.is_empty() => each(names, enable)?,
        ["disable", "--now", ref names @ ..] if !names.is_empty() => {
            each(names, |unit| disable(unit).and_then(|()| process::stop(unit)))?;
        }
        ["disable", ref names @ ..] if !names.is_empty() => each(names, disable)?,
        ["start", ref names @ ..] if !names.is_empty() => each(names, process::start)?,
        ["stop", ref names @ ..] if !names.is_empty() => each(names, process::stop)?,
        ["restart", ref names @ ..] if !names.is_empty() => {
            each(names, |unit| process::stop(unit).and_then(|()| process::start(unit)))?;
        }
        ["reload", ref names @ ..] if !names.is_empty() => each(names, process::reload)?,
        _ => bail!("the stand-in does not know: systemctl {}", args.join(" ")),
    }
    Ok(0)
}

fn each(names: &[&str], action: impl Fn(&Unit) -> Result<()>) -> Result<()> {
    for name in names {
        if name.starts_with('-') {
            bail!("the stand-in does not know the option {name}");
        }
        action(&Unit::read(name)?).with_context(|| (*name).to_owned())?;
    }
    Ok(())
}

fn wanted() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(WANTED) else { return Ok(Vec::new()) };
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.context("list the enabled units").map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    // This machine's own are there, too; the host's disk began as its.
    let ours = |name: &Result<String>| !name.as_ref().is_ok_and(|name| !name.starts_with("afterimage-"));
    let mut names: Vec<String> = entries.map(name).filter(ours).collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn enable(unit: &Unit) -> Result<()> {
    if unit.last("Install", "WantedBy") != Some("multi-user.target") {
        bail!("{} is not wanted by multi-user.target", unit.name);
    }
    if wanted()?.contains(&unit.name) {
        return Ok(());
    }
    let link = Path::new(WANTED).join(&unit.name);
    fs::create_dir_all(WANTED).context("make the directory of enabled units")?;
    symlink(&unit.path, &link).with_context(|| format!("make {}", link.display()))?;
    eprintln!("Created symlink {} \u{2192} {}.", link.display(), unit.path.display());
    Ok(())
}

fn disable(unit: &Unit) -> Result<()> {
    if wanted()?.contains(&unit.name) {
        let link = Path::new(WANTED).join(&unit.name);
        fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
        eprintln!("Removed {}.", link.display());
    }
    Ok(())
}
