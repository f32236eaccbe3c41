//! What a page shows of what commands print, compared with what they print.
//!
//! | on the page | stands for |
//! |---|---|
//! | a line `...` | any number of lines, also none |
//! | `...` in a line | anything in that line, also nothing |
//! | `<name>` | letters, digits and signs up to the next space: what is there the first time is the value from then on, also in commands |
//!
//! Everything else has to be the same, but for spaces at the ends of lines and empty lines around the whole.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use regex_lite::{Captures, Regex};

/// A value that the page gives a name.
const NAME: &str = "<([a-z][a-z-]*)>";

/// The values of the names so far.
#[derive(Debug, Default)]
pub struct Values(BTreeMap<String, String>);

impl Values {
    /// The commands with values in the place of names. Fails if one of them was not shown before.
    pub fn fill_in(&self, commands: &str) -> Result<String> {
        let name = Regex::new(NAME).context("compile a pattern")?;
        if let Some(unknown) = name.captures_iter(commands).find(|found| !self.0.contains_key(&found[1])) {
            bail!("nothing has shown a value for {}", &unknown[0]);
        }
        Ok(name.replace_all(commands, |found: &Captures<'_>| self.0[&found[1]].clone()).into_owned())
    }

    /// Fails unless `printed` is what the page shows; takes the values of new names over.
    pub fn compare(&mut self, shown: &str, printed: &str) -> Result<()> {
        let (shown, printed) = (tidy(shown), tidy(printed));
        let mut new = Vec::new();
        let pattern = self.pattern(&shown, &mut new)?;
        let Some(found) = pattern.captures(&printed) else {
            bail!("this was to be printed\n{shown}and this was\n{printed}");
        };
        for (index, name) in new.into_iter().enumerate() {
            let value = found.get(index + 1).context("a name has no value")?;
            self.0.insert(name, value.as_str().to_owned());
        }
        Ok(())
    }

    /// What has to match all that is printed. One group for each name of `new`.
    fn pattern(&self, shown: &str, new: &mut Vec<String>) -> Result<Regex> {
        let part = Regex::new(&format!(r"\.\.\.|{NAME}")).context("compile a pattern")?;
        let mut pattern = "^".to_owned();
        for line in shown.lines() {
            if line == "..." {
                pattern.push_str(r"(?:.*\n)*?");
                continue;
            }
            let mut end = 0;
            for found in part.captures_iter(line) {
                let whole = found.get(0).context("a match has a place")?;
                pattern.push_str(&regex_lite::escape(&line[end..whole.start()]));
                end = whole.end();
                match found.get(1).map(|name| name.as_str()) {
                    None => pattern.push_str(".*?"),
                    Some(name) => match self.0.get(name) {
                        Some(value) => pattern.push_str(&regex_lite::escape(value)),
                        None if new.iter().any(|known| known == name) => {
                            bail!("<{name}> stands twice where its value is first shown")
                        }
                        None => {
                            new.push(name.to_owned());
                            pattern.push_str(r"(\S+)");
                        }
                    },
                }
            }
            pattern.push_str(&regex_lite::escape(&line[end..]));
            pattern.push_str(r"\n");
        }
        pattern.push('$');
        Regex::new(&pattern).with_context(|| format!("compile the pattern of\n{shown}"))
    }
}

/// Without spaces at the ends of lines, and without empty lines around the whole.
fn tidy(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let text = lines.join("\n");
    let text = text.trim_matches('\n');
    if text.is_empty() { String::new() } else { format!("{text}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(shown: &str, printed: &str) -> Result<()> {
        Values::default().compare(shown, printed)
    }

    #[test]
    fn what_is_printed_has_to_be_what_is_shown() {
        for (shown, printed) in [
            ("one\ntwo\n", "\none  \ntwo\n\n"),
            ("one ... three\n", "one 2 three\n"),
            ("one...three\n", "onethree\n"),
            ("...\nthree\n", "one\ntwo\nthree\n"),
            ("one\n...\n", "one\n"),
            ("one\n...\n", "one\ntwo\n\nthree\n"),
            ("a.b (c) [d] 1*2\n", "a.b (c) [d] 1*2\n"),
        ] {
            compare(shown, printed).unwrap();
        }
        for (shown, printed) in [
            ("one\n", "two\n"),
            ("one\n", "one\ntwo\n"),
            ("one\n", "zero\none\n"),
            ("one\ntwo\n", "one\n"),
            ("one\n", ""),
            ("one ... three\n", "one\nthree\n"),
            ("one\n...\nthree\n", "one\ntwo\n"),
            ("a.b\n", "axb\n"),
        ] {
            let error = compare(shown, printed).unwrap_err().to_string();
            assert!(error.starts_with("this was to be printed\n"), "{error}");
        }
    }

    #[test]
    fn a_name_keeps_its_value() {
        let mut values = Values::default();
        values.compare("token: <token>\n...\n", "token: a.b-1\nmore\n").unwrap();
        assert_eq!(
            values.fill_in("pair <token> <<END >file 2>&1\n").unwrap(),
            "pair a.b-1 <<END >file 2>&1\n"
        );
        values.compare("<token>\n", "a.b-1\n").unwrap();
        assert!(values.compare("<token>\n", "axb-1\n").is_err());
        assert!(values.compare("<other>\n", "two words\n").is_err());
        let error = values.fill_in("pair <other>\n").unwrap_err().to_string();
        assert_eq!(error, "nothing has shown a value for <other>");
        assert!(values.compare("<new> <new>\n", "a a\n").unwrap_err().to_string().contains("stands twice"));
    }
}
