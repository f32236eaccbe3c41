//! What each kind of value may be: from a TOML value to a checked one, or to what is wrong with it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::model::*;
use super::read::{closest, shorten};
use crate::units::{ByteRate, ByteSize, format_duration, parse_duration, parse_listen_address};

/// The levels that `log.level` may have.
const LOG_LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

pub(super) fn text<'t>(value: &'t DeValue<'t>) -> Result<&'t str, String> {
    value.as_str().ok_or_else(|| format!("expected text in quotes, found {}", kind(value)))
}

pub(super) fn boolean(value: &DeValue) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("expected true or false, found {}", kind(value)))
}

pub(super) fn integer(value: &DeValue) -> Result<u64, String> {
    let number =
        value.as_integer().ok_or_else(|| format!("expected a whole number, found {}", kind(value)))?;
    u64::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// The value that one of a few words stands for.
pub(super) fn choice<'t, T: Copy>(
    value: &'t DeValue<'t>,
    choices: &[(&'static str, T)],
) -> Result<T, String> {
    let word = text(value)?;
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == word) {
        return Ok(*value);
    }
    let all = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ");
    match closest(word, choices.iter().map(|(name, _)| *name)) {
        Some(known) => Err(format!("unknown value \"{}\"; did you mean \"{known}\"?", shorten(word))),
        None => Err(format!("expected {all}, found \"{}\"", shorten(word))),
    }
}

pub(super) fn say(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The first of two ports: one daemon each.
pub(super) fn metrics_address(value: &DeValue) -> Result<SocketAddr, String> {
    let address = parse_listen_address(text(value)?).map_err(say)?;
    match address.port() {
        0 | u16::MAX => Err("expected a port from 1 to 65534: the receiver takes the next one".to_owned()),
        _ => Ok(address),
    }
}

pub(super) fn name(value: &DeValue) -> Result<String, String> {
    let name = text(value)?;
    if is_name(name) { Ok(name.to_owned()) } else { Err(name_rule(name)) }
}

pub(super) fn name_rule(name: &str) -> String {
    format!(
        "\"{}\" is not a name: 1 to {MAX_NAME_LEN} of a-z, 0-9, _ and -, the first a letter or a digit",
        shorten(name)
    )
}

pub(super) fn log_level(value: &DeValue) -> Result<String, String> {
    let level = text(value)?;
    // Targets are those of the daemons; whatever else is written would be taken for one.
    let word =
        |part: &str| part.rsplit_once('=').map_or(part, |(_, level)| level).trim().to_ascii_lowercase();
    if let Some(wrong) = level.split(',').map(word).find(|word| !LOG_LEVELS.contains(&word.as_str())) {
        let found = shorten(&wrong);
        return Err(match closest(&wrong, LOG_LEVELS.into_iter()) {
            Some(known) => format!("unknown level \"{found}\"; did you mean \"{known}\"?"),
            None => format!("unknown level \"{found}\"; known: {}", LOG_LEVELS.join(", ")),
        });
    }
    let filter = tracing_subscriber::EnvFilter::try_new(level);
    filter.map(|_| level.to_owned()).map_err(|error| format!("not a filter of the log: {error}"))
}

pub(super) fn duration(value: &DeValue, least: Duration, greatest: Duration) -> Result<Duration, String> {
    if let DeValue::Integer(number) = value {
        return Err(format!("the unit is missing; write \"{}s\" for seconds", shorten(number.as_str())));
    }
    let found = parse_duration(text(value)?).map_err(say)?;
    let show = format_duration;
    if found < least {
        return Err(format!("{} is too short; at least {}", show(found), show(least)));
    }
    if found > greatest {
        return Err(format!("{} is too long; at most {}", show(found), show(greatest)));
    }
    Ok(found)
}

pub(super) fn size(value: &DeValue, least: ByteSize, greatest: ByteSize) -> Result<ByteSize, String> {
    let found = match value {
        DeValue::Integer(_) => ByteSize::from_bytes(integer(value)?),
        _ => text(value)?.parse().map_err(say)?,
    };
    if found < least {
        return Err(format!("{found} is too small; at least {least}"));
    }
    if found > greatest {
        return Err(format!("{found} is too large; at most {greatest}"));
    }
    Ok(found)
}

pub(super) fn hot_extents(value: &DeValue) -> Result<u32, String> {
    let found = integer(value)?;
    u32::try_from(found)
        .ok()
        .filter(|n| (MIN_HOT_EXTENTS..=MAX_HOT_EXTENTS).contains(n))
        .ok_or_else(|| format!("{found} is out of range; from {MIN_HOT_EXTENTS} to {MAX_HOT_EXTENTS}"))
}

pub(super) fn max_rate(value: &DeValue) -> Result<ByteRate, String> {
    let found: ByteRate = text(value)?.parse().map_err(say)?;
    if found < MIN_MAX_RATE {
        return Err(format!("{found} is too slow; at least {MIN_MAX_RATE}"));
    }
    Ok(found)
}

pub(super) fn capture(value: &DeValue) -> Result<Capture, String> {
    match choice(value, &[("inline", Capture::Inline), ("live", Capture::Live)])? {
        Capture::Live => Err("\"live\" is not available in this version; use \"inline\"".to_owned()),
        capture => Ok(capture),
    }
}

pub(super) fn absolute_path(value: &DeValue) -> Result<PathBuf, String> {
    let path = text(value)?;
    if path.contains('\0') || !is_plain_absolute(path.as_ref()) {
        return Err(format!("expected an absolute path without \"..\", found \"{}\"", shorten(path)));
    }
    // The same path written in two ways (`//`, `/./`, a slash at the end) must not pass as two.
    Ok(PathBuf::from(path).components().collect())
}

pub(super) fn socket_path(value: &DeValue) -> Result<PathBuf, String> {
    let path = absolute_path(value)?;
    if path.as_os_str().len() > MAX_SOCKET_PATH_LEN {
        return Err(format!("too long for a unix socket; at most {MAX_SOCKET_PATH_LEN} bytes"));
    }
    if path.file_name().is_none() {
        return Err("expected the path of a socket, such as \"/run/afterimage/pgdata.sock\"".to_owned());
    }
    Ok(path)
}

pub(super) fn nbd_device(value: &DeValue) -> Result<PathBuf, String> {
    let path = absolute_path(value)?;
    let number = path.to_str().and_then(|p| p.strip_prefix("/dev/nbd"));
    match number {
        Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => Ok(path),
        _ => Err(format!("expected a kernel NBD device such as \"/dev/nbd0\", found \"{}\"", path.display())),
    }
}

pub(super) fn kind(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
