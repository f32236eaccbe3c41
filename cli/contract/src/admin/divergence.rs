//! How the histories of a group's two hosts differ.

use serde::{Deserialize, Serialize};

use crate::status::{Position, Role};

/// Most ranges of a volume that are named one by one.
pub const MAX_RANGES: usize = 1000;

/// Answer to [`super::Request::Divergence`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// The group.
    pub group: String,
    /// Whether clients were answered on both hosts after the histories had parted.
    pub split_brain: bool,
    /// This host's history.
    pub local: History,
    /// The other host's, as it last told; `null` if it has not.
    pub peer: Option<History>,
    /// The last position that both have; `null` if that is not known.
    pub common: Option<Position>,
    /// It is not known which blocks differ: all of them may.
    pub compares_all: bool,
    /// What only this host may have.
    pub volumes: Vec<DivergentVolume>,
}

/// How a host's image came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Its role.
    pub role: Role,
    /// The generation that it follows or makes, in hexadecimal.
    pub generation: String,
    /// The generations before, the oldest first, each with the place where it was left.
    pub past: Vec<Position>,
    /// The last sequence of its image; no write of a host that was replaced is beyond it.
    pub sequence: u64,
    /// Whether clients were answered for writes that no other host had seen.
    pub alone: bool,
    /// When it last began to go its own way, by promotion or without its peer: microseconds since 1970 by its own clock;
    /// `null` if it has not.
    pub parted_us: Option<u64>,
}

/// What only this host may have of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergentVolume {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes in blocks that may differ.
    pub divergent_bytes: u64,
    /// Where they are, in order; at most [`MAX_RANGES`].
    pub ranges: Vec<Range>,
    /// Bytes behind those ranges.
    pub more_bytes: u64,
}

/// A part of a volume, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Its first byte.
    pub offset: u64,
    /// Count of bytes.
    pub length: u64,
}
