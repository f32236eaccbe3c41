//! Things that only one place of the file may claim: volume names, devices, sockets, addresses.

use std::collections::HashMap;

use super::read::{Findings, Place, shorten};

/// Who claimed what first.
#[derive(Default)]
pub(super) struct Unique {
    claims: HashMap<(&'static str, String), Place>,
}

impl Unique {
    /// Claims `value` among things of one `kind`; a second claim is an error that names the first.
    pub(super) fn claim(&mut self, kind: &'static str, value: &str, place: &Place, findings: &mut Findings) {
        match self.claims.get(&(kind, value.to_owned())) {
            None => {
                self.claims.insert((kind, value.to_owned()), place.clone());
            }
            Some(first) => {
                let line = first.line.map(|line| format!(" (line {line})")).unwrap_or_default();
                let message =
                    format!("the {kind} \"{}\" is already used by {}{line}", shorten(value), first.key);
                findings.error(place, message);
            }
        }
    }
}
