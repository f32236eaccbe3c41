//! `afterimage status`: asks both daemons of this host and prints one picture.

mod advice;
mod render;

use std::path::Path;
use std::time::Duration;

use afterimage_contract::status::Status;

use crate::args::StatusArgs;
use crate::exit::CommandError;
use crate::host;
use crate::text::{Paint, emit, printable_lines};

pub(crate) use advice::notes;
pub use render::render;

/// Between two pictures of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Cursor home, then clear to the end: less flicker than clearing first.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Prints the status once, or with `--watch` until interrupted. A watch outlives daemons that restart.
pub async fn run(config: &Path, args: &StatusArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    if let Some(group) = &args.group {
        host::ensure_group(&config, group)?;
    }
    let paint = Paint::for_stdout();
    let redraw = args.watch && !args.json && std::io::IsTerminal::is_terminal(&std::io::stdout());
    loop {
        let text = match host::status(&config).await {
            Ok(status) => print(only(status, args.group.as_deref()), args, paint)?,
            Err(error) if args.watch && !args.json => printable_lines(&error.message) + "\n",
            Err(error) if args.watch => {
                eprintln!("afterimage: {}", printable_lines(&error.message));
                String::new()
            }
            Err(error) => return Err(error),
        };
        emit(&if redraw { format!("{REDRAW}{text}") } else { text })?;
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn only(mut status: Status, group: Option<&str>) -> Status {
    if let Some(name) = group {
        status.groups.retain(|group| group.name == name);
    }
    status
}

fn print(status: Status, args: &StatusArgs, paint: Paint) -> Result<String, CommandError> {
    if !args.json {
        return Ok(render(&status, args.group.is_some(), paint));
    }
    let text =
        if args.watch { serde_json::to_string(&status) } else { serde_json::to_string_pretty(&status) };
    text.map(|text| text + "\n")
        .map_err(|error| CommandError::failed(format!("cannot write the status: {error}")))
}
