//! The name a host goes by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host's name: 1 to 63 of `a-z A-Z 0-9 . _ -`, beginning with a letter or a digit. So short and plain that a name
/// from a peer can be shown, logged and compared as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// The longest node name, in bytes: that of a DNS label.
const MAX_BYTES: usize = 63;

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that is not a node name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a node name: expected 1 to {MAX_BYTES} letters, digits, dots, dashes or underscores, \
     beginning with a letter or a digit"
)]
pub struct NodeNameError;

impl TryFrom<String> for NodeName {
    type Error = NodeNameError;

    fn try_from(text: String) -> Result<Self, NodeNameError> {
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if starts && plain && text.len() <= MAX_BYTES { Ok(Self(text)) } else { Err(NodeNameError) }
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, NodeNameError> {
        text.to_owned().try_into()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_only() {
        for good in ["alpha", "b", "db-1.example.net", "9_x", &"a".repeat(63)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a\n", "ä", "a/b", &"a".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<NodeName>("\"a b\"").is_err());
    }
}
