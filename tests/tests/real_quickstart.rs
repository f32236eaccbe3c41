//! The quickstart, typed as it stands on two hosts.
//!
//! Each host boots a real systemd in namespaces of its own, and a root directory that begins as this machine's and keeps for itself
//! what is written. Every block runs there as it is on the page; what is compared is said in `tests::real::walkthrough`. What is
//! not as on two real hosts:
//! - The sources, with `target`, and Cargo's own directories are this machine's: without programs in `target/release` that are up to
//!   date, Cargo makes them, which takes minutes.
//! - Packages have to be installed already, since the hosts have no way out.
//! - A host that was switched off loses its processes, its network and what it has in `/run`, but nothing that the kernel would still
//!   have written. It is switched on when the next block is typed on it.
//! - Each block has a shell of its own, which begins where the one before ended. It stops at the first command that fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::real::Side;
use tests::real::walkthrough::{Page, Site, walk};

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// What the page makes a file system on.
const DISK: &str = "/run/orders/disk";

#[test]
fn the_quickstart_works_as_it_is_written() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/quickstart.md");
    let page = Page::parse(&fs::read_to_string(path).context("read the page")?)?;
    let mut site = Site::new()?;
    if let Err(error) = walk(&page, |side, commands, limit| site.type_in(side, commands, limit)) {
        bail!("{error:#}\n{}", site.logs());
    }
    site.check_disk()?;
    drop(site);

    // The file system of the host that is switched off while it is mounted is gone, too: it does not wait for what served it.
    let began = Instant::now();
    while let Some(device) = loop_device_over(DISK)? {
        ensure!(began.elapsed() < LIMIT, "{} is left", device.display());
        sleep(POLL);
    }
    Ok(())
}

/// A loop device of this machine over a file of that path on a host.
fn loop_device_over(path: &str) -> Result<Option<PathBuf>> {
    for device in fs::read_dir("/sys/block")? {
        let device = device?.path();
        let file = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        if file.trim_end().trim_end_matches(" (deleted)").ends_with(path) {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// What a page about hosts would do that are no hosts of their own.
const HOSTS: &str = r#"
**On both:**

```sh
hostname
ls Cargo.toml
touch /etc/walkthrough-was-here /run/walkthrough-was-here
setsid -f sleep 86399
cd /etc
```

```text
...
Cargo.toml
```

**On alpha:**

```sh
pwd
hostname
ping -q -c 1 beta >/dev/null
systemctl poweroff --force --force
```

**On beta:**

```sh
! ping -q -c 1 -W 1 alpha >/dev/null
pgrep -c -x -f "sleep 86399"
```

```text
1
```

**On alpha:**

```sh
ls Cargo.toml /etc/walkthrough-was-here
ping -q -c 1 beta >/dev/null
! ls /run/walkthrough-was-here
! pgrep -x -f "sleep 86399"
```

```text
...
ls: cannot access '/run/walkthrough-was-here': No such file or directory
```
"#;

#[test]
fn hosts_are_apart_from_each_other_and_leave_nothing() -> Result<()> {
    let mut site = Site::new()?;
    walk(&Page::parse(HOSTS)?, |side, commands, limit| site.type_in(side, commands, limit))?;
    let typed = site.type_in(Side::Beta, "pwd; echo so far; false; echo and on", LIMIT)?;
    ensure!(!typed.success && typed.printed == "/etc\nso far\nfailed: false\n", "{typed:?}");
    let error = site
        .type_in(Side::Beta, "systemctl poweroff --force --force; sleep 60\ntrue", LIMIT)
        .map(drop)
        .unwrap_err()
        .to_string();
    ensure!(error.starts_with("beta has gone off"), "{error}");

    let disk = site.disk(Side::Alpha);
    ensure!(disk.join("etc/walkthrough-was-here").exists());
    drop(site);
    ensure!(!disk.exists());
    for file in ["/etc/walkthrough-was-here", "/run/walkthrough-was-here"] {
        ensure!(!Path::new(file).exists(), "{file} is this machine's");
    }
    for process in fs::read_dir("/proc")? {
        let arguments = fs::read(process?.path().join("cmdline")).unwrap_or_default();
        ensure!(arguments != b"sleep\x0086399\0", "a process is left");
    }
    Ok(())
}
