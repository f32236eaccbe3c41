//! Exit statuses, and the errors that carry them.

use std::process::ExitCode;

use afterimage_contract::admin::{AdminError, ErrorCode, Failure};
use afterimage_contract::config::ConfigError;

/// Exit statuses other than 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Failed; nothing changed unless the message says so.
    Failed,
    /// Wrong use: the command line names something that does not exist.
    WrongUse,
    /// Refused, because it would be unsafe.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Failed => 1,
            Exit::WrongUse => 2,
            Exit::Refused => 3,
        })
    }
}

/// Why a command did not do what was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandError {
    /// The exit status.
    pub exit: Exit,
    /// What happened, to which thing, and what to do; empty when it has been said.
    pub message: String,
}

impl CommandError {
    /// It was tried and failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into() }
    }

    /// The command line names something that does not exist.
    pub fn wrong_use(message: impl Into<String>) -> Self {
        Self { exit: Exit::WrongUse, message: message.into() }
    }
}

/// An error of a daemon. Where the request was sent and no answer came, what it did is not known, and `what_now` is added.
pub fn explain(error: AdminError, what_now: Option<String>) -> CommandError {
    let uncertain =
        matches!(error, AdminError::Timeout { .. } | AdminError::Broken { .. } | AdminError::Answer(_));
    let mut error = CommandError::from(error);
    if let Some(what_now) = what_now.filter(|_| uncertain) {
        error.message += &format!("\n{what_now}");
    }
    error
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        let head =
            if matches!(error, ConfigError::Invalid(_)) { "the configuration is not valid:\n" } else { "" };
        Self::failed(format!("{head}{error}"))
    }
}

impl From<AdminError> for CommandError {
    fn from(error: AdminError) -> Self {
        let exit = match &error {
            AdminError::Failed(Failure { code: ErrorCode::Refused, .. }) => Exit::Refused,
            AdminError::Failed(Failure { code: ErrorCode::UnknownGroup | ErrorCode::BadRequest, .. }) => {
                Exit::WrongUse
            }
            _ => Exit::Failed,
        };
        Self { exit, message: error.to_string() }
    }
}
