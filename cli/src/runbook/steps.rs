//! What to do, for each thing that can happen.

use afterimage_contract::config::{Mode, OnLinkLoss};
use afterimage_contract::hooks::Event;
use afterimage_contract::units::format_duration;

use super::Subject;
use super::names::Names;
use super::page::{Page, tick, tick_path, word_path};
use crate::salvage::{GROUPS_DIR, SALVAGE_DIR};

/// How to see what is the case.
pub(super) fn look(page: &mut Page, subject: &Subject, names: &Names) {
    page.section("Look first, on both hosts");
    page.code(&[
        names.group("status", &[]),
        names.group("status", &["--watch"]),
        names.afterimage(&["config", "check"]),
        "journalctl -u afterimage-agent -u afterimage-receiver --since -1h".to_owned(),
    ]);
    page.text(
        "Only `in sync` and `streaming` need nobody. `status` says of everything else what is wrong and what to do; \
         an unknown lag is shown as unknown.",
    );
    if let Some(rpo) = subject.group.objectives.rpo {
        page.text(&format!("A lag of more than {} is over the objective.", format_duration(rpo)));
    }
}

/// The primary is gone.
pub(super) fn site_lost(page: &mut Page, subject: &Subject, names: &Names) {
    let Names { primary, standby, .. } = names;
    page.section(&format!("The site of the primary, {primary}, is lost: {standby} takes over"));
    if names.fenced {
        page.text(&format!(
            "{standby} is fenced: it cannot be promoted before it was brought home (next section)."
        ));
    }
    page.text(&format!(
        "1. Make sure that {primary} is off, or that no client can reach it. From the promotion on, {standby} takes \
         nothing from it; but until {primary} hears of that, it may go on serving clients that still reach it, and \
         what it answers them is not on {standby}."
    ));
    page.text(&format!(
        "2. On {standby}, see what would be served and lost. Nothing changes, and no hook runs:"
    ));
    page.code(&[names.group("promote", &["--dry-run"])]);
    page.text(&format!("3. {}On {standby}:", hook(subject, names, standby, Event::BeforePromotion)));
    page.code(&[names.group("promote", &[])]);
    page.text(&format!("   {}", loss(subject, names)));
    page.text(&format!(
        "4. On {standby}, see that it is the primary and where the volumes are served. If `promote` ended with \"not \
         served yet\", the promotion stands: `systemctl restart afterimage-agent`, and look again."
    ));
    page.code(&[names.group("status", &[])]);
    page.text(&format!(
        "5. {}Have the clients attach on {standby}. The image is what a disk shows after a power cut at one moment: \
         file systems replay their journals, databases recover.",
        hook(subject, names, standby, Event::AfterPromotion)
    ));
    page.text(
        "Before the first sync has ended there is nothing to promote, and `promote` refuses. A promotion that fails \
         leaves everything as it was, unless the message says so.",
    );
}

fn hook(subject: &Subject, names: &Names, host: &str, event: Event) -> String {
    let there = subject.hooks.iter().any(|(e, found)| *e == event && !matches!(found, Ok(None)));
    if host == names.node && there {
        format!("The hook {} will run. ", tick(event.name()))
    } else {
        String::new()
    }
}

fn loss(subject: &Subject, names: &Names) -> String {
    let Names { primary, standby, .. } = names;
    let group = subject.group;
    let claim = "It says `lost  nothing` only if it is proven that every acknowledged write is in the image; otherwise \
        `unknown`, and after which time acknowledged writes may be missing.";
    let expect = match (group.mode, group.on_link_loss) {
        (Mode::Async, _) => format!(
            "The group is asynchronous: what {primary} acknowledged last may be missing, as much as its lag was when \
             it was lost."
        ),
        (Mode::Sync, OnLinkLoss::Degrade) => format!(
            "The group is synchronous: while it was `in sync`, every acknowledged write is in the image. What \
             {primary} acknowledged while it was DEGRADED, or catching up afterwards, may be missing, and {standby} \
             cannot know whether it was."
        ),
        (Mode::Sync, OnLinkLoss::Block) => format!(
            "The group is synchronous and blocks: after the first sync {primary} acknowledged nothing that {standby} \
             did not have."
        ),
    };
    format!("{claim} {expect}")
}

/// The old primary becomes the standby, and then the primary again.
pub(super) fn home(page: &mut Page, subject: &Subject, names: &Names) {
    // A host that is fenced is the old primary; otherwise the section follows the one before.
    let (primary, standby) =
        if names.fenced { (&names.standby, &names.primary) } else { (&names.primary, &names.standby) };
    page.section(&format!("Bring the old primary, {primary}, home when {standby} was promoted"));
    page.text(&format!(
        "If nothing was written on {standby} since, and {primary} is well after all, take the promotion back: on {standby}, \
         {}. It is refused if anything was written. Else:",
        tick(names.group("promote", &["--rollback"]))
    ));
    page.text(&format!(
        "1. Start {primary} and its daemons, with the link to {standby}. It asks {standby} before it serves anything, \
         learns that it was replaced, and says so: `fenced`."
    ));
    page.code(&[
        "systemctl start afterimage-receiver afterimage-agent".to_owned(),
        names.group("status", &[]),
    ]);
    let salvage = subject.config.node.state_dir.join(GROUPS_DIR).join(&names.group).join(SALVAGE_DIR);
    page.text(&format!(
        "2. On {primary}. What only it has is saved to a file first (in {} of the state directory there), then it is \
         the standby, and only what differs travels. If it is refused with exit status 3 because of a split brain: \
         see below.",
        tick(format!("{GROUPS_DIR}/{}/{SALVAGE_DIR}", names.group)),
    ));
    page.code(&[names.group("reinstate", &[])]);
    if names.node == *primary {
        page.text(&format!("   Here that is {}.", tick_path(&salvage)));
    }
    page.text(&format!("3. On {standby}, wait until it says {}:", healthy(subject)));
    page.code(&[names.group("status", &["--watch"])]);
    page.text(&format!("4. When it suits the clients, on {standby}, as for a planned move:"));
    page.code(&[names.group("switchover", &[])]);
}

fn healthy(subject: &Subject) -> &'static str {
    match subject.group.mode {
        Mode::Sync => "`in sync`",
        Mode::Async => "`streaming`",
    }
}

/// The roles are swapped in good order.
pub(super) fn planned_move(page: &mut Page, names: &Names) {
    let Names { primary, standby, .. } = names;
    page.section(&format!("Planned move from {primary} to {standby}"));
    page.text(&format!(
        "On {primary}, which has to be connected with {standby}. Clients are held, {standby} gets everything that \
         they were answered for, and takes over. Nothing is lost. If it is refused, {primary} serves on; if no answer \
         comes, look on both hosts before anything else."
    ));
    page.code(&[
        names.group("switchover", &["--dry-run"]),
        names.group("switchover", &[]),
        names.group("status", &[]),
    ]);
    page.text(&format!("Then have the clients attach on {standby}."));
}

/// Both hosts have writes of their own.
pub(super) fn split_brain(page: &mut Page, subject: &Subject, names: &Names) {
    page.section("Split brain: both hosts have writes of their own");
    page.text(
        "It happens when a standby was promoted while the old primary went on answering clients. When the two reach \
         each other, nothing flows, nothing is merged, and the old primary is `fenced`; the promoted host serves on. \
         One of the two histories stays; the other gives way, and is saved first.",
    );
    page.text("1. On both hosts, see which one is fenced, and which histories they have:");
    page.code(&[names.group("status", &[])]);
    page.text(
        "   If nothing was written on the promoted host, take the promotion back there, and the old primary goes on with \
         all that it has. It is refused otherwise, and nothing changes:",
    );
    page.code(&[names.group("promote", &["--rollback"])]);
    page.text(
        "2. Take from the fenced host what the applications need of it, if anything, while it is as it was: its \
         devices can be read.",
    );
    page.text(
        "3. **If the history of the promoted host stays**, on the fenced host. Its own writes are saved to a file, \
         which the command names, and it becomes the standby of the other:",
    );
    page.code(&[names.group("resolve", &["--keep", "peer"])]);
    page.text(
        "   **If the history of the fenced host stays**, first on the fenced host, which is the primary again and \
         waits for the other:",
    );
    page.code(&[names.group("resolve", &["--keep", "local"])]);
    page.text(
        "   then on the promoted host. Its clients are cut off, its own writes are saved to a file, and it becomes the \
         standby:",
    );
    page.code(&[names.group("resolve", &["--keep", "peer"])]);
    page.text(&format!("4. On the host whose history stays, wait until it says {}:", healthy(subject)));
    page.code(&[names.group("status", &["--watch"])]);
    page.text("5. See what was saved of the other history, on the host that gave way:");
    page.code(&[names.afterimage(&["salvage", "list"])]);
}

/// There is no session.
pub(super) fn link_down(page: &mut Page, subject: &Subject, names: &Names) {
    let Names { primary, standby, .. } = names;
    let group = subject.group;
    page.section("The link is down");
    let timeout = format_duration(group.sync_timeout);
    let meanwhile = match (group.mode, group.on_link_loss) {
        (Mode::Async, _) => format!("{primary} goes on. What {standby} lacks is noted."),
        (Mode::Sync, OnLinkLoss::Degrade) => format!(
            "Writes wait for {timeout}; then {primary} goes on without {standby}, and `status` says DEGRADED. What \
             {standby} lacks is noted."
        ),
        (Mode::Sync, OnLinkLoss::Block) => {
            format!("Writes wait until {standby} is back, as `on_link_loss = \"block\"` asks.")
        }
    };
    page.text(&format!(
        "{meanwhile} When the link is back, the session begins by itself and only what changed travels: nothing needs \
         doing then. {standby} keeps its last whole image meanwhile. **Do not promote {standby} while {primary} \
         serves clients**: that makes a split brain."
    ));
    page.text(&format!(
        "1. On {primary}, see why there is no session; on {standby}, whether its receiver runs and listens:"
    ));
    let config = subject.config;
    let port =
        if names.standby == names.node { config.node.listen.port() } else { config.peer.address.port() };
    page.code(&[
        names.group("status", &[]),
        "systemctl status afterimage-receiver".to_owned(),
        format!("ss -uln sport = :{port}"),
    ]);
    page.text(&format!(
        "2. {} reaches {} at UDP {}. Firewalls on the way must let UDP through, both ways.",
        config.node.name,
        config.peer.name,
        tick(&config.peer.address)
    ));
    page.text(
        "3. If the reason is a key, pair the hosts again: the first line on one, the second on the other.",
    );
    page.code(&[names.afterimage(&["pair", "--new"]), names.afterimage(&["pair", "TOKEN"])]);
    if (group.mode, group.on_link_loss) == (Mode::Sync, OnLinkLoss::Block) {
        page.text(&format!(
            "4. If clients cannot wait: set `on_link_loss = \"degrade\"` in {} on {primary}, and there",
            tick_path(subject.path)
        ));
        page.code(&["systemctl restart afterimage-agent".to_owned()]);
    }
}

/// The primary starts, and cannot ask.
pub(super) fn start(page: &mut Page, names: &Names) {
    let Names { primary, standby, .. } = names;
    page.section("Both hosts were off");
    page.text(&format!(
        "Start both. {primary} serves once {standby} has told it that it was not promoted meanwhile. If {standby} \
         stays away and it is **certain** that it was not promoted, have {primary} serve without asking: add \
         `--alone` to `ExecStart` for this one start, and take it out again. If {standby} was promoted after all, \
         both hosts write, and one of the two histories will be lost."
    ));
    page.code(&[
        "systemctl edit --full --runtime afterimage-agent".to_owned(),
        "systemctl restart afterimage-agent".to_owned(),
        "systemctl revert afterimage-agent".to_owned(),
    ]);
}

/// A disk of either host.
pub(super) fn disk_failed(page: &mut Page, subject: &Subject, names: &Names) {
    let Names { primary, standby, .. } = names;
    let (config, group) = (subject.config, subject.group);
    page.section("A disk failed");
    let devices: Vec<_> = group.volumes.iter().map(|volume| tick_path(&volume.device)).collect();
    page.text(&format!(
        "On {}: the volumes are on {}, the journal of a standby in {}, the state in {}.",
        names.node,
        devices.join(", "),
        tick_path(&group.journal_path()),
        tick_path(&config.node.state_dir)
    ));
    let failed = [
        format!(
            "**A volume on the primary, {primary}**: clients get the disk's errors. Stop the clients, then have \
             {standby} take over as if the site were lost. Then make a new standby of {primary}, below."
        ),
        format!(
            "**A volume, or the journal, on the standby, {standby}**: {primary} goes on. Make a new standby of \
             {standby}, below."
        ),
        format!(
            "**The state on the primary, {primary}**: the volumes are served and not replicated, and `status` says \
             so. Repair the disk, then `systemctl restart afterimage-agent`."
        ),
    ];
    page.items(failed.iter().map(String::as_str));
    page.text(
        "Another device or file in the place of one that was replicated is refused: `status` says `WRONG VOLUME`, and \
         nothing on it is overwritten.",
    );
    page.text(
        "**Make a new standby**, on the host whose disk was replaced, while the other one is the primary:",
    );
    page.text(
        "1. Stop the daemons, and have the configuration of both hosts name the other host as `primary`:",
    );
    page.code(&["systemctl stop afterimage-agent afterimage-receiver".to_owned()]);
    page.text(
        "2. Make the device or image file again, as large as on the primary. Then \
         forget what this host knew of the group. Anything in `salvage` goes with it: move it away first.",
    );
    let state = config.node.state_dir.join(GROUPS_DIR).join(&names.group);
    page.code(&[format!("rm -rf {} {}", word_path(&state), word_path(&group.journal_path()))]);
    page.text("3. Start the daemons. The first sync begins by itself; until it has ended there is nothing to promote.");
    page.code(&[
        "systemctl start afterimage-receiver afterimage-agent".to_owned(),
        names.group("status", &["--watch"]),
    ]);
}
