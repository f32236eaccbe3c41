//! The two network namespaces and their TUN devices. Owns the names and sees that they go away again, however
//! this process ends; what passes through the devices is the pump's.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{fs::OpenOptionsExt, net::SocketAddr, net::UnixListener, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::wan::WanError;

/// Where iproute2 keeps the names.
const NETNS_DIR: &str = "/run/netns";
const TUN_DEVICE: &str = "/dev/net/tun";
/// The name of the device inside each namespace.
const INTERFACE: &str = "wan0";
/// Packets the kernel holds for the pump: at 2.5 Gbit/s some 20 ms, the time a busy machine may not run it.
const DEVICE_QUEUE_PACKETS: &str = "4096";
/// How long a run that was just killed may take to remove what it had.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

/// Two named namespaces. Dropping it removes them; so does the end of this process, even by SIGKILL.
#[derive(Debug)]
pub(crate) struct Namespaces {
    names: [String; 2],
    reaper: Child,
    /// Held for as long as the names are in use; the kernel frees it with the last process that holds it.
    _claim: UnixListener,
}

impl Namespaces {
    /// Makes `PREFIX-a` and `PREFIX-b`, after removing what a killed run left under these names.
    pub(crate) fn create(prefix: &str) -> Result<Self, WanError> {
        check_prefix(prefix)?;
        check_host()?;
        let claim = claim(prefix)?;
        let names = [format!("{prefix}-a"), format!("{prefix}-b")];
        for name in &names {
            remove(name)?;
        }
        let reaper = start_reaper(&names, &claim)?;
        let namespaces = Self { names, reaper, _claim: claim };
        for name in &namespaces.names {
            ip(&["netns", "add", name])?;
        }
        Ok(namespaces)
    }

    pub(crate) fn name_a(&self) -> &str {
        &self.names[0]
    }

    pub(crate) fn name_b(&self) -> &str {
        &self.names[1]
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        drop(self.reaper.stdin.take());
        let _ = self.reaper.wait();
        for name in &self.names {
            // The reaper has done this already, unless somebody killed it. A name that stays is removed by
            // the next run.
            let _ = remove(name);
        }
    }
}

/// A shell that waits for the end of this process, seen as the end of its input, and then removes the names.
/// It holds the claim as its output, so that no new run begins before it is done.
fn start_reaper(names: &[String; 2], claim: &UnixListener) -> Result<Child, WanError> {
    const SCRIPT: &str =
        "trap '' INT TERM HUP; cat >/dev/null; for n; do ip netns del \"$n\" >/dev/null 2>&1; done";
    let claim = claim.as_fd().try_clone_to_owned().map_err(WanError::io("share the claim on the names"))?;
    Command::new("sh")
        .args(["-c", SCRIPT, "wan-reaper"])
        .args(names)
        .stdin(Stdio::piped())
        .stdout(claim)
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(WanError::io("start sh"))
}

/// Opens the device of namespace `name`, with `address`/24, up.
pub(crate) fn open_tun(name: &str, address: Ipv4Addr) -> Result<OwnedFd, WanError> {
    let tun = run_in(name, || {
        // Otherwise the kernel's own neighbour and multicast packets would take part in the loss pattern.
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            if Path::new(&path).exists() {
                fs::write(&path, "1").map_err(WanError::io("disable IPv6 in the namespace"))?;
            }
        }
        attach_tun().map_err(WanError::io("make a TUN device in the namespace"))
    })??;
    let address = format!("{address}/24");
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    ip(&["-n", name, "addr", "add", &address, "dev", INTERFACE])?;
    ip(&["-n", name, "link", "set", INTERFACE, "txqueuelen", DEVICE_QUEUE_PACKETS, "up"])?;
    Ok(tun)
}

/// Runs `work` on a thread of its own that has entered namespace `name`.
pub(crate) fn run_in<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, WanError> {
    let namespace = File::open(path_of(name)).map_err(WanError::io("open the namespace"))?;
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| WanError::io("enter the namespace")(error.into()))?;
            Ok(work())
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn attach_tun() -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN_DEVICE)?;
    // SAFETY: `ifreq` is plain C data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is and which outlives the call; the
    // name in it ends with a zero because INTERFACE is shorter than the field.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

fn check_prefix(prefix: &str) -> Result<(), WanError> {
    let fits = (1..=32).contains(&prefix.len());
    let plain = prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fits && plain && !prefix.starts_with('-') { Ok(()) } else { Err(WanError::Prefix(prefix.to_owned())) }
}

fn check_host() -> Result<(), WanError> {
    if !rustix::process::geteuid().is_root() {
        return Err(WanError::NotRoot);
    }
    if !Path::new(TUN_DEVICE).exists() {
        return Err(WanError::NoTun);
    }
    Ok(())
}

/// Takes the prefix for this process. Waits for the reaper of a run that was just killed.
fn claim(prefix: &str) -> Result<UnixListener, WanError> {
    let address = SocketAddr::from_abstract_name(format!("afterimage-wan/{prefix}"))
        .map_err(WanError::io("name the claim"))?;
    let deadline = Instant::now() + REAP_TIMEOUT;
    loop {
        match UnixListener::bind_addr(&address) {
            Ok(claim) => return Ok(claim),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                return Err(WanError::io("claim the names")(error));
            }
            Err(_) if Instant::now() > deadline => return Err(WanError::InUse(prefix.to_owned())),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

fn remove(name: &str) -> Result<(), WanError> {
    if path_of(name).exists() { ip(&["netns", "del", name]) } else { Ok(()) }
}

fn ip(arguments: &[&str]) -> Result<(), WanError> {
    let output =
        Command::new("ip").args(arguments).stdin(Stdio::null()).output().map_err(|error| {
            match error.kind() {
                io::ErrorKind::NotFound => WanError::NoIproute2,
                _ => WanError::io("start ip")(error),
            }
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(WanError::Ip {
        command: arguments.join(" "),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
