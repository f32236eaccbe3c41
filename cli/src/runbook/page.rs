//! Markdown being written, and text that is safe in it.

use std::path::Path;

use crate::text::printable;

/// A page.
pub(super) struct Page(String);

impl Page {
    pub(super) fn new(title: &str) -> Self {
        Self(format!("# {title}\n"))
    }

    pub(super) fn section(&mut self, title: &str) {
        self.0 += &format!("\n## {title}\n");
    }

    pub(super) fn text(&mut self, text: &str) {
        self.0 += &format!("\n{text}\n");
    }

    pub(super) fn items<'t>(&mut self, items: impl IntoIterator<Item = &'t str>) {
        self.0.push('\n');
        items.into_iter().for_each(|item| self.0 += &format!("- {item}\n"));
    }

    pub(super) fn table(&mut self, heads: &[&str], rows: &[Vec<String>]) {
        self.0 += &format!("\n| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
        for row in rows {
            let cells: Vec<_> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            self.0 += &format!("| {} |\n", cells.join(" | "));
        }
    }

    /// Lines to be typed, or as they are printed.
    pub(super) fn code(&mut self, lines: &[String]) {
        let lines: Vec<_> = lines.iter().map(|line| printable(line).replace("```", "'''")).collect();
        self.0 += &format!("\n```\n{}\n```\n", lines.join("\n"));
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// `text` in backticks, whatever is in it.
pub(super) fn tick(text: impl ToString) -> String {
    format!("`{}`", printable(&text.to_string()).replace('`', "'"))
}

/// A path in backticks.
pub(super) fn tick_path(path: &Path) -> String {
    tick(path.display())
}

/// `text` as one word of a shell.
pub(super) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:+=@,%[]".contains(c);
    if !text.is_empty() && text.chars().all(plain) && !text.contains(['[', ']']) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// A path as one word of a shell.
pub(super) fn word_path(path: &Path) -> String {
    word(&path.display().to_string())
}
