//! How a daemon logs: to stderr, a line for each thing, for people or for programs.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::str::FromStr;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, JsonFields, Writer, format};
use tracing_subscriber::fmt::{FmtContext, layer};
use tracing_subscriber::registry::LookupSpan;

/// What the lines look like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: `no session with the peer event="link-down" group="orders"`.
    #[default]
    Text,
    /// A JSON object on a line: `timestamp`, `level`, `target` and `fields`, which has `message` and, for an event, `event`.
    Json,
}

/// A word that is no [`LogFormat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give text or json")]
pub struct NoLogFormat;

impl FromStr for LogFormat {
    type Err = NoLogFormat;

    fn from_str(word: &str) -> Result<Self, NoLogFormat> {
        match word {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(NoLogFormat),
        }
    }
}

/// Writes what is logged to stderr. Where that is the journal of systemd, a line begins with its priority, such as `<4>`, and
/// has no time, which the journal has itself; on a terminal it is in colour,
/// unless `NO_COLOR` is set.
pub fn lines<S>(shape: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    // As asked for by <https://no-color.org>.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let lines = layer().with_writer(stderr).with_ansi(stderr().is_terminal() && !plain);
    match (shape, is_journal()) {
        (LogFormat::Text, false) => lines.boxed(),
        (LogFormat::Text, true) => {
            lines.event_format(Prioritized(format().without_time().with_level(false))).boxed()
        }
        (LogFormat::Json, false) => lines.json().boxed(),
        (LogFormat::Json, true) => {
            lines.fmt_fields(JsonFields::new()).event_format(Prioritized(format().json())).boxed()
        }
    }
}

/// Whether what is written to stderr goes to the journal of systemd, which says so in the environment (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(found) = rustix::fs::fstat(stderr()) else { return false };
    stream == format!("{}:{}", found.st_dev, found.st_ino)
}

/// Lines that begin with their priority (sd-daemon(3)), so that `journalctl -p warning` finds them.
struct Prioritized<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// As in syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
