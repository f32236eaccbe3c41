//! Rows of cells, the headings first, for a terminal and as Markdown.

/// Columns aligned with spaces.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A Markdown table.
pub fn markdown(rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let Some((headings, rows)) = rows.split_first() else { return String::new() };
    let rule = vec!["---".to_owned(); headings.len()];
    [line(headings), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

/// What a cell says when there is nothing to say.
pub fn none() -> String {
    "–".to_owned()
}

/// Headings as a row.
pub fn headings<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_have_every_cell() {
        let rows = [headings(["a", "bb"]), vec!["ccc".to_owned(), none()]];
        assert_eq!(aligned(&rows), "a    bb\nccc  –\n");
        assert_eq!(markdown(&rows), "| a | bb |\n| --- | --- |\n| ccc | – |\n");
        assert_eq!(markdown(&[]), "");
    }
}
