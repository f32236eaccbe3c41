//! The configuration file, `afterimage.toml`: one shape on both hosts, described in `docs/configuration.md`.
//!
//! [`Config::parse`] is a pure function of the text. It reports everything that is wrong at once, each with
//! its line and its key, and never a configuration that is only partly right. Whether devices exist,
//! directories can be written or addresses resolve is for those who open them.

mod build;
mod error;
mod lines;
mod model;
mod read;
mod reload;
#[cfg(test)]
mod tests;
mod unique;
mod values;

use std::io::Read;
use std::path::Path;

pub use error::{ConfigError, Problem};
pub use lines::Lines;
pub use model::*;
pub use reload::{Daemon, Reload, reload};

use crate::units::ByteSize;

/// Larger files are refused before they are parsed; a full configuration of 64 groups is far below.
pub const MAX_FILE_SIZE: ByteSize = ByteSize::from_mib(4);
/// The agent's administration socket, in `node.state_dir`.
pub const AGENT_SOCKET_NAME: &str = "agent.sock";
/// The receiver's administration socket, in `node.state_dir`.
pub const RECEIVER_SOCKET_NAME: &str = "receiver.sock";

impl Config {
    /// Reads and parses a file. Blocks on the file system; for the start of a process.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::load_with_lines(path).map(|(config, _)| config)
    }

    /// As [`Config::load`], with what says where in the file a key is.
    pub fn load_with_lines(path: impl AsRef<Path>) -> Result<(Self, Lines), ConfigError> {
        let path = path.as_ref();
        let read_error = |source| ConfigError::Read { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(read_error)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_SIZE.bytes() + 1).read_to_end(&mut bytes).map_err(read_error)?;
        if bytes.len() as u64 > MAX_FILE_SIZE.bytes() {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        let text = String::from_utf8(bytes).map_err(|_| ConfigError::NotText { path: path.to_owned() })?;
        let name = path.display().to_string();
        Ok((Self::parse(&text, &name)?, Lines::new(&name, text)))
    }

    /// Parses a configuration; `name` is what the errors call the file.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        build::config(text, name).map_err(ConfigError::Invalid)
    }
}
