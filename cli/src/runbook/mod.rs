//! `afterimage runbook`: the exact steps and commands for one group, as Markdown, with this host's values and state.
//!
//! | module | noun |
//! |---|---|
//! | `page` | Markdown being written, and text that is safe in it |
//! | `names` | hosts and commands as the steps call them |
//! | `state` | what is configured, and what is the case now |
//! | `attach` | how clients reach the volumes |
//! | `steps` | what to do, for each thing that can happen |

mod attach;
mod names;
mod page;
mod state;
mod steps;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use afterimage_contract::config::{self, Config};
use afterimage_contract::hooks::{self, Event, HookError};
use afterimage_contract::status::{GroupStatus, Status};

use crate::args::RunbookArgs;
use crate::exit::CommandError;
use crate::host;
use crate::text::emit;
use names::Names;
use page::Page;

/// Everything that a runbook is made of.
pub struct Subject<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Its file.
    pub path: &'a Path,
    /// The group.
    pub group: &'a config::Group,
    /// What the daemons say; they may be silent.
    pub status: &'a Status,
    /// What is there for each event.
    pub hooks: Vec<(Event, Result<Option<PathBuf>, HookError>)>,
}

impl Subject<'_> {
    /// What the daemons say of the group, if they do.
    fn group_status(&self) -> Option<&GroupStatus> {
        self.status.groups.iter().find(|group| group.name == self.group.name)
    }
}

/// Prints the runbook of a group. Daemons that do not answer are part of it.
pub async fn run(path: &Path, args: &RunbookArgs) -> Result<(), CommandError> {
    let config = host::configuration(path)?;
    host::ensure_group(&config, &args.group)?;
    let Some(group) = config.groups.get(&args.group) else { return Ok(()) };
    let status = host::document(&config).await;
    let found = |hooks: &config::Hooks| {
        Event::ALL.into_iter().map(|event| (event, hooks::find(&hooks.dir, event))).collect()
    };
    let hooks = config.hooks.as_ref().map(found).unwrap_or_default();
    emit(&render(&Subject { config: &config, path, group, status: &status, hooks }))
}

/// The runbook.
pub fn render(subject: &Subject) -> String {
    let names = Names::of(subject);
    let mut page = Page::new(&format!("Runbook: group {}", subject.group.name));
    state::head(&mut page, subject, &names);
    state::configured(&mut page, subject);
    state::now(&mut page, subject, &names);
    steps::look(&mut page, subject, &names);
    attach::clients(&mut page, subject, &names);
    steps::site_lost(&mut page, subject, &names);
    steps::home(&mut page, subject, &names);
    steps::planned_move(&mut page, &names);
    steps::split_brain(&mut page, subject, &names);
    steps::link_down(&mut page, subject, &names);
    steps::start(&mut page, &names);
    steps::disk_failed(&mut page, subject, &names);
    state::hooks(&mut page, subject);
    page.finish()
}
