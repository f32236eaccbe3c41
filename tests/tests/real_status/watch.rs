//! The live view in a pseudo terminal of the program `script`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::real::{Pair, PairOptions, Side, find_program, product_program};

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
const SHOW_CURSOR: &str = "\x1b[?25h";

/// A terminal of its own with the view in it; killed when dropped.
struct Terminal {
    script: Child,
    dir: std::path::PathBuf,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

impl Terminal {
    /// Runs the command; the settings of the terminal before and after it are kept in files.
    fn open(pair: &Pair, name: &str, args: &str) -> Result<Self> {
        let host = pair.host(Side::Alpha);
        let dir = host.dir.join(name);
        fs::create_dir(&dir)?;
        let inner = format!(
            "stty rows 24 cols 100; tty >tty; stty -g >before; {} --config {} status --watch=0.2 {args}; echo $? >exit; \
             stty -g >after",
            product_program("afterimage")?.display(),
            host.config().display(),
        );
        let script = Command::new(find_program("script")?)
            .args(["-q", "-f", "-c", &inner, "out"])
            .current_dir(&dir)
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("start script")?;
        Ok(Self { script, dir })
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join(name)).unwrap_or_default()).into_owned()
    }

    /// Waits until what the terminal was sent after `skip` bytes has all of this.
    fn wait_shown(&self, skip: usize, wanted: &[&str]) -> Result<usize> {
        let started = Instant::now();
        loop {
            let out = self.read("out");
            let new = out.get(skip..).unwrap_or_default();
            if wanted.iter().all(|part| new.contains(part)) {
                return Ok(out.len());
            }
            ensure!(started.elapsed() < LIMIT, "{wanted:?} was not shown: {new:?}");
            sleep(POLL);
        }
    }

    fn press(&mut self, keys: &[u8]) -> Result<()> {
        let stdin = self.script.stdin.as_mut().context("script reads")?;
        stdin.write_all(keys).and_then(|()| stdin.flush()).context("press a key")
    }

    /// Waits for the end of the command: the terminal is as it was, and the view is gone from it.
    fn ensure_restored(&mut self) -> Result<()> {
        let started = Instant::now();
        while self.read("after").is_empty() {
            ensure!(started.elapsed() < LIMIT, "it goes on: {:?}", self.read("out"));
            sleep(POLL);
        }
        ensure!(self.read("exit").trim() == "0", "exit status {}", self.read("exit"));
        ensure!(self.read("before") == self.read("after"), "the settings of the terminal have changed");
        let out = self.read("out");
        let (left, shown) = (out.rfind(LEAVE), out.rfind(SHOW_CURSOR));
        ensure!(left > out.rfind(ENTER) && shown.is_some(), "the view is still there: {out:?}");
        Ok(())
    }

    fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let tty = self.read("tty");
        let mut stty = Command::new(find_program("stty")?);
        stty.arg("-F").arg(Path::new(tty.trim()));
        let done = stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]).status()?;
        ensure!(done.success(), "the size of {tty} cannot be changed");
        Ok(())
    }
}

#[test]
fn the_live_view_comes_goes_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let mut pair = super::start(PairOptions::default().sync(), "in_sync")?;
    let mut terminal = Terminal::open(&pair, "q", "")?;
    let shown = ["afterimage on alpha", "orders", "transport", "apply", "sent", "UTC"];
    let at = terminal.wait_shown(0, &shown)?;
    // Another size: all is drawn anew.
    terminal.resize(40, 120)?;
    let at = terminal.wait_shown(at, &shown)?;
    // A daemon that goes is shown, and ends nothing.
    super::kill_agent(&mut pair, Side::Alpha)?;
    super::kill_receiver(&mut pair, Side::Alpha)?;
    terminal.wait_shown(at, &["answers:", "[stopped]"])?;
    terminal.press(b"q")?;
    terminal.ensure_restored()?;

    for (name, key) in [("esc", b"\x1b".as_slice()), ("ctrl-c", b"\x03")] {
        let mut terminal = Terminal::open(&pair, name, "")?;
        terminal.wait_shown(0, &["[stopped]"])?;
        terminal.press(key)?;
        terminal.ensure_restored()?;
    }
    Ok(())
}
