//! The status as text: a line for each group, and under it what is wrong and what to do.

use afterimage_contract::admin::format_time;
use afterimage_contract::config::{Compression, Mode};
use afterimage_contract::status::{
    CompressionEffort, CompressionStatus, GroupStatus, JournalPoint, PeerStatus, Position, Protection, Role,
    Status, VolumeStatus,
};
use afterimage_contract::units::ByteSize;

use super::advice::{Note, is_split, notes};
use crate::text::{Paint, apply_lag, lag, printable, span};

const HEADINGS: [&str; 8] =
    ["GROUP", "ROLE", "MODE", "PROTECTION", "FOR", "TRANSPORT LAG", "APPLY LAG", "PEER"];
/// The column whose text is coloured.
const PROTECTION: usize = 3;

/// The whole picture; with `detail` also what is known of each group's positions, journal and volumes.
pub fn render(status: &Status, detail: bool, paint: Paint) -> String {
    let rows: Vec<_> = status.groups.iter().map(|group| row(group, status.time_us)).collect();
    let mut widths = HEADINGS.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for warning in &status.warnings {
        push_note(&mut out, "", &Note::warning(warning), paint);
    }
    if rows.is_empty() {
        if status.warnings.is_empty() {
            out += "no group to show\n";
        }
        return out;
    }
    push_row(&mut out, &HEADINGS.map(str::to_owned), &widths, |_, cell| paint.heading(cell));
    for (group, row) in status.groups.iter().zip(&rows) {
        push_row(&mut out, row, &widths, |column, cell| match column {
            PROTECTION => colour(group, cell, paint),
            _ => cell.to_owned(),
        });
        for note in notes(group) {
            push_note(&mut out, "  ", &note, paint);
        }
        if detail {
            push_detail(&mut out, group);
        }
    }
    out
}

fn row(group: &GroupStatus, now_us: u64) -> [String; HEADINGS.len()] {
    let since = group.since_us.map(|since| span(now_us.saturating_sub(since) / 1_000_000));
    [
        printable(&group.name),
        role(group.role).to_owned(),
        mode(group.mode).to_owned(),
        state(group).to_owned(),
        since.unwrap_or_else(|| "-".to_owned()),
        lag(group.lag),
        apply_lag(group.apply_lag),
        peer(&group.peer),
    ]
}

/// The other host, and how far away it is.
pub(super) fn peer(peer: &PeerStatus) -> String {
    let rtt = peer.rtt_us.map(|us| format!(" ({:.1} ms)", us as f64 / 1_000.0)).unwrap_or_default();
    let way = if peer.connected { rtt } else { " (not connected)".to_owned() };
    printable(&peer.name) + &way
}

fn push_row(
    out: &mut String,
    row: &[String; HEADINGS.len()],
    widths: &[usize; HEADINGS.len()],
    paint: impl Fn(usize, &str) -> String,
) {
    let last = HEADINGS.len() - 1;
    for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
        // Padding stays outside the colour: its codes have no width.
        out.push_str(&paint(column, cell));
        if column < last {
            out.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
    }
    out.push('\n');
}

fn push_note(out: &mut String, indent: &str, note: &Note, paint: Paint) {
    let mark = if note.passing { paint.doubtful("~") } else { paint.bad("!") };
    *out += &format!("{indent}{mark} {}\n", note.head());
    if let Some(advice) = note.advice() {
        *out += &format!("{indent}  {advice}\n");
    }
}

fn push_detail(out: &mut String, group: &GroupStatus) {
    let mut fact = |name: &str, text: String| *out += &format!("  {name:<11} {}\n", printable(&text));
    fact("position", group.position.as_ref().map_or_else(|| "unknown".to_owned(), position));
    if let Some(parent) = &group.parent {
        fact("forked from", position(parent));
    }
    fact("received", known(group.received_sequence));
    fact("durable", known(group.durable_sequence));
    fact("dirty", known_bytes(group.dirty_bytes));
    if let (Some(queued), Some(limit)) = (group.queued_bytes, group.queue_limit_bytes) {
        fact("queue", format!("{} of {}", bytes(queued), bytes(limit)));
    }
    if let Some(compression) = &group.compression {
        fact("compression", describe_compression(compression));
    }
    fact("key of peer", group.peer.fingerprint.clone().unwrap_or_else(|| "not paired".to_owned()));
    if let Some(journal) = &group.journal {
        fact("journal", format!("{} of {}", bytes(journal.bytes), bytes(journal.limit_bytes)));
        fact("  oldest", point(journal.oldest));
        fact("  newest", point(journal.newest));
        fact("  applied", known(journal.applied_sequence));
    }
    for volume in &group.volumes {
        fact("volume", describe_volume(volume));
    }
}

fn describe_compression(compression: &CompressionStatus) -> String {
    let effort = match compression.effort {
        CompressionEffort::None => "none",
        CompressionEffort::Lz4 => "lz4",
        CompressionEffort::ZstdFast => "zstd, fast",
        CompressionEffort::Zstd => "zstd",
        CompressionEffort::ZstdHigh => "zstd, high",
        CompressionEffort::Unrecognized => "?",
    };
    let chosen = if compression.setting == Compression::Auto { " (auto)" } else { "" };
    format!("{effort}{chosen}, {} sent as {}", bytes(compression.raw_bytes), bytes(compression.wire_bytes))
}

fn describe_volume(volume: &VolumeStatus) -> String {
    let served = if volume.exports.is_empty() { "not served".to_owned() } else { volume.exports.join(", ") };
    let size = known_bytes(volume.size_bytes);
    let dirty = known_bytes(volume.dirty_bytes);
    format!("{}, {}, {size}, dirty {dirty}, {served}", volume.name, volume.device)
}

fn position(position: &Position) -> String {
    format!("sequence {} of generation {}", position.sequence, position.generation)
}

fn point(point: Option<JournalPoint>) -> String {
    let Some(point) = point else { return "unknown".to_owned() };
    let when = point.time_us.map(|us| format!(", {}", format_time(us))).unwrap_or_default();
    format!("sequence {}{when}", point.sequence)
}

fn known(sequence: Option<u64>) -> String {
    sequence.map_or_else(|| "unknown".to_owned(), |sequence| format!("sequence {sequence}"))
}

fn known_bytes(n: Option<u64>) -> String {
    n.map_or_else(|| "unknown".to_owned(), bytes)
}

fn bytes(n: u64) -> String {
    ByteSize::from_bytes(n).approximate()
}

pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Standby => "standby",
        Role::Fenced => "fenced",
        Role::Unrecognized => "?",
    }
}

pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Sync => "sync",
        Mode::Async => "async",
    }
}

/// The level of protection, in one or two words.
pub(super) fn state(group: &GroupStatus) -> &'static str {
    if is_split(group) {
        return "SPLIT BRAIN";
    }
    match group.protection {
        Protection::InSync => "in sync",
        Protection::AsyncStreaming => "streaming",
        Protection::CatchingUp => "catching up",
        Protection::FirstSync => "first sync",
        Protection::Degraded => "DEGRADED",
        Protection::Blocked => "BLOCKED",
        Protection::Disconnected => "DISCONNECTED",
        Protection::Refused => "REFUSED",
        Protection::Fenced => "FENCED",
        Protection::WrongVolume => "WRONG VOLUME",
        Protection::JournalFull => "JOURNAL FULL",
        Protection::Failed => "FAILED",
        Protection::Unrecognized => "?",
    }
}

fn colour(group: &GroupStatus, text: &str, paint: Paint) -> String {
    match group.protection {
        protection if protection.is_healthy() => paint.good(text),
        Protection::CatchingUp | Protection::FirstSync => paint.doubtful(text),
        _ => paint.bad(text),
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
