//! This host: directories and the space in them, devices, sockets, hooks.

use std::fs::{self, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use afterimage_contract::config::{Config, Group, Volume};
use afterimage_contract::hooks::{self, Event};
use afterimage_contract::units::ByteSize;
use afterimage_protocol::BLOCK_BYTES;

use super::Findings;

/// Room for identity, roles, logs of hot extents and reports of verifications.
const STATE_BYTES: u64 = 16 << 20;
/// What the daemons of the installed units can write, without a drop-in of the operator's.
const WRITABLE: [&str; 3] = ["/var/lib/afterimage", "/run/afterimage", "/dev"];
/// Where units and what is added to them are found.
const UNIT_DIRS: [&str; 2] = ["/usr/lib/systemd/system", "/etc/systemd/system"];
const UNITS: [&str; 2] = ["afterimage-agent.service", "afterimage-receiver.service"];
const MOUNTS: &str = "/proc/self/mountinfo";

/// Looks at everything of this host that the configuration names.
pub(super) fn check(config: &Config, findings: &mut Findings) {
    let mut volume_bytes = 0;
    let mut seen: Vec<(Device, String)> = Vec::new();
    let mounted = mounted_devices();
    for group in config.groups.values() {
        for (index, volume) in group.volumes.iter().enumerate() {
            let key = format!("group.{}.volume[{index}]", group.name);
            volume_bytes += device(volume, &key, &mounted, &mut seen, findings).unwrap_or(0);
            export(volume, &key, findings);
        }
        journal(group, findings);
    }
    state(config, volume_bytes, findings);
    listen(config, findings);
    hooks(config, findings);
    sandbox(config, &extra_paths(), findings);
}

/// What tells a device or a file from others, whatever it is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    Block(u64),
    File(u64, u64),
}

impl Device {
    fn of(found: &Metadata) -> Option<Self> {
        match found.file_type() {
            kind if kind.is_block_device() => Some(Self::Block(found.rdev())),
            kind if kind.is_file() => Some(Self::File(found.dev(), found.ino())),
            _ => None,
        }
    }
}

/// The size of a volume in bytes, if it can be told.
fn device(
    volume: &Volume,
    key: &str,
    mounted: &[u64],
    seen: &mut Vec<(Device, String)>,
    findings: &mut Findings,
) -> Option<u64> {
    let (path, key) = (&volume.device, format!("{key}.device"));
    let shown = path.display();
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            findings.error(&key, format!("{shown} is not there; make it, or name the one that is meant"));
            return None;
        }
        Err(error) => {
            findings.error(&key, format!("{shown} cannot be looked at: {error}; run the check as root"));
            return None;
        }
    };
    let Some(device) = Device::of(&found) else {
        findings.error(&key, format!("{shown} is neither a block device nor a file; name one of them"));
        return None;
    };
    if let Some((_, other)) = seen.iter().find(|(known, _)| *known == device) {
        findings.error(
            &key,
            format!("{shown} is the device of {other} under another name; each volume needs its own"),
        );
    }
    seen.push((device, key.clone()));
    if let Device::Block(number) = device
        && mounted.contains(&number)
    {
        findings.error(
            &key,
            format!("{shown} is mounted: writes to it would not be seen; unmount it, and mount what the agent serves"),
        );
    }
    let size = match size(path, device, &found) {
        Ok(size) => size,
        Err(error) => {
            findings.error(&key, format!("{shown} cannot be opened: {error}; run the check as root"));
            return None;
        }
    };
    if size == 0 {
        findings.error(&key, format!("{shown} is empty; give it a size, such as: truncate -s 10G {shown}"));
    }
    Some(size)
}

/// Read without writing: a device that is in use by the daemons can be looked at.
fn size(path: &Path, device: Device, found: &Metadata) -> std::io::Result<u64> {
    match device {
        Device::File(..) => Ok(found.len()),
        Device::Block(_) => {
            use std::io::{Seek, SeekFrom};
            OpenOptions::new().read(true).open(path)?.seek(SeekFrom::End(0))
        }
    }
}

/// The numbers of the block devices that are mounted.
fn mounted_devices() -> Vec<u64> {
    let text = fs::read_to_string(MOUNTS).unwrap_or_default();
    // The third field is `major:minor`, see proc(5).
    let number = |line: &str| {
        let (major, minor) = line.split_whitespace().nth(2)?.split_once(':')?;
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    text.lines().filter_map(number).collect()
}

fn export(volume: &Volume, key: &str, findings: &mut Findings) {
    if let Some(socket) = &volume.export.nbd
        && let Ok(found) = fs::symlink_metadata(socket)
        && !found.file_type().is_socket()
    {
        let text =
            format!("{} is there and is not a socket; remove it or choose another path", socket.display());
        findings.error(&format!("{key}.export.nbd"), text);
    }
    if let Some(device) = &volume.export.attach
        && !device.exists()
    {
        let text = format!("{} is not there; load the driver: modprobe nbd", device.display());
        findings.warning(&format!("{key}.export.attach"), text);
    }
}

fn journal(group: &Group, findings: &mut Findings) {
    let (key, path) = (format!("group.{}.journal", group.name), group.journal_path());
    let Some((free, place)) = free_bytes(&path) else { return };
    let limit = group.journal.max_size.bytes();
    let room = free.saturating_add(used_bytes(&path));
    if room < limit {
        findings.warning(
            &format!("{key}.max_size"),
            format!(
                "{} may take {}, and there are {} for it in {}; lower max_size, or give journal.dir a larger disk",
                path.display(),
                group.journal.max_size,
                ByteSize::from_bytes(room).approximate(),
                place.display()
            ),
        );
    }
}

/// Bitmaps and what else is kept of each volume.
fn state(config: &Config, volume_bytes: u64, findings: &mut Findings) {
    let dir = &config.node.state_dir;
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => {
            findings.error(
                "node.state_dir",
                format!("{} is not a directory; choose another path", dir.display()),
            );
            return;
        }
        Ok(found) if found.mode() & 0o077 != 0 => findings.warning(
            "node.state_dir",
            format!(
                "others can look into {0}, where the key of this host is; run: chmod 700 {0}",
                dir.display()
            ),
        ),
        _ => {}
    }
    // One bit for each block, and summaries of a small part of that.
    let need = STATE_BYTES + volume_bytes / BLOCK_BYTES / 8 * 65 / 64;
    if let Some((free, place)) = free_bytes(dir)
        && free.saturating_add(used_bytes(dir)) < need
    {
        findings.error(
            "node.state_dir",
            format!(
                "the bitmaps and the state need {}, and {} has {} free; make room, or choose another directory",
                ByteSize::from_bytes(need).approximate(),
                place.display(),
                ByteSize::from_bytes(free).approximate()
            ),
        );
    }
}

/// What is free where a path is or would be, in bytes, and the directory in which that was seen.
fn free_bytes(path: &Path) -> Option<(u64, &Path)> {
    let place = path.ancestors().find(|place| place.exists())?;
    let space = rustix::fs::statvfs(place).ok()?;
    Some((space.f_bavail.saturating_mul(space.f_frsize), place))
}

/// What is used by a path and all that is below it. What cannot be read counts nothing.
fn used_bytes(path: &Path) -> u64 {
    let mut bytes = 0;
    let mut dirs = vec![path.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => dirs.push(entry.path()),
                Ok(found) => bytes += found.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}

fn listen(config: &Config, findings: &mut Findings) {
    // A receiver that runs has it.
    if std::os::unix::net::UnixStream::connect(config.receiver_socket()).is_ok() {
        return;
    }
    let address = config.node.listen;
    if let Err(error) = UdpSocket::bind(address) {
        let what = match error.kind() {
            ErrorKind::AddrInUse => {
                "another program has it; stop that one, or choose another port".to_owned()
            }
            ErrorKind::AddrNotAvailable => {
                "this host has no such address; use one that it has, or \"[::]:7789\" for all".to_owned()
            }
            _ => error.to_string(),
        };
        findings.error("node.listen", format!("{address} cannot be listened on: {what}"));
    }
}

fn hooks(config: &Config, findings: &mut Findings) {
    let Some(configured) = &config.hooks else { return };
    if !configured.dir.is_dir() {
        let text = format!("{} is not there, so no hook is run; make it: mkdir -p", configured.dir.display());
        findings.warning("hooks.dir", format!("{text} {}", configured.dir.display()));
    }
    for event in Event::ALL {
        if let Err(error) = hooks::find(&configured.dir, event) {
            findings.error("hooks.dir", error.to_string());
        }
    }
}

/// What the units let the daemons write beyond [`WRITABLE`]; `None` where no unit is installed.
fn extra_paths() -> Option<Vec<PathBuf>> {
    let mut is_installed = false;
    let mut paths = Vec::new();
    for (dir, unit) in UNIT_DIRS.iter().flat_map(|dir| UNITS.map(|unit| (Path::new(dir), unit))) {
        is_installed |= dir.join(unit).exists();
        for entry in fs::read_dir(dir.join(format!("{unit}.d"))).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let listed = text.lines().filter_map(|line| line.trim().strip_prefix("ReadWritePaths="));
            let listed = listed.flat_map(str::split_whitespace);
            paths.extend(listed.map(|path| PathBuf::from(path.trim_start_matches(['-', '+']))));
        }
    }
    is_installed.then_some(paths)
}

/// What the daemons write and the sandbox of the installed units does not let them.
fn sandbox(config: &Config, extra: &Option<Vec<PathBuf>>, findings: &mut Findings) {
    let Some(extra) = extra else { return };
    let is_writable = |path: &Path| {
        WRITABLE.iter().any(|dir| path.starts_with(dir)) || extra.iter().any(|dir| path.starts_with(dir))
    };
    let mut needed = vec![("node.state_dir".to_owned(), config.node.state_dir.clone())];
    for group in config.groups.values() {
        needed.push((format!("group.{}.journal.dir", group.name), group.journal.dir.clone()));
        for (index, volume) in group.volumes.iter().enumerate() {
            let key = format!("group.{}.volume[{index}]", group.name);
            needed.push((format!("{key}.device"), volume.device.clone()));
            let socket_dir = volume.export.nbd.as_deref().and_then(Path::parent);
            needed.extend(socket_dir.map(|dir| (format!("{key}.export.nbd"), dir.to_owned())));
        }
    }
    for (key, path) in needed.into_iter().filter(|(_, path)| !is_writable(path)) {
        findings.warning(
            &key,
            format!(
                "the systemd units let nothing be written to {0}; in a drop-in of both: ReadWritePaths={0} (docs/services.md)",
                path.display()
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use afterimage_contract::config::Lines;

    use super::*;

    fn found(text: &str, dir: &Path, look: impl Fn(&Config, &mut Findings)) -> (Vec<String>, Vec<String>) {
        let text = text.replace("DIR", &dir.display().to_string());
        let config = Config::parse(&text, "a.toml").unwrap();
        let mut findings = Findings::new(Lines::new("a.toml", text));
        look(&config, &mut findings);
        let shown = |problems: Vec<afterimage_contract::config::Problem>| {
            problems
                .iter()
                .map(|problem| problem.to_string().replace(&dir.display().to_string(), "DIR"))
                .collect()
        };
        (shown(findings.errors), shown(findings.warnings))
    }

    const TEXT: &str = "[node]\nname = \"alpha\"\nlisten = \"127.0.0.1:0\"\nstate_dir = \"DIR/state\"\n[peer]\nname = \"beta\"\n\
        address = \"beta:7789\"\n[hooks]\ndir = \"DIR/hooks\"\n[group.orders]\nprimary = \"alpha\"\n\
        journal = { dir = \"DIR/journal\", max_size = \"16MiB\" }\n\
        [[group.orders.volume]]\nname = \"v\"\ndevice = \"DIR/v\"\nexport = { nbd = \"DIR/v.sock\" }\n\
        [[group.orders.volume]]\nname = \"w\"\ndevice = \"DIR/w\"\nexport = { tcp = \"127.0.0.1:10809\" }\n";

    #[test]
    fn a_host_in_order_has_no_findings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        for volume in ["v", "w"] {
            fs::File::create(path.join(volume)).unwrap().set_len(1 << 20).unwrap();
        }
        fs::create_dir(path.join("hooks")).unwrap();
        let (errors, warnings) = found(TEXT, path, |config, findings| {
            check(config, findings);
            // Units may be installed on the host of this test.
            findings.warnings.retain(|warning| !warning.message.contains("ReadWritePaths"));
        });
        assert_eq!((errors, warnings), (vec![], vec![]));
    }

    #[test]
    fn each_thing_that_is_wrong_has_its_line_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        fs::File::create(path.join("v")).unwrap();
        std::os::unix::fs::symlink("v", path.join("w")).unwrap();
        fs::write(path.join("v.sock"), "").unwrap();
        fs::write(path.join("state"), "").unwrap();
        let text = TEXT.replace("16MiB", "900000TiB").replace("127.0.0.1:0\"", "192.0.2.1:7789\"");
        let (errors, warnings) = found(&text, path, |config, findings| {
            check(config, findings);
            sandbox(config, &Some(vec![path.join("journal"), path.join("state")]), findings);
        });
        for (line, part) in [
            ("a.toml:3: node.listen: ", "this host has no such address"),
            ("a.toml:4: node.state_dir: ", "DIR/state is not a directory"),
            ("a.toml:15: group.orders.volume[0].device: ", "truncate -s 10G DIR/v"),
            ("a.toml:16: group.orders.volume[0].export.nbd: ", "is not a socket"),
            ("a.toml:19: group.orders.volume[1].device: ", "is the device of group.orders.volume[0].device"),
        ] {
            assert!(errors.iter().any(|e| e.starts_with(line) && e.contains(part)), "{line}: {errors:#?}");
        }
        for (line, part) in [
            ("a.toml:9: hooks.dir: ", "mkdir -p DIR/hooks"),
            ("a.toml:12: group.orders.journal.max_size: ", "lower max_size"),
            ("a.toml:15: group.orders.volume[0].device: ", "ReadWritePaths=DIR/v "),
        ] {
            assert!(
                warnings.iter().any(|w| w.starts_with(line) && w.contains(part)),
                "{line}: {warnings:#?}"
            );
        }
        assert!(!warnings.iter().any(|w| w.contains("ReadWritePaths=DIR/state")), "{warnings:#?}");
    }

    #[test]
    fn a_mounted_device_is_told() {
        // The root of this host is mounted, whatever it is on.
        let root = fs::metadata("/").unwrap().dev();
        let text = fs::read_to_string(MOUNTS).unwrap();
        let is_listed =
            text.contains(&format!(" {}:{} / / ", rustix::fs::major(root), rustix::fs::minor(root)));
        assert_eq!(mounted_devices().contains(&root), is_listed);
        assert!(!mounted_devices().is_empty());
    }
}
