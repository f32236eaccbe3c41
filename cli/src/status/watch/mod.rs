//! `afterimage status --watch` in a terminal: a live view until q, Esc or Ctrl-C.
//!
//! | module | noun |
//! |---|---|
//! | `view` | what is shown: the newest status, the history of each group, where it is scrolled to |
//! | `draw` | the view as cells of a terminal |
//!
//! The view is fed and drawn here. The terminal is as it was on return, also after a panic.

mod draw;
#[cfg(test)]
mod tests;
mod view;

use std::io;
use std::thread;
use std::time::Duration;

use afterimage_contract::config::Config;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::selected;
use crate::args::StatusArgs;
use crate::exit::CommandError;
use crate::host;
use crate::text::Paint;
use view::{Next, View};

/// Keys that wait to be handled: more than anybody types while one status is fetched.
const MAX_KEYS: usize = 64;

/// Shows the view until the operator leaves it, or the process is asked to end.
pub(super) async fn run(config: &Config, args: &StatusArgs, every: Duration) -> Result<(), CommandError> {
    let failed = |error: io::Error| CommandError::failed(format!("cannot use the terminal: {error}"));
    // Restores the terminal at a panic too.
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let outcome = show(&mut terminal, config, args, every).await;
    let restored = ratatui::try_restore();
    outcome.and(restored).map_err(failed)
}

async fn show(
    terminal: &mut DefaultTerminal,
    config: &Config,
    args: &StatusArgs,
    every: Duration,
) -> io::Result<()> {
    let mut view = View::new(&config.node.name, Paint::for_stdout(), args.unhealthy);
    let mut keys = read_keys();
    let (mut terminate, mut hang_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| draw::draw(&mut view, frame))?;
        tokio::select! {
            // A daemon that answers late must not keep the operator from leaving.
            status = async { ticks.tick().await; host::document(config).await } => {
                view.feed(selected(status, args));
            }
            key = keys.recv() => match key {
                Some(Ok(event)) if view.handle(&event) == Next::Leave => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(io::Error::other("the keyboard is gone")),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// What is typed, and changes of the terminal's size. The thread ends with the process, or when nobody listens.
fn read_keys() -> mpsc::Receiver<io::Result<Event>> {
    let (sender, receiver) = mpsc::channel(MAX_KEYS);
    thread::spawn(move || {
        loop {
            let event = event::read();
            let is_last = event.is_err();
            if sender.blocking_send(event).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}
