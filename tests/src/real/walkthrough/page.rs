//! The code blocks of a page, and what each is: commands for a host, or what they print.

use anyhow::{Result, bail, ensure};

use crate::real::Side;

/// The last line before a block of commands, which says where they are typed.
const LABELS: [(&str, &[Side]); 3] =
    [("**On alpha:**", &[Side::Alpha]), ("**On beta:**", &[Side::Beta]), ("**On both:**", &Side::BOTH)];

/// Everything on a page that is typed, in order.
#[derive(Debug)]
pub struct Page {
    /// The blocks of commands.
    pub steps: Vec<Step>,
}

/// A block of commands.
#[derive(Debug)]
pub struct Step {
    /// Where they are typed, one host after the other.
    pub sides: &'static [Side],
    /// The line of the page that the first is on.
    pub line: usize,
    /// The commands.
    pub commands: String,
    /// What the page shows of what they print.
    pub output: Option<Output>,
}

/// A block with what is printed.
#[derive(Debug)]
pub struct Output {
    /// The line of the page that it begins on.
    pub line: usize,
    /// What is shown.
    pub text: String,
}

impl Page {
    /// Takes a page apart. Fails if anything that looks like code is neither commands of a host nor their output: nothing may
    /// stand there that is not tried.
    pub fn parse(text: &str) -> Result<Self> {
        let mut steps: Vec<Step> = Vec::new();
        let mut lines = text.lines().zip(1..);
        let mut before = "";
        while let Some((line, number)) = lines.next() {
            let Some(kind) = line.strip_prefix("```") else {
                ensure_prose(line, number)?;
                if !line.trim().is_empty() {
                    ensure!(label(before).is_none(), "line {number}: no block of commands follows {before}");
                    before = line;
                }
                continue;
            };
            let mut block = String::new();
            loop {
                match lines.next() {
                    Some(("```", _)) => break,
                    Some((line, _)) => block.extend([line, "\n"]),
                    None => bail!("line {number}: the block has no end"),
                }
            }
            ensure!(!block.trim().is_empty(), "line {number}: the block is empty");
            match (kind, label(before), steps.last_mut()) {
                ("sh", Some(sides), _) => {
                    steps.push(Step { sides, line: number + 1, commands: block, output: None });
                }
                ("sh", None, _) => {
                    bail!("line {number}: the line before these commands says not where they are typed")
                }
                ("text", None, Some(step)) if step.output.is_none() => {
                    step.output = Some(Output { line: number + 1, text: block });
                }
                ("text", ..) => bail!("line {number}: this is not the output of the commands before it"),
                _ => bail!(
                    "line {number}: a block of {kind:?} is neither commands (sh) nor their output (text)"
                ),
            }
            before = "";
        }
        ensure!(label(before).is_none(), "no block of commands follows {before}");
        ensure!(!steps.is_empty(), "there is nothing to type");
        Ok(Self { steps })
    }
}

fn label(line: &str) -> Option<&'static [Side]> {
    LABELS.iter().find(|(label, _)| *label == line).map(|(_, sides)| *sides)
}

/// Fails for a line that is shown as code in another way than by ```` ``` ````, which would not be tried.
fn ensure_prose(line: &str, number: usize) -> Result<()> {
    let indented = line.starts_with("    ") || line.starts_with('\t');
    let fence = ["```", "~~~", "<pre", "<code"].iter().any(|fence| line.trim_start().starts_with(fence));
    ensure!(
        !indented && !fence,
        "line {number}: code has to stand between lines of ``` that are not indented"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_commands_and_what_they_print() {
        let page = "# Title\n\nWords.\n\n**On both:**\n\n```sh\none\ntwo\n```\n\nIt says\n\n```text\nthree\n```\n\n**On beta:**\n```sh\nfour\n```\n";
        let page = Page::parse(page).unwrap();
        let [first, second] = &page.steps[..] else { panic!("{page:?}") };
        assert_eq!((first.sides, first.line, first.commands.as_str()), (&Side::BOTH[..], 8, "one\ntwo\n"));
        let output = first.output.as_ref().unwrap();
        assert_eq!((output.line, output.text.as_str()), (15, "three\n"));
        assert_eq!((second.sides, second.line, second.output.is_some()), (&[Side::Beta][..], 20, false));
    }

    #[test]
    fn no_block_is_left_out() {
        let commands = "**On alpha:**\n```sh\none\n```\n";
        for (wrong, said) in [
            ("```sh\none\n```\n", "line 1: the line before"),
            ("On alpha:\n```sh\none\n```\n", "line 2: the line before"),
            ("**On gamma:**\n```sh\none\n```\n", "line 2: the line before"),
            ("**On alpha:**\n```\none\n```\n", "line 2: a block of \"\""),
            ("**On alpha:**\n```bash\none\n```\n", "line 2: a block of \"bash\""),
            ("**On alpha:**\n```sh\n\n```\n", "line 2: the block is empty"),
            ("**On alpha:**\n```sh\none\n", "line 2: the block has no end"),
            ("**On alpha:**\n```sh\none\n ```\n", "line 2: the block has no end"),
            ("**On alpha:**\n  ```sh\none\n", "line 2: code has to stand"),
            ("~~~\none\n~~~\n", "line 1: code has to stand"),
            ("    one\n", "line 1: code has to stand"),
            ("```text\none\n```\n", "line 1: this is not the output"),
            ("**On alpha:**\nWords.\n```sh\none\n```\n", "line 2: no block of commands follows"),
            ("Words.\n**On alpha:**\n", "no block of commands follows"),
            ("Words.\n", "there is nothing to type"),
        ] {
            let error = Page::parse(wrong).unwrap_err().to_string();
            assert!(error.starts_with(said), "{wrong:?}: {error}");
        }
        let twice = format!("{commands}```text\none\n```\n```text\none\n```\n");
        assert!(Page::parse(&twice).unwrap_err().to_string().starts_with("line 8: this is not the output"));
    }
}
