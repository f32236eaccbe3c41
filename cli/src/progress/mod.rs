//! What a command shows on stderr while it waits for long work: a bar on a terminal, lines elsewhere. stdout is left to the
//! outcome.
//!
//! | module | noun |
//! |---|---|
//! | `report` | what is said of the work, and when: pure |
//! | `interrupt` | Ctrl-C, after which the daemons go on |
//! | `request` | one request to a daemon that takes long |

mod interrupt;
mod report;
mod request;

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub use interrupt::{interrupted, or_interrupted};
pub use report::{Left, Work};
pub use request::ask_long;

use crate::text::printable;
use report::{Report, Say};

/// Steps of the bar: finer than any terminal is wide.
const STEPS: u64 = 1000;
/// The bar is short, so that the text beside it, with numbers of many digits, fits into 80 columns too.
const TEMPLATE: &str = "{bar:10} {wide_msg}";

/// Work that is being waited for.
pub struct Progress {
    report: Report,
    face: Face,
    began: Instant,
    /// Nothing is shown of work that is over before this.
    from: Duration,
}

enum Face {
    Silent,
    Lines,
    /// The bar once it was drawn.
    Bar(Option<ProgressBar>),
}

impl Progress {
    /// Shows what it is told from now on; nothing if it is to be `quiet`. A terminal that cannot move its cursor gets lines.
    pub fn new(quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let face = match std::io::stderr().is_terminal() {
            _ if quiet => Face::Silent,
            true if !dumb => Face::Bar(None),
            _ => Face::Lines,
        };
        Self { report: Report::default(), face, began: Instant::now(), from: Duration::ZERO }
    }

    /// Shows nothing of work that takes less than `from`.
    pub fn after(from: Duration, quiet: bool) -> Self {
        Self { from, ..Self::new(quiet) }
    }

    /// Shows how far the work is.
    pub fn show(&mut self, work: &Work) {
        let now = self.began.elapsed();
        if now < self.from {
            return;
        }
        let Say { line, text, permille } = self.report.look(now, work);
        match &mut self.face {
            Face::Silent => {}
            Face::Lines if line => say(&text),
            Face::Lines => {}
            Face::Bar(bar) => {
                let bar = bar.get_or_insert_with(draw);
                bar.set_message(printable(&text));
                bar.set_position(permille.unwrap_or(0));
            }
        }
    }

    /// The work is over: the bar goes away, for the outcome is printed next; elsewhere there is a last line.
    pub fn end(mut self) {
        self.clear();
        if let (Face::Lines, Some(text)) = (&self.face, self.report.ended(self.began.elapsed())) {
            say(&text);
        }
    }

    /// The work was not waited for to its end.
    pub fn abandon(mut self) {
        self.clear();
    }

    fn clear(&mut self) {
        if let Face::Bar(Some(bar)) = &self.face {
            bar.finish_and_clear();
        }
    }
}

fn draw() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
    // Without colours, whatever NO_COLOR says.
    match ProgressStyle::with_template(TEMPLATE) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// A reader that has gone away is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(text));
}
