//! `afterimage promote`: the receiver makes this host the primary, then the agent serves the group.

use std::path::Path;

use afterimage_contract::admin::{Activation, AdminError, Loss, Promotion, Request, call, format_time};
use afterimage_contract::status::GroupStatus;
use afterimage_contract::units::ByteSize;
use serde_json::json;

use crate::args::PromoteArgs;
use crate::exit::{CommandError, explain};
use crate::host;
use crate::progress::{Left, Work, ask_long, or_interrupted};
use crate::text::{emit, printable};

/// Version of the JSON that `promote --json` prints.
pub const JSON_VERSION: u32 = 1;

/// Promotes a group. Once the receiver has done it, it stays done: a failure to serve afterwards says so.
pub async fn run(config: &Path, args: &PromoteArgs) -> Result<(), CommandError> {
    let config = host::configuration(config)?;
    host::ensure_group(&config, &args.group)?;
    let request = Request::Promote {
        group: args.group.clone(),
        dry_run: args.dry_run,
        at: args.at.as_ref().map(ToString::to_string),
        force: args.force,
    };
    let group = &args.group;
    let mut left = Left::default();
    let applies = |status: Option<&GroupStatus>| {
        let journal = status.and_then(|status| status.journal.as_ref());
        left.note(journal.and_then(|journal| journal.unapplied_bytes).unwrap_or(0));
        match left.is_nothing() {
            true => Work::named(format!("promotion of {group}")),
            false => left.of(format!("applying of {group}")),
        }
    };
    let goes_on = || {
        format!(
            "the promotion of {group} goes on in the receiver, and then the agent serves it; see: afterimage status {group}"
        )
    };
    let answer = ask_long(&config.receiver_socket(), &request, group, applies, goes_on).await?;
    let promotion: Promotion = answer.map_err(|error| explain(error, unknown_outcome(args)))?;
    let activation = if promotion.dry_run {
        None
    } else {
        let activate = async { Ok(activate(&config.agent_socket(), group).await) };
        Some(or_interrupted(activate, || not_waited_for(group)).await?)
    };
    if args.json {
        emit(&render_json(&promotion, activation.as_ref()))?;
    } else {
        emit(&render(&promotion, activation.as_ref()))?;
    }
    match activation {
        Some(Err(error)) => Err(CommandError::failed(not_served(&args.group, &error))),
        Some(Ok(activation)) if !activation.serving => Err(CommandError::failed(not_served(
            &args.group,
            &"the agent took the group and does not serve it",
        ))),
        _ => Ok(()),
    }
}

async fn activate(agent: &Path, group: &str) -> Result<Activation, AdminError> {
    call(agent, &Request::Activate { group: group.to_owned() }).await?.into_answer()
}

fn unknown_outcome(args: &PromoteArgs) -> Option<String> {
    let group = &args.group;
    let text = format!(
        "whether {group} was promoted is not known; see: afterimage status {group}\nserve {group} nowhere else before that"
    );
    (!args.dry_run).then_some(text)
}

fn not_waited_for(group: &str) -> String {
    format!(
        "{group} is promoted: this host is its primary, and the agent goes on to serve it; see: afterimage status {group}"
    )
}

fn not_served(group: &str, why: &dyn std::fmt::Display) -> String {
    format!(
        "{group} is promoted, and not served yet: {why}\n\
         the promotion stands; the agent serves {group} when it starts, or with: systemctl restart afterimage-agent"
    )
}

/// The outcome for people. `activation` is `None` after a dry run.
pub fn render(promotion: &Promotion, activation: Option<&Result<Activation, AdminError>>) -> String {
    let group = &promotion.group;
    let mut lines = vec![if promotion.dry_run {
        format!("{group} would be promoted; nothing was changed")
    } else {
        format!("{group} is promoted: this host is its primary")
    }];
    let mut fact = |name: &str, text: String| lines.push(format!("  {name:<10} {text}"));
    let when = promotion.time_us.map(|us| format!(", written {}", format_time(us))).unwrap_or_default();
    let position = &promotion.position;
    fact("image", format!("sequence {} of generation {}{when}", position.sequence, position.generation));
    if let Some(generation) = &promotion.generation {
        fact("generation", format!("{generation}, new"));
    }
    fact("lost", describe_loss(promotion));
    if let Some(discarded) = promotion.discarded {
        let bytes = ByteSize::from_bytes(discarded.bytes).approximate();
        let until =
            discarded.newest_time_us.map(|us| format!(", written {}", format_time(us))).unwrap_or_default();
        let newest = discarded.newest_sequence;
        let records = discarded.records;
        fact(
            "given up",
            format!("{records} writes ({bytes}) after that point, up to sequence {newest}{until}"),
        );
    }
    match activation {
        Some(Ok(activation)) if activation.serving && activation.exports.is_empty() => {
            fact("served", "yes; the configuration has no export".to_owned());
        }
        Some(Ok(activation)) if activation.serving => fact("served", activation.exports.join(", ")),
        Some(_) => fact("served", "not yet".to_owned()),
        None => {}
    }
    for warning in &promotion.warnings {
        fact("note", warning.clone());
    }
    lines.iter().map(|line| printable(line) + "\n").collect()
}

fn describe_loss(promotion: &Promotion) -> String {
    match promotion.loss {
        Loss::Nothing => "nothing: this host has every write that the primary acknowledged".to_owned(),
        Loss::Unknown { since_us: Some(us) } => {
            format!("unknown: writes that the primary acknowledged after {} may be missing", format_time(us))
        }
        Loss::Unknown { since_us: None } => {
            let seen =
                promotion.primary_seen_us.map(|us| format!("; it was last heard of {}", format_time(us)));
            format!(
                "unknown: writes that the primary acknowledged may be missing{}",
                seen.unwrap_or_default()
            )
        }
    }
}

fn render_json(promotion: &Promotion, activation: Option<&Result<Activation, AdminError>>) -> String {
    let (activation, error) = match activation {
        Some(Ok(activation)) => (Some(activation), None),
        Some(Err(error)) => (None, Some(error.to_string())),
        None => (None, None),
    };
    let document = json!({
        "version": JSON_VERSION,
        "promotion": promotion,
        "activation": activation,
        "activation_error": error,
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests;
