//! A service manager for daemons: listens on the sockets that they are given as `NOTIFY_SOCKET`, and remembers what they say.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest message that is taken; those of the daemons are far below.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// What one daemon says.
#[derive(Debug)]
pub struct Notified {
    socket: UnixDatagram,
    path: PathBuf,
    /// Everything so far: one assignment each, in order.
    said: Vec<String>,
    /// What was waited for lies before this.
    seen: usize,
}

impl Notified {
    /// Listens on a socket at `path`.
    pub fn listen(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        Ok(Self { socket, path: path.to_owned(), said: Vec::new(), seen: 0 })
    }

    /// Lets a daemon that is started with `command` know where to say it, and after how long without a ping it is taken for
    /// dead.
    pub fn give_to(&self, command: &mut Command, watchdog: Duration) {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    }

    /// Waits for the next assignment from here on for which `wanted` holds; what was said before it is passed by.
    pub fn wait_for(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let began = Instant::now();
        loop {
            while let Some(said) = self.said.get(self.seen) {
                self.seen += 1;
                if wanted(said) {
                    return Ok(said.clone());
                }
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                bail!("it was not said within {limit:?}; all that was: {:#?}", self.said);
            }
            self.take(left)?;
        }
    }

    /// Lets what is waited for next be anything that was said so far.
    pub fn again(&mut self) -> &mut Self {
        self.seen = 0;
        self
    }

    /// Takes the next message, if one comes within `limit`.
    fn take(&mut self, limit: Duration) -> Result<()> {
        self.socket.set_read_timeout(Some(limit)).context("set a timeout")?;
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        match self.socket.recv(&mut bytes) {
            Ok(length) => {
                let text = std::str::from_utf8(&bytes[..length]).context("a message is not text")?;
                self.said.extend(text.lines().map(str::to_owned));
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error).context("take a message"),
        }
    }
}
