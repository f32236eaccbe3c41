//! Hosts and commands as the steps call them.

use std::path::Path;

use afterimage_contract::config::DEFAULT_PATH;
use afterimage_contract::status::Role;

use super::Subject;
use super::page::{word, word_path};

/// Who is who, as far as it is known here.
pub(super) struct Names {
    /// This host.
    pub node: String,
    /// The group.
    pub group: String,
    /// The host that is the primary now; as configured while the daemons do not say.
    pub primary: String,
    /// The other one.
    pub standby: String,
    /// Whether this host was replaced.
    pub fenced: bool,
    /// Whether the daemons say who is the primary.
    pub known: bool,
    command: String,
}

impl Names {
    pub(super) fn of(subject: &Subject) -> Self {
        let (node, peer) = (subject.config.node.name.clone(), subject.config.peer.name.clone());
        let role = subject.group_status().map(|group| group.role);
        let here = match role {
            Some(Role::Primary) => true,
            Some(Role::Standby | Role::Fenced) => false,
            Some(Role::Unrecognized) | None => subject.group.starts_as_primary(&node),
        };
        let known = !matches!(role, Some(Role::Unrecognized) | None);
        let (primary, standby) = if here { (node.clone(), peer) } else { (peer, node.clone()) };
        let command = if subject.path == Path::new(DEFAULT_PATH) {
            "afterimage".to_owned()
        } else {
            format!("afterimage --config {}", word_path(subject.path))
        };
        let fenced = role == Some(Role::Fenced);
        Self { node, group: subject.group.name.clone(), primary, standby, fenced, known, command }
    }

    /// The operator's command with these words, for this host's configuration.
    pub(super) fn afterimage(&self, words: &[&str]) -> String {
        let words: Vec<_> = words.iter().map(|text| word(text)).collect();
        format!("{} {}", self.command, words.join(" "))
    }

    /// The command that does `verb` to the group.
    pub(super) fn group(&self, verb: &str, more: &[&str]) -> String {
        self.afterimage(&[&[verb, &self.group], more].concat())
    }
}
