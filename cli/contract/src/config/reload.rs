//! What of a changed configuration a running daemon can take over, and what needs a restart of it.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use super::{Config, Export, Group, Hooks, Journal, Log, Node, Objectives, Peer, Verify, Volume};

/// A daemon: each uses its part of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Daemon {
    /// `afterimage-agent`.
    Agent,
    /// `afterimage-receiver`.
    Receiver,
}

impl Daemon {
    /// The name of its program, which is also that of its systemd unit.
    pub fn program(self) -> &'static str {
        match self {
            Self::Agent => "afterimage-agent",
            Self::Receiver => "afterimage-receiver",
        }
    }
}

/// What a configuration that was read again comes to for a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reload {
    /// What the daemon goes on with.
    pub config: Config,
    /// The keys that have changed and count from now on, in their order.
    pub applied: Vec<String>,
    /// The keys that have changed and count after a restart of the daemon: what it runs with is still the old one.
    pub restart: Vec<String>,
}

/// Takes over from `found` what `daemon`, which runs with `running`, can change at once. Keys that it does not use are not
/// spoken of.
pub fn reload(running: &Config, found: &Config, daemon: Daemon) -> Reload {
    let config = taken_over(running, found);
    let keys = |config| keys(config, daemon);
    let (old, new, wanted) = (keys(running), keys(&config), keys(found));
    Reload { applied: differing(&old, &new), restart: differing(&new, &wanted), config }
}

/// `running` with what can be changed at once. That clients are never held up for it is the rule for what is here.
fn taken_over(running: &Config, found: &Config) -> Config {
    let mut config = running.clone();
    config.log = found.log.clone();
    config.node.low_latency = found.node.low_latency;
    config.hooks = found.hooks.clone();
    config.warnings = found.warnings.clone();
    for (name, group) in &mut config.groups {
        let Some(found) = found.groups.get(name) else { continue };
        group.max_rate = found.max_rate;
        group.background = found.background;
        group.sync_timeout = found.sync_timeout;
        group.objectives = found.objectives;
        group.verify = found.verify;
    }
    config
}

/// The keys of a configuration with their values, as far as a daemon uses them. A group or a volume is a key too, so that one
/// which is new or gone is seen.
#[derive(Default)]
struct Keys {
    daemon: Option<Daemon>,
    values: BTreeMap<String, String>,
}

impl Keys {
    fn both(&mut self, key: &str, value: &impl Debug) {
        self.values.insert(key.to_owned(), format!("{value:?}"));
    }

    fn agent(&mut self, key: &str, value: &impl Debug) {
        self.of(Daemon::Agent, key, value);
    }

    fn receiver(&mut self, key: &str, value: &impl Debug) {
        self.of(Daemon::Receiver, key, value);
    }

    fn of(&mut self, daemon: Daemon, key: &str, value: &impl Debug) {
        if self.daemon == Some(daemon) {
            self.both(key, value);
        }
    }
}

// Each struct is taken apart by name, so that a new key cannot be forgotten here.

fn keys(config: &Config, daemon: Daemon) -> BTreeMap<String, String> {
    let mut keys = Keys { daemon: Some(daemon), ..Keys::default() };
    let Config { node, peer, log, hooks, groups, warnings: _ } = config;
    let Node { name, listen, state_dir, metrics, low_latency } = node;
    keys.both("node.name", name);
    keys.receiver("node.listen", listen);
    keys.both("node.state_dir", state_dir);
    keys.both("node.metrics", metrics);
    keys.both("node.low_latency", low_latency);
    let Peer { name, address } = peer;
    keys.both("peer.name", name);
    keys.agent("peer.address", address);
    let Log { level } = log;
    keys.both("log.level", level);
    if let Some(Hooks { dir, timeout, before_promotion, before_switchover }) = hooks {
        keys.both("hooks.dir", dir);
        keys.both("hooks.timeout", timeout);
        keys.receiver("hooks.before_promotion.on_failure", before_promotion);
        keys.agent("hooks.before_switchover.on_failure", before_switchover);
    }
    groups.values().for_each(|group| group_keys(group, &mut keys));
    keys.values
}

fn group_keys(group: &Group, keys: &mut Keys) {
    let Group {
        name,
        mode,
        ack,
        on_link_loss,
        sync_timeout,
        objectives,
        history,
        journal,
        primary,
        first_sync,
        queue_size,
        catchup_window,
        hot_extents,
        max_rate,
        background,
        compression,
        compression_window,
        verify,
        volumes,
    } = group;
    let Objectives { rpo, rto } = objectives;
    let Journal { dir, max_size } = journal;
    let Verify { rate } = verify;
    let group = format!("group.{name}");
    let key = |key: &str| format!("{group}.{key}");
    keys.both(&group, &"");
    keys.both(&key("mode"), mode);
    keys.agent(&key("ack"), ack);
    keys.agent(&key("on_link_loss"), on_link_loss);
    keys.agent(&key("sync_timeout"), sync_timeout);
    keys.agent(&key("objectives.rpo"), rpo);
    keys.agent(&key("objectives.rto"), rto);
    keys.receiver(&key("history"), history);
    keys.receiver(&key("journal.dir"), dir);
    keys.receiver(&key("journal.max_size"), max_size);
    keys.both(&key("primary"), primary);
    keys.agent(&key("first_sync"), first_sync);
    keys.agent(&key("queue_size"), queue_size);
    keys.agent(&key("catchup_window"), catchup_window);
    keys.agent(&key("hot_extents"), hot_extents);
    keys.agent(&key("max_rate"), max_rate);
    keys.agent(&key("background"), background);
    keys.agent(&key("compression"), compression);
    keys.agent(&key("compression_window"), compression_window);
    keys.agent(&key("verify.rate"), rate);
    for (index, volume) in volumes.iter().enumerate() {
        let Volume { name, device, capture, export } = volume;
        let Export { nbd, tcp, tcp_remote, attach } = export;
        let volume = key(&format!("volume[{index}]"));
        let key = |key: &str| format!("{volume}.{key}");
        keys.both(&volume, &"");
        keys.both(&key("name"), name);
        keys.both(&key("device"), device);
        keys.agent(&key("capture"), capture);
        keys.agent(&key("export.nbd"), nbd);
        keys.agent(&key("export.tcp"), tcp);
        keys.agent(&key("export.tcp_remote"), tcp_remote);
        keys.agent(&key("export.attach"), attach);
    }
}

/// The keys whose values differ; of a group, a volume or the hooks that one side lacks, what stands for all of it.
fn differing(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let all: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let mut differing: Vec<String> = Vec::new();
    for key in all.into_iter().filter(|key| old.get(*key) != new.get(*key)) {
        let of_missing = |whole: &String| {
            key.starts_with(whole.as_str()) && key.as_bytes().get(whole.len()) == Some(&b'.')
        };
        let whole = differing.iter().rev().find(|whole| of_missing(whole));
        let is_part = whole.is_some_and(|whole| old.contains_key(whole) != new.contains_key(whole));
        if !is_part {
            differing.push(key.clone());
        }
    }
    differing
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "[node]\nname = \"alpha\"\n[peer]\nname = \"beta\"\naddress = \"beta:7789\"\n\
        [group.mail]\nprimary = \"alpha\"\n[[group.mail.volume]]\nname = \"m\"\ndevice = \"/m\"\n\
        export = { nbd = \"/run/m.sock\" }\n\
        [group.orders]\nprimary = \"alpha\"\nmode = \"sync\"\n[[group.orders.volume]]\nname = \"v\"\ndevice = \"/v\"\n\
        export = { nbd = \"/run/v.sock\" }\n";

    fn parse(text: &str) -> Config {
        Config::parse(text, "a.toml").unwrap()
    }

    /// What comes of replacing one thing by another: applied and to be restarted for.
    fn reloaded(from: &str, to: &str, daemon: Daemon) -> (Vec<String>, Vec<String>) {
        assert!(OLD.contains(from));
        let done = reload(&parse(OLD), &parse(&OLD.replacen(from, to, 1)), daemon);
        (done.applied, done.restart)
    }

    fn own(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn nothing_changed_is_nothing_to_do() {
        for daemon in [Daemon::Agent, Daemon::Receiver] {
            let done = reload(&parse(OLD), &parse(OLD), daemon);
            assert_eq!((done.applied, done.restart, done.config), (vec![], vec![], parse(OLD)));
        }
    }

    #[test]
    fn what_can_change_at_once_does_for_the_daemon_that_uses_it() {
        let to = "mode = \"sync\"\nmax_rate = \"1MiB/s\"\nbackground = \"fast\"\nsync_timeout = \"7s\"\nobjectives = { rpo = \"9s\" }\n\
            verify = { rate = \"2MiB/s\" }\n";
        let (applied, restart) = reloaded("mode = \"sync\"\n", to, Daemon::Agent);
        let of_group = ["background", "max_rate", "objectives.rpo", "sync_timeout", "verify.rate"];
        assert_eq!(applied, of_group.map(|key| format!("group.orders.{key}")));
        assert_eq!(restart, own(&[]));
        assert_eq!(reloaded("mode = \"sync\"\n", to, Daemon::Receiver), (vec![], vec![]));

        let to = "low_latency = \"off\"\n[peer]";
        for daemon in [Daemon::Agent, Daemon::Receiver] {
            assert_eq!(reloaded("[peer]", to, daemon), (own(&["node.low_latency"]), own(&[])));
        }

        let to = "[hooks]\n[log]\nlevel = \"debug\"\n[peer]";
        let (applied, restart) = reloaded("[peer]", to, Daemon::Receiver);
        let hooks = ["hooks.before_promotion.on_failure", "hooks.dir", "hooks.timeout", "log.level"];
        assert_eq!((applied, restart), (own(&hooks), own(&[])));
    }

    #[test]
    fn what_needs_a_restart_is_named_until_there_was_one() {
        let new = OLD.replace("beta:7789", "beta:7790").replace("mode = \"sync\"", "queue_size = \"1MiB\"");
        let first = reload(&parse(OLD), &parse(&new), Daemon::Agent);
        let keys = own(&["group.orders.mode", "group.orders.queue_size", "peer.address"]);
        assert_eq!((&first.applied, &first.restart), (&vec![], &keys));
        assert_eq!(first.config, parse(OLD), "nothing of it is in force");
        let again = reload(&first.config, &parse(&new), Daemon::Agent);
        assert_eq!(again.restart, keys);
        assert_eq!(reload(&first.config, &parse(OLD), Daemon::Agent).restart, own(&[]));
    }

    #[test]
    fn a_group_or_volume_that_comes_or_goes_is_named_as_a_whole() {
        let volume =
            "[[group.orders.volume]]\nname = \"w\"\ndevice = \"/w\"\nexport = { tcp = \"127.0.0.1:1\" }\n";
        let with = format!("{volume}[group.new]\nprimary = \"beta\"\n{}", volume.replace("orders", "new"));
        let with =
            with.replacen("\"w\"", "\"x\"", 1).replacen("\"/w\"", "\"/x\"", 1).replacen(":1\"", ":2\"", 1);
        let new = OLD.to_owned() + &with;
        for daemon in [Daemon::Agent, Daemon::Receiver] {
            let keys = own(&["group.new", "group.orders.volume[1]"]);
            assert_eq!(reload(&parse(OLD), &parse(&new), daemon).restart, keys);
            assert_eq!(reload(&parse(&new), &parse(OLD), daemon).restart, keys);
        }
    }
}
