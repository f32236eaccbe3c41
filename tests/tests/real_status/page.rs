//! `docs/status-states.md`: what `afterimage status` prints in each state. Captures of real daemons are compared with it, with
//! what differs from run to run made the same; `AFTERIMAGE_BLESS=1` writes them into it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use afterimage_events::Event;
use anyhow::{Context, Result, anyhow, ensure};
use tests::real::{Pair, Side};

const BLESS: &str = "AFTERIMAGE_BLESS";
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Lines of a terminal that nobody made larger.
const SCREEN_LINES: usize = 24;
/// Two tests that write the page would lose what the other wrote.
static PAGE: Mutex<()> = Mutex::new(());

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/status-states.md")
}

/// Captures what a command prints on a host, and compares it with the page's section: it has to print just that before long.
/// A state is shown as soon as it is known, and what stands beside it (the peer's row of a connection that is tried again and
/// again) may come a moment later.
pub fn capture(pair: &Pair, section: &str, side: Side, args: &[&str]) -> Result<String> {
    capture_when(pair, section, side, args, |_| true)
}

/// The same, of a state that comes and goes: once it prints what is `wanted`.
pub fn capture_when(
    pair: &Pair,
    section: &str,
    side: Side,
    args: &[&str],
    wanted: impl Fn(&str) -> bool,
) -> Result<String> {
    let command = format!("{}$ afterimage {}", side.name(), args.join(" "));
    let until = Instant::now() + LIMIT;
    loop {
        let done = pair.command(side, args)?;
        ensure!(done.stderr.is_empty(), "{section}: {done:?}");
        let outcome = if wanted(&done.stdout) {
            let text = normalized(pair, &done.stdout);
            ensure!(text.lines().count() <= SCREEN_LINES, "{section} takes more than a screen:\n{text}");
            check_notes(section, &text)?;
            compare(section, &command, &text)
        } else {
            Err(anyhow!("{section}: it never was as wanted: {}", done.stdout))
        };
        match outcome {
            Ok(()) => return Ok(done.stdout),
            Err(differs) if Instant::now() > until => return Err(differs),
            Err(_) => sleep(POLL),
        }
    }
}

/// Every line about something that is wrong has the id of an event that is documented, and is followed by what to do.
fn check_notes(section: &str, text: &str) -> Result<()> {
    let events = fs::read_to_string(page().with_file_name("events.md"))?;
    let lines: Vec<_> = text.lines().map(str::trim_start).collect();
    for (index, line) in lines.iter().enumerate() {
        if !line.starts_with("! ") && !line.starts_with("~ ") {
            continue;
        }
        let id = line.rsplit_once(" [").and_then(|(_, id)| id.strip_suffix(']'));
        let id = id.with_context(|| format!("{section}: no event in {line:?}"))?;
        ensure!(Event::by_id(id).is_some(), "{section}: {id} is no event");
        ensure!(events.contains(&format!("\n### `{id}`\n")), "{section}: {id} is not documented");
        let action = lines.get(index + 1).is_some_and(|next| next.starts_with("do: "));
        ensure!(action, "{section}: nothing to do after {line:?}");
    }
    Ok(())
}

fn compare(section: &str, command: &str, text: &str) -> Result<()> {
    let _page = PAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let written = fs::read_to_string(page()).context("read docs/status-states.md")?;
    let heading = format!("\n## {section}\n");
    let start = written.find(&heading).with_context(|| format!("the page has no section {section:?}"))?;
    let start = start + heading.len();
    let end = written[start..].find("\n## ").map_or(written.len(), |at| start + at);
    let begin = format!("```text\n{command}\n");
    let block = written[start..end].find(&begin);
    let block =
        block.with_context(|| format!("{section}: the page has no block {begin:?}"))? + start + begin.len();
    let close = written[block..].find("```").context("the block ends")? + block;
    if std::env::var_os(BLESS).is_some() {
        let blessed = format!("{}{text}{}", &written[..block], &written[close..]);
        return fs::write(page(), blessed).context("write docs/status-states.md");
    }
    let expected = &written[block..close];
    ensure!(
        expected == text,
        "{section}, {command}; {BLESS}=1 writes it anew.\n--- the page:\n{expected}--- now:\n{text}"
    );
    Ok(())
}

/// What the page has sections of.
pub fn sections() -> Result<BTreeSet<String>> {
    let written = fs::read_to_string(page())?;
    Ok(written.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_owned).collect())
}

/// The text with what differs from run to run made the same.
fn normalized(pair: &Pair, text: &str) -> String {
    let mut text = text.to_owned();
    for side in Side::BOTH {
        let host = pair.host(side);
        text = text.replace(&host.dir.display().to_string(), &format!("/srv/{}", side.name()));
        let own = if side == Side::Alpha { "192.0.2.1:7789" } else { "192.0.2.2:7789" };
        text = text.replace(&host.listen.to_string(), own);
    }
    let lines: Vec<_> = text.lines().collect();
    let table = |line: &&str| !line.starts_with([' ', '!', '~']) && line.contains("  ");
    let rows: Vec<Vec<String>> = lines.iter().copied().filter(table).map(cells).collect();
    let mut out = String::new();
    let mut row = rows.iter();
    for line in &lines {
        match table(line).then(|| row.next()).flatten() {
            Some(cells) => out += &aligned(cells, &rows),
            None => out += &words(line),
        }
        out.push('\n');
    }
    out
}

/// The cells of a row, each normalized.
fn cells(line: &str) -> Vec<String> {
    let found = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
    let cell = |(column, cell): (usize, &str)| match (column, cell) {
        (_, heading) if heading.chars().all(|c| c.is_uppercase() || c == ' ') => heading.to_owned(),
        (FOR, since) if since != "-" => "5s".to_owned(),
        (TRANSPORT_LAG, lag) if lag != "none" && lag != "unknown" => "3.0s, 1 MiB".to_owned(),
        (APPLY_LAG, lag) if lag != "none" && lag != "unknown" => "3.0s".to_owned(),
        _ => words(cell),
    };
    found.enumerate().map(cell).collect()
}

const FOR: usize = 4;
const TRANSPORT_LAG: usize = 5;
const APPLY_LAG: usize = 6;

fn aligned(cells: &[String], rows: &[Vec<String>]) -> String {
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let mut line = String::new();
    for (column, cell) in cells.iter().enumerate() {
        line += cell;
        if column + 1 < cells.len() {
            let width = width(column).unwrap_or(0);
            line += &" ".repeat(width - cell.chars().count() + 2);
        }
    }
    line
}

/// A line with its numbers replaced.
fn words(line: &str) -> String {
    // How the end of a session was noticed depends on what came first.
    if let Some((before, after)) = line.split_once(" does not connect: ") {
        let event = after.rfind(" [").map_or("", |at| &after[at..]);
        return format!("{before} does not connect: the peer was not heard any more{event}");
    }
    let mut out: Vec<String> = Vec::new();
    let words: Vec<_> = line.split(' ').collect();
    let mut index = 0;
    while let Some(word) = words.get(index) {
        let next = words.get(index + 1).copied().unwrap_or_default();
        let (core, tail) = word.split_at(word.trim_end_matches([',', ';', ':', '.', ')']).len());
        let (open, core) = core.split_at(core.len() - core.trim_start_matches('(').len());
        let number = core.starts_with(|c: char| c.is_ascii_digit());
        let unit = next.trim_end_matches([',', ';', ')']);
        let replaced = match core {
            _ if is_key(core) => fingerprint(core),
            _ if number && next == "MiB" && words.get(index + 2) == Some(&"of") => "16".to_owned(),
            _ if number && core.ends_with('%') => "42%".to_owned(),
            _ if number && core.len() == 20 && core.ends_with('Z') => "2026-01-31T12:00:00Z".to_owned(),
            _ if core.starts_with("127.0.0.1:") || core.starts_with("[::ffff:127.0.0.1]:") => {
                "192.0.2.1:50000".to_owned()
            }
            _ if number && open == "(" && unit == "ms" => "0.4".to_owned(),
            _ if number && unit.ends_with("iB/s") => {
                index += 1;
                out.push(format!("{open}1 MiB/s{}", &next[unit.len()..]));
                index += 1;
                continue;
            }
            _ if number && core.ends_with('s') && matches!(next, "to") => "9s".to_owned(),
            _ if number && core.ends_with('s') && tail == "," => {
                // A lag: its bytes follow.
                index += 3;
                let end =
                    words.get(index - 1).map_or("", |unit| &unit[unit.trim_end_matches([',', ';']).len()..]);
                out.push(format!("3.0s, 1 MiB{end}"));
                continue;
            }
            _ if core.len() == 16 && core.chars().all(|c| c.is_ascii_hexdigit()) => {
                "5f0c5f0c5f0c5f0c".to_owned()
            }
            _ => short_numbers(core),
        };
        out.push(format!("{open}{replaced}{tail}"));
        index += 1;
    }
    out.join(" ")
}

/// Whether a word is a key's fingerprint.
pub fn is_key(word: &str) -> bool {
    word.len() > 60
        && word.split('-').all(|part| part.len() == 4 && part.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// The same letter for the same key, so that two that are alike can be told from two that are not.
fn fingerprint(key: &str) -> String {
    KEYS.with_borrow_mut(|keys| {
        let known = keys.iter().position(|known| known == key).unwrap_or_else(|| {
            keys.push(key.to_owned());
            keys.len() - 1
        });
        let letter = char::from(b'A' + u8::try_from(known).unwrap_or(25));
        vec![letter.to_string().repeat(4); 13].join("-")
    })
}

/// With long numbers, which are sizes, inodes and the like, replaced.
fn short_numbers(word: &str) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for c in word.chars().chain([' ']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        out += if digits.len() > 4 { "12345" } else { &digits };
        digits.clear();
        out.push(c);
    }
    out.trim_end().to_owned()
}

thread_local! {
    /// The keys that a test has shown.
    static KEYS: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}
