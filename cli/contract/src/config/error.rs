//! What is wrong, or merely doubtful, in a configuration file, and where.

use std::fmt;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}; create it or name another with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than [`super::MAX_FILE_SIZE`].
    #[error("{} is larger than {}: this is not a configuration file", path.display(), super::MAX_FILE_SIZE)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8.
    #[error("{} is not UTF-8 text: this is not a configuration file", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The text was read, and these things in it are wrong: at least one, in the order of their lines.
    #[error("{}", one_per_line(.0))]
    Invalid(Vec<Problem>),
}

fn one_per_line(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// One finding in a configuration file. Prints as `afterimage.toml:14: group.orders.mode: …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named to [`super::Config::parse`].
    pub file: String,
    /// The line, from 1; `None` when something is missing from the file as a whole.
    pub line: Option<usize>,
    /// The key with its path, such as `group.orders.volume[0].device`; `None` for a syntax error.
    pub key: Option<String>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if let Some(key) = &self.key {
            write!(f, " {key}:")?;
        }
        write!(f, " {}", self.message)
    }
}
