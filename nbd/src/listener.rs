//! Sockets to listen on: a unix socket that only owner and group reach, and TCP that stays on this host unless it
//! is told otherwise.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};

/// Clients that wait to be accepted. More than a server admits by default.
const BACKLOG: u32 = 128;
/// Mode of the socket: owner and group.
const SOCKET_MODE: u32 = 0o660;
/// The directory is locked for the few system calls of a bind: half a second is far more than another server
/// needs.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Why a socket could not be opened. Nothing was changed, except that a directory may have been made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket's directory is not there and could not be made, or could not be opened.
    #[error("cannot prepare the directory of the socket {}: {source}", path.display())]
    Directory {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody listens on it.
    #[error("the socket {} is in use by another server: stop that one or choose another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket stands there; it is left alone.
    #[error("{} exists and is not a socket: remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The directory stayed locked by another process.
    #[error("the directory of the socket {} is locked by another process", path.display())]
    Locked {
        /// The socket.
        path: PathBuf,
    },
    /// Any other failure with a unix socket.
    #[error("cannot listen on the socket {}: {source}", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A TCP address that other hosts reach, without leave.
    #[error(
        "{addr} can be reached from other hosts and NBD has no authentication: allow it in the configuration or use a loopback address"
    )]
    RemoteNotAllowed {
        /// The address.
        addr: SocketAddr,
    },
    /// Any other failure with TCP.
    #[error("cannot listen on {addr}: {source}")]
    Tcp {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A unix socket that is listening. Its file goes with it.
#[derive(Debug)]
pub struct UnixEndpoint {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file, to tell it from another server's.
    identity: Option<(u64, u64)>,
}

impl UnixEndpoint {
    /// Listens on `path`, mode 0660, making its directory if there is none.
    ///
    /// A socket that a killed process left there is replaced; one that somebody listens on is not. Blocks for half a
    /// second at most, and usually not at all. Panics outside of a tokio runtime.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, BindError> {
        let path = path.as_ref();
        let failed = |source: io::Error| BindError::Unix { path: path.to_owned(), source };
        // Held until the end: between finding a socket dead and replacing it no other server may do the same.
        let _lock = lock_directory(path)?;
        let listener = match listen(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                listen(path).map_err(failed)?
            }
            outcome => outcome.map_err(failed)?,
        };
        let mut endpoint = Self { listener, path: path.to_owned(), identity: None };
        endpoint.identity = Some(identity(path).map_err(failed)?);
        // The umask may have taken bits of the group away.
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
        Ok(endpoint)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixEndpoint {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path).ok() == self.identity {
            // If it stays, the next server finds it stale and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A TCP socket that is listening.
#[derive(Debug)]
pub struct TcpEndpoint {
    pub(crate) listener: TcpListener,
}

impl TcpEndpoint {
    /// Listens on `addr`; port 0 chooses a free one. An address that is not loopback needs `allow_remote`.
    /// Panics outside of a tokio runtime.
    pub fn bind(addr: SocketAddr, allow_remote: bool) -> Result<Self, BindError> {
        if !allow_remote && !addr.ip().to_canonical().is_loopback() {
            return Err(BindError::RemoteNotAllowed { addr });
        }
        let failed = |source| BindError::Tcp { addr, source };
        let socket =
            if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
        // A restarted server must not wait for old connections to be forgotten.
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind(addr).map_err(failed)?;
        Ok(Self { listener: socket.listen(BACKLOG).map_err(failed)? })
    }

    /// The address with the port that was chosen.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn lock_directory(path: &Path) -> Result<rustix::fd::OwnedFd, BindError> {
    let failed = |source| BindError::Directory { path: path.to_owned(), source };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    for _ in 0..LOCK_ATTEMPTS {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Err(BindError::Locked { path: path.to_owned() })
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // Before the bind, so that the file is never open to others, whatever the umask.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Unix { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the socket of a server that is gone");
            fs::remove_file(path).map_err(failed)
        }
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
        Err(source) => Err(failed(source)),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
