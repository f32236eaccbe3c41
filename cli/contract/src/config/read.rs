//! Reads TOML tables key by key, and remembers where each thing stands and what is wrong with it.
//!
//! A [`Section`] learns the keys it knows from those it is asked for, so the list of known keys cannot go
//! stale.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::Problem;
use super::values::kind;

/// How alike a key must be to be suggested, from 0 to 1: `sync_timout` is suggested, `colour` is not.
const MIN_LIKENESS: f64 = 0.6;
/// Longer words are not compared: the comparison is quadratic, and no key is that long.
const MAX_COMPARED_LEN: usize = 64;
/// Longest part of a file that a message repeats; more than the longest name.
const MAX_SHOWN_CHARS: usize = 80;

/// Everything found so far in one file.
pub(super) struct Findings<'a> {
    file: &'a str,
    line_starts: Vec<usize>,
    pub(super) errors: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(text: &str, file: &'a str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        Self {
            file,
            line_starts: std::iter::once(0).chain(newlines).collect(),
            errors: vec![],
            warnings: vec![],
        }
    }

    pub(super) fn error(&mut self, at: &Place, message: impl Into<String>) {
        let problem = self.problem(at, message.into());
        self.errors.push(problem);
    }

    pub(super) fn warning(&mut self, at: &Place, message: impl Into<String>) {
        let problem = self.problem(at, message.into());
        self.warnings.push(problem);
    }

    pub(super) fn syntax_error(&mut self, error: &toml::de::Error) {
        let line = error.span().map(|span| self.line(&span));
        let message = error.message().trim().replace('\n', ", ");
        self.errors.push(Problem { file: self.file.to_owned(), line, key: None, message });
    }

    fn problem(&self, at: &Place, message: String) -> Problem {
        let key = (!at.key.is_empty()).then(|| at.key.clone());
        Problem { file: self.file.to_owned(), line: at.line, key, message }
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.line_starts.partition_point(|start| *start <= span.start)
    }
}

/// A key and its line.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) key: String,
    pub(super) line: Option<usize>,
}

impl Place {
    /// The file as a whole.
    pub(super) fn file() -> Self {
        Self { key: String::new(), line: None }
    }

    pub(super) fn below(&self, key: &str) -> String {
        let key = shorten(key);
        if self.key.is_empty() { key } else { format!("{}.{key}", self.key) }
    }
}

/// A value that was asked for.
pub(super) struct Entry<'t> {
    pub(super) place: Place,
    pub(super) value: &'t DeValue<'t>,
}

/// One table of the file.
pub(super) struct Section<'t> {
    pub(super) place: Place,
    table: &'t DeTable<'t>,
    known: Vec<&'static str>,
}

impl<'t> Section<'t> {
    pub(super) fn new(place: Place, table: &'t DeTable<'t>) -> Self {
        Self { place, table, known: Vec::new() }
    }

    /// Whether the file has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(name, _)| name.get_ref() == key)
    }

    /// The value of a key, if the file has it.
    pub(super) fn entry(&mut self, key: &'static str, findings: &Findings) -> Option<Entry<'t>> {
        self.known.push(key);
        let (name, value) = self.table.iter().find(|(name, _)| name.get_ref() == key)?;
        let place = Place { key: self.place.below(key), line: Some(findings.line(&name.span())) };
        Some(Entry { place, value: value.get_ref() })
    }

    /// The value of a key as `convert` reads it; `None` if it is absent or wrong, and what is wrong is noted.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        findings: &mut Findings,
        convert: impl FnOnce(&'t DeValue<'t>) -> Result<T, String>,
    ) -> Option<(T, Place)> {
        let entry = self.entry(key, findings)?;
        match convert(entry.value) {
            Ok(value) => Some((value, entry.place)),
            Err(message) => {
                findings.error(&entry.place, message);
                None
            }
        }
    }

    /// As [`Self::optional`], and absence is noted as well.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        findings: &mut Findings,
        convert: impl FnOnce(&'t DeValue<'t>) -> Result<T, String>,
    ) -> Option<(T, Place)> {
        if !self.has(key) {
            self.known.push(key);
            findings.error(&self.place, format!("`{key}` is missing; add {example}"));
            return None;
        }
        self.optional(key, findings, convert)
    }

    /// The table under a key.
    pub(super) fn section(&mut self, key: &'static str, findings: &mut Findings) -> Option<Section<'t>> {
        let (table, place) = self.optional(key, findings, table)?;
        Some(Section::new(place, table))
    }

    /// The tables under every key of this one, whatever their names, in the order of their lines.
    pub(super) fn sections(self, findings: &mut Findings) -> Vec<(&'t str, Section<'t>)> {
        let mut all = Vec::new();
        for (name, value) in self.table {
            let line = Some(findings.line(&name.span()));
            let place = Place { key: self.place.below(name.get_ref()), line };
            match table(value.get_ref()) {
                Ok(table) => all.push((name.get_ref().as_ref(), Section::new(place, table))),
                Err(message) => findings.error(&place, message),
            }
        }
        all.sort_by_key(|(_, section)| section.place.line);
        all
    }

    /// The tables of an array of tables under a key: none if it is absent, `None` if it is no such array.
    pub(super) fn array_of_sections(
        &mut self,
        key: &'static str,
        findings: &mut Findings,
    ) -> Option<Vec<Section<'t>>> {
        let Some(entry) = self.entry(key, findings) else { return Some(Vec::new()) };
        let Some(array) = entry.value.as_array() else {
            findings.error(&entry.place, format!("expected [[{}]]: a list of tables", entry.place.key));
            return None;
        };
        let mut all = Vec::new();
        for (index, value) in array.iter().enumerate() {
            let line = Some(findings.line(&value.span()));
            let place = Place { key: format!("{}[{index}]", entry.place.key), line };
            match table(value.get_ref()) {
                Ok(table) => all.push(Section::new(place, table)),
                Err(message) => findings.error(&place, message),
            }
        }
        Some(all)
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self, findings: &mut Findings) {
        for (name, _) in self.table {
            let name_text: &str = name.get_ref();
            if self.known.contains(&name_text) {
                continue;
            }
            let place = Place { key: self.place.below(name_text), line: Some(findings.line(&name.span())) };
            let message = match closest(name_text, self.known.iter().copied()) {
                Some(known) => format!("unknown key; did you mean `{known}`?"),
                None => format!("unknown key; known here: {}", self.known.join(", ")),
            };
            findings.error(&place, message);
        }
    }
}

/// The word most like `word`, if any is like it at all.
pub(super) fn closest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > MAX_COMPARED_LEN {
        return None;
    }
    known
        .map(|k| (k, strsim::normalized_damerau_levenshtein(word, k)))
        .filter(|(_, likeness)| *likeness >= MIN_LIKENESS)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(k, _)| k)
}

pub(super) fn table<'t>(value: &'t DeValue<'t>) -> Result<&'t DeTable<'t>, String> {
    value.as_table().ok_or_else(|| format!("expected a table, found {}", kind(value)))
}

/// What of a wrong value is repeated in a message: enough to find it, never a screenful or control
/// characters.
pub(super) fn shorten(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut short: String = chars.by_ref().take(MAX_SHOWN_CHARS).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}
