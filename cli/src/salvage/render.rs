//! What the commands print.

use afterimage_contract::admin::format_time;
use afterimage_contract::units::ByteSize;
use serde_json::{Value, json};

use super::{Exported, Found, JSON_VERSION, Wholeness};
use crate::text::printable;

const HEADINGS: [&str; 6] = ["GROUP", "SAVED", "GENERATION", "REPLACED BY", "BYTES", "STATE"];
const UNKNOWN: &str = "?";

/// The list for people: a line for each file, and under it where it is and what is wrong.
pub fn list(found: &[Found]) -> String {
    if found.is_empty() {
        return "nothing was saved on this host\n".to_owned();
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    let mut widths = HEADINGS.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = line(&HEADINGS.map(str::to_owned), &widths);
    for (found, row) in found.iter().zip(&rows) {
        out += &line(row, &widths);
        out += &format!("  {}\n", printable(&found.file.display().to_string()));
        if let Some(head) = &found.head {
            let volumes = found.volumes.iter();
            let volumes: Vec<_> = volumes.map(|v| format!("{} {}", v.name, approximate(v.bytes))).collect();
            let left_at = head.left_at;
            let text = format!("{}; written after sequence {left_at}, or may have been", volumes.join(", "));
            out += &format!("  {}\n", printable(&text));
        }
        if let Some(error) = &found.error {
            out += &format!("  ! {}\n", printable(error));
        }
    }
    out
}

fn row(found: &Found) -> [String; HEADINGS.len()] {
    let of = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
    let head = found.head.as_ref();
    [
        printable(&found.group),
        of(head.map(|head| format_time(head.time.0))),
        of(head.map(|head| head.generation.to_string())),
        of(head.map(|head| head.replaced_by.to_string())),
        of(head.map(|_| approximate(found.bytes()))),
        match found.wholeness {
            Wholeness::Whole => "whole",
            Wholeness::Damaged => "DAMAGED",
            Wholeness::Unfinished => "unfinished",
            Wholeness::OtherVersion => "OTHER VERSION",
            Wholeness::Unreadable => "UNREADABLE",
        }
        .to_owned(),
    ]
}

fn line(row: &[String; HEADINGS.len()], widths: &[usize; HEADINGS.len()]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
}

fn approximate(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).approximate()
}

/// The list for programs (docs/salvage.md).
pub fn list_json(found: &[Found]) -> String {
    let files: Vec<Value> = found.iter().map(file_json).collect();
    format!("{:#}\n", json!({ "version": JSON_VERSION, "salvage": files }))
}

fn file_json(found: &Found) -> Value {
    let head = found.head.as_ref();
    let volumes: Vec<Value> = found
        .volumes
        .iter()
        .map(|v| json!({ "name": v.name, "size_bytes": v.size_bytes, "saved_bytes": v.bytes }))
        .collect();
    json!({
        "file": found.file.display().to_string(),
        "group": found.group,
        "time_us": head.map(|head| head.time.0),
        "generation": head.map(|head| head.generation.to_string()),
        "replaced_by": head.map(|head| head.replaced_by.to_string()),
        "left_at_sequence": head.map(|head| head.left_at.0),
        "pieces": head.map(|_| found.pieces),
        "saved_bytes": head.map(|_| found.bytes()),
        "volumes": volumes,
        "state": match found.wholeness {
            Wholeness::Whole => "whole",
            Wholeness::Damaged => "damaged",
            Wholeness::Unfinished => "unfinished",
            Wholeness::OtherVersion => "other_version",
            Wholeness::Unreadable => "unreadable",
        },
        "error": found.error,
    })
}

/// The outcome of an export for people.
pub fn export(done: &Exported) -> String {
    let mut out = format!("{} in {} pieces exported to\n", approximate(done.bytes), done.pieces);
    for file in &done.files {
        out += &format!("  {}\n", printable(&file.display().to_string()));
    }
    out
}

/// The outcome of an export for programs (docs/salvage.md).
pub fn export_json(done: &Exported) -> String {
    let files: Vec<String> = done.files.iter().map(|file| file.display().to_string()).collect();
    let document = json!({
        "version": JSON_VERSION,
        "export": {
            "files": files,
            "pieces": done.pieces,
            "exported_bytes": done.bytes,
            "whole": done.damage.is_none(),
            "error": done.damage,
        },
    });
    format!("{document:#}\n")
}
