//! Builds a [`Config`] from the tables of a file. Every value is checked where it is read, and every key is
//! asked for even when an earlier one was wrong, so that one run shows everything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::model::*;
use super::read::{Findings, Place, Section, closest, shorten};
use super::unique::Unique;
use super::values::{
    absolute_path, boolean, capture, choice, duration, hot_extents, log_level, max_rate, metrics_address,
    name, name_rule, nbd_device, say, size, socket_path, text,
};
use super::{AGENT_SOCKET_NAME, Problem, RECEIVER_SOCKET_NAME};
use crate::units::{ByteSize, HostPort, parse_listen_address};

/// The configuration in `input`, or everything that is wrong with it, in the order of the lines.
pub(super) fn config(input: &str, file: &str) -> Result<Config, Vec<Problem>> {
    let mut findings = Findings::new(input, file);
    let parsed = match DeTable::parse(input) {
        Ok(document) => root(document.get_ref(), &mut findings),
        Err(error) => {
            findings.syntax_error(&error);
            None
        }
    };
    findings.errors.sort_by_key(|p| p.line);
    findings.warnings.sort_by_key(|p| p.line);
    match parsed {
        Some(config) if findings.errors.is_empty() => Ok(Config { warnings: findings.warnings, ..config }),
        _ => Err(findings.errors),
    }
}

fn root(document: &DeTable<'_>, findings: &mut Findings) -> Option<Config> {
    let mut root = Section::new(Place::file(), document);
    let mut unique = Unique::default();
    let node = required_section(&mut root, "node", findings).and_then(|s| node(s, &mut unique, findings));
    let peer = required_section(&mut root, "peer", findings).and_then(|s| peer(s, node.as_ref(), findings));
    let log = root.section("log", findings).map_or_else(Log::default, |s| log(s, findings));
    let hooks = root.section("hooks", findings).map(|s| hooks(s, findings));
    let groups = root.section("group", findings);
    root.finish(findings);

    let state_dir = node.as_ref().map_or_else(|| DEFAULT_STATE_DIR.into(), |n| n.state_dir.clone());
    let state_dir_place = Place { key: "node.state_dir".to_owned(), line: None };
    for socket in [AGENT_SOCKET_NAME, RECEIVER_SOCKET_NAME] {
        unique.claim("socket", &state_dir.join(socket).display().to_string(), &state_dir_place, findings);
    }
    let mut reader = GroupReader {
        nodes: [node.as_ref().map(|n| n.name.clone()), peer.as_ref().map(|p| p.name.clone())],
        state_dir,
        unique,
        findings,
    };
    let groups = reader.groups(groups);
    Some(Config { node: node?, peer: peer?, log, hooks, groups, warnings: Vec::new() })
}

fn required_section<'t>(
    root: &mut Section<'t>,
    key: &'static str,
    findings: &mut Findings,
) -> Option<Section<'t>> {
    let (table, place) = root.required(key, &format!("a [{key}] section"), findings, super::read::table)?;
    Some(Section::new(place, table))
}

fn node(mut section: Section, unique: &mut Unique, findings: &mut Findings) -> Option<Node> {
    let name = section.required("name", "name = \"alpha\"", findings, name);
    let listen = section.optional("listen", findings, |v| parse_listen_address(text(v)?).map_err(say));
    let state_dir = section.optional("state_dir", findings, absolute_path);
    let metrics = section.optional("metrics", findings, metrics_address);
    let low_latency = section.optional("low_latency", findings, |v| {
        choice(v, &[("auto", LowLatency::Auto), ("on", LowLatency::On), ("off", LowLatency::Off)])
    });
    section.finish(findings);
    if let Some((address, place)) = &metrics {
        for port in [address.port(), address.port() + 1] {
            unique.claim("address", &SocketAddr::new(address.ip(), port).to_string(), place, findings);
        }
    }

    let state_dir = state_dir.map_or_else(
        || DEFAULT_STATE_DIR.into(),
        |(dir, place)| {
            // A slash before the name, and a `~` after it while the socket is being made.
            let longest = AGENT_SOCKET_NAME.len().max(RECEIVER_SOCKET_NAME.len()) + 2;
            if dir.as_os_str().len() + longest > MAX_SOCKET_PATH_LEN {
                let limit = MAX_SOCKET_PATH_LEN - longest;
                findings.error(
                    &place,
                    format!("the path is too long for the sockets in it; at most {limit} bytes"),
                );
            }
            dir
        },
    );
    Some(Node {
        name: name?.0,
        listen: listen.map_or(DEFAULT_LISTEN, |(address, _)| address),
        state_dir,
        metrics: metrics.map(|(address, _)| address),
        low_latency: value_or(&low_latency, DEFAULT_LOW_LATENCY),
    })
}

fn peer(mut section: Section, node: Option<&Node>, findings: &mut Findings) -> Option<Peer> {
    let name = section.required("name", "name = \"beta\"", findings, name);
    let address = section.required("address", "address = \"beta.example.net:7789\"", findings, |v| {
        text(v)?.parse::<HostPort>().map_err(say)
    });
    section.finish(findings);

    let (name, place) = name?;
    if node.is_some_and(|node| node.name == name) {
        findings.error(&place, format!("\"{name}\" is this node's own name; the peer is the other host"));
    }
    Some(Peer { name, address: address?.0 })
}

/// What reading a group needs to know of the rest of the file.
struct GroupReader<'f, 'n> {
    nodes: [Option<String>; 2],
    state_dir: PathBuf,
    unique: Unique,
    findings: &'f mut Findings<'n>,
}

impl GroupReader<'_, '_> {
    fn groups(&mut self, section: Option<Section>) -> BTreeMap<String, Group> {
        let place = section.as_ref().map_or_else(Place::file, |s| s.place.clone());
        let sections = section.map_or_else(Vec::new, |s| s.sections(self.findings));
        if sections.is_empty() {
            self.findings.warning(&place, "there is no group, so nothing is replicated; add [group.NAME]");
        }
        if sections.len() > MAX_GROUPS {
            let message = format!("{} groups; at most {MAX_GROUPS} on a host", sections.len());
            self.findings.error(&place, message);
        }
        let groups = sections.into_iter().filter_map(|(name, section)| self.group(name, section));
        groups.map(|group| (group.name.clone(), group)).collect()
    }

    fn group(&mut self, name: &str, mut s: Section) -> Option<Group> {
        let f = &mut *self.findings;
        if !is_name(name) {
            f.error(&s.place, name_rule(name));
        }
        let mode = s.optional("mode", f, |v| choice(v, &[("sync", Mode::Sync), ("async", Mode::Async)]));
        let ack =
            s.optional("ack", f, |v| choice(v, &[("received", Ack::Received), ("durable", Ack::Durable)]));
        let on_link_loss = s.optional("on_link_loss", f, |v| {
            choice(v, &[("degrade", OnLinkLoss::Degrade), ("block", OnLinkLoss::Block)])
        });
        let sync_timeout = s.optional("sync_timeout", f, |v| duration(v, MIN_SYNC_TIMEOUT, MAX_SYNC_TIMEOUT));
        let history = s.optional("history", f, |v| duration(v, Duration::ZERO, MAX_HISTORY));
        let first_sync = s.optional("first_sync", f, |v| {
            choice(v, &[("copy", FirstSync::Copy), ("compare", FirstSync::Compare)])
        });
        let queue_size = s.optional("queue_size", f, |v| size(v, MIN_QUEUE_SIZE, MAX_QUEUE_SIZE));
        let catchup_window =
            s.optional("catchup_window", f, |v| size(v, MIN_CATCHUP_WINDOW, MAX_CATCHUP_WINDOW));
        let hot_extents = s.optional("hot_extents", f, hot_extents);
        let compression = s.optional("compression", f, |v| {
            let auto = ("auto", Compression::Auto);
            choice(
                v,
                &[auto, ("none", Compression::None), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)],
            )
        });
        let compression_window =
            s.optional("compression_window", f, |v| size(v, MIN_COMPRESSION_WINDOW, MAX_COMPRESSION_WINDOW));
        let max_rate = s.optional("max_rate", f, max_rate);
        let background = s.optional("background", f, |v| {
            let gentle = ("gentle", Background::Gentle);
            choice(v, &[gentle, ("balanced", Background::Balanced), ("fast", Background::Fast)])
        });
        let objectives = s.section("objectives", f).map_or_else(Objectives::default, |s| objectives(s, f));
        let verify = s.section("verify", f).map_or(Verify { rate: DEFAULT_VERIFY_RATE }, |s| verify(s, f));
        let journal = s.section("journal", f);
        let journal_place = journal.as_ref().map(|s| s.place.clone());
        let journal = self.journal(journal);
        let primary = self.primary(&mut s);
        let volumes = self.volumes(&mut s);
        let place = s.place.clone();
        s.finish(self.findings);

        let group = Group {
            name: name.to_owned(),
            mode: value_or(&mode, DEFAULT_MODE),
            ack: value_or(&ack, DEFAULT_ACK),
            on_link_loss: value_or(&on_link_loss, DEFAULT_ON_LINK_LOSS),
            sync_timeout: value_or(&sync_timeout, DEFAULT_SYNC_TIMEOUT),
            objectives,
            history: value_or(&history, DEFAULT_HISTORY),
            journal,
            primary: primary?,
            first_sync: value_or(&first_sync, DEFAULT_FIRST_SYNC),
            queue_size: value_or(&queue_size, DEFAULT_QUEUE_SIZE),
            catchup_window: value_or(&catchup_window, DEFAULT_CATCHUP_WINDOW),
            hot_extents: value_or(&hot_extents, DEFAULT_HOT_EXTENTS),
            max_rate: max_rate.map(|(rate, _)| rate),
            background: value_or(&background, DEFAULT_BACKGROUND),
            compression: value_or(&compression, DEFAULT_COMPRESSION),
            compression_window: value_or(&compression_window, DEFAULT_COMPRESSION_WINDOW),
            verify,
            volumes,
        };
        if group.mode == Mode::Async {
            if let Some((OnLinkLoss::Block, place)) = on_link_loss {
                self.findings
                    .error(&place, "an async group never waits for the standby; set mode = \"sync\"");
            }
            for place in [ack.map(|(_, p)| p), sync_timeout.map(|(_, p)| p)].into_iter().flatten() {
                self.findings.warning(&place, "has no effect unless mode = \"sync\"");
            }
        }
        if group.journal.max_size < group.queue_size {
            let text = format!(
                "the journal ({}) is smaller than queue_size ({})",
                group.journal.max_size, group.queue_size
            );
            self.findings.warning(journal_place.as_ref().unwrap_or(&place), text);
        }
        Some(group)
    }

    fn journal(&mut self, section: Option<Section>) -> Journal {
        let mut dir = None;
        let mut max_size = None;
        if let Some(mut section) = section {
            dir = section.optional("dir", self.findings, absolute_path);
            max_size = section.optional("max_size", self.findings, |v| {
                size(v, MIN_JOURNAL_MAX_SIZE, ByteSize::from_bytes(u64::MAX))
            });
            section.finish(self.findings);
        }
        Journal {
            dir: dir.map_or_else(|| self.state_dir.join(DEFAULT_JOURNAL_SUBDIR), |(dir, _)| dir),
            max_size: value_or(&max_size, DEFAULT_JOURNAL_MAX_SIZE),
        }
    }

    fn primary(&mut self, section: &mut Section) -> Option<String> {
        let nodes = self.nodes.iter().flatten().map(String::as_str);
        let example =
            format!("primary = \"{}\", the same on both hosts", nodes.clone().next().unwrap_or("alpha"));
        let (primary, place) =
            section.required("primary", &example, self.findings, |v| text(v).map(str::to_owned))?;
        if let [Some(node), Some(peer)] = &self.nodes
            && primary != *node
            && primary != *peer
        {
            let both = format!(
                "expected \"{node}\" (this node) or \"{peer}\" (the peer), found \"{}\"",
                shorten(&primary)
            );
            let message = match closest(&primary, nodes) {
                Some(near) => format!("{both}; did you mean \"{near}\"?"),
                None => both,
            };
            self.findings.error(&place, message);
        }
        Some(primary)
    }

    fn volumes(&mut self, group: &mut Section) -> Vec<Volume> {
        let Some(sections) = group.array_of_sections("volume", self.findings) else { return Vec::new() };
        if sections.is_empty() {
            let header = group.place.below("volume");
            self.findings.error(&group.place, format!("the group has no volume; add [[{header}]]"));
        }
        if sections.len() > MAX_VOLUMES {
            let message = format!("{} volumes; at most {MAX_VOLUMES} in a group", sections.len());
            self.findings.error(&group.place, message);
        }
        sections.into_iter().filter_map(|section| self.volume(section)).collect()
    }

    fn volume(&mut self, mut s: Section) -> Option<Volume> {
        let f = &mut *self.findings;
        let name = s.required("name", "name = \"pgdata\"", f, name);
        let device = s.required("device", "device = \"/dev/vg0/pgdata\"", f, absolute_path);
        let capture = s.optional("capture", f, capture);
        let export = s.section("export", f);
        if let Some((name, place)) = &name {
            self.unique.claim("volume name", name, place, f);
        }
        if let Some((device, place)) = &device {
            self.unique.claim("device", &device.display().to_string(), place, f);
        }
        let export = export.map_or_else(Export::default, |section| self.export(section));
        if export.is_empty() && !s.has("export") {
            self.findings.warning(
                &s.place,
                "the volume has no export, so nothing can use it; add export = { nbd = … }",
            );
        }
        s.finish(self.findings);
        Some(Volume {
            name: name?.0,
            device: device?.0,
            capture: value_or(&capture, DEFAULT_CAPTURE),
            export,
        })
    }

    fn export(&mut self, mut s: Section) -> Export {
        let f = &mut *self.findings;
        let nbd = s.optional("nbd", f, socket_path);
        let tcp = s.optional("tcp", f, |v| parse_listen_address(text(v)?).map_err(say));
        let tcp_remote = s.optional("tcp_remote", f, boolean);
        let attach = s.optional("attach", f, nbd_device);
        if let Some((path, place)) = &nbd {
            self.unique.claim("socket", &path.display().to_string(), place, f);
        }
        if let Some((path, place)) = &attach {
            self.unique.claim("device", &path.display().to_string(), place, f);
        }
        if let Some((address, place)) = &tcp {
            self.unique.claim("address", &address.to_string(), place, f);
            let remote = !address.ip().to_canonical().is_loopback();
            match (remote, value_or(&tcp_remote, DEFAULT_TCP_REMOTE)) {
                (true, false) => f.error(place, REMOTE_REFUSED),
                (true, true) => {
                    f.warning(place, "anyone who can reach this address can read and write the volume")
                }
                (false, _) => {}
            }
        }
        s.finish(f);
        Export {
            nbd: nbd.map(|(path, _)| path),
            tcp: tcp.map(|(address, _)| address),
            tcp_remote: value_or(&tcp_remote, DEFAULT_TCP_REMOTE),
            attach: attach.map(|(path, _)| path),
        }
    }
}

const REMOTE_REFUSED: &str = "other hosts could reach this address, and NBD asks for no password; \
    use 127.0.0.1 or [::1], or set tcp_remote = true";

fn log(mut section: Section, findings: &mut Findings) -> Log {
    let level = section.optional("level", findings, log_level);
    section.finish(findings);
    level.map_or_else(Log::default, |(level, _)| Log { level })
}

fn hooks(mut section: Section, findings: &mut Findings) -> Hooks {
    let dir = section.optional("dir", findings, absolute_path);
    let timeout =
        section.optional("timeout", findings, |v| duration(v, MIN_HOOKS_TIMEOUT, MAX_HOOKS_TIMEOUT));
    let before_promotion = section.section("before_promotion", findings);
    let before_promotion = before_promotion.map_or(DEFAULT_ON_FAILURE, |s| on_failure(s, findings));
    let before_switchover = section.section("before_switchover", findings);
    let before_switchover = before_switchover.map_or(DEFAULT_ON_FAILURE, |s| on_failure(s, findings));
    section.finish(findings);
    Hooks {
        dir: dir.map_or_else(|| DEFAULT_HOOKS_DIR.into(), |(dir, _)| dir),
        timeout: value_or(&timeout, DEFAULT_HOOKS_TIMEOUT),
        before_promotion,
        before_switchover,
    }
}

fn on_failure(mut section: Section, findings: &mut Findings) -> OnFailure {
    let policy = section.optional("on_failure", findings, |v| {
        choice(v, &[("abort", OnFailure::Abort), ("continue", OnFailure::Continue)])
    });
    section.finish(findings);
    value_or(&policy, DEFAULT_ON_FAILURE)
}

fn objectives(mut section: Section, findings: &mut Findings) -> Objectives {
    let rpo = section.optional("rpo", findings, |v| duration(v, Duration::ZERO, MAX_HISTORY));
    let rto = section.optional("rto", findings, |v| duration(v, Duration::ZERO, MAX_HISTORY));
    section.finish(findings);
    Objectives { rpo: rpo.map(|(d, _)| d), rto: rto.map(|(d, _)| d) }
}

fn verify(mut section: Section, findings: &mut Findings) -> Verify {
    let rate = section.optional("rate", findings, max_rate);
    section.finish(findings);
    Verify { rate: value_or(&rate, DEFAULT_VERIFY_RATE) }
}

fn value_or<T: Copy>(found: &Option<(T, Place)>, default: T) -> T {
    found.as_ref().map_or(default, |(value, _)| *value)
}
