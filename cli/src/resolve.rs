//! `afterimage resolve` without a side: what a split brain is about.

use std::path::Path;

use afterimage_contract::admin::{Divergence, DivergentVolume, History, Request, call, format_time};
use afterimage_contract::status::Role;
use afterimage_contract::units::ByteSize;
use serde_json::json;

use crate::exit::CommandError;
use crate::host;
use crate::text::{emit, printable};

/// Version of the JSON that `resolve --json` prints without a side.
pub const JSON_VERSION: u32 = 1;
/// Ranges of a volume that people are shown.
const SHOWN_RANGES: usize = 10;

/// Shows both histories, and what only this host may have. Changes nothing.
pub async fn show(config: &Path, group: &str, as_json: bool) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    host::ensure_group(&config, group)?;
    let request = Request::Divergence { group: group.to_owned() };
    let answer = call(config.agent_socket(), &request).await.and_then(|response| response.into_answer());
    let found: Divergence = answer.map_err(CommandError::from)?;
    if as_json {
        emit(&format!("{:#}\n", json!({ "version": JSON_VERSION, "divergence": found })))
    } else {
        emit(&render(&found, &config.node.name, &config.peer.name))
    }
}

/// For people.
pub fn render(found: &Divergence, local: &str, peer: &str) -> String {
    let group = &found.group;
    let mut lines = vec![if found.split_brain {
        format!("{group}: split brain: clients were answered on both hosts after their histories had parted")
    } else {
        format!("{group}: no split brain is known of here")
    }];
    let common =
        found.common.as_ref().map(|at| format!("sequence {} of generation {}", at.sequence, at.generation));
    lines.push(format!(
        "  in common  up to {}",
        common.as_deref().unwrap_or("a place that is not known here")
    ));
    lines.extend(history(local, &found.local));
    match &found.peer {
        Some(found) => lines.extend(history(peer, found)),
        None => lines.push(format!("  {peer:<10} has not told its history yet")),
    }
    let bytes: u64 = found.volumes.iter().map(|volume| volume.divergent_bytes).sum();
    let amount = match (found.compares_all, bytes) {
        (true, _) => "everything may differ: it is not known which blocks do".to_owned(),
        (false, 0) => "nothing".to_owned(),
        (false, bytes) => format!("up to {}", ByteSize::from_bytes(bytes).approximate()),
    };
    lines.push(format!("  only here  {amount}"));
    for volume in &found.volumes {
        lines.extend(ranges(volume));
    }
    lines
        .push(format!("what only {peer} has, and where, it tells itself; there: afterimage resolve {group}"));
    if found.split_brain {
        let (fenced, other) = if found.local.role == Role::Fenced { (local, peer) } else { (peer, local) };
        lines.push(format!("to keep what {other} has, on {fenced}: afterimage resolve {group} --keep peer"));
        lines.push(format!(
            "to keep what {fenced} has, on {fenced}: afterimage resolve {group} --keep local; then on {other}: afterimage \
             resolve {group} --keep peer"
        ));
        lines.push("the side that gives way saves what only it has to a file first".to_owned());
    }
    lines.iter().map(|line| printable(line) + "\n").collect()
}

fn history(host: &str, history: &History) -> Vec<String> {
    let role = match history.role {
        Role::Primary => "primary",
        Role::Standby => "standby",
        Role::Fenced => "was replaced",
        Role::Unrecognized => "in a role that this release does not know",
    };
    let alone = if history.alone { ", and had answered clients alone" } else { "" };
    let went = if history.alone { "went on alone" } else { "was promoted" };
    let when = history.parted_us.map(|us| format!(", {went} {}", format_time(us))).unwrap_or_default();
    let mut lines = vec![
        format!("  {host:<10} {role}{alone}{when}"),
        format!("             generation {}, up to sequence {}", history.generation, history.sequence),
    ];
    if let Some(left) = history.past.last() {
        lines.push(format!("             left generation {} at sequence {}", left.generation, left.sequence));
    }
    lines
}

fn ranges(volume: &DivergentVolume) -> Vec<String> {
    if volume.divergent_bytes == 0 {
        return Vec::new();
    }
    let size = |bytes| ByteSize::from_bytes(bytes).approximate();
    let mut lines =
        vec![format!("    {}: {} of {}", volume.name, size(volume.divergent_bytes), size(volume.size_bytes))];
    let shown = volume.ranges.iter().take(SHOWN_RANGES);
    lines.extend(shown.clone().map(|range| format!("      {} bytes at {}", range.length, range.offset)));
    let shown_bytes: u64 = shown.map(|range| range.length).sum();
    if shown_bytes < volume.divergent_bytes {
        lines.push(format!("      {} more; see --json", size(volume.divergent_bytes - shown_bytes)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_contract::admin::Range;
    use afterimage_contract::status::Position;

    const NOW_US: u64 = 1_790_000_000_000_000;

    fn history(role: Role, alone: bool) -> History {
        History {
            role,
            generation: "77aa".into(),
            past: vec![Position { generation: "5f0c".into(), sequence: 42 }],
            sequence: 60,
            alone,
            parted_us: Some(NOW_US),
        }
    }

    fn found() -> Divergence {
        Divergence {
            group: "orders".into(),
            split_brain: true,
            local: History { past: Vec::new(), generation: "5f0c".into(), ..history(Role::Fenced, true) },
            peer: Some(history(Role::Primary, false)),
            common: Some(Position { generation: "5f0c".into(), sequence: 42 }),
            compares_all: false,
            volumes: vec![DivergentVolume {
                name: "pgdata".into(),
                size_bytes: 1 << 30,
                divergent_bytes: 3 << 12,
                ranges: vec![Range { offset: 8192, length: 4096 }, Range { offset: 1 << 20, length: 8192 }],
                more_bytes: 0,
            }],
        }
    }

    #[test]
    fn both_histories_and_the_blocks_are_shown_with_what_can_be_done() {
        assert_eq!(
            render(&found(), "alpha", "beta"),
            "orders: split brain: clients were answered on both hosts after their histories had parted
  in common  up to sequence 42 of generation 5f0c
  alpha      was replaced, and had answered clients alone, went on alone 2026-09-21T14:13:20.000000Z
             generation 5f0c, up to sequence 60
  beta       primary, was promoted 2026-09-21T14:13:20.000000Z
             generation 77aa, up to sequence 60
             left generation 5f0c at sequence 42
  only here  up to 12 KiB
    pgdata: 12 KiB of 1 GiB
      4096 bytes at 8192
      8192 bytes at 1048576
what only beta has, and where, it tells itself; there: afterimage resolve orders
to keep what beta has, on alpha: afterimage resolve orders --keep peer
to keep what alpha has, on alpha: afterimage resolve orders --keep local; then on beta: afterimage resolve orders --keep peer
the side that gives way saves what only it has to a file first
"
        );
    }

    #[test]
    fn what_is_too_much_or_not_known_is_said() {
        let mut many = found();
        many.volumes[0].ranges = (0..40).map(|n| Range { offset: n * 8192, length: 4096 }).collect();
        many.volumes[0].divergent_bytes = 41 * 4096;
        let text = render(&many, "alpha", "beta");
        assert!(text.contains("      124 KiB more; see --json\n"), "{text}");
        let unknown = Divergence { compares_all: true, peer: None, common: None, ..found() };
        let text = render(&unknown, "alpha", "beta");
        assert!(text.contains("everything may differ") && text.contains("beta       has not told"), "{text}");
        let single = Divergence { split_brain: false, ..found() };
        assert!(!render(&single, "alpha", "beta").contains("--keep"));
    }
}
