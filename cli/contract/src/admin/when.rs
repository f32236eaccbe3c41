//! The point a promotion, drill or view is asked for: `--at TIME|SEQUENCE|BOOKMARK`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::is_name;

/// A point in a group's history. A number is a sequence, a date and time in UTC is a time, anything else that
/// is a name is a bookmark; so a bookmark's name must not be a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The checkpoint at this sequence.
    Sequence(u64),
    /// The newest checkpoint at or before this time of the primary's clock, in microseconds since 1970.
    Time {
        /// Microseconds since 1970.
        us: u64,
    },
    /// The bookmark of this name.
    Bookmark(String),
}

/// Why a point was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no point in time: give a sequence (42), a UTC time (2026-01-31T12:00:00Z) or a bookmark's name"
)]
pub struct AtError(String);

impl FromStr for At {
    type Err = AtError;

    fn from_str(text: &str) -> Result<Self, AtError> {
        let wrong = || AtError(text.chars().take(80).filter(|c| !c.is_control()).collect());
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Self::Sequence).map_err(|_| wrong());
        }
        if is_name(text) && !looks_like_a_date(text) {
            return Ok(Self::Bookmark(text.to_owned()));
        }
        // Without the Z it might be meant in local time.
        let time = humantime::parse_rfc3339(text).map_err(|_| wrong())?;
        let since_1970 = time.duration_since(UNIX_EPOCH).map_err(|_| wrong())?;
        u64::try_from(since_1970.as_micros()).map(|us| Self::Time { us }).map_err(|_| wrong())
    }
}

/// `2026-01-31` would pass as a bookmark's name, and is never meant as one.
fn looks_like_a_date(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequence(sequence) => write!(f, "{sequence}"),
            Self::Time { us } => f.write_str(&format_time(*us)),
            Self::Bookmark(name) => f.write_str(name),
        }
    }
}

/// A time in microseconds since 1970 as [`At`] reads it: `2026-01-31T12:00:00.000000Z`.
pub fn format_time(us: u64) -> String {
    /// The end of the year 9999, which is as far as the format goes.
    const LAST_US: u64 = 253_402_300_799_999_999;
    let time: SystemTime = UNIX_EPOCH + Duration::from_micros(us.min(LAST_US));
    humantime::format_rfc3339_micros(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_point_is_told_apart() {
        assert_eq!("42".parse(), Ok(At::Sequence(42)));
        assert_eq!("before-upgrade".parse(), Ok(At::Bookmark("before-upgrade".into())));
        assert_eq!("1970-01-01T00:00:01.5Z".parse(), Ok(At::Time { us: 1_500_000 }));
        for text in
            ["", "now!", "2026-01-31", "2026-01-31T12:00:00", "99999999999999999999", "1969-01-01T00:00:00Z"]
        {
            assert!(text.parse::<At>().is_err(), "{text}");
        }
    }

    #[test]
    fn points_print_as_they_are_read() {
        for at in [At::Sequence(7), At::Time { us: 1_700_000_000_123_456 }, At::Bookmark("x".into())] {
            assert_eq!(at.to_string().parse(), Ok(at));
        }
        assert_eq!(format_time(u64::MAX), "9999-12-31T23:59:59.999999Z");
    }
}
