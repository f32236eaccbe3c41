//! Where in a configuration file a key stands, for findings that only whoever opens devices and addresses can make.

use toml::de::{DeTable, DeValue};

use super::Problem;

/// The text of a file in which keys are looked up.
#[derive(Debug, Clone)]
pub struct Lines {
    file: String,
    text: String,
}

impl Lines {
    /// Of a configuration that was read from `file`.
    pub fn new(file: &str, text: String) -> Self {
        Self { file: file.to_owned(), text }
    }

    /// A finding about `key`, such as `group.orders.volume[0].device`. A key that is left out is where the section that it
    /// would be in begins.
    pub fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        let (file, key) = (self.file.clone(), key.to_owned());
        Problem { file, line: self.line(&key), key: Some(key), message: message.into() }
    }

    /// The line of a key or of the innermost section around it, from 1.
    fn line(&self, key: &str) -> Option<usize> {
        let document = DeTable::parse(&self.text).ok()?;
        let mut table = document.get_ref();
        let mut found = None;
        for part in key.split('.') {
            let (name, index) = match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
                Some((name, index)) => (name, index.parse::<usize>().ok()),
                None => (part, None),
            };
            let Some((known, value)) = table.iter().find(|(known, _)| known.get_ref() == name) else { break };
            let (span, mut value) = (known.span(), value);
            found = Some(span.start);
            if let (Some(index), DeValue::Array(items)) = (index, value.get_ref()) {
                let Some(item) = items.get(index) else { break };
                found = Some(item.span().start);
                value = item;
            }
            let DeValue::Table(inner) = value.get_ref() else { break };
            table = inner;
        }
        found.map(|start| self.text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[node]\nname = \"a\"\n\n[group.orders]\nprimary = \"a\"\njournal = { dir = \"/j\" }\n\n\
        [[group.orders.volume]]\nname = \"v\"\n\n[[group.orders.volume]]\nname = \"w\"\ndevice = \"/w\"\n";

    #[test]
    fn a_key_is_found_or_the_section_around_it() {
        let lines = Lines::new("a.toml", TEXT.to_owned());
        for (key, line) in [
            ("node.name", Some(2)),
            ("node.state_dir", Some(1)),
            ("group.orders.journal.dir", Some(6)),
            ("group.orders.journal.max_size", Some(6)),
            ("group.orders.volume[1].device", Some(13)),
            ("group.orders.volume[1].export.nbd", Some(11)),
            ("peer.address", None),
        ] {
            assert_eq!(lines.line(key), line, "{key}");
        }
        assert_eq!(lines.problem("node.name", "x").to_string(), "a.toml:2: node.name: x");
    }
}
