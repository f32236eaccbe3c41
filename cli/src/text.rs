//! Text for a terminal: colour, tables, spans of time, and nothing that a stranger put there.

use std::io::{ErrorKind, IsTerminal, Write};

use afterimage_contract::status::{ApplyLag, Lag};
use afterimage_contract::units::ByteSize;

use crate::exit::CommandError;

/// Whether and how text is coloured.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    colour: bool,
}

impl Paint {
    /// No colour.
    pub const PLAIN: Self = Self { colour: false };

    /// Colour if stdout is a terminal and `NO_COLOR` is not set (<https://no-color.org>).
    pub fn for_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: !refused && std::io::stdout().is_terminal() }
    }

    /// Whether there are colours.
    pub fn is_coloured(self) -> bool {
        self.colour
    }

    /// In order.
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Ends by itself, or is worth a look.
    pub fn doubtful(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// Needs somebody.
    pub fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// A heading.
    pub fn heading(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Writes to stdout. A reader that went away (`| head`) ends the command without a message.
pub fn emit(text: &str) -> Result<(), CommandError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CommandError::failed(""),
        _ => CommandError::failed(format!("cannot write to the standard output: {error}")),
    })
}

/// `text` with its control characters replaced: it may come from the peer, and must not drive the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// As [`printable`], with the line breaks kept.
pub fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// A span of time in its two largest units, such as `3h 12m`.
pub fn span(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let largest = UNITS.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    let (unit, name) = UNITS[largest];
    let rest = seconds % unit;
    match UNITS.get(largest + 1) {
        Some((smaller, smaller_name)) if rest / smaller > 0 => {
            format!("{}{name} {}{smaller_name}", seconds / unit, rest / smaller)
        }
        _ => format!("{}{name}", seconds / unit),
    }
}

/// What a loss of the primary would cost now; "unknown" is never a number.
pub fn lag(lag: Option<Lag>) -> String {
    match lag {
        Some(lag) if lag.seconds.is_finite() && lag.seconds >= 0.0 => {
            let bytes = ByteSize::from_bytes(lag.bytes).approximate();
            if lag.seconds == 0.0 && lag.bytes == 0 {
                "none".to_owned()
            } else {
                format!("{}, {bytes}", short_span(lag.seconds))
            }
        }
        _ => "unknown".to_owned(),
    }
}

/// How far a standby's base is behind what the standby has.
pub fn apply_lag(lag: Option<ApplyLag>) -> String {
    match lag {
        Some(ApplyLag { seconds: 0.0 }) => "none".to_owned(),
        Some(ApplyLag { seconds }) if seconds.is_finite() && seconds > 0.0 => short_span(seconds),
        _ => "unknown".to_owned(),
    }
}

/// A span of time, with tenths of a second while it is short.
fn short_span(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.1}s") } else { span(seconds as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (125, "2m 5s"),
            (11_520, "3h 12m"),
            (86_400, "1d"),
            (187_200, "2d 4h"),
            (86_460, "1d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn an_unknown_lag_is_not_a_number() {
        assert_eq!(lag(None), "unknown");
        assert_eq!(lag(Some(Lag { seconds: f64::NAN, bytes: 0 })), "unknown");
        assert_eq!(lag(Some(Lag { seconds: 0.0, bytes: 0 })), "none");
        assert_eq!(lag(Some(Lag { seconds: 0.26, bytes: 4096 })), "0.3s, 4 KiB");
        assert_eq!(lag(Some(Lag { seconds: 75.0, bytes: 1 << 30 })), "1m 15s, 1 GiB");
    }

    #[test]
    fn an_unknown_apply_lag_is_not_a_number() {
        assert_eq!(apply_lag(None), "unknown");
        assert_eq!(apply_lag(Some(ApplyLag { seconds: f64::INFINITY })), "unknown");
        assert_eq!(apply_lag(Some(ApplyLag { seconds: 0.0 })), "none");
        assert_eq!(apply_lag(Some(ApplyLag { seconds: 0.26 })), "0.3s");
        assert_eq!(apply_lag(Some(ApplyLag { seconds: 86_400.5 })), "1d");
    }

    #[test]
    fn a_stranger_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a?[2Jb?c");
        assert_eq!(printable_lines("a\x1b\nb"), "a?\nb");
    }
}
