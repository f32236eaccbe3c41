//! What a hook is told: its environment.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Event;
use crate::admin::format_time;
use crate::config::Config;
use crate::status::{Protection, Role};

/// Longest text in one variable, in characters: some of it comes from the peer.
const MAX_VALUE_CHARS: usize = 1000;

/// What is known of a group when an event happens. What is not known stays `None`, and its variable empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The group's name.
    pub group: String,
    /// What this host is for the group.
    pub role: Option<Role>,
    /// The generation's id in hexadecimal: the new one after a promotion.
    pub generation: Option<String>,
    /// The newest sequence here: in the image, on a standby.
    pub sequence: Option<u64>,
    /// How well the group is protected.
    pub protection: Option<Protection>,
    /// Age of the oldest write that the standby lacks.
    pub lag_seconds: Option<f64>,
    /// Where the volumes are served: socket paths, `host:port`.
    pub exports: Vec<String>,
    /// Why, in words for people.
    pub reason: Option<String>,
}

impl Facts {
    /// Of a group of which nothing else is known.
    pub fn new(group: impl Into<String>) -> Self {
        Self { group: group.into(), ..Self::default() }
    }
}

/// The variables of one run. Every one is always there; it is empty when its value is not known.
pub(super) fn variables(config: &Config, event: Event, facts: &Facts) -> Vec<(&'static str, String)> {
    let rpo = config.groups.get(&facts.group).and_then(|group| group.objectives.rpo);
    let exports: Vec<_> = facts.exports.iter().map(|export| plain(export)).collect();
    vec![
        ("AFTERIMAGE_EVENT", event.name().to_owned()),
        ("AFTERIMAGE_TIME", format_time(now_us())),
        ("AFTERIMAGE_GROUP", plain(&facts.group)),
        ("AFTERIMAGE_NODE", config.node.name.clone()),
        ("AFTERIMAGE_PEER", config.peer.name.clone()),
        ("AFTERIMAGE_ROLE", word(facts.role)),
        ("AFTERIMAGE_GENERATION", text(facts.generation.as_ref())),
        ("AFTERIMAGE_SEQUENCE", text(facts.sequence)),
        ("AFTERIMAGE_PROTECTION", word(facts.protection)),
        ("AFTERIMAGE_LAG_SECONDS", facts.lag_seconds.map(|s| format!("{s:.3}")).unwrap_or_default()),
        ("AFTERIMAGE_RPO_SECONDS", rpo.map(|rpo| format!("{:.3}", rpo.as_secs_f64())).unwrap_or_default()),
        ("AFTERIMAGE_EXPORTS", exports.join("\n")),
        ("AFTERIMAGE_REASON", text(facts.reason.as_ref())),
    ]
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| plain(&value.to_string())).unwrap_or_default()
}

/// The word that the status document has for it.
fn word(value: Option<impl Serialize>) -> String {
    let word = value.and_then(|value| serde_json::to_value(value).ok());
    word.as_ref().and_then(|word| word.as_str()).unwrap_or_default().to_owned()
}

/// One line of bounded length: no variable can end a line of a script's, or hold a NUL, which no environment takes.
fn plain(text: &str) -> String {
    text.chars().take(MAX_VALUE_CHARS).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
