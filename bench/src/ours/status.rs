//! The part of the status document that is used.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::GROUP;

/// What is used of the status document.
#[derive(Deserialize)]
pub struct Status {
    groups: Vec<Group>,
}

/// A group of it.
#[derive(Deserialize)]
pub struct Group {
    name: String,
    /// How well the group is protected.
    pub protection: String,
    /// The newest position.
    pub position: Option<Position>,
    /// What the copy's host does not have on stable storage.
    pub lag: Option<Lag>,
    /// Bytes of the blocks that the copy may lack.
    pub dirty_bytes: Option<u64>,
    /// The newest sequence that the copy's host has.
    pub received_sequence: Option<u64>,
    /// And the newest that it has on stable storage.
    pub durable_sequence: Option<u64>,
    /// Bytes of frames that the standby was sent, as it stores them.
    pub received_bytes: Option<u64>,
    /// The standby's journal.
    pub journal: Option<Journal>,
    /// What was sent.
    pub compression: Option<Compression>,
}

/// What was sent, as the agent counts it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Compression {
    /// Bytes written to streams.
    pub wire_bytes: u64,
    /// Bytes of all packets.
    pub packet_bytes: u64,
    /// Time that coding took, in microseconds.
    pub coding_us: u64,
}

/// A place in the history.
#[derive(Deserialize)]
pub struct Position {
    /// Its number.
    pub sequence: u64,
}

/// What the copy's host does not have on stable storage.
#[derive(Deserialize)]
pub struct Lag {
    /// How much of it.
    pub bytes: u64,
}

/// The standby's journal.
#[derive(Deserialize)]
pub struct Journal {
    /// Up to where the copy's file has everything.
    pub applied_sequence: Option<u64>,
}

/// The group in a status document.
pub fn group_of(status: Status) -> Result<Group> {
    match status.groups.into_iter().find(|group| group.name == GROUP) {
        Some(group) => Ok(group),
        None => bail!("the status has no group {GROUP}"),
    }
}

/// Bytes that the copy's host does not have, and bytes that it does not have on stable storage; all writes are of one size.
pub fn behind(source: &Group) -> Result<(u64, u64)> {
    let Some(Lag { bytes }) = source.lag else {
        // In a catch-up the lag is unknown; the copy lacks no more than the dirty blocks.
        let dirty = source.dirty_bytes.context("neither the lag nor the dirty blocks are known")?;
        return Ok((dirty, dirty));
    };
    let newest = source.position.as_ref().context("a lag without a position")?.sequence;
    let lacks = |sequence: Option<u64>| newest.saturating_sub(sequence.unwrap_or_default());
    let (lacking, not_durable) = (lacks(source.received_sequence), lacks(source.durable_sequence));
    let part = lacking.min(not_durable) as f64 / not_durable.max(1) as f64;
    Ok(((bytes as f64 * part) as u64, bytes))
}

/// Whether the standby's file has everything that the primary has admitted. What is unknown is not drained.
pub fn is_drained(source: &Group, target: &Group) -> bool {
    let admitted = source.position.as_ref().map(|position| position.sequence);
    let applied = target.journal.as_ref().and_then(|journal| journal.applied_sequence);
    let is_delivered = source.lag.as_ref().is_some_and(|lag| lag.bytes == 0);
    is_delivered && admitted.zip(applied).is_some_and(|(admitted, applied)| applied >= admitted)
}

/// Whether the standby has on stable storage everything that the primary has admitted.
pub fn is_durable(source: &Group) -> bool {
    let admitted = source.position.as_ref().map(|position| position.sequence);
    let is_delivered = source.lag.as_ref().is_some_and(|lag| lag.bytes == 0);
    is_delivered
        && admitted.zip(source.durable_sequence).is_some_and(|(admitted, durable)| durable >= admitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(text: &str) -> Group {
        let status = format!(r#"{{ "version": 1, "groups": [ {{ "name": "bench", {text} }} ] }}"#);
        group_of(serde_json::from_str(&status).expect("a status")).expect("a group")
    }

    #[test]
    fn drained_means_delivered_and_applied() {
        let source = |bytes| {
            group(&format!(
                r#""protection": "in_sync", "position": {{ "generation": "a", "sequence": 7 }},
                   "lag": {{ "seconds": 0, "bytes": {bytes} }}, "journal": null"#
            ))
        };
        let target = |applied| {
            group(&format!(
                r#""protection": "in_sync", "position": null, "lag": null,
                   "journal": {{ "bytes": 0, "applied_sequence": {applied} }}"#
            ))
        };
        assert!(is_drained(&source("0"), &target("7")));
        assert!(!is_drained(&source("4096"), &target("7")));
        assert!(!is_drained(&source("0"), &target("6")));
        assert!(!is_drained(&source("0"), &target("null")), "unknown is not drained");
        let unknown = group(r#""protection": "in_sync", "position": null, "lag": null, "journal": null"#);
        assert!(!is_drained(&unknown, &target("7")));
    }

    #[test]
    fn behind_is_what_is_not_there_rather_than_not_durable() {
        let source = |received, durable| {
            let source = group(&format!(
                r#""protection": "async", "position": {{ "generation": "a", "sequence": 40 }}, "dirty_bytes": 9000,
                   "received_sequence": {received}, "durable_sequence": {durable},
                   "lag": {{ "seconds": 1, "bytes": 2000 }}"#
            ));
            behind(&source).expect("what it is")
        };
        assert_eq!(source("35", "20"), (500, 2000));
        assert_eq!(source("40", "20"), (0, 2000));
        // One acknowledgement may tell both.
        assert_eq!(source("20", "20"), (2000, 2000));
        assert_eq!(source("null", "null"), (2000, 2000));
        let catching_up =
            group(r#""protection": "catching_up", "position": null, "lag": null, "dirty_bytes": 9000"#);
        assert_eq!(behind(&catching_up).expect("what it is"), (9000, 9000));
    }
}
