//! Quantities as people write them: byte sizes, rates, durations and network addresses.
//!
//! What could be read in two ways is refused with the spelling to use instead: `200GB` (1000 or 1024?), `5`
//! (seconds or minutes?), `1M` (minute or month?).

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

const UNITS: [(&str, u32); 5] = [("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// A number of bytes. Written as `"200GiB"`, `"64MiB"`, `"512B"` or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// `n` bytes.
    pub const fn from_bytes(n: u64) -> Self {
        Self(n)
    }

    /// `n` KiB; saturates at `u64::MAX` bytes.
    pub const fn from_kib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 10))
    }

    /// `n` MiB; saturates at `u64::MAX` bytes.
    pub const fn from_mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// `n` GiB; saturates at `u64::MAX` bytes.
    pub const fn from_gib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// At most two decimals in the largest fitting unit, such as `1.25 GiB`: for people, not exact.
    pub fn approximate(self) -> String {
        let (unit, shift) = UNITS.iter().rev().find(|(_, s)| self.0 >> s > 0).unwrap_or(&UNITS[0]);
        if *shift == 0 {
            return format!("{} B", self.0);
        }
        let number = format!("{:.2}", self.0 as f64 / (1u64 << shift) as f64);
        format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let unit = unit.trim_start();
        if digits.is_empty() {
            return Err(UnitError::new("expected a size such as \"64MiB\""));
        }
        if unit.starts_with(['.', ',', '_']) {
            return Err(UnitError::new("expected a whole number and a unit, such as \"1536MiB\""));
        }
        let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit || unit.is_empty()) else {
            return Err(unknown_size_unit(digits, unit));
        };
        let number: u64 = digits.parse().map_err(|_| UnitError::new("the size is too large"))?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| UnitError::new("the size is too large"))
    }
}

fn unknown_size_unit(digits: &str, unit: &str) -> UnitError {
    let letter = unit.chars().next().map(|c| c.to_ascii_uppercase());
    let short = unit.len() <= 3 && matches!(letter, Some('K' | 'M' | 'G' | 'T'));
    match letter {
        Some(letter) if short => {
            UnitError(format!("the unit `{unit}` is ambiguous; write \"{digits}{letter}iB\""))
        }
        _ => UnitError::new("unknown unit; use B, KiB, MiB, GiB or TiB"),
    }
}

/// Exact: the largest unit that divides the number, such as `200GiB`; it parses back to the same size.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |shift: &u32| self.0 >> shift << shift == self.0;
        let (unit, shift) = UNITS.iter().rev().find(|(_, s)| self.0 >> s > 0 && fits(s)).unwrap_or(&UNITS[0]);
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// Bytes per second. Written as `"100MiB/s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRate(u64);

impl ByteRate {
    /// `n` bytes each second.
    pub const fn from_bytes_per_s(n: u64) -> Self {
        Self(n)
    }

    /// The number of bytes each second.
    pub const fn bytes_per_s(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let Some(size) = text.trim().strip_suffix("/s") else {
            return Err(UnitError::new("expected a rate such as \"100MiB/s\""));
        };
        size.parse::<ByteSize>().map(|size| Self(size.bytes()))
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

/// Reads a duration such as `"5s"`, `"250ms"`, `"1h 30m"` or `"0s"`. Months and years are refused: they have
/// no fixed length, and `M` is too close to `m`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UnitError(format!("the unit is missing; write \"{text}s\" for seconds")));
    }
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic());
    if words.any(|w| matches!(w, "M" | "month" | "months" | "y" | "yr" | "yrs" | "year" | "years")) {
        return Err(UnitError::new("months and years have no fixed length; use ms, s, m (minutes), h or d"));
    }
    humantime::parse_duration(text)
        .map_err(|_| UnitError::new("expected a duration such as \"5s\", \"250ms\" or \"1h 30m\""))
}

/// Writes a duration exactly, in the largest unit that divides it, such as `90m`; [`parse_duration`] reads it
/// back.
pub fn format_duration(duration: Duration) -> String {
    const UNITS: [(&str, u128); 5] = [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
    ];
    let ns = duration.as_nanos();
    match UNITS.iter().find(|(_, unit)| ns.is_multiple_of(*unit)) {
        _ if ns == 0 => "0s".to_owned(),
        Some((name, unit)) => format!("{}{name}", ns / unit),
        None => format!("{ns}ns"),
    }
}

/// A host, as a name or an address, and a port: what a connection is made to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// The name or address, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for HostPort {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || {
            UnitError::new("expected host:port, such as \"beta.example.net:7789\" or \"[2001:db8::2]:7789\"")
        };
        if let Ok(address) = text.parse::<SocketAddr>() {
            let host = address.ip().to_string();
            return if address.port() == 0 { Err(wrong()) } else { Ok(Self { host, port: address.port() }) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if port == 0 || host.is_empty() || host.len() > 253 || !host.bytes().all(legal) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// The form a resolver takes: an IPv6 address is in brackets.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Reads an address to listen on: an IP address, never a name, and a port.
pub fn parse_listen_address(text: &str) -> Result<SocketAddr, UnitError> {
    text.parse().map_err(|_| {
        UnitError::new("expected an IP address and a port, such as \"127.0.0.1:9789\" or \"[::]:7789\"")
    })
}

/// Why a quantity was not understood, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

impl UnitError {
    fn new(text: &str) -> Self {
        Self(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_reading_or_none() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("512B", 512), ("64MiB", 64 << 20), ("2 TiB", 2 << 40)]
        {
            assert_eq!(text.parse(), Ok(ByteSize::from_bytes(bytes)), "{text}");
        }
        for (text, message) in [
            ("200GB", "the unit `GB` is ambiguous; write \"200GiB\""),
            ("64m", "the unit `m` is ambiguous; write \"64MiB\""),
            ("64Mib", "the unit `Mib` is ambiguous; write \"64MiB\""),
            ("1.5GiB", "expected a whole number and a unit, such as \"1536MiB\""),
            ("-1", "expected a size such as \"64MiB\""),
            ("", "expected a size such as \"64MiB\""),
            ("5 blocks", "unknown unit; use B, KiB, MiB, GiB or TiB"),
            ("99999999999999999999", "the size is too large"),
            ("16777216TiB", "the size is too large"),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn sizes_print_exactly_and_approximately() {
        for (bytes, exact, rough) in [
            (0, "0B", "0 B"),
            (1023, "1023B", "1023 B"),
            (4096, "4KiB", "4 KiB"),
            (1536 << 20, "1536MiB", "1.5 GiB"),
            (u64::MAX, "18446744073709551615B", "16777216 TiB"),
        ] {
            assert_eq!(ByteSize::from_bytes(bytes).to_string(), exact);
            assert_eq!(ByteSize::from_bytes(bytes).approximate(), rough);
            assert_eq!(exact.parse(), Ok(ByteSize::from_bytes(bytes)));
        }
    }

    #[test]
    fn rates_need_the_second() {
        assert_eq!("100MiB/s".parse(), Ok(ByteRate::from_bytes_per_s(100 << 20)));
        assert_eq!(ByteRate::from_bytes_per_s(100 << 20).to_string(), "100MiB/s");
        assert!("100MiB".parse::<ByteRate>().is_err());
    }

    #[test]
    fn durations_need_a_unit_of_fixed_length() {
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(
            parse_duration("5").unwrap_err().to_string(),
            "the unit is missing; write \"5s\" for seconds"
        );
        for text in ["1M", "2months", "1 year"] {
            assert!(parse_duration(text).unwrap_err().to_string().starts_with("months and years"), "{text}");
        }
        for text in ["", "soon", "-5s", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_print_exactly() {
        for text in ["0s", "250ms", "5s", "90m", "24h", "366d", "1001ms", "1ns"] {
            let printed = format_duration(parse_duration(text).unwrap());
            assert_eq!(parse_duration(&printed), parse_duration(text), "{printed}");
            assert!(printed == text || (text, printed.as_str()) == ("24h", "1d"), "{printed}");
        }
    }

    #[test]
    fn addresses_keep_their_host() {
        for text in ["beta:7789", "beta.example.net:7789", "192.0.2.1:1", "[2001:db8::2]:7789"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in
            ["beta", "beta:", ":7789", "beta:0", "beta:99999", "be ta:1", "2001:db8::2:7789", "https://b:1"]
        {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }
}
