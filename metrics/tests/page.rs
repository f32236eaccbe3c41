//! `docs/monitoring/README.md` lists every metric that a daemon shows, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use afterimage_contract::status::Status;
use afterimage_events::{Count, Event};
use afterimage_metrics::{Checkpoints, Kind, Numbers, Scrape, VolumeNumbers, described};

const PAGE: &str = include_str!("../../docs/monitoring/README.md");

/// The document of `docs/status.md`, in which nearly everything is known, and the rest.
fn everything() -> Scrape {
    let page = include_str!("../../docs/status.md");
    let (_, block) = page.split_once("```json\n").unwrap();
    let mut status: Status = serde_json::from_str(block.split_once("\n```").unwrap().0).unwrap();
    let group = &mut status.groups[0];
    group.warnings.extend(status.warnings.clone());
    let numbers = Numbers {
        split_brain: Some(false),
        serving: Some(true),
        safe_until_us: Some(1),
        in_flight_bytes: Some(1),
        volumes: vec![VolumeNumbers { written_bytes: 1, read_bytes: 1 }],
        read_bytes: Some(1),
        answered: Some(Default::default()),
        durable: Some(Default::default()),
        unprotected_us: Some(1),
        promotable: Some(true),
        checkpoints: Checkpoints { newest_us: Some(1), durable_us: Some(1), oldest_us: Some(1) },
        apply_lag_us: Some(1),
        received_bytes: Some(1),
        applied_bytes: Some(1),
        applied: Some(Default::default()),
    };
    let objective = Some(Duration::from_secs(5));
    Scrape {
        daemon: "agent",
        status,
        numbers: BTreeMap::from([("orders".to_owned(), numbers)]),
        objectives: BTreeMap::from([("orders".to_owned(), (objective, objective))]),
        events: vec![Count { event: Event::LinkUp, group: "orders".into(), count: 1 }],
    }
}

/// Of each metric in the text its kind and its labels.
fn shown(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').unwrap();
            let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            found.insert(name.clone(), (kind.to_owned(), BTreeSet::new()));
            current = Some(name);
        } else if !line.starts_with('#') {
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
            let names = labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name);
            let (_, all) = found.get_mut(current.as_ref().unwrap()).unwrap();
            all.extend(names.filter(|name| *name != "le").map(str::to_owned));
        }
    }
    found
}

#[test]
fn the_page_lists_what_is_shown() {
    let shown = shown(&everything().text());
    let rows: Vec<Vec<&str>> = PAGE
        .lines()
        .filter(|line| line.starts_with("| `afterimage_"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let found: Vec<_> = rows.iter().map(|row| row.join(" | ")).collect();
    let wanted: Vec<_> = described()
        .map(|(name, kind, help)| {
            let (shown_kind, labels) = shown.get(name).unwrap_or_else(|| panic!("{name} is never shown"));
            assert_eq!(shown_kind, kind.name());
            let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            format!("`{name}` | {} | {labels} | {help}", kind.name())
        })
        .collect();
    assert_eq!(found, wanted, "the lines should be:\n{}\n", lines(&wanted));
    assert_eq!(shown.len(), wanted.len());
}

fn lines(rows: &[String]) -> String {
    rows.iter().map(|row| format!("| {row} |\n")).collect()
}

#[test]
fn what_is_unknown_is_not_shown() {
    let mut scrape = everything();
    scrape.status.groups[0].lag = None;
    scrape.numbers.clear();
    scrape.status.groups[0].peer.rtt_us = None;
    let shown = shown(&scrape.text());
    for name in [
        "afterimage_transport_lag_seconds",
        "afterimage_safe_until_timestamp_seconds",
        "afterimage_peer_round_trip_seconds",
        "afterimage_acknowledgement_seconds",
    ] {
        assert!(!shown.contains_key(name), "{name}");
    }
}

#[test]
fn histograms_add_up() {
    let mut scrape = everything();
    let answered = scrape.numbers.get_mut("orders").unwrap().answered.as_mut().unwrap();
    for us in [10, 100, 1_000_000, u64::MAX / 4] {
        answered.note(us);
    }
    let text = scrape.text();
    let value = |start: &str| -> Vec<f64> {
        let of = |line: &str| line.rsplit_once(' ').unwrap().1.parse().unwrap();
        text.lines().filter(|line| line.starts_with(start)).map(of).collect()
    };
    let buckets = value("afterimage_acknowledgement_seconds_bucket");
    assert!(buckets.is_sorted(), "{buckets:?}");
    assert_eq!((buckets.first(), buckets.last()), (Some(&1.0), Some(&4.0)));
    assert_eq!(value("afterimage_acknowledgement_seconds_count"), [4.0]);
    assert!(text.contains("le=\"+Inf\""), "{text}");
    assert!(value("afterimage_acknowledgement_seconds_sum")[0] > 1.0);
}

/// All words in `text` that look like a metric's name.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("afterimage_")).collect()
}

#[test]
fn rules_and_dashboard_name_only_what_is_shown() {
    let known: BTreeMap<_, _> = described().map(|(name, kind, _)| (name, kind)).collect();
    for (file, text) in [
        ("dashboard.json", include_str!("../../docs/monitoring/dashboard.json")),
        ("afterimage.rules.yml", include_str!("../../docs/monitoring/afterimage.rules.yml")),
        ("afterimage.rules.test.yml", include_str!("../../docs/monitoring/afterimage.rules.test.yml")),
        ("README.md", PAGE),
    ] {
        let named = named(text);
        assert!(named.len() > 10, "{file} names {named:?}");
        for name in named {
            let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            let histogram = whole.is_some_and(|whole| known.get(whole) == Some(&Kind::Histogram));
            assert!(known.contains_key(name) || histogram, "{file} names {name}, which is never shown");
        }
    }
}
